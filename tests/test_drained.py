"""An application whose clients leave before its server stops: the pace, signals, sockets, the command."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from io import StringIO
from types import FrameType
from typing import Any

import pytest
from channels.generic.websocket import WebsocketConsumer
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer, OpenChannel
from channels_asyncq.asgi import Drained, drained, is_ready
from channels_asyncq.consumers import resumable
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.generic.websocket import AsyncWebsocketConsumer, ResumableWebsocketConsumer
from channels_asyncq.management.asyncq import drain
from channels_asyncq.messages.external import ExternalMessage
from channels_asyncq.stopping import connections, orders, signals
from channels_asyncq.stopping.connections import OpenConnections, Phase
from channels_asyncq.stopping.signals import StopSignals
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.consumers import Talk, installed
from tests.contract import DEADLINE, eventually

pytestmark = pytest.mark.timeout(60)


class Guest:
    """An open connection, which notes when it was told to end, and leaves or not."""

    def __init__(self, open_connections: OpenConnections, leaves: bool = False) -> None:
        self._connections = open_connections
        self._leaves = leaves
        self.told_at: list[float] = []
        self.told_in: list[Phase] = []
        open_connections.enter(self)

    def tell(self) -> None:
        self.told_at.append(asyncio.get_running_loop().time())
        self.told_in.append(self._connections.phase)
        if self._leaves:
            self._connections.leave(self)


class Paused(OpenConnections):
    """Takes no time: a pause moves the clock on. `busy` is a standstill after each pause, in seconds."""

    busy = 0.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        self.pauses: list[float] = []
        self.during: Callable[[], None] = lambda: None
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(connections, "LAST_CHUNK", 0)

    async def _all_gone(self, seconds: float) -> bool:
        if seconds > 0:
            self.pauses.append(seconds)
            self.now += seconds + self.busy
            self.during()
        return not self._open


@pytest.mark.parametrize("number", [1, 7, 100, 5000])
async def test_pace(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Connections are told evenly, in random order, all within the time."""
    paused = Paused(monkeypatch)
    guests = [Guest(paused) for _ in range(number)]
    await paused.begin(20.0)
    moments = [guest.told_at for guest in guests]
    assert all(len(told) == 1 for told in moments)
    ordered = sorted(told[0] for told in moments)
    assert ordered[0] == 0 and ordered[-1] <= 19.01
    for place, moment in enumerate(ordered):
        assert moment == pytest.approx(19.0 * place / number, abs=0.1)
    if number > 7:
        assert [told[0] for told in moments] != ordered
    assert len(paused.pauses) <= 20.0 / connections.SLICE + 2


async def test_pace_of_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each pause takes longer than it should, connections are told evenly all the same."""
    paused = Paused(monkeypatch)
    paused.busy = 0.07
    guests = [Guest(paused) for _ in range(1000)]
    await paused.begin(20.0)
    moments = sorted(guest.told_at[0] for guest in guests)
    for number, moment in enumerate(moments):
        assert moment == pytest.approx(19.0 * number / 1000, abs=0.2)


async def test_pace_after_a_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stood still catches up step by step, and not in one burst."""
    paused = Paused(monkeypatch)
    guests = [Guest(paused) for _ in range(1000)]

    def stand_still() -> None:
        paused.now += 8.0
        paused.during = lambda: None

    paused.during = stand_still
    await paused.begin(20.0)
    told = Counter(guest.told_at[0] for guest in guests)
    assert max(told.values()) <= connections.CATCH_UP * 3
    assert max(told) <= 19.0 + connections.SLICE


