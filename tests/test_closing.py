"""How sessions and layers close: what is waited for, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.exceptions import (
    ChannelClosed,
    LayerClosed,
)
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.session import closing, requests
from channels_asyncq.session.queues import QueueReader
from tests import contract
from tests.clock import Clock
from tests.contract import (
    DEADLINE,
    MakeLayer,
    eventually,
    members_of,
    note,
    receive,
    started,
    steps,
)
from tests.resp_server import RespServer, after
from tests.sessions import session_of


class TestClosing:
    async def test_cancelled_close_leaves_no_connection(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """However early close() is cancelled, both connections end."""
        for turns in range(1, 9):
            layer = await make_scripted()
            await layer.new_channel()
            sending = await started(layer.send("jobs", note(1)))
            never = asyncio.Event()
            server.script("PUSH", after(never))
            sending = await started(layer.send("jobs", note(2)))
            assert len(server.connections) == 2
            closing = asyncio.create_task(layer.close())
            await steps(turns)
            closing.cancel()
            await asyncio.wait([closing, sending])
            sending.exception()
            await eventually(lambda: not server.connections, f"the end after {turns} turns")

    async def test_reader_that_is_not_answered(
        self, make_memory: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not waited for longer than `send_timeout`, and asyncio logs nothing of it."""
        logged: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        layer = await make_memory(send_timeout=0.1)
        waiting = await started(layer.receive("jobs"))

        async def close(reader: QueueReader, reason: type[Exception]) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(QueueReader, "close", close)
        await layer.close()
        await steps(5)
        waiting.cancel()
        gc.collect()
        assert logged == []

    async def test_joins_end_at_once(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A group_add() in flight does not wait for the end of the commands that a stuck server owes."""
        layer = await make_scripted(send_timeout=DEADLINE)
        channel = await layer.new_channel()
        never = asyncio.Event()
        server.script("PUSH", after(never))
        server.script("SUBSCRIBE", after(never))
        sending = await started(layer.send("jobs", note(1)))
        joining = await started(layer.group_add("room", channel))
        closing = asyncio.create_task(layer.close())
        await asyncio.wait([joining, closing], timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert joining.done() and not closing.done()
        never.set()
        await asyncio.wait([closing, sending, joining])
        for task in (sending, joining):
            task.exception()

    async def test_what_arrives_while_channels_are_closed(self, make_memory: MakeLayer) -> None:
        """A layer that closes accepts nothing: what arrives while its channels close is dropped and counted."""
        layer, other = await make_memory(), await make_memory()
        await other.new_channel()  # a loop that has a session sends in the same turn
        channels = [await layer.new_channel() for _ in range(1000)]
        session = session_of(layer)
        session.hub._slices._seconds = 0.0  # as on a slow machine
        closing = asyncio.ensure_future(layer.close())
        await steps(1)
        assert not closing.done()
        await other.send(channels[0], note(1))
        await closing
        assert not session.hub.channels.buffers
        assert session.hub.counters.delivered == 0 and session.hub.counters.dropped["closed"] == 1

    async def test_statistics_when_another_loop_has_ended(self, make_memory: MakeLayer) -> None:
        """The connections of a loop that has ended are missing to nobody: the others count."""
        layer = await make_memory()
        await layer.new_channel()
        await asyncio.to_thread(lambda: asyncio.run(layer.new_channel()))
        assert layer.statistics().connected
        await layer.close()
        assert not layer.statistics().connected

    async def test_second_close_waits_for_the_first(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """Whoever closes the layer once more, on this loop or another, waits for the same end."""
        layer = await make_scripted()
        await layer.new_channel()
        answering = asyncio.Event()
        server.script("PUSH", after(answering))
        sending = await started(layer.send("jobs", note(1)))
        first = await started(layer.close())
        second = await started(layer.close())
        assert not first.done() and not second.done()
        layer.close_from_thread()
        loop, tried = asyncio.get_running_loop(), asyncio.Event()

        async def close_elsewhere() -> bool:
            closing = await started(layer.close())
            was_waiting = not closing.done()
            loop.call_soon_threadsafe(tried.set)
            await closing
            return was_waiting

        third = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(close_elsewhere())))
        async with asyncio.timeout(DEADLINE):
            await tried.wait()
            assert not first.done()
            answering.set()
            await asyncio.gather(first, second, sending)
            assert await third
        assert not server.connections

    async def test_second_close_after_the_first_was_cancelled(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """A close() that is cancelled ends the layer at once, also for those who wait for the same end."""
        layer = await make_scripted(send_timeout=60)
        await layer.new_channel()
        server.script("PUSH", after(asyncio.Event()))
        sending = await started(layer.send("jobs", note(1)))
        first, second = await started(layer.close()), await started(layer.close())
        third = await started(layer.close())
        third.cancel()
        await asyncio.wait([third])
        assert third.cancelled() and not first.done() and not second.done()
        first.cancel()
        async with asyncio.timeout(DEADLINE):
            await second
            await asyncio.wait([first, sending])
        sending.exception()
        assert first.cancelled()
        await eventually(lambda: not server.connections, "the end of the connections")

    async def test_close_beside_a_first_use_on_another_loop(
        self, make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A loop that makes its session while another one closes the layer is too late, and connects nothing."""
        layer = await make_redis()
        loop, arrived, closed = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        here, lock = threading.current_thread(), threading.Lock()

        class Turnstile:
            """A lock before which all threads but the test's wait until the layer is closed."""

            def __enter__(self) -> None:
                if threading.current_thread() is not here:
                    loop.call_soon_threadsafe(arrived.set)
                    assert closed.wait(DEADLINE)
                lock.acquire()

            def __exit__(self, *error: object) -> None:
                lock.release()

        monkeypatch.setattr(layer._registry, "_lock", Turnstile())
        late = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(layer.new_channel())))
        async with asyncio.timeout(DEADLINE):
            await arrived.wait()
            await layer.close()
            closed.set()
            with pytest.raises(LayerClosed):
                await late
        assert layer.statistics().links == ()

    @pytest.mark.parametrize("from_thread", [False, True])
    def test_close_while_a_loop_stands_still(self, redis_url: str, prefix: str, from_thread: bool) -> None:
        """A loop that stands still closes its session when it goes on: receivers end with LayerClosed."""
        layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)

        async def begin() -> asyncio.Task[object]:
            return await started(layer.receive(await layer.new_channel()))

        async def end(receiving: asyncio.Task[object]) -> None:
            with pytest.raises(LayerClosed):
                async with asyncio.timeout(DEADLINE):
                    await receiving

        with asyncio.Runner() as runner:
            receiving = runner.run(begin())
            if from_thread:
                layer.close_from_thread()
            else:
                asyncio.run(layer.close())
            runner.run(end(receiving))

    @pytest.mark.parametrize("hosts", ["memory", "redis"])
    def test_a_loop_that_has_shut_down_its_generators(
        self, request: pytest.FixtureRequest, prefix: str, hosts: str
    ) -> None:
        """
        Nobody would close a session that such a loop made: what receives raises LayerClosed, what sends goes on,
        and there is nothing left to close.
        """
        url = "memory://" if hosts == "memory" else request.getfixturevalue("redis_url")
        layer = AsyncQueueChannelLayer(hosts=[url], prefix=prefix)

        async def use_after_the_end(channel: str) -> None:
            for call in contract.calls(
                lambda: layer.new_channel(),
                lambda: layer.open_channel(),
                lambda: layer.receive(channel),
                lambda: layer.receive("jobs"),
            ):
                with pytest.raises(LayerClosed, match="event loop is ending"):
                    await call()
            await layer.close_channel(channel)
            await layer.close_channel("jobs")
            await layer.send_wait("jobs", note(1))
            await layer.send("jobs", note(2))
            # The relay's.
            assert len([link for link in layer.statistics().links if link.state != "closed"]) == 1

        loop = asyncio.new_event_loop()
        try:
            channel = loop.run_until_complete(layer.new_channel())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(use_after_the_end(channel))
            # Another loop's new session is where those that have ended are forgotten.
            arrived = asyncio.run(contract.receive_many(layer, "jobs", 2))
            assert arrived == [note(1), note(2)]
            loop.run_until_complete(use_after_the_end(channel))
        finally:
            loop.close()
        layer.close_from_thread()

    def test_memberships_of_a_session_that_has_ended(
        self, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        They have ended with it: to leave is no question to an owner that is gone, also in the generator of a
        stream, which is closed beside the session.
        """
        monkeypatch.setattr(requests, "_GONE_AFTER", 3600.0)
        layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix, send_timeout=3600)
        streams: list[AsyncIterator[str]] = []
        left: list[str] = []

        async def stream() -> AsyncIterator[str]:
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            try:
                yield channel
            finally:
                await steps(5)  # the session's own generator has its turn
                await layer.group_discard("room", channel)
                left.append(channel)
                with pytest.raises(LayerClosed):
                    await layer.group_add("room", channel)
                left.append(channel)

        async def main() -> str:
            streams.append(stream())
            return await anext(streams[0])

        loop = asyncio.new_event_loop()
        try:
            channel = loop.run_until_complete(main())
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), DEADLINE))
        finally:
            loop.close()
        assert left == [channel] * 2
        layer.close_from_thread()

    async def test_close_channel_twice_waits_for_the_same_end(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """What was taken has gone back when either returns; cancelling one ends the waiting of nobody else."""
        layer, other = await make_scripted(send_timeout=60), await make_scripted()
        await other.send("jobs", note(1))
        answering = asyncio.Event()
        server.script("POP", after(answering))
        receiving = await started(layer.receive("jobs"))
        await eventually(
            lambda: [c for c in server.received("EVALSHA") if c[0] == Scripts.of(None).pop.sha],
            "the question",
        )
        closing = [asyncio.ensure_future(layer.close_channel("jobs")) for _ in range(3)]
        await asyncio.wait([receiving])
        receiving.exception()
        await steps(5)
        assert not any(each.done() for each in closing)
        closing[0].cancel()
        answering.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*closing[1:])
        assert await receive(other, "jobs") == note(1)

    async def test_close_channel_after_close(self, make_memory: MakeLayer) -> None:
        """There is nothing to close any more, and that is fine."""
        layer = await make_memory()
        channel = await layer.new_channel()
        await layer.close()
        await layer.close_channel(channel)
        await layer.close_channel("jobs")


class TestClosingMany:
    @pytest.mark.parametrize("is_cancelled", [False, True])
    async def test_everybody_is_told(
        self, make_memory: MakeLayer, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
    ) -> None:
        """
        A layer that closes accepts nothing from the first moment, and its receivers are told in slices.

        All of them are told, also if close() is cancelled.
        """
        clock = Clock()
        clock.put_into(monkeypatch, ["slices"])
        close = ChannelBuffer.close
        count = 0

        def slow(buffer: ChannelBuffer, *reason: type[ChannelClosed]) -> None:
            nonlocal count
            clock.turn(0.00005)
            count += 1
            close(buffer, *reason)

        layer = await make_memory()
        members = await members_of(layer, "room", 1000)
        receiving = [asyncio.create_task(layer.receive(member)) for member in members]
        await steps(1)
        monkeypatch.setattr(ChannelBuffer, "close", slow)
        closing = asyncio.create_task(layer.close())
        most = 0
        while count < 1000:
            before = count
            await steps(1)
            most = max(most, count - before)
            if 0 < count < 1000:
                for call in contract.calls(
                    lambda: layer.send(members[-1], note(1)),
                    lambda: layer.receive(members[-1]),
                    lambda: layer.group_add("room", members[-1]),
                    lambda: layer.group_send("room", note(1)),
                    layer.new_channel,
                ):
                    with pytest.raises(LayerClosed):
                        await call()
                if is_cancelled:
                    closing.cancel()
        assert most <= 100 + 64
        results = await asyncio.gather(*receiving, return_exceptions=True)
        assert {type(result) for result in results} == {LayerClosed}
        await asyncio.wait([closing])
        assert closing.cancelled() is is_cancelled


async def test_closing_on_a_loop_that_stops_first(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loop never gets to leaves nothing behind: no coroutine that nobody awaits, no entry for ever."""
    one = AsyncQueueChannelLayer(hosts=["memory://"], prefix=prefix)
    await one.new_channel()
    session = session_of(one)
    with monkeypatch.context() as patch:
        patch.setattr(session.loop, "call_soon_threadsafe", lambda *arguments, **more: None)
        closing.close_session(session)
        gc.collect()
    assert not closing._closing
    await one.close()
