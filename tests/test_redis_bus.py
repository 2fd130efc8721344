"""RedisBus on servers that answer badly, and on one that answers well."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from channels_asyncq.bus.redis.leasing import LeaseKeeper
from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from channels_asyncq.messages.envelopes import CONTROL
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.buses import (
    COMMAND_OF,
    LOADING,
    NOAUTH,
    NOPERM,
    NOREPLICAS,
    ODD,
    OOM,
    PAYLOAD,
    READONLY,
    MakeOwner,
    Owner,
    calls_of,
    each_call,
    required,
    send_some,
    waited_for,
)
from tests.contract import eventually, every, started
from tests.resp_server import Answer, RespServer, error


@each_call
async def test_unserving(owner: Owner, server: RespServer, call: str) -> None:
    """A server that is there and cannot serve is left and tried again: the call succeeds when it can."""
    for answer in (LOADING, READONLY, NOAUTH, error("MASTERDOWN Link with MASTER is down")):
        server.script(COMMAND_OF[call], answer)
        await every([owner.calls()[call]()])
    [link] = owner.bus.connections.links()
    assert link.reconnects >= 4


@each_call
@pytest.mark.parametrize(
    "answer",
    [OOM, error("MISCONF Redis is configured to save"), NOREPLICAS, error("BUSY Redis is busy")],
    ids=["OOM", "MISCONF", "NOREPLICAS", "BUSY"],
)
async def test_refused_for_now(owner: Owner, server: RespServer, call: str, answer: Answer) -> None:
    """A server that refuses for want of memory or the like: LayerUnavailable with its words, at once."""
    server.script(COMMAND_OF[call], answer)
    with pytest.raises(LayerUnavailable, match=r"OOM|MISCONF|NOREPLICAS|BUSY") as raised:
        await every([owner.calls()[call]()])
    assert raised.value.address.startswith("redis://127.0.0.1:") and str(server.port) in str(raised.value)
    await every([owner.calls()[call]()])
    assert owner.events == ["up"]


@each_call
async def test_forbidden(owner: Owner, server: RespServer, call: str) -> None:
    """A user without permission is told so, with the pattern that it needs."""
    server.script(COMMAND_OF[call], NOPERM)
    with pytest.raises(ChannelLayerError, match=r"NOPERM.*Grant the user 'default' &t\d+x\d+:\*") as raised:
        await every([owner.calls()[call]()])
    assert not isinstance(raised.value, LayerUnavailable)
    assert owner.events == ["up"]


@each_call
async def test_another_error(owner: Owner, server: RespServer, call: str) -> None:
    """Any other error reply is a ChannelLayerError with the server's words and address; the link stays."""
    server.script(COMMAND_OF[call], ODD)
    with pytest.raises(ChannelLayerError, match="refused: ERR something that nobody expects"):
        await every([owner.calls()[call]()])
    await every([owner.calls()[call]()])
    assert owner.events == ["up"]


@pytest.mark.parametrize("call", ["group_send", "publish", "push"])
@pytest.mark.parametrize(
    "answer",
    [resp_server.half(closes=True), resp_server.close(), resp_server.half(), resp_server.silence()],
    ids=["half, closed", "closed", "half", "silence"],
)
async def test_no_answer_to_a_send(owner: Owner, server: RespServer, call: str, answer: Answer) -> None:
    """A send that was written and not answered is sent again, the same bytes, on the next connection."""
    server.script(COMMAND_OF[call], answer)
    before = len(server.received(COMMAND_OF[call]))
    await every([owner.calls()[call]()])
    first, second = server.received(COMMAND_OF[call])[before : before + 2]
    assert first == second
    await owner.up(2)
    assert server.real.command("LLEN", owner.topics.queue("jobs").topic.name) == (call == "push")


