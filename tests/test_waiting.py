"""Senders that wait for a place: their time, and when they give up."""

from __future__ import annotations

import asyncio

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.exceptions import (
    StillFull,
)
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    note,
    receive,
    started,
    time_passes,
)
from tests.resp_server import RespServer, after


class TestSendWait:
    async def test_timeout_with_the_answer_under_way(
        self, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """The time is for a place, not for the answer: what the server took is never reported as StillFull."""
        layer = await make_scripted()
        await layer.send("jobs", note(0))
        assert await receive(layer, "jobs") == note(0)
        answering = asyncio.Event()
        server.script("PUSH", after(answering))
        sending = await started(layer.send_wait("jobs", note(1), timeout=0.05))
        await time_passes(0.1)
        answering.set()
        await sending
        assert await receive(layer, "jobs") == note(1)

    @pytest.mark.parametrize("channel", ["jobs", ""])
    async def test_no_time(self, make_memory: MakeLayer, channel: str) -> None:
        """With timeout 0 a place is taken if there is one."""
        layer = await make_memory(capacity=1)
        channel = channel or await layer.new_channel()
        await layer.send_wait(channel, note(1), timeout=0)
        with pytest.raises(StillFull):
            await layer.send_wait(channel, note(2), timeout=0)
        assert await receive(layer, channel) == note(1)
        await assert_nothing_waits(layer, channel)

    @pytest.mark.parametrize("channel", ["jobs", ""])
    async def test_a_short_time(self, make_memory: MakeLayer, channel: str) -> None:
        """The time is kept, also where it is shorter than the next look."""
        layer = await make_memory(capacity=1)
        channel = channel or await layer.new_channel()
        await layer.send(channel, note(1))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ChannelFull):
            await layer.send_wait(channel, note(2), timeout=0.03)
        assert 0.02 <= loop.time() - began < DEADLINE / 2