async def test_no_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time all are told in one turn."""
    paused = Paused(monkeypatch)
    guests = [Guest(paused, leaves=True) for _ in range(3)]
    await paused.begin(0.0)
    assert [guest.told_at for guest in guests] == [[0.0]] * 3 and paused.pauses == [connections.SLICE]


async def test_newcomers_leave_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes during a drain is served until its last slice; who comes then, or later, is told at once."""
    paused = Paused(monkeypatch)
    guests = [Guest(paused) for _ in range(20)]
    late: list[Guest] = []
    paused.during = lambda: late.append(Guest(paused))
    await paused.begin(20.0)
    assert {phase for guest in guests for phase in guest.told_in} == {Phase.DRAINING}
    newcomers = [guest for guest in late if guest.told_in == [Phase.LAST]]
    assert newcomers == late and min(guest.told_at[0] for guest in late) >= 19.0
    after = Guest(paused)
    assert paused.phase is Phase.ENDED and after.told_in == [Phase.ENDED]


async def test_ends_when_all_have_left() -> None:
    """A drain is over as soon as nothing is open."""
    here = connections.of_running_loop()
    guests = [Guest(here), Guest(here)]
    assert is_ready()
    drain = here.begin(3600.0)
    assert not is_ready()
    await asyncio.sleep(0)
    for guest in guests:
        here.leave(guest)
    await asyncio.wait_for(drain, DEADLINE)
    assert here.phase is Phase.ENDED and not is_ready()


async def test_late_loop() -> None:
    """On an event loop whose turns are long, a connection that was told gets the turns that it needs to end."""
    here = connections.of_running_loop()
    guest = Guest(here)
    drain = here.begin(0.0)
    for _ in range(20):
        await asyncio.sleep(0)
        stand_still(connections.LONGEST / 10)
    assert guest.told_at and not drain.done()
    here.leave(guest)
    await asyncio.wait_for(drain, DEADLINE)


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


async def test_nothing_is_open() -> None:
    """Without connections a drain takes no time, and the process is not ready all the same."""
    here = connections.of_running_loop()
    await asyncio.wait_for(here.begin(3600.0), DEADLINE)
    assert here.phase is Phase.ENDED and not is_ready()


async def test_begun_twice() -> None:
    """A drain that has begun goes on as it is."""
    here = connections.of_running_loop()
    guest = Guest(here)
    drain = here.begin(3600.0)
    assert here.begin(0.0) is drain
    here.leave(guest)
    await asyncio.wait_for(drain, DEADLINE)


async def test_drain_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its begin and its end are in the log, with the numbers of connections."""
    caplog.set_level(logging.INFO, "channels_asyncq.drain")
    here = connections.of_running_loop()
    for _ in range(3):
        Guest(here, leaves=True)
    await asyncio.wait_for(here.begin(0.2), DEADLINE)
    said = [(record.getMessage(), getattr(record, "code", "")) for record in caplog.records]
    assert said == [
        ("3 open connections end within 0.2 s [drain.began]", "drain.began"),
        ("0 connections are still open [drain.ended]", "drain.ended"),
    ]


# Signals


class ServerOf:
    """The handlers of a server, which note their calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.called = asyncio.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.calls.append(number)
        self.called.set()


@pytest.fixture
async def server(stop_signals: StopSignals) -> ServerOf:
    """A server that has set its handlers after the application was imported."""
    signals.drain_for(3600.0)
    server = ServerOf()
    for number in signals.SIGNALS:
        signal.signal(number, server.handle)
    return server


async def draining(here: OpenConnections) -> None:
    async with asyncio.timeout(DEADLINE):
        while here.phase is Phase.SERVING:  # noqa: ASYNC110  (a signal tells no event loop)
            await asyncio.sleep(0)


async def test_sigterm_drains(server: ServerOf) -> None:
    """SIGTERM waits for the drain, and then goes to the server, once."""
    here = signals.watched()
    guests = [Guest(here), Guest(here)]
    signal.raise_signal(signal.SIGTERM)
    await draining(here)
    assert not server.calls and not is_ready()
    for guest in guests:
        here.leave(guest)
    await asyncio.wait_for(server.called.wait(), DEADLINE)
    assert server.calls == [signal.SIGTERM]
    # uvicorn raises it again.
    signal.raise_signal(signal.SIGTERM)
    assert server.calls == [signal.SIGTERM] * 2


