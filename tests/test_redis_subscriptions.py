"""Topics of a bus: subscribed to across reconnects, and what arrives on them."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq.bus.redis.partition import Reading
from channels_asyncq.exceptions import ChannelLayerError, LayerUnavailable
from channels_asyncq.messages.framing import unpack
from channels_asyncq.slices import Slice
from tests import resp_server
from tests.buses import (
    NOPERM,
    ODD,
    PAYLOAD,
    MakeOwner,
    Owner,
    send_some,
)
from tests.contract import codes, ended, eventually, every, started, time_passes
from tests.resp_server import Answer, RespServer


async def test_held_in_the_middle(owner: Owner, server: RespServer) -> None:
    """Where one of them is not taken the rest waits with it; offered again, each arrives once and in order."""
    topic = await owner.join()
    owner.places = 3
    await every(send_some(owner, "room", *[PAYLOAD] * 6))
    await eventually(lambda: owner.offered == 4, "the one that is not taken")
    assert [envelope.seq for _, envelope in owner.arrived] == [1, 2, 3]
    owner.places = None
    owner.bus.pubsub.resume()
    await eventually(lambda: len(owner.arrived) == 6, "the others")
    assert [(name, envelope.seq) for name, envelope in owner.arrived] == [
        (topic.name, n) for n in range(1, 7)
    ]


async def test_held_between_entries_of_the_log(make_owner: MakeOwner, server: RespServer) -> None:
    """
    What is logged in several entries arrives in one push. If the connection ends while the rest of it is held,
    that is read from the log: each message arrives once and in order.
    """
    owner = await make_owner(server.url, recovery={"seconds": 10}, partitions=1, serializer_format="json")
    await owner.up()
    await owner.join()
    payloads = [b'{"type":"test.note","text":"%s"}' % (b"x" * 300) for _ in range(8)]
    owner.places = 4
    await every(send_some(owner, "room", *payloads))
    await eventually(lambda: owner.offered == 5, "the one that is not taken")
    log = server.real.command("XRANGE", owner.topics.log(0), "-", "+")
    assert [len(unpack(fields[3])) for _, fields in log if fields[0] == b"t"] == [1, 2, 2, 2, 1]
    [node] = owner.bus.nodes
    assert node.pushes.wire is not None
    node.pushes.wire.abort(ConnectionResetError("nothing of it is delivered any more"))
    [partition] = owner.bus.partitions
    await eventually(lambda: partition.reading is Reading.CATCHING_UP and owner.offered > 5, "the log")
    owner.places = None
    owner.bus.pubsub.resume()
    await eventually(lambda: len(owner.arrived) >= 8, "the rest")
    await every(send_some(owner, "room", *payloads))
    await eventually(lambda: len(owner.arrived) >= 16, "what comes after")
    assert [envelope.seq for _, envelope in owner.arrived] == list(range(1, 17))
    assert not owner.losses


@pytest.mark.parametrize(
    "data",
    [
        b"\x01#9999999999999-0 garbage",
        b'\x01#9999999999999-0 {"type":"of.outside"}',
        b"\x01#%d-0 garbage" % 2**64,
    ],
)
async def test_an_unreadable_push_moves_no_position(
    make_owner: MakeOwner, server: RespServer, data: bytes
) -> None:
    """
    Its position may be made up: with one of the future the next messages would not be read from the log, and one
    that no log can have would be refused each time.
    """
    owner = await make_owner(server.url, recovery={"seconds": 10}, partitions=1)
    await owner.up()
    topic = await owner.join()
    [partition] = owner.bus.partitions
    before = partition.position
    server.real.command("PUBLISH", topic.name, data)
    await eventually(lambda: owner.unreadable, "the garbage")
    assert before and partition.position == before
    await every(send_some(owner, "room", PAYLOAD))
    await eventually(lambda: owner.arrived, "a message")
    assert partition.position > before


async def test_subscriptions_are_made_again(owner: Owner, server: RespServer) -> None:
    """After a cut everything wanted is subscribed before the link counts as up; what was given up is not."""
    topics = [await owner.join(group) for group in ("room", "lobby", "left")]
    owner.bus.pubsub.unsubscribe(topics[2])
    server.cut()
    await owner.up(2)
    assert owner.events == ["up", "down", "up"]
    assert [owner.bus.pubsub.is_confirmed(topic) for topic in topics] == [True, True, False]
    assert sorted(owner.subscribed) == sorted(
        [topic.name for topic in topics] + [topics[0].name, topics[1].name]
    )
    await owner.group_send("lobby", PAYLOAD, ())
    await owner.group_send("left", PAYLOAD, ())
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: len(owner.arrived) == 2, "two messages")
    assert [topic for topic, _ in owner.arrived] == [topics[1].name, topics[0].name]


async def test_the_last_word_through_a_cut(owner: Owner, server: RespServer) -> None:
    """Joined, left and joined again while the link is down: subscribed once when it is back."""
    topic = owner.topics.group("room").topic
    server.cut()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    owner.bus.pubsub.subscribe(topic)
    owner.bus.pubsub.unsubscribe(topic)
    assert not owner.bus.pubsub.is_confirmed(topic)
    owner.bus.pubsub.subscribe(topic)
    await every([owner.bus.pubsub.confirmed(topic)])
    assert server.received("SUBSCRIBE").count((topic.name,)) == 1 and not server.received("UNSUBSCRIBE")


async def test_the_last_word_before_the_reply(owner: Owner, server: RespServer) -> None:
    """Left before the confirmation: UNSUBSCRIBE follows, and the reply confirms nothing."""
    topic = owner.topics.group("room").topic
    event = asyncio.Event()
    server.script("SUBSCRIBE", resp_server.after(event))
    owner.bus.pubsub.subscribe(topic)
    waiting = await started(owner.bus.pubsub.confirmed(topic))
    owner.bus.pubsub.unsubscribe(topic)
    await every([waiting])
    event.set()
    other = await owner.join("lobby")
    assert server.received("UNSUBSCRIBE") == [(topic.name,)]
    assert owner.subscribed == [other.name]


@pytest.mark.parametrize("answer", [NOPERM, ODD], ids=["NOPERM", "ERR"])
async def test_a_subscription_is_refused(
    owner: Owner, server: RespServer, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for it gets the error and the log an event; other topics and the link do not suffer."""
    server.script("SUBSCRIBE", answer)
    with pytest.raises(ChannelLayerError, match="refused"):
        await every([owner.join("room")])
    await every([owner.join("lobby")])
    assert codes(caplog) == ["subscription.refused"]
    assert owner.events == ["up"]
    await every([owner.join("room")])


