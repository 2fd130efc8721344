"""Positions, and channels that come back: nothing is missed, and nothing comes twice."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import threading
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any

import pytest

from channels_asyncq import (
    AsyncQueueChannelLayer,
    ChannelClosed,
    ChannelLayerError,
    MessagesLost,
    Replay,
    Subscription,
    sync,
)
from channels_asyncq.exceptions import LayerClosed
from channels_asyncq.messages.positions import MOST_CHANNELS, MOST_CHARACTERS, Position
from tests.contract import (
    DEADLINE,
    Call,
    MakeLayer,
    Message,
    assert_nothing_waits,
    calls,
    ended,
    eventually,
    every,
    member_of,
    note,
    notes,
    queued,
    receive,
    receive_many,
    started,
    steps,
)
from tests.sessions import session_of

ROOMY: dict[str, Any] = {"capacity": 100_000, "recovery": {"resume_messages": 100_000}}


async def send_all(layer: AsyncQueueChannelLayer, group: str, messages: list[Message]) -> None:
    """Send at once, as many tasks do: a server gets several messages in a command."""
    await every(layer.group_send(group, message) for message in messages)


async def resumed(layer: AsyncQueueChannelLayer, group: str, since: str) -> tuple[str, Replay]:
    """A new channel that comes back."""
    channel = await layer.new_channel()
    async with asyncio.timeout(DEADLINE):
        return channel, await layer.group_resume(group, channel, since=since)


async def all_of(layer: AsyncQueueChannelLayer, channel: str, replay: Replay, count: int) -> list[Message]:
    """What a channel has missed, and what was still on its way to a session that is subscribed."""
    assert replay.recovered and not replay.reason
    return replay.messages + await receive_many(layer, channel, count - len(replay.messages))


async def take(subscription: Subscription, count: int) -> list[Message]:
    """The next messages of a subscription."""
    async with asyncio.timeout(DEADLINE):
        return [await anext(subscription) for _ in range(count)]


async def two_partitions(layer: AsyncQueueChannelLayer) -> tuple[str, str]:
    """Two groups that are not in one partition."""
    first = "room.0"
    for number in itertools.count(1):
        other = f"room.{number}"
        if len(Position.parse(await layer.position(first, other)).places) == 2:
            break
    return first, other


def changed(text: str, **values: Any) -> str:
    """The position with other values in each of its places."""
    parsed = Position.parse(text)
    places = {partition: place._replace(**values) for partition, place in parsed.places.items()}
    return str(Position(places, parsed.channels))


class Crowd:
    """Two processes that send all the time, and a channel that is there. They rest for `pause` between sends."""

    def __init__(
        self, layers: list[AsyncQueueChannelLayer], group: str = "room", pause: float | None = None
    ) -> None:
        self.layers = layers
        self.group = group
        self.pause = pause
        self.sent = [0, 0]
        self.is_over = False
        self._random = random.Random(7)

    async def __aenter__(self) -> Crowd:
        self.witness = await member_of(self.layers[0], self.group)
        self._tasks = [asyncio.create_task(self._send(number)) for number in (0, 1)]
        return self

    async def _send(self, sender: int) -> None:
        layer = self.layers[sender]
        is_last = False
        while not is_last:
            is_last = self.is_over  # once more at the end: both have sent something since any moment
            first = self.sent[sender]
            count = self._random.choice([1, 1, 2, 5, 16, 16, 40])
            self.sent[sender] += count
            numbers = range(first, first + count)
            await asyncio.gather(
                *(
                    layer.group_send(self.group, {"type": "test.note", "from": sender, "n": n})
                    for n in numbers
                )
            )
            if self.pause is not None:
                await asyncio.sleep(self.pause)

    async def finish(self) -> list[Message]:
        """End the senders; return everything that they have sent, in order."""
        self.is_over = True
        await every(self._tasks)
        return await receive_many(self.layers[0], self.witness, sum(self.sent))

    async def __aexit__(self, *error: object) -> None:
        self.is_over = True
        await asyncio.gather(*self._tasks, return_exceptions=True)


@coroutine
def steps_of(target: Coroutine[Any, Any, object], at: int) -> Generator[Any, Any, bool]:
    """Run a coroutine and cancel it at its await number `at`; return False if it has fewer."""
    task = asyncio.current_task()
    assert task is not None
    error: BaseException | None = None
    for number in itertools.count():
        try:
            waited = target.send(None) if error is None else target.throw(error)
        except StopIteration:
            return number > at
        if number == at:
            task.cancel()
        error = None
        try:
            yield waited
        except BaseException as exc:
            error = exc
    raise AssertionError


async def cancelled_at(target: Coroutine[Any, Any, object], at: int) -> bool:
    """Whether a coroutine that is cancelled at its await number `at` was cancelled; False if it has fewer."""
    task = asyncio.create_task(_run(target, at))
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([task])
    return task.cancelled() or task.result()


async def _run(target: Coroutine[Any, Any, object], at: int) -> bool:
    steps: Any = steps_of(target, at)
    return bool(await steps)


class Positions:
    """`position()`."""

    async def test_what_is_sent_later_is_behind_it(self, make_layer: MakeLayer) -> None:
        """A send that has returned is not replayed; what is sent after `position()` is, from any process."""
        layer, other = await make_layer(), await make_layer()
        for n in range(5):
            await other.group_send("room", note(n))
            position = await layer.position("room")
            await layer.group_send("room", note(100 + n))
            channel, replay = await resumed(other, "room", position)
            assert await all_of(other, channel, replay, 1) == [note(100 + n)]
            await assert_nothing_waits(other, channel)

    async def test_it_is_safe_in_urls(self, make_layer: MakeLayer) -> None:
        """It has unreserved characters only, at most 4096, with 16 partitions and all channels too."""
        layer = await make_layer()
        channel = await layer.new_channel()
        position = await layer.position(*(f"room.{n}" for n in range(200)), channel=channel)
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", position) and len(position) <= MOST_CHARACTERS
        for _ in range(MOST_CHANNELS + 1):
            channel, replay = await resumed(layer, "room.0", position)
            assert re.fullmatch(r"[A-Za-z0-9._~-]+", replay.position)
            position = replay.position
        assert len(Position.parse(position).channels) == MOST_CHANNELS

    async def test_from_code_without_an_event_loop(self, make_layer: MakeLayer) -> None:
        """`sync.position()` returns it in a thread, and `position()` in an event loop of a moment."""
        layer = await make_layer()
        for take in (
            lambda: sync.position("room", layer=layer),
            lambda: asyncio.run(layer.position("room")),
        ):
            await layer.group_send("room", note(1))
            position = await asyncio.to_thread(take)
            await layer.group_send("room", note(2))
            channel, replay = await resumed(layer, "room", position)
            assert await all_of(layer, channel, replay, 1) == [note(2)]

    async def test_wrong_arguments(self, make_layer: MakeLayer) -> None:
        """Each is a TypeError that names the value."""
        layer = await make_layer()
        cases: list[tuple[Call, str]] = [
            (lambda: layer.position(), "name at least one group"),
            (lambda: layer.position("no room"), "no room"),
            (lambda: layer.position(5), "5"),  # type: ignore[arg-type]
            (lambda: layer.position("room", channel="jobs"), "'jobs' is not a channel that new_channel"),
            (lambda: layer.position("room", channel="specific.made!up"), "made!up"),
            (lambda: layer.position("room", channel="a b"), "a b"),
        ]
        for call, words in cases:
            with pytest.raises(TypeError, match=words):
                await call()
        with pytest.raises(TypeError, match="name at least one group"):
            layer.position_from_thread()

    async def test_after_close(self, make_layer: MakeLayer) -> None:
        """Everything raises LayerClosed."""
        layer = await make_layer()
        channel = await layer.new_channel()
        position = await layer.position("room")
        await layer.close()
        for call in calls(
            lambda: layer.position("room"),
            lambda: layer.group_resume("room", channel, since=position),
            lambda: layer.subscribe("room").__aenter__(),
            lambda: layer.subscribe("room", since=position).__aenter__(),
            lambda: asyncio.to_thread(lambda: sync.position("room", layer=layer)),
        ):
            with pytest.raises(LayerClosed):
                await call()


class Resumes:
    """`group_resume()`."""

    async def test_leaving_and_coming_back(self, make_layer: MakeLayer) -> None:
        """While two processes send without pause, nothing is missed and nothing comes twice, in any process."""
        layers = [await make_layer(**ROOMY) for _ in range(3)]
        turns = itertools.cycle([layers[2], layers[0], layers[2]])
        got: list[Message] = []
        async with Crowd(layers[:2]) as crowd:
            position = await layers[2].position("room")
            sent = list(crowd.sent)
            live: list[Message] = []
            for _ in range(15):
                layer = next(turns)
                channel, replay = await resumed(layer, "room", position)
                assert replay.recovered, replay.reason
                got += replay.messages
                position = replay.position
                before, rest = live, max(random.randrange(30), len(live) - len(replay.messages))
                live = await receive_many(layer, channel, rest)
                assert (replay.messages + live)[: len(before)] == before
                await layer.group_discard("room", channel)
                live += await receive_many(layer, channel, queued(layer, channel))
                await layer.close_channel(channel)
            everything = await crowd.finish()
        _, replay = await resumed(layers[2], "room", position)
        assert replay.recovered
        got += replay.messages
        assert got == everything[-len(got) :]
        assert all({"type": "test.note", "from": sender, "n": n} in got for sender, n in enumerate(sent))

    async def test_live_messages_follow(self, make_layer: MakeLayer) -> None:
        """What was missed comes in the result, and from the channel what is sent next, while others send."""
        layer, sender = await make_layer(**ROOMY), await make_layer(**ROOMY)
        async with Crowd([sender, layer]) as crowd:
            position = await layer.position("room")
            joined = [await resumed(layer, "room", position) for _ in range(10)]
            everything = await crowd.finish()
        _, whole = await resumed(sender, "room", position)
        assert whole.messages == everything[-len(whole.messages) :]
        for channel, replay in joined:
            assert replay.recovered
            rest = await receive_many(layer, channel, len(whole.messages) - len(replay.messages))
            assert replay.messages + rest == whole.messages
            await assert_nothing_waits(layer, channel)

    async def test_former_channels_stay_excluded(self, make_layer: MakeLayer) -> None:
        """What excludes a channel of an earlier connection does not come, neither in the replay nor live."""
        layer, other = await make_layer(), await make_layer()
        first = await layer.new_channel()
        position = await layer.position("room", channel=first)
        await other.group_send("room", note(1), exclude=[first])
        await other.group_send("room", note(2))
        second, replay = await resumed(other, "room", position)
        assert replay.messages == [note(2)]
        await layer.group_send("room", note(3), exclude=[first])
        await layer.group_send("room", note(4), exclude=[second])
        await layer.group_send("room", note(5))
        assert await receive(other, second) == note(5)
        assert Position.parse(replay.position).channels == (first, second)
        third, replay = await resumed(layer, "room", replay.position)
        assert replay.messages == [note(5)]
        for gone in (first, second, third):
            await other.group_send("room", note(6), exclude=[gone])
        await other.group_send("room", note(7))
        assert await receive(layer, third) == note(7)
        position = await layer.position("room", channel=third)
        assert Position.parse(position).channels == (first, second, third)

    async def test_excluded_after_a_refusal(self, make_layer: MakeLayer) -> None:
        """A refused position still excludes the former channels from now on."""
        layer = await make_layer()
        first = await layer.new_channel()
        position = changed(await layer.position("room", channel=first), epoch="00000000")
        second, replay = await resumed(layer, "room", position)
        assert replay.reason == "server_changed"
        await layer.group_send("room", note(1), exclude=[first])
        await layer.group_send("room", note(2))
        assert await receive(layer, second) == note(2)
        assert Position.parse(replay.position).channels == (first, second)

    async def test_a_member_that_resumes(self, make_layer: MakeLayer) -> None:
        """What waits in its channel comes in the replay and not again; messages to the channel itself stay."""
        layer, other = await make_layer(), await make_layer()
        channel = await member_of(layer)
        position = await layer.position("room")
        await send_all(other, "room", notes(3))
        await layer.send(channel, note(50))
        await eventually(lambda: queued(layer, channel) == 4, "the messages")
        replay = await layer.group_resume("room", channel, since=position)
        assert replay.messages == notes(3)
        await other.group_send("room", note(3))
        assert await receive_many(layer, channel, 2) == [note(50), note(3)]
        again = await layer.group_resume("room", channel, since=replay.position)
        assert again.messages == [note(3)]
        await assert_nothing_waits(layer, channel)
        assert set(layer.groups["room"]) == {channel}
        await layer.group_discard("room", channel)
        assert "room" not in layer.groups

    async def test_many_at_once(self, make_layer: MakeLayer) -> None:
        """Channels that come back together, from places of their own, each get what they have missed."""
        layer, other = await make_layer(**ROOMY), await make_layer(**ROOMY)
        positions = []
        for n in range(30):
            positions.append(await other.position("room"))
            await other.group_send("room", note(n))
        results = await every(resumed(layer, "room", position) for position in positions)
        for n, (_, replay) in enumerate(results):
            assert replay.messages == notes(30)[n:]
        await other.group_send("room", note(30))
        for channel, _ in results:
            assert await receive(layer, channel) == note(30)
            await assert_nothing_waits(layer, channel)

    async def test_after_close_pools(self, make_layer: MakeLayer) -> None:
        """With its connections at rest it works as before, for a new channel and for a member."""
        layer, other = await make_layer(), await make_layer()
        position = await layer.position("room")
        for n in range(3):
            await other.group_send("room", note(n))
            await layer.close_pools()
            channel, replay = await resumed(layer, "room", position)
            assert await all_of(layer, channel, replay, 1) == [note(n)]
            await layer.close_pools()
            position = await layer.position("room")

    async def test_wrong_arguments(self, make_layer: MakeLayer) -> None:
        """A wrong name is a TypeError; a channel of another process, or a closed one, is told so."""
        layer, other = await make_layer(), await make_layer()
        own, foreign, closed = await layer.new_channel(), await other.new_channel(), await layer.new_channel()
        position = await layer.position("room")
        for group, channel in (("no room", own), ("room", "no channel"), ("room", 5)):
            with pytest.raises(TypeError):
                await layer.group_resume(group, channel, since=position)  # type: ignore[arg-type]
        for channel, words in (
            (foreign, "on the loop that called new_channel"),
            ("jobs", "'jobs'.*new_channel"),
        ):
            with pytest.raises(ChannelLayerError, match=words):
                await layer.group_resume("room", channel, since=position)
        await layer.close_channel(closed)
        with pytest.raises(ChannelClosed):
            await layer.group_resume("room", closed, since=position)
        assert layer.groups == {}

    @pytest.mark.parametrize("since", ["position", "garbage"])
    async def test_cancelled_anywhere(self, make_layer: MakeLayer, since: str) -> None:
        """Cancelling at any await leaves no half member, and no topic that is held."""
        layer, other = await make_layer(), await make_layer()
        position = await layer.position("room")
        await other.group_send("room", note(1))
        await layer.new_channel()
        session = session_of(layer)
        for at in itertools.count():
            channel = await layer.new_channel()
            target = layer.group_resume("room", channel, since=position if since == "position" else since)
            was_cancelled = await cancelled_at(target, at)
            assert not session.resumer._lingering._held
            if not was_cancelled:
                break
            assert "room" not in layer.groups
            assert session.hub.groups.by_topic == {}
            await layer.close_channel(channel)
        await other.group_send("room", note(2))
        assert await receive(layer, channel) == note(2)
        await assert_nothing_waits(layer, channel)

    async def test_closed_meanwhile(self, make_layer: MakeLayer) -> None:
        """A channel that is closed while it comes back is in no group after that."""
        layer, other = await make_layer(), await make_layer()
        position = await layer.position("room")
        await other.group_send("room", note(1))
        for turns in range(5):
            channel = await layer.new_channel()
            task = asyncio.create_task(layer.group_resume("room", channel, since=position))
            await steps(turns)
            await layer.close_channel(channel)
            try:
                replay = await ended(task)
                assert replay is not None and replay.messages == [note(1)]
            except ChannelClosed:
                assert layer.statistics().resumes > 0
            assert "room" not in layer.groups and channel not in layer.channels
            assert not session_of(layer).resumer._lingering._held

    async def test_cancelled_as_a_member(self, make_layer: MakeLayer) -> None:
        """A channel that was a member before stays one, and misses nothing."""
        layer, other = await make_layer(), await make_layer()
        channel = await member_of(layer)
        position = await layer.position("room")
        task = await started(layer.group_resume("room", channel, since=position))
        task.cancel()
        await asyncio.wait([task])
        await other.group_send("room", note(1))
        assert await receive(layer, channel) == note(1)


class Refusals:
    """The reasons for which nothing is replayed. The channel joins all the same."""

    async def refused(
        self, layer: AsyncQueueChannelLayer, position: Any, reason: str, group: str = "room"
    ) -> Replay:
        """Resume, and check that it is refused for a reason, and that the channel gets what follows."""
        before = layer.statistics().refused.get(reason, 0)
        channel, replay = await resumed(layer, group, position)
        assert (replay.recovered, replay.reason, replay.messages) == (False, reason, [])
        assert layer.statistics().refused[reason] == before + 1
        await layer.group_send(group, note(1000))
        assert await receive(layer, channel) == note(1000)
        await assert_nothing_waits(layer, channel)
        return replay

    async def goes_on(self, layer: AsyncQueueChannelLayer, replay: Replay) -> None:
        """Check that the position of a refused resume is one to come back from."""
        _, again = await resumed(layer, "room", replay.position)
        assert again.recovered and again.messages == [note(1000)]

    @pytest.mark.parametrize(
        "text",
        ["", "x", "1", "2~0011aabb~0.1.1", "1~0.1.1", "1~0011aabb~0.1", "1~0011AABB~0.1.1", "1~0011aabb~zzzz.1.1",
         "1~0011aabb~0.-1.1", "1~0011aabb~0.1.1~~x", "1~0011aabb~0.1.1\n", "1" * 5000, "é", None, 5],
        ids=repr,
    )  # fmt: skip
    async def test_no_position(self, make_layer: MakeLayer, text: Any) -> None:
        """Text from anywhere is refused by the result, and raises nothing."""
        layer = await make_layer()
        reason = "unknown_position" if text == "1" else "bad_token"
        await self.goes_on(layer, await self.refused(layer, text, reason))

    async def test_another_epoch(self, make_layer: MakeLayer) -> None:
        """After `flush()`, and for an epoch that never was, the server is another one."""
        layer = await make_layer()
        position = await layer.position("room")
        await layer.group_send("room", note(1))
        await self.refused(layer, changed(position, epoch="01234567"), "server_changed")
        await layer.flush()
        replay = await self.refused(layer, position, "server_changed")
        await self.goes_on(layer, replay)

    async def test_another_partition(self, make_layer: MakeLayer) -> None:
        """A position without the group's partition says nothing of what was missed."""
        layer = await make_layer()
        first, second = await two_partitions(layer)
        await self.refused(layer, await layer.position(first), "unknown_position", second)

    async def test_ahead(self, make_layer: MakeLayer) -> None:
        """A position that nobody can have yet is refused, after one look at most."""
        layer = await make_layer()
        position = await layer.position("room")
        [place] = Position.parse(position).places.values()
        late = place.position + (3_600_000 << 64)
        await self.refused(layer, changed(position, position=late), "ahead")

    async def test_before_the_beginning(self, make_layer: MakeLayer) -> None:
        """A position from before the log is refused."""
        layer = await make_layer()
        position = await layer.position("room")
        await layer.group_send("room", note(1))
        await self.refused(layer, changed(position, position=0), "trimmed")

    async def test_trimmed(self, make_layer: MakeLayer) -> None:
        """A log that has dropped messages behind the position says so."""
        layer = await make_layer(recovery={"messages": 100, "resume_messages": 100_000}, partitions=1)
        position = await layer.position("room")
        for n in range(30):
            await send_all(layer, "lobby", [{"type": "test.note", "n": n, "text": "x" * 1100}] * 16)
        replay = await self.refused(layer, position, "trimmed")
        await self.goes_on(layer, replay)

    async def test_too_large(self, make_layer: MakeLayer) -> None:
        """A message that is larger than a log keeps ends the replay; one of another group does not."""
        layer = await make_layer(recovery={"message_bytes": 1024}, partitions=1)
        position = await layer.position("room")
        large = {"type": "test.note", "text": "x" * 3000}
        await layer.group_send("lobby", large)
        await layer.group_send("room", note(1))
        channel, replay = await resumed(layer, "room", position)
        assert replay.recovered and replay.messages == [note(1)]
        await layer.group_send("room", large)
        assert await receive(layer, channel) == large
        replay = await self.refused(layer, position, "too_large")
        await self.goes_on(layer, replay)

    async def test_too_large_live(self, make_layer: MakeLayer) -> None:
        """A session that has got the message itself gives the same answer."""
        layer = await make_layer(recovery={"message_bytes": 1024})
        member = await member_of(layer)
        await resumed(layer, "room", await layer.position("room"))
        position = await layer.position("room")
        await layer.group_send("room", {"type": "test.note", "text": "x" * 3000})
        await receive(layer, member)
        await self.refused(layer, position, "too_large")

    async def test_too_many(self, make_layer: MakeLayer) -> None:
        """`resume_messages` is the most that one resume gets."""
        layer = await make_layer(recovery={"resume_messages": 10})
        position = await layer.position("room")
        await send_all(layer, "room", notes(10))
        channel, replay = await resumed(layer, "room", position)
        assert replay.recovered and len(replay.messages) == 10
        await layer.group_send("room", note(10))
        assert await receive(layer, channel) == note(10)
        replay = await self.refused(layer, position, "too_many")
        await self.goes_on(layer, replay)

    @pytest.mark.parametrize("recovery", [None, {"exclude": ["room"]}], ids=["no logs", "excluded"])
    async def test_not_logged(self, make_layer: MakeLayer, recovery: dict[str, Any] | None) -> None:
        """A group without a log takes no place in a position, and cannot be resumed."""
        layer = await make_layer(recovery=recovery)
        position = await layer.position("room")
        assert Position.parse(position).places == {}
        replay = await self.refused(layer, position, "not_logged")
        assert Position.parse(replay.position).places == {}
        if recovery is not None:
            logged = await layer.position("lobby")
            assert Position.parse(logged).places
            await self.refused(layer, logged, "not_logged")


