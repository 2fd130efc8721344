"""`close_pools()`, as code that was written for channels_redis calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, LayerClosed, LayerUnavailable
from channels_asyncq.testing import EmbeddedServer
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    assert_nothing_waits,
    ended,
    eventually,
    every,
    layers,
    members_of,
    note,
    notes,
    receive,
    receive_many,
    started,
)
from tests.sessions import bus_of, shorten_send_timeout


@pytest.fixture
async def make_layer(own_redis_server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with layers(hosts=[own_redis_server.url], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
async def layer(make_layer: MakeLayer) -> AsyncQueueChannelLayer:
    return await make_layer()


@pytest.fixture
def connections(own_redis_server: EmbeddedServer) -> Callable[[], int]:
    """How many clients the server has, but for the one that asks."""

    def count() -> int:
        clients = own_redis_server.command("CLIENT", "LIST")
        assert isinstance(clients, bytes)
        return sum(b" cmd=client|list" not in line for line in clients.splitlines())

    return count


async def test_after_each_send_from_sync_code(
    layer: AsyncQueueChannelLayer, make_layer: MakeLayer, connections: Callable[[], int]
) -> None:
    """The recipe for views and Celery tasks: messages arrive, and the process goes on with the relay's two."""

    async def closing_send(group: str, message: dict[str, Any]) -> None:
        await layer.group_send(group, message)
        await layer.close_pools()

    reader = await make_layer()
    [channel] = await members_of(reader, "room", 1)
    for message in notes(5):
        await asyncio.to_thread(async_to_sync(closing_send), "room", message)
    assert await receive_many(reader, channel, 5) == notes(5)
    assert connections() == 4


async def test_connections_are_closed(layer: AsyncQueueChannelLayer, connections: Callable[[], int]) -> None:
    """It returns when the loop's connections are closed, also the second time."""
    await members_of(layer, "room", 2)
    assert connections() == 2
    for _ in range(2):
        await layer.close_pools()
        await eventually(lambda: connections() == 0)
    assert [link.state for link in layer.statistics().links] == ["closed"]


async def test_what_waits_in_a_channel(layer: AsyncQueueChannelLayer, connections: Callable[[], int]) -> None:
    """Messages that wait are read afterwards, without a connection."""
    channel = await layer.new_channel()
    for message in notes(3):
        await layer.send(channel, message)
        await layer.close_pools()
    assert await receive_many(layer, channel, 3) == notes(3)
    assert connections() == 0


async def test_what_is_sent_meanwhile(layer: AsyncQueueChannelLayer, make_layer: MakeLayer) -> None:
    """Members stay members: what others send while the connections are closed arrives, nothing is told."""
    teller = await make_layer()
    [member] = await members_of(layer, "room", 1)
    [other] = await members_of(layer, "room", 1)
    for n in range(3):
        await layer.close_pools()
        await teller.group_send("room", note(n))
        await teller.send(member, note(10 + n))
        # Between a group and a channel there is no order.
        messages = await receive_many(layer, member, 2)
        assert sorted(message["n"] for message in messages) == [n, 10 + n]
        assert await receive(layer, other) == note(n)
    assert layer.statistics().told == {}


async def add(layer: AsyncQueueChannelLayer) -> None:
    await layer.group_add("another", await layer.new_channel())


async def wait_and_receive(layer: AsyncQueueChannelLayer) -> None:
    reading = await started(layer.receive("jobs"))
    await layer.send("jobs", note(1))
    assert await ended(reading) == note(1)


async def is_healthy(layer: AsyncQueueChannelLayer) -> None:
    assert (await layer.health()).ok


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda layer: layer.new_channel(), id="new_channel"),
        pytest.param(lambda layer: layer.group_send("room", MARKER), id="group_send"),
        pytest.param(lambda layer: layer.send("jobs", note(1)), id="send"),
        pytest.param(lambda layer: layer.send_wait("jobs", note(1)), id="send_wait"),
        pytest.param(add, id="group_add"),
        pytest.param(wait_and_receive, id="receive"),
        pytest.param(lambda layer: layer.flush(), id="flush"),
        pytest.param(is_healthy, id="health"),
    ],
)
async def test_the_next_use(
    layer: AsyncQueueChannelLayer,
    make_layer: MakeLayer,
    connections: Callable[[], int],
    use: Callable[[AsyncQueueChannelLayer], Awaitable[object]],
) -> None:
    """Whatever is called next opens both connections again, and members hear what is sent from then on."""
    teller = await make_layer()
    await teller.new_channel()
    [member] = await members_of(layer, "room", 1)
    await layer.close_pools()
    await eventually(lambda: connections() == 2)
    async with asyncio.timeout(DEADLINE):
        await use(layer)
    await eventually(lambda: connections() == 4)
    await layer.group_add("room", member)  # flush() has ended it
    await teller.group_send("room", note(7))
    async with asyncio.timeout(DEADLINE):
        while await layer.receive(member) != note(7):
            pass


