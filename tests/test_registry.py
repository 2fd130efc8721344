"""Which event loop gets a session of its own, and for which the relay sends."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, LayerClosed
from channels_asyncq.process import loops
from channels_asyncq.testing import EmbeddedServer
from tests.contract import (
    DEADLINE,
    assert_nothing_waits,
    note,
    notes,
    receive,
    receive_many,
    started,
)
from tests.resp_server import RespServer, after
from tests.sessions import has_session, session_of

MakeLayer = Callable[..., AsyncQueueChannelLayer]


@pytest.fixture
def make_layer(redis_url: str, prefix: str) -> Iterator[MakeLayer]:
    """Make layers on the shared server, outside of any loop; all are closed at the end."""
    made: list[AsyncQueueChannelLayer] = []

    def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        made.append(AsyncQueueChannelLayer(**{"hosts": [redis_url], "prefix": prefix, **config}))
        return made[-1]

    yield make_layer
    for layer in made:
        layer.close_from_thread()


class TestSessions:
    """Which loop gets a session of its own."""

    async def test_a_loop_that_sends_for_a_moment_has_none(self, make_layer: MakeLayer) -> None:
        """Its sends go through the relay."""
        layer = make_layer()
        await layer.group_send("room", note(1))
        assert not has_session(layer)

    async def test_a_loop_that_goes_on_sending_has_one(
        self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After the moment it has a session, in order, and its account with the relay is closed."""
        layer = make_layer()
        for message in notes(5):
            await layer.send("jobs", message)
        monkeypatch.setattr(loops, "_RELAYED_SECONDS", 0.0)
        for n in range(5, 10):
            await layer.send("jobs", note(n))
        assert has_session(layer)
        assert not layer._registry.loops
        assert await receive_many(layer, "jobs", 10) == notes(10)

    async def test_a_gather_over_the_change(
        self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sends that were begun in one turn arrive in their order, though only the first of them are relayed."""
        there = make_layer(capacity=1000)
        monkeypatch.setattr(loops, "_RELAYED_SENDS", 20)
        for n in range(10):
            member = await there.new_channel()
            await there.group_add(f"room{n}", member)
            layer = make_layer()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(layer.group_send(f"room{n}", message) for message in notes(50)))
                await layer.group_send(f"room{n}", note(50))
            assert has_session(layer)
            assert await receive_many(there, member, 51) == notes(51)
            await layer.close()

    async def test_no_session_takes_the_place_of_one_that_ends_with_its_loop(
        self, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """Nobody would close it. The layer's close() waits for the ending one, also when it was forgotten."""
        async with RespServer(redis_server) as server:
            layer = AsyncQueueChannelLayer(hosts=[server.url], prefix=prefix)
            await layer.new_channel()
            session = session_of(layer)
            answered = asyncio.Event()
            server.script("SEND", after(answered))
            sending = await started(layer.group_send("room", note(0)))
            ending = await started(session.close())
            with pytest.raises(LayerClosed, match="event loop is ending"):
                await layer.new_channel()
            # Another loop's new session is where those that end are forgotten.
            await asyncio.to_thread(lambda: asyncio.run(layer.new_channel()))
            registry = layer._registry
            assert session not in registry.sessions.values() and session not in registry.owners.values()
            closing = await started(layer.close())
            assert not ending.done() and not closing.done()
            answered.set()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(ending, closing, sending)

    async def test_a_loop_that_ends_gets_no_new_session(self, make_layer: MakeLayer) -> None:
        """Nobody would close it; also when the relay sent for the loop before it had the one that has closed."""
        layer = make_layer()
        await layer.group_send("room", note(0))
        await layer.new_channel()
        session = session_of(layer)
        await session.close()
        for message in notes(150):
            await layer.group_send("room", message)
        assert session_of(layer) is session
        # Another loop's new session is where those that have ended are forgotten.
        await asyncio.to_thread(lambda: asyncio.run(layer.new_channel()))
        for message in notes(150):
            await layer.group_send("room", message)
        assert not has_session(layer)

    async def test_send_wait_comes_after_what_the_relay_sends(self, make_layer: MakeLayer) -> None:
        """A loop's first sends in one gather, one of them send_wait(): in their order."""
        there = make_layer()
        for n in range(10):
            layer = make_layer()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(
                    layer.send("jobs", note(2 * n)), layer.send_wait("jobs", note(2 * n + 1))
                )
            assert [message["n"] for message in await receive_many(there, "jobs", 2)] == [2 * n, 2 * n + 1]
            await layer.close()

    async def test_send_wait_to_a_channel_of_the_loop_waits_for_nothing_else(
        self, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """What the relay has not done yet is no concern of a channel that it never sends to."""
        async with RespServer(redis_server) as server:
            layer = AsyncQueueChannelLayer(hosts=[server.url], prefix=prefix)
            await layer.group_send("room", note(0))
            answered = asyncio.Event()
            server.script("SEND", after(answered))
            sending = await started(layer.group_send("room", note(1)))
            channel = await layer.new_channel()
            await layer.send_wait(channel, note(2), timeout=DEADLINE)
            assert not sending.done()
            assert await receive(layer, channel) == note(2)
            answered.set()
            await sending
            await layer.close()

    async def test_a_burst_from_one_loop(self, make_layer: MakeLayer) -> None:
        """500 sends at once, over the change from relay to session: all arrive, once."""
        layer = make_layer(capacity=1000)
        await asyncio.gather(*(layer.send("jobs", message) for message in notes(500)))
        assert sorted(message["n"] for message in await receive_many(layer, "jobs", 500)) == list(range(500))
        await assert_nothing_waits(layer, "jobs")

    def test_sends_after_the_loops_session_has_ended(self, make_layer: MakeLayer) -> None:
        """What is sent after shutdown_asyncgens() goes through the relay, however long ago that was."""
        layer = make_layer()
        loop = asyncio.new_event_loop()

        async def use() -> None:
            await layer.group_add("room", await layer.new_channel())

        try:
            loop.run_until_complete(use())
            loop.run_until_complete(loop.shutdown_asyncgens())
            for message in notes(200):
                loop.run_until_complete(layer.send("jobs", message))
                if message["n"] % 50 == 49:
                    drained = asyncio.run(receive_many(layer, "jobs", 50))
                    assert len(drained) == 50
        finally:
            loop.close()

    async def test_finally_of_an_async_generator(self, make_layer: MakeLayer) -> None:
        """Generators are closed with the session, in no order: a send in the finally of one works."""
        layer = make_layer()
        other = make_layer()

        async def listen() -> Any:
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            try:
                yield channel
            finally:
                await asyncio.sleep(0.01)
                await layer.group_send("goodbyes", note(1))
                await layer.send("jobs", note(2))

        async def main() -> None:
            generator = listen()
            await anext(generator)
            kept.append(generator)

        kept: list[Any] = []
        member = await other.new_channel()
        await other.group_add("goodbyes", member)
        await asyncio.to_thread(lambda: asyncio.run(main()))
        assert await receive(other, member) == note(1)
        assert await receive(other, "jobs") == note(2)
