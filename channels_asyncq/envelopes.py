"""The record in which a message travels, and its header on the wire."""

from __future__ import annotations

import struct
from typing import Any

from .topics import NODE_BYTES

WIRE_VERSION = 1
ENCRYPTED = 1
CONTROL = 2
_KNOWN_FLAGS = ENCRYPTED | CONTROL

# version, flags, node, sequence number, length of the target's name, length of the excluded channels
_HEADER = struct.Struct(f">BB{NODE_BYTES}sQHI")


class BadEnvelope(ValueError):
    """Bytes that are no envelope of a version this release reads; the text says what is wrong with them."""


class Envelope:
    """
    One message under way or waiting: the encoded message and what the layer must know about it.

    The same object waits in the buffer of every local member of a group, so nobody changes it after it was
    put there. `expires_at` is a time of `time.monotonic()`; `excluded` holds full channel names. `message` is
    the decoded form of a payload that came over the wire and was checked; the first receiver gets it, the
    others decode one of their own.
    """

    __slots__ = ("excluded", "expires_at", "flags", "holders", "message", "node", "payload", "seq", "target")

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
    name = target.encode()
    if not excluded:
        return _HEADER.pack(WIRE_VERSION, flags, node, seq, len(name), 0) + name + body
    left_out = ",".join(excluded).encode()
    return _HEADER.pack(WIRE_VERSION, flags, node, seq, len(name), len(left_out)) + name + left_out + body


def unpack(data: bytes) -> Envelope:
    """
    Return the envelope in these bytes; its payload is still encrypted if the flag says so.

    Raises:
        BadEnvelope: truncated, of a version or with flags that this release does not know, or names that are
            not text.
    """
    try:
        version, flags, node, seq, target_length, excluded_length = _HEADER.unpack_from(data)
    except struct.error:
        raise BadEnvelope(f"{len(data)} bytes are too few for a header") from None
    if version != WIRE_VERSION:
        raise BadEnvelope(f"wire version {version}; this release reads {WIRE_VERSION}")
    if flags & ~_KNOWN_FLAGS:
        raise BadEnvelope(f"unknown flags {flags:#04x}")
    names_end = _HEADER.size + target_length
    body = names_end + excluded_length
    if len(data) < body:
        raise BadEnvelope(f"truncated: the header announces {body} bytes of names, {len(data)} are there")
    try:
        target = data[_HEADER.size : names_end].decode("ascii")
        excluded = data[names_end:body].decode("ascii")
    except UnicodeDecodeError:
        raise BadEnvelope("a name in the header is not ASCII") from None
    return Envelope(data[body:], target, node, seq, flags, tuple(excluded.split(",")) if excluded else ())
