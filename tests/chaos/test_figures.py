"""Figures that the pages about delivery and the design give, and what they rest on."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq import events as journal
from channels_asyncq.local.flow import MOST, PER_ENVELOPE
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.framing import pack, pack_names
from channels_asyncq.names import Topics
from channels_asyncq.settings.keys import Recovery, log_bytes
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.cluster_nodes import Node
from tests.clusters import Cluster
from tests.contract import note
from tests.sessions import session_of

from .fleet import PlayerAgent, valkey
from .proxy import proxied

pytestmark = pytest.mark.chaos

MEBIBYTE = 2**20


@asynccontextmanager
async def player(**config: Any) -> AsyncGenerator[PlayerAgent, None]:
    """A process that receives, as fast as it would outside of tests."""
    agent = PlayerAgent("reader")
    command = [sys.executable, "-m", "tests.chaos.player", json.dumps({"on_loss": "loss", **config})]
    await agent.start(command, PYTHONDEVMODE="")
    try:
        yield agent
        assert await agent.finish_quietly() == []
    finally:
        if agent.process.returncode is None:
            await agent.kill()


async def counted(agent: PlayerAgent, goal: int) -> None:
    """Return when the player has heard so many messages."""
    async with asyncio.timeout(contract.DEADLINE):
        while await agent.do("count") < goal:  # noqa: ASYNC110  (in another process)
            await asyncio.sleep(contract.POLL)


def numbered(name: str, n: int, pad: str = "") -> dict[str, Any]:
    """A message as the players send them."""
    return {"type": "m", "s": "test", "t": name, "n": n, "pad": pad, "end": False}


@pytest.mark.processes
async def test_recovery_of_10_000_messages_over_1000_groups(
    redis_server: EmbeddedServer, prefix: str
) -> None:
    """
    They are all there, once and in order, after each of two outages. How soon after the connection was accepted
    is printed: less than a second on a machine that is not busy.
    """
    groups, each = 1000, 10
    best = float("inf")
    names = [f"group.{n}" for n in range(groups)]
    async with (
        proxied(redis_server.port) as proxy,
        contract.layers(hosts=[redis_server.url], prefix=prefix) as make_layer,
        player(hosts=[proxy.url], prefix=prefix) as reader,
    ):
        writer = await make_layer()
        channels = await reader.do("open", names)
        for attempt in range(2):
            proxy.refuses = True
            assert proxy.cut("pushes") == 1
            for n in range(attempt * each, (attempt + 1) * each):
                await contract.every(writer.group_send(name, numbered(name, n)) for name in names)
            proxy.refuses = False
            await counted(reader, (attempt + 1) * groups * each)
            [tunnel] = proxy.of("pushes")
            records = [await reader.do("heard", channel) for channel in channels]
            for name, record in zip(names, records, strict=True):
                assert [entry[1:3] for entry in record] == [[name, n] for n in range((attempt + 1) * each)]
            best = min(best, max(record[-1][3] for record in records) - tunnel.since)
    print(f"recovered {groups * each} messages over {groups} groups in {best:.3f} s")


def resident(pid: int) -> float:
    """How many MiB of memory a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "bound",
    [{"capacity": 1000}, {"capacity": 100_000, "max_buffered_bytes": 8 * MEBIBYTE}],
    ids=["capacity", "max_buffered_bytes"],
)
async def test_memory_is_flat_behind_a_stuck_consumer(
    redis_server: EmbeddedServer, prefix: str, bound: dict[str, int]
) -> None:
    """
    Once the bound of 8 MiB is reached, a flood of six times as much adds less than 4 MiB. The neighbour of the
    stuck consumer gets all of it, if the bound is the channel's own.
    """
    size, round_of = 8 * 1024, 1500
    async with (
        contract.layers(hosts=[redis_server.url], prefix=prefix) as make_layer,
        player(hosts=[redis_server.url], prefix=prefix, **bound) as reader,
    ):
        writer = await make_layer()
        await reader.do("stick", "room")
        await reader.do("open", ["room"])
        taken: list[float] = []
        for turn in range(6):
            for n in range(turn * round_of, (turn + 1) * round_of, 50):
                messages = [numbered("room", m, "x" * size) for m in range(n, n + 50)]
                await contract.every(writer.group_send("room", message) for message in messages)
            await reader.do("caught_up")
            if "max_buffered_bytes" not in bound:
                await counted(reader, (turn + 1) * round_of)
            taken.append(resident(reader.process.pid))
        dropped = (await reader.do("figures"))["dropped"]
    print(f"MiB after each {size * round_of / MEBIBYTE:.0f} MiB: {', '.join(f'{mib:.1f}' for mib in taken)}")
    assert dropped["overflow"] > 6 * round_of - 1500
    # The first round reaches the bound, the second the allocator's ease.
    assert max(taken[2:]) - taken[1] < 4.0


#: What Redis needs beside the envelopes: topics with names up to 100 characters, ids, the sessions of the
#: streams, and what its allocator rounds up to.
OVERHEAD = 1.3


