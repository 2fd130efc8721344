"""`Both`: a site that moves from one channel layer to another one, process by process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured

from benchmarks.nats import NatsServer, nats_server
from channels_asyncq import ChannelLayerError
from channels_asyncq.migration import Both
from tests.contract import DEADLINE, eventually, note, steps
from tests.rolling import talk_in_steps

OURS = "channels_asyncq.AsyncQueueChannelLayer"
OLD = {
    "inmemory": "channels.layers.InMemoryChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "nats": "channels_nats.NatsChannelLayer",
}
Make = Callable[[str], Both]


@pytest.fixture(scope="module")
def nats_url() -> Iterator[str]:
    if nats_server() is None:
        pytest.skip("no nats-server on PATH")
    with NatsServer() as server:
        yield server.url


@pytest.fixture(
    params=[
        "inmemory",
        *(pytest.param(name, marks=pytest.mark.server) for name in ("core", "pubsub")),
        pytest.param("nats", marks=[pytest.mark.server, pytest.mark.slow]),
    ]
)
def configs(request: pytest.FixtureRequest, prefix: str) -> dict[str, dict[str, Any]]:
    """The layer of before, and ours."""
    old: dict[str, Any]
    new: dict[str, Any]
    if request.param == "inmemory":
        old, new = {}, {"hosts": ["memory://"], "prefix": prefix}
    elif request.param == "nats":
        pytest.importorskip("channels_nats")
        old = {"servers": [request.getfixturevalue("nats_url")], "prefix": prefix, "capacity": 5000}
        new = {"hosts": [request.getfixturevalue("redis_url")], "prefix": prefix, "capacity": 5000}
    else:
        pytest.importorskip("channels_redis")
        url = request.getfixturevalue("redis_url")
        # With redis-py 8, channels_redis 4.3 fails after 5 s without a message, unless it has no time limit.
        hosts = [{"address": url, "socket_timeout": None}]
        old = {"hosts": hosts, "prefix": f"{prefix}old", "capacity": 5000}
        new = {"hosts": [url], "prefix": prefix, "capacity": 5000}
    return {
        "old": {"BACKEND": OLD[request.param], "CONFIG": old},
        "new": {"BACKEND": OURS, "CONFIG": new},
    }


@pytest.fixture
async def make(configs: dict[str, dict[str, Any]]) -> AsyncIterator[Make]:
    """Make a `Both` that sends to one of the two."""
    made: list[Both] = []

    def make(send: str) -> Both:
        made.append(Both(**configs, send=send))
        return made[-1]

    yield make
    for both in made:
        for layer in both.layers.values():
            close = getattr(layer, "close", None) or getattr(layer, "close_pools", None)
            if close is not None:
                await close()


async def received(layer: BaseChannelLayer, channel: str) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE):
        message: dict[str, Any] = await layer.receive(channel)
    message.pop("__asgi_channel__", None)
    return message


@pytest.mark.parametrize("send", ["old", "new"])
async def test_group(make: Make, send: str) -> None:
    """A member gets what is sent through either layer, each message once, until it leaves."""
    both = make(send)
    channel = await both.new_channel()
    await both.group_add("room", channel)
    await both.layers["old"].group_send("room", note(1))
    await both.layers["new"].group_send("room", note(2))
    found = [await received(both, channel) for _ in range(2)]
    assert sorted(message["n"] for message in found) == [1, 2]
    await both.group_send("room", note(3))
    assert await received(both, channel) == note(3)
    await both.group_discard("room", channel)
    for layer in both.layers.values():
        await layer.group_send("room", note(4))
    await both.send(channel, note(5))
    assert await received(both, channel) == note(5)


def keeps_jobs(layer: BaseChannelLayer) -> bool:
    """Whether a message to a normal channel waits for a reader, and has one only."""
    return (
        type(layer).__module__.partition(".")[0] != "channels_nats" and "pubsub" not in type(layer).__module__
    )


async def test_one_layer_is_sent_to(make: Make) -> None:
    """Messages to groups and normal channels go through the layer of `send` alone."""
    for send in ("old", "new"):
        both = make(send)
        alone = both.layers[both.side]
        if not keeps_jobs(alone):
            continue
        await both.send(f"jobs-{send}", note(1))
        assert await received(alone, f"jobs-{send}") == note(1)


@pytest.mark.parametrize("send", ["old", "new"])
async def test_name_of_a_channel(make: Make, send: str) -> None:
    """
    It says through which layer the channel is reached: by a process with that layer alone, and by one that sends
    to the other one.
    """
    both = make(send)
    channel = await both.new_channel()
    assert f".via-{send}" in channel
    alone = both.layers[both.side]
    await alone.send(channel, note(1))
    assert await received(both, channel) == note(1)
    other = Both.__new__(Both)  # a process that sends to the other one, with the connections of this one
    other.__dict__.update(both.__dict__)
    other._sender = both.layers["new" if send == "old" else "old"]
    await other.send(channel, note(2))
    assert await received(both, channel) == note(2)


async def test_channel_of_a_process_with_one_layer(make: Make) -> None:
    """It is reached through the layer of `send`: in each step these are the processes that are there."""
    for send in ("old", "new"):
        both = make(send)
        alone = both.layers[both.side]
        channel = await alone.new_channel()
        await both.send(channel, note(1))
        assert await received(alone, channel) == note(1)


async def test_order(make: Make) -> None:
    """Messages of one sender come in their order."""
    both = make("new")
    channel = await both.new_channel()
    await both.group_add("room", channel)
    for n in range(50):
        await both.group_send("room", note(n))
    assert [await received(both, channel) for _ in range(50)] == [note(n) for n in range(50)]


async def test_cancelled_receive(make: Make) -> None:
    """A cancelled receive() loses nothing and leaves no task, also where both layers have a message."""
    both = make("new")
    channel = await both.new_channel()
    before = asyncio.all_tasks()
    receiving = asyncio.create_task(both.receive(channel))
    await steps(5)
    receiving.cancel()
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert not waiting(before)
    await both.send(channel, note(1))
    assert await received(both, channel) == note(1)


async def test_jobs(make: Make) -> None:
    """A normal channel: jobs of both layers come once each. When the worker has ended, nothing waits for more."""
    both = make("new")
    if not keeps_jobs(both.layers["old"]):
        pytest.skip("its normal channels forget what nobody reads, or give it to each reader")
    before = asyncio.all_tasks()
    for layer in both.layers.values():
        for n in range(3):
            await layer.send("jobs", note(n))

    async def work() -> list[int]:
        return [(await received(both, "jobs"))["n"] for _ in range(6)]

    worker = asyncio.create_task(work())
    assert sorted(await worker) == [0, 0, 1, 1, 2, 2]
    await eventually(lambda: not waiting(before))


async def test_job_goes_back(make: Make) -> None:
    """A job that has come as its worker stops goes back, for the next process."""
    both, other = make("new"), make("new").layers["new"]
    receiving = asyncio.create_task(both.receive("jobs"))
    await steps(5)
    wait = both._channel("jobs")._waits[both.layers["new"]]
    wait.add_done_callback(lambda _: receiving.cancel())
    await other.send("jobs", note(1))
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert await received(other, "jobs") == note(1)


async def test_job_that_cannot_go_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server does not take it, it waits for the next receive() of this process."""
    both, other = make("new"), make("new").layers["new"]
    new = both.layers["new"]

    async def fail(channel: str, message: dict[str, Any]) -> None:
        raise ConnectionError("down")

    receiving = asyncio.create_task(both.receive("jobs"))
    await steps(5)
    both._channel("jobs")._waits[new].add_done_callback(lambda _: receiving.cancel())
    with monkeypatch.context() as patch:
        patch.setattr(new, "send", fail)
        await other.send("jobs", note(1))
        await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert await received(both, "jobs") == note(1)


