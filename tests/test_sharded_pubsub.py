"""Sharded pub/sub of a real cluster over one connection: subscribe, receive, unsubscribe, and slots that move."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hiredis import ReplyError

from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.bus.resp.replies import is_redirect, moved_to
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError, server_binaries
from tests.contract import eventually
from tests.refusals import PROTECTED, refusing
from tests.wires import Handler, Owner
from tests.wires import no_haste as no_haste


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Pair:
    """A cluster of two primaries. The first one has all slots at the beginning."""

    def __init__(self, binary: str) -> None:
        self.buses = [unused_port(), unused_port()]
        self.nodes = [
            EmbeddedServer(
                external=False, binary=binary, cluster_enabled="yes", cluster_port=bus, **PROTECTED
            )
            for bus in self.buses
        ]

    def start(self) -> None:
        first, second = (node.start() for node in self.nodes)
        first.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        second.command("CLUSTER", "MEET", first.host, first.port, self.buses[0])

    def is_ready(self) -> bool:
        infos = [node.command("CLUSTER", "INFO") for node in self.nodes]
        return all(b"cluster_state:ok" in info and b"cluster_known_nodes:2" in info for info in infos)

    def move(self, topic: str) -> None:
        """Move the slot of a topic, which has no keys, from the first node to the second."""
        first, second = self.nodes
        slot = first.command("CLUSTER", "KEYSLOT", topic)
        old, new = (node.command("CLUSTER", "MYID") for node in self.nodes)
        second.command("CLUSTER", "SETSLOT", slot, "IMPORTING", old)
        first.command("CLUSTER", "SETSLOT", slot, "MIGRATING", new)
        second.command("CLUSTER", "SETSLOT", slot, "NODE", new)
        first.command("CLUSTER", "SETSLOT", slot, "NODE", new)


@pytest.fixture(scope="module", params=server_binaries(), ids=["first", "second"][: len(server_binaries())])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    version = subprocess.run([request.param, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.partition("v=")[2].partition(".")[0]) < 7:
        pytest.skip("sharded pub/sub begins with Redis 7")
    pair = Pair(request.param)
    try:
        pair.start()
        asyncio.run(eventually(pair.is_ready, "the cluster"))
        yield pair
    finally:
        for node in pair.nodes:
            node.stop()


class Wires:
    """Connections to the nodes of a pair, the handler of the one for pushes, and that one's replies."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pair = pair
        self._monkeypatch = monkeypatch
        self.handler = Handler()
        self.owner = Owner()
        #: All replies that came to commands of the connection for pushes, errors by their first word.
        self.replies: list[Any] = []
        self._open: list[WireProtocol] = []

    async def commands(self, index: int = 0) -> WireProtocol:
        return await self._connect(WireProtocol(owner=self.owner), index)

    async def pushes(self, index: int = 0) -> WireProtocol:
        wire = WireProtocol(owner=self.owner, messages=self.handler)
        answer = wire.pipeline.answer

        def note(reply: Any) -> None:
            self.replies.append(str(reply).split()[0] if isinstance(reply, ReplyError) else reply)
            answer(reply)

        self._monkeypatch.setattr(wire.pipeline, "answer", note)
        return await self._connect(wire, index)

    async def _connect(self, wire: WireProtocol, index: int) -> WireProtocol:
        node = self._pair.nodes[index]
        await asyncio.get_running_loop().create_connection(lambda: wire, node.host, node.port)
        self._open.append(wire)
        return wire

    async def close(self) -> None:
        await asyncio.gather(*(wire.close() for wire in self._open))


@pytest.fixture
async def wires(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wires]:
    wires = Wires(pair, monkeypatch)
    yield wires
    await wires.close()
    assert set(wires.owner.lost) == {None}


@pytest.fixture
def topics(prefix: str) -> list[str]:
    """Topics of one slot, which is that of this test alone."""
    return [f"{{{prefix}}}:{name}" for name in ("room", "inbox")]


async def test_subscribe_and_unsubscribe(wires: Wires, topics: list[str]) -> None:
    """Messages arrive between the confirmation and the end. The last pong has no array around it."""
    wire, commands = await wires.pushes(), await wires.commands()
    room, inbox = (topic.encode() for topic in topics)
    assert await wire.call("SSUBSCRIBE", room) == [b"ssubscribe", room, 1]
    assert await wire.call("SSUBSCRIBE", inbox) == [b"ssubscribe", inbox, 2]
    for number in range(100):
        commands.call("SPUBLISH", room, number)
    assert await commands.call("SPUBLISH", room, "last") == 1
    assert await wire.sunsubscribe(room) == [b"pong", room]
    assert wires.handler.seen == [(room, str(number).encode()) for number in [*range(100), "last"]]
    assert wires.handler.unsubscribed == [room]
    assert await commands.call("SPUBLISH", room, "nobody") == 0
    assert await wire.sunsubscribe(inbox) == inbox
    # Not subscribed to: the server confirms it nevertheless.
    assert await wire.sunsubscribe(room) == room
    assert wires.handler.unsubscribed == [room, inbox, room]


