"""How open connections end when the process is told to stop, and when the server's own handler is called."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.http.wakeups import ToldToEnd, Wakeups
from channels_asyncq.stopping import connections, signals
from channels_asyncq.stopping.connections import OpenConnections, Phase
from tests import contract
from tests.sse import Client
from tests.test_event_stream import live, opened

pytestmark = pytest.mark.timeout(30)


class Server:
    """The signal handler of a server, which notes its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.called = asyncio.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.calls.append(number)
        self.called.set()


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal; its handler is at the end what it was before."""
    number: signal.Signals = request.param
    before = signal.getsignal(number)
    yield number
    signal.signal(number, before)


@pytest.fixture
async def server(number: signal.Signals) -> Server:
    """A server that handles the signal."""
    server = Server()
    signal.signal(number, server.handle)
    return server


def streams_here() -> OpenConnections:
    return connections.of_running_loop()


async def ends_with_retry(client: Client) -> None:
    client.parser.retry = None
    assert await client.end() == [] and client.parser.retry is not None


async def test_streams_end_first(
    make_memory: contract.MakeLayer, server: Server, number: signal.Signals
) -> None:
    """At a signal streams end; then the server's handler is called, once."""
    layer = await make_memory()
    clients = [await live(layer, "room") for _ in range(2)]
    reading = [asyncio.create_task(ends_with_retry(client)) for client in clients]
    await asyncio.sleep(0)
    signal.raise_signal(number)
    assert server.calls == []
    await asyncio.gather(*reading)
    assert server.calls == [] and streams_here().phase is not Phase.ENDED
    await asyncio.wait_for(server.called.wait(), contract.DEADLINE)
    assert server.calls == [number] and streams_here().phase is Phase.ENDED
    assert layer.statistics().channels == 0


async def test_second_signal_goes_straight_to_the_server(
    make_memory: contract.MakeLayer, server: Server, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever insists is not held up by streams."""
    monkeypatch.setattr(signals, "SAME_ORDER", 0.0)
    client = await live(await make_memory(), "room")
    signal.raise_signal(number)
    async with asyncio.timeout(contract.DEADLINE):
        while streams_here().phase is Phase.SERVING:  # noqa: ASYNC110  (a signal tells no event loop)
            await asyncio.sleep(0)
    signal.raise_signal(number)
    assert server.calls == [number]
    await ends_with_retry(client)
    await asyncio.wait_for(asyncio.shield(streams_here()._drain), contract.DEADLINE)  # type: ignore[arg-type]


async def test_client_that_does_not_read(
    make_memory: contract.MakeLayer, server: Server, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that cannot write holds up the server's handler for a moment, not for ever."""
    monkeypatch.setattr(connections, "LONGEST", 0.05)
    client = await live(await make_memory(), "room")
    signal.raise_signal(number)
    await asyncio.wait_for(server.called.wait(), contract.DEADLINE)
    assert len(streams_here()) == 1
    await ends_with_retry(client)


async def test_stream_that_begins_too_late(
    make_memory: contract.MakeLayer, server: Server, number: signal.Signals
) -> None:
    """A stream that begins after the signal ends at once, with `retry:`."""
    layer = await make_memory()
    first = await live(layer, "room")
    signal.raise_signal(number)
    await ends_with_retry(first)
    late = opened(layer, "room")
    await ends_with_retry(late)
    await asyncio.wait_for(server.called.wait(), contract.DEADLINE)
    await ends_with_retry(opened(layer, "room"))


async def test_without_streams_nothing_is_held_up(
    make_memory: contract.MakeLayer, server: Server, number: signal.Signals
) -> None:
    """When all streams have gone, the server's handler is called in the same moment."""
    layer = await make_memory()
    for _ in range(3):
        async with await live(layer, "room"):
            pass
    signal.raise_signal(number)
    assert server.calls == [number]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_processes_without_a_handler(
    make_memory: contract.MakeLayer, number: signal.Signals, handler: Any
) -> None:
    """Where nobody waits for streams, handlers stay as they are."""
    signal.signal(number, handler)
    async with await live(await make_memory(), "room"):
        assert signal.getsignal(number) is handler


async def test_handler_of_the_loop(make_memory: contract.MakeLayer, number: signal.Signals) -> None:
    """A handler of the event loop is called at once, and the streams end meanwhile."""
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    loop.add_signal_handler(number, called.set)
    client = await live(await make_memory(), "room")
    reading = asyncio.create_task(ends_with_retry(client))
    await asyncio.sleep(0)
    signal.raise_signal(number)
    await asyncio.wait_for(called.wait(), contract.DEADLINE)
    await reading
    loop.remove_signal_handler(number)


def test_loop_that_is_closed(number: signal.Signals) -> None:
    """A stream that was left open on a closed event loop holds up nothing."""
    calls: list[int] = []
    signal.signal(number, lambda number, frame: calls.append(number))

    async def enter() -> None:
        signals.enter(Wakeups(60))

    asyncio.run(enter())
    signal.raise_signal(number)
    assert calls == [number]


def test_server_in_a_thread(number: signal.Signals) -> None:
    """A stream on an event loop of another thread touches no handler, and ends with its layer."""
    before = signal.getsignal(number)

    async def stream() -> None:
        layer = AsyncQueueChannelLayer(hosts=["memory://"])
        client = await live(layer, "room")
        assert signal.getsignal(number) is before
        await layer.close()
        await ends_with_retry(client)

    run_in_thread(lambda: asyncio.run(stream()))


def run_in_thread(call: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


async def test_told_while_it_joins(make_memory: contract.MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that still waits for the message server ends as soon as others, and leaves no channel."""
    layer = await make_memory()
    waits = asyncio.Event()

    async def never(*arguments: object) -> None:
        waits.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("channels_asyncq.session.following.Follower.begin", never)
    client = opened(layer, "room")
    reading = asyncio.create_task(ends_with_retry(client))
    await asyncio.wait_for(waits.wait(), contract.DEADLINE)
    for stream in list(streams_here()._open):
        stream.tell()
    await reading
    assert layer.statistics().channels == 0


async def test_what_is_awaited_keeps_its_errors() -> None:
    """Only the end of the stream is ToldToEnd; a TimeoutError of what is awaited is passed on."""
    wakeups = Wakeups(60)

    async def late() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await wakeups.unless_told(late())
    wakeups.tell()
    with pytest.raises(ToldToEnd):
        await wakeups.unless_told(asyncio.sleep(60))
    wakeups.close()
