"""The functions of docs/callers.md under "Many sends at once", called."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.layers import channel_layers

from channels_asyncq import AsyncQueueChannelLayer
from tests.code_blocks import block
from tests.contract import every
from tests.test_docs import DOCS

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


@pytest.fixture
def functions() -> dict[str, Any]:
    """What the section's program defines."""
    names: dict[str, Any] = {}
    exec(block("docs/callers.md", "python", having="TaskGroup"), names)
    return names


@pytest.fixture
def layer(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncQueueChannelLayer]:
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)
    monkeypatch.setattr(channel_layers, "backends", {"default": layer})
    yield layer
    layer.close_from_thread()


@pytest.mark.parametrize("name", ["view", "async_view"])
async def test_every_send_arrives(
    functions: dict[str, Any], layer: AsyncQueueChannelLayer, name: str
) -> None:
    """A view that sends to a hundred groups at once reaches the members of each."""
    channels = [await layer.new_channel() for _ in range(100)]
    await every(layer.group_add(f"user.{number}", channel) for number, channel in enumerate(channels))
    if name == "view":
        await asyncio.to_thread(functions[name], None)
    else:
        await functions[name](None)
    messages = await every(layer.receive(channel) for channel in channels)
    assert messages == [{"type": "report.ready"}] * 100


@pytest.mark.parametrize("caller", ["sync", "async"])
async def test_order_of_tasks(layer: AsyncQueueChannelLayer, caller: str) -> None:
    """Messages to one group arrive in the order in which the tasks that send them were created."""
    channel = await layer.new_channel()
    await layer.group_add("room", channel)

    async def send(numbers: Iterable[int]) -> None:
        async with asyncio.TaskGroup() as sends:
            for number in numbers:
                sends.create_task(layer.group_send("room", {"type": "a", "number": number}))

    # The loop gets connections of its own meanwhile.
    for first in range(0, 300, 100):
        numbers = range(first, first + 100)
        if caller == "sync":
            await asyncio.to_thread(async_to_sync(send), numbers)
        else:
            await send(numbers)
        assert [(await layer.receive(channel))["number"] for _ in numbers] == list(numbers)
