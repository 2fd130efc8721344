"""
What stands on the server's topics and keys: external JSON, bytes that nobody can read, databases, the
layout.
"""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import bus as redis_bus
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.framing import pack, pack_names
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.code_blocks import block
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    Message,
    assert_nothing_waits,
    dropped,
    eventually,
    members_of,
    note,
    receive,
    receive_many,
    started,
)


def inbox_of(channel: str) -> str:
    """The topic of the session that made `channel`: `<prefix>.<session id>!<local>`."""
    return "inbox:" + channel.split("!")[0].rpartition(".")[2]


@contextmanager
def listening(server: EmbeddedServer, topic: str) -> Iterator[list[bytes]]:
    """Everything that passes on `topic`, read when the block ends."""
    passed: list[bytes] = []
    with redis.Redis(host=server.host, port=server.port) as client, client.pubsub() as pubsub:
        pubsub.subscribe(topic)
        pubsub.get_message(timeout=DEADLINE)
        yield passed
        while (message := pubsub.get_message(timeout=0.2)) is not None:
            passed.append(message["data"])


async def envelope_of(
    server: EmbeddedServer, prefix: str, layer: AsyncQueueChannelLayer, message: Message
) -> bytes:
    """The bytes that a group_send() to `room` puts on the wire."""
    with listening(server, f"{prefix}:0:group:room") as passed:
        await layer.group_send("room", message)
    assert len(passed) == 1
    return passed[0]


