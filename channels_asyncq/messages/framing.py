"""Envelopes on the wire: batches of messages with a header, and the versions of the format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..names import SESSION_ID_BYTES
from .envelopes import CONTROL, ENCRYPTED, HEADER_ONLY, Envelope
from .sealing import SEAL_SIZE, BadSeal, Seal, TooOld

WIRE_VERSION = 1
_KNOWN_FLAGS = ENCRYPTED | CONTROL | HEADER_ONLY

# Version, flags, CRC-32 of the flags and of everything behind it; in a sealed batch the id of the key
_START = struct.Struct(">BBI")
# Session id, number of the first message, number of messages
_SENDER = struct.Struct(f">{SESSION_ID_BYTES}sQH")
# Both, and the table's entry of the first message
_HEADER = struct.Struct(f">BBI{SESSION_ID_BYTES}sQHII")
# The header of a batch of one, from the session id on
_ONE = struct.Struct(f">{SESSION_ID_BYTES}sQHII")
_CHECKED = _START.size  # the checksum covers everything from there
_LARGE = 4096
#: Bytes of a batch beside names, bodies and a seal: of the batch itself, and of each message.
BATCH_SIZE = _START.size + _SENDER.size
ITEM_SIZE = 8
#: The most bytes of a batch of several messages.
MOST_JOINED = 4096
# Messages that share a command may be packed in several batches.
_MOST_IN_A_ROW = 2 * MOST_JOINED
_MOST_ITEMS = MOST_JOINED // ITEM_SIZE

# All versions are below this byte.
FIRST_PRINTABLE = 32

_CHANGED = "truncated or changed: its checksum does not fit"


class BadEnvelope(ValueError):
    """Bytes that are no batch of a version that this release reads; the text says why."""


class Expired(BadEnvelope):
    """A valid batch that was sealed too long ago."""


def pack_names(target: str, excluded: tuple[str, ...] = ()) -> bytes:
    """Return the names of a message: the length of the target, the target, the excluded channels; in ASCII."""
    names = b"%c%b" % (len(target), target.encode())
    return names + ",".join(excluded).encode() if excluded else names


def batch_size(seal: Seal | None) -> int:
    """Return how many bytes a batch has beside its messages."""
    return BATCH_SIZE if seal is None else BATCH_SIZE + SEAL_SIZE


@lru_cache(_MOST_ITEMS)
def _table(count: int) -> struct.Struct:
    """For each message, the length of its names (0: as in the message before), and the length of its body."""
    return struct.Struct(f">{2 * count}I")


def pack(
    messages: Sequence[tuple[bytes, bytes]],
    session_id: bytes,
    first: int,
    flags: int = 0,
    seal: Seal | None = None,
    place: bytes = b"",
) -> bytes:
    """
    Return the bytes of a batch: one or more messages of one sender and for one topic, in this order.

    Each message is a pair: the names by `pack_names()`, and the encoded body. `first` is the number of the first
    one. With a `seal` the batch is sealed for this `place`. It has `batch_size()` bytes, and for each message
    `ITEM_SIZE`, names and body; several messages may have `MOST_JOINED` in all. Names that are equal to those of
    the message before are left out if the first two are equal.
    """
    count = len(messages)
    if count == 1:
        names, body = messages[0]
        rest = _ONE.pack(session_id, first, 1, len(names), len(body)) + names + body
    else:
        parts: list[bytes] = []
        for message in messages:
            parts += message
        # Messages to a group have equal names; messages to channels rarely have.
        if parts[0] == parts[2]:
            for at in range(2 * count - 2, 0, -2):
                if parts[at] == parts[at - 2]:
                    parts[at] = b""
        table = _table(count).pack(*map(len, parts))
        rest = b"".join((_SENDER.pack(session_id, first, count), table, *parts))
    if seal is not None:
        end = _SENDER.size + ITEM_SIZE * count
        header = _START.pack(WIRE_VERSION, flags | ENCRYPTED, seal.key_id) + rest[:end]
        return seal.seal(header, rest[end:], place)
    return _START.pack(WIRE_VERSION, flags, zlib.crc32(rest, flags)) + rest


def unpack(
    data: bytes, seal: Seal | None = None, place: bytes = b"", *, max_age: float | None = None
) -> list[Envelope]:
    """
    Return the envelopes in the bytes of one batch, or of several in a row, that arrived at this place.

    With a `seal` they must be sealed, without it they must not. They may be `max_age` ms old, or as old as the
    seal allows if that is None.

    Raises:
        BadEnvelope: truncated or changed, an unknown version or unknown flags, names that are not ASCII, or a
            seal that does not fit.
        Expired: valid, but sealed too long ago.
    """
    envelopes: list[Envelope] = []
    end = _unpack_batch(data, 0, envelopes, seal, place, max_age)
    if end < len(data) and len(data) > _MOST_IN_A_ROW:
        raise BadEnvelope(f"{len(data)} bytes in several batches; there are {_MOST_IN_A_ROW} at most")
    while end < len(data):
        end = _unpack_batch(data, end, envelopes, seal, place, max_age)
    return envelopes


def _unpack_batch(
    data: bytes,
    start: int,
    envelopes: list[Envelope],
    seal: Seal | None,
    place: bytes,
    max_age: float | None,
) -> int:
    """Add the messages of the batch that begins at `start` to `envelopes`; return where it ends."""
    size = len(data) - start
    if size < _HEADER.size:
        raise BadEnvelope(f"{size} bytes are too few for a header")
    version, flags, check, session_id, seq, count, names_length, body_length = _HEADER.unpack_from(
        data, start
    )
    if version != WIRE_VERSION:
        raise BadEnvelope(f"wire version {version}; this release reads {WIRE_VERSION}")
    if flags & ~_KNOWN_FLAGS:
        raise BadEnvelope(f"unknown flags {flags:#04x}")
    if not flags & ENCRYPTED:
        if seal is not None:
            raise BadEnvelope("not encrypted, and symmetric_encryption_keys are set")
    elif seal is None:
        raise BadEnvelope("encrypted, and this process has no symmetric_encryption_keys")
    extra = 0 if seal is None else SEAL_SIZE
    if count == 1:
        at = start + _HEADER.size
        lengths: Sequence[int] = (names_length, body_length)
        end: int = at + names_length + body_length + extra
    else:
        at = start + BATCH_SIZE + ITEM_SIZE * count
        if not 0 < count <= _MOST_ITEMS or at > len(data):
            raise BadEnvelope(f"{size} bytes cannot be a batch of {count} messages")
        lengths = _table(count).unpack_from(data, start + BATCH_SIZE)
        end = at + sum(lengths) + extra
        if end - start > MOST_JOINED:
            raise BadEnvelope(f"a batch of {end - start} bytes; there are {MOST_JOINED} at most")
    if not names_length:
        raise BadEnvelope("the first message has no names")
    if end > len(data):
        raise BadEnvelope(f"truncated: {size} bytes, and the header announces {end - start}")
    if seal is None:
        # Copying a small batch is cheaper than a view.
        checked = data if end - start < _LARGE else memoryview(data)
        if zlib.crc32(checked[start + _CHECKED : end], flags) != check:
            raise BadEnvelope(_CHANGED)
        content = data
    else:
        try:
            content = seal.open(check, session_id, data[start:end], at - start, place, max_age=max_age)
        except TooOld as exc:
            raise Expired(str(exc)) from None
        except BadSeal as exc:
            raise BadEnvelope(str(exc)) from None
        at = 0
    if envelopes and (envelopes[-1].session_id, envelopes[-1].seq + 1) != (session_id, seq):
        raise BadEnvelope("batches in a row have one sender, and numbers in a row")
    target: str = ""
    excluded: tuple[str, ...] = ()
    last = 2 * count - 2
    for index in range(0, 2 * count, 2):
        body = at + lengths[index]
        if body > at:
            # Without names: those of the message before.
            target, excluded = _unpack_names(content[at:body])
        at = body + lengths[index + 1]
        envelope = Envelope(content[body:at], target, session_id, seq, flags, excluded)
        envelopes.append(envelope)
        if index < last:
            envelope.nth = index // 2 + 1
        seq += 1
    return end


class Header(NamedTuple):
    """The sender of a batch, and the numbers of its first and last message."""

    session_id: bytes
    first: int
    last: int


def unpack_header(data: bytes) -> Header:
    """
    Return what the header of a batch says. Nothing is checked but its size.

    Raises:
        BadEnvelope: there are too few bytes for a header.
    """
    if len(data) < BATCH_SIZE:
        raise BadEnvelope(f"{len(data)} bytes are too few for a header")
    session_id, first, count = _SENDER.unpack_from(data, _START.size)
    return Header(session_id, first, first + count - 1)


def _unpack_names(names: bytes) -> tuple[str, tuple[str, ...]]:
    """Return target and excluded channels of names by `pack_names()`."""
    end = 1 + names[0]
    if end > len(names):
        raise BadEnvelope(f"{len(names)} bytes of names, and the target's name ends at {end}")
    try:
        target = names[1:end].decode("ascii")
        if end == len(names):
            return target, ()
        return target, tuple(names[end:].decode("ascii").split(","))
    except UnicodeDecodeError:
        raise BadEnvelope("a name in the header is not ASCII") from None


class Format(NamedTuple):
    """
    One version of the wire: its number, which is the first byte of each batch, and how to pack and unpack.

    The second byte is never `#`: pushes of logged messages are recognised by it. Versions are below 32.
    """

    version: int
    pack: Callable[..., bytes]
    unpack: Callable[..., list[Envelope]]
    unpack_header: Callable[[bytes], Header] = unpack_header


class _Unpackers(dict[bytes, Callable[..., list[Envelope]]]):
    newest: Callable[..., list[Envelope]]

    def __missing__(self, first: bytes) -> Callable[..., list[Envelope]]:
        return self.newest


class Formats:
    """The formats that a release reads; their versions follow each other."""

    def __init__(self, *formats: Format) -> None:
        self._formats = {one.version: one for one in formats}
        self.versions = sorted(self._formats)
        self.oldest, self.newest = self.versions[0], self.versions[-1]
        #: By their first byte, how to unpack bytes; the newest format raises the error for an unknown version.
        #: (A method in its place would cost each push a call.)
        self.unpack = _Unpackers({b"%c" % one.version: one.unpack for one in formats})
        self.unpack.newest = self[self.newest].unpack

    def __getitem__(self, version: int) -> Format:
        return self._formats[version]

    def header_of(self, data: bytes) -> Header:
        """
        Return the header of a batch.

        Raises:
            BadEnvelope: it is not a batch of a version that this release reads, or too short for a header.
        """
        one = self._formats.get(data[0]) if data else None
        if one is None:
            raise BadEnvelope("no batch of a version that this release reads")
        return one.unpack_header(data)

    def is_foreign(self, data: bytes) -> bool:
        """Tell whether these bytes may be a batch of a version that this release does not read."""
        return bool(data) and 0 < data[0] < FIRST_PRINTABLE and data[0] not in self._formats


#: The formats that this release reads. It writes the newest one that all processes of a prefix read.
FORMATS = Formats(Format(WIRE_VERSION, pack, unpack))