@pytest.mark.parametrize(
    "messages",
    [
        600,
        pytest.param(
            10_000,
            marks=[
                pytest.mark.skipif(not os.environ.get("CHAOS_FULL"), reason="CHAOS_FULL is not set"),
                pytest.mark.timeout(300),
            ],
        ),
    ],
)
@pytest.mark.parametrize("largest", [1024, Recovery().message_bytes], ids=["small", "worst"])
@pytest.mark.parametrize("partitions", [16, 64])
async def test_memory_of_full_logs(prefix: str, messages: int, largest: int, partitions: int) -> None:
    """
    All logs, full, take the memory that docs/delivery.md says, however many there are.

    With envelopes of 1 KiB; and with the worst mix: envelopes of 64 KiB, then ever smaller ones, each as large
    as it may be without trimming the envelopes before it.
    """
    kept = messages * 16 // partitions
    sizes = [max(1024, min(largest, log_bytes(partitions) // n)) for n in range(1, kept + 1)]
    bound = sum(sizes) / MEBIBYTE
    with EmbeddedServer(external=False, binary=valkey()) as server:
        async with contract.layers(
            hosts=[server.url],
            prefix=prefix,
            partitions=partitions,
            recovery={"seconds": 3600, "messages": messages},
        ) as make_layer:
            layer = await make_layer()
            await layer.new_channel()  # a session of its own
            topics = Topics(prefix, layer.options.partitions, [0], "0" * 16)
            usage = []
            for group in _groups_of_all_partitions(topics):
                for at in range(0, kept, 200):
                    some = sizes[at : at + 200]
                    await contract.every(layer.group_send(group, _message_of(group, size)) for size in some)
                log = topics.log(topics.group(group)[0].partition)
                assert server.command("XLEN", log) >= kept
                usage.append(server.command("MEMORY", "USAGE", log, "SAMPLES", 0) / MEBIBYTE)
    print(f"{kept} messages: {max(usage):.2f} MiB a log, {sum(usage):.1f} MiB in all; bound {bound:.2f} MiB")
    assert len(usage) == partitions
    assert bound < max(usage) < bound * OVERHEAD


def _groups_of_all_partitions(topics: Topics) -> list[str]:
    """A group of the longest name there is for each of the partitions."""
    groups: dict[int, str] = {}
    n = 0
    while len(groups) < topics.partitions:
        group = f"{n:x<99}"
        groups.setdefault(topics.group(group)[0].partition, group)
        n += 1
    return list(groups.values())


def _message_of(group: str, size: int) -> dict[str, str]:
    """A message whose envelope has this size."""
    # The header with the name of the group, and the message; a long pad has a prefix of three bytes.
    empty = len(Codec().encode({"type": "m", "pad": "x" * 600})) - 600
    return {"type": "m", "pad": "x" * (size - len(pack([(pack_names(group), b"")], bytes(8), 0)) - empty)}


class TestStuckConsumer:
    """What one consumer that reads nothing costs its neighbours, and what is told of it."""

    @pytest.fixture
    async def stuck(self, redis_url: str, prefix: str) -> AsyncGenerator["Stuck", None]:
        config = {"hosts": [redis_url], "prefix": prefix, "on_loss": "loss", "capacity": 10_000}
        async with contract.layers(**config) as make_layer:
            layer = await make_layer(channel_capacity={"slow*": 20})
            stuck = Stuck(layer, await make_layer())
            await stuck.join()
            yield stuck

    async def test_costs_50_ms_at_once(self, stuck: "Stuck") -> None:
        """
        The wire waits for it 50 ms at most, and not again before it reads. In all it waits 50 ms, and 0.2 ms for
        each message, however the reader goes on.
        """
        await stuck.flood(500)
        first = stuck.waited
        assert 0 < first <= MOST
        await stuck.flood(500)
        assert stuck.waited == first
        for episode in range(1, 4):
            await stuck.layer.receive(stuck.channel)
            await stuck.flood(500)
            assert first < stuck.waited <= MOST + PER_ENVELOPE * 500 * (2 + episode)

    async def test_one_line_and_one_word_per_episode(
        self, stuck: "Stuck", caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        The log line names the channel, the pattern that set its capacity and the setting to change. The channel
        is told once. The next episode has its own.
        """
        monkeypatch.setattr(journal, "EVERY", 0.0)
        for episode in (1, 2):
            with caplog.at_level(logging.WARNING, "channels_asyncq.loss"):
                await stuck.flood(300)
            lines = [
                record.getMessage() for record in caplog.records if "loss.overflow" in record.getMessage()
            ]
            assert len(lines) == episode
            assert stuck.channel in lines[-1]
            assert "channel_capacity" in lines[-1]
            assert "slow" in lines[-1]
            assert "20" in lines[-1]
            words = [message for message in await stuck.drain() if message["type"] == "loss"]
            assert words == [{"type": "loss", "reason": "overflow", "groups": ["room"]}]
            assert stuck.layer.statistics().told == {"overflow": episode}


class Stuck:
    """A channel that is read when the test says so, a neighbour that is read always, and who sends to both."""

    def __init__(self, layer: AsyncQueueChannelLayer, writer: AsyncQueueChannelLayer) -> None:
        self.layer = layer
        self.writer = writer
        #: Milliseconds for which the wire waited for the stuck channel, the only one that fills.
        self.spent: list[float] = []

    async def join(self) -> None:
        self.channel = await self.layer.new_channel("slow")
        self.neighbour = await self.layer.new_channel()
        await self.writer.new_channel()  # it is connected, and sends with a session of its own
        for channel in (self.channel, self.neighbour):
            await self.layer.group_add("room", channel)
        hub = session_of(self.layer).hub
        spend = hub.flow.end_wait

        def recorded(milliseconds: float) -> None:
            before = hub.flow.budget.left
            spend(milliseconds)
            self.spent.append(before - hub.flow.budget.left)

        hub.flow.end_wait = recorded  # type: ignore[method-assign]

    @property
    def waited(self) -> float:
        return sum(self.spent)

    async def flood(self, count: int) -> None:
        """So many messages to both; the neighbour gets them all."""
        sends = asyncio.gather(*(self.writer.group_send("room", note(n)) for n in range(count)))
        arrived = await contract.receive_many(self.layer, self.neighbour, count)
        await sends
        assert [message["n"] for message in arrived] == list(range(count))

    async def drain(self) -> list[dict[str, Any]]:
        """Read all that waits in the stuck channel, and a marker behind it."""
        receive = partial(contract.receive, self.layer, self.channel)
        heard = []
        while contract.queued(self.layer, self.channel):
            heard.append(await receive())
        return heard


async def idle_sender(layer: AsyncQueueChannelLayer) -> None:
    await layer.send("jobs", {"type": "m"})


async def idle_sync_caller(layer: AsyncQueueChannelLayer) -> None:
    await asyncio.to_thread(async_to_sync(layer.send), "jobs", {"type": "m"})


async def idle_worker(layer: AsyncQueueChannelLayer) -> "asyncio.Task[dict[str, Any]]":
    await layer.new_channel()  # what is sent before there is a session has connections of its own
    await layer.send("jobs", {"type": "m"})
    assert await layer.receive("jobs") == {"type": "m"}
    return asyncio.create_task(layer.receive("jobs"))


async def one_idle_member(layer: AsyncQueueChannelLayer) -> None:
    await layer.group_add("chat", await layer.new_channel())


async def idle_members(layer: AsyncQueueChannelLayer) -> None:
    """Members in all partitions."""
    channel = await layer.new_channel()
    for group in _groups_of_all_partitions(layer.options.topics("0" * 16)):
        await layer.group_add(group, channel)


async def _count_commands(server: EmbeddedServer | Node, seconds: float) -> tuple[int, int]:
    """Return how many commands clients sent, and how many their scripts called, as MONITOR shows them."""
    counts = [0, 0]
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while line := await reader.readline():
                    counts[b" lua] " in line] += 1
    finally:
        writer.close()
        await writer.wait_closed()
    return counts[0], counts[1]


FULL = pytest.mark.skipif(not os.environ.get("CHAOS_FULL"), reason="CHAOS_FULL is not set")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=FULL)])
@pytest.mark.parametrize(
    ("primaries", "use", "config", "most"),
    [
        pytest.param(0, idle_sender, {}, 1, marks=FULL),
        pytest.param(0, idle_sync_caller, {}, 1, marks=FULL),
        pytest.param(0, idle_worker, {}, 1, marks=FULL),
        pytest.param(0, one_idle_member, {}, 1),
        pytest.param(0, idle_members, {}, 1),
        pytest.param(0, idle_members, {"recovery": None}, 1, marks=FULL),
        pytest.param(1, one_idle_member, {}, 5),
        pytest.param(1, idle_members, {}, 66, marks=FULL),
        pytest.param(3, one_idle_member, {}, 9, marks=FULL),
        pytest.param(3, idle_members, {}, 72),
    ],
)
async def test_commands_of_an_idle_process(
    prefix: str,
    primaries: int,
    use: Callable[[AsyncQueueChannelLayer], Awaitable[asyncio.Future[Any] | None]],
    config: dict[str, Any],
    most: int,
    seconds: float,
) -> None:
    """A process with nothing to do sends `most` commands about every five seconds, and at most every four."""
    with ExitStack() as stack:
        servers: Sequence[EmbeddedServer | Node]
        if primaries:
            cluster = stack.enter_context(Cluster(primaries, 0))
            url, servers = cluster.url, cluster.nodes
        else:
            server = stack.enter_context(EmbeddedServer(external=False, binary=valkey()))
            url, servers = server.url, [server]
        async with contract.layers(hosts=[url], prefix=prefix, **config) as make_layer:
            waiting = await use(await make_layer())
            counts = await asyncio.gather(*(_count_commands(each, seconds) for each in servers))
            if waiting is not None:
                waiting.cancel()
    of_clients, of_scripts = (sum(each) for each in zip(*counts, strict=True))
    an_hour = 3600 / seconds
    print(f"{of_clients * an_hour:,.0f} commands an hour, of scripts {of_scripts * an_hour:,.0f} more")
    assert 0 < of_clients <= most * (seconds / 4 + 1)
