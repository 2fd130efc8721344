"""Every log event, in a flood: how many lines there are, with which level, logger and fields."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable, sync
from channels_asyncq.asgi import drained
from channels_asyncq.auth import guard, telling
from channels_asyncq.bus.redis import watch
from channels_asyncq.events import Faults
from channels_asyncq.http import stream
from channels_asyncq.messages.external import ExternalMessage
from channels_asyncq.session.notices import REASONS
from channels_asyncq.stopping import signals
from channels_asyncq.stopping.connections import OpenConnections
from channels_asyncq.stopping.signals import StopSignals
from channels_asyncq.testing import EmbeddedServer
from tests.buses import NOPERM, OOM
from tests.clock import Clock
from tests.contract import SEND_TIMEOUT, eventually, layers, note
from tests.resp_server import RespServer, error

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors-and-events.md"
MANY = 50
ADDRESS = "redis://127.0.0.1:6379/0"

# What floods the log, and how many lines of which codes there are then.
Flood = Callable[["Site"], Awaitable[dict[str, int]]]
FLOODS: list[Flood] = []


class Site:
    """What floods may use: a layer whose server the test commands, and what a bus is made of."""

    def __init__(self, layer: AsyncQueueChannelLayer, server: RespServer, real: EmbeddedServer) -> None:
        self.layer = layer
        self.server = server
        self.real = real

    @property
    def session(self) -> Any:
        return self.layer._registry.sessions[asyncio.get_running_loop()]


@pytest.fixture
async def flooded(
    server: RespServer,
    redis_server: EmbeddedServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Site]:
    """A site on which the time of the log stands still: how long a flood takes changes no number of lines."""
    Clock().put_into(monkeypatch, ["events"])
    monkeypatch.setattr(watch, "_evicting", set())
    monkeypatch.setattr(watch, "_evicted", set())
    for module in (guard, stream):
        monkeypatch.setattr(module, "_faults", Faults())
    async with layers(hosts=[server.url], prefix=prefix, capacity=1, send_timeout=SEND_TIMEOUT) as make:
        layer = await make()
        await layer.new_channel()
        yield Site(layer, server, redis_server)


def flood(function: Flood) -> Flood:
    FLOODS.append(function)
    return function


@flood
async def lost_connections(site: Site) -> dict[str, int]:
    """A server that ends connections again and again: one line, and one for each that is back."""
    figures = site.layer.statistics
    await eventually(lambda: figures().connected, "the connections")
    for count in (2, 4, 6, 8, 10):
        # Nothing is on its way then: the end of a connection that has something to read is another cause.
        await site.layer.health()
        site.server.cut()
        await eventually(partial(_has_reconnected, site, count), "the next connections")
    return {"connection.restored": 10, "connection.lost": 1}


def _has_reconnected(site: Site, count: int) -> bool:
    figures = site.layer.statistics()
    return figures.connected and figures.reconnects == count


@flood
async def failing_connections(site: Site) -> dict[str, int]:
    """A password that is wrong for long."""
    site.server.always("AUTH", error("WRONGPASS invalid username-password pair or user is disabled."))
    url = site.server.url.replace("//", "//:wrong@")
    async with layers(hosts=[url], prefix=site.layer.prefix, send_timeout=SEND_TIMEOUT) as make:
        layer = await make()
        await layer.faults(is_lasting=True)
        await eventually(lambda: len(site.server.received("AUTH")) >= 8, "eight attempts")
    return {"connection.failed": 1}


@flood
async def silent_nodes(site: Site) -> dict[str, int]:
    """Nodes of a cluster that are not there, asked again and again: a line for each."""
    hosts = ["redis+cluster://127.0.0.1:1,127.0.0.1:2"]
    async with layers(hosts=hosts, prefix=site.layer.prefix, send_timeout=SEND_TIMEOUT) as make:
        layer = await make()
        await layer.faults(is_lasting=True)
        session: Any = layer._registry.sessions[asyncio.get_running_loop()]
        for _ in range(MANY):
            for port in (1, 2):
                assert await session._bus.router._reader.read(("127.0.0.1", port)) is None
        await layer.health()
    return {"cluster.unanswered": 2}


@flood
async def unwritable_server(site: Site) -> dict[str, int]:
    """A server that refuses to write, by each checkpoint; then it writes; then it refuses for moments."""
    found = watch.Watch(ADDRESS, None)
    for _ in range(MANY):
        found.note_fence([], 0, b"", b"OOM command not allowed", b"7 0")
    for count in range(MANY):
        found.note_fence([], 0, b"", b"", b"%d 0" % (8 + count))
    return {"connection.unwritable": 2, "connection.writable": 1}


@flood
async def evicting_server(site: Site) -> dict[str, int]:
    """A server that evicts keys, and loses ours."""
    for _ in range(MANY):
        found = watch.Watch(ADDRESS, None)
        found.warn_of_evictions(b"maxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n")
        found.log_evictions()
    for _ in range(MANY):
        found.log_forgotten(watch.Findings(frozenset({1}), False, False), 16, b"")
    return {"connection.eviction": 1, "loss.evicted": 1, "loss.server_forgot": 1}


@flood
async def refused_subscriptions(site: Site) -> dict[str, int]:
    """A user without the right to subscribe."""
    member = await site.layer.new_channel()
    site.server.always("SUBSCRIBE", NOPERM)
    for number in range(MANY):
        with pytest.raises(Exception, match="refused"):
            await site.layer.group_add(f"room{number}", member)
    site.server.restore()
    return {"subscription.refused": 1}


@flood
async def refused_commands(site: Site) -> dict[str, int]:
    """A server that is full, and a reader that asks for jobs."""
    site.server.always("pop", OOM)
    for number in range(1, MANY):
        with pytest.raises(ConnectionAbortedError):
            await site.session._bus.queues.pop("jobs", number)
    site.server.restore()
    return {"command.refused": 1}


@flood
async def full_channel(site: Site) -> dict[str, int]:
    """A reader that does not read."""
    await site.layer.group_add("room", await site.layer.new_channel())
    for number in range(MANY):
        await site.layer.group_send("room", note(number))
    await eventually(lambda: site.layer.statistics().dropped.get("overflow") == MANY - 1, "the drops")
    return {"loss.overflow": 1}


@flood
async def losses(site: Site) -> dict[str, int]:
    """Losses of a lost connection: a line for each reason, each time, so none hides another."""
    for reason in REASONS:
        site.session._notices.on_notified(reason, 3, 2)
        site.session._notices.on_notified(reason, 3, 2)
    return {code: 2 for code, _ in REASONS.values()}


@flood
async def unsent_commits(site: Site) -> dict[str, int]:
    """Messages that could not be sent after a commit: a line for each, as each is lost."""

    def post() -> None:
        raise LayerUnavailable(ADDRESS, "away")

    for _ in range(MANY):
        sync._try(post, "group 'room'")
    return {"commit.unsent": MANY}


@flood
async def ended_sessions(site: Site) -> dict[str, int]:
    """Sessions of which nobody could be told: a line for each."""
    for _ in range(MANY):
        telling._note(LayerUnavailable(ADDRESS, "away"))
    return {"session.untold": MANY}


@flood
async def unknown_sessions(site: Site) -> dict[str, int]:
    """A database that is away, and many connections whose sessions are looked at."""

    class Looked(guard.Guard):
        def __init__(self) -> None:
            self._claim: Any = object()
            self._checking = None

        async def _join(self) -> None:
            pass

        def _start_timer(self) -> None:
            pass

    def away(claim: Any) -> bool:
        raise OperationalError("the database is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "holds", away)
        for _ in range(MANY):
            await Looked()._look()
    return {"session.unknown": 1}


@flood
async def failed_streams(site: Site) -> dict[str, int]:
    """A renderer that raises, for each of many clients."""

    class Wishes:
        groups = ("room", "lobby")

    class Failed(stream.Stream):
        def __init__(self) -> None:
            self._renderer: Any = "render"
            self._wishes: Any = Wishes()

    for _ in range(MANY):
        Failed()._note(ValueError("a fault in render"))
    return {"stream.failed": 1}


@flood
async def limited_clients(site: Site) -> dict[str, int]:
    """A client that sends without end."""
    for _ in range(MANY):
        site.layer.note_limited("rate", "RoomConsumer", "its frames wait")
    return {"client.limited": 1}


@flood
async def drains(site: Site) -> dict[str, int]:
    """An event loop that is told to stop again and again."""

    class Connection:
        def tell(self) -> None:
            here.leave(self)

    here: Any = OpenConnections()
    here.enter(Connection())
    await asyncio.gather(*(here.begin(0.01) for _ in range(MANY)))
    return {"drain.began": 1, "drain.ended": 1}


@flood
async def unheard_signals(site: Site) -> dict[str, int]:
    """A server in a thread, and many requests."""

    async def nothing(*arguments: Any) -> None:
        pass

    async def serve() -> None:
        application = drained(nothing)
        for _ in range(MANY):
            await application({"type": "http"}, None, None)

    # What drained() sets for the process does not stay.
    with override_settings(CHANNEL_LAYERS={}), mock.patch.object(signals, "_signals", StopSignals()):
        await asyncio.to_thread(asyncio.run, serve())
    return {"drain.unheard": 1}


@flood
async def unknown_types(site: Site) -> dict[str, int]:
    """Another program that publishes what no consumer knows."""
    for _ in range(MANY):
        site.layer.drop_unhandled(ExternalMessage({"type": "no.such"}), "RoomConsumer")
    return {"wire.unhandled": 1}


@flood
async def garbage(site: Site) -> dict[str, int]:
    """Another program that publishes what is no message."""
    await site.layer.group_add("room", await site.layer.new_channel())
    for _ in range(MANY):
        site.real.command("PUBLISH", site.layer.topic_of_group("room"), b"\xffgarbage")
    await eventually(lambda: site.layer.statistics().dropped.get("unreadable") == MANY, "the drops")
    return {"wire.unreadable": 1}


def table(*heading: str) -> list[list[str]]:
    """The rows of the table of the page that begins with these headings."""
    lines = iter(PAGE.read_text().splitlines())
    start = "| " + " | ".join(heading)
    for line in lines:
        if line.startswith(start):
            break
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def fields_of(line: logging.LogRecord) -> set[str]:
    """What a record has beyond the attributes of each."""
    plain = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime"}
    return line.__dict__.keys() - plain


@pytest.mark.parametrize("of", FLOODS, ids=lambda function: function.__name__)
async def test_flood(flooded: Site, of: Flood, caplog: pytest.LogCaptureFixture) -> None:
    """As many lines as the page says, however often it happens; with level, logger and fields as it says."""
    caplog.set_level(logging.DEBUG, "channels_asyncq")
    caplog.clear()
    expected = await of(flooded)
    lines = [line for line in caplog.records if line.name.startswith("channels_asyncq")]
    counted = Counter(str(line.__dict__["code"]) for line in lines)
    assert {code: counted[code] for code in expected} == expected
    assert counted.keys() <= expected.keys() | {"connection.lost", "connection.restored", "connection.failed"}
    if not PAGE.is_file():
        return
    levels = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in table("code", "logger", "level")}
    documented = {name for row in table("attribute", "of") for name in re.findall(r"`(\w+)`", row[0])}
    for line in lines:
        assert levels[line.__dict__["code"]] == (line.name, line.levelname)
        assert fields_of(line) <= documented
        assert line.getMessage().endswith(f"[{line.__dict__['code']}]")
        text = line.msg % line.args
        assert text == line.getMessage()


@pytest.mark.skipif(not PAGE.is_file(), reason="only the package is here, without its pages")
def test_every_event_has_a_flood() -> None:
    """No event is left out: each code of the page is flooded above."""
    source = Path(__file__).read_text()
    flooded = set(re.findall(r'"([a-z]+\.[a-z_]+)": ', source)) | {code for code, _ in REASONS.values()}
    assert flooded == {row[0].strip("`") for row in table("code", "logger", "level")}


@pytest.mark.skipif(not PAGE.is_file(), reason="only the package is here, without its pages")
def test_every_event_says_what_to_do() -> None:
    """Each row of the table has a meaning, and what to do."""
    assert all(len(row) == 5 and all(row) for row in table("code", "logger", "level"))
