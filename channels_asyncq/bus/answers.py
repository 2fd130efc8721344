"""What is told how a command ended: futures do for those who await them, and these for others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Answer(Protocol):
    """
    What may stand in the FIFO for a future that nobody awaits: it is told at once, not on the next turn.

    It must not raise. Its methods are those of a future that the connection calls.
    """

    def done(self) -> bool: ...
    def set_result(self, reply: Any, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...
    def exception(self) -> BaseException | None: ...


class AnswerSource(Protocol):
    """Where the answer to something that was written comes from."""

    def read_answer(self, seconds: float, bell: int) -> bool:
        """
        Wait for the answer in the calling thread, which the connection's loop is lent to.

        For so many seconds at most, or until the descriptor `bell` is readable. Return whether it has come, and
        there was nothing in it; anything else is told by the loop.
        """


class Told:
    """An answer made of functions, for a message that nobody awaits."""

    __slots__ = ("_is_over", "_on_done", "_on_failed")

    def __init__(
        self,
        on_done: Callable[[Any], object],
        on_failed: Callable[[Exception], object],
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        self._on_done = on_done
        self._on_failed = on_failed
        self._is_over = is_over

    def done(self) -> bool:
        """Whether nobody wants to know any more: the message is not sent again then."""
        return self._is_over is not None and self._is_over()

    def set_result(self, reply: Any, /) -> None:
        if not self.done():
            self._tell(self._on_done, reply)

    def set_exception(self, error: Exception, /) -> None:
        self._tell(self._on_failed, error)

    def exception(self) -> None:
        return None

    def _tell(self, function: Callable[[Any], object], outcome: Any) -> None:
        try:
            function(outcome)
        except Exception as exc:
            # As for the callback of a future; say, of a handler of logs. The connection is not to blame.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "what came of a send could not be told", "exception": exc}
            )


def ignore(outcome: object) -> None:
    """Be told, and do nothing."""


def fail(answer: asyncio.Future[Any] | Answer, error: Exception) -> None:
    """Give the answer an error, marked as seen: a caller who does not look is not told through the log."""
    answer.set_exception(error)
    answer.exception()