async def test_second_sigterm(server: ServerOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM goes straight to the server, but for one that repeats the first."""
    here = signals.watched()
    guest = Guest(here)
    signal.raise_signal(signal.SIGTERM)
    await draining(here)
    signal.raise_signal(signal.SIGTERM)
    assert not server.calls
    monkeypatch.setattr(signals, "SAME_ORDER", 0.0)
    signal.raise_signal(signal.SIGTERM)
    assert server.calls == [signal.SIGTERM]
    here.leave(guest)
    await asyncio.wait_for(here.begin(0.0), DEADLINE)


async def test_forked_child(server: ServerOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child without the event loop does not wait for its parent's connections."""
    here = signals.watched()
    guest = Guest(here)
    monkeypatch.setattr("os.getpid", lambda: -1)
    signal.raise_signal(signal.SIGTERM)
    assert server.calls == [signal.SIGTERM] and here.phase is Phase.SERVING and not guest.told_at
    here.leave(guest)


async def test_interrupt_is_no_drain(server: ServerOf) -> None:
    """Ctrl-C tells all at once; during a drain it goes straight to the server."""
    here = signals.watched()
    guests = [Guest(here, leaves=True) for _ in range(3)]
    signal.raise_signal(signal.SIGINT)
    await asyncio.wait_for(server.called.wait(), DEADLINE)
    assert server.calls == [signal.SIGINT] and all(guest.told_at for guest in guests)


async def test_interrupt_during_a_drain(server: ServerOf) -> None:
    """Ctrl-C during a drain goes straight to the server."""
    here = signals.watched()
    guest = Guest(here)
    drain = here.begin(3600.0)
    signal.raise_signal(signal.SIGINT)
    assert server.calls == [signal.SIGINT]
    here.leave(guest)
    await asyncio.wait_for(drain, DEADLINE)


async def test_sigterm_during_the_drain_of_the_command(server: ServerOf) -> None:
    """SIGTERM waits for the drain that the command has begun; a second one does not."""
    here = signals.watched()
    guest = Guest(here)
    drain = here.begin(3600.0)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert not server.calls
    here.leave(guest)
    await asyncio.wait_for(server.called.wait(), DEADLINE)
    assert drain.done() and server.calls == [signal.SIGTERM]


async def test_handler_that_calls_the_one_before(stop_signals: StopSignals) -> None:
    """A handler that calls what it has replaced, which is ours, ends in no circle."""
    calls: list[str] = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append("first"))
    signals.drain_for(1.0)
    ours = signal.getsignal(signal.SIGTERM)
    assert ours == stop_signals._on_signal

    def chained(number: int, frame: FrameType | None) -> None:
        calls.append("second")
        ours(number, frame)

    signal.signal(signal.SIGTERM, chained)
    signals.watched()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["second", "first"]
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["second", "first"] * 2


