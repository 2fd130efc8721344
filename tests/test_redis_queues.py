"""Normal channels of a bus: questions that nobody waits in a call for."""

from __future__ import annotations

import asyncio

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL
from tests import resp_server
from tests.buses import (
    LOADING,
    NOPERM,
    ODD,
    OOM,
    PAYLOAD,
    READONLY,
    MakeOwner,
    Owner,
)
from tests.contract import codes, eventually, every
from tests.resp_server import Answer, RespServer


@pytest.mark.parametrize("answer", [OOM, NOPERM, ODD], ids=["OOM", "NOPERM", "ERR"])
async def test_pop_refused(
    owner: Owner, server: RespServer, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused question fails with ConnectionError, and is told in the log, not for each of a flood."""
    server.script("pop", answer, answer)
    for number in (1, 2):
        with pytest.raises(ConnectionAbortedError):
            await owner.pop(number)
    assert codes(caplog) == ["command.refused"]
    assert owner.events == ["up"]


@pytest.mark.parametrize("answer", [LOADING, READONLY], ids=["LOADING", "READONLY"])
async def test_pop_of_a_server_that_cannot_serve(owner: Owner, server: RespServer, answer: Answer) -> None:
    """The question fails with ConnectionError; under the same number the item comes when it can serve."""
    await owner.push("jobs", PAYLOAD)
    server.script("pop", answer)
    with pytest.raises(ConnectionError):
        await owner.pop(1)
    await owner.up(2)
    assert await owner.pop(1) == PAYLOAD
    assert await owner.pop(2) is None


@pytest.mark.parametrize(
    "answer", [resp_server.half(closes=True), resp_server.silence()], ids=["half, closed", "silence"]
)
async def test_pop_without_an_answer(owner: Owner, server: RespServer, answer: Answer) -> None:
    """A question that was not answered is asked again by the line: one item, taken once."""
    for _ in range(2):
        await owner.push("jobs", PAYLOAD)
    server.script("pop", answer)
    assert [await owner.pop(number) for number in (1, 2, 3)] == [PAYLOAD, PAYLOAD, None]


async def test_pop_while_down(owner: Owner, server: RespServer) -> None:
    """Without a link there is no answer to come: None."""
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    assert owner.bus.queues.pop("jobs", 1) is None and owner.bus.queues.give_back("jobs", 1) is None
    owner.bus.pubsub.post(owner.topics.inbox("00" * 8), "x", PAYLOAD, CONTROL)


async def test_pop_of_garbage(owner: Owner, server: RespServer) -> None:
    """An item that is no message is a ValueError of the answer."""
    topic = owner.topics.queue("jobs").topic.name
    server.real.command("RPUSH", topic, b"9" * 13 + b"garbage")
    with pytest.raises(ValueError, match="too few"):
        await owner.pop(1)


async def test_pop_given_up(owner: Owner, server: RespServer) -> None:
    """An answer that nobody waits for any more is dropped quietly."""
    answer = owner.bus.queues.pop("jobs", 1)
    assert answer is not None
    await every([answer])
    event = asyncio.Event()
    server.script("pop", resp_server.after(event))
    asked = owner.bus.nodes[0].sender.commands.ask(
        b"EVALSHA", Scripts.of(None).pop.sha, 2, b"list", b"taken", 1, 1000, 1, 1
    )
    assert asked is not None
    asked.cancel()
    event.set()
    await owner.pop(2)


async def test_a_normal_channel_on_a_real_server(make_owner: MakeOwner, redis_url: str) -> None:
    """Push, pop, the same number again, give back, another one's turn, capacity and wake-ups."""
    owner, other = await make_owner(redis_url), await make_owner(redis_url, capacity=2)
    await every([owner.up(), other.up()])
    topic = owner.topics.queue("jobs").topic
    owner.bus.pubsub.subscribe(topic)
    await owner.bus.pubsub.confirmed(topic)
    payloads = [Codec().encode({"type": "t", "n": n}) for n in range(3)]
    for payload in payloads[:2]:
        await other.push("jobs", payload)
    with pytest.raises(ChannelFull, match="'jobs' holds 2 messages"):
        await other.push("jobs", payloads[2])
    assert [await owner.pop(1), await owner.pop(1)] == [payloads[0]] * 2
    assert await other.pop(1) == payloads[1]
    for _ in range(2):
        given = owner.bus.queues.give_back("jobs", 1)
        assert given is not None
        await every([given])
    assert await other.pop(2) == payloads[0]
    assert await other.pop(3) is None and await owner.pop(2) is None
    await eventually(lambda: owner.woken == [topic.name] * 3, "three wake-ups")
    await other.push("jobs", payloads[2])
    await owner.bus.flush()
    assert await owner.pop(3) is None