async def test_slot_moves(pair: Pair, wires: Wires, topics: list[str]) -> None:
    """The subscription ends unasked, after all messages. MOVED says where to subscribe."""
    wire, commands = await wires.pushes(), await wires.commands()
    room = topics[0].encode()
    await wire.call("SSUBSCRIBE", room)
    replies = [commands.call("SPUBLISH", room, number) for number in range(100)]
    assert await asyncio.gather(*replies) == [1] * 100
    pair.move(topics[0])
    await eventually(lambda: wires.handler.unsubscribed, "the end of the subscription")
    assert [payload for _, payload in wires.handler.seen] == [b"%d" % number for number in range(100)]
    assert wire.pending == 0
    with pytest.raises(ReplyError) as caught:
        await wire.call("SSUBSCRIBE", room)
    target = pair.nodes[1]
    slot = target.command("CLUSTER", "KEYSLOT", room)
    assert is_redirect(caught.value)
    assert moved_to(caught.value) == (slot, target.host, target.port)
    assert await wire.sunsubscribe(room) == room
    assert wires.replies[-1] == room
    # Both commands are redirected. Redis 8 confirms the end of a subscription that it no longer has instead.
    is_redirected = wires.replies.count("MOVED") == 2
    assert wires.handler.unsubscribed == [room] * (1 if is_redirected else 2)
    other = await wires.pushes(1)
    assert await other.call("SSUBSCRIBE", room) == [b"ssubscribe", room, 1]


@pytest.mark.parametrize("is_last", [True, False])
async def test_slot_moves_under_a_sunsubscribe(
    pair: Pair, wires: Wires, topics: list[str], is_last: bool
) -> None:
    """SUNSUBSCRIBE of a topic whose slot has moved: the commands around it get their own replies."""
    wire = await wires.pushes()
    room, inbox = (topic.encode() for topic in topics)
    stays = b"another slot:" + room[1:].replace(b"}", b"")
    if not is_last:
        await wire.call("SSUBSCRIBE", stays)
    for topic in (room, inbox):
        await wire.call("SSUBSCRIBE", topic)
    del wires.replies[:]
    transport = wire.transport
    assert transport is not None
    transport.pause_reading()
    pair.move(topics[0])
    first = wire.call("PING", "first")
    futures = [wire.sunsubscribe(topic) for topic in (room, inbox)]
    last = wire.call("PING", "last")
    transport.resume_reading()
    assert await last == (b"last" if is_last else [b"pong", b"last"])
    first_reply, *pongs = [each.result() for each in (first, *futures)]
    assert first_reply == (b"first" if is_last else [b"pong", b"first"])
    assert pongs == [topic if is_last else [b"pong", topic] for topic in (room, inbox)]
    assert [reply for reply in wires.replies if reply != "MOVED"] == [first_reply, *pongs, last.result()]
    # Redis 8 redirects neither of the two commands.
    assert wires.replies.count("MOVED") in (0, 2)
    assert set(wires.handler.unsubscribed) == {room, inbox}
    if not is_last:
        assert await wire.sunsubscribe(stays) == stays


async def test_server_that_cannot_save(pair: Pair, wires: Wires, topics: list[str]) -> None:
    """It refuses the PING and not SUNSUBSCRIBE: the future has the error, and all later replies are right."""
    wire = await wires.pushes()
    room, inbox = (topic.encode() for topic in topics)
    await wire.call("SSUBSCRIBE", room)
    with refusing(pair.nodes[0], "MISCONF"):
        future, last = wire.sunsubscribe(room), wire.call("SSUBSCRIBE", inbox)
        with pytest.raises(ReplyError, match="MISCONF"):
            await future
        assert await last == [b"ssubscribe", inbox, 1]
    assert wires.handler.unsubscribed == [room]


@pytest.mark.parametrize("command", ["ping", "sunsubscribe"])
async def test_user_without_the_command(pair: Pair, wires: Wires, topics: list[str], command: str) -> None:
    """The refusal of either command leaves all later replies right."""
    user = f"no_{command}"
    pair.nodes[0].command("ACL", "SETUSER", user, "on", ">secret", "~*", "&*", "+@all", f"-{command}")
    wire = await wires.pushes()
    await wire.call("AUTH", user, "secret")
    room, inbox = (topic.encode() for topic in topics)
    await wire.call("SSUBSCRIBE", room)
    future, last = wire.sunsubscribe(room), wire.call("SSUBSCRIBE", inbox)
    if command == "ping":
        with pytest.raises(ReplyError, match="NOPERM"):
            await future
        assert await last == [b"ssubscribe", inbox, 1]
        assert wires.handler.unsubscribed == [room]
    else:
        assert await future == [b"pong", room]
        assert await last == [b"ssubscribe", inbox, 2]
        assert wires.handler.unsubscribed == []


async def test_busy_server(pair: Pair, wires: Wires, topics: list[str]) -> None:
    """While a script runs for too long, both commands are refused: all later replies are right."""
    node = pair.nodes[0]
    wire, commands = await wires.pushes(), await wires.commands()
    room, inbox = (topic.encode() for topic in topics)
    await wire.call("SSUBSCRIBE", room)
    node.command("CONFIG", "SET", "lua-time-limit", 1)
    script = commands.call("EVAL", "while true do end", 0)

    def is_busy() -> bool:
        try:
            node.command("PING")
        except EmbeddedServerError as error:
            return "BUSY" in str(error)
        return False

    try:
        await eventually(is_busy, "the script")
        with pytest.raises(ReplyError, match="BUSY"):
            await wire.sunsubscribe(room)
    finally:
        node.command("SCRIPT", "KILL")
    with pytest.raises(ReplyError, match="killed"):
        await script
    assert await wire.call("SSUBSCRIBE", inbox) == [b"ssubscribe", inbox, 2]
    assert await wire.sunsubscribe(room) == [b"pong", room]
