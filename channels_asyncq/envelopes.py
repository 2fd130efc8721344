"""The record in which a message travels, and its header on the wire."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import Any

from .topics import NODE_BYTES

WIRE_VERSION = 1
ENCRYPTED = 1
CONTROL = 2
# A word to the reader about a loss; never on the wire.
NOTICE = 4
_KNOWN_FLAGS = ENCRYPTED | CONTROL

# version, flags, CRC-32 of the flags and of everything behind it
_START = struct.Struct(">BBI")
# node, sequence number
_SENDER = struct.Struct(f">{NODE_BYTES}sQ")
# length of the target's name, length of the excluded channels
_LENGTHS = struct.Struct(">HI")
_HEADER = struct.Struct(f">BBI{NODE_BYTES}sQHI")
_NAMES = _HEADER.size
_CHECKED = _START.size  # what the checksum covers begins there
_LARGE = 4096


class BadEnvelope(ValueError):
    """Bytes that are no envelope of a version this release reads; the text says what is wrong with them."""


class Envelope:
    """
    One message under way or waiting: the encoded message and what the layer must know about it.

    The same object waits in the buffer of every local member of a group, so nobody changes it after it was
    put there. `expires_at` is a time of `time.monotonic()`; `excluded` holds full channel names. `message` is
    the decoded form of a payload that came over the wire and was checked, or that somebody here has decoded:
    `open()` gives the first receiver this one and each other one a dict of its own.
    """

    __slots__ = (
        "excluded",
        "expires_at",
        "flags",
        "holders",
        "is_flat",
        "message",
        "node",
        "payload",
        "seq",
        "target",
    )

    def __init__(
        self,
        payload: bytes,
        target: str,
        node: bytes = bytes(NODE_BYTES),
        seq: int = 0,
        flags: int = 0,
        excluded: tuple[str, ...] = (),
        expires_at: float = 0.0,
    ) -> None:
        self.payload = payload
        self.target = target
        self.node = node
        self.seq = seq
        self.flags = flags
        self.excluded = excluded
        self.expires_at = expires_at
        self.message: dict[str, Any] | None = None
        # Whether copying `message` is as good as decoding again; None: nobody has looked.
        self.is_flat: bool | None = None
        self.holders = 0  # buffers it waits in; counted only when the bytes of a process are limited

    def __repr__(self) -> str:
        return f"<Envelope {self.node.hex()}/{self.seq} to {self.target!r}, {len(self.payload)} bytes>"


def pack(
    target: str,
    body: bytes,
    node: bytes = bytes(NODE_BYTES),
    seq: int = 0,
    flags: int = 0,
    excluded: tuple[str, ...] = (),
) -> bytes:
    """
    Return the bytes of an envelope for the wire.

    `body` is the encoded message as it should travel; if it is encrypted, the flag has to say so.
    """
    rest = _SENDER.pack(node, seq) + _names(target, excluded) + body
    return _START.pack(WIRE_VERSION, flags, zlib.crc32(rest, flags)) + rest


@lru_cache(8192)
def _names(target: str, excluded: tuple[str, ...]) -> bytes:
    name, left_out = target.encode(), ",".join(excluded).encode()
    return _LENGTHS.pack(len(name), len(left_out)) + name + left_out


def header_size(target: str, excluded: tuple[str, ...] = ()) -> int:
    """Return how many bytes of a packed envelope come before its body."""
    return _START.size + _SENDER.size + len(_names(target, excluded))


def unpack(data: bytes, *, is_whole: bool = True) -> Envelope:
    """
    Return the envelope in these bytes; its payload is still encrypted if the flag says so.

    With `is_whole=False` the payload was cut off on purpose, and only the header counts.

    Raises:
        BadEnvelope: truncated or changed, of a version or with flags that this release does not know, or names
            that are not text.
    """
    if len(data) < _NAMES:
        raise BadEnvelope(f"{len(data)} bytes are too few for a header")
    version, flags, checksum, node, seq, target_length, excluded_length = _HEADER.unpack_from(data)
    if version != WIRE_VERSION:
        raise BadEnvelope(f"wire version {version}; this release reads {WIRE_VERSION}")
    if flags & ~_KNOWN_FLAGS:
        raise BadEnvelope(f"unknown flags {flags:#04x}")
    # Of a small one a copy is cheaper than a view.
    checked = data[_CHECKED:] if len(data) < _LARGE else memoryview(data)[_CHECKED:]
    if is_whole and zlib.crc32(checked, flags) != checksum:
        raise BadEnvelope("truncated or changed: its checksum does not fit")
    names_end = _NAMES + target_length
    body = names_end + excluded_length
    if len(data) < body:
        raise BadEnvelope(f"truncated: the header announces {body} bytes of names, {len(data)} are there")
    try:
        target = data[_NAMES:names_end].decode("ascii")
        excluded = data[names_end:body].decode("ascii") if excluded_length else ""
    except UnicodeDecodeError:
        raise BadEnvelope("a name in the header is not ASCII") from None
    return Envelope(data[body:], target, node, seq, flags, tuple(excluded.split(",")) if excluded else ())
