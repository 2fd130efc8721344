"""
Messages to bytes and back.

What arrives equals what was sent, type by type, on every path, or the sender gets a `TypeError` that names
the place: `message["user"]["id"]`. The differences are few and the same everywhere: tuples arrive as lists,
bytearray and memoryview as bytes, subclasses of the allowed types as those types, lazy strings as str, enum
members as their value (those of a str enum as keys too). A dict subclass travels as its `items()`: of a
QueryDict, the last value of each key.

The fast path is one call of ormsgpack, which hands everything unusual to `simpler`. Only when that fails is the
message walked in Python, to find and name the culprit or to bring it into a form that ormsgpack takes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal, NoReturn

import ormsgpack
from channels.exceptions import MessageTooLarge

from .containers import MOST_CONTAINERS, TOO_MANY, are_too_many, are_too_many_in_json
from .extensions import END, END_PACKED, NESTED, OPTIONS, PAIR, UINT64, simpler, unpack_extension
from .plain import fits, plain, shown

__all__ = ["BadPayload", "Codec", "JsonCodec", "codec_for", "decode_json"]

# An unsigned integer of 64 bits that does not fit into a signed one, or bytes that happen to look like it.
_BIG_UINT64 = re.compile(rb"\xcf[\x80-\xff]")


class BadPayload(ValueError):
    """Bytes that are not a message: garbage, cut off, or of another format."""


class Codec:
    """Turns message dicts into bytes and bytes into message dicts: MessagePack, the default format."""

    def encode(self, message: dict[str, Any]) -> bytes:
        """
        Return a message as bytes.

        Raises:
            TypeError: something in it cannot travel; the text says where.
            MessageTooLarge: it holds more than `MOST_CONTAINERS` lists, dicts and the like.
        """
        if type(message) is not dict:
            _require_dict(message)
        packed: bytes | None
        try:
            packed = ormsgpack.packb(message, simpler, OPTIONS)
        except TypeError:
            packed = None
        # ormsgpack packs ints up to 2**64 - 1, but the specification ends at 2**63 - 1. Greek text contains the
        # same bytes; walking it too does no harm.
        if packed is None or (UINT64 in packed and _BIG_UINT64.search(packed)):
            walked = plain(message, as_json=False)
            if packed is None:
                packed = ormsgpack.packb(walked, None, OPTIONS)
        if len(packed) > MOST_CONTAINERS and are_too_many(packed, NESTED):
            raise MessageTooLarge(TOO_MANY)
        return packed

    def decode(self, data: bytes) -> dict[str, Any]:
        """
        Return the message in `data`, a dict of the caller's own.

        Raises:
            BadPayload: the bytes are not exactly one message.
        """
        if len(data) > MOST_CONTAINERS and are_too_many(data, NESTED):
            raise BadPayload(TOO_MANY)
        message: dict[str, Any]
        try:
            message, end = ormsgpack.unpackb(PAIR + data + END_PACKED, ext_hook=unpack_extension)
        except ValueError as exc:
            raise BadPayload(f"Not a message in MessagePack: {exc}.") from exc
        if end != END:
            raise BadPayload("Not a message in MessagePack: bytes are left over.")
        if type(message) is not dict:
            raise BadPayload(f"A message must be a dict, not {type(message).__name__}.")
        return message

    def decode_own(self, data: bytes) -> dict[str, Any]:
        """
        Like `decode()`, for bytes that `encode()` made or `decode()` has accepted.

        It looks for no mistakes, which costs less.
        """
        message: dict[str, Any] = ormsgpack.unpackb(data, ext_hook=unpack_extension)
        return message


class JsonCodec(Codec):
    """The interface of `Codec` in JSON, for JSON's types only."""

    def encode(self, message: dict[str, Any]) -> bytes:
        _require_dict(message)
        # Always walked: json.dumps() turns keys of other types into str without an error.
        walked = plain(message, as_json=True)
        data = json.dumps(walked, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if len(data) > MOST_CONTAINERS and are_too_many_in_json(data):
            raise MessageTooLarge(TOO_MANY)
        return data

    def decode(self, data: bytes) -> dict[str, Any]:
        return decode_json(data)

    def decode_own(self, data: bytes) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(data)
        return message


def codec_for(serializer_format: Literal["msgpack", "json"]) -> Codec:
    """Return the codec of a `serializer_format`."""
    return JsonCodec() if serializer_format == "json" else Codec()


def _require_dict(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"A message must be a dict, not {shown(message)}.")


def decode_json(data: bytes) -> dict[str, Any]:
    """
    Return the message in `data`, strict JSON in UTF-8. Other programs may have written it.

    Raises:
        BadPayload: it is not JSON, not an object, or holds a value that no message may hold.
    """
    if len(data) > MOST_CONTAINERS and are_too_many_in_json(data):
        raise BadPayload(TOO_MANY)
    try:
        text = data.decode()
        message = _JSON.decode(text)
        if "\\ud" in text or "\\uD" in text:
            # An escaped half of a surrogate pair decodes to a str that cannot be encoded.
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise BadPayload(f"Not a message in JSON: {exc}.") from exc
    if type(message) is not dict:
        raise BadPayload(f"A message must be a JSON object, not {shown(message)}.")
    return message


def _json_int(text: str) -> int:
    # The length first: int() takes quadratic time.
    if len(text) > 20 or not fits(value := int(text)):
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
