"""docs/migrating.md, "From channels_nats": its tables, held against both layers on real servers."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge
from django.core.exceptions import ImproperlyConfigured

from benchmarks.nats import NatsServer, nats_server
from channels_asyncq import AsyncQueueChannelLayer, ChannelClosed, ChannelLayerError, LayerUnavailable
from channels_asyncq.migration import Both
from channels_asyncq.settings.options import Options
from tests.code_blocks import block
from tests.contract import DEADLINE, note
from tests.example import free_port
from tests.test_docs import DOCS, code_in, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
    pytest.mark.skipif(nats_server() is None, reason="no nats-server on PATH"),
]
channels_nats = pytest.importorskip("channels_nats")

#: What begins each line of the table, with the test that has it for both layers.
LINES = {
    "a job for a normal channel": "test_a_job_before_its_worker",
    "`send()` to a full normal channel": "test_a_full_channel",
    "`group_add()` of a channel of another": "test_a_channel_of_another_loop",
    "a send while the server is away": "test_no_server",
    "a message of 2 MB": "test_a_large_message",
    "names such as": "test_names",
    "`datetime`": "test_types",
    "`receive()` when the layer is closed": "test_closing",
    "a call after `close()`": "test_closing",
    "messages of an outage": "",  # theirs by its documentation; ours has tests of its own
}


@pytest.fixture
async def theirs() -> AsyncIterator[Any]:
    with NatsServer() as server:
        layer = channels_nats.NatsChannelLayer(servers=[server.url], capacity=5)
        yield layer
        await layer.close()


@pytest.fixture
async def ours(redis_url: str, prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix, capacity=5)
    yield layer
    await layer.close()


async def received(layer: Any, channel: str, within: float = DEADLINE) -> Any:
    return await asyncio.wait_for(layer.receive(channel), within)


def test_keys() -> None:
    """The table has every key of channels_nats, and each is one here too, or is refused by its name."""
    table = {
        key: row[1] for row in rows(DOCS / "migrating.md", "key of channels_nats") for key in code_in(row[0])
    }
    assert set(table) == set(inspect.signature(channels_nats.NatsChannelLayer).parameters)
    for key, here in table.items():
        if not here.startswith(("the same", "enforced")):
            with pytest.raises(ImproperlyConfigured, match=key):
                Options.from_config({key: 1})
        else:
            assert key in {field.name for field in dataclasses.fields(Options)}


def test_every_line_has_its_test() -> None:
    """The table of differences has these lines, and no other."""
    found = [row[0] for row in rows(DOCS / "migrating.md", "", "channels_nats")]
    assert len(found) == len(LINES)
    for line, (begin, test) in zip(found, LINES.items(), strict=True):
        assert line.startswith(begin)
        assert not test or test in globals()


def test_old_settings() -> None:
    """The settings of the page make a layer of theirs in `Both`."""
    names: dict[str, Any] = {}
    exec(block("docs/migrating.md", "python", having='"BACKEND": "channels_nats'), names)
    new = {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": {"hosts": ["memory://"]}}
    both = Both(old=names["OLD"], new=new, send="old")
    assert isinstance(both.layers["old"], channels_nats.NatsChannelLayer)


async def test_a_job_before_its_worker(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """It is lost there, and waits here."""
    for layer in (theirs, ours):
        await layer.send("jobs", note(1))
    worker = asyncio.create_task(theirs.receive("jobs"))
    while not worker.done():  # its subscription begins at some time, and only then something comes
        await theirs.send("jobs", note(2))
        await asyncio.wait([worker], timeout=0.05)
    assert await worker == note(2)
    assert await received(ours, "jobs") == note(1)


async def test_a_full_channel(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """There the sender is told nothing; here it gets ChannelFull."""
    channel = await theirs.new_channel()
    for n in range(10):
        await theirs.send(channel, note(n))
    with pytest.raises(ChannelFull):
        for n in range(10):
            await ours.send("jobs", note(n))


async def test_a_channel_of_another_loop(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """There it cannot join a group; here it can."""

    async def join(layer: Any, channel: str) -> None:
        await layer.group_add("room", channel)

    def elsewhere(layer: Any, channel: str) -> None:
        asyncio.run(join(layer, channel))

    channel = await theirs.new_channel()
    with pytest.raises(ValueError, match="loop"):
        await asyncio.to_thread(elsewhere, theirs, channel)
    channel = await ours.new_channel()
    await asyncio.to_thread(elsewhere, ours, channel)
    await ours.group_send("room", note(1))
    assert await received(ours, channel) == note(1)


async def test_no_server(prefix: str) -> None:
    """Each has its own error."""
    from nats.errors import NoServersError

    port = free_port()
    theirs = channels_nats.NatsChannelLayer(servers=[f"nats://127.0.0.1:{port}"], connect_deadline=0.2)
    with pytest.raises(NoServersError):
        await theirs.group_send("room", note(1))
    ours = AsyncQueueChannelLayer(hosts=[f"redis://127.0.0.1:{port}"], prefix=prefix, send_timeout=0.2)
    with pytest.raises(LayerUnavailable):
        await ours.group_send("room", note(1))
    await ours.close()


async def test_a_large_message(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """There the server refuses it; here it arrives."""
    large = {"type": "large", "data": "x" * 2_000_000}
    with pytest.raises(MessageTooLarge):
        await theirs.send(await theirs.new_channel(), large)
    channel = await ours.new_channel()
    await ours.send(channel, large)
    assert await received(ours, channel) == large


async def test_names(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """There the name of a group must be a subject."""
    with pytest.raises(TypeError):
        await theirs.group_send("a..b", note(1))
    await ours.group_send("a..b", note(1))


async def test_types(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """There a message has plain types only."""
    message = {"type": "note", "at": datetime(2026, 1, 2, tzinfo=UTC)}
    with pytest.raises(TypeError):
        await theirs.group_send("room", message)
    channel = await ours.new_channel()
    await ours.send(channel, message)
    assert await received(ours, channel) == message


async def test_closing(theirs: Any, ours: AsyncQueueChannelLayer) -> None:
    """A receive() that waits ends with an error of each layer. There the next call connects again."""
    endings: list[tuple[Any, type[Exception]]] = [
        (theirs, channels_nats.ChannelLayerClosed),
        (ours, ChannelClosed),
    ]
    for layer, error in endings:
        channel = await layer.new_channel()
        waiting = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await layer.close()
        with pytest.raises(error):
            await asyncio.wait_for(waiting, DEADLINE)
    again: Callable[..., Awaitable[None]] = theirs.group_send
    await again("room", note(1))
    with pytest.raises(ChannelLayerError):
        await ours.group_send("room", note(1))