async def test_a_subscription_is_refused_at_a_reconnect(
    owner: Owner, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One topic that is refused does not keep the link from coming up for the others."""
    # In the order in which they are subscribed to.
    topics = sorted([await owner.join(group) for group in ("room", "lobby")])
    server.script("SUBSCRIBE", None, None, NOPERM)  # the first two are not of groups
    server.cut()
    await owner.up(2)
    assert [owner.bus.pubsub.is_confirmed(topic) for topic in topics] == [False, True]
    assert "subscription.refused" in codes(caplog)


async def test_server_is_busy_at_a_reconnect(owner: Owner, server: RespServer) -> None:
    """Such a refusal passes, and nobody would ask for the topic again: the next connection does."""
    topics = [await owner.join(group) for group in ("room", "lobby")]
    server.script("SUBSCRIBE", None, None, resp_server.error("BUSY Redis is busy running a script."))
    server.cut()
    await owner.up(2)
    await eventually(lambda: all(map(owner.bus.pubsub.is_confirmed, topics)), "both")


async def test_the_fence_is_refused_while_much_is_subscribed_to(
    owner: Owner, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link does not come up without its fence, and says why, also if that is known before all is sent."""
    await owner.join()

    async def rest(turn: Slice) -> None:
        await eventually(lambda: len(server.received("SUBSCRIBE")) > 3, "the command")
        await time_passes(0.05)

    monkeypatch.setattr(Slice, "rest", rest)
    server.always("SUBSCRIBE", NOPERM)
    server.cut()
    await owner.refused("NOPERM", "permission")
    monkeypatch.undo()
    server.restore()
    await owner.up(2)


@pytest.mark.parametrize(
    "answer",
    [resp_server.half(), resp_server.silence(), resp_server.half(closes=True)],
    ids=["half", "silence", "half, closed"],
)
async def test_a_confirmation_that_does_not_come(owner: Owner, server: RespServer, answer: Answer) -> None:
    """A listener that is not confirmed in time is no listener: it is connected again, and who waits is served."""
    server.script("SUBSCRIBE", answer)
    await every([owner.join()])
    assert "down" in owner.events
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.arrived, "a message")


async def test_confirmed_cancelled(owner: Owner, server: RespServer) -> None:
    """Cancelling who waits for a confirmation leaves nothing behind; the topic stays wanted."""
    event = asyncio.Event()
    server.script("SUBSCRIBE", resp_server.after(event))
    topic = owner.topics.group("room").topic
    owner.bus.pubsub.subscribe(topic)
    waiting = await started(owner.bus.pubsub.confirmed(topic))
    waiting.cancel()
    await ended(waiting)
    entry = owner.bus.partitions[topic.partition].subscriptions.get(topic.name)
    assert entry is not None and entry.waiters == []
    event.set()
    await every([owner.bus.pubsub.confirmed(topic)])


async def test_confirmed_in_an_outage(make_owner: MakeOwner, server: RespServer) -> None:
    """It waits `send_timeout`, then LayerUnavailable; then at once; each caller has an error of its own."""
    owner = await make_owner(server.url)
    await owner.up()
    await server.stop()
    topic = owner.topics.group("room").topic
    owner.bus.pubsub.subscribe(topic)
    waiting = [await started(owner.bus.pubsub.confirmed(topic)) for _ in range(2)]
    errors = await every([asyncio.gather(*waiting, return_exceptions=True)])
    assert [type(one) for one in errors[0]] == [LayerUnavailable] * 2
    assert errors[0][0] is not errors[0][1]
    with pytest.raises(LayerUnavailable):
        await owner.bus.pubsub.confirmed(topic)


async def test_a_held_message_is_opened_once(owner: Owner) -> None:
    """A message that is not taken is offered again, the same object, and what follows waits behind it."""
    await owner.join()
    owner.takes = False
    for _ in range(2):
        await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.offered, "an offer")
    owner.bus.pubsub.resume()
    owner.bus.pubsub.resume()
    assert owner.arrived == []
    owner.takes = True
    owner.bus.pubsub.resume()
    await eventually(lambda: len(owner.arrived) == 2, "both messages")
    assert owner.arrived[0][1].seq + 1 == owner.arrived[1][1].seq


async def test_back_before_the_server_knew(owner: Owner, server: RespServer) -> None:
    """What is sent after the last member has left and before the next one joins reaches nobody."""
    topic = await owner.join()
    owner.bus.pubsub.unsubscribe(topic)
    server.real.command("PUBLISH", topic.name, '{"type": "sent.between"}')
    await owner.join()
    server.real.command("PUBLISH", topic.name, '{"type": "sent.after"}')
    await eventually(lambda: owner.arrived, "the message")
    assert [envelope.message for _, envelope in owner.arrived] == [{"type": "sent.after"}]
