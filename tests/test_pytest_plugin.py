"""The fixtures for those who test what sends, used as they would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, get_layer
from channels_asyncq.pytest_plugin import Listener

Listen = Callable[..., Listener]
MESSAGE = {"type": "chat.message", "text": "hello"}


def test_sync_code(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A listener gets what a sync test sends to its group, and nothing else."""
    assert get_layer() is asyncq_layer
    room = asyncq_listen("room")
    room.assert_nothing()
    async_to_sync(asyncq_layer.group_send)("room", MESSAGE)
    assert room.get() == MESSAGE
    room.assert_nothing()
    assert "room" in str(room)


async def test_async_code(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """The same in an async test."""
    room = asyncq_listen("room")
    await asyncq_layer.group_send("room", MESSAGE)
    assert await room.aget() == MESSAGE
    await room.aassert_nothing()


def test_normal_channel(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A listener can read a normal channel too."""
    jobs = asyncq_listen(channel="jobs")
    async_to_sync(asyncq_layer.send)("jobs", MESSAGE)
    assert jobs.get() == MESSAGE
    jobs.assert_nothing()


def test_failures(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A message that does not come fails the test, and so does one that should not have."""
    room = asyncq_listen("room")
    with pytest.raises(pytest.fail.Exception):
        room.get(timeout=0.01)
    async_to_sync(asyncq_layer.group_send)("room", MESSAGE)
    with pytest.raises(pytest.fail.Exception, match="hello"):
        room.assert_nothing()


def test_on_a_server(asyncq_redis_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """The layer on a real server behaves alike."""
    room = asyncq_listen("room")
    async_to_sync(asyncq_redis_layer.group_send)("room", MESSAGE)
    assert room.get(timeout=10) == MESSAGE
