"""Log lines with a stable event code, at a bounded rate."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from . import threads
from .clock import monotonic

CONNECTION = logging.getLogger("channels_asyncq.connection")
LOSS = logging.getLogger("channels_asyncq.loss")
DRAIN = logging.getLogger("channels_asyncq.drain")
WIRE = logging.getLogger("channels_asyncq.wire")

EVERY = 10.0
#: A fault that lasts is logged again after `EVERY` seconds, then after twice as long, and so on up to this.
LONGEST = 640.0
#: A fault that did not occur for this many seconds is a new fault.
FORGOTTEN = 60.0
_MOST_FAULTS = 64
# The end of a text without and with lines that were left out.
_REST = ("", " (and %(left_out)d more since the last such line)")


def record(logger: logging.Logger, level: int, code: str, text: str, **fields: object) -> None:
    """
    Log one line. The event code is in `record.code` and at the end of the text.

    The text names its fields, as `%(address)s`. Each is an attribute of the record too, so a formatter for JSON
    has them apart.
    """
    fields["code"] = code
    text += " [%(code)s]"
    try:
        try:
            logger.log(level, text, fields, extra=fields)
        except KeyError:
            # The LogRecord factory of the site sets an attribute of one of these names.
            logger.log(level, text, fields)
    except Exception:
        # A handler of the site has failed, and nothing here ends by that. It is shown as logging itself does.
        if logging.raiseExceptions:
            traceback.print_exc()


class Throttle:
    """At most one line in ten seconds for each event code. The next line has the number of those left out."""

    __slots__ = ("_last", "_left_out")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warn(self, logger: logging.Logger, code: str, text: str, **fields: object) -> None:
        now = monotonic()
        last = self._last.get(code)
        if last is not None and now - last < EVERY:
            self._left_out[code] = self._left_out.get(code, 0) + 1
            return
        self._last[code] = now
        left_out = self._left_out.pop(code, 0)
        record(logger, logging.WARNING, code, text + _REST[left_out > 0], **fields, left_out=left_out)


@dataclass(slots=True)
class _Fault:
    met_at: float
    due: float
    distance: float = EVERY
    left_out: int = 0


class Faults:
    """
    Log lines for faults that may last, from any thread: one at once, then at growing intervals.

    Each later line has the number of times that the fault occurred since the line before. A fault is an event
    code and a cause.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._known: dict[tuple[str, str], _Fault] = {}

    def warn(
        self,
        logger: logging.Logger,
        code: str,
        cause: str,
        text: str,
        *,
        level: int = logging.WARNING,
        **fields: object,
    ) -> None:
        left_out = self._met(code, cause)
        if left_out is not None:
            record(logger, level, code, text + _REST[left_out > 0], **fields, left_out=left_out)

    def _met(self, code: str, cause: str) -> int | None:
        """Note a fault. Return how many lines were left out if a line is due now, else None."""
        with self._lock:
            now = monotonic()
            fault = self._known.pop((code, cause), None)
            if fault is None or now - fault.met_at >= FORGOTTEN:
                fault = _Fault(now, now)
                if len(self._known) >= _MOST_FAULTS:
                    del self._known[next(iter(self._known))]  # the fault that occurred longest ago
            self._known[code, cause] = fault
            fault.met_at = now
            if now < fault.due:
                fault.left_out += 1
                return None
            fault.due = now + fault.distance
            fault.distance = min(2 * fault.distance, LONGEST)
            left_out, fault.left_out = fault.left_out, 0
            return left_out