@pytest.mark.parametrize("call", ["group_send", "publish", "push"])
@pytest.mark.parametrize("recovery", [None, {"seconds": 10}])
async def test_no_answer_ever(
    make_owner: MakeOwner, server: RespServer, call: str, recovery: dict[str, int] | None
) -> None:
    """If the server does not come back in time either, nobody knows: DeliveryUnknown, with its address."""
    owner = await make_owner(server.url, recovery=recovery)
    await owner.up()
    port, before = server.port, len(server.commands)
    server.always("EVALSHA", resp_server.silence())
    server.always("PUBLISH", resp_server.silence())
    sending = await started(waited_for(owner.calls()[call]()))
    await eventually(lambda: len(server.commands) > before, "the arrival of the command")
    await server.stop()
    with pytest.raises(DeliveryUnknown, match=str(port)):
        await every([sending])


@pytest.mark.parametrize("call", ["add_member", "discard_member", "flush"])
@pytest.mark.parametrize(
    "answer",
    [resp_server.half(closes=True), resp_server.silence(executes=False)],
    ids=["half, closed", "silence"],
)
async def test_no_answer_to_what_can_be_repeated(
    owner: Owner, server: RespServer, call: str, answer: Answer
) -> None:
    """What does no harm when it is done twice is sent again."""
    server.script(COMMAND_OF[call], answer)
    before = len(server.received(COMMAND_OF[call]))
    await every([owner.calls()[call]()])
    assert len(server.received(COMMAND_OF[call])) >= before + 2


async def test_scripts_are_forgotten(owner: Owner, server: RespServer) -> None:
    """NOSCRIPT is no loss: the scripts are loaded and the command is sent again, for waiting and other calls."""
    server.real.command("SCRIPT", "FLUSH")
    await every([owner.push("jobs", PAYLOAD)])
    server.real.command("SCRIPT", "FLUSH")
    assert await owner.pop(1) == PAYLOAD
    server.real.command("SCRIPT", "FLUSH")
    given = owner.bus.queues.give_back("jobs", 1)
    assert given is not None
    await every([given])
    assert await owner.pop(2) == PAYLOAD
    assert owner.events == ["up"]


@pytest.mark.parametrize("call", ["group_send", "push", "add_member", "pop", "give_back"])
async def test_scripts_may_not_be_loaded_any_more(make_owner: MakeOwner, prefix: str, call: str) -> None:
    """Without the right to load scripts, and without scripts, each call ends and says what right is missing."""
    user = f"site on >pw ~{prefix}:* &{prefix}:* +@all"
    with EmbeddedServer(external=False, user=["default on nopass ~* &* +@all", user]) as server:
        owner = await make_owner(f"redis://site:pw@127.0.0.1:{server.port}/0", send_timeout=2.0)
        await owner.up()
        server.command("ACL", "SETUSER", "site", "-script|load")
        server.command("SCRIPT", "FLUSH")
        server.command("CONFIG", "RESETSTAT")
        asked: dict[str, Callable[[], Awaitable[object]]] = {
            "pop": lambda: required(owner.bus.queues.pop("jobs", 1)),
            "give_back": lambda: required(owner.bus.queues.give_back("jobs", 1)),
        }
        make_call = (owner.calls() | asked)[call]
        with pytest.raises((ChannelLayerError, ConnectionError), match=r"NOSCRIPT.*script\|load") as raised:
            await every([make_call()])
        assert not isinstance(raised.value, LayerUnavailable)
        for _ in range(10):
            with pytest.raises((ChannelLayerError, ConnectionError), match=r"script\|load"):
                await every([make_call()])
        assert calls_of(server, "evalsha") < 40
        assert calls_of(server, "script|load", "rejected_calls") < 40
        assert owner.events == ["up"]
        server.command("ACL", "SETUSER", "site", "+script|load")

        async def is_served() -> bool:
            try:
                await make_call()
            except (ChannelLayerError, ConnectionError):
                return False
            return True

        while await every([is_served()]) != [True]:
            pass


