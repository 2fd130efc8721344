"""Messages to groups and sessions, as a bus writes them: shared commands, numbers, order."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable

import pytest

from channels_asyncq.exceptions import ChannelLayerError, DeliveryUnknown, LayerUnavailable
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL
from channels_asyncq.messages.framing import unpack
from channels_asyncq.messages.sealing import TOPIC, place
from channels_asyncq.settings.keys import Recovery
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.buses import (
    LOADING,
    ODD,
    OOM,
    PAYLOAD,
    READONLY,
    MakeOwner,
    Owner,
    bodies,
    entries_in,
    envelopes_in,
    payload_of,
    send_some,
    sequence,
    waited_for,
)
from tests.chaos.proxy import proxied
from tests.contract import eventually, every, started
from tests.resp_server import Answer, RespServer, error


async def test_sends_of_one_turn(owner: Owner, server: RespServer) -> None:
    """
    The first is alone and leaves at once; those that follow in the same turn share a command for each topic, in
    order, and each sender has its answer.
    """
    before = len(server.received("EVALSHA"))
    sends = (
        send_some(owner, "room", b"1", b"2") + send_some(owner, "hall", b"a") + send_some(owner, "room", b"3")
    )
    assert await every(sends) == [None] * 4
    commands = server.received("EVALSHA")[before:]
    assert bodies(commands) == [[b"1"], [b"2", b"3"], [b"a"]]
    assert [envelope.target for envelope in envelopes_in(commands[1])] == ["room"] * 2


@pytest.mark.parametrize("recovery", [None, {"seconds": 10, "message_bytes": 16_384}])
async def test_numbers_go_by_the_writes(
    make_owner: MakeOwner, server: RespServer, recovery: dict[str, int] | None
) -> None:
    """However topics, large messages and those of sessions mix: a stream's numbers grow with the commands."""
    owner = await make_owner(server.url, recovery=recovery, partitions=1, send_timeout=20)
    await owner.up()
    inbox = owner.topics.inbox("00" * 8)
    large = bytes(20_000)
    before = len(server.commands)
    answers: list[Awaitable[object]] = []
    for number in range(40):
        group = f"room{number % 3}"
        answers += send_some(owner, group, large if number % 7 == 3 else b"%d" % number)
        if number % 5 == 0:
            # What is posted has no answer of its own; it is written before the next, which has.
            owner.bus.pubsub.post(inbox, "x", PAYLOAD, CONTROL)
            answers.append(owner.bus.pubsub.publish(inbox, "x", PAYLOAD, CONTROL))
    await every(answers)
    streams: dict[bool, list[int]] = {True: [], False: []}
    for name, *arguments in server.commands[before:]:
        if name in ("EVALSHA", "PUBLISH"):
            is_logged = name == "EVALSHA" and recovery is not None
            streams[is_logged] += [envelope.seq for envelope in envelopes_in(tuple(arguments))]
    for numbers in streams.values():
        assert numbers == list(range(1, len(numbers) + 1))
    assert sum(map(len, streams.values())) == 40 + 2 * 8


@pytest.mark.parametrize(
    ("recovery", "shares"), [({"seconds": 10}, [[1], [3, 1], [1], [2]]), (None, [[1], [4], [1], [2]])]
)
async def test_sends_that_share_are_small(
    make_owner: MakeOwner, server: RespServer, recovery: dict[str, int] | None, shares: list[list[int]]
) -> None:
    """What shares a command has 4 KiB in all, 1 in each entry of the log; what is larger goes alone."""
    owner = await make_owner(server.url, recovery=recovery, send_timeout=20)
    await owner.up()
    payloads = [b"%d" % number + bytes(300) for number in range(8)]
    payloads[5] = bytes(5000)
    before = len(server.received("EVALSHA"))
    await every(send_some(owner, "room", *payloads))
    commands = server.received("EVALSHA")[before:]
    assert [payload for command in bodies(commands) for payload in command] == payloads
    assert [[len(unpack(entry)) for entry in entries_in(command)] for command in commands] == shares
    # However small they are, and one that is larger than an entry should be has one of its own.
    many = [b"x"] * 1000 + [b"%d" % number + bytes(97 * number % 2000) for number in range(1000)]
    before = len(server.received("EVALSHA"))
    await every(send_some(owner, "room", *many))
    commands = server.received("EVALSHA")[before:]
    assert [payload for command in bodies(commands) for payload in command] == many
    most = 4096 if recovery is None else 1024
    for command in commands:
        entries = entries_in(command)
        assert len(envelopes_in(command)) <= 16
        assert len(entries) == 1 or recovery is not None
        assert all(len(entry) <= most or len(unpack(entry)) == 1 for entry in entries)
    assert len(commands) < 1000