def waiting(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """The tasks that receive, and did not before."""
    return {task for task in asyncio.all_tasks() - before if "receive" in repr(task.get_coro())}


async def test_end_of_a_consumer(make: Make) -> None:
    """When the task of a consumer ends, however it does, nothing waits for its channel any more."""
    both = make("old")
    names: list[str] = []

    async def consume() -> None:
        names.append(await both.new_channel())
        await both.send(names[0], note(1))
        await both.receive(names[0])
        raise RuntimeError("a handler fails")

    before = asyncio.all_tasks()
    consumer = asyncio.create_task(consume())
    await asyncio.wait([consumer])
    with pytest.raises(RuntimeError):
        await consumer

    await eventually(lambda: not waiting(before))
    with pytest.raises(ChannelLayerError, match="of another process or event loop"):
        await both.receive(names[0])


async def test_channel_of_another_process(make: Make) -> None:
    """Only its own process can let it join: it is a member in both layers, or an error says so."""
    both = make("new")
    channel = await both.layers["new"].new_channel("specific.")  # type: ignore[call-arg]
    with pytest.raises(ChannelLayerError, match=r"Join groups and receive where new_channel\(\) was called"):
        await both.group_add("room", channel)
    await both.group_discard("room", channel)


async def test_failed_join(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one layer fails, the channel is a member in neither."""
    both = make("old")
    channel = await both.new_channel()
    new = both.layers["new"]

    async def fail(group: str, channel: str) -> None:
        raise ConnectionError("down")

    with monkeypatch.context() as patch:
        patch.setattr(new, "group_add", fail)
        with pytest.raises(ConnectionError, match="down"):
            await both.group_add("room", channel)
    for layer in both.layers.values():
        await layer.group_send("room", note(1))
    await both.send(channel, note(2))
    assert await received(both, channel) == note(2)


async def test_flush(make: Make) -> None:
    """Both layers are emptied."""
    both = make("old")
    if not keeps_jobs(both.layers["old"]):
        pytest.skip("there is nothing to empty")
    for layer in both.layers.values():
        await layer.send("jobs", note(1))
    await both.flush()
    await both.send("jobs", note(2))
    assert await received(both, "jobs") == note(2)


GOOD = {"BACKEND": OURS, "CONFIG": {"hosts": ["memory://"]}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"old": GOOD, "new": GOOD, "send": "both"}, 'send must be "old" or "new", not \'both\''),
        ({"old": {}, "new": GOOD, "send": "old"}, "old must be a dict with BACKEND and CONFIG"),
        ({"old": GOOD, "new": {**GOOD, "HOSTS": []}, "send": "old"}, "new must be a dict with BACKEND"),
        ({"old": GOOD, "new": {"BACKEND": "no.Such"}, "send": "old"}, "new: cannot import BACKEND 'no.Such'"),
        ({"old": {"BACKEND": OURS, "CONFIG": {"host": 1}}, "new": GOOD, "send": "old"}, "host"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], words: str) -> None:
    """Each has an error that names the value."""
    with pytest.raises(ImproperlyConfigured, match=words):
        Both(**arguments)


# Three rolling deploys


@pytest.mark.processes
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("configs", "way"),
    [
        ("core", "there"),
        *(pytest.param(name, "back", marks=pytest.mark.nightly) for name in ("pubsub", "nats")),
        pytest.param("nats", "there", marks=pytest.mark.nightly),
    ],
    indirect=["configs"],
)
async def test_rolling_deploys(configs: dict[str, dict[str, Any]], way: str) -> None:
    """
    Processes are replaced one by one, by receiving from both, sending to the other one, and the new layer alone;
    or all the way back. Everybody hears everything once, in the order of each sender.
    """
    both = {"BACKEND": "channels_asyncq.migration.Both"}
    steps = [
        configs["old"],
        *({**both, "CONFIG": {**configs, "send": send}} for send in ("old", "new")),
        configs["new"],
    ]
    if way == "back":
        steps.reverse()
    await talk_in_steps(steps)
