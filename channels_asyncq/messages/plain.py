"""Messages in plain types: the walk that finds and names what cannot travel."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import ormsgpack

from .extensions import EXTENDED, UNHASHABLE, simpler

#: Containers in containers; ormsgpack's own limit for packing.
MAX_DEPTH = 255


def fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def shown(value: object) -> str:
    """Return a short description of any value, even if its repr() fails."""
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def plain(message: Any, *, as_json: bool) -> Any:
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
    """One pass over a message. It ends at the first value that cannot travel."""

    __slots__ = ("_as_json", "_path")

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        #: The containers around the current value, each with the key or index (None: a set) that leads on.
        self._path: list[tuple[object, str | int | None]] = []

    def plain(self, value: Any) -> Any:
        # One frame for each level: MAX_DEPTH frames must fit on top of any caller's stack.
        while (kind := type(value)) not in _USUAL:
            value = self._nearer(value)
        if kind is str:
            return self._text(value)
        if kind is int and not fits(value):
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
        if self._as_json and isinstance(value, EXTENDED):
            self._refuse(value, 'JSON has no such type; serializer_format="msgpack" does. Or send str(...).')
        if issubclass(type(value), (set, frozenset)):
            self._enter(value)
            for member in value:
                if issubclass(type(member), UNHASHABLE):
                    self._refuse(member, "is not hashable when it arrives.")
                self.plain(member)
            self._path.pop()
        try:
            nearer = simpler(value)
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
        raise TypeError(f"message{''.join(steps)}: {shown(value)}: {problem}") from cause


def _quoted(step: str | int) -> str:
    text = json.dumps(step, ensure_ascii=False)
    return text if len(text) <= 40 else f'{text[:36]}..."'


_BINARY = frozenset({bytes, bytearray, memoryview})
_USUAL = _BINARY | {type(None), bool, str, int, float, list, tuple, dict, ormsgpack.Ext}
