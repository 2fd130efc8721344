"""What all sessions of a prefix must agree on, how long it holds, and two formats of the wire side by side."""

from __future__ import annotations

import asyncio
import fnmatch
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable
from channels_asyncq.bus.redis import layout as bus_layout
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.layout import Layout
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.messages.framing import Formats
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.contract import (
    DEADLINE,
    MakeLayer,
    eventually,
    every,
    members_of,
    note,
    notes,
    receive,
    receive_many,
)
from tests.fences import fence_every
from tests.releases import BETWEEN, NEW, OLD, layer_of_release
from tests.resp_server import RespServer
from tests.sessions import bus_of

MakeRelease = Callable[..., Awaitable[AsyncQueueChannelLayer]]


@pytest.fixture
async def make_release(redis_url: str, prefix: str) -> AsyncIterator[MakeRelease]:
    """Make the layer of a process with a release that reads these formats."""
    async with AsyncExitStack() as stack:

        async def make_release(formats: Formats, **config: Any) -> AsyncQueueChannelLayer:
            layer = layer_of_release(formats, **{"hosts": [redis_url], "prefix": prefix, **config})
            stack.push_async_callback(layer.close)
            return layer

        yield make_release


@pytest.fixture
def quick_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fences, which renew the lease, in short order."""
    fence_every(monkeypatch, 0.05)


def said(server: EmbeddedServer, prefix: str) -> list[dict[str, Any]]:
    """What sessions say on a server."""
    return [json.loads(text) for text in server.command("ZRANGE", f"{prefix}:0:layouts", 0, -1)]


def written(server: EmbeddedServer, prefix: str) -> set[int]:
    """The formats that sessions say they write."""
    return {layout["writes"] for layout in said(server, prefix)}


async def fail(layer: AsyncQueueChannelLayer, text: str) -> str:
    """What a send says until it is refused for the layout."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ImproperlyConfigured, match=text) as raised:
            while True:
                try:
                    await layer.group_send("room", note(0))
                except (LayerUnavailable, DeliveryUnknown):
                    await asyncio.sleep(0.01)
    return str(raised.value)


async def up(layer: AsyncQueueChannelLayer) -> None:
    """Until it takes part."""
    async with asyncio.timeout(DEADLINE):
        while not (await layer.health()).ok:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# What must be the same


async def test_hosts_in_another_order(
    make_layer: MakeLayer, redis_server: EmbeddedServer, own_redis_server: EmbeddedServer
) -> None:
    """The second process is told which number each host has to whom, and no message goes astray."""
    urls = [redis_server.url, own_redis_server.url]
    first, second = await make_layer(hosts=urls), await make_layer(hosts=urls[::-1])
    await up(first)
    for number in range(8):
        with pytest.raises(ImproperlyConfigured, match=r"hosts\[\d\] of 2.*hosts\[\d\] of 2.*same order"):
            await every([second.group_send(f"room{number}", note(number))])


async def test_one_server_by_two_names(make_layer: MakeLayer, redis_server: EmbeddedServer) -> None:
    """It is told, too, and what is not refused arrives."""
    port = redis_server.port
    layer = await make_layer(hosts=[f"redis://127.0.0.1:{port}/0", f"redis://localhost:{port}/0"])
    refusals = []
    for number in range(8):
        try:
            (member,) = await members_of(layer, f"room{number}", 1)
            await layer.group_send(f"room{number}", note(number))
        except ImproperlyConfigured as exc:
            refusals.append(str(exc))
        else:
            assert await receive(layer, member) == note(number)
    assert refusals
    for text in refusals:
        assert "hosts[0] of 2" in text and "hosts[1] of 2" in text and "each of them once" in text