async def test_while_somebody_waits(
    layer: AsyncQueueChannelLayer, make_layer: MakeLayer, connections: Callable[[], int]
) -> None:
    """It makes no receiver deaf: connections stay while one waits, for a channel, a normal one or an open one."""
    teller = await make_layer()
    [member] = await members_of(layer, "room", 1)
    waits = [await started(layer.receive(member)), await started(layer.receive("jobs"))]
    await layer.close_pools()
    await teller.group_send("room", note(1))
    assert await ended(waits[0]) == note(1)
    await layer.close_pools()
    await teller.send("jobs", note(2))
    assert await ended(waits[1]) == note(2)
    consumer = await layer.open_channel()
    await layer.close_pools()
    await teller.send(consumer.name, note(3))
    await eventually(lambda: not consumer.empty())
    assert connections() == 4
    consumer.close()
    await layer.close_pools()
    await eventually(lambda: connections() == 2)


async def test_among_sends(layer: AsyncQueueChannelLayer, make_layer: MakeLayer) -> None:
    """Sends that are under way, or begin meanwhile, arrive once each and in order."""
    reader = await make_layer(capacity=1000)
    [channel] = await members_of(reader, "room", 1)
    await layer.new_channel()

    async def send() -> None:
        for message in notes(100):
            await layer.group_send("room", message)

    async def close() -> None:
        while not sending.done():
            await layer.close_pools()
            await asyncio.sleep(0)

    sending = await started(send())
    await every([close(), close()])
    await sending
    assert await receive_many(reader, channel, 100) == notes(100)
    await assert_nothing_waits(reader, channel)


async def test_nobody_is_told(make_layer: MakeLayer) -> None:
    """It is no outage: `on_disconnect` and `on_reconnect` are not sent."""
    layer = await make_layer(on_disconnect="layer.down", on_reconnect="layer.up")
    channel = await layer.new_channel()
    for _ in range(2):
        await layer.close_pools()
        await layer.group_add("room", channel)
    await assert_nothing_waits(layer, channel)


async def test_in_an_outage(
    own_redis_server: EmbeddedServer, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the attempts to connect, and returns; the next send fails in its time."""
    layer = await make_layer()
    await members_of(layer, "room", 1)
    shorten_send_timeout(bus_of(layer), 0.3)
    own_redis_server.stop()
    await eventually(lambda: not layer.statistics().connected)
    async with asyncio.timeout(DEADLINE):
        await layer.close_pools()
    assert [link.state for link in layer.statistics().links] == ["closed"]
    with pytest.raises(LayerUnavailable):
        await layer.group_send("room", note(1))


async def test_cancelled(layer: AsyncQueueChannelLayer, connections: Callable[[], int]) -> None:
    """Cancelled at whatever step, the layer works as before."""
    for steps in range(8):
        [member] = await members_of(layer, f"room.{steps}", 1)
        closing = asyncio.create_task(layer.close_pools())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        await ended(closing)
        await layer.group_send(f"room.{steps}", note(steps))
        assert await receive(layer, member) == note(steps)
    assert connections() == 2


async def test_cancelled_while_it_closes(
    layer: AsyncQueueChannelLayer, connections: Callable[[], int]
) -> None:
    """Cancelled when the connections are to be closed, they are closed all the same."""
    await members_of(layer, "room", 1)
    closing = asyncio.create_task(layer.close_pools())
    while [link.state for link in layer.statistics().links] != ["closed"]:  # noqa: ASYNC110  (at once then)
        await asyncio.sleep(0)
    closing.cancel()
    await ended(closing)
    await eventually(lambda: connections() == 0)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda layer: layer.new_channel(), id="new_channel"),
        pytest.param(lambda layer: layer.group_add("room", "jobs"), id="group_add"),
        pytest.param(add, id="group_add, own"),
        pytest.param(wait_and_receive, id="receive"),
        pytest.param(lambda layer: layer.flush(), id="flush"),
        pytest.param(is_healthy, id="health"),
    ],
)
async def test_beside_another_use(
    layer: AsyncQueueChannelLayer, use: Callable[[AsyncQueueChannelLayer], Awaitable[object]]
) -> None:
    """What is under way in another task of the loop ends, also while the connections are being made."""

    async def close() -> None:
        while not using.done():
            await layer.close_pools()
            await asyncio.sleep(0)

    for _ in range(10):
        await layer.close_pools()
        using = asyncio.ensure_future(use(layer))
        closing = asyncio.create_task(close())
        try:
            async with asyncio.timeout(DEADLINE):
                await using
        finally:
            using.cancel()
            await closing


async def test_of_several_hosts(own_redis_server: EmbeddedServer, redis_url: str, prefix: str) -> None:
    """A send to one host opens the connections to all again: members of groups on another one hear, too."""
    async with layers(hosts=[own_redis_server.url, redis_url], prefix=prefix) as make_layer:
        layer = await make_layer()
        await members_of(layer, "room", 1)
        await layer.close_pools()
        assert [link.state for link in layer.statistics().links] == ["closed"] * 2
        await layer.group_send("room", note(1))
        await eventually(lambda: [link.state for link in layer.statistics().links] == ["connected"] * 2)


async def test_of_a_closed_layer(layer: AsyncQueueChannelLayer) -> None:
    """It has nothing to close, and opens nothing."""
    await layer.new_channel()
    await layer.close_pools()
    await layer.close()
    await layer.close_pools()
    with pytest.raises(LayerClosed):
        await layer.new_channel()


async def test_in_memory(prefix: str) -> None:
    """There is nothing to close."""
    async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
        layer = await make_layer()
        await layer.close_pools()
        [member] = await members_of(layer, "room", 1)
        await layer.close_pools()
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)
