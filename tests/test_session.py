"""Sessions: leaks, work in one turn of the loop, bad input and bad servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.exceptions import ChannelLayerError, LayerUnavailable
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.flow import MOST
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.clock import Clock
from tests.contract import (
    DEADLINE,
    SEND_TIMEOUT,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    members_of,
    note,
    receive,
    started,
    steps,
)
from tests.resp_server import RespServer, error
from tests.sessions import bus_of, session_of


class TestLeaks:
    async def test_polling_a_whole_prefix(self, make_memory: MakeLayer) -> None:
        """A cancelled receive() of a prefix leaves nothing behind."""
        layer = await make_memory()
        channel = await layer.new_channel()
        for _ in range(5):
            task = await started(layer.receive(channel[: channel.index("!") + 1]))
            task.cancel()
            await asyncio.wait([task])
        assert session_of(layer).hub.watchers.waiting == []

    async def test_close_channel_without_awaiting(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """The work goes on when nobody keeps what close_channel() returned."""
        layer = await make_redis()
        receiving = await started(layer.receive("jobs"))
        topic = f"{prefix}:0:queue:jobs"
        await eventually(lambda: redis_server.command("PUBSUB", "CHANNELS", topic), "the reader")
        task = weakref.ref(layer.close_channel("jobs"))
        gc.collect()
        assert task() is not None
        await asyncio.wait([receiving])
        receiving.exception()

    async def test_a_message_for_a_swept_channel(self, make_redis: MakeLayer) -> None:
        """A buffer made for a message from elsewhere is swept too."""
        sender, layer = await make_redis(), await make_redis(expiry=0.2)
        channel = await layer.new_channel()
        await eventually(lambda: session_of(layer)._sweeper.timer is None, "the end of the sweeping")
        assert layer.statistics().channels == 0
        await sender.send(channel, note(1))
        await eventually(lambda: layer.statistics().delivered == 1, "the message")
        await eventually(lambda: layer.statistics().channels == 0, "the sweep")


class Busy:
    """A loop on whose machine it takes 0.05 ms to put one envelope into one channel."""

    def __init__(self, layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layer = layer
        clock = Clock()
        clock.put_into(monkeypatch, ["slices"])
        offer = ChannelBuffer.offer
        self._count = 0
        #: How much was put in each turn of the loop.
        self.puts: list[int] = []

        def slow(buffer: ChannelBuffer, envelope: Envelope) -> int:
            clock.turn(0.00005)
            self._count += 1
            return offer(buffer, envelope)

        monkeypatch.setattr(ChannelBuffer, "offer", slow)
        self._turn()

    def _turn(self) -> None:
        self.puts.append(self._count)
        self._count = 0
        asyncio.get_running_loop().call_soon(self._turn)


class TestWorkInOneTurn:
    @pytest.mark.parametrize("bus", ["memory", "redis"])
    async def test_messages_to_many(
        self, make_memory: MakeLayer, make_redis: MakeLayer, bus: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        Messages that arrive together for a large group come in slices of 3 ms, a turn of the loop after each.

        Every member gets each message once and in order, and so does a channel that somebody sent to in between.
        None of it counts as waiting for readers.
        """
        make_layer = make_memory if bus == "memory" else make_redis
        layer, other = await make_layer(), await make_layer()
        members = await members_of(layer, "room", 1000)
        await other.new_channel()
        busy = Busy(layer, monkeypatch)
        await asyncio.gather(*(other.group_send("room", note(n)) for n in range(5)))
        await other.send(members[0], note(5))
        await other.group_send("room", note(6))
        for member in members:
            expected = [0, 1, 2, 3, 4, 5, 6] if member == members[0] else [0, 1, 2, 3, 4, 6]
            assert [(await receive(layer, member))["n"] for _ in expected] == expected
        assert sum(busy.puts) == 6001
        # A slice is 100 of them; it is looked at every 256.
        assert max(busy.puts) <= 100 + 256
        assert session_of(layer).hub.flow.budget.left == MOST
        assert not layer.statistics().dropped

    async def test_a_lost_connection_in_the_middle(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that ends in the middle of a delivery changes nothing: everybody gets it, and once."""
        layer, other = await make_redis(), await make_redis()
        members = await members_of(layer, "room", 1000)
        await other.new_channel()
        Busy(layer, monkeypatch)
        await other.group_send("room", note(0))
        await eventually(lambda: layer.statistics().delivered, "the beginning")
        wire = bus_of(layer).nodes[0].pushes.wire  # type: ignore[attr-defined]
        wire.abort(ConnectionResetError("cable"))
        await other.group_send("room", note(1))
        for member in members:
            assert [(await receive(layer, member))["n"] for _ in range(2)] == [0, 1]
        await eventually(lambda: layer.statistics().reconnects == 1, "the reconnect")
        assert layer.statistics().delivered == 2000

    async def test_many_normal_channels_in_a_group(
        self, make_memory: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copies to normal channels leave the loop its turns, though nothing has to be waited for."""
        layer = await make_memory()
        for number in range(500):
            await layer.group_add("room", f"jobs{number}")
        busy = Busy(layer, monkeypatch)
        await layer.group_send("room", note(1), exclude=["jobs7"])
        await steps(1)
        assert sum(busy.puts) == 499 and max(busy.puts) <= 101
        await assert_nothing_waits(layer, "jobs7")
        assert await receive(layer, "jobs8") == note(1)

    async def test_topics_after_a_reconnect(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        Thousands of topics are subscribed to in slices; who joins or leaves meanwhile has the last word.

        What is sent to any of the groups meanwhile arrives.
        """
        layer, other = await make_redis(), await make_redis()
        channel = await layer.new_channel()
        await asyncio.gather(*(layer.group_add(f"room{number}", channel) for number in range(1000)))
        await other.new_channel()
        clock = Clock()
        clock.put_into(monkeypatch, ["slices"])
        call = WireProtocol.call
        calls: list[list[bytes]] = [[]]
        tasks: list[asyncio.Future[object]] = []

        def slow(
            wire: WireProtocol, *command: bytes | str | int, reply: asyncio.Future[object] | None = None
        ) -> asyncio.Future[object]:
            if command[0] == b"SUBSCRIBE":
                clock.turn(0.00005)
                calls[-1].append(bytes(str(command[1]), "ascii"))
                if sum(map(len, calls)) == 300:
                    loop.call_soon(meanwhile)
            return call(wire, *command, reply=reply)

        def turn() -> None:
            calls.append([])
            loop.call_soon(turn)

        def meanwhile() -> None:
            tasks.extend(
                loop.create_task(doing)
                for doing in (
                    layer.group_discard("room999", channel),
                    layer.group_discard("room0", channel),
                    layer.group_add("new", channel),
                    *(other.group_send(group, note(n)) for n, group in enumerate(["room1", "room998"])),
                )
            )

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(WireProtocol, "call", slow)
        turn()
        redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: tasks and all(task.done() for task in tasks), "what was done meanwhile")
        await asyncio.gather(*tasks)
        await other.group_send("new", note(2))
        assert max(map(len, calls)) <= 101 + 50  # what is subscribed to for other layers comes on top
        # Between groups there is no order.
        assert {(await receive(layer, channel))["n"] for _ in range(3)} == {0, 1, 2}
        for group in ("room0", "room999"):
            await other.group_send(group, note(3))
        await assert_nothing_waits(layer, channel)
        assert layer.statistics().told == {}


class TestBadInput:
    async def test_deep_json(self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
        """JSON from outside that is nested too deep is counted and dropped, and the connection stays."""
        layer = await make_redis()
        (member,) = await members_of(layer, "room", 1)
        deep = '{"type":"x","deep":' + "[" * 300 + "]" * 300 + "}"
        redis_server.command("PUBLISH", f"{prefix}:0:group:room", deep)
        await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the count")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)
        assert layer.statistics().reconnects == 0


class TestBadServers:
    async def test_readonly_for_ever(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A server that connects and then refuses is an outage: a send fails in time, the next ones at once."""
        layer = await make_scripted()
        (member,) = await members_of(layer, "room", 1)
        server.always("EVALSHA", error("READONLY You can't write against a read only replica."))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(LayerUnavailable, match="READONLY"):
            async with asyncio.timeout(DEADLINE):
                await layer.group_send("room", note(1))
        assert loop.time() - began < SEND_TIMEOUT * 4
        for _ in range(5):
            sending = await started(layer.group_send("room", note(1)))
            assert sending.done()
            with pytest.raises(LayerUnavailable, match="READONLY"):
                await sending
        server.restore()

        async def heals() -> None:
            while True:
                try:
                    return await layer.group_send("room", note(2))
                except LayerUnavailable:
                    await asyncio.sleep(0.01)

        async with asyncio.timeout(DEADLINE):
            await heals()
        assert await receive(layer, member) == note(2)
        # It is well again: the next loss is waited for.
        server.script("EVALSHA", error("READONLY You can't write against a read only replica."))
        await layer.group_send("room", note(3))

    async def test_refused_pops_do_not_storm(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A receiver's question that is refused for ever does not reconnect at full speed."""
        layer = await make_scripted()
        receiving = await started(layer.receive("jobs"))
        await eventually(lambda: layer.statistics().connected, "the link")
        server.always("POP", error("READONLY You can't write against a read only replica."))
        await layer.send("jobs", note(1))
        await asyncio.sleep(0.5)
        assert layer.statistics().reconnects <= 4
        server.restore()
        async with asyncio.timeout(DEADLINE):
            assert await receiving == note(1)

    async def test_refused_pop_is_asked_again(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A pop that was refused once, with the link up, is repeated."""
        layer = await make_scripted()
        server.script("POP", error("BUSY Redis is busy running a script."))
        await layer.send("jobs", note(1))
        assert await receive(layer, "jobs") == note(1)

    async def test_a_strange_role(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """An answer to ROLE that is none is a failed attempt, not the end of all attempts."""
        server.always("ROLE", resp_server.reply([]))
        layer = await make_scripted()
        with pytest.raises(LayerUnavailable):
            await layer.send("jobs", note(1))
        server.restore()
        receiving = await started(layer.receive("jobs"))
        await eventually(lambda: layer.statistics().connected, "the link")
        await layer.send("jobs", note(1))
        async with asyncio.timeout(DEADLINE):
            assert await receiving == note(1)

    async def test_refused_inbox(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A refused inbox is told to everybody who needs it, each by an error of his own, and asked for again."""
        # Longer than a busy machine needs to connect: without one, new_channel() returns a name in the end.
        layer = await make_scripted(send_timeout=DEADLINE)
        server.always("SUBSCRIBE", error("NOPERM No permissions to access a channel"))
        errors = await asyncio.gather(*(layer.new_channel() for _ in range(3)), return_exceptions=True)
        errors += await asyncio.gather(layer.new_channel(), return_exceptions=True)
        assert all(isinstance(one, ChannelLayerError) and "NOPERM" in str(one) for one in errors), errors
        assert len(set(map(id, errors))) == 4
        server.restore()
        # The next attempt to connect asks again.
        await eventually(lambda: layer.statistics().connected, "the link")
        channel = await layer.new_channel()
        other = await make_redis_like(layer)
        try:
            await other.send(channel, note(1))
            assert await receive(layer, channel) == note(1)
        finally:
            await other.close()

    async def test_another_layout_stays_the_reason(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """A layer with another layout hears so after any time, by errors that do not grow."""
        await (await make_redis()).send("jobs", note(1))
        layer = await make_redis(partitions=3, send_timeout=0.2)
        # A busy machine may take longer than that to connect.
        with pytest.raises(ImproperlyConfigured):
            while True:
                with contextlib.suppress(LayerUnavailable):
                    await layer.send("jobs", note(1))
        first: list[BaseException] = []
        for _ in range(6):
            with pytest.raises(ImproperlyConfigured) as raised:
                await layer.send("jobs", note(1))
            first.append(raised.value)
            await asyncio.sleep(0.1)
        assert len(set(map(id, first))) == len(first)

    async def test_order_after_a_reconnect(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """Sends that waited for the link leave in the order in which they came."""
        layer = await make_scripted(send_timeout=5)
        await members_of(layer, "room", 1)
        await server.stop()
        await eventually(lambda: not layer.statistics().connected, "the loss of the link")
        sends = [await started(layer.send("jobs", note(n))) for n in range(50)]
        await server.start()
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(*sends, return_exceptions=True)
        taken = [n for n, result in enumerate(results) if result is None]
        got = [(await receive(layer, "jobs"))["n"] for _ in taken]
        assert got == taken
        assert len(taken) > 40


async def make_redis_like(layer: AsyncQueueChannelLayer) -> AsyncQueueChannelLayer:
    options = layer.options
    return AsyncQueueChannelLayer(hosts=[str(options.hosts[0].url)], prefix=options.prefix)


def test_json_is_what_we_think() -> None:
    """The document of test_deep_json is valid JSON."""
    json.loads('{"type":"x","deep":' + "[" * 300 + "]" * 300 + "}")
