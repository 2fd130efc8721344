"""Where a call of the layer runs: with the running loop's own session, or with the relay's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from ..bus.base import Health
from ..exceptions import LayerClosed
from ..names import check_channel_name, check_group_name
from ..process.loops import LoopPhase, LoopState
from .forks import running_relay
from .histories import History
from .registry import SessionRegistry
from .surveys import Survey

T = TypeVar("T")


class SessionCalls:
    """
    The calls that need a session, as coroutines: each uses the session of the loop on which it runs.

    So the same coroutine does the call for a loop with a session, and on the relay's loop for one without.
    """

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def send(self, channel: str, payload: bytes) -> None:
        session = await self._registry.session()
        if (answer := session.sending.send(channel, payload)) is not None:
            await answer

    async def send_wait(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        session = await self._registry.session()
        await session.sending.send_wait(channel, payload, timeout)

    async def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        session = await self._registry.session()
        await session.sending.group_send(group, payload, excluded)

    async def group_add(self, group: str, channel: str) -> None:
        session = await self._registry.session()
        if (answer := session.groups.add(group, channel)) is not None:
            await answer

    async def group_discard(self, group: str, channel: str) -> None:
        session = await self._registry.session()
        if (answer := session.groups.discard(group, channel)) is not None:
            await answer

    async def position(self, groups: tuple[str, ...], channel: str | None) -> str:
        session = await self._registry.session()
        return await session.resumer.position(groups, channel)

    async def history(self, group: str, limit: int, before: str | None) -> History:
        session = await self._registry.session()
        return await session.histories.page(group, limit, before)

    async def flush(self) -> None:
        session = await self._registry.session()
        await session.flush()

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        session = await self._registry.session()
        return await session.health(timeout)

    async def survey(self, question: str, timeout: float, arguments: Mapping[str, Any]) -> Survey:  # noqa: ASYNC109
        session = await self._registry.session()
        return await session.surveys.ask(question, timeout, arguments)

    async def message_rates(self) -> dict[str, float]:
        session = await self._registry.session()
        return await session.message_rates()

    async def normal_members(self, group: str) -> list[str]:
        session = await self._registry.session()
        return await session.normal_members(group)


class Dispatcher:
    """
    Calls for a loop whose session is not settled: with its session once that is settled, or with the relay's.

    The methods of the layer use it where the running loop has no session, or one that is still changing or has
    ended. Arguments of the layer's methods that are not checked yet are checked here.
    """

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry
        self._calls = SessionCalls(registry)

    # From a coroutine

    async def send(self, channel: str, payload: bytes) -> None:
        self._registry.require_channel_open(asyncio.get_running_loop(), channel)
        await self._run(self._calls.send(channel, payload))

    async def send_wait(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        loop = asyncio.get_running_loop()
        session = self._registry.sessions.get(loop)
        if session is None or not session.names.is_own(channel):
            if self._registry.is_ending(loop):
                await self._run(self._calls.send_wait(channel, payload, timeout))
                return
            session = await self._registry.settled_session(loop)
        await session.sending.send_wait(channel, payload, timeout)

    async def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        await self._run(self._calls.group_send(group, payload, excluded))

    async def group_add(self, group: str, channel: str) -> None:
        check_group_name(group)
        check_channel_name(channel)
        if self._has_ended_with_session(channel):
            raise LayerClosed(channel)
        await self._run(self._calls.group_add(group, channel))

    async def group_discard(self, group: str, channel: str) -> None:
        check_group_name(group)
        check_channel_name(channel)
        # Memberships end with their session; the relay would ask an owner that is gone.
        if not self._has_ended_with_session(channel):
            await self._run(self._calls.group_discard(group, channel))

    def _has_ended_with_session(self, channel: str) -> bool:
        """Tell whether a channel is one of the running loop's session, which has ended."""
        session = self._registry.sessions.get(asyncio.get_running_loop())
        return session is not None and session.lifetime.is_closed and session.names.is_own(channel)

    async def position(self, groups: tuple[str, ...], channel: str | None) -> str:
        return await self._run(self._calls.position(groups, channel))

    async def history(self, group: str, limit: int, before: str | None) -> History:
        return await self._run(self._calls.history(group, limit, before))

    async def flush(self) -> None:
        await self._run(self._calls.flush())

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        return await self._run(self._calls.health(timeout))

    async def survey(self, question: str, timeout: float, arguments: Mapping[str, Any]) -> Survey:  # noqa: ASYNC109
        return await self._run(self._calls.survey(question, timeout, arguments))

    async def message_rates(self) -> dict[str, float]:
        return await self._run(self._calls.message_rates())

    async def normal_members(self, group: str) -> list[str]:
        return await self._run(self._calls.normal_members(group))

    async def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call on this loop if it gets a session, else on the relay's."""
        loop = asyncio.get_running_loop()
        try:
            state = await self._relayed_loop(loop)
        except BaseException:
            call.close()  # it never ran
            raise
        if state is None:
            return await call
        state.send_begins()
        try:
            return await running_relay().run(call)
        finally:
            state.send_ends()

    async def _relayed_loop(self, loop: asyncio.AbstractEventLoop) -> LoopState | None:
        """Return the running loop's state if the relay sends for it; else None, once its session is settled."""
        session = self._registry.sessions.get(loop)
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            state = self._registry.relayed_loop(loop)
            if state is not None:
                return state
            await self._registry.settled_session(loop)
        return None

    # From a thread without an event loop

    def send_from_thread(self, channel: str, payload: bytes) -> None:
        """Send to a channel, and block until it is done."""
        if not self._registry.hand_over(channel, payload):
            running_relay().wait(self._calls.send(channel, payload))

    def group_send_from_thread(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        """Send to a group, and block until it is done."""
        running_relay().wait(self._calls.group_send(group, payload, excluded))

    def position_from_thread(self, groups: tuple[str, ...], channel: str | None) -> str:
        """Return the position of some groups; block until the server has answered."""
        return running_relay().wait(self._calls.position(groups, channel))

    def history_from_thread(self, group: str, limit: int, before: str | None) -> History:
        """Return a page of a group's history; block until the server has answered."""
        return running_relay().wait(self._calls.history(group, limit, before))


class PreparedSend:
    """A checked and encoded message for a channel, to be sent by a thread without an event loop."""

    def __init__(self, dispatcher: Dispatcher, channel: str, payload: bytes) -> None:
        self._dispatcher = dispatcher
        self._channel = channel
        self._payload = payload

    def send(self) -> None:
        """Send the message; block until it is in the queue, or the server has accepted it."""
        self._dispatcher.send_from_thread(self._channel, self._payload)


class PreparedGroupSend:
    """A checked and encoded message for a group, to be sent by a thread without an event loop."""

    def __init__(self, dispatcher: Dispatcher, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        self._dispatcher = dispatcher
        self._group = group
        self._payload = payload
        self._excluded = excluded

    def send(self) -> None:
        """Send the message; block until the server has accepted it."""
        self._dispatcher.group_send_from_thread(self._group, self._payload, self._excluded)
