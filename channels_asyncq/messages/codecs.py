"""
Messages to bytes and back.

What arrives equals what was sent, type by type, on every path, or the sender gets a `TypeError` that names
the place: `message["user"]["id"]`. The differences are few and the same everywhere: tuples arrive as lists,
bytearray and memoryview as bytes, subclasses of the allowed types as those types, lazy strings as str, enum
members as their value (those of a str enum as keys too). A dict subclass travels as its `items()`: of a
QueryDict, the last value of each key.

The fast path is one call of ormsgpack, which hands everything unusual to `_simpler`. Only when it fails is
the message walked in Python, to find and name the culprit or to bring it into a form that ormsgpack takes.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import re
import secrets
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn

import ormsgpack
from channels.exceptions import MessageTooLarge
from django.utils.functional import Promise

from .containers import MOST_CONTAINERS, TOO_MANY, are_too_many, are_too_many_in_json

__all__ = ["BadPayload", "Codec", "decode_json"]

#: Containers in containers; ormsgpack's own limit for packing.
MAX_DEPTH = 255
#: Tuples and frozensets within a set: each level is a call within a call, at both ends.
MAX_SET_DEPTH = 32


class BadPayload(ValueError):
    """Bytes that are not a message: garbage, cut off, or of another format."""


class Codec:
    """
    Turns message dicts into bytes and bytes into message dicts.

    Args:
        serializer_format: `"msgpack"`, or `"json"` for JSON's types only.
    """

    __slots__ = ("decode", "decode_own", "encode")

    def __init__(self, serializer_format: Literal["msgpack", "json"] = "msgpack") -> None:
        as_json = serializer_format == "json"
        #: Return a message as bytes. Raises TypeError: something in it cannot travel; the text says where; and
        #: MessageTooLarge: it holds more than `MOST_CONTAINERS` lists, dicts and the like.
        self.encode: Callable[[dict[str, Any]], bytes] = _encode_json if as_json else _encode_msgpack
        #: Return a message of the caller's own. Raises BadPayload: the bytes are not exactly one message.
        self.decode: Callable[[bytes], dict[str, Any]] = decode_json if as_json else _unpack
        #: Like `decode`, for bytes that `encode` made or `decode` has accepted: it looks for no mistakes, and
        #: takes 0.3 us less.
        self.decode_own: Callable[[bytes], dict[str, Any]] = json.loads if as_json else _unpack_own


# MessagePack, out.

# Without these, ormsgpack would turn dataclasses into dicts, datetimes and UUIDs into text. Left to itself it
# takes tuples as lists, which is what the specification wants. (Its own Ext and Fragment pass unseen; no
# message holds one by accident.)
_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

# An unsigned integer of 64 bits that does not fit into a signed one, or bytes that happen to look like it.
_UINT64 = 0xCF
_BIG_UINT64 = re.compile(rb"\xcf[\x80-\xff]")


def _refuse_no_dict(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"A message must be a dict, not {_shown(message)}.")


def _encode_msgpack(message: Any) -> bytes:
    if type(message) is not dict:
        _refuse_no_dict(message)
    packed: bytes | None
    try:
        packed = ormsgpack.packb(message, _simpler, _OPTIONS)
    except TypeError:
        packed = None
    # ormsgpack packs up to 2**64 - 1, the specification ends at 2**63 - 1. Greek text looks the same, so it
    # is walked too.
    if packed is None or (_UINT64 in packed and _BIG_UINT64.search(packed)):
        plain = _plain(message, as_json=False)
        if packed is None:
            packed = ormsgpack.packb(plain, None, _OPTIONS)
    if len(packed) > MOST_CONTAINERS and are_too_many(packed, _NESTED):
        raise MessageTooLarge(TOO_MANY)
    return packed


# Extension types: these numbers are on the wire and never change their meaning.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET, _TUPLE = range(1, 10)
# Those whose bytes are MessagePack.
_NESTED = range(_SET, _TUPLE + 1)

_TIMEDELTA_FIELDS = struct.Struct(">iii")


def _simpler(value: Any) -> Any:
    """
    Return `value`, which ormsgpack does not know, in a form that is nearer to what it does.

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
        _OPTIONS | ormsgpack.OPT_PASSTHROUGH_TUPLE,
    )