async def test_without_a_handler_the_process_ends(stop_signals: StopSignals) -> None:
    """Where no server has set a handler, SIGTERM ends the process, as without us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import signal; from channels_asyncq.stopping import signals; signals.drain_for(9.0); "
        "print(signal.getsignal(signal.SIGTERM).__name__, flush=True); signal.raise_signal(signal.SIGTERM); "
        "print('alive')",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output == b"_on_signal\n" and process.returncode == -signal.SIGTERM


# WebSockets


class Room(ResumableWebsocketConsumer):
    def resumable_groups(self) -> list[str]:
        return ["room"]


class Plain(AsyncWebsocketConsumer):
    async def chat_message(self, message: dict[str, Any]) -> None:
        await self.send(text_data=message["text"])


class Sync(WebsocketConsumer):
    """A consumer of Channels."""


class Refusing(Plain):
    async def connect(self) -> None:
        await self.close()


def talk_to(consumer: Any) -> Talk:
    application = drained(consumer.as_asgi(), seconds=0)
    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}
    return Talk(application, scope)


@pytest.fixture
async def layer(make_memory: contract.MakeLayer) -> AsyncIterator[AsyncQueueChannelLayer]:
    async with installed(await make_memory()) as layer:
        yield layer


@pytest.mark.parametrize("consumer", [Plain, Sync])
async def test_socket_is_closed(
    stop_signals: StopSignals, layer: AsyncQueueChannelLayer, consumer: Any
) -> None:
    """A WebSocket of any consumer is closed with 1012, and its consumer sees the disconnect."""
    talk = talk_to(consumer)
    await talk.accepted()
    drain = connections.of_running_loop().begin(0.0)
    assert await talk.hears() == {"type": "websocket.close", "code": 1012}
    await talk.leaves(1012)
    await asyncio.wait_for(drain, DEADLINE)
    assert not len(connections.of_running_loop())


async def test_resumable_socket_is_told_when_to_come_back(
    stop_signals: StopSignals, layer: AsyncQueueChannelLayer
) -> None:
    """The frame `retry` comes before the close."""
    talk = talk_to(Room)
    await talk.accepted()
    assert json.loads((await talk.hears())["text"])["type"] == "resumed"
    connections.of_running_loop().begin(0.0)
    frame = json.loads((await talk.hears())["text"])
    low, high = resumable._RETRY
    assert frame["type"] == "retry" and low <= frame["ms"] <= high
    assert await talk.hears() == {"type": "websocket.close", "code": 1012}
    await talk.leaves(1012)


async def test_daphne_refuses_the_code(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """A server that sends no such code gets the substitute."""
    closes: list[int] = []
    closed = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not closes:
            closes.append(0)
            return {"type": "websocket.connect"}
        await closed.wait()
        return {"type": "websocket.disconnect", "code": closes[-1]}

    async def send(message: Any) -> None:
        if message["type"] == "websocket.close":
            closes.append(message["code"])
            if message["code"] < 3000:
                raise Exception("invalid close code")
            closed.set()

    application: Any = drained(Plain.as_asgi())
    task = asyncio.create_task(application({"type": "websocket"}, receive, send))
    await eventually(lambda: bool(len(connections.of_running_loop())), "the socket")
    connections.of_running_loop().begin(0.0)
    await asyncio.wait_for(task, DEADLINE)
    assert closes == [0, 1012, 4012]


async def test_nothing_is_sent_behind_the_close(
    stop_signals: StopSignals, layer: AsyncQueueChannelLayer
) -> None:
    """What a consumer sends between the close and the client's answer is dropped, and is no error."""
    talk = talk_to(Plain)
    await talk.accepted()
    [channel] = layer.channels.keys() - {
        c for c in layer.channels if layer.groups and c in layer.groups[orders.GROUP]
    }
    connections.of_running_loop().begin(0.0)
    assert (await talk.hears())["type"] == "websocket.close"
    await layer.send(channel, {"type": "chat.message", "text": "late"})
    await eventually(lambda: layer.channels[channel].qsize() == 0, "the message")
    await talk.leaves(1012)
    assert talk.sent.empty()


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("closed")])
async def test_client_has_gone(
    stop_signals: StopSignals, layer: AsyncQueueChannelLayer, error: Exception
) -> None:
    """A client that leaves while its socket is closed is no error."""
    talk = talk_to(Plain)
    await talk.accepted()
    talk.refuse = error
    connections.of_running_loop().begin(0.0)
    await eventually(lambda: talk.refused == 1, "the close")
    await talk.leaves(1006)


