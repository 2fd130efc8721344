"""Outages: servers that are killed, connections that are cut, and what the layer promises about them."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import ChannelLayerError, LayerClosed, LayerUnavailable
from channels_asyncq.process import loops
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.contract import (
    DEADLINE,
    MARKER,
    POLL,
    MakeLayer,
    Message,
    assert_nothing_waits,
    eventually,
    every,
    members_of,
    note,
    receive,
    receive_many,
    started,
    steps,
)

pytestmark = pytest.mark.chaos

SEND_TIMEOUT = 1.0


@pytest.fixture
def server(own_redis_server: EmbeddedServer) -> EmbeddedServer:
    return own_redis_server


@pytest.fixture
async def make_layer(server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[server.url], prefix=prefix) as make_layer:
        yield make_layer


async def in_thread(action: object, *arguments: object) -> None:
    """Start or stop a server without holding up the loop."""
    assert callable(action)
    await asyncio.to_thread(action, *arguments)


async def works(layer: AsyncQueueChannelLayer, reader: AsyncQueueChannelLayer, channel: str) -> None:
    """Send to `room` until a copy arrives on `channel`: the way back of an outage."""

    async def arrives() -> None:
        while await receive(reader, channel) != MARKER:
            pass

    arrival = asyncio.create_task(arrives())
    while not arrival.done():
        try:
            await layer.group_send("room", MARKER)
        except LayerUnavailable:
            pass
        await asyncio.wait([arrival], timeout=POLL)
    await arrival


async def next_note(layer: AsyncQueueChannelLayer, channel: str) -> Message:
    """The next message that is no left-over of `works()`."""
    while (message := await receive(layer, channel)) == MARKER:
        pass
    return message


def has_reconnected(layer: AsyncQueueChannelLayer, before: int) -> Callable[[], bool]:
    """Whether the layer has connected again since it had done so `before` times."""
    return lambda: layer.statistics().reconnects > before


def kill_connections(server: EmbeddedServer, kind: str) -> int:
    """CLIENT KILL the layer's `pubsub` or `normal` connections; returns how many there were."""
    return int(server.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))


