"""Log lines with a stable event code, at a bounded rate."""

from __future__ import annotations

import logging

from .clock import monotonic

CONNECTION = logging.getLogger("channels_asyncq.connection")
LOSS = logging.getLogger("channels_asyncq.loss")
WIRE = logging.getLogger("channels_asyncq.wire")

EVERY = 10.0


def record(logger: logging.Logger, level: int, code: str, text: str, *arguments: object) -> None:
    """Log one line; the record carries the event code as `record.code` and at the end of its text."""
    logger.log(level, text + " [%s]", *arguments, code, extra={"code": code})


class Throttle:
    """One line per event code and ten seconds; the next line says how many were left out."""

    __slots__ = ("_last", "_left_out")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warn(self, logger: logging.Logger, code: str, text: str, *arguments: object) -> None:
        now = monotonic()
        last = self._last.get(code)
        if last is not None and now - last < EVERY:
            self._left_out[code] = self._left_out.get(code, 0) + 1
            return
        self._last[code] = now
        left_out = self._left_out.pop(code, 0)
        if left_out:
            text += " (and %d more since the last such line)"
            arguments = (*arguments, left_out)
        record(logger, logging.WARNING, code, text, *arguments)
