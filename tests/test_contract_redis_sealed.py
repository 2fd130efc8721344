"""
With `symmetric_encryption_keys`: what somebody who may read and write on the server, and has no key, cannot do.

Whatever was captured is put in again, changed or elsewhere. It is dropped and counted; what is genuine arrives.
"""

import time
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.contract import (
    MARKER,
    MakeLayer,
    Message,
    assert_nothing_waits,
    dropped,
    eventually,
    members_of,
    note,
    receive,
    started,
)
from tests.test_contract_redis_topics import envelope_of, inbox_of, listening

KEYS: dict[str, Any] = {"symmetric_encryption_keys": ["key"], "partitions": 1}
# Where they are in a batch.
NODE, NUMBER = slice(6, 14), slice(14, 22)
DIGITS_OF_EXPIRY = 13


@pytest.fixture
async def layer(make_layer: MakeLayer) -> AsyncQueueChannelLayer:
    return await make_layer(**KEYS)


@pytest.fixture
async def member(layer: AsyncQueueChannelLayer) -> str:
    """A channel of `layer` in the group `room`."""
    (member,) = await members_of(layer, "room", 1)
    return member


def changed(push: bytes, part: slice, value: bytes) -> bytes:
    """A push with another value in its header."""
    mark, space, batch = push.rpartition(b" ") if push.startswith(b"\x01#") else (b"", b"", push)
    return mark + space + batch[: part.start] + value + batch[part.stop :]


class Capture:
    """Takes what passes, and puts it in again."""

    def __init__(self, server: EmbeddedServer, prefix: str, publish: contract.Publish) -> None:
        self.server = server
        self.prefix = prefix
        self.publish = publish

    def key(self, name: str) -> str:
        return f"{self.prefix}:0:{name}"

    async def group_send(self, layer: AsyncQueueChannelLayer, message: Message) -> bytes:
        """What a send to `room` publishes."""
        return await envelope_of(self.server, self.prefix, layer, message)

    async def send(self, layer: AsyncQueueChannelLayer, channel: str, message: Message) -> bytes:
        """What a send to a channel of another process publishes."""
        with listening(self.server, self.key(inbox_of(channel))) as passed:
            await layer.send(channel, message)
        [push] = passed
        return push

    def item(self, channel: str) -> bytes:
        """What waits in a normal channel."""
        [item] = self.server.command("LRANGE", self.key(f"queue:{channel}"), 0, -1)
        assert isinstance(item, bytes)
        return item

    def put_in(self, channel: str, item: bytes) -> None:
        self.server.command("RPUSH", self.key(f"queue:{channel}"), item)
        self.publish(f"queue:{channel}", b"+")

    def log(self, topic: str, kind: str, data: bytes) -> None:
        self.server.command("XADD", self.key("log:0"), "*", "t", self.key(topic), kind, data)

    def last_entry(self) -> list[bytes]:
        """The fields of what was logged last."""
        [(_, fields)] = self.server.command("XREVRANGE", self.key("log:0"), "+", "-", "COUNT", 1)
        return list(fields)


@pytest.fixture
def capture(redis_server: EmbeddedServer, prefix: str, publish: contract.Publish) -> Capture:
    return Capture(redis_server, prefix, publish)


RECOVERY = pytest.mark.parametrize("recovery", [None, {}], ids=["unlogged", "logged"])


