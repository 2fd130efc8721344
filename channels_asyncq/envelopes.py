"""The record in which a message travels, and its header on the wire."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .topics import MAX_NAME_LENGTH, NODE_BYTES

WIRE_VERSION = 1
ENCRYPTED = 1
CONTROL = 2
# A word to the reader about a loss; never on the wire.
NOTICE = 4
# Several messages of one sender, with consecutive numbers; see `pack_all()`.
JOINED = 8
_KNOWN_FLAGS = ENCRYPTED | CONTROL

# version, flags, CRC-32 of the flags and of everything behind it
_START = struct.Struct(">BBI")
# node, sequence number
_SENDER = struct.Struct(f">{NODE_BYTES}sQ")
# length of the target's name, length of the excluded channels
_LENGTHS = struct.Struct(">HI")
_HEADER = struct.Struct(f">BBI{NODE_BYTES}sQHI")
_CHECKED = _START.size  # what the checksum covers begins there
_NAMES = _START.size + _SENDER.size
_LARGE = 4096
_CACHED_NAMES = 8192
_COUNT = struct.Struct(">H")
#: Bytes of several messages that travel as one, beside their names and bodies: of all, and of each.
JOINED_SIZE = _NAMES + _COUNT.size
ITEM_SIZE = 4
#: Bytes of several messages that travel as one, at most.
MOST_JOINED = 4096
# They may be packed in parts, which have a header each.
_MOST_IN_A_ROW = 2 * MOST_JOINED
_MOST_ITEMS = MOST_JOINED // ITEM_SIZE
_SHORT = _LENGTHS.size + MAX_NAME_LENGTH

_CHANGED = "truncated or changed: its checksum does not fit"


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


@lru_cache(_CACHED_NAMES)
def pack_target(target: str) -> bytes:
    """Return what `pack_names()` returns if nobody is excluded."""
    return _LENGTHS.pack(len(target), 0) + target.encode()


def pack_names(target: str, excluded: tuple[str, ...] = ()) -> bytes:
    """Return the part of an envelope that says whom it is for: ASCII names, and their lengths."""
    if not excluded:
        return pack_target(target)
    left_out = ",".join(excluded)
    return _LENGTHS.pack(len(target), len(left_out)) + target.encode() + left_out.encode()


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
    return pack_named(pack_names(target, excluded), body, node, seq, flags)


def pack_named(names: bytes, body: bytes, node: bytes, seq: int, flags: int) -> bytes:
    """Do the same with what `pack_names()` returned."""
    rest = _SENDER.pack(node, seq) + names + body
    return _START.pack(WIRE_VERSION, flags, zlib.crc32(rest, flags)) + rest


@lru_cache(_MOST_ITEMS)
def _table(count: int) -> struct.Struct:
    """Of each of so many messages: length of the names, 0 for those of the one before it; length of the body."""
    return struct.Struct(f">{2 * count}H")


def pack_all(messages: Sequence[tuple[bytes, bytes]], node: bytes, first: int, flags: int = 0) -> bytes:
    """
    Return the bytes of several envelopes that travel as one: names and body of each; `first` is its number.

    That is `JOINED_SIZE` bytes, and names, body and `ITEM_SIZE` for each; `MOST_JOINED` at most. They are for one
    topic, and arrive together, in this order. Names like those of the message before are left out if the first
    two are alike.
    """
    flags |= JOINED
    parts: list[bytes] = []
    for message in messages:
        parts += message
    count = len(messages)
    # Those of a group have the same names; those to channels rarely do.
    if count > 1 and parts[0] == parts[2]:
        for names in range(2 * count - 2, 0, -2):
            if parts[names] == parts[names - 2]:
                parts[names] = b""
    table = _table(count).pack(*map(len, parts))
    rest = b"".join((_SENDER.pack(node, first), _COUNT.pack(count), table, *parts))
    return _START.pack(WIRE_VERSION, flags, zlib.crc32(rest, flags)) + rest


def unpack(data: bytes, *, is_whole: bool = True) -> Envelope:
    """
    Return the envelope in these bytes; its payload is still encrypted if the flag says so.

    With `is_whole=False` the payload was cut off on purpose, and only the header counts.

    Raises:
        BadEnvelope: truncated or changed, of a version or with flags that this release does not know, or names
            that are not text.
    """
    if len(data) < _HEADER.size:
        raise BadEnvelope(f"{len(data)} bytes are too few for a header")
    version, flags, checksum, node, seq, target_length, excluded_length = _HEADER.unpack_from(data)
    _check(version, flags, _KNOWN_FLAGS)
    if is_whole:
        # Of a small one a copy is cheaper than a view.
        checked = data[_CHECKED:] if len(data) < _LARGE else memoryview(data)[_CHECKED:]
        if zlib.crc32(checked, flags) != checksum:
            raise BadEnvelope(_CHANGED)
    body = _HEADER.size + target_length + excluded_length
    if len(data) < body:
        raise BadEnvelope(f"truncated: the header announces {body} bytes of names, {len(data)} are there")
    read_names = _read_short_names if body <= _NAMES + _SHORT else _read_names
    target, excluded = read_names(data[_NAMES:body])
    return Envelope(data[body:], target, node, seq, flags, excluded)


def unpack_all(data: bytes) -> list[Envelope]:
    """
    Return the envelopes in these bytes, of `pack()`, or of `pack_all()` once or for one part after the other.

    Raises:
        BadEnvelope: as `unpack()`.
    """
    if len(data) < _NAMES or not data[1] & JOINED:
        return [unpack(data)]
    if len(data) > _MOST_IN_A_ROW:
        raise BadEnvelope(f"{len(data)} bytes of several messages; there are {_MOST_IN_A_ROW} at most")
    envelopes: list[Envelope] = []
    end = 0
    while end < len(data):
        end = _unpack_joined(data, end, envelopes)
    return envelopes


def _unpack_joined(data: bytes, start: int, envelopes: list[Envelope]) -> int:
    """Add what `pack_all()` returned, which begins there; return where it ends."""
    if len(data) < start + JOINED_SIZE:
        raise BadEnvelope(f"{len(data) - start} bytes are too few for several messages")
    version, flags, checksum = _START.unpack_from(data, start)
    _check(version, flags, _KNOWN_FLAGS | JOINED)
    node, seq = _SENDER.unpack_from(data, start + _START.size)
    (count,) = _COUNT.unpack_from(data, start + _NAMES)
    at = start + JOINED_SIZE + ITEM_SIZE * count
    if at > len(data) or count > _MOST_ITEMS or not flags & JOINED:
        raise BadEnvelope(f"{len(data) - start} bytes cannot be {count} messages that travel as one")
    lengths = _table(count).unpack_from(data, start + JOINED_SIZE)
    end: int = at + sum(lengths)
    if not at < end <= min(len(data), start + MOST_JOINED):
        raise BadEnvelope(f"{len(data) - start} bytes are not what the lengths of {count} messages come to")
    if zlib.crc32(data[start + _CHECKED : end], flags) != checksum:
        raise BadEnvelope(_CHANGED)
    if not lengths[0]:
        raise BadEnvelope("the first message has no names")
    if envelopes and (envelopes[-1].node, envelopes[-1].seq + 1) != (node, seq):
        raise BadEnvelope("messages that travel as one have one sender, and numbers in a row")
    flags &= ~JOINED
    target: str = ""
    excluded: tuple[str, ...] = ()
    pairs = iter(lengths)
    for names_length, body_length in zip(pairs, pairs, strict=True):
        body = at + names_length
        if names_length:
            read_names = _read_short_names if names_length <= _SHORT else _read_names
            target, excluded = read_names(data[at:body])
        at = body + body_length
        envelopes.append(Envelope(data[body:at], target, node, seq, flags, excluded))
        seq += 1
    return end


def _check(version: int, flags: int, known_flags: int) -> None:
    if version != WIRE_VERSION:
        raise BadEnvelope(f"wire version {version}; this release reads {WIRE_VERSION}")
    if flags & ~known_flags:
        raise BadEnvelope(f"unknown flags {flags:#04x}")


def _read_names(names: bytes) -> tuple[str, tuple[str, ...]]:
    """Return target and excluded channels of what `pack_names()` returned."""
    if len(names) < _LENGTHS.size:
        raise BadEnvelope("names without their lengths")
    target_length, excluded_length = _LENGTHS.unpack_from(names)
    if _LENGTHS.size + target_length + excluded_length != len(names):
        raise BadEnvelope("names of other lengths than is said")
    end = _LENGTHS.size + target_length
    try:
        target = names[_LENGTHS.size : end].decode("ascii")
        excluded = names[end:].decode("ascii")
    except UnicodeDecodeError:
        raise BadEnvelope("a name in the header is not ASCII") from None
    return target, tuple(excluded.split(",")) if excluded else ()


_read_short_names = lru_cache(_CACHED_NAMES)(_read_names)