class Subscriptions:
    """`subscribe()`."""

    async def test_leaving_and_coming_back(self, make_layer: MakeLayer) -> None:
        """From the position behind any message everything follows, once and in order, in any process."""
        layers = [await make_layer(**ROOMY) for _ in range(3)]
        turns = itertools.cycle([layers[2], layers[0], layers[2]])
        position: str | None = None
        got: list[Message] = []
        async with Crowd(layers[:2]) as crowd:
            for number in range(25):
                async with (
                    next(turns).subscribe("room", since=position) as subscription,
                    asyncio.timeout(DEADLINE),
                ):
                    assert subscription.recovered, subscription.reason
                    got += await take(subscription, random.randrange(40) if number else 3)
                    position = subscription.position
            everything = await crowd.finish()
        async with layers[1].subscribe("room", since=position) as subscription, asyncio.timeout(DEADLINE):
            while not got or got[-1] != everything[-1]:
                got.append(await anext(subscription))
        assert len(got) > 3 and got == everything[-len(got) :]

    async def test_several_groups(self, make_layer: MakeLayer) -> None:
        """Each group's messages come once and in order, wherever a reader stops; a group may have no log."""
        layer = await make_layer(recovery={"exclude": ["typing"], "resume_messages": 1000}, capacity=1000)
        other = await make_layer(recovery={"exclude": ["typing"], "resume_messages": 1000}, capacity=1000)
        first, second = await two_partitions(layer)
        groups = (first, second, "lobby", "typing")
        position = await layer.position(*groups)
        for n in range(20):
            for group in groups:
                await other.group_send(group, {"type": "test.note", "group": group, "n": n})
        got: list[Message] = []
        while len(got) < 60:
            async with layer.subscribe(*groups, since=position) as subscription, asyncio.timeout(DEADLINE):
                assert subscription.recovered
                got += await take(subscription, min(7, 60 - len(got)))
                position = subscription.position
        for group in groups[:3]:
            assert [message["n"] for message in got if message["group"] == group] == list(range(20))
        async with layer.subscribe(*groups, since=position) as subscription, asyncio.timeout(DEADLINE):
            for group in groups:
                await other.group_send(group, {"type": "test.note", "group": group, "n": 20})
            assert {(await anext(subscription))["group"] for _ in groups} == set(groups)

    async def test_groups_of_one_partition(self, make_layer: MakeLayer) -> None:
        """Messages of several groups come in the order of their log, so a reader may stop behind any of them."""
        layer = await make_layer(partitions=1)
        position = await layer.position("room", "lobby")
        for n in range(6):
            await layer.group_send("lobby" if n % 2 else "room", note(n))
        got: list[Message] = []
        while len(got) < 6:
            async with layer.subscribe("room", "lobby", since=position) as subscription:
                assert subscription.recovered
                got += await take(subscription, 2)
                position = subscription.position
        assert got == notes(6)

    async def test_all_or_nothing(self, make_layer: MakeLayer) -> None:
        """If one group cannot be resumed nothing is replayed, of no group; all are joined."""
        layer = await make_layer(recovery={"message_bytes": 1024})
        first, second = await two_partitions(layer)
        only_one, position = await layer.position(first), await layer.position(first, second)
        await layer.group_send(first, note(1))
        await layer.group_send(second, {"type": "test.note", "text": "x" * 3000})
        for since, reason in ((only_one, "unknown_position"), (position, "too_large")):
            async with layer.subscribe(first, second, since=since) as subscription:
                assert (subscription.recovered, subscription.reason) == (False, reason)
                await layer.group_send(first, note(2))
                await layer.group_send(second, note(3))
                async with asyncio.timeout(DEADLINE):
                    got = [await anext(subscription) for _ in range(2)]
                assert sorted(message["n"] for message in got) == [2, 3]

    async def test_without_a_position(self, make_layer: MakeLayer) -> None:
        """It gets what is sent from now on; from its position follows what does not exclude its channel."""
        layer, other = await make_layer(), await make_layer()
        await other.group_send("room", note(0))
        async with layer.subscribe("room") as subscription:
            assert (subscription.recovered, subscription.reason) == (True, "")
            before = subscription.position
            await other.group_send("room", note(1))
            async with asyncio.timeout(DEADLINE):
                assert await anext(subscription) == note(1)
            await other.group_send("room", note(2), exclude=[subscription.channel])
            await other.group_send("room", note(3))
            async with asyncio.timeout(DEADLINE):
                assert await anext(subscription) == note(3)
            after = subscription.position
        await other.group_send("room", note(4))
        for position, expected in ((before, [note(1), note(3), note(4)]), (after, [note(4)])):
            channel, replay = await resumed(other, "room", position)
            assert await all_of(other, channel, replay, len(expected)) == expected

    async def test_slow_reader(self, make_layer: MakeLayer) -> None:
        """A reader that is slower than its channel holds gets everything in order: the rest is in the log."""
        layer, other = await make_layer(capacity=2), await make_layer()
        async with layer.subscribe("room") as subscription:
            got: list[Message] = []
            for part in range(3):
                await send_all(other, "room", notes(150)[50 * part : 50 * part + 50])
                await eventually(
                    lambda: layer.statistics().dropped.get("overflow", 0) > 40 * part,  # noqa: B023
                    "what finds no place",
                )
                got += await take(subscription, 45)
            got += await take(subscription, 15)
            await other.group_send("room", note(150))
            async with asyncio.timeout(DEADLINE):
                assert await anext(subscription) == note(150)
        assert got == notes(150)

    async def test_lost(self, make_layer: MakeLayer) -> None:
        """What no log gives again is told by MessagesLost, with reason and groups; then it goes on."""
        layer = await make_layer(capacity=2, recovery={"resume_messages": 10})
        async with layer.subscribe("room") as subscription, asyncio.timeout(DEADLINE):
            await send_all(layer, "room", notes(30))
            await eventually(lambda: layer.statistics().dropped.get("overflow") == 28, "the loss")
            got: list[Message] = []
            with pytest.raises(MessagesLost, match=r"room.*too_many") as raised:
                while True:
                    got.append(await anext(subscription))
            assert (raised.value.reason, raised.value.groups) == ("too_many", ("room",))
            assert got == notes(len(got)) and len(got) <= 2
            await layer.group_send("room", note(100))
            assert [await anext(subscription)] == [note(100)]
            position = subscription.position
            await layer.group_send("room", note(101))
            channel, replay = await resumed(layer, "room", position)
            assert await all_of(layer, channel, replay, 1) == [note(101)]

    async def test_no_log_to_mend_from(self, make_layer: MakeLayer) -> None:
        """Without logs an overflow is told: nothing is silent."""
        layer = await make_layer(capacity=2, recovery=None)
        async with layer.subscribe("room") as subscription, asyncio.timeout(DEADLINE):
            await send_all(layer, "room", notes(30))
            await eventually(lambda: layer.statistics().dropped.get("overflow"), "the loss")
            with pytest.raises(MessagesLost) as raised:
                for _ in range(4):
                    await anext(subscription)
            assert (raised.value.reason, raised.value.groups) == ("overflow", ("room",))

    async def test_leaves_no_channel(self, make_layer: MakeLayer) -> None:
        """After the block there is no channel, no member and no held topic, after an error too."""
        layer = await make_layer()
        position = await layer.position("room")
        before = layer.statistics().channels
        for since in (None, position, "garbage"):
            async with layer.subscribe("room", "lobby", since=since) as subscription:
                assert subscription.channel in layer.groups["room"] and subscription.channel in layer.channels
            with pytest.raises(ZeroDivisionError):
                async with layer.subscribe("room", since=since):
                    raise ZeroDivisionError
        assert layer.groups == {} and layer.statistics().channels == before
        assert not session_of(layer).resumer._lingering._held

    @pytest.mark.parametrize("since", ["position", None])
    async def test_entering_is_cancelled_anywhere(self, make_layer: MakeLayer, since: str | None) -> None:
        """Cancelling at any await leaves no channel behind."""
        layer = await make_layer()
        position = await layer.position("room") if since else None
        for at in itertools.count():
            before = layer.statistics().channels
            subscription = layer.subscribe("room", "lobby", since=position)
            if not await cancelled_at(subscription.__aenter__(), at):
                await subscription.__aexit__(None, None, None)
                break
            assert layer.groups == {} and layer.statistics().channels == before
        assert layer.groups == {}

    async def test_iterating_is_cancelled(self, make_layer: MakeLayer) -> None:
        """A cancelled wait loses no message."""
        layer = await make_layer(capacity=2)
        got: list[Message] = []
        async with layer.subscribe("room") as subscription:
            for n in range(10):
                task = await started(subscription.__anext__())
                task.cancel()
                if n % 2:
                    await send_all(layer, "room", [note(n - 1), note(n)])
                got += filter(None, [await ended(task)])
            assert got + await take(subscription, 10 - len(got)) == notes(10)

    async def test_ends_with_the_layer(self, make_layer: MakeLayer) -> None:
        """Iterating ends when the layer is closed, and what has arrived comes before."""
        layer = await make_layer()
        async with layer.subscribe("room") as subscription:
            got: list[Message] = []

            async def follow() -> None:
                async for message in subscription:
                    got.append(message)  # noqa: PERF401  (read while it runs)

            task = await started(follow())
            await layer.group_send("room", note(1))
            await eventually(lambda: got, "the message")
            await layer.close()
            await ended(task)
            assert got == [note(1)]

    async def test_used_wrongly(self, make_layer: MakeLayer) -> None:
        """Names are checked at once; it is entered once, and used inside its block."""
        layer = await make_layer()
        with pytest.raises(TypeError, match="name at least one group"):
            layer.subscribe()
        with pytest.raises(TypeError, match="no room"):
            layer.subscribe("room", "no room")
        subscription = layer.subscribe("room")
        with pytest.raises(RuntimeError, match="use `async with"):
            await anext(subscription)
        async with subscription:
            with pytest.raises(RuntimeError, match=r"call subscribe\(\) again"):
                await subscription.__aenter__()