class TestExternal:
    """Publishing from outside, in any language: JSON on a group's topic."""

    async def test_json_reaches_the_members(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """A JSON object published on `<prefix>:<db>:group:<group>` is a message to the group."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        message = {"type": "chat.message", "text": "grüß dich", "n": [1, 2.5, None, True]}
        assert publish("group:room", json.dumps(message)) == 1
        publish("group:room", '{"type":"chat.message","text":"hi"}')
        for member in members:
            assert await receive_many(layer, member, 2) == [message, {"type": "chat.message", "text": "hi"}]

    async def test_each_member_owns_its_message(
        self, make_layer: MakeLayer, publish: contract.Publish
    ) -> None:
        """Members share nothing of it."""
        layer = await make_layer()
        first, second = await members_of(layer, "room", 2)
        publish("group:room", '{"type": "chat.message", "list": []}')
        (await receive(layer, first))["list"].append(1)
        assert (await receive(layer, second))["list"] == []

    async def test_it_is_counted_apart(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """`statistics()` says how many messages came from outside."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        publish("group:room", '{"type": "chat.message"}')
        await receive(layer, member)
        await layer.group_send("room", note(1))
        await receive(layer, member)
        assert layer.statistics().external == 1

    @pytest.mark.parametrize(
        "payload",
        [
            "{",
            "{}",
            '{"type": "chat.message"',
            '{"text": "no type"}',
            '{"type": 5}',
            '{"type": ""}',
            '{"type": null}',
            '{"type": "chat.message", "n": 1e400}',
            '{"type": "chat.message", "n": NaN}',
            '{"type": "chat.message", "n": 100000000000000000000}',
            '{"type": "chat.message"} and more',
            b'{"type": "\xff\xfe"}',
            b'{"type": "chat.message", "text": "\\ud800"}',
            "{" * 100_000,
            '{"a":' * 20_000 + "1" + "}" * 20_000,
        ],
        ids=lambda payload: repr(payload)[:40],
    )
    async def test_bad_json_is_counted_and_dropped(
        self, make_layer: MakeLayer, publish: contract.Publish, payload: str | bytes
    ) -> None:
        """What is no JSON object of a message's types, or says no type, harms nobody."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        reader = await started(receive(layer, member))
        publish("group:room", payload)
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await layer.group_send("room", note(1))
        assert await reader == note(1)

    async def test_too_large(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """`max_message_size` holds for what comes from outside."""
        layer = await make_layer(max_message_size=10_000)
        (member,) = await members_of(layer, "room", 1)
        publish("group:room", json.dumps({"type": "chat.message", "text": "x" * 10_000}))
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await assert_nothing_waits(layer, member)

    async def test_refused_with_encryption(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """With keys set, JSON from outside is dropped and counted."""
        layer = await make_layer(symmetric_encryption_keys=["key"])
        (member,) = await members_of(layer, "room", 1)
        publish("group:room", '{"type": "chat.message"}')
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)

    async def test_not_on_an_inbox(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """JSON belongs on a group's topic; on a session's inbox it is bad input."""
        layer = await make_layer()
        channel = await layer.new_channel()
        publish(inbox_of(channel), '{"type": "chat.message"}')
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await assert_nothing_waits(layer, channel)


GARBAGE = [
    b"",
    b"\x00",
    b"\x01",
    b"\xff" * 50,
    b"garbage",
    b"[1, 2]",
    b'"text"',
    b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x04evil\x94.",
    b"\x00" * 5000,
    random.Random(1).randbytes(3000),
]


class TestGarbage:
    """Unreadable bytes are counted and dropped; no consumer sees an exception."""

    @pytest.mark.parametrize("topic", ["group", "inbox"])
    @pytest.mark.parametrize("payload", GARBAGE, ids=lambda payload: repr(payload)[:30])
    async def test_garbage(
        self, make_layer: MakeLayer, publish: contract.Publish, topic: str, payload: bytes
    ) -> None:
        """Garbage on a group's topic or an inbox is one drop, and the reader goes on."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        reader = await started(receive(layer, member))
        assert publish("group:room" if topic == "group" else inbox_of(member), payload) == 1
        await eventually(lambda: dropped(layer) == 1, "the drop")
        await layer.group_send("room", note(1))
        assert await reader == note(1)

    async def test_names_that_are_none(self, make_layer: MakeLayer, publish: contract.Publish) -> None:
        """What is addressed to no channel of ours makes none, and its name stays a wrong one."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        own = member.partition("!")[0]
        session_id = own.rpartition(".")[2]
        names = [f"a b.{session_id}!x", f"{own}!", f"specific.{'0' * 16}!x", "jobs", ""]
        for number, name in enumerate(names, 1):
            publish(
                inbox_of(member), pack([(pack_names(name), Codec().encode(note(1)))], b"12345678", number)
            )
        await eventually(lambda: dropped(layer) == len(names), "the drops")
        with pytest.raises(TypeError, match="Channel name"):
            await layer.group_add("room", names[0])
        assert layer.statistics().channels == 1

    async def test_every_truncation(
        self, make_layer: MakeLayer, publish: contract.Publish, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """A real envelope cut off anywhere is never delivered, and the reader goes on."""
        layer = await make_layer(capacity=10_000)
        (member,) = await members_of(layer, "room", 1)
        envelope = await envelope_of(redis_server, prefix, layer, note(1))
        assert await receive(layer, member) == note(1)
        reader = await started(receive(layer, member))
        for length in range(len(envelope)):
            publish("group:room", envelope[:length])
            publish(inbox_of(member), envelope[:length])
        await layer.group_send("room", MARKER)
        assert await reader == MARKER
        await eventually(lambda: dropped(layer) == 2 * len(envelope), "the last drop")

    async def test_every_changed_byte(
        self, make_layer: MakeLayer, publish: contract.Publish, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """
        Whatever a changed byte makes of an envelope, no reader sees an exception, and what follows arrives.
        """
        layer = await make_layer(capacity=10_000)
        (member,) = await members_of(layer, "room", 1)
        envelope = await envelope_of(redis_server, prefix, layer, note(1))
        await receive(layer, member)
        chance = random.Random(2)
        for place in range(len(envelope)):
            for value in {0, 255, envelope[place] ^ 1, envelope[place] ^ 128, chance.randrange(256)}:
                changed = envelope[:place] + bytes([value]) + envelope[place + 1 :]
                publish("group:room", changed)
                publish(inbox_of(member), changed)
        await layer.group_send("room", MARKER)
        async with asyncio.timeout(DEADLINE):
            while await layer.receive(member) != MARKER:
                pass

    async def test_future_version(
        self, make_layer: MakeLayer, publish: contract.Publish, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """An envelope of an unknown version is bad input, not a crash."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        envelope = await envelope_of(redis_server, prefix, layer, note(1))
        await receive(layer, member)
        assert envelope[:1] != b"{"
        for version in (0, envelope[0] + 1, 0xFF):
            publish("group:room", bytes([version]) + envelope[1:])
        await eventually(lambda: dropped(layer) == 3, "the third drop")
        await assert_nothing_waits(layer, member)

    async def test_a_flood_is_not_a_flood_of_log_lines(
        self, make_layer: MakeLayer, publish: contract.Publish, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Hundreds of unreadable messages are hundreds in the count and a few in the log, with an event code.
        """
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for _ in range(300):
            publish("group:room", b"garbage")
        await eventually(lambda: dropped(layer) == 300, "the last drop")
        records = [record for record in caplog.records if record.name.startswith("channels_asyncq")]
        assert 1 <= len(records) <= 5
        assert all(getattr(record, "code", "") for record in records)
        await assert_nothing_waits(layer, member)

    async def test_garbage_in_a_normal_channel(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """What somebody else pushed onto a normal channel's list harms no worker."""
        layer = await make_layer()
        await layer.send("jobs", note(1))
        (key,) = (
            key
            for key in redis_server.command("KEYS", f"{prefix}:0:*queue:jobs*")
            if redis_server.command("TYPE", key) == b"list"
        )
        for payload in GARBAGE:
            redis_server.command("RPUSH", key, payload)
        await layer.send("jobs", note(2))
        assert await receive_many(layer, "jobs", 2) == [note(1), note(2)]


class TestDatabases:
    """Pub/sub ignores the database number; the layer does not."""

    async def test_databases_are_apart(self, make_layer: MakeLayer, redis_server: EmbeddedServer) -> None:
        """Sites on `/0` and `/1` with one prefix never meet: groups, normal channels, flush."""
        zero, one = await make_layer(), await make_layer(hosts=[redis_server.url_for(1)])
        (on_zero,), (on_one,) = await members_of(zero, "room", 1), await members_of(one, "room", 1)
        await zero.group_send("room", note(0))
        await one.group_send("room", note(1))
        await zero.send("jobs", note(2))
        assert await receive(zero, on_zero) == note(0)
        assert await receive(one, on_one) == note(1)
        await assert_nothing_waits(one, "jobs")
        await one.flush()
        await zero.group_send("room", note(3))
        assert await receive(zero, on_zero) == note(3)
        assert await receive(zero, "jobs") == note(2)
        await assert_nothing_waits(one, on_one)

    async def test_the_number_is_in_every_name(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """
        Keys and topics begin with `<prefix>:<db>:`, so that `~<prefix>:*` and `&<prefix>:*` are all the ACL
        asks.
        """
        layer = await make_layer(hosts=[redis_server.url_for(3)])
        (member,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(1))
        await receive(layer, member)
        topics = [topic.decode() for topic in redis_server.command("PUBSUB", "CHANNELS", "*")]
        ours = [topic for topic in topics if prefix in topic]
        assert f"{prefix}:3:group:room" in ours
        assert all(topic.startswith(f"{prefix}:3:") for topic in ours)
        with redis.Redis(host=redis_server.host, port=redis_server.port, db=3) as client:
            keys = client.keys(f"*{prefix}*")
        assert keys
        assert all(key.decode().startswith(f"{prefix}:3:") for key in keys)


class TestLayout:
    """`<prefix>:<db>:layouts`: processes that share a prefix share its partitions."""

    async def test_a_process_that_differs_is_refused(self, make_layer: MakeLayer) -> None:
        """The second session with another number of partitions gets ImproperlyConfigured with both values."""
        first, second = await make_layer(partitions=16), await make_layer(partitions=8)
        (member,) = await members_of(first, "room", 1)
        with pytest.raises(ImproperlyConfigured, match=r"(?s)(\b16\b.*\b8\b|\b8\b.*\b16\b)"):
            async with asyncio.timeout(DEADLINE):
                await second.group_send("room", note(1))
        with pytest.raises(ImproperlyConfigured):
            async with asyncio.timeout(DEADLINE):
                await second.new_channel()
        await first.group_send("room", note(2))
        assert await receive(first, member) == note(2)

    async def test_a_process_that_agrees(self, make_layer: MakeLayer) -> None:
        """The same number is fine, and so is another one under another prefix."""
        first, second = await make_layer(partitions=8), await make_layer(partitions=8)
        third = await make_layer(partitions=4, prefix="layout-of-another")
        (member,) = await members_of(first, "room", 1)
        await second.group_send("room", note(1))
        assert await receive(first, member) == note(1)
        await third.new_channel()

    async def test_the_key(self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
        """The keys are where the design says, expire by themselves, and flush() keeps them; close() does not."""
        layer = await make_layer()
        await members_of(layer, "room", 1)
        await layer.flush()
        assert redis_server.command("ZCARD", f"{prefix}:0:layouts") == 1
        for key in redis_server.command("KEYS", f"{prefix}:0:layouts*"):
            assert redis_server.command("PTTL", key) > 0
        await layer.close()
        assert redis_server.command("KEYS", f"{prefix}:0:layouts*") == [f"{prefix}:0:layouts:past".encode()]


class TestAccess:
    """The user of docs/settings-advanced.md may do what the layer does, and no more is asked."""

    @pytest.fixture
    def user(self, redis_server: EmbeddedServer, prefix: str) -> Iterator[str]:
        """The URL of such a user, for this prefix."""
        _, _, *rules = block("docs/settings-advanced.md", "text", having="user site ").split()
        redis_server.command(
            "ACL", "SETUSER", prefix, *(rule.replace("asgi:", f"{prefix}:") for rule in rules)
        )
        yield f"redis://{prefix}:secret@{redis_server.host}:{redis_server.port}/0"
        redis_server.command("ACL", "DELUSER", prefix)

    async def test_everything(self, user: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing of it is refused, up to the end of the layer."""
        async with contract.layers(hosts=[user], prefix=prefix, history={"room": {}}) as make_layer:
            layer, other = await make_layer(), await make_layer()
            position = await layer.position("room")
            (member,) = await members_of(layer, "room", 1)
            await layer.group_add("room", "jobs")
            await other.group_add("hall", member)
            for channel in (member, "jobs"):
                await other.send(channel, note(1))
                assert await receive(layer, channel) == note(1)
            await other.group_send("room", note(2))
            for channel in (member, "jobs"):
                assert await receive(layer, channel) == note(2)
            large = {"type": "test.note", "text": "x" * 100_000}
            await other.group_send("room", large, exclude=[member, "jobs"])
            assert (await layer.history("room")).messages == [note(2), large]
            replay = await layer.group_resume("room", await layer.new_channel(), since=position)
            assert replay.messages == [note(2), large]
            await other.send_wait("jobs", note(3))
            reading = await started(layer.receive("jobs"))
            reading.cancel()
            await asyncio.wait([reading])
            assert await receive(other, "jobs") == note(3)
            await other.group_discard("hall", member)
            await layer.group_discard("room", "jobs")
            assert (await layer.health()).ok
            await layer.flush()
        assert "refused" not in caplog.text and "NOPERM" not in caplog.text

    def test_every_command_of_the_scripts(self, user: str, redis_server: EmbeddedServer, prefix: str) -> None:
        """What only some cases call is granted as well."""
        granted = redis_server.command("ACL", "GETUSER", prefix)
        commands = str(granted).lower()
        for script in (Path(redis_bus.__file__).parent / "scripts").glob("*.lua"):
            for command in re.findall(r"redis\.call\('([A-Z]+)'", script.read_text()):
                assert re.search(rf"\+{command.lower()}\b", commands), f"{command} of {script.name}"


class TestServer:
    """What the layer leaves on the server."""

    async def test_subscriptions(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """One subscription per group with members, none per channel; none when the last member left."""
        layer = await make_layer()

        def topics(pattern: str) -> list[bytes]:
            return list(redis_server.command("PUBSUB", "CHANNELS", f"{prefix}:0:{pattern}"))

        await layer.new_channel()
        before = len(topics("*"))
        members = await members_of(layer, "room", 30)
        assert len(topics("group:*")) == 1
        assert len(topics("*")) == before + 1
        for member in members:
            await layer.group_discard("room", member)
        await eventually(lambda: not topics("group:*"), "the end of the subscription")

    async def test_a_message_to_a_group_is_one_command(
        self, own_redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """One script, however many members there are, in however many processes."""
        async with contract.layers(hosts=[own_redis_server.url], prefix=prefix) as make_layer:
            layers = [await make_layer() for _ in range(3)]
            for layer in layers:
                await members_of(layer, "room", 30)
            own_redis_server.command("CONFIG", "RESETSTAT")
            for n in range(50):
                await layers[0].group_send("room", note(n))
            text = own_redis_server.command("INFO", "commandstats").decode()
        scripts = re.search(r"^cmdstat_evalsha:calls=(\d+)", text, re.MULTILINE)
        # A few more are fences.
        assert scripts is not None
        assert 50 <= int(scripts[1]) < 100

    async def test_cancelled_group_add_leaves_no_subscription(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """A group that nobody joined in the end is not subscribed to."""
        layer = await make_layer()
        member = await layer.new_channel()
        for turns in range(20):
            joining = asyncio.create_task(layer.group_add(f"room.{turns}", member))
            await contract.steps(turns)
            joining.cancel()
            await contract.ended(joining)
            if not joining.cancelled():
                await layer.group_discard(f"room.{turns}", member)
        await eventually(
            lambda: not redis_server.command("PUBSUB", "CHANNELS", f"{prefix}:0:group:*"),
            "the end of the subscriptions",
        )

    async def test_close_leaves_no_connection(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer
    ) -> None:
        """Two connections per process, and none after close()."""
        # The server's own question for its clients is one of them.
        before = len(clients(redis_server))
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1))
        await receive(layer, member)
        await layer.send("jobs", note(1))
        await receive(layer, "jobs")
        assert len(clients(redis_server)) <= before + 2
        await layer.close()
        await eventually(lambda: len(clients(redis_server)) <= before, "the end of the connections")

    async def test_normal_channels_leave_nothing_for_ever(
        self, make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """Every key expires by itself."""
        layer = await make_layer()
        await layer.group_add("room", "jobs")
        for n in range(3):
            await layer.send("jobs", note(n))
        await receive(layer, "jobs")
        for key in redis_server.command("KEYS", f"{prefix}:*"):
            assert redis_server.command("PTTL", key) > 0, key


def clients(server: EmbeddedServer) -> list[str]:
    """The connections of the server, one line each."""
    return str(server.command("CLIENT", "LIST").decode()).splitlines()
