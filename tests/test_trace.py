"""`manage.py asyncq trace`: what waits, what was dropped and why, and what a log has."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from django.core.management import CommandError

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.local.counters import MOST_DROPS
from tests.code_blocks import block
from tests.consumers import installed
from tests.contract import DEADLINE, MakeLayer, eventually, note, receive
from tests.operating import asyncq, shape, transcript
from tests.processes.handles import START_TIMEOUT, Agent, agents

Row = dict[str, Any]
PAGE = "docs/operating.md"
#: Nobody is missing, so nothing takes so long.
PATIENT = ("--timeout", "20")


@pytest.fixture(params=["memory", "redis"])
def make_any(request: pytest.FixtureRequest) -> MakeLayer:
    make_layer: MakeLayer = request.getfixturevalue(f"make_{request.param}")
    return make_layer


async def answer(layer: AsyncQueueChannelLayer, name: str, limit: int = 20) -> Row:
    """The answer of the only session."""
    survey = await layer.survey("trace", timeout=DEADLINE, name=name, limit=limit)
    [answer] = survey.answers
    return answer.body


async def full_channel(layer: AsyncQueueChannelLayer, group: str) -> str:
    """A channel in a group, with as many messages as it may hold; they are note(0) and so on."""
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    for n in range(layer.capacity):
        await layer.group_send(group, note(n))
    await eventually(lambda: layer.channels[channel].full(), "the messages")
    return channel


# What an event loop remembers


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "close"])
async def test_full_channel(make_any: MakeLayer, overflow: str) -> None:
    """The message that was dropped is named, with the channel, the group and the reason."""
    layer = await make_any(capacity=2, overflow=overflow)
    channel = await full_channel(layer, "room")
    await layer.group_send("room", {"type": "the.last"})
    await eventually(lambda: bool(layer.statistics().dropped), "the drop")
    for name in (channel, "room"):
        body = await answer(layer, name)
        [drop] = body["dropped"]
        assert (drop["channel"], drop["target"], drop["reason"]) == (channel, "room", "overflow")
        assert drop["type"] == ("test.note" if overflow == "drop_oldest" else "the.last")
        assert drop["count"] == 1 and drop["size"] > 10
        assert body["drops_since"] is None
    assert body["channel"] is None
    body = await answer(layer, channel)
    assert body["is_owner"] and body["is_closed"] is (overflow == "close")
    types = [each["type"] for each in (body["channel"] or {"messages": []})["messages"]]
    assert types == {"drop_newest": ["test.note"] * 2, "drop_oldest": ["test.note", "the.last"]}.get(
        overflow, ["test.note"] * 2
    )
    assert (await answer(layer, "another"))["dropped"] == []


async def test_other_reasons(make_any: MakeLayer) -> None:
    """Messages that expired, that waited when their channel closed or was flushed, or came after the end."""
    layer = await make_any(capacity=2, expiry=0.2)
    channel = await full_channel(layer, "room")
    await asyncio.sleep(0.25)
    await layer.send(channel, note(3))
    assert await receive(layer, channel) == note(3)
    body = await answer(layer, channel)
    assert [drop["reason"] for drop in body["dropped"]] == ["expired"] * 2

    layer.expiry = 60
    opened = await layer.open_channel()
    for n in range(2):
        await layer.send(opened.name, note(n))
    opened.close()
    body = await answer(layer, opened.name)
    [drop] = body["dropped"]
    assert (drop["reason"], drop["count"], drop["sender"], drop["type"]) == ("closed", 2, None, None)
    assert body["is_closed"] and body["channel"] is None

    await layer.send(channel, note(4))
    await layer.flush()
    [drop] = (await answer(layer, channel))["dropped"][2:]
    assert (drop["reason"], drop["count"]) == ("flushed", 1)


async def test_copy_for_a_full_normal_channel(make_any: MakeLayer) -> None:
    """The process that sent to the group remembers it."""
    layer = await make_any(capacity=1)
    await layer.group_add("room", "jobs")
    for n in range(2):
        await layer.group_send("room", note(n))
    [drop] = (await answer(layer, "jobs"))["dropped"]
    assert (drop["channel"], drop["reason"], drop["count"]) == ("jobs", "overflow", 1)


async def test_bound(make_memory: MakeLayer) -> None:
    """The last drops are remembered; the answer says since when, and has as many as were asked for."""
    layer = await make_memory(capacity=1)
    channel = await full_channel(layer, "room")
    for n in range(1, MOST_DROPS):
        await layer.group_send("room", note(n))
    body = await answer(layer, channel, limit=3)
    assert layer.statistics().dropped == {"overflow": MOST_DROPS - 1}
    assert len(body["dropped"]) == 3 and body["drops_since"] is None
    for n in range(2):
        await layer.group_send("room", note(n))
    body = await answer(layer, channel, limit=1000)
    assert len(body["dropped"]) == MOST_DROPS
    assert body["drops_since"] == pytest.approx(body["dropped"][0]["at"], abs=1)


async def test_large_message(make_memory: MakeLayer) -> None:
    """Its size is remembered; its bytes are not, so its type is not known."""
    layer = await make_memory(capacity=1)
    channel = await full_channel(layer, "room")
    await layer.group_send("room", {"type": "large", "text": "x" * 5000})
    [drop] = (await answer(layer, channel))["dropped"]
    assert drop["size"] > 5000 and drop["type"] is None


# Logs


async def test_logged_messages(make_any: MakeLayer) -> None:
    """The last messages of one group, oldest first, whatever else is in the log."""
    layer = await make_any(partitions=1)
    await layer.position("room")  # memory:// keeps logs from then on
    for n in range(5):
        await layer.group_send("room", note(n), exclude=["specific.a!b"])
    await asyncio.gather(*(layer.group_send("lobby", note(n)) for n in range(1200)))
    await layer.group_send("room", {"type": "the.last"})
    found = await layer.logged_messages("room", 3)
    assert [each.type for each in found] == ["test.note", "test.note", "the.last"]
    assert {each.target for each in found} == {"room"}
    assert [each.excluded for each in found] == [("specific.a!b",), ("specific.a!b",), ()]
    assert [each.size for each in found] == [19, 19, 15]
    assert sorted(found, key=lambda each: each.at) == found
    assert len({each.id for each in found}) == 3
    assert len(await layer.logged_messages("lobby", 2000)) == 1200
    assert len({each.id for each in await layer.logged_messages("lobby", 2000)}) == 1200
    assert await layer.logged_messages("nobody") == []
    with pytest.raises(TypeError):
        await layer.logged_messages("not a name")
    with pytest.raises(TypeError, match="limit must be an int, not '3'"):
        await layer.logged_messages("room", "3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit must be 1 or more, not 0"):
        await layer.logged_messages("room", 0)


async def test_header_and_no_log(make_any: MakeLayer) -> None:
    """A message that is too large for the log has no size and no type there; a group without a log has none."""
    layer = await make_any(recovery={"message_bytes": 1024, "exclude": ["typing"]})
    await layer.position("room")
    await layer.group_send("room", {"type": "large", "text": "x" * 2000})
    await layer.group_send("typing", note(1))
    [message] = await layer.logged_messages("room")
    assert (message.size, message.type) == (None, None)
    assert await layer.logged_messages("typing") == []
    without = await make_any(recovery=None, prefix="another")
    await without.group_send("room", note(1))
    assert await without.logged_messages("room") == []


async def test_channel_in_the_log(make_redis: MakeLayer) -> None:
    """What other processes send to a channel is in the log of its session."""
    layer, other = await make_redis(), await make_redis()
    first, second = [await layer.new_channel() for _ in range(2)]
    for n in range(3):
        await other.send(first, note(n))
        await other.send(second, {"type": "another"})
    found = await layer.logged_messages(first)
    assert [(each.type, each.target) for each in found] == [("test.note", first)] * 3


# The command


async def _four_messages(reader: Agent, sender: Agent) -> str:
    """One is delivered, two wait, and one finds no place; return the channel."""
    channel: str = await reader.do("new_channel")
    await reader.do("group_add", "room.7", channel)
    for n in range(4):
        await sender.do("group_send", "room.7", {"type": "chat.message", "n": n})
        if n == 0:
            await reader.do("receive", channel)
    async with asyncio.timeout(START_TIMEOUT):
        while (await reader.do("figures"))["dropped"] != {"overflow": 1}:
            pass
    return channel


def without_roles(lines: list[str]) -> list[str]:
    return [re.sub(r"PROCESS:\w+", "PROCESS", line) for line in lines]


@pytest.mark.processes
@pytest.mark.timeout(120)
@pytest.mark.parametrize("keys", [[], ["a key of this test"]], ids=["plain", "encrypted"])
async def test_why_a_message_was_dropped(redis_url: str, prefix: str, keys: list[str]) -> None:
    """
    The command says of each message to a full channel what became of it, and which channel dropped which one, in
    the words of the page.
    """
    config: Row = {"hosts": [redis_url], "prefix": prefix, "capacity": 2, "symmetric_encryption_keys": keys}
    async with agents(2, **config) as [reader, sender], installed(AsyncQueueChannelLayer(**config)):
        channel = await _four_messages(reader, sender)

        arguments, output = transcript(block(PAGE, "console", having="asyncq trace room.7\n"))
        said = await asyncq(*arguments, *PATIENT)
        assert said.status == 0
        assert without_roles(shape(said.text)) == without_roles(shape(output))
        found = (await asyncq("trace", "room.7", "--json", *PATIENT)).json
        assert [row["type"] for row in found["messages"]] == ["chat.message"] * 4
        assert {row["from"].split(":")[1] for row in found["messages"]} == {str(sender.process.pid)}
        [drop] = found["dropped"]
        assert drop["id"] == found["messages"][3]["id"]
        assert (drop["channel"], drop["reason"]) == (channel, "overflow")
        assert drop["process"].split(":")[1] == str(reader.process.pid)
        last = (await asyncq("trace", "room.7", "--last", "1", "--json", *PATIENT)).json
        assert last["messages"] == found["messages"][3:]

        (command, _), output = transcript(block(PAGE, "console", having="asyncq trace 'specific."))
        said = await asyncq(command, channel, *PATIENT)
        assert said.status == 0
        assert without_roles(shape(said.text)) == without_roles(shape(output))
        found = (await asyncq("trace", channel, "--json", *PATIENT)).json
        states = [row["state"] for row in found["messages"]]
        assert states == ["delivered", "waiting", "waiting", "dropped, overflow"]
        assert found["groups"] == ["room.7"] and found["inferred"] == ["delivered"] and not found["missing"]

        await sender.do("group_send", "room.7", note(1), exclude=[channel])
        await sender.do("send", channel, {"type": "direct"})
        await reader.do("receive_many", channel, 2)
        found = (await asyncq("trace", channel, "--last", "2", "--json", *PATIENT)).json
        excluded, direct = found["messages"]
        assert excluded["state"] == "excluded" and direct["type"] == "direct"
        await reader.kill()  # by itself it would end with a complaint: a channel was full


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_channel_whose_process_has_ended(redis_url: str, prefix: str) -> None:
    """There is nobody to ask, and the command says so."""
    config: Row = {"hosts": [redis_url], "prefix": prefix}
    async with installed(AsyncQueueChannelLayer(**config)):
        async with agents(1, **config) as [reader]:
            channel = await reader.do("new_channel")
            assert (await asyncq("trace", channel, *PATIENT)).status == 0
            await reader.kill()
        with pytest.raises(CommandError, match="its process has ended") as ended:
            await asyncq("trace", channel)
        assert ended.value.returncode == 1
        with pytest.raises(CommandError, match="Group name may contain only") as wrong:
            await asyncq("trace", "not a name")
        assert wrong.value.returncode == 2
        with pytest.raises(CommandError, match="1001 is more than 1000"):
            await asyncq("trace", "room", "--last", "1001")
        said = await asyncq("trace", "room", *PATIENT)
        assert (said.status, said.lines) == (0, ["room: 0 messages, the last ones in its log"])
