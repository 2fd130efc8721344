"""The types of Python that MessagePack lacks: how they are packed and unpacked."""

from __future__ import annotations

import datetime
import decimal
import enum
import secrets
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

import ormsgpack
from django.utils.functional import Promise

#: Tuples and frozensets within a set: each level is a call within a call, at both ends.
MAX_SET_DEPTH = 32

# Without these, ormsgpack would turn dataclasses into dicts, datetimes and UUIDs into text. By itself it takes
# tuples as lists, which is what the specification wants. (It also packs its own Ext and Fragment without asking;
# no message holds one by accident.)
OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
#: The first byte of an unsigned integer of 64 bits, which may not fit into a signed one.
UINT64 = 0xCF

# Extension types: these numbers are on the wire and never change their meaning.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET, _TUPLE = range(1, 10)
#: The extension types whose bytes are MessagePack.
NESTED = range(_SET, _TUPLE + 1)

_TIMEDELTA_FIELDS = struct.Struct(">iii")


# Out


def simpler(value: Any) -> Any:
    """
    Return `value`, which ormsgpack does not know, in a form that is nearer to what it knows.

    Raises:
        TypeError: there is none.
    """
    kind = type(value)
    extension = _EXTENSIONS.get(kind)
    if extension is not None:
        return extension(value)
    if issubclass(kind, enum.Enum):
        return value.value
    if issubclass(kind, Promise):
        text = str(value)
        if value != text:
            raise TypeError("a lazy object that is not a string")
        return text
    for base, convert in _BASES:
        if issubclass(kind, base):
            return convert(value)
    # datetime before date, its base.
    for base, extension in _EXTENSIONS.items():
        if issubclass(kind, base):
            return extension(value)
    raise TypeError(f"{kind.__name__} cannot travel")


def _moment(value: datetime.datetime | datetime.time) -> bytes:
    """Return ISO 8601, then the name of its zone in brackets, then `~` for the second of two equal hours."""
    # The zone is kept because two datetimes of different zones are never equal in the hours around a change.
    zone = value.tzinfo
    name = f"[{zone.key}]" if isinstance(zone, zoneinfo.ZoneInfo) and zone.key else ""
    return f"{value.isoformat()}{name}{'~' if value.fold else ''}".encode()


def _members(values: Iterable[Any], depth: int = 0) -> bytes:
    """Pack the members of a set, or of a tuple in a set. They stay hashable: tuples are tuples here."""
    if depth > MAX_SET_DEPTH:
        raise TypeError(f"sets and tuples in a set more than {MAX_SET_DEPTH} deep")
    return ormsgpack.packb(
        list(values),
        lambda member: _simpler_member(member, depth + 1),
        OPTIONS | ormsgpack.OPT_PASSTHROUGH_TUPLE,
    )


UNHASHABLE = (list, dict, set, bytearray)


def _simpler_member(member: Any, depth: int) -> Any:
    kind = type(member)
    if issubclass(kind, tuple):
        if kind is not tuple:
            hash(tuple(member))  # It arrives as a tuple, whose hash is that of its members.
        return ormsgpack.Ext(_TUPLE, _members(member, depth))
    if issubclass(kind, frozenset):
        return ormsgpack.Ext(_FROZENSET, _members(member, depth))
    if issubclass(kind, UNHASHABLE):
        raise TypeError(f"{kind.__name__} is not hashable when it arrives")
    return simpler(member)


_EXTENSIONS: dict[type, Callable[[Any], ormsgpack.Ext]] = {
    datetime.datetime: lambda value: ormsgpack.Ext(_DATETIME, _moment(value)),
    datetime.date: lambda value: ormsgpack.Ext(_DATE, value.isoformat().encode()),
    datetime.time: lambda value: ormsgpack.Ext(_TIME, _moment(value)),
    datetime.timedelta: lambda value: ormsgpack.Ext(
        _TIMEDELTA, _TIMEDELTA_FIELDS.pack(value.days, value.seconds, value.microseconds)
    ),
    uuid.UUID: lambda value: ormsgpack.Ext(_UUID, value.bytes),
    decimal.Decimal: lambda value: ormsgpack.Ext(_DECIMAL, decimal.Decimal.__str__(value).encode()),
    set: lambda value: ormsgpack.Ext(_SET, _members(value)),
    frozenset: lambda value: ormsgpack.Ext(_FROZENSET, _members(value)),
}
#: The types that travel in MessagePack only.
EXTENDED = tuple(_EXTENSIONS)

# Not str(value) and the like: SafeString.__str__ returns itself.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
    (bytearray, lambda value: bytes(memoryview(value))),
    (list, list),
    (tuple, list),
    (dict, lambda value: dict(value.items())),
)


# In

# ormsgpack ignores bytes behind the object. So it is given a list of two: what should be one object, and a random
# number. If there is more or less than one object, the number is not where it should be.
PAIR = b"\x92"
END = int.from_bytes(secrets.token_bytes(8)) | 1 << 63
END_PACKED = bytes([UINT64]) + END.to_bytes(8)


def unpack_extension(number: int, data: bytes) -> Any:
    """Return the value of an extension type. ormsgpack turns whatever this raises into a ValueError."""
    return _EXTENSION_VALUES[number](data)


def _unpack_members(data: bytes) -> list[Any]:
    members, end = ormsgpack.unpackb(PAIR + data + END_PACKED, ext_hook=unpack_extension)
    if end != END or type(members) is not list:
        raise ValueError("not the members of a set")
    return members


def _parse_moment(
    parse: Callable[[str], datetime.datetime] | Callable[[str], datetime.time], data: bytes
) -> datetime.datetime | datetime.time:
    text = data.decode()
    fold = text.endswith("~")
    text, _, name = text.removesuffix("~").partition("[")
    value = parse(text)
    if not name:
        return value.replace(fold=1) if fold else value
    try:
        local = value.replace(tzinfo=zoneinfo.ZoneInfo(name.removesuffix("]")), fold=int(fold))
    except (KeyError, ValueError, OSError):
        return value  # This end has no data for the zone.
    # Where the data of the two ends disagree, the moment counts and not the name.
    return local if local.utcoffset() == value.utcoffset() else value


_EXTENSION_VALUES: dict[int, Callable[[bytes], Any]] = {
    _DATETIME: lambda data: _parse_moment(datetime.datetime.fromisoformat, data),
    _DATE: lambda data: datetime.date.fromisoformat(data.decode()),
    _TIME: lambda data: _parse_moment(datetime.time.fromisoformat, data),
    _TIMEDELTA: lambda data: datetime.timedelta(*_TIMEDELTA_FIELDS.unpack(data)),
    _UUID: lambda data: uuid.UUID(bytes=data),
    _DECIMAL: lambda data: decimal.Decimal(data.decode()),
    _SET: lambda data: set(_unpack_members(data)),
    _FROZENSET: lambda data: frozenset(_unpack_members(data)),
    _TUPLE: lambda data: tuple(_unpack_members(data)),
}
