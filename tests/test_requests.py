"""Requests to the owners of channels: repeats, and owners that are gone or away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels_asyncq.names import owner_of
from channels_asyncq.session import requests
from tests.clock import Clock
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    members_of,
    note,
    receive,
    started,
)
from tests.resp_server import Answer, RespServer, after, encode


class TestOwners:
    @pytest.mark.parametrize("asked", ["add", "discard"])
    async def test_late_repeats(
        self,
        make_redis: MakeLayer,
        make_scripted: MakeLayer,
        server: RespServer,
        monkeypatch: pytest.MonkeyPatch,
        asked: str,
    ) -> None:
        """What is asked again because its confirmation is late is not done again after its opposite."""
        monkeypatch.setattr(requests, "_ASK_AGAIN", 0.01)
        owner, asker = await make_redis(), await make_scripted(send_timeout=60)
        channel, own = await owner.new_channel(), await asker.new_channel()
        if asked == "add":
            ask, oppose, groups = asker.group_add, owner.group_discard, 1
        else:
            await owner.group_add("room", channel)
            ask, oppose, groups = asker.group_discard, owner.group_add, 0
        # What the asker is told waits behind the reply to a subscription.
        arriving = asyncio.Event()
        server.script("SUBSCRIBE", after(arriving))
        joining = await started(asker.group_add("another", own))
        asking = await started(ask("room", channel))
        await eventually(lambda: owner.statistics().groups == groups, "what was asked")
        await oppose("room", channel)
        count = len(asks(server))
        await eventually(lambda: len(asks(server)) >= count + 3, "late repeats")
        arriving.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(asking, joining)
        # Behind the repeats.
        await asker.send(channel, note(1))
        assert await receive(owner, channel) == note(1)
        (witness,) = await members_of(owner, "room", 1)
        await asker.group_send("room", note(2))
        assert await receive(owner, witness) == note(2)
        if asked == "discard":
            assert await receive(owner, channel) == note(2)
        await assert_nothing_waits(owner, channel)

    @pytest.mark.parametrize("hosts", ["memory", "redis"])
    async def test_owner_that_is_gone(
        self,
        make_memory: MakeLayer,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
        hosts: str,
    ) -> None:
        """Nobody hears what it is asked: that is no error, is counted, and takes no `send_timeout`."""
        assert requests._GONE_AFTER == 2.5
        monkeypatch.setattr(requests, "_ASK_AGAIN", 0.01)
        monkeypatch.setattr(requests, "_GONE_AFTER", 0.05)
        config = {} if hosts == "memory" else {"hosts": [request.getfixturevalue("redis_url")]}
        gone, layer = await make_memory(**config), await make_memory(send_timeout=3600, **config)
        channel = await gone.new_channel()
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await layer.group_add("room", channel)
            await layer.group_discard("room", channel)
        assert layer.statistics().dropped == {"dead_owner": 2}

    async def test_owner_that_is_gone_and_was_heard(
        self,
        make_redis: MakeLayer,
        make_scripted: MakeLayer,
        server: RespServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The 2.5 s begin anew when somebody has heard a question."""
        gone, layer = await make_redis(), await make_scripted(send_timeout=3600)
        channel = await gone.new_channel()
        await gone.close()
        await layer.new_channel()
        clock = Clock()
        monkeypatch.setattr(requests, "monotonic", clock)
        monkeypatch.setattr(requests, "_ASK_AGAIN", 0.0)
        listeners = [0, 1, 0, 0, 0]
        answered = [asyncio.Event() for _ in listeners]
        answers = [
            Answer(executes=False, data=encode(count), waits_for=event)
            for count, event in zip(listeners, answered, strict=True)
        ]
        server.script("SEND", *answers)
        adding = asyncio.create_task(layer.group_add("room", channel))
        for n, (seconds, event) in enumerate(zip([0, 2.4, 0, 2.4, 0.2], answered, strict=True), 1):
            await eventually(lambda n=n: len(asks(server)) == n, f"question {n}")  # type: ignore[misc]
            assert not adding.done()
            clock.turn(seconds)
            event.set()
        async with asyncio.timeout(DEADLINE):
            await adding
        assert len(asks(server)) == len(listeners)
        assert layer.statistics().dropped == {"dead_owner": 1}

    async def test_owner_that_is_only_reconnecting(
        self, make_redis: MakeLayer, make_scripted: MakeLayer, server: RespServer, prefix: str
    ) -> None:
        """Nobody hears the first questions; when the owner is back it joins, and the join is true."""
        async with RespServer(server.real) as way_to_owner:
            owner = await make_redis(hosts=[way_to_owner.url])
            asker = await make_scripted(send_timeout=60)
            channel = await owner.new_channel()
            await asker.new_channel()
            await way_to_owner.stop()
            inbox = f"{prefix}:0:inbox:{owner_of(channel)}"
            await eventually(
                lambda: server.real.command("PUBSUB", "NUMSUB", inbox) == [inbox.encode(), 0], "the loss"
            )
            adding = await started(asker.group_add("room", channel))
            await eventually(lambda: asks(server), "the first question")
            await way_to_owner.start()
            async with asyncio.timeout(DEADLINE):
                await adding
                await asker.group_send("room", note(1))
            assert await receive(owner, channel) == note(1)
            assert "dead_owner" not in asker.statistics().dropped
            await owner.close()


def asks(server: RespServer) -> list[tuple[Any, ...]]:
    """The commands that have gone to the inbox of another session by this server."""
    return [
        (name, *arguments)
        for name, *arguments in server.commands
        if name == "EVALSHA" and server.kind_of(name, arguments) == "SEND" and b":inbox:" in arguments[3]
    ]
