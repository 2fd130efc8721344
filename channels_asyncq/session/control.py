"""The requests of other sessions to this one: they are done and confirmed."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..bus.base import PubSub
from ..exceptions import ChannelClosed, ChannelLayerError, TooManyGroups
from ..messages.codecs import Codec
from ..messages.envelopes import CONTROL, Envelope
from ..names import Topics, check_channel_name, check_group_name, is_session_id
from .answers import Answers
from .channel_names import ChannelNames
from .decoding import Decoder
from .drops import DropLog
from .flushing import LocalFlush
from .groups import SessionGroups
from .questions.pieces import Pieces
from .requests import Requests
from .surveys import Surveys

# For this many memberships, those that others asked for last, it is known which requests were done.
_MAX_REMEMBERED = 10_000

# The session that asks, the group and the channel.
Subject = tuple[str, str, str]


@dataclass(slots=True)
class Latest:
    """The highest number of a request that was done, and of one that is running."""

    done: int = 0
    running: int = 0


class RequestHistory:
    """
    Which requests of other sessions this session has done: a late repeat must not be done after its opposite.

    A session numbers its requests in the order of its calls. So only the highest numbers count, for each
    combination of asking session, group and channel. The last 10,000 combinations are remembered.

    number          | that request, or a later one | the request now
    ----------------|------------------------------|------------------------------------------------
    up to `done`    | was done                     | is confirmed
    up to `running` | is running                   | is ignored: its sender repeats it if that fails
    higher          | never came                   | is done
    """

    def __init__(self) -> None:
        self._latest: dict[Subject, Latest] = {}

    def was_done(self, subject: Subject, number: int) -> bool:
        latest = self._latest.get(subject)
        return latest is not None and number <= latest.done

    def begin(self, subject: Subject, number: int) -> bool:
        """Note that a request is running; False if it, or a later one, is running already."""
        latest = self._latest.pop(subject, None) or Latest()
        self._latest[subject] = latest  # inserted anew, as the last one
        if len(self._latest) > _MAX_REMEMBERED:
            del self._latest[next(iter(self._latest))]
        if number <= latest.running:
            return False
        latest.running = number
        return True

    def end(self, subject: Subject, number: int, *, is_done: bool) -> None:
        latest = self._latest.get(subject)
        if latest is None:
            return
        if number == latest.running:
            latest.running = 0
        if is_done:
            latest.done = max(latest.done, number)


class Control:
    """Reads the control messages of other sessions, does what they ask, and confirms it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        names: ChannelNames,
        topics: Topics,
        codec: Codec,
        decoder: Decoder,
        pubsub: PubSub,
        drops: DropLog,
        requests: Requests,
        groups: SessionGroups,
        flush: LocalFlush,
        surveys: Surveys,
        pieces: Pieces,
    ) -> None:
        self._loop = loop
        self._names = names
        self._topics = topics
        self._codec = codec
        self._decoder = decoder
        self._pubsub = pubsub
        self._drops = drops
        self._requests = requests
        self._groups = groups
        self._flush = flush
        self._surveys = surveys
        self._answers = Answers(loop, codec, pieces, self._send_answer)
        self._inbox = topics.inbox(names.session_id).name
        self._history = RequestHistory()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether no request of another session is running, and no survey of this one."""
        return not self._tasks and self._answers.is_idle and self._surveys.is_empty

    def on_message(self, envelope: Envelope) -> None:
        """Act on a control message; one that makes no sense is counted and dropped."""
        try:
            body = self._decoder.message_of(envelope)
            action, number, reply = body["do"], body["request"], body["reply"]
            if not isinstance(number, int) or not isinstance(reply, str) or not is_session_id(reply):
                raise TypeError("request or reply")
            if "ask" in body:
                self._answers.begin(reply, int(body["number"]), str(body["ask"]), dict(body["with"]))
            elif action == "answer":
                self._surveys.on_answer(number, reply, body)
            elif action == "confirm":
                self._requests.confirmed(number)
            elif action == "refuse":
                self._requests.refused(number, TooManyGroups(*body["limit"]))
            elif action == "flush":
                self._flush.begin(partial(self._confirm, number, reply))
            elif action in ("add", "discard"):
                check_group_name(body["group"])
                check_channel_name(body["channel"])
                self._change_membership(action, (reply, body["group"], body["channel"]), number)
            else:
                raise TypeError(f"do: {action!r}")
        except (KeyError, TypeError, ValueError) as exc:
            self._drops.unreadable(self._inbox, f"a control message that is none: {exc!r}")

    def _change_membership(self, action: str, subject: Subject, number: int) -> None:
        reply, _, channel = subject
        if not self._names.is_own(channel):
            return
        if self._history.was_done(subject, number):
            self._confirm(number, reply)
            return
        if not self._history.begin(subject, number):
            return
        task = self._loop.create_task(
            self._change_and_confirm(action, subject, number),
            name=f"channels_asyncq group_{action} for {reply}",
            context=contextvars.Context(),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change_and_confirm(self, action: str, subject: Subject, number: int) -> None:
        reply, group, channel = subject
        change = self._groups.add if action == "add" else self._groups.discard
        is_done = False
        try:
            if (answer := change(group, channel)) is not None:
                await answer
            is_done = True
        except TooManyGroups as exc:
            self._refuse(number, reply, exc)
        except ChannelClosed:
            is_done = True  # the channel's groups are gone too, and there is nothing to wait for
        except (ChannelLayerError, ImproperlyConfigured):
            pass  # there is no link: the other session repeats its request, or gives up
        finally:
            self._history.end(subject, number, is_done=is_done)
        if is_done:
            self._confirm(number, reply)

    def _confirm(self, number: int, reply: str) -> None:
        if reply == self._names.session_id:
            self._requests.confirmed(number)
        else:
            body = {"do": "confirm", "request": number, "reply": self._names.session_id}
            self._pubsub.post(self._topics.inbox(reply), reply, self._codec.encode(body), CONTROL)

    def _refuse(self, number: int, reply: str, error: TooManyGroups) -> None:
        if reply == self._names.session_id:
            self._requests.refused(number, error)
        else:
            limit = [error.channel, error.most, error.setting]
            body = {"do": "refuse", "request": number, "reply": self._names.session_id, "limit": limit}
            self._pubsub.post(self._topics.inbox(reply), reply, self._codec.encode(body), CONTROL)

    def _send_answer(self, asker: str, answer: dict[str, Any]) -> None:
        if asker == self._names.session_id:
            self._surveys.on_answer(answer["request"], asker, answer)
        else:
            self._pubsub.post(self._topics.inbox(asker), asker, self._codec.encode(answer), CONTROL)

    def close(self) -> None:
        self._answers.close()
        for task in list(self._tasks):
            task.cancel()
