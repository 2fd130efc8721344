"""How many groups a channel of a consumer or a stream may be in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.test import AsyncRequestFactory

from channels_asyncq import AsyncQueueChannelLayer, TooManyGroups
from channels_asyncq.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from channels_asyncq.http import EventStream
from tests.consumers import Message, begin, hears, installed, layer, say
from tests.contract import DEADLINE, MakeLayer

__all__ = ["begin", "layer"]


class Joiner(AsyncJsonWebsocketConsumer):
    """Joins what it is told."""

    max_groups: int | None = 3

    async def receive_json(self, content: Any, **_: Any) -> None:
        try:
            await self.channel_layer.group_add(content, self.channel_name)
        except TooManyGroups as error:
            await self.send_json({"error": str(error), "most": error.most})
        else:
            await self.send_json({"joined": content})

    async def group_says(self, message: Message) -> None:
        await self.send_json({"said": message["text"]})


async def test_groups(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """The group that is one too many is refused; those that it is in can be renewed, and left for others."""
    talk = begin(Joiner)
    await talk.accepted()
    for group in ("a", "b", "c", "a"):
        say(talk, f'"{group}"')
        assert await hears(talk) == f'{{"joined": "{group}"}}'
    say(talk, '"d"')
    refused = await hears(talk)
    assert "cannot join another group: max_groups of Joiner allows 3. Leave some groups first" in refused
    assert "d" not in layer.groups and len(layer.groups) == 3
    (channel,) = layer.groups["a"]
    await layer.group_discard("a", channel)
    say(talk, '"d"')
    assert await hears(talk) == '{"joined": "d"}'
    assert layer.statistics().limited == {"max_groups": 1}
    await talk.leaves()


async def test_thousand_groups_by_default(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """Without a setting there are 1,000; None is for any number."""
    assert AsyncWebsocketConsumer.max_groups == 1000
    for most, answer in ((1000, "allows 1000"), (None, "joined")):
        talk = begin(type("Many", (Joiner,), {"max_groups": most}))
        await talk.accepted()
        for number in range(1000):
            say(talk, f'"group.{number}"')
            assert "joined" in await hears(talk)
        say(talk, '"another"')
        assert answer in await hears(talk)
        await talk.leaves()


async def test_groups_of_other_channels(layer: AsyncQueueChannelLayer) -> None:
    """Channels that are no consumer's have no limit."""
    channel = await layer.new_channel()
    for number in range(1001):
        await layer.group_add(f"group.{number}", channel)
    assert len(layer.groups) == 1001


@pytest.mark.parametrize("hosts", ["memory", pytest.param("redis", marks=[pytest.mark.server])])
async def test_groups_that_another_process_adds(
    make_memory: MakeLayer, request: pytest.FixtureRequest, begin: Any, hosts: str
) -> None:
    """The owner of the channel refuses, and the process that asked is told so at once."""
    config = {} if hosts == "memory" else {"hosts": [request.getfixturevalue("redis_url")]}
    there = await make_memory(**config)
    async with installed(await make_memory(**config)) as here:
        talk = begin(Joiner)
        await talk.accepted()
        for group in "abc":
            say(talk, f'"{group}"')
            await hears(talk)
        (channel,) = here.groups["a"]
        async with asyncio.timeout(DEADLINE):
            await there.group_add("b", channel)
            for _ in range(2):
                with pytest.raises(TooManyGroups, match="max_groups of Joiner allows 3") as raised:
                    await there.group_add("d", channel)
        assert (raised.value.channel, raised.value.most) == (channel, 3)
        assert "d" not in here.groups
        assert there.statistics().dropped == {}
        await there.group_discard("a", channel)
        await there.group_add("d", channel)
        await there.group_send("d", {"type": "group.says", "text": "hi"})
        assert await hears(talk) == '{"said": "hi"}'
        await talk.leaves()


async def test_groups_of_a_consumer_that_comes_back(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """All or none: it joins no group, with and without a position."""

    class Room(ResumableWebsocketConsumer):
        max_groups = 3

        def resumable_groups(self) -> list[str]:
            return list("abcd")

    position = await layer.position(*"abcd")
    for query in (b"", f"since={position}".encode()):
        talk = begin(Room, {"type": "websocket", "query_string": query})
        talk.say("websocket.connect")
        with pytest.raises(TooManyGroups, match="max_groups of Room allows 3"):
            await talk.hears()
            await talk.ends()
        assert not layer.groups
    assert layer.statistics().limited == {"max_groups": 2}
    assert layer.statistics().resumes == 0


async def test_groups_of_a_stream(layer: AsyncQueueChannelLayer) -> None:
    """1,000 groups by default."""
    request = AsyncRequestFactory().get("/")
    groups = [f"group.{number}" for number in range(1001)]
    EventStream(request, groups[1:], layer=layer)
    EventStream(request, groups, layer=layer, max_groups=None)
    with pytest.raises(ValueError, match="groups has 1001 names, and max_groups of EventStream is 1000"):
        EventStream(request, groups, layer=layer)
