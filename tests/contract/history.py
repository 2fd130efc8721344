"""Histories of groups: pages of them, and what channels that come back get from them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, History, sync
from channels_asyncq.exceptions import LayerClosed
from channels_asyncq.messages.positions import Position
from tests.contract import (
    DEADLINE,
    Call,
    LetTimePass,
    MakeLayer,
    Message,
    assert_nothing_waits,
    calls,
    eventually,
    member_of,
    note,
    notes,
    receive,
    receive_many,
)
from tests.contract.resume import (
    ROOMY,
    Crowd,
    all_of,
    cancelled_at,
    changed,
    resumed,
    send_all,
    take,
    two_partitions,
)
from tests.sessions import session_of

KEPT: dict[str, Any] = {"history": {"room*": {"seconds": 300, "messages": 100}}}
# One log, which a few large messages of another group trim.
SHORT_LOG: dict[str, Any] = {
    "partitions": 1,
    "recovery": {"messages": 100, "message_bytes": 1024, "resume_messages": 100_000},
}
LARGE: Message = {"type": "test.note", "text": "x" * 3000}


async def trim_the_log(layer: AsyncQueueChannelLayer) -> None:
    """Send so much to another group that the log forgets what was sent before."""
    for n in range(30):
        await send_all(layer, "lobby", [{"type": "test.note", "n": n, "text": "x" * 1000}] * 16)


async def all_pages(layer: AsyncQueueChannelLayer, group: str, limit: int) -> list[Message]:
    """Everything in a history, page by page."""
    found: list[Message] = []
    before: str | None = None
    while True:
        async with asyncio.timeout(DEADLINE):
            page = await layer.history(group, limit=limit, before=before)
        assert len(page.positions) == len(page.messages) <= limit
        found = page.messages + found
        before = page.before
        if before is None:
            return found


class Pages:
    """`history()`."""

    async def test_the_last_messages(self, make_layer: MakeLayer) -> None:
        """The last ones come in order, from any process, and then the pages before them, to the beginning."""
        layer, other = await make_layer(**KEPT), await make_layer(**KEPT)
        assert (await layer.history("room")).messages == []
        for n in range(10):
            await (layer if n % 2 else other).group_send("room", note(n))
        last = await layer.history("room", limit=4)
        assert last.messages == notes(10)[6:]
        middle = await other.history("room", 4, last.before)
        assert middle.messages == notes(10)[2:6]
        first = await layer.history("room", before=middle.before)
        assert (first.messages, first.before) == (notes(2), None)
        assert (await layer.history("room")).messages == notes(10)
        assert (await layer.history("room", 10)).before is None

    @pytest.mark.parametrize("limit", [1, 7, 16])
    async def test_pages_of_messages_that_were_sent_at_once(self, make_layer: MakeLayer, limit: int) -> None:
        """Messages that share an entry are apart: each is in one page."""
        layer = await make_layer(**KEPT)
        await send_all(layer, "room", notes(40))
        assert await all_pages(layer, "room", limit) == notes(40)

    async def test_positions(self, make_layer: MakeLayer) -> None:
        """A position of a history is one to resume from, and a position is one to end a page at."""
        layer, other = await make_layer(**KEPT), await make_layer(**KEPT)
        await send_all(layer, "room", notes(20))
        page = await layer.history("room")
        for n, position in enumerate(page.positions):
            channel, replay = await resumed(other, "room", position)
            assert replay.recovered and replay.messages == notes(20)[n + 1 :]
            await other.close_channel(channel)
            until = await layer.history("room", before=position)
            assert (until.messages, until.positions) == (notes(n + 1), page.positions[: n + 1])
        last = await layer.history("room", limit=3)
        assert last.before is not None
        channel, replay = await resumed(other, "room", last.before)
        assert replay.messages == last.messages == notes(20)[17:]

    async def test_history_and_resume(self, make_layer: MakeLayer) -> None:
        """What a page has, and what a channel gets that resumes from its position, is everything once."""
        layer, sender = [await make_layer(**ROOMY, **KEPT) for _ in range(2)]
        # With pauses: in memory, senders that never wait overtake what the log keeps.
        async with Crowd([sender, layer], pause=0.001) as crowd:
            pages: list[tuple[History, str, list[Message]]] = []
            for _ in range(5):
                position = await layer.position("room")
                for page in (await layer.history("room", 5), await layer.history("room", 5, position)):
                    channel, replay = await resumed(layer, "room", page.position)
                    assert replay.recovered, replay.reason
                    pages.append((page, channel, replay.messages))
            everything = await crowd.finish()
        for page, channel, missed in pages:
            first = page.messages[0] if page.messages else (missed or everything)[0]
            expected = everything[everything.index(first) :]
            got = page.messages + missed
            got += await receive_many(layer, channel, len(expected) - len(got))
            assert got == expected

    async def test_bounds(self, make_layer: MakeLayer) -> None:
        """It has the last `messages`, of the first pattern that matches; each group has its own."""
        layer = await make_layer(history={"room.small": {"messages": 3}, "room*": {"messages": 5}})
        for n in range(10):
            for group in ("room", "room.2", "room.small"):
                await layer.group_send(group, note(n))
        for group, first in (("room", 5), ("room.2", 5), ("room.small", 7)):
            assert (await layer.history(group)).messages == notes(10)[first:]

    async def test_large_messages_shorten_it(self, make_layer: MakeLayer) -> None:
        """A history has a mebibyte for large messages, and its last message in any case."""
        layer = await make_layer(history={"room": {"messages": 50}})
        large = [{"type": "test.note", "n": n, "text": "x" * 200_000} for n in range(8)]
        for message in large:
            await layer.group_send("room", message)
        assert (await layer.history("room")).messages == large[3:]
        huge = {"type": "test.note", "text": "x" * 1_500_000}
        await layer.group_send("room", huge)
        assert (await layer.history("room")).messages == [huge]

    async def test_seconds(self, make_layer: MakeLayer, let_time_pass: LetTimePass) -> None:
        """Messages that are older than `seconds` are not in it, whether newer ones were sent or not."""
        layer = await make_layer(history={"room*": {"seconds": 4}})
        await layer.group_send("room", note(1))
        await layer.group_send("room.2", note(1))
        await let_time_pass(2.0)
        await layer.group_send("room", note(2))
        assert (await layer.history("room")).messages == [note(1), note(2)]
        async with asyncio.timeout(DEADLINE):
            while (messages := (await layer.history("room")).messages) == [note(1), note(2)]:
                await let_time_pass(0.05)
            assert messages == [note(2)]
            while (await layer.history("room.2")).messages:
                await let_time_pass(0.05)

    async def test_excluded_channels(self, make_layer: MakeLayer) -> None:
        """It is for pages, so it has the messages that exclude a channel too; a position keeps its channels."""
        layer = await make_layer(**KEPT)
        channel = await member_of(layer)
        await layer.group_send("room", note(1), exclude=[channel])
        position = await layer.position("room", channel=channel)
        page = await layer.history("room", before=position)
        assert page.messages == [note(1)]
        assert Position.parse(page.position).channels == (channel,)

    async def test_after_flush(self, make_layer: MakeLayer) -> None:
        """It is empty, in every process, and then has what is sent later."""
        layer, other = await make_layer(**KEPT), await make_layer(**KEPT)
        await layer.group_send("room", note(1))
        position = await layer.position("room")
        await other.flush()
        for each in (layer, other):
            page = await each.history("room")
            assert (page.messages, page.before) == ([], None)
        await layer.group_send("room", note(2))
        assert (await other.history("room")).messages == [note(2)]
        assert (await other.history("room", before=position)).messages == []

    async def test_from_code_without_an_event_loop(self, make_layer: MakeLayer) -> None:
        """`sync.history()` returns it in a thread, and `history()` in an event loop of a moment."""
        layer = await make_layer(**KEPT)
        await send_all(layer, "room", notes(5))
        for get in (
            lambda: sync.history("room", 3, layer=layer),
            lambda: asyncio.run(layer.history("room", 3)),
        ):
            page = await asyncio.to_thread(get)
            assert page.messages == notes(5)[2:]
            page = await asyncio.to_thread(sync.history, "room", before=page.before, layer=layer)
            assert page.messages == notes(2)
        with pytest.raises(RuntimeError, match=r"await layer.history"):
            sync.history("room", layer=layer)

    async def test_wrong_arguments(self, make_layer: MakeLayer) -> None:
        """Each has an error that names the value and the remedy."""
        layer = await make_layer(history={"*": {}}, recovery={"exclude": ["typing.*"]})
        without = await make_layer()
        first, second = await two_partitions(layer)
        elsewhere = await layer.position(first)
        cases: list[tuple[Call, type[Exception], str]] = [
            (lambda: layer.history("no room"), TypeError, "no room"),
            (lambda: layer.history(5), TypeError, "5"),  # type: ignore[arg-type]
            (lambda: layer.history("room", "5"), TypeError, "limit must be an int, not '5'"),  # type: ignore[arg-type]
            (lambda: layer.history("room", True), TypeError, "True"),
            (lambda: layer.history("room", 0), ValueError, "1 to 1000, not 0"),
            (lambda: layer.history("room", 1001), ValueError, "1001"),
            (lambda: layer.history("room", before=5), TypeError, "5"),  # type: ignore[arg-type]
            (lambda: layer.history("room", before=""), ValueError, "position"),
            (lambda: layer.history("room", before="garbage"), ValueError, "garbage"),
            (lambda: layer.history(second, before=elsewhere), ValueError, f"no position of group '{second}'"),
            (lambda: layer.history("typing.7"), ChannelLayerError, "'typing.7' has no history: .*`exclude`"),
            (lambda: without.history("room"), ChannelLayerError, "'room' has no history: .*\"history\": "),
        ]
        for call, kind, words in cases:
            with pytest.raises(kind, match=words):
                await call()

    async def test_after_close(self, make_layer: MakeLayer) -> None:
        """It raises LayerClosed."""
        layer = await make_layer(**KEPT)
        await layer.new_channel()
        await layer.close()
        for call in calls(
            lambda: layer.history("room"),
            lambda: asyncio.to_thread(lambda: sync.history("room", layer=layer)),
        ):
            with pytest.raises(LayerClosed):
                await call()

    async def test_other_groups(self, make_layer: MakeLayer) -> None:
        """Messages to groups without a history are delivered and resumed as before."""
        layer = await make_layer(**KEPT)
        channel = await member_of(layer, "lobby")
        position = await layer.position("lobby")
        await send_all(layer, "lobby", notes(3))
        assert await receive_many(layer, channel, 3) == notes(3)
        _, replay = await resumed(layer, "lobby", position)
        assert replay.messages == notes(3)


class HistoryResumes:
    """Resumes of what the log does not have."""

    async def refused(
        self, layer: AsyncQueueChannelLayer, position: str, reason: str, group: str = "room"
    ) -> None:
        """Resume, and check that it is refused for a reason, and that the channel gets what follows."""
        channel, replay = await resumed(layer, group, position)
        assert (replay.recovered, replay.reason, replay.messages) == (False, reason, [])
        await layer.group_send(group, note(1000))
        assert await receive(layer, channel) == note(1000)
        await assert_nothing_waits(layer, channel)

    async def test_trimmed(self, make_layer: MakeLayer) -> None:
        """What the log has trimmed comes from the history, and then what follows; other groups are refused."""
        layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
        position = await layer.position("room", "room.quiet", "lobby", "chat")
        await send_all(other, "room", notes(20))
        await trim_the_log(layer)
        await other.group_send("room", note(20))
        for each in (layer, other):
            channel, replay = await resumed(each, "room", position)
            assert await all_of(each, channel, replay, 21) == notes(21)
            assert replay.messages == notes(21)
            await layer.group_send("room", note(100))
            assert await receive(each, channel) == note(100)
            await assert_nothing_waits(each, channel)
            _, again = await resumed(other, "room", replay.position)
            assert again.messages == [note(100)]
            await each.close_channel(channel)
            _, quiet = await resumed(each, "room.quiet", position)
            assert quiet.recovered and quiet.messages == []
            await self.refused(each, position, "trimmed", "chat")
            _, replay = await resumed(each, "room", position)
            assert replay.messages[:21] == notes(21)
            position = again.position
            await send_all(other, "room", notes(21))
            await trim_the_log(layer)

    async def test_too_large(self, make_layer: MakeLayer) -> None:
        """A message that no log keeps comes from the history, in its place, live before or not."""
        layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
        member = await member_of(layer)
        position = await layer.position("room", "lobby")
        sent = [note(0), LARGE, note(1), {**LARGE, "n": 2}, note(3)]
        for message in sent:
            await other.group_send("room", message)
        assert await receive_many(layer, member, 5) == sent
        for each in (layer, other):
            channel, replay = await resumed(each, "room", position)
            assert replay.recovered and replay.messages == sent
            await layer.group_send("room", note(4))
            assert await receive(each, channel) == note(4)
            await assert_nothing_waits(each, channel)
            sent = [*sent, note(4)]
            await each.close_channel(channel)
        await layer.group_send("lobby", LARGE)
        await self.refused(layer, position, "too_large", "lobby")

    async def test_too_short(self, make_layer: MakeLayer) -> None:
        """A history that does not reach so far recovers nothing: the reason is that of the log."""
        config = {"history": {"room": {"messages": 5}}, **SHORT_LOG}
        layer, other = await make_layer(**config), await make_layer(**config)
        position = await layer.position("room")
        for message in (LARGE, *notes(4)):
            await layer.group_send("room", message)
        _, replay = await resumed(layer, "room", position)
        assert replay.recovered and replay.messages == [LARGE, *notes(4)]
        await layer.group_send("room", note(4))
        await self.refused(layer, position, "too_large")
        await trim_the_log(layer)
        await self.refused(other, position, "trimmed")

    async def test_too_old(self, make_layer: MakeLayer, let_time_pass: LetTimePass) -> None:
        """A history recovers nothing that is older than its `seconds`."""
        layer = await make_layer(history={"room*": {"seconds": 1}}, **SHORT_LOG)
        position = await layer.position("room", "room.quiet")
        await layer.group_send("room", note(1))
        await trim_the_log(layer)
        await let_time_pass(1.1)
        await self.refused(layer, position, "trimmed")
        await self.refused(layer, position, "trimmed", "room.quiet")

    async def test_a_crowd(self, make_layer: MakeLayer) -> None:
        """While two processes send and the log is short, nothing is missed and nothing comes twice."""
        config = {"history": {"room": {"messages": 10_000}}, "capacity": 100_000, **SHORT_LOG}
        layers = [await make_layer(**config) for _ in range(3)]
        # With pauses, as the history has no more than these messages.
        async with Crowd(layers[:2], pause=0.02) as crowd:
            positions = [await layers[2].position("room")]
            joined: list[tuple[AsyncQueueChannelLayer, str, list[Message]]] = []
            for turn in range(6):
                await trim_the_log(layers[0])
                # More than two sends have at most, so a message has arrived since the last position.
                enough = sum(crowd.sent) + 100
                await eventually(lambda: sum(crowd.sent) > enough, "more messages")  # noqa: B023
                positions.append(await layers[2].position("room"))
                layer = layers[turn % 3]
                channel, replay = await resumed(layer, "room", positions[turn // 2])
                assert replay.recovered, replay.reason
                joined.append((layer, channel, replay.messages))
            everything = await crowd.finish()
        assert len(everything) > 20
        _, whole = await resumed(layers[2], "room", positions[0])
        assert whole.recovered and whole.messages == everything[-len(whole.messages) :]
        for layer, channel, missed in joined:
            first = everything.index(missed[0])
            rest = await receive_many(layer, channel, len(everything) - first - len(missed))
            assert missed + rest == everything[first:]
            await assert_nothing_waits(layer, channel)

    async def test_several_groups(self, make_layer: MakeLayer) -> None:
        """Messages of histories and of logs come in one order, and a reader may stop behind any of them."""
        layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
        position = await layer.position("room", "room.2", "chat")
        for n in range(10):
            await other.group_send("room.2" if n % 2 else "room", LARGE | note(n) if n == 4 else note(n))
        got: list[Message] = []
        groups = ("room", "room.2")
        while len(got) < 10:
            await trim_the_log(other)
            async with layer.subscribe(*groups, since=position) as subscription, asyncio.timeout(DEADLINE):
                assert subscription.recovered, subscription.reason
                got += await take(subscription, 2)
                position = subscription.position
        assert got == [LARGE | note(n) if n == 4 else note(n) for n in range(10)]
        await trim_the_log(other)
        async with layer.subscribe("room", "chat", since=position) as subscription:
            assert (subscription.recovered, subscription.reason) == (False, "trimmed")

    async def test_former_channels_stay_excluded(self, make_layer: MakeLayer) -> None:
        """What excludes a channel of an earlier connection does not come from a history either."""
        layer = await make_layer(**KEPT, **SHORT_LOG)
        former = await layer.new_channel()
        position = await layer.position("room", channel=former)
        await layer.group_send("room", note(1), exclude=[former])
        await layer.group_send("room", note(2))
        await layer.group_send("room", LARGE, exclude=[former])
        await trim_the_log(layer)
        _, replay = await resumed(layer, "room", position)
        assert replay.recovered and replay.messages == [note(2)]

    async def test_too_many(self, make_layer: MakeLayer) -> None:
        """`resume_messages` is the most that one resume gets, from histories too."""
        log = {"partitions": 1, "recovery": {"messages": 100, "resume_messages": 10, "message_bytes": 1024}}
        layer = await make_layer(**KEPT, **log)
        position = await layer.position("room")
        await send_all(layer, "room", notes(10))
        await trim_the_log(layer)
        _, replay = await resumed(layer, "room", position)
        assert replay.messages == notes(10)
        await layer.group_send("room", note(10))
        await self.refused(layer, position, "too_many")

    async def test_another_epoch(self, make_layer: MakeLayer) -> None:
        """A position of another epoch, or from before a flush, gets nothing from a history."""
        layer = await make_layer(**KEPT, **SHORT_LOG)
        position = await layer.position("room")
        await layer.group_send("room", LARGE)
        await self.refused(layer, changed(position, epoch="01234567"), "server_changed")
        await layer.flush()
        await layer.group_send("room", LARGE)
        await self.refused(layer, position, "server_changed")

    @pytest.mark.parametrize("kind", ["trimmed", "too large"])
    async def test_cancelled_anywhere(self, make_layer: MakeLayer, kind: str) -> None:
        """Cancelling at any await leaves no half member, and no topic that is held."""
        layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
        position = await layer.position("room")
        await other.group_send("room", LARGE)
        if kind == "trimmed":
            await trim_the_log(other)
        await layer.new_channel()
        session = session_of(layer)
        for at in itertools.count():
            channel = await layer.new_channel()
            was_cancelled = await cancelled_at(layer.group_resume("room", channel, since=position), at)
            assert not session.resumer._lingering._held
            if not was_cancelled:
                break
            assert "room" not in layer.groups
            await layer.close_channel(channel)
        await other.group_send("room", note(2))
        assert await receive(layer, channel) == note(2)
        await assert_nothing_waits(layer, channel)

    async def test_a_slow_reader(self, make_layer: MakeLayer) -> None:
        """What a channel has lost by overflow comes from the history, if it was too large for the log."""
        layer = await make_layer(capacity=2, **KEPT, **SHORT_LOG)
        async with layer.subscribe("room") as subscription:
            sent = [LARGE | note(n) if n % 5 == 4 else note(n) for n in range(30)]
            await send_all(layer, "room", sent)
            await eventually(lambda: layer.statistics().dropped.get("overflow"), "what finds no place")
            assert await take(subscription, 30) == sent