@pytest.mark.parametrize("call", ["group_send", "push", "add_member", "pop", "give_back"])
async def test_scripts_are_missing_however_often_they_are_loaded(
    owner: Owner, server: RespServer, call: str
) -> None:
    """A script that is missing again after each loading is an error, and no endless repeating."""
    server.always("EVALSHA", error("NOSCRIPT No matching script."))
    before = len(server.commands)
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "pop": lambda: required(owner.bus.queues.pop("jobs", 1)),
        "give_back": lambda: required(owner.bus.queues.give_back("jobs", 1)),
    }
    with pytest.raises((ChannelLayerError, ConnectionError), match=r"NOSCRIPT.*SCRIPT FLUSH"):
        await every([(owner.calls() | asked)[call]()])
    assert len(server.commands) - before < 50
    server.restore()
    await every([(owner.calls() | asked)[call]()])


async def test_many_commands_miss_their_script(owner: Owner, server: RespServer) -> None:
    """The scripts are loaded once for all of them."""
    before = len(server.received("SCRIPT"))
    server.real.command("SCRIPT", "FLUSH")
    await every([asyncio.gather(*(owner.push(f"jobs.{number}", PAYLOAD) for number in range(50)))])
    assert len(server.received("SCRIPT")) - before == len(list(Scripts.of(None)))


async def test_closed_with_unwritten_sends(make_owner: MakeOwner, server: RespServer) -> None:
    """What was not written when the bus is closed, or cut off, fails; nobody waits, and no task is left."""
    for is_cut_off in (False, True):
        owner = await make_owner(server.url)
        await owner.up()
        [node] = owner.bus.nodes
        assert node.commands.wire is not None
        node.commands.wire.pause_writing()
        node.commands.wire.pipeline.has_capacity = True
        answers = asyncio.gather(*send_some(owner, "room", b"1", b"2"), return_exceptions=True)
        if is_cut_off:
            node.abort()
        else:
            await owner.bus.close()
        [results] = await every([answers])
        assert [type(result) for result in results] == [LayerClosed] * 2
        assert not [task for task in asyncio.all_tasks() if "sending again" in task.get_name()]


async def test_refused_when_it_is_sent_again(owner: Owner, server: RespServer) -> None:
    """What was not answered, and is refused on the next connection, may have been executed: nobody knows."""
    server.script("EVALSHA", resp_server.half(closes=True), error("NOSCRIPT No matching script."))
    with pytest.raises(DeliveryUnknown, match="refused when it was sent again: NOSCRIPT"):
        await every([owner.group_send("room", PAYLOAD, ())])
    assert await every([owner.group_send("room", PAYLOAD, ())]) == [None]


async def test_unserving_when_it_is_sent_again(owner: Owner, server: RespServer) -> None:
    """The same of a server that cannot serve: that connection is given up as well."""
    server.script("EVALSHA", resp_server.half(closes=True), READONLY)
    with pytest.raises(DeliveryUnknown, match="refused when it was sent again: READONLY"):
        await every([owner.group_send("room", PAYLOAD, ())])
    await owner.up(3)
    assert await every([owner.group_send("room", PAYLOAD, ())]) == [None]


async def test_two_hosts(make_owner: MakeOwner, server: RespServer, own_redis_server: EmbeddedServer) -> None:
    """A name's partition decides its host, for topics, lists and keys; up means all; flush reaches all."""
    async with RespServer(own_redis_server) as other:
        owner = await make_owner([server.url, other.url])
        await owner.up()
        queues = [owner.topics.queue(f"jobs{number}").topic for number in range(16)]
        for number in range(16):
            group = f"room{number}"
            topic = await owner.join(group)
            await owner.group_send(group, PAYLOAD, ())
            await owner.push(f"jobs{number}", PAYLOAD)
            await owner.bus.members.add(group, "jobs")
            host = (server, other)[topic.partition % 2]
            assert (topic.name,) in host.received("SUBSCRIBE")
        await eventually(lambda: len(owner.arrived) == 16, "all messages")
        for host in (server, other):
            commands = host.received("EVALSHA")
            pushed = {queue.name for queue in queues if any(queue.name in command for command in commands)}
            assert pushed == {queue.name for queue in queues if (server, other)[queue.partition % 2] is host}
            assert pushed and [host.real.command("LLEN", name) for name in pushed] == [1] * len(pushed)
        await owner.bus.flush()
        for host in (server, other):
            assert host.real.command("KEYS", f"{owner.options.prefix}:0:queue:*") == []
            assert host.real.command("KEYS", f"{owner.options.prefix}:0:members:*") == []
        await other.stop()
        await eventually(lambda: owner.events == ["up", "down"], "the loss of a host")
        assert [link.state for link in owner.bus.connections.links()] == ["connected", "connecting"]