_UNHASHABLE = (list, dict, set, bytearray)


def _simpler_member(member: Any, depth: int) -> Any:
    kind = type(member)
    if issubclass(kind, tuple):
        if kind is not tuple:
            hash(tuple(member))  # It arrives as a tuple, whose hash is that of its members.
        return ormsgpack.Ext(_TUPLE, _members(member, depth))
    if issubclass(kind, frozenset):
        return ormsgpack.Ext(_FROZENSET, _members(member, depth))
    if issubclass(kind, _UNHASHABLE):
        raise TypeError(f"{kind.__name__} is not hashable when it arrives")
    return _simpler(member)


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


# MessagePack, in.


# ormsgpack does not mind bytes after the object. So it is given a list of two: what should be one object, and
# a number that nobody else knows; anything more or less, and the number is not where it should be.
_END = int.from_bytes(secrets.token_bytes(8)) | 1 << 63
_END_PACKED = bytes([_UINT64]) + _END.to_bytes(8)


def _unpack(data: bytes, expected: type = dict) -> Any:
    if len(data) > MOST_CONTAINERS and are_too_many(data, _NESTED):
        raise BadPayload(TOO_MANY)
    try:
        value, end = ormsgpack.unpackb(b"\x92" + data + _END_PACKED, ext_hook=_extension)
    except ValueError as exc:
        raise BadPayload(f"Not a message in MessagePack: {exc}.") from exc
    if end != _END:
        raise BadPayload("Not a message in MessagePack: bytes are left over.")
    if type(value) is not expected:
        raise BadPayload(f"A message must be a dict, not {type(value).__name__}.")
    return value


def _unpack_own(data: bytes) -> Any:
    return ormsgpack.unpackb(data, ext_hook=_extension)


def _extension(number: int, data: bytes) -> Any:
    """Return the value of an extension type; whatever this raises, ormsgpack makes a ValueError of it."""
    return _EXTENSION_VALUES[number](data)


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
    _SET: lambda data: set(_unpack(data, list)),
    _FROZENSET: lambda data: frozenset(_unpack(data, list)),
    _TUPLE: lambda data: tuple(_unpack(data, list)),
}


# JSON.


def _encode_json(message: Any) -> bytes:
    _refuse_no_dict(message)
    # Walked always: json turns keys that are no str into str, and says nothing.
    plain = _plain(message, as_json=True)
    data = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MOST_CONTAINERS and are_too_many_in_json(data):
        raise MessageTooLarge(TOO_MANY)
    return data


def decode_json(data: bytes) -> dict[str, Any]:
    """
    Return the message in `data`, strict JSON in UTF-8, of whatever origin.

    Raises:
        BadPayload: not JSON, not an object, or something in it that no message may hold.
    """
    if len(data) > MOST_CONTAINERS and are_too_many_in_json(data):
        raise BadPayload(TOO_MANY)
    try:
        text = data.decode()
        message = _JSON.decode(text)
        if "\\ud" in text or "\\uD" in text:
            # Half of a surrogate pair, escaped, gives a str that nothing can encode.
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise BadPayload(f"Not a message in JSON: {exc}.") from exc
    if type(message) is not dict:
        raise BadPayload(f"A message must be a JSON object, not {_shown(message)}.")
    return message


def _json_int(text: str) -> int:
    # The length first: reading a long number takes the square of it.
    if len(text) > 20 or not _fits(value := int(text)):
        raise ValueError(f"{text[:24]} is beyond 64 bits")
    return value


def _json_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:24]} is beyond a double")
    return value


def _json_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_JSON = json.JSONDecoder(parse_int=_json_int, parse_float=_json_float, parse_constant=_json_constant)


