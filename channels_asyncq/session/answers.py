"""The answers of a session to the surveys of others."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from typing import Any

from channels.exceptions import MessageTooLarge

from ..identity import identity
from ..messages.codecs import Codec
from .questions import QUESTIONS
from .questions.pieces import Pieces

#: The rows of an answer, where the asker names no other number. `limit` is an argument of every question.
MOST_ROWS = 100

Send = Callable[[str, dict[str, Any]], None]


class Answers:
    """
    Answers questions, each in a task of its own.

    Args:
        send: sends the body of a control message to the inbox of a session.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, codec: Codec, pieces: Pieces, send: Send) -> None:
        self._loop = loop
        self._codec = codec
        self._pieces = pieces
        self._send = send
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        return not self._tasks

    def begin(self, asker: str, number: int, question: str, arguments: Mapping[str, Any]) -> None:
        """Begin to answer."""
        task = self._loop.create_task(
            self._answer(asker, number, question, arguments),
            name=f"channels_asyncq answering {question} for {asker}",
            context=contextvars.Context(),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asker: str, number: int, question: str, arguments: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"do": "answer", "request": number, "reply": self._pieces.session_id}
        answer["process"] = identity()
        try:
            answer["body"] = await self._body(question, arguments, answer)
        except Exception as exc:
            # The process goes on, whatever is wrong with the question; the asker shows the reason.
            answer["refused"] = f"{type(exc).__name__}: {exc}" if question in QUESTIONS else "older release"
        self._send(asker, answer)

    async def _body(
        self, question: str, arguments: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> dict[str, Any]:
        """
        Return the answer, with as many rows as a message has a place for.

        Raises:
            MessageTooLarge: it is too large without any.
        """
        limit = int(arguments.get("limit", MOST_ROWS))
        while True:
            body = await QUESTIONS[question](self._pieces, {**arguments, "limit": limit})
            size = len(self._codec.encode({**answer, "body": body}))
            if size <= self._pieces.options.max_message_size:
                return body
            if not limit:
                raise MessageTooLarge(f"the answer has {size} bytes without any rows")
            limit //= 2

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
