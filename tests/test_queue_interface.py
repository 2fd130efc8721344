"""What a buffer has of `asyncio.Queue`, whose `__init__()` is not called."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from typing import Any

import pytest

from channels_asyncq.exceptions import ChannelClosed
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.queue_interface import QueueInterface
from tests.buffers import envelope, make, texts
from tests.contract import every, started


def test_repr() -> None:
    """A buffer can be shown: its channel, whether it is open, and how much waits."""
    buffer = make(3)
    buffer.offer(envelope())
    assert repr(buffer) == "<ChannelBuffer of 'chat', open, 1 of maxsize=3>"
    buffer.close()
    assert str(buffer) == "<ChannelBuffer of 'chat', closed, 1 of maxsize=3>"


OVERRIDDEN = vars(QueueInterface) | vars(ChannelBuffer)


def queue_members() -> dict[str, Any]:
    """What asyncio.Queue and its own bases define in this Python, by name."""
    return {
        name: value for kind in reversed(asyncio.Queue.__mro__[:-1]) for name, value in vars(kind).items()
    }


def test_every_method_of_queue_is_overridden() -> None:
    """No public method of asyncio.Queue runs on a buffer: it would find none of Queue's attributes."""
    inherited = [
        name
        for name, value in queue_members().items()
        if (inspect.isfunction(value) or isinstance(value, property))
        and (not name.startswith("_") or name.endswith("__"))
        and name not in OVERRIDDEN
    ]
    assert not inherited, (
        f"asyncio.Queue of Python {sys.version.split()[0]} has {', '.join(inherited)}: "
        "ChannelBuffer must override it"
    )


def test_no_attribute_of_queue_is_used() -> None:
    """A buffer reads and sets no private attribute of asyncio.Queue, whatever a new Python calls them."""
    members = queue_members()
    of_queue = members.keys() | vars(asyncio.Queue()).keys()
    for method in members.values():
        if inspect.isfunction(method):
            of_queue |= set(method.__code__.co_names)
    of_buffer = OVERRIDDEN.keys() | vars(make()).keys()
    for method in OVERRIDDEN.values():
        if inspect.isfunction(method):
            of_buffer |= set(method.__code__.co_names)
    shared = sorted(name for name in of_buffer & of_queue if re.match("_[^_]", name))
    assert not shared, (
        f"asyncio.Queue of Python {sys.version.split()[0]} uses {', '.join(shared)}: "
        "ChannelBuffer needs other names"
    )


async def test_tasks_are_not_counted() -> None:
    """join() returns at once, with messages too, and task_done() says that there was nothing to be done."""
    buffer = make()
    buffer.offer(envelope())
    await buffer.join()
    with pytest.raises(ValueError, match="counts no tasks"):
        buffer.task_done()


async def test_the_queues_own_methods() -> None:
    """put() waits for a place as put_when_free() does, and shutdown() closes: what asyncio.Queue has works."""
    buffer = make(1)
    await every([buffer.put(envelope("a"))])
    second = await started(buffer.put(envelope("b")))
    assert (await buffer.get()).payload == b"a"
    await every([second])
    assert buffer.full() and not buffer.is_awaited
    third = await started(buffer.put(envelope("c")))
    buffer.shutdown()
    with pytest.raises(ChannelClosed):
        await every([third])
    assert texts(buffer) == ["b"] and buffer.closed is not None
    other = make(1)
    other.offer(envelope("d"))
    other.shutdown(immediate=True)
    assert texts(other) == []