# The walk.


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _shown(value: object) -> str:
    """Return a short description of any value, also one whose repr() fails."""
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _plain(message: Any, *, as_json: bool) -> Any:
    """
    Return `message` in types that the format has.

    Raises:
        TypeError: it holds something that cannot travel; the text has the path to it.
    """
    try:
        return _Walk(as_json).plain(message)
    except RecursionError as exc:
        raise TypeError("message: nested too deep for what is left of Python's stack.") from exc


class _Walk:
    """One pass over a message. It ends at the first thing that cannot travel."""

    __slots__ = ("_as_json", "_path")

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        #: The containers around the current value, each with the key or index (None: a set) that leads on.
        self._path: list[tuple[object, str | int | None]] = []

    def plain(self, value: Any) -> Any:
        # One frame for each level: MAX_DEPTH of them must fit into anybody's stack.
        while (kind := type(value)) not in _USUAL:
            value = self._nearer(value)
        if kind is str:
            return self._text(value)
        if kind is int and not _fits(value):
            self._refuse(value, "an int must fit into 64 bits, signed. Send it as str.")
        if kind is float and self._as_json and not math.isfinite(value):
            self._refuse(value, "JSON has no such number.")
        if kind is dict:
            self._enter(value)
            result = {}
            for key, entry in value.items():
                if not issubclass(type(key), str):
                    self._path.pop()
                    self._refuse(key, "a key must be a str.")
                key = self._text(str.__str__(key))
                self._path[-1] = (value, key)
                result[key] = self.plain(entry)
            self._path.pop()
            return result
        if kind is list or kind is tuple:
            self._enter(value)
            entries = []
            for index, entry in enumerate(value):
                self._path[-1] = (value, index)
                entries.append(self.plain(entry))
            self._path.pop()
            return entries
        if kind in _BINARY:
            if self._as_json:
                self._refuse(value, 'JSON has no bytes; serializer_format="msgpack" does.')
            return value.tobytes() if kind is memoryview else bytes(value)
        return value

    def _enter(self, container: object) -> None:
        if len(self._path) >= MAX_DEPTH:
            if any(container is outer for outer, _ in self._path):
                self._refuse(container, "contains itself.")
            self._refuse(container, f"nested more than {MAX_DEPTH} deep.")
        self._path.append((container, None))

    def _nearer(self, value: Any) -> Any:
        if self._as_json and isinstance(value, _EXTENDED):
            self._refuse(value, 'JSON has no such type; serializer_format="msgpack" does. Or send str(...).')
        if issubclass(type(value), (set, frozenset)):
            self._enter(value)
            for member in value:
                if issubclass(type(member), _UNHASHABLE):
                    self._refuse(member, "is not hashable when it arrives.")
                self.plain(member)
            self._path.pop()
        try:
            nearer = _simpler(value)
        except Exception as exc:
            self._refuse(value, f"{exc}. Send plain data instead, such as a primary key or str(...).", exc)
        if nearer is value:
            self._refuse(value, "it has no plain value.")
        return nearer

    def _text(self, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self._refuse(value, "a str with a lone surrogate has no encoding.")
        return value

    def _refuse(self, value: object, problem: str, cause: Exception | None = None) -> NoReturn:
        steps = ["{...}" if step is None else f"[{_quoted(step)}]" for _, step in self._path]
        if len(steps) > 10:
            steps = [*steps[:9], "...", steps[-1]]
        raise TypeError(f"message{''.join(steps)}: {_shown(value)}: {problem}") from cause


def _quoted(step: str | int) -> str:
    text = json.dumps(step, ensure_ascii=False)
    return text if len(text) <= 40 else f'{text[:36]}..."'


_EXTENDED = tuple(_EXTENSIONS)
_BINARY = frozenset({bytes, bytearray, memoryview})
_USUAL = _BINARY | {type(None), bool, str, int, float, list, tuple, dict, ormsgpack.Ext}
