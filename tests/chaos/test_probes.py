"""The claims behind the design, each put to the test by one fault at an exact moment."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import DeliveryUnknown
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.contract import MakeLayer, Message, eventually, note, receive, receive_many, started
from tests.fences import fence_every

from .fleet import PlayerAgent, valkey
from .proxy import Proxy, Tunnel, proxied

pytestmark = pytest.mark.chaos

SEND_TIMEOUT = 20.0
#: Where it is to pass: a fraction of it is there to notice and to come back.
SHORT = 0.6


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    with EmbeddedServer(external=False, binary=valkey()) as server:
        yield server


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with proxied(server.port) as proxy:
        yield proxy


@pytest.fixture
async def make_layer(server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    """Layers that go straight to the server; `hosts=[proxy.url]` for those whose connections are to break."""
    async with contract.layers(hosts=[server.url], prefix=prefix, on_loss="loss") as make_layer:
        yield make_layer


class Pair:
    """A reader with a member of `room`, and a writer behind the proxy."""

    def __init__(self, reader: AsyncQueueChannelLayer, writer: AsyncQueueChannelLayer, member: str) -> None:
        self.reader = reader
        self.writer = writer
        self.member = member

    def send(self, kind: str, message: Message) -> Any:
        if kind == "group":
            return self.writer.group_send("room", message)
        return self.writer.send(self.member if kind == "specific" else "jobs", message)

    async def next(self, kind: str) -> Message:
        return await receive(self.reader, "jobs" if kind == "normal" else self.member)


@pytest.fixture
async def pair(request: pytest.FixtureRequest, make_layer: MakeLayer, proxy: Proxy) -> Pair:
    send_timeout = getattr(request, "param", SEND_TIMEOUT)
    reader = await make_layer()
    [member] = await contract.members_of(reader, "room", 1)
    # The numbers that a session has given by then are not the first.
    pair = Pair(reader, await make_layer(hosts=[proxy.url], send_timeout=send_timeout), member)
    await pair.writer.new_channel()  # a session of its own, not that of the relay
    for kind in KINDS:
        await pair.send(kind, note(0))
        assert await pair.next(kind) == note(0)
    return pair


KINDS = ["group", "specific", "normal"]
every_kind = pytest.mark.parametrize("kind", KINDS)

_marks = itertools.count(1)


def marked() -> tuple[Message, bytes]:
    """A message, and bytes that stand in its command and in no other."""
    mark = f"mark-{next(_marks)}-"
    return {"type": "test.marked", "mark": mark}, mark.encode()


async def executed(server: EmbeddedServer, before: int, count: int) -> None:
    """Return when the server has executed so many scripts more than before."""
    await eventually(lambda: scripts_of(server) >= before + count, "the late command")


def scripts_of(server: EmbeddedServer) -> int:
    """How many EVALSHA the server has executed."""
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_evalsha:calls="):
            return int(line.split("=")[1].split(",")[0])
    return 0


class TestLateCommands:
    """A command of the dead connection is executed after the sender has connected again."""

    @every_kind
    async def test_sent_again_and_executed_twice(
        self, pair: Pair, proxy: Proxy, server: EmbeddedServer, kind: str
    ) -> None:
        """The resend goes first; the late one is a repeat of its number, and nobody gets it twice."""
        message, mark = marked()
        held = proxy.hold(mark)
        sending = await started(pair.send(kind, message))
        tunnel: Tunnel = await held
        tunnel.cut_client()
        await sending  # on the next connection
        assert await pair.next(kind) == message
        before = scripts_of(server)
        await tunnel.release()
        await executed(server, before, 1)
        await pair.send(kind, note(1))
        assert await pair.next(kind) == note(1)

    @pytest.mark.parametrize("pair", [SHORT], indirect=True, ids=[""])
    @pytest.mark.parametrize("kind", ["group", "specific"])
    async def test_given_up_and_executed_late(
        self, pair: Pair, proxy: Proxy, server: EmbeddedServer, kind: str
    ) -> None:
        """
        The sender got DeliveryUnknown and went on. What it gave up may come or not, but not behind what it sent
        later.
        """
        message, mark = marked()
        held = proxy.hold(mark)
        sending = await started(pair.send(kind, message))
        tunnel: Tunnel = await held
        proxy.refuses = True
        tunnel.cut_client()
        with pytest.raises(DeliveryUnknown):
            await sending
        proxy.refuses = False
        await eventually(lambda: pair.writer.statistics().connected, "the link's return")
        await pair.send(kind, note(1))
        before = scripts_of(server)
        await tunnel.release()
        await executed(server, before, 1)
        await pair.send(kind, note(2))
        heard = [await pair.next(kind) for _ in range(2)]
        assert heard == [note(1), note(2)]


class TestLostReplies:
    """A command is executed, and its reply is lost."""

    @every_kind
    async def test_sent_again(self, pair: Pair, proxy: Proxy, kind: str) -> None:
        """The sender sends it again, and succeeds; it arrives once."""
        message, mark = marked()
        found = proxy.lose_reply(mark)
        sending = await started(pair.send(kind, message))
        tunnel: Tunnel = await found
        await tunnel.has_dropped.wait()
        assert await pair.next(kind) == message
        assert not sending.done()
        tunnel.cut()
        await sending
        await pair.send(kind, note(1))
        assert await pair.next(kind) == note(1)

    @pytest.mark.parametrize("kind", ["group", "specific"])
    async def test_then_an_empty_server(
        self, pair: Pair, proxy: Proxy, server: EmbeddedServer, kind: str
    ) -> None:
        """
        The server comes back with no log to search. What the member had heard does not come again with the
        resend, and it is told of the server.
        """
        message, mark = marked()
        found = proxy.lose_reply(mark)
        sending = await started(pair.send(kind, message))
        tunnel: Tunnel = await found
        await tunnel.has_dropped.wait()
        assert await pair.next(kind) == message
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        await sending
        assert (await pair.next(kind))["reason"] == "server_changed"
        await pair.send(kind, note(1))
        assert await pair.next(kind) == note(1)


class TestLostTail:
    """The server that answers now lacks the end of what the one before had."""

    async def test_promoted_without_the_tail(self, prefix: str) -> None:
        """
        The log of the new master begins with the member's position and grows past it: only that it is another
        server says that something may be lost, and everybody is told, once.
        """
        with (
            EmbeddedServer(external=False, binary=valkey(), repl_diskless_sync_delay=0) as old,
            EmbeddedServer(external=False, binary=valkey()) as new,
        ):
            async with (
                proxied(old.port) as proxy,
                contract.layers(hosts=[proxy.url], prefix=prefix, on_loss="loss") as make_layer,
            ):
                reader, writer = await make_layer(), await make_layer()
                [member] = await contract.members_of(reader, "room", 1)
                await writer.group_send("room", note(1))
                assert await receive(reader, member) == note(1)
                await reader.health()  # a fence: the position is the log's last entry
                new.command("REPLICAOF", "127.0.0.1", old.port)
                await eventually(
                    lambda: b"master_link_status:up" in new.command("INFO", "replication"), "the replica"
                )
                new.command("REPLICAOF", "NO", "ONE")
                proxy.deafen()
                await writer.group_send("room", note(2))  # answered, and not replicated
                before = reader.statistics().reconnects
                proxy.switch(new.port)
                await eventually(lambda: reader.statistics().reconnects > before + 1, "the reconnect")
                await eventually(lambda: reader.statistics().connected, "the reconnect")
                await writer.group_send("room", note(3))
                told, heard = await receive_many(reader, member, 2)
                assert told == {"type": "loss", "reason": "server_changed", "groups": ["room"]}
                assert heard == note(3)


class TestTwoServers:
    """The connections of a session lead to two servers."""

    async def test_commands_at_the_new_master(self, prefix: str) -> None:
        """
        The old master follows the new one too late, and its subscribers miss what was published meanwhile. Its
        fences arrive through the replication. The connection for pushes follows that for commands all the same.
        """
        with (
            EmbeddedServer(external=False, binary=valkey(), repl_diskless_sync_delay=0) as old,
            EmbeddedServer(external=False, binary=valkey()) as new,
        ):
            async with (
                proxied(old.port) as proxy,
                contract.layers(hosts=[proxy.url], prefix=prefix, on_loss="loss") as make_layer,
            ):
                reader = await make_layer()
                [member] = await contract.members_of(reader, "room", 1)
                new.command("REPLICAOF", "127.0.0.1", old.port)
                await eventually(
                    lambda: b"master_link_status:up" in new.command("INFO", "replication"), "the replica"
                )
                await reader.health()  # a fence: the position is the log's last entry
                new.command("REPLICAOF", "NO", "ONE")
                writer = await make_layer(hosts=[new.url])
                proxy.target = new.port
                assert proxy.cut("commands") == 1
                await writer.group_send("room", note(1))
                old.command("REPLICAOF", "127.0.0.1", new.port)
                heard = await receive_many(reader, member, 2)
                assert note(1) in heard
                assert {"type": "loss", "reason": "server_changed", "groups": ["room"]} in heard
                assert reader.statistics().told == {"server_changed": 1}


class TestQuietGroups:
    """Positions where nothing arrives."""

    async def test_no_false_alarm(self, make_layer: MakeLayer, server: EmbeddedServer, proxy: Proxy) -> None:
        """
        A member of a quiet group shares its log with a busy one, which trims everything the member ever saw. When
        its connection is lost, nothing was: it is told nothing.
        """
        config = {"partitions": 1, "recovery": {"seconds": 60, "messages": 100}}
        reader = await make_layer(hosts=[proxy.url], **config)
        writer = await make_layer(**config)
        [member] = await contract.members_of(reader, "quiet", 1)
        await writer.group_send("quiet", note(1))
        assert await receive(reader, member) == note(1)
        for _ in range(5):
            await contract.every(writer.group_send("busy", note(n)) for n in range(100))
        await reader.health()  # as the fence does every few seconds
        before = reader.statistics().reconnects
        proxy.cut("pushes")
        await eventually(lambda: reader.statistics().reconnects > before, "the reconnect")
        await eventually(lambda: reader.statistics().connected, "the reconnect")
        await writer.group_send("quiet", note(2))
        assert await receive(reader, member) == note(2)
        assert reader.statistics().told == {}


class TestDeafListener:
    """The connection for pushes is open and says nothing any more."""

    async def test_found_by_the_fence(
        self, make_layer: MakeLayer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        The fence that does not arrive ends the connection within its deadline, and what was swallowed is read
        from the log, in order.
        """
        fence_every(monkeypatch, 0.3, longest=0.4)
        reader, writer = await make_layer(hosts=[proxy.url]), await make_layer()
        [member] = await contract.members_of(reader, "room", 1)
        loop = asyncio.get_running_loop()
        proxy.deafen()
        began = loop.time()
        await contract.every(writer.group_send("room", note(n)) for n in range(50))
        assert await receive_many(reader, member, 50) == [note(n) for n in range(50)]
        # At most a pause, a deadline and its grace, and the way back; with room for a busy machine.
        assert loop.time() - began < 0.3 * 1.2 + 0.4 * 1.1 + 3.0
        await eventually(lambda: reader.statistics().connected, "the end of the recovery")
        assert reader.statistics().told == {}
        assert reader.statistics().reconnects == 1


class TestBurst:
    """Capacity is for readers that are slow, not for a wire that is fast."""

    @pytest.mark.processes
    async def test_a_thousand_members_of_capacity_100(
        self, make_layer: MakeLayer, server: EmbeddedServer, prefix: str
    ) -> None:
        """32 senders that wait for each answer, 1000 members in a process that does nothing else: 0 dropped."""
        senders, each = 32, 25
        writer = await make_layer()
        reader = PlayerAgent("reader")
        config = json.dumps({"hosts": [server.url], "prefix": prefix, "capacity": 100})
        await reader.start([sys.executable, "-m", "tests.chaos.player", config], PYTHONDEVMODE="")
        try:
            await reader.do("members", "room", 1000, senders * each)

            async def sender() -> None:
                for n in range(each):
                    await writer.group_send("room", note(n))

            await contract.every(sender() for _ in range(senders))
            await reader.do("all_arrived")
            assert (await reader.do("figures"))["dropped"] == {}
            assert await reader.finish_quietly() == []
        finally:
            if reader.process.returncode is None:
                await reader.kill()