async def test_a_way_to_a_channel(make_owner: MakeOwner, server: RespServer) -> None:
    """What sends more than once to a channel shares commands with the sends beside it, and encrypts."""
    for keys in ([], ["key"]):
        owner = await make_owner(server.url, symmetric_encryption_keys=keys)
        await owner.up()
        ways = [owner.channel_route(f"specific.{'00' * 8}!{number}") for number in range(2)]
        before = len(server.received("PUBLISH"))
        await every([ways[number % 2].send(PAYLOAD) for number in range(9)])
        commands = server.received("PUBLISH")[before:]
        where = place(TOPIC, owner.topics.inbox("00" * 8).name)
        sent = [envelopes_in(command, owner.bus._seal, where) for command in commands]
        assert list(map(len, sent)) == [1, 8]
        targets = [envelope.target[-1] for envelopes in sent for envelope in envelopes]
        assert targets == list("010101010")
        assert all((PAYLOAD in command[-1]) is not bool(keys) for command in commands)
        await owner.bus.close()


async def test_what_sessions_say_is_not_shared(owner: Owner, server: RespServer) -> None:
    """Messages between sessions go one by one. What joins others goes where the first of them is."""
    inbox = owner.topics.inbox("00" * 8)
    before = len(server.received("PUBLISH"))
    way = owner.channel_route(f"specific.{'00' * 8}!x")
    sends = [
        owner.bus.pubsub.publish(inbox, "x", b"%d" % number, CONTROL)
        if number % 3 == 1
        else way.send(b"%d" % number)
        for number in range(7)
    ]
    await every(sends)
    commands = server.received("PUBLISH")[before:]
    assert bodies(commands) == [[b"0"], [b"1"], [b"2", b"3", b"5", b"6"], [b"4"]]


async def test_one_of_them_is_cancelled(owner: Owner, server: RespServer) -> None:
    """Who gives up takes nobody along: the others have their answers."""
    first, second, third = [
        asyncio.ensure_future(answer) for answer in send_some(owner, "room", b"1", b"2", b"3")
    ]
    second.cancel()
    assert await every([first, third]) == [None, None]
    assert second.cancelled()


@pytest.mark.parametrize(
    "answer",
    [error("NOSCRIPT No matching script."), LOADING, resp_server.half(closes=True)],
    ids=["NOSCRIPT", "LOADING", "half, closed"],
)
async def test_shared_and_not_executed(owner: Owner, server: RespServer, answer: Answer) -> None:
    """What the server did not execute, or nobody knows, is sent again: all of it, in order, to its senders."""
    topic = await owner.join()
    server.script("EVALSHA", None, answer)
    answers = send_some(owner, "room", b"1", b"2", b"3")
    cancelled = asyncio.ensure_future(answers.pop(1))
    cancelled.cancel()
    await every(answers)
    commands = [command for command in server.received("EVALSHA") if topic.name in command]
    sent = [payload for command in bodies(commands) for payload in command]
    # The one that was given up need not be sent again; all else is, behind what was sent before it.
    assert sent in ([b"1", b"2", b"3", b"3"], [b"1", b"2", b"3", b"2", b"3"])


@pytest.mark.parametrize(
    ("answer", "kind"), [(OOM, LayerUnavailable), (ODD, ChannelLayerError)], ids=["OOM", "ERR"]
)
async def test_shared_and_refused(
    owner: Owner, server: RespServer, answer: Answer, kind: type[Exception]
) -> None:
    """Each sender has an error of its own."""
    server.script("EVALSHA", None, answer)
    answers = send_some(owner, "room", b"1", b"2", b"3")
    [[first, second, third]] = await every([asyncio.gather(*answers, return_exceptions=True)])
    assert first is None and type(second) is type(third) is kind
    assert second is not third and isinstance(second.__cause__, Exception)


async def test_shared_and_never_answered(make_owner: MakeOwner, server: RespServer) -> None:
    """Each sender is told DeliveryUnknown, or LayerUnavailable if its message was not written."""
    owner = await make_owner(server.url)
    await owner.up()
    server.always("EVALSHA", resp_server.silence())
    written = await started(
        waited_for(asyncio.gather(*send_some(owner, "room", b"1", b"2"), return_exceptions=True))
    )
    await eventually(lambda: len(server.received("EVALSHA")) >= 2, "the arrival of both commands")
    [node] = owner.bus.nodes
    assert node.commands.wire is not None
    node.commands.wire.pause_writing()
    node.commands.wire.pipeline.has_capacity = True
    unwritten = asyncio.gather(*send_some(owner, "room", b"3", b"4"), return_exceptions=True)
    await server.stop()
    results = await every([written, unwritten])
    assert [[type(result) for result in some] for some in results] == [
        [DeliveryUnknown] * 2,
        [LayerUnavailable] * 2,
    ]