class TestReplays:
    """What is captured goes to nobody for whom it was not sealed."""

    @RECOVERY
    async def test_to_another_group(
        self, make_layer: MakeLayer, capture: Capture, recovery: dict[str, int] | None
    ) -> None:
        """A message to one group is none to another."""
        layer = await make_layer(**KEYS, recovery=recovery)
        await members_of(layer, "room", 1)
        (elsewhere,) = await members_of(layer, "hall", 1)
        push = await capture.group_send(layer, note(1))
        capture.publish("group:hall", push)
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await assert_nothing_waits(layer, elsewhere)

    async def test_to_an_inbox(self, layer: AsyncQueueChannelLayer, member: str, capture: Capture) -> None:
        """A message to a group is none to a channel, and no request to a session."""
        push = await capture.group_send(
            layer, {"type": "note", "do": "flush", "request": 1, "reply": "0" * 16}
        )
        capture.publish(inbox_of(member), push)
        capture.publish("all", push)
        await eventually(lambda: dropped(layer) == 2, "the drops")
        await layer.receive(member)
        await layer.group_send("room", note(2))
        assert await receive(layer, member) == note(2)

    async def test_from_one_session_to_another(
        self, make_layer: MakeLayer, layer: AsyncQueueChannelLayer, member: str, capture: Capture
    ) -> None:
        """What is addressed to a channel of one session is nothing to another, nor to a group."""
        other = await make_layer(**KEYS)
        (neighbour,) = await members_of(other, "hall", 1)
        push = await capture.send(other, member, note(1))
        capture.publish(inbox_of(neighbour), push)
        capture.publish("group:hall", push)
        await eventually(lambda: dropped(other) == 2, "the drops")
        await assert_nothing_waits(other, neighbour)

    async def test_again(self, layer: AsyncQueueChannelLayer, member: str, capture: Capture) -> None:
        """The same push again is a repeat; without its position in the log it is forged."""
        push = await capture.group_send(layer, note(1))
        assert await receive(layer, member) == note(1)
        capture.publish("group:room", push)
        assert push.startswith(b"\x01#")
        capture.publish("group:room", push.partition(b" ")[2])
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await assert_nothing_waits(layer, member)

    async def test_an_unlogged_one_as_logged(self, make_layer: MakeLayer, capture: Capture) -> None:
        """What is in no log is not said to be in one: it would be taken in a second time."""
        layer = await make_layer(**KEYS, recovery={"exclude": ["room"]})
        (member,) = await members_of(layer, "room", 1)
        push = await capture.group_send(layer, note(1))
        assert await receive(layer, member) == note(1)
        capture.publish("group:room", b"\x01#1-1 " + push)
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await assert_nothing_waits(layer, member)

    async def test_a_request_of_a_session(
        self, layer: AsyncQueueChannelLayer, member: str, capture: Capture
    ) -> None:
        """A flush is executed once: what is sent afterwards, and who joins, is not flushed by a repeat."""
        with listening(capture.server, capture.key("all")) as passed:
            await layer.flush()
        [flush] = passed
        await layer.group_add("room", member)
        capture.publish("all", flush)
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)


class TestNormalChannels:
    """What waits in a list was sealed for that list."""

    async def test_an_item_of_another_channel(self, layer: AsyncQueueChannelLayer, capture: Capture) -> None:
        """A job moved to another channel is dropped; the reader goes on."""
        await layer.send("jobs", note(1))
        reader = await started(receive(layer, "other"))
        capture.put_in("other", capture.item("jobs"))
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await layer.send("other", note(2))
        assert await reader == note(2)
        assert await receive(layer, "jobs") == note(1)

    async def test_a_message_to_a_group_of_that_name(
        self, layer: AsyncQueueChannelLayer, member: str, capture: Capture
    ) -> None:
        """A group's message is no job of the normal channel with the group's name, nor the other way round."""
        batch = (await capture.group_send(layer, note(1))).partition(b" ")[2]
        assert await receive(layer, member) == note(1)
        reader = await started(receive(layer, "room"))
        capture.put_in("room", b"9" * DIGITS_OF_EXPIRY + batch)
        await eventually(lambda: dropped(layer) == 1, "the drop of an item")
        reader.cancel()
        await layer.send("room", note(2))
        item = capture.item("room")[DIGITS_OF_EXPIRY:]
        capture.publish("group:room", item)
        capture.publish("group:room", b"\x01#1-1 " + item)
        await eventually(lambda: dropped(layer) == 3, "the drop of the pushes")
        await assert_nothing_waits(layer, member)