async def test_close(make_owner: MakeOwner, server: RespServer) -> None:
    """Closed: connections end, nobody is told of a loss, calls are refused; a second close is fine."""
    owner = await make_owner(server.url)
    await owner.up()
    await owner.bus.close()
    await owner.bus.close()
    await eventually(lambda: not server.connections, "the end of the connections")
    assert owner.events == ["up"] and [link.state for link in owner.bus.connections.links()] == ["closed"]
    for name, call in owner.calls().items():
        with pytest.raises(LayerClosed):
            await call()
        assert name


async def test_let_go(make_owner: MakeOwner, server: RespServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose loop has ended, and whose connections were released, says that they are closed."""
    owner = await make_owner(server.url)
    await owner.up()
    with monkeypatch.context() as patch:
        patch.setattr(Node, "transports", lambda node: [])  # this loop still needs them
        owner.bus.let_go()
    assert [link.state for link in owner.bus.connections.links()] == ["closed"]


@pytest.mark.parametrize("answer", [LOADING, resp_server.silence()], ids=["LOADING", "silence"])
async def test_close_while_connecting(make_owner: MakeOwner, server: RespServer, answer: Answer) -> None:
    """Closing does not wait for a connection that is being made; who waits for it is told; no task is left."""
    server.always("ROLE", answer)
    owner = await make_owner(server.url, send_timeout=20)
    waiting = await started(waited_for(owner.group_send("room", PAYLOAD, ())))
    checked = await started(owner.bus.connections.checked(owner.topics.queue("jobs").topic))
    await eventually(lambda: server.received("ROLE"), "a connection under way")
    async with asyncio.timeout(20):
        await owner.bus.close()
    for one in (waiting, checked):
        with pytest.raises(LayerClosed):
            await one
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_on_a_real_server(make_owner: MakeOwner, redis_url: str) -> None:
    """Everything a session asks of a bus, on Valkey or Redis."""
    owner, other = await make_owner(redis_url), await make_owner(redis_url)
    await every([owner.up(), other.up()])
    topic = await owner.join()
    await other.join()
    assert await other.bus.pubsub.publish(topic, "somebody", PAYLOAD, CONTROL) == 2
    await other.bus.members.add("room", "jobs")
    assert await other.group_send("room", PAYLOAD, ("a!b",)) == [b"jobs"]
    await other.bus.members.discard("room", "jobs")
    assert not await other.group_send("room", PAYLOAD, ())
    await eventually(lambda: len(owner.arrived) == len(other.arrived) == 3, "everything")
    for one in (owner, other):
        envelopes = [envelope for _, envelope in one.arrived]
        assert [envelope.target for envelope in envelopes] == ["somebody", "room", "room"]
        assert [envelope.flags for envelope in envelopes] == [CONTROL, 0, 0]
        assert [envelope.excluded for envelope in envelopes] == [(), ("a!b",), ()]
        assert {envelope.session_id.hex() for envelope in envelopes} == {other.session_id}
        assert [envelope.seq for envelope in envelopes] == [1, 2, 3]


async def test_closed_while_it_comes_up(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus whose connections come up in the turn in which it is closed sends no fences, and is freed."""
    leave = LeaseKeeper.leave

    async def leave_when_it_is_up(keeper: LeaseKeeper) -> None:
        await eventually(lambda: cast(Node, keeper._node).is_up, "both connections")
        await leave(keeper)

    monkeypatch.setattr(LeaseKeeper, "leave", leave_when_it_is_up)
    owner = Owner(redis_url, prefix)
    owner.bus.start()
    await owner.bus.close()
    reference = weakref.ref(owner)
    del owner
    await eventually(lambda: gc.collect() >= 0 and reference() is None, "the end of the bus")
