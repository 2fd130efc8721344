"""Under freezegun the layer's own clock goes on: what expires, and what is waited for, goes by real time."""

import asyncio
import runpy
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from freezegun import freeze_time

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable, StillFull, clock
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError
from tests import contract
from tests.contract import (
    DEADLINE,
    MakeLayer,
    both_kinds,
    channel_of,
    eventually,
    member_of,
    note,
    receive,
    started,
    time_passes,
)
from tests.fences import fence_every

# freezegun has time.monotonic() say the seconds from 1970 to this date, where it was the seconds from the start
# of the machine.
FAR = "2100-01-01"

NO_ANSWER = (LayerUnavailable, DeliveryUnknown)


@contextmanager
def frozen() -> Iterator[None]:
    """A clock that stands still in the far future, for all but event loops."""
    with freeze_time(FAR, real_asyncio=True):
        yield


@pytest.fixture(params=["memory", "redis", "redis, with keys"])
async def make_each(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[MakeLayer]:
    """Make layers of each kind."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    keys = ["a key"] if request.param.endswith("keys") else None
    async with contract.layers(hosts=[url], prefix=prefix, symmetric_encryption_keys=keys) as make_layer:
        yield make_layer


@both_kinds
async def test_message_waits(make_each: MakeLayer, kind: str) -> None:
    """A message that was sent before the clock was frozen is there when it is frozen, and the reverse."""
    layer = await make_each()
    channel = await channel_of(layer, kind)
    await layer.send(channel, note(0))
    with frozen():
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(1))
    assert await receive(layer, channel) == note(1)


async def test_message_expires(make_each: MakeLayer) -> None:
    """A message expires while the clock is frozen, and one that was sent then expires afterwards."""
    layer = await make_each(expiry=0.05)
    channel = await layer.new_channel()
    with frozen():
        await layer.send(channel, note(0))
        await expires(layer, channel, 1)
        await layer.send(channel, note(1))
    await expires(layer, channel, 2)


async def expires(layer: AsyncQueueChannelLayer, channel: str, count: int) -> None:
    """Until so many messages of the layer have expired; whoever receives then gets none of them."""
    await time_passes(0.1)
    receiving = await started(layer.receive(channel))
    await eventually(lambda: layer.statistics().dropped == {"expired": count}, "the expiry")
    assert not receiving.done()
    receiving.cancel()


async def test_membership_lasts(make_each: MakeLayer) -> None:
    """A member stays one when the clock is frozen, however far ahead, and when it goes on."""
    layer = await make_each()
    before = await member_of(layer, "before")
    with frozen():
        meanwhile = await member_of(layer, "meanwhile")
        await layer.group_send("before", note(0))
        assert await receive(layer, before) == note(0)
    await layer.group_send("before", note(1))
    await layer.group_send("meanwhile", note(2))
    assert [await receive(layer, before), await receive(layer, meanwhile)] == [note(1), note(2)]


async def test_membership_ends(make_each: MakeLayer) -> None:
    """A membership lapses while the clock is frozen."""
    layer = await make_each(group_expiry=0.05)
    with frozen():
        channel = await member_of(layer)
        await time_passes(0.1)
        await layer.group_send("room", note(0))
        await layer.send(channel, note(1))
        assert await receive(layer, channel) == note(1)


async def test_membership_of_a_normal_channel_is_added_again(
    make_layer: MakeLayer, own_redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has forgotten it while the clock is frozen has it again, for the rest of its time."""
    fence_every(monkeypatch, 0.05)
    layer = await make_layer(hosts=[own_redis_server.url])
    await layer.group_add("room", "jobs")
    await layer.new_channel()
    with frozen():
        own_redis_server.command("FLUSHDB")
        await eventually(lambda: own_redis_server.command("KEYS", "*:members:room"), "the membership")


async def test_waiting_for_a_place(make_each: MakeLayer) -> None:
    """send_wait() ends when its time is over, though the clock is frozen."""
    layer = await make_each(capacity=1)
    channel = await layer.new_channel()
    await layer.send(channel, note(0))
    with frozen(), pytest.raises(StillFull):
        async with asyncio.timeout(DEADLINE):
            await layer.send_wait(channel, note(1), timeout=0.05)


async def test_silent_server(make_layer: MakeLayer, own_redis_server: EmbeddedServer) -> None:
    """A send to a server that answers nothing fails when its time is over, though the clock is frozen."""
    layer = await make_layer(hosts=[own_redis_server.url], send_timeout=2)
    await layer.new_channel()
    await layer.group_send("room", note(0))
    with frozen():
        own_redis_server.pause()
        with pytest.raises(NO_ANSWER):
            async with asyncio.timeout(DEADLINE):
                await layer.group_send("room", note(1))


async def test_frozen_event_loop(make_each: MakeLayer) -> None:
    """Where the event loop's clock is frozen too, as by default, what needs no timer works: nothing expires."""
    layer = await make_each()
    channel = await member_of(layer)
    with freeze_time(FAR):
        await layer.group_send("room", note(0))
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(1))
        assert await receive(layer, channel) == note(1)
    await layer.group_send("room", note(2))
    assert await receive(layer, channel) == note(2)


# Without an event loop of their own: the relay's loop reads the real clock, whatever freeze_time() is told.


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    """Call `work` in a thread; return what it raised. A failure if it does not end."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except Exception as exc:
            raised.append(exc)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert raised, "the call did not end"
    return raised[0]


def test_sync_send_to_a_silent_server(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """It fails when its time is over, and so does the next one when the clock goes on."""
    layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix, send_timeout=2)

    def send() -> None:
        layer.prepare_group_send("room", note(0))()

    try:
        assert in_a_thread(send) is None
        with freeze_time(FAR):
            assert in_a_thread(send) is None
            own_redis_server.pause()
            assert isinstance(in_a_thread(send), NO_ANSWER)
        assert isinstance(in_a_thread(send), NO_ANSWER)
    finally:
        own_redis_server.resume()
        layer.close_from_thread()


def test_lease_of_sync_callers(
    own_redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renewed while the clock is frozen, and when it goes on."""
    fence_every(monkeypatch, 0.02)
    layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix)

    def is_renewed() -> None:
        ends: set[bytes] = set()
        while len(ends) < 4:
            ends.add(own_redis_server.command("ZRANGE", f"{prefix}:0:layouts", 0, -1, "WITHSCORES")[1])
            time.sleep(0.01)

    try:
        assert in_a_thread(layer.prepare_group_send("room", note(0))) is None
        with freeze_time(FAR):
            assert in_a_thread(is_renewed) is None
        assert in_a_thread(is_renewed) is None
    finally:
        layer.close_from_thread()


# The clock itself


def test_first_import_while_frozen() -> None:
    """The package reads the real clock though it was imported while that was frozen, by whoever used it first."""
    before = time.monotonic()
    with freeze_time(FAR):
        monotonic = runpy.run_path(clock.__file__)["monotonic"]
        assert before <= monotonic() < before + 3600
    assert before <= monotonic() < before + 3600


def test_server_that_never_answers(tmp_path: Path) -> None:
    """EmbeddedServer gives it up after start_timeout, though the clock is frozen."""
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o755)
    server = EmbeddedServer(external=False, binary=binary, start_timeout=0.5)
    with freeze_time(FAR), pytest.raises(EmbeddedServerError, match="no answer"):
        server.start()