async def test_message_larger_than_the_link_carries(
    make_owner: MakeOwner, redis_server: EmbeddedServer
) -> None:
    """A message that needs longer than send_timeout to leave is sent once, and what is behind it follows."""
    async with proxied(redis_server.port) as proxy:
        proxy.narrow()
        owner = await make_owner(proxy.url, send_timeout=1.0)
        await owner.join()
        proxy.delays["up"] = lambda: 0.03
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        await every([owner.group_send("room", large, ()), owner.group_send("room", PAYLOAD, ())])
        proxy.delays["up"] = None
        await eventually(lambda: len(owner.arrived) == 2, "both messages")
        assert [envelope.payload for _, envelope in owner.arrived] == [large, PAYLOAD]
        assert owner.events == ["up"]


async def test_order_after_a_server_that_could_not_serve(owner: Owner, server: RespServer) -> None:
    """What was refused is sent again in its order, and what is sent meanwhile comes behind it."""
    await owner.join()
    server.always("EVALSHA", READONLY)
    payloads = [Codec().encode({"type": "test.note", "n": number}) for number in range(12)]
    sends = send_some(owner, "room", *payloads[:8])
    await eventually(lambda: "down" in owner.events, "the end of the connection")
    sends += [await started(waited_for(send)) for send in send_some(owner, "room", *payloads[8:])]
    server.restore()
    await every(sends)
    await eventually(lambda: len(owner.arrived) == 12, "everything")
    assert [envelope.payload for _, envelope in owner.arrived] == payloads


@pytest.mark.parametrize("then", ["refuses", "executes", "ends"])
async def test_refused_while_others_are_in_flight(owner: Owner, server: RespServer, then: str) -> None:
    """
    What follows on a connection that is given up is awaited, so that the order holds.

    If the server has executed a later message, or the connection ends first, the refused one comes behind it.
    """
    await owner.join()
    before = len(server.received("EVALSHA"))
    answered = asyncio.Event()
    answers = {
        "refuses": dataclasses.replace(READONLY, waits_for=answered),
        "executes": resp_server.after(answered),
        "ends": resp_server.silence(),
    }
    server.script("EVALSHA", READONLY, answers[then])
    payloads = [Codec().encode({"type": "test.note", "n": number}) for number in range(4)]
    [node] = owner.bus.nodes
    wire = node.commands.wire
    assert wire is not None
    wire.pause_reading()
    sends = []
    for number, payload in enumerate(payloads[:2]):
        sends += send_some(owner, "room", payload)
        await eventually(lambda: len(server.received("EVALSHA")) == before + number + 1, "the command")  # noqa: B023
    wire.resume_reading()
    await eventually(lambda: wire.is_retired, "the refusal")
    assert not wire.is_lost and owner.events[-1] == "up"
    # Not to the connection that is given up, and behind the others.
    sends += [await started(waited_for(send)) for send in send_some(owner, "room", *payloads[2:])]
    if then == "ends":
        server.cut()
    answered.set()
    await every(sends)
    await eventually(lambda: len(owner.arrived) == 4, "everything")
    if then != "refuses":
        payloads[:2] = payloads[1], payloads[0]
    assert [envelope.payload for _, envelope in owner.arrived] == payloads


async def test_posted_once(owner: Owner, server: RespServer) -> None:
    """What is posted is not sent again, whatever becomes of it."""
    inbox = owner.topics.inbox("00" * 8)
    server.script("PUBLISH", error("NOSCRIPT or whatever"), resp_server.half(closes=True))
    owner.bus.pubsub.post(inbox, "x", PAYLOAD, CONTROL)
    owner.bus.pubsub.post(inbox, "x", PAYLOAD, CONTROL)
    await owner.up(2)
    owner.bus.pubsub.post(inbox, "x", PAYLOAD, CONTROL)
    await every([owner.bus.pubsub.publish(inbox, "x", PAYLOAD, CONTROL)])
    sent = [unpack(command[-1])[0].seq for command in server.received("PUBLISH") if inbox.name in command]
    assert sent == [1, 2, 3, 4]