class TestServerKilled:
    """kill -9 of the server, and its return."""

    async def test_sends_wait_then_fail_at_once(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """
        A send waits `send_timeout` from the loss of the link and raises LayerUnavailable with the address;
        then at once.
        """
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        await members_of(layer, "room", 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await in_thread(server.kill)
        with pytest.raises(LayerUnavailable, match=str(server.port)) as raised:
            async with asyncio.timeout(DEADLINE):
                await layer.group_send("room", note(1))
        assert isinstance(raised.value, ChannelLayerError)
        assert isinstance(raised.value, ConnectionError)
        assert str(server.port) in raised.value.address
        assert SEND_TIMEOUT * 0.8 <= loop.time() - began < SEND_TIMEOUT * 5
        for send in (
            layer.group_send("room", note(2)),
            layer.send("jobs", note(2)),
            layer.send("elsewhere.node!channel", note(2)),
        ):
            sending = await started(send)
            assert sending.done()
            with pytest.raises(LayerUnavailable):
                await sending

    async def test_receivers_survive(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """receive() never raises a transport error, and gets what is sent after the server's return."""
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        (member,) = await members_of(layer, "room", 1)
        waits = await started(receive(layer, member))
        works_too = await started(receive(layer, "jobs"))
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        late = await started(receive(layer, "more.jobs"))
        assert not waits.done() and not works_too.done() and not late.done()
        await in_thread(server.restart)
        await eventually(lambda: layer.statistics().connected, "the link's return")
        await layer.group_send("room", note(1))
        await layer.send("jobs", note(2))
        await layer.send("more.jobs", note(3))
        assert await every([waits, works_too, late]) == [note(1), note(2), note(3)]
        assert layer.statistics().reconnects >= 1

    async def test_local_channels_go_on(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """A send to a channel of the same session needs no server."""
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        channel = await layer.new_channel()
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        await layer.send(channel, note(1))
        assert await receive(layer, channel) == note(1)

    async def test_a_process_that_only_receives_recovers(
        self, make_layer: MakeLayer, server: EmbeddedServer
    ) -> None:
        """A session that never sends subscribes again by itself."""
        reader, writer = await make_layer(), await make_layer(send_timeout=SEND_TIMEOUT)
        (member,) = await members_of(reader, "room", 1)
        await writer.group_send("room", MARKER)
        await receive(reader, member)
        await in_thread(server.kill)
        await in_thread(server.restart)
        await works(writer, reader, member)

    async def test_a_short_outage_is_waited_for(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """Sends and joins made while the link is down go through when it is back within `send_timeout`."""
        layer = await make_layer(send_timeout=DEADLINE)
        (member,) = await members_of(layer, "room", 1)
        late = await layer.new_channel()
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        calls = [
            await started(layer.group_send("room", note(1))),
            await started(layer.send("jobs", note(2))),
            await started(layer.group_add("lobby", late)),
        ]
        await in_thread(server.restart)
        await every(calls)
        assert await receive(layer, member) == note(1)
        assert await receive(layer, "jobs") == note(2)
        await layer.group_send("lobby", note(3))
        assert await receive(layer, late) == note(3)

    async def test_many_sends_in_flight(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """
        Whatever happens to sends in flight, each returns or raises ChannelLayerError; none hangs, none
        doubles.
        """
        layer = await make_layer(send_timeout=SEND_TIMEOUT, capacity=10_000)
        (member,) = await members_of(layer, "room", 1)
        senders = [asyncio.create_task(layer.group_send("room", note(n))) for n in range(300)]
        await steps(3)
        await in_thread(server.kill)
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(*senders, return_exceptions=True)
        assert all(result is None or isinstance(result, ChannelLayerError) for result in results)
        await in_thread(server.restart)
        await eventually(lambda: layer.statistics().connected, "the link's return")
        await layer.group_send("room", note(1000))
        arrived = [await next_note(layer, member)]
        while arrived[-1] != note(1000):
            arrived.append(await next_note(layer, member))
        numbers = [message["n"] for message in arrived]
        assert len(numbers) == len(set(numbers))

    async def test_close_during_an_outage(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """close() does not wait for a server that is gone."""
        layer = await make_layer(send_timeout=10 * DEADLINE)
        (member,) = await members_of(layer, "room", 1)
        waits = await started(layer.receive(member))
        await in_thread(server.kill)
        async with asyncio.timeout(DEADLINE):
            await layer.close()
        with pytest.raises(LayerClosed):
            await waits

    async def test_twice(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """One outage after the other."""
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        (member,) = await members_of(layer, "room", 1)
        for _ in range(3):
            await in_thread(server.kill)
            await in_thread(server.restart)
            await works(layer, layer, member)
        await layer.group_send("room", note(1))
        assert await next_note(layer, member) == note(1)

    async def test_events(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """`on_disconnect` and `on_reconnect` reach every local channel, once each per outage."""
        layer = await make_layer(on_disconnect="link.down", on_reconnect="link.up", send_timeout=SEND_TIMEOUT)
        channels = await members_of(layer, "room", 2)
        channels.append(await layer.new_channel())
        readers = [await started(receive_many(layer, channel, 2)) for channel in channels]
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        await in_thread(server.restart)
        for messages in await every(readers):
            assert messages == [{"type": "link.down"}, {"type": "link.up"}]
        for channel in channels:
            await assert_nothing_waits(layer, channel)

    async def test_no_events_without_being_asked(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """Without those settings a consumer hears nothing of it."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await in_thread(server.kill)
        await in_thread(server.restart)
        await eventually(lambda: layer.statistics().reconnects, "the link's return")
        await eventually(lambda: layer.statistics().connected, "the link's return")
        await assert_nothing_waits(layer, member)

    async def test_another_server_at_the_address(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """
        A server that comes back empty is taken as it is: scripts and the layout key are put there again.
        """
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        await layer.send("jobs", note(1))
        await in_thread(server.kill)
        await in_thread(server.restart)
        await eventually(
            lambda: layer.statistics().reconnects and layer.statistics().connected, "the link's return"
        )
        await layer.send("jobs", note(2))
        await assert_nothing_waits_but(layer, "jobs", [note(2)])

    async def test_scripts_are_flushed(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """SCRIPT FLUSH by somebody else is no loss."""
        layer = await make_layer()
        await layer.send("jobs", note(1))
        server.command("SCRIPT", "FLUSH")
        await layer.send("jobs", note(2))
        server.command("SCRIPT", "FLUSH")
        assert await receive_many(layer, "jobs", 2) == [note(1), note(2)]


async def assert_nothing_waits_but(layer: AsyncQueueChannelLayer, channel: str, rest: list[Message]) -> None:
    await layer.send(channel, MARKER)
    assert await receive_many(layer, channel, len(rest) + 1) == [*rest, MARKER]


class TestNewLoops:
    """Event loops that come in the middle of an outage."""

    @pytest.fixture
    async def layer(self, make_layer: MakeLayer, server: EmbeddedServer) -> AsyncQueueChannelLayer:
        """A layer that has waited for a server that is gone; who had to wait once more would do so for long."""
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        await members_of(layer, "room", 1)
        await in_thread(server.kill)
        with pytest.raises(LayerUnavailable):
            async with asyncio.timeout(DEADLINE):
                await layer.group_send("room", note(1))
        layer.options = replace(layer.options, send_timeout=10 * DEADLINE)
        return layer

    async def test_fails_at_once(self, layer: AsyncQueueChannelLayer, server: EmbeddedServer) -> None:
        """A loop that makes its session now does not wait; and it is served when the server is back."""

        async def use() -> None:
            async with asyncio.timeout(DEADLINE):
                channel = await layer.new_channel()
                for send in (
                    layer.group_send("room", note(2)),
                    layer.send("jobs", note(2)),
                    layer.group_add("room", channel),
                ):
                    with pytest.raises(LayerUnavailable, match=str(server.port)):
                        await send
                jobs = await started(layer.receive("jobs"))
                await asyncio.to_thread(server.restart)
                await eventually(lambda: layer.statistics().connected, "the link's return")
                await layer.group_add("room", channel)
                await layer.group_send("room", note(3))
                assert await layer.receive(channel) == note(3)
                await layer.send("jobs", note(4))
                assert await jobs == note(4)

        await in_thread(asyncio.run, use())

    async def test_after_the_relay(
        self, layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A loop for which the relay has sent, and that gets a session of its own, does not wait again."""
        monkeypatch.setattr(loops, "_RELAYED_SENDS", 3)

        async def use() -> None:
            async with asyncio.timeout(DEADLINE):
                for number in range(6):
                    with pytest.raises(LayerUnavailable):
                        await layer.group_send("room", note(number))

        await in_thread(asyncio.run, use())


class TestServerAbsent:
    """Redis is not there at the start."""

    async def test_a_send_raises_with_the_address(self, prefix: str) -> None:
        """
        It waits `send_timeout`, then LayerUnavailable names where the server should be; no credentials in
        it.
        """
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            hosts = [f"redis://user:secret@127.0.0.1:{port}/0"]
            async with contract.layers(hosts=hosts, prefix=prefix, send_timeout=SEND_TIMEOUT) as make_layer:
                layer = await make_layer()
                with pytest.raises(LayerUnavailable, match=f"127.0.0.1:{port}") as raised:
                    async with asyncio.timeout(DEADLINE):
                        await layer.group_send("room", note(1))
                assert "secret" not in str(raised.value)
                with pytest.raises(LayerUnavailable):
                    async with asyncio.timeout(SEND_TIMEOUT / 2):
                        await layer.send("jobs", note(1))

    async def test_receivers_wait_until_it_comes(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """receive() before the server is there waits, and gets what is sent when it is."""
        await in_thread(server.kill)
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        jobs = await started(receive(layer, "jobs"))
        with pytest.raises(LayerUnavailable):
            async with asyncio.timeout(DEADLINE):
                await layer.send("jobs", note(0))
        assert not jobs.done()
        await in_thread(server.restart)
        await eventually(lambda: layer.statistics().connected, "the link")
        await layer.send("jobs", note(1))
        assert await jobs == note(1)

    async def test_a_wrong_password_is_told(self, prefix: str) -> None:
        """A server that refuses us is unavailable, and the reason is in the message."""
        with EmbeddedServer(external=False, requirepass="right") as server:
            url = f"redis://:wrong@127.0.0.1:{server.port}/0"
            async with contract.layers(hosts=[url], prefix=prefix, send_timeout=SEND_TIMEOUT) as make_layer:
                layer = await make_layer()
                with pytest.raises(LayerUnavailable, match=r"(?i)pass|auth") as raised:
                    async with asyncio.timeout(DEADLINE):
                        await layer.group_send("room", note(1))
                assert "wrong@" not in str(raised.value)

    async def test_acl_without_channels_is_told(self, prefix: str) -> None:
        """A Redis user without `&` permission: the refusal is told where it happens, not swallowed."""
        with EmbeddedServer(
            external=False, user=["default on nopass ~* &* +@all", "site on >pw ~* resetchannels +@all"]
        ) as server:
            url = f"redis://site:pw@127.0.0.1:{server.port}/0"
            async with contract.layers(hosts=[url], prefix=prefix, send_timeout=SEND_TIMEOUT) as make_layer:
                layer = await make_layer()
                with pytest.raises(ChannelLayerError, match=r"Grant the user 'site' &"):
                    async with asyncio.timeout(DEADLINE):
                        await layer.group_add("room", await layer.new_channel())

    async def test_acl_of_the_documentation_suffices(self, prefix: str) -> None:
        """A user with `~<prefix>:*` and `&<prefix>:*` can do everything."""
        with EmbeddedServer(
            external=False,
            user=[
                "default on nopass ~* &* +@all",
                f"site on >pw ~{prefix}:* resetchannels &{prefix}:* +@all",
            ],
        ) as server:
            url = f"redis://site:pw@127.0.0.1:{server.port}/0"
            async with contract.layers(hosts=[url], prefix=prefix) as make_layer:
                layer = await make_layer()
                (member,) = await members_of(layer, "room", 1)
                await layer.group_add("room", "jobs")
                await layer.group_send("room", note(1))
                assert await receive(layer, member) == note(1)
                assert await receive(layer, "jobs") == note(1)
                await layer.flush()


class TestConnectionsKilled:
    """CLIENT KILL of either connection while the server lives."""

    @pytest.mark.parametrize("kind", ["pubsub", "normal"])
    async def test_heals(self, make_layer: MakeLayer, server: EmbeddedServer, kind: str) -> None:
        """The layer connects and subscribes again; groups, channels and normal channels work."""
        reader, writer = await make_layer(), await make_layer()
        (member,) = await members_of(reader, "room", 1)
        await writer.group_send("room", note(0))
        assert await receive(reader, member) == note(0)
        for n in range(1, 4):
            before = reader.statistics().reconnects
            assert kill_connections(server, kind) >= 1
            await eventually(has_reconnected(reader, before), "the reconnect")
            await eventually(lambda: reader.statistics().connected and writer.statistics().connected)
            await works(writer, reader, member)
            await writer.send(member, note(n))
            assert await next_note(reader, member) == note(n)
            await writer.send("jobs", note(n))
            assert await receive(reader, "jobs") == note(n)

    async def test_connections_do_not_pile_up(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """After many cuts there are two connections still, however many subscribed at that moment."""
        layer = await make_layer()
        members = [await layer.new_channel() for _ in range(20)]
        for n in range(5):
            joins = [
                asyncio.create_task(layer.group_add(f"room.{n}.{m}", member))
                for m, member in enumerate(members)
            ]
            await steps(n)
            before = layer.statistics().reconnects
            kill_connections(server, "pubsub")
            kill_connections(server, "normal")
            await every(joins)
            await eventually(has_reconnected(layer, before), "the reconnect")
            await eventually(lambda: layer.statistics().connected, "the link's return")
        await eventually(
            lambda: len(server.command("CLIENT", "LIST").splitlines()) <= 3, "the end of stray connections"
        )
        for n in range(5):
            await layer.group_send(f"room.{n}.7", note(n))
            assert await receive(layer, members[7]) == note(n)

    @pytest.mark.parametrize("last", ["add", "discard"])
    async def test_the_last_word_wins(self, make_layer: MakeLayer, server: EmbeddedServer, last: str) -> None:
        """Joining, leaving and joining again while the link is down ends as the last call said."""
        layer = await make_layer(send_timeout=DEADLINE)
        (witness,) = await members_of(layer, "room", 1)
        for first in ("add", "discard"):
            member = await layer.new_channel()
            group = f"group.{first}"
            if first == "discard":
                await layer.group_add(group, member)
            words = [first, "discard" if first == "add" else "add", first]
            if words[-1] != last:
                words.append(last)
            await in_thread(server.kill)
            await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
            calls = []
            for word in words:
                call = layer.group_add if word == "add" else layer.group_discard
                calls.append(await started(call(group, member)))
            await in_thread(server.restart)
            await every(calls)
            await works(layer, layer, witness)
            await layer.group_send(group, note(1))
            await layer.group_send("room", note(2))
            assert await next_note(layer, witness) == note(2)
            if last == "add":
                assert await receive(layer, member) == note(1)
            await assert_nothing_waits(layer, member)

    async def test_last_one_left_while_down(
        self, make_layer: MakeLayer, server: EmbeddedServer, prefix: str
    ) -> None:
        """A group left while the link was down is not subscribed to again."""
        layer = await make_layer(send_timeout=DEADLINE)
        left, stays = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("left", left)
        await layer.group_add("room", stays)
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        leaving = await started(layer.group_discard("left", left))
        await in_thread(server.restart)
        await every([leaving])
        await works(layer, layer, stays)
        topics = server.command("PUBSUB", "CHANNELS", f"{prefix}:0:group:*")
        assert topics == [f"{prefix}:0:group:room".encode()]

    @pytest.mark.parametrize("kind", ["pubsub", "normal"])
    async def test_normal_channel_keeps_its_messages(
        self, make_layer: MakeLayer, server: EmbeddedServer, kind: str
    ) -> None:
        """Cutting connections under load loses no job of a normal channel and does none twice."""
        reader, writer = await make_layer(capacity=10_000), await make_layer(capacity=10_000)
        count = 300
        arrived: list[int] = []
        unknown: set[int] = set()

        async def work() -> None:
            while True:
                arrived.append((await reader.receive("jobs"))["n"])

        async def write() -> None:
            for n in range(count):
                try:
                    await writer.send("jobs", note(n))
                except ChannelLayerError:
                    unknown.add(n)

        worker, sender = await started(work()), await started(write())
        for goal in (20, 80, 150):
            await eventually(partial(lambda goal: len(arrived) > goal or sender.done(), goal), "progress")
            kill_connections(server, kind)
        await every([sender])
        await eventually(lambda: set(range(count)) - unknown <= set(arrived), "the last job")
        worker.cancel()
        await contract.ended(worker)
        assert len(arrived) == len(set(arrived))

    async def test_polling_workers_while_connections_are_cut(
        self, make_layer: MakeLayer, server: EmbeddedServer
    ) -> None:
        """Receivers cancelled at any time while connections die at any time: no job lost, none done twice."""
        reader, writer = await make_layer(), await make_layer(capacity=10_000)
        count = 300
        arrived: list[int] = []
        unknown: set[int] = set()
        timeouts = itertools.cycle([0.0005, 0.002, 0.005, 0.001, 0.02])
        is_over = False

        async def poll() -> None:
            while not is_over:
                try:
                    message = await asyncio.wait_for(reader.receive("jobs"), next(timeouts))
                except TimeoutError:
                    continue
                arrived.append(message["n"])

        async def write() -> None:
            for n in range(count):
                try:
                    await writer.send("jobs", note(n))
                except ChannelLayerError:
                    unknown.add(n)
                await steps(n % 20)

        async def cut() -> None:
            for goal in range(20, 200, 30):
                await eventually(lambda: len(arrived) > goal or writing.done(), "progress")  # noqa: B023
                kill_connections(server, "normal")
                kill_connections(server, "pubsub")

        workers = [await started(poll()) for _ in range(2)]
        writing = asyncio.create_task(write())
        await every([writing, asyncio.create_task(cut())])
        await eventually(lambda: set(range(count)) - unknown <= set(arrived), "the last job")
        is_over = True
        await every(workers)
        assert len(arrived) == len(set(arrived))

    async def test_cancelled_while_down(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """Calls cancelled during an outage leave nothing behind: no half member, no message, no task."""
        layer = await make_layer(send_timeout=DEADLINE)
        member, witness = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("room", witness)
        await in_thread(server.kill)
        await eventually(lambda: layer.statistics().connected is False, "the loss of the link")
        calls = [
            await started(layer.group_add("room", member)),
            await started(layer.group_add("lobby", member)),
            await started(layer.receive("jobs")),
            await started(layer.new_channel()),
        ]
        for call in calls:
            call.cancel()
            await contract.ended(call)
        await in_thread(server.restart)
        await works(layer, layer, witness)
        await layer.group_send("lobby", note(1))
        await layer.group_send("room", note(2))
        await layer.send("jobs", note(3))
        assert await next_note(layer, witness) == note(2)
        assert await receive(layer, "jobs") == note(3)
        await assert_nothing_waits(layer, member)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")


class TestServerPaused:
    """A server that is there and silent."""

    async def test_sends_do_not_wait_for_ever(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """A send to a server that answers nothing ends with a ChannelLayerError, and the layer heals."""
        layer = await make_layer(send_timeout=SEND_TIMEOUT)
        (member,) = await members_of(layer, "room", 1)
        server.pause()
        try:
            with pytest.raises(ChannelLayerError):
                async with asyncio.timeout(DEADLINE):
                    await layer.group_send("room", note(1))
        finally:
            server.resume()
        await works(layer, layer, member)

    async def test_a_short_pause_loses_nothing(self, make_layer: MakeLayer, server: EmbeddedServer) -> None:
        """A pause shorter than `send_timeout` is only a delay."""
        layer = await make_layer(send_timeout=DEADLINE)
        (member,) = await members_of(layer, "room", 1)
        for n in itertools.count(1):
            server.pause()
            sender = await started(layer.group_send("room", note(n)))
            await steps(20)
            server.resume()
            await every([sender])
            assert await receive(layer, member) == note(n)
            if n == 3:
                break