def test_one_url_twice() -> None:
    """The same address and database twice are refused at once; another database is another host."""
    Options.from_config({"hosts": ["redis://one/0", "redis://one/1", "redis://two/0"]})
    with pytest.raises(ImproperlyConfigured, match=r"hosts\[2\].*is hosts\[0\] again"):
        Options.from_config({"hosts": ["redis://:secret@one", "redis://two", ("one", 6379)]})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"partitions": 3}, r"partitions: 16.*partitions: 3"),
        ({"serializer_format": "json"}, r"serializer_format: 'msgpack'.*serializer_format: 'json'"),
        ({"symmetric_encryption_keys": ["k"]}, r"no symmetric_encryption_keys, and .* some"),
    ],
    ids=["partitions", "format", "keys"],
)
async def test_refused_until_the_last_has_gone(
    make_layer: MakeLayer, config: dict[str, Any], text: str
) -> None:
    """Who differs is told both values, goes on trying, and comes up by itself when the last other has gone."""
    others = [await make_layer(), await make_layer()]
    await every(other.new_channel() for other in others)
    layer = await make_layer(**config)
    await fail(layer, text)
    await others[0].close()
    await fail(layer, text)
    await others[1].close()
    await up(layer)
    (member,) = await members_of(layer, "room", 1)
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)


def keyed(*keys: str) -> Layout:
    return Layout.of(Options.from_config({"symmetric_encryption_keys": list(keys)}), 0)


@pytest.mark.parametrize(
    ("here", "there", "fits"),
    [
        ("", "", True),
        ("a", "a", True),
        ("a", "", False),
        ("a", "ab", True),
        ("ab", "ba", True),
        ("ba", "b", True),
        ("ab", "b", False),
        ("a", "b", False),
        ("a", "ba", False),
        ("ca", "ba", False),
    ],
)
def test_keys(here: str, there: str, fits: bool) -> None:
    """Refused only if one's first key is not in the other's list, in either direction."""
    assert (not keyed(*here).objections(keyed(*there))) is fits
    assert (not keyed(*there).objections(keyed(*here))) is fits


def test_ids_of_keys_say_nothing() -> None:
    """A lease has no key in it, nor what messages are encrypted with."""
    text = keyed("secret").text().decode()
    [key] = json.loads(text)["keys"]
    assert "secret" not in text and len(key) == 16
    assert key != json.loads(keyed("secret2").text())["keys"][0]


async def test_keys_are_rotated(make_layer: MakeLayer) -> None:
    """The documented way from one key to another, process by process: each step runs beside the one before."""
    before = await make_layer(symmetric_encryption_keys=["a"])
    (member,) = await members_of(before, "room", 1)
    for keys in (["a", "b"], ["b", "a"], ["b"]):
        after = await make_layer(symmetric_encryption_keys=keys)
        (new,) = await members_of(after, "room", 1)
        for sender in (before, after):
            await sender.group_send("room", note(len(keys)))
            assert await receive(before, member) == await receive(after, new) == note(len(keys))
        await before.close()
        before, member = after, new


