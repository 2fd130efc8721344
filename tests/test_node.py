"""A node: setting up its connections, and outages."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq.exceptions import DeliveryUnknown, LayerUnavailable
from tests import resp_server
from tests.buses import (
    GARBAGE,
    LOADING,
    NOPERM,
    PAYLOAD,
    UNKNOWN,
    MakeOwner,
    Owner,
    waited_for,
)
from tests.contract import ended, eventually, every, started, steps
from tests.resp_server import Answer, RespServer, error


@pytest.mark.parametrize("answer", UNKNOWN, ids=["forbidden", "incomplete"])
@pytest.mark.parametrize("known", ["never", "before", "after"])
async def test_server_that_does_not_say_which_it_is(
    make_owner: MakeOwner, server: RespServer, answer: Answer, known: str
) -> None:
    """It is used all the same; at a reconnect it may be another one, whose log lacks the end: that is told."""
    if known != "before":
        server.always("INFO", answer)
    owner = await make_owner(server.url, recovery={}, send_timeout=5.0)
    topic = await owner.join()
    await every([owner.group_send("room", PAYLOAD)])
    assert owner.losses == []
    server.restore()
    if known != "after":
        server.always("INFO", answer)
    for count in range(1, 3):
        for connection in server.connections:
            if connection.is_subscriber:
                connection.abort()
        await owner.up(1 + count)
        expected = 1 if known == "after" else count
        assert owner.losses == [("server_changed", {topic.name})] * expected
    await every([owner.group_send("room", PAYLOAD)])
    await eventually(lambda: len(owner.arrived) == 2, "both messages")


@pytest.mark.parametrize("kind", ["send", "repeatable", "ask"])
@pytest.mark.parametrize("answer", [resp_server.silence(), resp_server.close()], ids=["silence", "closed"])
async def test_server_that_serves_and_never_answers(
    make_owner: MakeOwner, server: RespServer, answer: Answer, kind: str
) -> None:
    """A server that lets everybody in and answers no command: each call ends, and so does each later one."""
    owner = await make_owner(server.url)
    await owner.up()
    server.always("EVALSHA", answer)
    for _ in range(2):
        if kind == "ask":
            asked = None
            while asked is None:
                await eventually(lambda: owner.events.count("up") > owner.events.count("down"))
                asked = owner.bus.queues.pop("jobs", 1)
            with pytest.raises(ConnectionError):
                await every([asked])
        elif kind == "send":
            with pytest.raises((DeliveryUnknown, LayerUnavailable)):
                await every([owner.group_send("room", PAYLOAD, ())])
        else:
            with pytest.raises(LayerUnavailable):
                await every([owner.bus.members.add("lobby", "jobs")])
    server.restore()
    answered: list[object] = []
    while not answered:
        # Within so short a send_timeout a busy machine may not answer.
        with contextlib.suppress(DeliveryUnknown, LayerUnavailable):
            answered = await every([owner.group_send("room", PAYLOAD, ())])
    assert answered == [None]


@pytest.mark.parametrize("command", ["ROLE", "SCRIPT", "SET", "GET", "SUBSCRIBE"])
@pytest.mark.parametrize(
    "answer",
    [LOADING, resp_server.half(closes=True), resp_server.half(), resp_server.silence(), GARBAGE],
    ids=["LOADING", "half, closed", "half", "silence", "garbage"],
)
async def test_a_bad_start(make_owner: MakeOwner, server: RespServer, command: str, answer: Answer) -> None:
    """Whatever the first answer of its kind is while a connection is set up, the next attempt heals it."""
    if command == "SUBSCRIBE" and answer is LOADING:
        command = "*"  # Redis takes subscriptions while it loads
    server.script(command, answer)
    owner = await make_owner(server.url)
    await owner.up()
    await every([owner.join()])
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.arrived, "a message")


async def test_a_replica(make_owner: MakeOwner, server: RespServer) -> None:
    """Only masters are used: a replica is told as the reason, until it is promoted."""
    server.always("ROLE", resp_server.reply([b"slave", b"10.0.0.1", 6379, b"connected", 0]))
    owner = await make_owner(server.url)
    await owner.refused("replica")
    assert owner.bus.connections.links()[0].state == "connecting"
    with pytest.raises(LayerUnavailable, match="it is a replica; only masters are used"):
        await owner.group_send("room", PAYLOAD, ())
    server.restore()
    await owner.up()
    await owner.group_send("room", PAYLOAD, ())


@pytest.mark.parametrize("answer", [NOPERM, error("ERR unknown command 'ROLE'")], ids=["NOPERM", "ERR"])
async def test_no_permission_for_role(make_owner: MakeOwner, server: RespServer, answer: Answer) -> None:
    """A user who may not ask for the role is taken at its word."""
    server.always("ROLE", answer)
    owner = await make_owner(server.url)
    await owner.up()
    await owner.group_send("room", PAYLOAD, ())


async def test_a_layout_that_cannot_be_written(make_owner: MakeOwner, server: RespServer) -> None:
    """If the layout is not there and may not be written, that is the reason."""
    server.always("LEASE", NOPERM)
    owner = await make_owner(server.url)
    await owner.refused("NOPERM")
    with pytest.raises(LayerUnavailable, match="NOPERM"):
        await owner.group_send("room", PAYLOAD, ())
    server.restore()
    await owner.up()


async def test_another_layout(make_owner: MakeOwner, server: RespServer) -> None:
    """ImproperlyConfigured with both layouts, for all who wait, at once; it ends when the other has gone."""
    first = await make_owner(server.url, partitions=8)
    await first.up()
    second = await make_owner(server.url, partitions=4)
    topic = second.topics.group("room").topic
    second.bus.pubsub.subscribe(topic)
    for wait in (
        lambda: second.group_send("room", PAYLOAD, ()),
        lambda: second.bus.connections.checked(topic),
        lambda: second.bus.pubsub.confirmed(topic),
    ):
        with pytest.raises(ImproperlyConfigured, match=r"partitions: 8.*partitions: 4"):
            await every([wait()])
    assert not second.subscribed or second.events == []
    await first.bus.close()
    await second.up()
    await every([second.bus.connections.checked(topic), second.bus.pubsub.confirmed(topic)])


async def test_a_wrong_password(make_owner: MakeOwner, server: RespServer) -> None:
    """LayerUnavailable says what the server said, and not the password."""
    server.always("AUTH", error("WRONGPASS invalid username-password pair or user is disabled."))
    owner = await make_owner(server.url.replace("//", "//:wr0ng@"))
    await owner.refused("password", "WRONGPASS")
    with pytest.raises(LayerUnavailable, match=r"(?i)password|auth") as raised:
        await owner.group_send("room", PAYLOAD, ())
    assert "wr0ng" not in str(raised.value)


async def test_a_server_that_says_nothing(make_owner: MakeOwner, server: RespServer) -> None:
    """A server that accepts connections and never answers is no server; it is found when it wakes up."""
    server.always("*", resp_server.silence())
    owner = await make_owner(server.url)
    with pytest.raises(LayerUnavailable):
        await every([owner.group_send("room", PAYLOAD, ())])
    server.restore()
    await owner.up()


async def test_checked(make_owner: MakeOwner, server: RespServer) -> None:
    """It waits for the server however long that takes, beyond `send_timeout`; cancelling it harms nobody."""
    await server.stop()
    owner = await make_owner(server.url)
    topic = owner.topics.queue("jobs").topic
    waiting = [await started(owner.bus.connections.checked(topic)) for _ in range(3)]
    waiting[0].cancel()
    with pytest.raises(LayerUnavailable):
        await owner.push("jobs", PAYLOAD)
    assert [one.done() for one in waiting] == [True, False, False]
    await server.start()
    await every(waiting[1:])


async def test_waiting_is_over(make_owner: MakeOwner, server: RespServer) -> None:
    """Sends wait `send_timeout` from the loss of the link, then fail, then at once; each with its own error."""
    owner = await make_owner(server.url)
    await owner.up()
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    calls = list(owner.calls().values())
    results = await every([asyncio.gather(*(call() for call in calls), return_exceptions=True)])
    assert [type(result) for result in results[0]] == [LayerUnavailable] * len(calls)
    assert len({id(result) for result in results[0]}) == len(calls)
    for call in calls:
        later = asyncio.ensure_future(call())
        await steps(5)
        assert later.done()
        with pytest.raises(LayerUnavailable):
            await later
    [link] = owner.bus.connections.links()
    assert link.state == "connecting" and link.reason


async def test_a_waiting_send_cancelled(owner: Owner, server: RespServer) -> None:
    """A send that is cancelled while it waits for the link is not sent when it is back."""
    await owner.join()
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    waiting = await started(waited_for(owner.group_send("room", PAYLOAD, ())))
    waiting.cancel()
    await ended(waiting)
    await server.start()
    await owner.up(2)
    await owner.group_send("room", PAYLOAD, ("x!y",))
    await eventually(lambda: owner.arrived, "a message")
    assert [envelope.excluded for _, envelope in owner.arrived] == [("x!y",)]


async def test_one_of_two_links(owner: Owner, server: RespServer) -> None:
    """The loss of one connection of the two is a loss; when it is back, so is the link: told once each."""
    await owner.join()
    for connection in list(server.connections):
        if connection.is_subscriber:
            connection.abort()
    await owner.up(2)
    for connection in list(server.connections):
        if not connection.is_subscriber:
            connection.abort()
    await owner.up(3)
    assert owner.events == ["up", "down", "up", "down", "up"]
    assert owner.bus.connections.links()[0].reconnects == 2
