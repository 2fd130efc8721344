"""The lines of an event stream, as the HTML standard defines them (server-sent events)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from .. import threads
from ..messages.closing import CLOSE, Close
from ..messages.envelopes import Envelope
from ..session.following import Follower

#: From a message to its event: a str as it is, a dict or a list as JSON, nothing for None.
Render = Callable[[dict[str, Any]], "str | dict[str, Any] | list[Any] | None"]
Key = tuple[Render, str, int, int]

_LINE_BREAK = re.compile(r"\r\n|\n|\r")
#: The most bytes that a cache holds, and the most events.
MOST_BYTES = 8 * 1024 * 1024
MOST_EVENTS = 4096


def as_it_is(message: dict[str, Any]) -> dict[str, Any]:
    """Render a message as JSON of itself."""
    return message


def compact_json(value: object) -> str:
    """Return JSON in one line, with Django's forms of dates, decimals and UUIDs."""
    return json.dumps(value, cls=DjangoJSONEncoder, separators=(",", ":"))


def event(kind: str, data: str) -> bytes:
    """Return the lines `event:` and `data:` with the blank line behind them. Line breaks end no field."""
    lines = [f"event: {_LINE_BREAK.sub(' ', kind)}"] if kind else []
    lines += [f"data: {line}" for line in _LINE_BREAK.split(data)]
    return ("\n".join(lines) + "\n\n").encode()


class Closing(bytes):
    """In place of an event: the message that ends the stream. It is empty, so that streams look at it last."""

    message: dict[str, Any]

    @classmethod
    def of(cls, message: dict[str, Any]) -> Closing:
        closing = cls()
        closing.message = message
        return closing


def closing_event(close: Close) -> bytes:
    """Return the event that tells a page why its stream ends."""
    return event(CLOSE, compact_json({"code": close.code, "reason": close.reason, "final": close.is_final}))


class Renderer:
    """Turns messages into events, by one function of the user's."""

    def __init__(self, render: Render | None) -> None:
        if render is not None and not callable(render):
            raise TypeError(f"render must be a function of a message, not {render!r}")
        if inspect.iscoroutinefunction(render):
            raise TypeError(f"render={name_of(render)} is async; it must be a sync function that does no I/O")
        self._render = render or as_it_is
        try:
            hash(self._render)
        except TypeError:
            self._is_hashable = False
        else:
            self._is_hashable = True

    def __str__(self) -> str:
        return name_of(self._render)

    def key(self, envelope: Envelope) -> Key | None:
        """
        Return what the event of an envelope is kept under, None if it cannot be kept.

        The function itself is in it, not its id(): that of a function that is gone may be another's tomorrow.
        """
        if not envelope.position or not self._is_hashable:
            return None
        return self._render, envelope.target, envelope.position, envelope.nth

    def event(self, message: dict[str, Any]) -> bytes:
        """
        Return the event of a message without its id, b"" if there is none, `Closing` if the stream is to end.

        Raises:
            TypeError: the result of `render`, or a value in it, is nothing that can be sent.
            Exception: whatever `render` raises.
        """
        kind = str(message.get("type", ""))
        if kind == CLOSE:
            return Closing.of(message)
        result = self._render(message)
        if result is None:
            return b""
        if isinstance(result, str):
            return event(kind, result)
        if isinstance(result, (dict, list)):
            return event(kind, compact_json(result))
        raise TypeError(
            f"render={self} returned {type(result).__name__}: it must be a str, a dict, a list or None"
        )


def name_of(render: object) -> str:
    return getattr(render, "__qualname__", None) or type(render).__qualname__


class Events:
    """
    The events of one layer as bytes: made once in the process for all streams that get the same message by the
    same function. The oldest go first.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._kept: dict[Key, bytes] = {}
        self._bytes = 0

    def event(self, envelope: Envelope, renderer: Renderer, follower: Follower) -> bytes:
        """Return the event of an envelope without its id. Raises as `Renderer.event()`."""
        key = renderer.key(envelope)
        if key is None:
            return renderer.event(follower.message_of(envelope))
        kept = self._kept.get(key)
        if kept is None:
            kept = renderer.event(follower.message_of(envelope))
            self._keep(key, kept)
        return kept

    def _keep(self, key: Key, made: bytes) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > MOST_BYTES or len(self._kept) > MOST_EVENTS:
                self._bytes -= len(self._kept.pop(next(iter(self._kept))))
