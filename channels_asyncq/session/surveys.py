"""The surveys of one session: a question to all sessions of the namespace, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..bus.base import Bus
from ..clock import monotonic
from ..exceptions import ChannelLayerError
from ..messages.codecs import Codec
from ..messages.envelopes import CONTROL
from ..names import Topic, Topics
from ..tasks import all_of

#: The request that carries a question. Releases without surveys take it for the confirmation of a request that
#: nobody makes, and drop it without a word.
QUESTION = {"do": "confirm", "request": 0}
# The most silent sessions that are asked again. A session that ended without a word stays in the register.
_MOST_ASKED_AGAIN = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What one session answered: an event loop of a process. A process may have several.

    `process` is its `identity()`: `host:pid:role`.
    """

    process: str
    session: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Missing:
    """
    A session that got the question and gave no answer; `reason` says why.

    `process` and `session` are empty if the server does not name it. The process of an older release has no name.
    """

    process: str
    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """The answers of all sessions, and those that are missing, both by process."""

    answers: tuple[Answer, ...]
    missing: tuple[Missing, ...]


@dataclass(slots=True)
class _Open:
    """A survey under way: what each session has said."""

    heard: dict[str, Answer | Missing] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, is_complete: Callable[[], bool], until: float) -> None:
        """Return when it is complete, or at this time of `monotonic()`."""
        try:
            async with asyncio.timeout(max(0.0, until - monotonic())):
                while not is_complete():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            pass


class Surveys:
    """
    Asks the sessions of the namespace, this one included.

    The number of subscribers to the topic of all sessions says how many will answer. The register of the bus has
    the names of the others. It may have sessions that are gone, so each is asked again in its inbox: the server
    says whether anybody listens there.
    """

    def __init__(self, session_id: str, topics: Topics, codec: Codec, bus: Bus) -> None:
        self._session_id = session_id
        self._topics = topics
        self._codec = codec
        self._bus = bus
        self._open: dict[int, _Open] = {}
        self._last_number = 0

    @property
    def is_empty(self) -> bool:
        return not self._open

    def on_answer(self, number: int, session_id: str, body: Mapping[str, Any]) -> None:
        """Take the answer of a session, unless it comes too late."""
        survey = self._open.get(number)
        if survey is None:
            return
        process = str(body["process"])
        if "refused" in body:
            survey.heard[session_id] = Missing(process, session_id, str(body["refused"]))
        else:
            survey.heard[session_id] = Answer(process, session_id, dict(body["body"]))
        survey.changed.set()

    async def ask(self, question: str, timeout: float, arguments: Mapping[str, Any]) -> Survey:  # noqa: ASYNC109
        """
        Ask all sessions; return when all have answered, or after `timeout` seconds. Cancelling is safe.

        Raises:
            LayerUnavailable, DeliveryUnknown: the server cannot be reached.
        """
        ends_at = monotonic() + timeout
        everybody = self._topics.everybody
        await self._bus.pubsub.confirmed(self._topics.inbox(self._session_id))
        await self._bus.pubsub.confirmed(everybody)
        self._last_number += 1
        number = self._last_number
        payload = self._codec.encode(
            {
                **QUESTION,
                "reply": self._session_id,
                "ask": question,
                "number": number,
                "with": dict(arguments),
            }
        )
        survey = self._open[number] = _Open()
        heard = survey.heard
        try:
            asked = await self._publish(everybody, payload)
            await survey.wait(lambda: len(heard) >= asked, ends_at - timeout / 2)
            if len(heard) >= asked:
                return _result(survey, [])
            silent = await self._ask_again(survey, payload, ends_at)
            # An older release, which tells no process, never answers.
            older = [session_id for session_id, process in silent.items() if not process]
            able = silent.keys() - older
            await survey.wait(lambda: able <= heard.keys() and len(heard) + len(older) >= asked, ends_at)
            missing = [
                Missing(process, session_id, "no answer" if process else "older release")
                for session_id, process in silent.items()
                if session_id not in heard
            ]
            unnamed = asked - len(heard) - len(missing)
            return _result(survey, missing + [Missing("", "", "no answer")] * unnamed)
        finally:
            del self._open[number]

    async def _ask_again(self, survey: _Open, payload: bytes, ends_at: float) -> dict[str, str]:
        """Ask the sessions again that have not answered; return the processes of those that are there."""
        try:
            async with asyncio.timeout(max(0.0, ends_at - monotonic())):
                known = await self._bus.register.processes()
                silent = [each for each in known if each not in survey.heard][-_MOST_ASKED_AGAIN:]
                counts = await all_of(self._ask_one(session_id, payload) for session_id in silent)
        except TimeoutError:
            return {}
        return {
            session_id: known[session_id] for session_id, count in zip(silent, counts, strict=True) if count
        }

    async def _ask_one(self, session_id: str, payload: bytes) -> int:
        try:
            return await self._publish(self._topics.inbox(session_id), payload)
        except ChannelLayerError:
            return 0  # the host of its inbox cannot be reached

    async def _publish(self, topic: Topic, payload: bytes) -> int:
        # Not logged: a question is for those who listen now.
        return await self._bus.pubsub.publish(topic._replace(is_logged=False), "", payload, CONTROL)


def _result(survey: _Open, silent: list[Missing]) -> Survey:
    heard = survey.heard.values()
    answers = [each for each in heard if isinstance(each, Answer)]
    missing = [each for each in heard if isinstance(each, Missing)] + silent
    return Survey(tuple(sorted(answers, key=_order)), tuple(sorted(missing, key=_order)))


def _order(each: Answer | Missing) -> tuple[str, str]:
    return each.process, each.session