async def test_bound_across_connections(make_owner: MakeOwner, server: RespServer) -> None:
    """However often the connection is lost, 1024 messages are without an answer at most."""
    owner = await make_owner(server.url, send_timeout=5.0)
    await owner.up()
    server.always("EVALSHA", resp_server.silence())
    [node] = owner.bus.nodes
    sends = [asyncio.ensure_future(waited_for(send)) for send in send_some(owner, "room", *[PAYLOAD] * 3000)]
    before = len(server.received("EVALSHA"))
    for _ in range(3):
        await eventually(lambda: len(sequence(server, before)) >= 1024, "the messages in flight")  # noqa: B023
        wire = node.commands.wire
        assert wire is not None and not wire.pipeline.has_capacity
        assert sequence(server, before) == list(range(1, 1025))
        before = len(server.received("EVALSHA"))
        server.cut()
    server.restore()
    assert await every(sends) == [None] * 3000
    wire = node.commands.wire
    assert (
        wire is not None
        and wire.pipeline.has_capacity
        and (wire.pending, wire.pipeline.unanswered_bytes) == (0, 0)
    )


@pytest.mark.parametrize("keys", [[], ["key"]], ids=["open", "sealed"])
@pytest.mark.parametrize("most", [1024, 5000, Recovery().message_bytes])
async def test_message_bytes(make_owner: MakeOwner, server: RespServer, keys: list[str], most: int) -> None:
    """
    A message that is as large as `message_bytes`, when encoded, is recovered, whatever shares a command with it.
    Of one that is larger by a byte the log has the header only, and the loss is told.
    """
    config = {
        "recovery": {"message_bytes": most},
        "symmetric_encryption_keys": keys,
        "partitions": 1,
        "send_timeout": 30,  # the confirmation is waited for, however slow this machine is
    }
    receiver, sender = await make_owner(server.url, **config), await make_owner(server.real.url, **config)
    await receiver.up()
    await sender.up()
    topic = await receiver.join()
    sizes = (20, most, most, 20) if most < 2000 else (20, most, 20)
    for extra, losses in ((0, []), (1, [("too_large", {topic.name})])):
        confirms = asyncio.Event()
        server.script("SUBSCRIBE", resp_server.after(confirms))
        [node] = receiver.bus.nodes
        assert node.pushes.wire is not None
        subscribed = len(server.received("SUBSCRIBE"))
        node.pushes.wire.abort(ConnectionResetError("what is sent now is missed"))
        await eventually(lambda: len(server.received("SUBSCRIBE")) > subscribed, "the new connection")  # noqa: B023
        payloads = [payload_of(size + extra) for size in sizes]
        await every(send_some(sender, "room", *payloads))
        log = server.real.command("XRANGE", sender.topics.log(0), "-", "+")
        assert (b"h" in [fields[2] for _, fields in log if fields[0] == b"t"]) is bool(extra)
        receiver.arrived.clear()
        confirms.set()
        whole = [payload for payload in payloads if len(payload) <= most]
        await eventually(lambda: len(receiver.arrived) == len(whole), "what is in the log")  # noqa: B023
        await eventually(lambda: node.pushes.wire is not None, "the end of the recovery")  # noqa: B023
        assert [envelope.payload for _, envelope in receiver.arrived] == whole
        assert receiver.losses == losses
        assert receiver.unreadable == []


async def test_one_of_them_is_unreadable(make_owner: MakeOwner, server: RespServer) -> None:
    """The others arrive; it is told once."""
    owner = await make_owner(server.url, serializer_format="json")
    await owner.up()
    await owner.join()
    good, bad = b'{"type":"test.note"}', b"not a message"
    await every(send_some(owner, "room", good, good, bad, good))
    await eventually(lambda: len(owner.arrived) == 3, "the others")
    assert [envelope.seq for _, envelope in owner.arrived] == [1, 2, 4]
    assert len(owner.unreadable) == 1


async def test_sequence_numbers_follow_the_calls(make_owner: MakeOwner, redis_url: str) -> None:
    """However many send at once, messages arrive in the order of the calls, numbered one by one."""
    owner = await make_owner(redis_url, send_timeout=20)
    await owner.up()
    await owner.join()
    sends = [owner.group_send("room", PAYLOAD, ()) for _ in range(2000)]
    await every([waited_for(send) for send in sends])
    await eventually(lambda: len(owner.arrived) == 2000, "everything")
    assert [envelope.seq for _, envelope in owner.arrived] == list(range(1, 2001))