class TestForgeries:
    """The header is sealed with the body."""

    async def test_a_number(self, layer: AsyncQueueChannelLayer, member: str, capture: Capture) -> None:
        """A number that is put up does not mute its sender."""
        push = await capture.group_send(layer, note(1))
        capture.publish("group:room", changed(push, NUMBER, b"\x7f" * 8))
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await layer.group_send("room", note(2))
        assert [await receive(layer, member) for _ in range(2)] == [note(1), note(2)]

    async def test_a_sender(
        self, make_layer: MakeLayer, layer: AsyncQueueChannelLayer, member: str, capture: Capture
    ) -> None:
        """The message of one session is not taken for one of another, whose number it would use up."""
        other = await make_layer(**KEYS)
        victim = bytes.fromhex((await other.new_channel()).partition("!")[0].rpartition(".")[2])
        for n in range(5):
            push = await capture.group_send(layer, note(n))
            assert await receive(layer, member) == note(n)
        capture.publish("group:room", changed(push, NODE, victim))
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await other.group_send("room", MARKER)
        assert await receive(layer, member) == MARKER

    async def test_entries_of_the_log(
        self, make_layer: MakeLayer, capture: Capture, prefix: str, own_redis_server: EmbeddedServer
    ) -> None:
        """
        What somebody puts into a log is not delivered, tells of no loss and mutes nobody: with a changed header,
        of another topic, in the place of a header, or a header in the place of a message.
        """
        capture.server = own_redis_server
        config = {"hosts": [own_redis_server.url], "on_loss": "loss", **KEYS}
        layer, sender = await make_layer(**config), await make_layer(**config)
        (member,) = await members_of(layer, "room", 1)
        await members_of(layer, "hall", 1)
        entries = []
        for size, kind in ((10, b"e"), (100_000, b"h")):
            await sender.group_send("room", {"type": "note", "text": "x" * size})
            await receive(layer, member)
            entries.append(capture.last_entry())
            assert entries[-1][2] == kind
        for _, _, kind, data in entries:
            for forged in (changed(data, NUMBER, b"\x7f" * 8), changed(data, NODE, b"\0" * 8)):
                capture.log("group:room", "h", forged)
                capture.log("group:room", "e", forged)
            capture.log("group:hall", "h", data)
            capture.log("group:hall", "e", data)
            capture.log("group:room", "e" if kind == b"h" else "h", data)
        before = layer.statistics().reconnects
        own_redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: layer.statistics().reconnects > before, "the reconnect")
        await eventually(lambda: layer.statistics().connected, "the end of the recovery")
        assert dropped(layer) == 2 * 7
        await sender.group_send("room", note(1))
        assert await receive(layer, member) == note(1)
        assert layer.statistics().told == {}


async def test_sent_again_after_long(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was unanswered for nearly `send_timeout` is sent again as it is, and not too old when it arrives."""
    layer = await make_layer(**KEYS, expiry=5, send_timeout=30)
    (member,) = await members_of(layer, "room", 1)
    now, before = time.time_ns, iter([25 * 10**9])
    monkeypatch.setattr("channels_asyncq.messages.sealing.time_ns", lambda: now() - next(before, 0))
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)


async def test_an_expiry_that_is_set_later(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The age that a sealed message may have follows `layer.expiry`."""
    layer = await make_layer(**KEYS, expiry=5)
    (member,) = await members_of(layer, "room", 1)
    layer.expiry = 100
    now, before = time.time_ns, iter([60 * 10**9])
    monkeypatch.setattr("channels_asyncq.messages.sealing.time_ns", lambda: now() - next(before, 0))
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)


@RECOVERY
async def test_what_comes_too_late_is_told(
    make_layer: MakeLayer, recovery: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for a process that stood still for too long is dropped: its groups are told, once."""
    layer = await make_layer(**KEYS, expiry=5, recovery=recovery, on_loss="layer.loss")
    (member,) = await members_of(layer, "room", 1)
    now, before = time.time_ns, iter([60 * 10**9])
    monkeypatch.setattr("channels_asyncq.messages.sealing.time_ns", lambda: now() - next(before, 0))
    await layer.group_send("room", note(1))
    await eventually(lambda: dropped(layer) == 1, "the drop")
    await layer.health()
    await layer.group_send("room", note(2))
    assert await receive(layer, member) == {"type": "layer.loss", "reason": "expired", "groups": ["room"]}
    assert await receive(layer, member) == note(2)