class Threads:
    """Several event loops of one process."""

    async def test_senders_of_other_loops(self, make_layer: MakeLayer) -> None:
        """What threads send while a channel leaves and comes back is missed by none, and comes once."""
        layer = await make_layer(**ROOMY)
        counts, is_over = [0, 0], threading.Event()

        def send(sender: int) -> None:
            async def run() -> None:
                while not is_over.is_set() and counts[sender] < 3000:
                    first = counts[sender]
                    await asyncio.gather(
                        *(
                            layer.group_send("room", {"type": "test.note", "from": sender, "n": first + n})
                            for n in range(5)
                        )
                    )
                    counts[sender] += 5

            asyncio.run(run())

        position = await layer.position("room")
        threads = [asyncio.create_task(asyncio.to_thread(send, sender)) for sender in (0, 1)]
        got: list[Message] = []
        try:
            for _ in range(20):
                async with layer.subscribe("room", since=position) as subscription, asyncio.timeout(DEADLINE):
                    assert subscription.recovered, subscription.reason
                    got += await take(subscription, 20)
                    position = subscription.position
        finally:
            is_over.set()
            await asyncio.gather(*threads)
        _, replay = await resumed(layer, "room", position)
        got += replay.messages
        for sender in (0, 1):
            assert [each["n"] for each in got if each["from"] == sender] == list(range(counts[sender]))