async def test_a_cluster_and_plain_servers(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """A process that takes for a Redis Cluster what others take for plain servers is told both."""
    stranger(redis_server, prefix, 300, hosts=["redis+cluster://h"], partitions=16)
    layer = await make_layer()
    text = await fail(layer, "it for a Redis Cluster, and this process has it for plain servers")
    assert "Use redis+cluster:// in every process or in none." in text
    await up(layer)


def test_layouts_of_clusters() -> None:
    """Two processes that use one cluster agree, whichever nodes they name; the number of nodes does not count."""
    one, other, plain = (
        Layout.of(Options.from_config({"hosts": hosts, "partitions": 64}), 0)
        for hosts in (["redis+cluster://a"], [{"startup_nodes": [("b", 1), ("c", 2)]}], ["redis://a"])
    )
    assert one == other == Layout.from_text(one.text()) and not one.objections(other)
    assert (one.host, one.hosts, one.is_cluster) == (0, 1, True)
    for here, there in ((one, plain), (plain, one)):
        (objection,) = here.objections(there)
        assert "Redis Cluster" in objection.there + objection.here
        assert objection.there != objection.here


@pytest.mark.parametrize("end", ["Z", "z"])
def test_the_name_of_histories_is_that_of_other_pythons(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    r"""`fnmatch` ends a pattern with `\z` from Python 3.14 on, and with `\Z` before: no process may object."""
    translate = fnmatch.translate
    config = {"history": {"chat.*": {}}, "recovery": {"exclude": ["a*"]}}
    here = Layout.of(Options.from_config(config), 0)
    monkeypatch.setattr(fnmatch, "translate", lambda glob: translate(glob)[:-1] + end)
    assert Layout.of(Options.from_config(config), 0) == here


def test_the_name_of_histories() -> None:
    """Layouts have one name for the same histories, in any spelling; processes with others work side by side."""
    exclude: dict[str, Any] = {"recovery": {"exclude": ["typing"]}}
    configs: list[dict[str, Any]] = [
        {"history": {"room": {"seconds": 300}}},
        {"history": {"room": {"messages": 100}}},
        {"history": {"room": {"messages": 99}}},
        {"history": {"room*": {}}},
        {"history": {"room": {}}, **exclude},
        exclude,
        {},
    ]
    names = [Layout.of(Options.from_config(config), 0).histories for config in configs]
    assert names[0] == names[1] != "" and names[5] == names[6] == ""
    assert len(set(names)) == 5
    first, second = (Layout.of(Options.from_config({"history": {name: {}}}), 0) for name in "ab")
    assert not first.objections(second)


def test_a_layout_of_an_older_release() -> None:
    """It names no cluster and no histories, so it has none. Fields of later releases are ignored."""
    layout = Layout.of(Options.from_config({}), 0)
    fields = json.loads(layout.text())
    later = ("is_cluster", "histories")
    older = json.dumps({name: value for name, value in fields.items() if name not in later})
    assert older != layout.text().decode()
    assert (
        Layout.from_text(older.encode()) == layout == Layout.from_text(json.dumps(fields | {"x": 1}).encode())
    )


# How long it holds


async def test_a_process_that_crashed(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """A lease ends by itself: a changed setting is not blocked for longer."""
    stranger(redis_server, prefix, 300, partitions=3)
    layer = await make_layer()
    await fail(layer, "partitions: 3.*partitions: 16")
    await up(layer)


def stranger(server: EmbeddedServer, prefix: str, milliseconds: int, **config: Any) -> None:
    """Say on the server that there is a process with these settings."""
    other = Layout.of(Options.from_config(config), 0)
    key = f"{prefix}:0:layouts"
    server.command(
        "EVAL",
        Scripts.of(None).lease.text,
        3,
        key,
        f"{key}:stranger",
        f"{key}:past",
        other.text(),
        "stranger",
        milliseconds,
        "",
        other.place(),
        "1",
        900_000,
    )


async def test_renewed_with_the_fence(
    make_layer: MakeLayer, server: RespServer, prefix: str, quick_fences: None
) -> None:
    """An idle process sends one script every few seconds, and nothing else; it renews the lease."""
    layer = await make_layer(hosts=[server.url])
    await layer.new_channel()
    [(_, first)] = leases(server.real, prefix)
    before = len(server.commands)
    await eventually(lambda: leases(server.real, prefix)[0][1] > first + 100, "the renewal")
    kinds = {server.kind_of(name, arguments) for name, *arguments in server.commands[before:]}
    assert kinds == {"FENCE"}


def leases(server: EmbeddedServer, prefix: str) -> list[tuple[bytes, int]]:
    found = server.command("ZRANGE", f"{prefix}:0:layouts", 0, -1, "WITHSCORES")
    return [(text, int(score)) for text, score in zip(found[::2], found[1::2], strict=True)]


async def test_renewed_without_a_connection_for_pushes(
    make_layer: MakeLayer, server: RespServer, quick_fences: None
) -> None:
    """Who may send goes on renewing the lease while its other connection cannot be made."""
    layer = await make_layer(hosts=[server.url])
    await layer.new_channel()
    server.always("SUBSCRIBE", resp_server.close(executes=False))
    for connection in server.connections:
        if connection.is_subscriber:
            connection.abort()
    before = len(server.received("LEASE"))
    await eventually(lambda: len(server.received("LEASE")) > before + 3, "renewals")
    await layer.group_send("room", note(1))


@pytest.mark.parametrize("recovery", [None, {"seconds": 60}])
async def test_superseded(
    make_layer: MakeLayer,
    redis_server: EmbeddedServer,
    prefix: str,
    quick_fences: None,
    recovery: dict[str, int] | None,
) -> None:
    """
    A process that was away for longer than its lease holds, and finds others there, hears of it. When they have
    gone it comes up, and tells that what was sent meanwhile is in no log of its own.
    """
    layer = await make_layer(recovery=recovery, on_loss="layer.loss")
    (member,) = await members_of(layer, "room", 1)
    forget(redis_server, prefix, but=b":past")
    stranger(redis_server, prefix, 1000, partitions=3)
    await fail(layer, "partitions: 3.*partitions: 16")
    await up(layer)
    await layer.group_send("room", note(1))
    got = [await receive(layer, member)]
    while got[-1] != note(1):
        got.append(await receive(layer, member))
    loss = {"type": "layer.loss", "reason": "not_logged", "groups": ["room"]}
    assert got.count(loss) == (recovery is not None)


def forget(server: EmbeddedServer, prefix: str, but: bytes = b" ") -> None:
    """Delete all leases, as time and FLUSHDB do."""
    for key in server.command("KEYS", f"{prefix}:0:layouts*"):
        if not key.endswith(but):
            server.command("DEL", key)


async def test_forgotten_by_the_server(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str, quick_fences: None
) -> None:
    """The next fence of each process brings its lease back, and nobody notices."""
    layers = [await make_layer(recovery=recovery) for recovery in (None, {"seconds": 60})]
    await every(layer.new_channel() for layer in layers)
    before = leases(redis_server, prefix)
    forget(redis_server, prefix)
    await eventually(lambda: len(leases(redis_server, prefix)) == len(before) == 2, "both leases")
    assert [layer.statistics().reconnects for layer in layers] == [0, 0]


async def test_full_server(make_layer: MakeLayer, server: RespServer) -> None:
    """A server that takes no writes for now has no lease to give; whoever finds no stranger there goes on."""
    layer = await make_layer(hosts=[server.url])
    refusal = b"OOM command not allowed when used memory > 'maxmemory'."
    server.always("LEASE", resp_server.reply([refusal, b"0", b"0"]))
    (member,) = await members_of(layer, "room", 1)
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)
    health = await layer.health()
    assert not health.ok and "OOM" in health.hosts[0].reason
    server.restore()
    await up(layer)


async def test_nonsense(make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
    """A layout that this release cannot read is a stranger's, and shown."""
    redis_server.command("ZADD", f"{prefix}:0:layouts", "9e15", '{"hosts": 1}')
    await fail(await make_layer(), r"cannot read \(\{\"hosts\": 1\}\).*same release")


# Logs on and off


async def test_with_and_without_logs(make_layer: MakeLayer) -> None:
    """They work side by side, in groups, specific and normal channels, whatever the bounds of the logs are."""
    layers = [
        await make_layer(recovery=recovery, capacity=1000)
        for recovery in (None, {"messages": 100}, {"messages": 5000, "seconds": 5})
    ]
    members = [(await members_of(layer, "room", 1))[0] for layer in layers]
    for layer in layers:
        for n in range(150):
            await layer.group_send("room", note(n))
    for layer, member in zip(layers, members, strict=True):
        assert [(await receive(layer, member))["n"] for _ in range(450)] == [*range(150)] * 3
        for sender in layers:
            await sender.send(member, note(7))
            await sender.send("jobs", note(8))
            assert await receive(layer, "jobs") == note(8)


async def cut_and_back(server: RespServer, layer: AsyncQueueChannelLayer) -> None:
    before = layer.statistics().reconnects
    server.cut()
    await eventually(lambda: layer.statistics().reconnects >= before + 2, "both connections")
    await up(layer)


async def test_reconnect_beside_a_process_without_logs(make_layer: MakeLayer, server: RespServer) -> None:
    """What that one sent is in no log: all groups are told, once per reconnect, also when it has just gone."""
    layer = await make_layer(hosts=[server.url], on_loss="layer.loss")
    (member,) = await members_of(layer, "room", 1)
    await cut_and_back(server, layer)
    assert not layer.statistics().told
    other = await make_layer(recovery=None)
    await other.new_channel()
    loss = {"type": "layer.loss", "reason": "not_logged", "groups": ["room"]}
    await cut_and_back(server, layer)
    assert await receive(layer, member) == loss
    await other.close()
    await cut_and_back(server, layer)
    assert await receive(layer, member) == loss
    assert layer.statistics().told == {"not_logged": 2}


async def test_long_after_a_process_without_logs(
    make_layer: MakeLayer, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it has gone, and a fence has arrived since its lease ran out, a reconnect tells nothing."""
    monkeypatch.setattr(bus_layout, "LEASE", 0.2)
    layer = await make_layer(hosts=[server.url], on_loss="layer.loss")
    await members_of(layer, "room", 1)
    other = await make_layer(recovery=None)
    await other.new_channel()
    await other.close()

    bus = bus_of(layer)
    assert isinstance(bus, RedisBus)
    [node] = bus.nodes

    async def fenced() -> bool:
        await layer.health()
        return bool(all(each.fenced_at > node.lease.gap > 0 for each in node.partitions.values()))

    async with asyncio.timeout(DEADLINE):
        while not await fenced():
            pass
    await cut_and_back(server, layer)
    assert not layer.statistics().told


# Two formats


async def test_a_gap_between_releases(make_release: MakeRelease) -> None:
    """Two releases that read no common format do not work side by side; both ranges are named."""
    old = await make_release(OLD)
    await old.new_channel()
    new = await make_release(NEW)
    await fail(new, "versions 1 to 1, .* 2 to 3")
    await old.close()
    await up(new)


async def test_the_newest_that_all_read(
    make_release: MakeRelease, redis_server: EmbeddedServer, prefix: str, quick_fences: None
) -> None:
    """The format is the newest that all living processes read, and follows them up and down."""
    between = await make_release(BETWEEN)
    await between.new_channel()
    assert written(redis_server, prefix) == {2}
    old = await make_release(OLD)
    await old.new_channel()
    assert written(redis_server, prefix) == {1}
    await old.close()
    await eventually(lambda: written(redis_server, prefix) == {2}, "format 2")
    new = await make_release(NEW)
    await new.new_channel()
    assert written(redis_server, prefix) == {2}
    await between.close()
    await eventually(lambda: written(redis_server, prefix) == {3}, "format 3")


class Process:
    """A process of a fleet: a member of the group, a worker, and one of the senders."""

    def __init__(self, layer: AsyncQueueChannelLayer) -> None:
        self.layer = layer
        self.got: list[int] = []

    async def start(self, fleet: Fleet) -> None:
        """Have it take part; from here on it misses nothing."""
        (member,) = await members_of(self.layer, "room", 1)
        self._begins = fleet.sent + 1  # the one that is under way may be missed
        self._tasks = [asyncio.create_task(self._read(member)), asyncio.create_task(self._work(fleet.jobs))]
        fleet.senders.append(self.layer)

    async def _read(self, member: str) -> None:
        while True:
            self.got.append((await self.layer.receive(member))["n"])

    async def _work(self, jobs: list[int]) -> None:
        while True:
            jobs.append((await self.layer.receive("jobs"))["n"])

    async def rest(self) -> None:
        """Have it receive nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def stop(self, fleet: Fleet) -> None:
        """Have it end, with nothing lost, twice or out of order up to here."""
        fleet.senders.remove(self.layer)
        last = await fleet.more(2)
        await eventually(lambda: self.got and self.got[-1] >= last, "the last message")
        await self.rest()
        assert self.got[0] <= self._begins
        assert self.got == list(range(self.got[0], self.got[0] + len(self.got)))
        statistics = self.layer.statistics()
        assert (statistics.dropped, statistics.told) == ({}, {})
        await self.layer.close()


class Fleet:
    """What its processes send, one after the other and without a pause: to a group, and to a normal channel."""

    def __init__(self) -> None:
        self.sent = 0
        self.senders: list[AsyncQueueChannelLayer] = []
        self.jobs: list[int] = []
        self.is_over = False

    async def send(self) -> None:
        while not self.is_over:
            sender = self.senders[self.sent % len(self.senders)]
            await sender.group_send("room", note(self.sent))
            await sender.send("jobs", note(self.sent))
            self.sent += 1

    async def more(self, count: int) -> int:
        """Return the number of the last message when so many more were sent."""
        until = self.sent + count
        await eventually(lambda: self.sent >= until, "more sends")
        return until - 1


async def test_rolling_deploy(
    make_release: MakeRelease, redis_server: EmbeddedServer, prefix: str, quick_fences: None
) -> None:
    """From one format to the next and back, process by process, under load: nothing is lost, twice or late."""
    fleet = Fleet()
    processes = [Process(await make_release(OLD, capacity=10**6)) for _ in range(3)]
    for process in processes:
        await process.start(fleet)
    sending = asyncio.create_task(fleet.send())
    try:
        for formats, version in ((BETWEEN, 2), (OLD, 1), (BETWEEN, 2), (NEW, 3)):
            for place, old in enumerate(processes):
                processes[place] = Process(await make_release(formats, capacity=10**6))
                await processes[place].start(fleet)
                await fleet.more(20)
                await old.stop(fleet)
            await eventually(
                lambda version=version: written(redis_server, prefix) == {version},  # type: ignore[misc]
                "the newest format",
            )
            await fleet.more(20)
    finally:
        fleet.is_over = True
        await sending
    await eventually(lambda: len(fleet.jobs) >= fleet.sent, "the last job")
    await every(process.rest() for process in processes)
    assert sorted(fleet.jobs) == list(range(fleet.sent))


async def test_jobs_in_another_format(
    make_release: MakeRelease, redis_server: EmbeddedServer, prefix: str
) -> None:
    """Whoever does not read a job leaves it where it is, in order, and gets those behind it."""
    between = await make_release(BETWEEN)
    for n in range(3):
        await between.send("jobs", note(n))
    old = await make_release(OLD)
    await old.send("jobs", note(3))
    assert await receive(old, "jobs") == note(3)
    assert 0 < redis_server.command("PTTL", f"{prefix}:0:queue:jobs") <= 60_000
    assert not old.statistics().dropped
    assert await receive_many(between, "jobs", 3) == notes(3)


async def test_away_while_others_changed(
    make_release: MakeRelease, server: RespServer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """An old release whose lease has run out tells what it could not read, and takes part again when it can."""
    old = await make_release(OLD, hosts=[server.url], on_loss="layer.loss")
    (member,) = await members_of(old, "room", 1)
    between = await make_release(BETWEEN)
    await between.new_channel()
    assert written(redis_server, prefix) == {1}
    for script in ("LEASE", "FENCE"):
        server.always(script, resp_server.error("BUSY Redis is busy running a script."))
    forget(redis_server, prefix)
    await between.health()
    await eventually(lambda: written(redis_server, prefix) == {2}, "format 2")
    await between.group_send("room", note(1))
    await eventually(lambda: old.statistics().dropped, "the message that it does not read")
    server.restore()
    await up(old)
    await between.group_send("room", note(2))
    loss = {"type": "layer.loss", "reason": "not_logged", "groups": ["room"]}
    assert await receive_many(old, member, 2) == [loss, note(2)]
    assert written(redis_server, prefix) == {1}


async def test_a_writer_that_is_stopped(
    make_release: MakeRelease, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer waits for a writer that does not hear of it, but not for longer than that one's lease holds."""
    between = await make_release(BETWEEN, hosts=[server.url])
    await between.new_channel()
    monkeypatch.setattr(bus_layout, "LEASE", 0.5)
    await between.health()  # from now on its lease is a short one
    server.always("LEASE", resp_server.silence(executes=False))
    server.always("FENCE", resp_server.silence(executes=False))
    old = await make_release(OLD, send_timeout=0.1)
    with pytest.raises(LayerUnavailable):
        await old.group_send("room", note(1))
    await up(old)


async def test_ends_while_it_changes(make_release: MakeRelease, server: RespServer, prefix: str) -> None:
    """A process that ends between two formats leaves nothing of either."""
    between = await make_release(BETWEEN, hosts=[server.url])
    await between.new_channel()
    hold = asyncio.Event()
    server.script("LEASE", None, resp_server.after(hold))  # it looks, and says that it will change
    before = len(server.received("LEASE"))
    old = await make_release(OLD)
    joining = asyncio.create_task(old.new_channel())
    await eventually(lambda: len(server.received("LEASE")) >= before + 2, "the change")
    closing = asyncio.create_task(between.close())
    await asyncio.sleep(0)
    hold.set()
    await every([closing, joining])
    assert [layout["newest"] for layout in said(server.real, prefix)] == [1]