async def test_client_does_not_read(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """A close that cannot be written ends with its application."""
    talk = talk_to(Room)
    await talk.accepted()
    await talk.hears()
    talk.hold = asyncio.Event()
    connections.of_running_loop().begin(0.0)
    await asyncio.sleep(0)
    await talk.leaves(1006)
    assert not len(connections.of_running_loop())


async def test_socket_that_comes_too_late(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """After the drain a socket is accepted, and sent away at once."""
    await asyncio.wait_for(connections.of_running_loop().begin(0.0), DEADLINE)
    talk = talk_to(Room)
    await talk.accepted()
    heard = [await talk.hears()]
    while heard[-1]["type"] != "websocket.close":
        heard.append(await talk.hears())
    assert '"retry"' in heard[-2]["text"] and heard[-1]["code"] == 1012
    await talk.leaves(1012)


async def test_socket_that_is_refused(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """A handshake that the consumer refuses is no open connection."""
    talk = talk_to(Refusing)
    talk.say("websocket.connect")
    assert (await talk.hears())["type"] == "websocket.close"
    assert not len(connections.of_running_loop())
    await talk.leaves()


async def test_cancelled(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """A server that cancels the application leaves nothing open."""
    talk = talk_to(Plain)
    await talk.accepted()
    await talk.stop()
    assert not len(connections.of_running_loop()) and talk.task.cancelled()


# The application


async def test_other_scopes_pass(stop_signals: StopSignals, layer: AsyncQueueChannelLayer) -> None:
    """Requests and the lifespan go to the application as they are."""
    seen: list[Any] = []

    async def application(*arguments: Any) -> None:
        seen.append(arguments)

    wrapped = drained(application)
    for kind in ("lifespan", "http", "http"):
        given = ({"type": kind}, object(), object())
        await wrapped(*given)
        assert all(a is b for a, b in zip(seen[-1], given, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("site.application",), TypeError, "application must be an ASGI application, not 'site.application'"),
        ((print, "25"), TypeError, "seconds must be a number, not '25'"),
        ((print, True), TypeError, "seconds must be a number, not True"),
        ((print, -1), ValueError, "seconds must be a number from 0 on, not -1"),
        ((print, float("inf")), ValueError, "seconds must be a number from 0 on, not inf"),
        ((print, float("nan")), ValueError, "seconds must be a number from 0 on, not nan"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """An error names the value."""
    with pytest.raises(error) as caught:
        drained(*arguments)
    assert str(caught.value) == text


def test_wrong_layer(stop_signals: StopSignals) -> None:
    """An alias must name a layer of this package; without a default layer signals alone begin a drain."""
    with override_settings(CHANNEL_LAYERS={}):
        with pytest.raises(ImproperlyConfigured, match="'other'"):
            drained(print, layer="other")  # type: ignore[arg-type]
        assert drained(print)._layer is None  # type: ignore[arg-type]


async def serve_once(application: Drained) -> None:
    await application({"type": "lifespan"}, None, None)
    await application({"type": "http"}, None, None)
    await application({"type": "http"}, None, None)


async def nothing(*arguments: Any) -> None:
    pass


def said_unheard(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if getattr(record, "code", "") == "drain.unheard"
    ]


@override_settings(CHANNEL_LAYERS={})
async def test_server_without_a_handler_is_told(
    stop_signals: StopSignals, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server has set no handler, as in the workers of hypercorn, the log says so, once."""
    await serve_once(drained(nothing))
    [(level, text)] = said_unheard(caplog)
    assert level == logging.WARNING and "the server has set no handler for it" in text
    assert "manage.py asyncq drain" in text


@override_settings(CHANNEL_LAYERS={})
async def test_server_with_a_handler(server: ServerOf, caplog: pytest.LogCaptureFixture) -> None:
    """A server whose handler was found is told nothing, and SIGTERM stands before it."""
    await serve_once(drained(nothing))
    assert not said_unheard(caplog) and signal.getsignal(signal.SIGTERM) != server.handle


@pytest.mark.parametrize("debug", [False, True])
def test_server_in_a_thread(stop_signals: StopSignals, caplog: pytest.LogCaptureFixture, debug: bool) -> None:
    """A server in a thread gets no hook, and is told so; with DEBUG, as in `runserver`, without a warning."""
    caplog.set_level(logging.INFO, "channels_asyncq.drain")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(serve_once(drained(nothing)))
        except BaseException as error:
            errors.append(error)

    before = signal.getsignal(signal.SIGTERM)
    with override_settings(CHANNEL_LAYERS={}, DEBUG=debug):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert not errors and signal.getsignal(signal.SIGTERM) is before
    [(level, text)] = said_unheard(caplog)
    assert level == (logging.INFO if debug else logging.WARNING) and "runs in a thread" in text


def test_ended_loops_are_forgotten(stop_signals: StopSignals) -> None:
    """One application on many event loops, as in tests, keeps the last one only."""
    with override_settings(CHANNEL_LAYERS={}):
        application = drained(nothing)
        for _ in range(3):
            asyncio.run(serve_once(application))
    assert len(application._seen) == 1


# The command


@pytest.mark.parametrize(
    ("pattern", "is_for_it"),
    [
        ("web-1:*", True),
        ("web-1:12", True),
        ("web-1:7", True),
        ("*", True),
        ("web-?:12", True),
        ("web-2:*", False),
        ("web-1:1", False),
    ],
)
def test_patterns(pattern: str, is_for_it: bool) -> None:
    """A pattern is for a host and a process id, or the id of its parent."""
    assert orders.is_meant([pattern], "web-1", (12, 7)) is is_for_it


def test_numbers_are_of_this_host() -> None:
    """A number alone is a process of this host; all else is a pattern as it is."""
    host = socket.gethostname()
    assert [orders.with_host(text) for text in ("4711", "a:4711", "web*")] == [
        f"{host}:4711",
        "a:4711",
        "web*",
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER", "GATHER", "SPARE"):
        monkeypatch.setattr(drain, name, 0.3)
    monkeypatch.setattr(orders, "EVERY", 0.1)


def command(*arguments: str) -> str:
    output = StringIO()
    call_command("asyncq", "drain", *arguments, stdout=output)
    return output.getvalue()


@pytest.fixture
async def listener(
    stop_signals: StopSignals, redis_url: str, prefix: str
) -> AsyncIterator[orders.OrderListener]:
    """The listener of a process that has served a request, and can be told to drain."""
    async with installed(AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)) as layer:
        application = drained(nothing, seconds=7)
        await serve_once(application)
        await eventually(lambda: orders.GROUP in layer.groups, "the membership")
        [listener] = application._listeners.values()
        yield listener


async def test_command(listener: orders.OrderListener, quick: None) -> None:
    """The command begins the drain, and returns when it is over."""
    here = connections.of_running_loop()
    guests = [Guest(here, leaves=True) for _ in range(3)]
    output = await asyncio.to_thread(command, "--seconds", "0.1", "--process", str(os.getpid()))
    name = f"{socket.gethostname()}:{os.getpid()}"
    assert all(guest.told_at for guest in guests) and here.phase is Phase.ENDED
    assert output == f"{name}: 3 open, 0.1 s\ndrained: {name}\n"


async def test_command_in_json(listener: orders.OrderListener, quick: None) -> None:
    """One line has the processes that have drained, and what was open when they were told."""
    guest = Guest(connections.of_running_loop(), leaves=True)
    output = await asyncio.to_thread(command, "--seconds", "0.1", "--json")
    name = f"{socket.gethostname()}:{os.getpid()}"
    told = [{"process": name, "open": 1, "seconds": 0.1}]
    assert guest.told_at and json.loads(output) == {"drained": [name], "told": told}


async def test_command_for_others(listener: orders.OrderListener, quick: None) -> None:
    """A process that is not meant goes on, and the command says that nobody has answered."""
    with pytest.raises(CommandError, match=r"no process of web-9:\* has answered within 0.3 s"):
        await asyncio.to_thread(command, "--process", "web-9:*")
    assert is_ready()


async def test_command_does_not_wait_for_ever(listener: orders.OrderListener, quick: None) -> None:
    """A process that does not drain in its time is named."""
    here = connections.of_running_loop()
    guest = Guest(here)
    with pytest.raises(CommandError, match=f"have not drained in time: .*:{os.getpid()}"):
        await asyncio.to_thread(command, "--seconds", "0.2")
    here.leave(guest)


async def test_process_that_ends_meanwhile(
    listener: orders.OrderListener, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has ended in the middle of its drain is not waited for."""
    monkeypatch.setattr(orders, "SILENT", 0.3)
    here = connections.of_running_loop()
    guest = Guest(here)
    running = asyncio.create_task(asyncio.to_thread(command, "--seconds", "3600"))
    await draining(here)
    assert listener._channel is not None
    await eventually(lambda: not listener._answering, "the answer")
    listener._channel.close()
    assert "drained: " in await asyncio.wait_for(running, DEADLINE)
    here.leave(guest)


@pytest.mark.parametrize("seconds", ["soon", "-1", "inf", "nan"])
def test_wrong_seconds(seconds: str) -> None:
    """An error names the value."""
    with pytest.raises(CommandError, match=f"'{seconds}' is not a number of seconds from 0 on"):
        command(f"--seconds={seconds}")


@pytest.mark.server
async def test_command_without_a_server(stop_signals: StopSignals, own_redis_server: EmbeddedServer) -> None:
    """When the message server is down, the command says so."""
    url = own_redis_server.url
    await asyncio.to_thread(own_redis_server.kill)
    async with installed(AsyncQueueChannelLayer(hosts=[url], send_timeout=0.2)):
        with pytest.raises(CommandError, match="the processes cannot be reached: "):
            await asyncio.to_thread(command)


def test_command_without_a_layer() -> None:
    """Without a layer of this package the command says so."""
    with (
        override_settings(CHANNEL_LAYERS={}),
        pytest.raises(CommandError, match=r"CHANNEL_LAYERS\['default'\] is not configured"),
    ):
        command()


async def test_order_of_another_program_is_ignored(
    listener: orders.OrderListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON from outside drains nothing, and neither do other messages."""
    order = {"type": orders.ORDER, "processes": ["*"], "seconds": 0.0, "answer": "nowhere"}
    waiting = [ExternalMessage(order), {**order, "type": "else"}]
    monkeypatch.setattr(OpenChannel, "take", lambda self: waiting.pop() if waiting else None)
    assert listener._channel is not None
    listener._listen(listener._channel)
    assert is_ready() and not waiting
    waiting = [order]
    listener._listen(listener._channel)
    assert not is_ready()
    await eventually(lambda: not listener._answering, "the answer")


async def test_process_joins_again(
    stop_signals: StopSignals, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that could not join, or was dropped by a flush, joins later."""
    monkeypatch.setattr(orders, "RETRY", 0.01)
    monkeypatch.setattr(orders, "RENEW", 0.05)
    async with installed(AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)) as layer:
        add = layer.group_add
        failures = [
            LayerUnavailable("here", "not yet"),
            ImproperlyConfigured("another site has the namespace"),
        ]

        async def fails_first(group: str, channel: str) -> None:
            if failures:
                raise failures.pop()
            await add(group, channel)

        monkeypatch.setattr(layer, "group_add", fails_first)
        await serve_once(drained(nothing))
        await eventually(lambda: orders.GROUP in layer.groups, "the membership")
        await layer.flush()
        await eventually(lambda: orders.GROUP in layer.groups, "the membership after the flush")


async def test_closed_layer(listener: orders.OrderListener) -> None:
    """With its layer, a process is deaf to the command, and no timer is left."""
    await listener._joining  # the session knows of the membership before the server has confirmed it
    timer = listener._timer
    assert timer is not None
    await listener._layer.close()
    await eventually(timer.cancelled, "the timer's end")
