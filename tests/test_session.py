"""Sessions: what runs meanwhile, what a cancellation leaves, what bad input and bad servers do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
import redis
from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis.scripts import POP
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.exceptions import (
    ChannelClosed,
    ChannelLayerError,
    LayerClosed,
    LayerUnavailable,
    StillFull,
)
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.flow import MOST
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL, Envelope
from channels_asyncq.messages.framing import pack, pack_names, unpack
from channels_asyncq.names import owner_of
from channels_asyncq.session import control
from channels_asyncq.session import session as session_module
from channels_asyncq.session.control import Asked
from channels_asyncq.session.session import Session
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.clock import Clock
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    members_of,
    note,
    receive,
    started,
    steps,
    time_passes,
)
from tests.resp_server import Answer, RespServer, after, encode, error

SEND_TIMEOUT = 1.0


def session_of(layer: AsyncQueueChannelLayer) -> Session:
    return layer._sessions[asyncio.get_running_loop()]


@pytest.fixture
async def make_memory(prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
async def make_redis(redis_url: str, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_url], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
async def make_scripted(server: RespServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[server.url], prefix=prefix, send_timeout=SEND_TIMEOUT) as make_layer:
        yield make_layer


class TestNames:
    async def test_a_prefix_is_no_channel(self, make_memory: MakeLayer) -> None:
        """The part up to `!` can be received from; sent to or added, it would hide the channels behind it."""
        layer = await make_memory()
        channel = await layer.new_channel()
        prefix = channel[: channel.index("!") + 1]
        for call in contract.calls(
            lambda: layer.send(prefix, note(1)),
            lambda: layer.group_add("room", prefix),
            lambda: layer.send_wait(prefix, note(1)),
        ):
            with pytest.raises(TypeError, match="!"):
                await call()
        await layer.send(channel, note(2))
        assert await receive(layer, prefix) == note(2)

    @pytest.mark.parametrize("start", [5, None, b"x", "a!", "a!b", "white space", "x" * 60])
    async def test_bad_prefixes(self, make_memory: MakeLayer, start: object) -> None:
        """new_channel() refuses what makes no specific channel."""
        layer = await make_memory()
        with pytest.raises(TypeError):
            await layer.new_channel(start)  # type: ignore[arg-type]


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
        await eventually(lambda: session_of(layer)._sweeper is None, "the end of the sweeping")
        assert layer.statistics().channels == 0
        await sender.send(channel, note(1))
        await eventually(lambda: layer.statistics().delivered == 1, "the message")
        await eventually(lambda: layer.statistics().channels == 0, "the sweep")


class TestSendWait:
    async def test_timeout_with_the_answer_under_way(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """The time is for a place, not for the answer: what the server took is never reported as StillFull."""
        layer = await make_scripted()
        await layer.send("jobs", note(0))
        assert await receive(layer, "jobs") == note(0)
        answering = asyncio.Event()
        server.script("PUSH", after(answering))
        sending = await started(layer.send_wait("jobs", note(1), timeout=0.05))
        await time_passes(0.1)
        answering.set()
        await sending
        assert await receive(layer, "jobs") == note(1)

    @pytest.mark.parametrize("channel", ["jobs", ""])
    async def test_no_time(self, make_memory: MakeLayer, channel: str) -> None:
        """With timeout 0 a place is taken if there is one."""
        layer = await make_memory(capacity=1)
        channel = channel or await layer.new_channel()
        await layer.send_wait(channel, note(1), timeout=0)
        with pytest.raises(StillFull):
            await layer.send_wait(channel, note(2), timeout=0)
        assert await receive(layer, channel) == note(1)
        await assert_nothing_waits(layer, channel)

    @pytest.mark.parametrize("channel", ["jobs", ""])
    async def test_a_short_time(self, make_memory: MakeLayer, channel: str) -> None:
        """The time is kept, also where it is shorter than the next look."""
        layer = await make_memory(capacity=1)
        channel = channel or await layer.new_channel()
        await layer.send(channel, note(1))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ChannelFull):
            await layer.send_wait(channel, note(2), timeout=0.03)
        assert 0.02 <= loop.time() - began < DEADLINE / 2


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
        wire = session_of(layer)._bus.nodes[0].pushes.wire  # type: ignore[attr-defined]
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

    @pytest.mark.parametrize(
        "body",
        [
            {"do": "add", "group": 5, "channel": 5, "request": 1, "reply": "x"},
            {"do": "add", "group": "bad name", "channel": "<own>", "request": 1, "reply": "0" * 16},
            {"do": "add", "group": "", "channel": "<own>", "request": 1, "reply": "0" * 16},
            {"do": "add", "group": "room", "channel": "<own>bad name", "request": 1, "reply": "0" * 16},
            {"do": "flush", "request": 1, "reply": 5},
            {"do": "flush", "request": [1], "reply": "x"},
            {"do": "confirm", "request": [1], "reply": "x"},
            {"do": "confirm", "request": None, "reply": None},
            {"do": 7, "request": 1, "reply": "x"},
            {},
        ],
        ids=repr,
    )
    async def test_control_messages(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str, body: dict[str, object]
    ) -> None:
        """A control message that is none is counted and dropped; nobody joins anything by it."""
        layer = await make_redis()
        (member,) = await members_of(layer, "room", 1)
        session_id = member.split("!")[0].rpartition(".")[2]
        body = {
            key: value.replace("<own>", member) if isinstance(value, str) else value
            for key, value in body.items()
        }
        data = pack([(pack_names(member), Codec().encode(body))], bytes(8), 0, CONTROL)
        redis_server.command("PUBLISH", f"{prefix}:0:inbox:{session_id}", data)
        await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the count")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)
        assert layer.statistics().reconnects == 0
        assert layer.statistics().groups == 1

    async def test_control_messages_to_everybody(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """The same on the topic of everybody."""
        layer = await make_redis()
        (member,) = await members_of(layer, "room", 1)
        data = pack(
            [(pack_names(""), Codec().encode({"do": "flush", "request": 1, "reply": b"x"}))],
            bytes(8),
            0,
            CONTROL,
        )
        redis_server.command("PUBLISH", f"{prefix}:0:all", data)
        await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the count")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)


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
            began = loop.time()
            with pytest.raises(LayerUnavailable, match="READONLY"):
                await layer.group_send("room", note(1))
            assert loop.time() - began < SEND_TIMEOUT / 2
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
        layer = await make_scripted()
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

    async def test_joins_end_at_once(self, make_scripted: MakeLayer, server: RespServer) -> None:
        """A group_add() in flight does not wait for the end of the commands that a stuck server owes."""
        layer = await make_scripted(send_timeout=3)
        channel = await layer.new_channel()
        never = asyncio.Event()
        server.script("PUSH", after(never))
        server.script("SUBSCRIBE", after(never))
        sending = await started(layer.send("jobs", note(1)))
        joining = await started(layer.group_add("room", channel))
        closing = asyncio.create_task(layer.close())
        await asyncio.wait([joining], timeout=1)
        assert joining.done()
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
        session._slices._seconds = 0.0  # as on a slow machine
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

        monkeypatch.setattr(layer, "_lock", Turnstile())
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
        monkeypatch.setattr(session_module, "_GONE_AFTER", 3600.0)
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
        await eventually(lambda: [c for c in server.received("EVALSHA") if c[0] == POP.sha], "the question")
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


class TestOwners:
    async def test_group_add_of_a_closed_channel(self, make_redis: MakeLayer) -> None:
        """The owner of a closed channel says so by its confirmation: nobody waits for a dead owner."""
        layer, owner = await make_redis(), await make_redis()
        channel = await owner.new_channel()
        await owner.close_channel(channel)
        async with asyncio.timeout(2):
            await layer.group_add("room", channel)
        assert "dead_owner" not in layer.statistics().dropped

    @pytest.mark.parametrize("asked", ["add", "discard"])
    async def test_late_repeats(
        self,
        make_redis: MakeLayer,
        make_scripted: MakeLayer,
        server: RespServer,
        monkeypatch: pytest.MonkeyPatch,
        asked: str,
    ) -> None:
        """What is asked again because its confirmation is late is not done again after its opposite."""
        monkeypatch.setattr(session_module, "_ASK_AGAIN", 0.01)
        owner, asker = await make_redis(), await make_scripted(send_timeout=60)
        channel, own = await owner.new_channel(), await asker.new_channel()
        if asked == "add":
            ask, oppose, groups = asker.group_add, owner.group_discard, 1
        else:
            await owner.group_add("room", channel)
            ask, oppose, groups = asker.group_discard, owner.group_add, 0
        # What the asker is told waits behind the reply to a subscription.
        arriving = asyncio.Event()
        server.script("SUBSCRIBE", after(arriving))
        joining = await started(asker.group_add("another", own))
        asking = await started(ask("room", channel))
        await eventually(lambda: owner.statistics().groups == groups, "what was asked")
        await oppose("room", channel)
        count = len(asks(server))
        await eventually(lambda: len(asks(server)) >= count + 3, "late repeats")
        arriving.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(asking, joining)
        # Behind the repeats.
        await asker.send(channel, note(1))
        assert await receive(owner, channel) == note(1)
        (witness,) = await members_of(owner, "room", 1)
        await asker.group_send("room", note(2))
        assert await receive(owner, witness) == note(2)
        if asked == "discard":
            assert await receive(owner, channel) == note(2)
        await assert_nothing_waits(owner, channel)

    @pytest.mark.parametrize(
        ("requests", "is_member"),
        [
            (["a add 1", "a discard 2", "a add 1"], False),
            (["a discard 1", "a add 2", "a discard 1"], True),
            (["a add 1", "a discard 2", "a add 1", "a add 3"], True),
            (["a add 1", "b discard 1", "a add 1"], False),
            (["a add 1", "b discard 1", "a add 1", "a add 2"], True),
            (["a add 1", "b add 1", "b discard 2", "a add 1", "b add 1"], False),
            (["a discard 2", "a add 1"], False),
            (["a add 1", "a add 1", "a add 1"], True),
        ],
        ids=str,
    )
    async def test_requests_that_are_repeated(
        self,
        make_redis: MakeLayer,
        redis_server: EmbeddedServer,
        prefix: str,
        requests: list[str],
        is_member: bool,
    ) -> None:
        """
        Every request is confirmed each time that it is made, and done once, and not after a later one of the same
        session for the same group and channel. Sessions do not concern each other.
        """
        layer = await make_redis()
        channel = await layer.new_channel()
        askers = {name: Asker(redis_server, prefix, name * 16) for name in ("a", "b")}
        with contextlib.ExitStack() as stack:
            for asker in askers.values():
                stack.enter_context(asker)
            for name, action, number in map(str.split, requests):
                askers[name].ask(action, "room", channel, int(number))
                assert await askers[name].confirmed() == int(number)
        (witness,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1))
        assert await receive(layer, witness) == note(1)
        if is_member:
            assert await receive(layer, channel) == note(1)
        await assert_nothing_waits(layer, channel)

    async def test_requests_that_are_under_way(
        self, make_scripted: MakeLayer, server: RespServer, prefix: str
    ) -> None:
        """A request that is repeated before it is done is done once, and confirmed when it is."""
        layer = await make_scripted(send_timeout=60)
        channel = await layer.new_channel()
        server.script("SUBSCRIBE", Answer(data=b""))
        with Asker(server.real, prefix, "a" * 16) as asker:
            for number in (1, 1, 2, 1, 2):
                asker.ask("add", "room", channel, number)
            asker.ask("add", "", channel, 3)
            await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the last request")
            server.cut()
            assert sorted([await asker.confirmed(), await asker.confirmed()]) == [1, 2]
            asker.ask("discard", "room", channel, 4)
            assert await asker.confirmed() == 4
        assert layer.statistics().groups == 0

    async def test_request_that_fails_is_done_when_it_is_repeated(
        self, make_redis: MakeLayer, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """What the owner could not do is not taken for done."""
        owner, asker = await make_scripted(), await make_redis()
        channel = await owner.new_channel()
        server.script("SUBSCRIBE", error("NOPERM No permissions to access a channel"))
        async with asyncio.timeout(DEADLINE):
            await asker.group_add("room", channel)
        await asker.group_send("room", note(1))
        assert await receive(owner, channel) == note(1)

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the memberships that were asked for last it is known what was done; of earlier ones nothing."""
        monkeypatch.setattr(control, "_MOST_ASKED", 3)
        asked = Asked()
        for group, number in (("one", 5), ("two", 5), ("three", 5), ("one", 6), ("four", 5)):
            what = "a" * 16, group, "channel"
            assert asked.begin(what, number)
            asked.end(what, number, is_done=True)
            assert asked.was_done(what, number)
        groups = ("one", "two", "three", "four")
        done = {group: asked.was_done(("a" * 16, group, "channel"), 5) for group in groups}
        assert done == {"one": True, "two": False, "three": True, "four": True}
        asked.end(("a" * 16, "two", "channel"), 5, is_done=True)  # forgotten while it was under way

    @pytest.mark.parametrize("hosts", ["memory", "redis"])
    async def test_owner_that_is_gone(
        self,
        make_memory: MakeLayer,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
        hosts: str,
    ) -> None:
        """Nobody hears what it is asked: that is no error, is counted, and takes no `send_timeout`."""
        assert session_module._GONE_AFTER == 2.5
        monkeypatch.setattr(session_module, "_ASK_AGAIN", 0.01)
        monkeypatch.setattr(session_module, "_GONE_AFTER", 0.05)
        config = {} if hosts == "memory" else {"hosts": [request.getfixturevalue("redis_url")]}
        gone, layer = await make_memory(**config), await make_memory(send_timeout=3600, **config)
        channel = await gone.new_channel()
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await layer.group_add("room", channel)
            await layer.group_discard("room", channel)
        assert layer.statistics().dropped == {"dead_owner": 2}

    async def test_owner_that_is_gone_and_was_heard(
        self,
        make_redis: MakeLayer,
        make_scripted: MakeLayer,
        server: RespServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The 2.5 s begin anew when somebody has heard a question."""
        gone, layer = await make_redis(), await make_scripted(send_timeout=3600)
        channel = await gone.new_channel()
        await gone.close()
        await layer.new_channel()
        clock = Clock()
        monkeypatch.setattr(session_module, "monotonic", clock)
        monkeypatch.setattr(session_module, "_ASK_AGAIN", 0.0)
        listeners = [0, 1, 0, 0, 0]
        answered = [asyncio.Event() for _ in listeners]
        answers = [
            Answer(executes=False, data=encode(count), waits_for=event)
            for count, event in zip(listeners, answered, strict=True)
        ]
        server.script("SEND", *answers)
        adding = asyncio.create_task(layer.group_add("room", channel))
        for n, (seconds, event) in enumerate(zip([0, 2.4, 0, 2.4, 0.2], answered, strict=True), 1):
            await eventually(lambda n=n: len(asks(server)) == n, f"question {n}")  # type: ignore[misc]
            assert not adding.done()
            clock.turn(seconds)
            event.set()
        async with asyncio.timeout(DEADLINE):
            await adding
        assert len(asks(server)) == len(listeners)
        assert layer.statistics().dropped == {"dead_owner": 1}

    async def test_owner_that_is_only_reconnecting(
        self, make_redis: MakeLayer, make_scripted: MakeLayer, server: RespServer, prefix: str
    ) -> None:
        """Nobody hears the first questions; when the owner is back it joins, and the join is true."""
        async with RespServer(server.real) as way_to_owner:
            owner = await make_redis(hosts=[way_to_owner.url])
            asker = await make_scripted(send_timeout=60)
            channel = await owner.new_channel()
            await asker.new_channel()
            await way_to_owner.stop()
            inbox = f"{prefix}:0:inbox:{owner_of(channel)}"
            await eventually(
                lambda: server.real.command("PUBSUB", "NUMSUB", inbox) == [inbox.encode(), 0], "the loss"
            )
            adding = await started(asker.group_add("room", channel))
            await eventually(lambda: asks(server), "the first question")
            await way_to_owner.start()
            async with asyncio.timeout(DEADLINE):
                await adding
                await asker.group_send("room", note(1))
            assert await receive(owner, channel) == note(1)
            assert "dead_owner" not in asker.statistics().dropped
            await owner.close()


def asks(server: RespServer) -> list[tuple[Any, ...]]:
    """The commands that have gone to the inbox of another session by this server."""
    return [
        (name, *arguments)
        for name, *arguments in server.commands
        if name == "EVALSHA" and server.kind_of(name, arguments) == "SEND" and b":inbox:" in arguments[3]
    ]


class Asker:
    """A session played by the test: it makes requests of its own numbers, and hears the confirmations."""

    def __init__(self, server: EmbeddedServer, prefix: str, session_id: str) -> None:
        self._server, self._prefix, self._session_id = server, prefix, session_id

    def __enter__(self) -> Self:
        self._client = redis.Redis(host=self._server.host, port=self._server.port)
        self._inbox: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._inbox.subscribe(f"{self._prefix}:0:inbox:{self._session_id}")
        self._inbox.get_message(timeout=DEADLINE)
        return self

    def __exit__(self, *error: object) -> None:
        self._inbox.close()
        self._client.close()

    def ask(self, action: str, group: str, channel: str, number: int) -> None:
        body = {
            "do": action,
            "group": group,
            "channel": channel,
            "request": number,
            "reply": self._session_id,
        }
        data = pack([(pack_names(channel), Codec().encode(body))], bytes(8), 0, CONTROL)
        self._client.publish(f"{self._prefix}:0:inbox:{owner_of(channel)}", data)

    async def confirmed(self) -> int:
        """The number of the next request that is confirmed."""
        message = await asyncio.to_thread(self._inbox.get_message, timeout=DEADLINE)
        body = Codec().decode(unpack(message["data"])[0].payload)
        assert body["do"] == "confirm"
        number: int = body["request"]
        return number


def test_json_is_what_we_think() -> None:
    """The document of test_deep_json is valid JSON."""
    json.loads('{"type":"x","deep":' + "[" * 300 + "]" * 300 + "}")
