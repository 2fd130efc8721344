"""`manage.py asyncq` check, queues, logs, send, group-send, listen and flush, held against their page."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.fernet import Fernet

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.identity import identity
from channels_asyncq.management.asyncq.sending import message
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.clusters import Cluster
from tests.code_blocks import block
from tests.contract import DEADLINE, eventually, note
from tests.contract import started as begun
from tests.operating import transcript
from tests.processes.asyncq import asyncq, called, ended, started

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

PAGE = "docs/operating.md"
HERE = identity()


def shapes(text: str) -> list[str]:
    """Return lines without what differs from one site to the next: names, numbers, and the width of columns."""
    for pattern, word in (
        (r"redis://[^\s,]+/0", "SERVER"),
        (r"[\w-]+:\d+:[\w-]+", "PROCESS"),
        (r"(Valkey|Redis) [\d.]+", "KIND"),
        (r"(?<=~|&)[\w]+:\*|(?<=prefix ')\w+", "PREFIX"),
        (r"\d[\d.:]*(ms|s|m)?\b", "#"),
        (r"ahead of|behind", "off"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    # Nothing expires while processes start.
    return {"hosts": [redis_url], "prefix": prefix, "partitions": 4, "expiry": 3600}


@pytest.fixture
async def layer(config: dict[str, Any]) -> AsyncIterator[AsyncQueueChannelLayer]:
    """The layer of this process."""
    async with contract.layers(**config) as make_layer:
        yield await make_layer()


async def members_of_chat(layer: AsyncQueueChannelLayer, process: asyncio.subprocess.Process) -> int:
    """Return how many channels of a process are in the group "chat"."""
    assert process.returncode is None
    survey = await layer.survey("takers", timeout=1.0, group="chat", exclude=[])
    end = f":{process.pid}:asyncq"
    return sum(answer.body["channels"] for answer in survey.answers if answer.process.endswith(end))


async def listening(
    layer: AsyncQueueChannelLayer, config: dict[str, Any], *arguments: str
) -> asyncio.subprocess.Process:
    """Start a process that listens to the group "chat", and return when it does."""
    process = await started("listen", "chat", *arguments, config=config)
    async with asyncio.timeout(4 * DEADLINE):
        while not await members_of_chat(layer, process):
            await contract.time_passes(0.05)
    return process


async def end(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.communicate()


# check


async def test_check(own_redis_server: EmbeddedServer) -> None:
    """A server that is right: as on the page, with exit status 0."""
    config = {"hosts": [own_redis_server.url]}
    async with contract.layers(**config) as make_layer:
        await (await make_layer()).new_channel()
        arguments, output = transcript(block(PAGE, "console", having="as the user 'default'"))
        done = await called(*arguments, config=config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output)
    assert all(len(line) <= 80 for line in done.lines)


async def test_check_of_a_limited_user(own_redis_server: EmbeddedServer) -> None:
    """Faults and what cannot be seen: as on the page, with exit status 1."""
    rules = ["~asgi:*", "&asgi:*", "+@all", "-xadd", "-config", "-client|setname"]
    own_redis_server.command("ACL", "SETUSER", "site", "on", ">secret", *rules)
    own_redis_server.command("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    async with contract.layers(hosts=[own_redis_server.url]) as make_layer:
        await (await make_layer()).new_channel()
        config = {"hosts": [own_redis_server.url.replace("://", "://site:secret@")]}
        arguments, output = transcript(block(PAGE, "console", having="as the user 'site'"))
        done = await called(*arguments, config=config)
        as_json = await called("check", "--json", config=config)
    assert done.status == as_json.status == 1
    assert shapes(done.text) == shapes(output)
    assert all(len(line) <= 80 for line in done.lines)
    found = as_json.found
    assert not found["ok"]
    faults = [each for each in found["findings"] if each["state"] == "fault"]
    assert [fault["subject"] for fault in faults] == ["rights", "eviction"]
    assert faults[0]["remedy"].startswith("ACL SETUSER site +xadd")


async def test_check_of_a_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Each primary is in it."""
    done = await called("check", "--json", config={"hosts": [redis_cluster.url], "prefix": prefix})
    assert done.status == 0, done
    servers = {each["server"] for each in done.found["findings"]}
    assert servers == {f"redis://{node.address}/0" for node in redis_cluster.primaries()}


@pytest.mark.parametrize(
    ("host", "status", "words"),
    [
        ("redis://127.0.0.1:1", 1, "Nobody listens there"),
        ("nonsense://", 2, "there is no such kind of host"),
        ("memory://", 0, "no server"),
    ],
)
async def test_check_without_a_server(prefix: str, host: str, status: int, words: str) -> None:
    """A wrong port is a fault; wrong settings leave nothing to check; memory:// has no server."""
    done = await called("check", config={"hosts": [host], "prefix": prefix})
    assert done.status == status and words in " ".join((done.text + done.errors).split())


# queues and logs


@pytest.mark.processes
async def test_queues(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Exactly what was sent, and who reads: as on the page, and as JSON. A process that is stopped is named."""
    reading = await begun(layer.receive("jobs"))
    await eventually(lambda: layer.statistics().connected, "the reader")
    for n in range(3):
        await layer.send("mails", note(n))
    arguments, output = transcript(block(PAGE, "console", having="asyncq queues\n"))
    done = await asyncq(*arguments, config=config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output)
    listener = await listening(layer, config)
    try:
        listener.send_signal(signal.SIGSTOP)
        done = await asyncq("queues", "--json", "--timeout", "2", config=config)
    finally:
        await end(listener)
    assert done.status == 1 and not done.errors
    jobs, mails = done.found["queues"]
    assert jobs == {"channel": "jobs", "length": 0, "bytes": 0, "oldest": None, "readers": [HERE]}
    assert (mails["channel"], mails["length"], mails["readers"]) == ("mails", 3, [])
    (missing,) = done.found["missing"]
    assert missing["process"].endswith(f":{listener.pid}:asyncq") and missing["reason"] == "no answer"
    reading.cancel()
    await contract.ended(reading)


async def test_logs(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Each partition has its line: as on the page."""
    for group in ("room.1", "room.2", "room.3"):
        await layer.group_send(group, note(1))
    arguments, output = transcript(block(PAGE, "console", having="asyncq logs\n"))
    done = await called(*arguments, config=config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output)
    found = (await called("logs", "--json", config=config)).found
    assert found["seconds"] == 60
    assert sum(log["entries"] for log in found["logs"]) == 3
    without = await called("logs", config={**config, "recovery": None})
    assert without.lines == ["there are no logs: the setting recovery is None"]


@pytest.mark.processes
async def test_watch(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """The queues are shown again and again, as they are then, until Ctrl-C."""
    await layer.send("mails", note(1))
    process = await started("queues", "--watch", "0.05", "--json", config=config)
    assert process.stdout is not None
    lengths: list[int] = []
    async with asyncio.timeout(4 * DEADLINE):
        while 2 not in lengths:
            lengths.append(json.loads(await process.stdout.readline())["queues"][0]["length"])
            if len(lengths) == 2:
                await layer.send("mails", note(2))
    process.send_signal(signal.SIGINT)
    done = await ended(process)
    assert lengths[0] == 1 and done.status == 0


async def test_on_a_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Queues, logs, sends and flushes reach all primaries."""
    config: dict[str, Any] = {"hosts": [redis_cluster.url], "prefix": prefix, "expiry": 3600}
    async with contract.layers(**config) as make_layer:
        layer = await make_layer()
        for n in range(12):
            await layer.send(f"jobs.{n:02}", note(n))
            await layer.group_send(f"room.{n:02}", note(n))
        await layer.group_add("room.00", "jobs.00")
        found = (await called("queues", "--json", config=config)).found
        assert [queue["channel"] for queue in found["queues"]] == [f"jobs.{n:02}" for n in range(12)]
        found = (await called("logs", "--json", config=config)).found
        assert sum(log["entries"] for log in found["logs"]) == 12
        assert len({log["server"] for log in found["logs"]}) == 3
        done = await called("group-send", "room.00", '{"type": "x"}', "--json", config=config)
        assert (done.status, done.found["queued"]) == (0, ["jobs.00"])
        assert (await called("flush", "--yes", config=config)).status == 0
        assert (await called("queues", "--json", config=config)).found["queues"] == []


# send and group-send


@pytest.mark.processes
async def test_group_send(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """The processes that take it are shown, with their channels, and the queues: as on the page."""
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in (*channels, "mails"):
        await layer.group_add("chat", channel)
    arguments, output = transcript(block(PAGE, "console", having="asyncq group-send "))
    listener = await listening(layer, config)
    try:
        done = await asyncq(*arguments, "--exclude", channels[0], config=config)
    finally:
        await end(listener)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output)
    assert f"  {HERE}: 2" in done.lines and re.search(rf":{listener.pid}:asyncq: 1$", done.text, re.M)
    for channel in (*channels[1:], "mails"):
        assert await contract.receive(layer, channel) == {"type": "chat.message", "text": "hello"}


async def test_group_send_to_nobody(config: dict[str, Any]) -> None:
    """Nobody took it: exit status 1."""
    done = await called("group-send", "room", '{"type": "x"}', config=config)
    assert done.status == 1 and done.lines == ["0 processes took it, for 0 channels"]


@pytest.mark.processes
async def test_send(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """To a normal channel, and to one of a process: as on the page. It arrives."""
    reading = await begun(layer.receive("jobs"))
    channel = await layer.new_channel()
    arguments, output = transcript(block(PAGE, "console", having="asyncq send jobs "))
    done = await asyncq(*arguments, config=config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output) and f"  {HERE}" in done.lines
    assert await reading == {"type": "job"}
    (command, _, text), output = transcript(block(PAGE, "console", having="asyncq send 'specific."))
    done = await asyncq(command, channel, text, config=config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == shapes(output) and f"  {HERE}" in done.lines
    assert await contract.receive(layer, channel) == {"type": "job"}


async def test_send_to_a_channel_that_is_gone(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Nobody took it: exit status 1."""
    gone = (await layer.new_channel()).replace("!", "!gone")
    done = await called("send", gone, '{"type": "job"}', "--json", config=config)
    assert done.status == 1 and done.found["processes"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["send", "a b", "{}"], "not sent: Channel name may contain only"),
        (["group-send", "a!b", "{}"], "not sent: Group name may contain only"),
        (["group-send", "a", "{}", "--exclude", "a b"], "not sent: Channel name may contain only"),
        (["listen", "a!b"], "Group name may contain only"),
    ],
)
async def test_wrong_name(config: dict[str, Any], arguments: list[str], words: str) -> None:
    """A wrong name is refused with the reason, and exit status 2."""
    done = await called(*arguments, config=config)
    assert done.status == 2 and done.errors.startswith(words)


@pytest.mark.parametrize("text", ["{", "[]", "1", '"text"', "null", ""])
def test_no_message(text: str) -> None:
    """What is no JSON object is refused by the parser of arguments."""
    with pytest.raises(ArgumentTypeError, match="is no JSON"):
        message(text)


def test_deep_message() -> None:
    """So is what the decoder cannot follow to its end."""
    with pytest.raises(ArgumentTypeError, match="nested too deeply"):
        message("[" * 100_000)


async def test_send_to_a_full_channel(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """A normal channel that is full refuses it."""
    await layer.send("jobs", note(1))
    done = await called("send", "jobs", '{"type": "job"}', config={**config, "capacity": 1})
    assert done.status == 2 and done.errors.startswith("not sent")


# listen


@pytest.mark.processes
async def test_listen(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Messages with their time and sender, as on the page, until Ctrl-C; as JSON, until there were enough."""
    told, as_json = await asyncio.gather(
        listening(layer, config), listening(layer, config, "--json", "--count", "1")
    )
    await layer.group_send("chat", {"type": "chat.message", "text": "hello"})
    done = await ended(as_json)
    assert (done.status, done.errors) == (0, "")
    assert done.found["message"] == {"type": "chat.message", "text": "hello"}
    assert (done.found["group"], done.found["sender"]) == ("chat", HERE)
    assert told.stdout is not None
    begin = await told.stdout.readline() + await told.stdout.readline()
    told.send_signal(signal.SIGINT)
    done = await ended(told, begin)
    assert done.status == 130 and "Traceback" not in done.errors
    arguments, output = transcript(block(PAGE, "console", having="asyncq listen "))
    assert arguments == ["listen", "chat"]  # as listening() has it
    assert shapes(done.text) == shapes(output)
    assert HERE in done.lines[0]


@pytest.mark.processes
async def test_listen_with_encryption(config: dict[str, Any]) -> None:
    """Without the keys of the site it refuses, and names the setting; with them it prints the messages."""
    sealed = {**config, "symmetric_encryption_keys": [Fernet.generate_key().decode()]}
    async with contract.layers(**sealed) as make_layer:
        layer = await make_layer()
        await layer.new_channel()
        done = await called("listen", "chat", config=config)
        assert done.status == 2 and "symmetric_encryption_keys" in done.errors and not done.text
        process = await listening(layer, sealed, "--json", "--count", "1")
        await layer.group_send("chat", note(1))
        assert (await ended(process)).found["message"] == note(1)


# flush


@pytest.mark.parametrize(("answer", "is_dropped"), [("y\n", True), ("n\n", False), ("", False)])
async def test_flush_asks(
    layer: AsyncQueueChannelLayer,
    config: dict[str, Any],
    answer: str,
    is_dropped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only yes is yes; no answer is none."""
    await layer.send("mails", note(1))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    done = await called("flush", config=config)
    assert f"of the prefix '{config['prefix']}'" in done.text
    assert done.status == (0 if is_dropped else 1)
    left = (await called("queues", "--json", config=config)).found["queues"]
    assert bool(left) is not is_dropped


async def test_flush(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """With --yes nothing is asked: as on the page. Without it, JSON is refused."""
    await layer.group_add("room", await layer.new_channel())
    await layer.send("mails", note(1))
    done = await called("flush", "--json", config=config)
    assert done.status == 2 and "--yes" in done.errors
    arguments, output = transcript(block(PAGE, "console", having="asyncq flush "))
    done = await called(*arguments, config=config)
    assert (done.status, done.errors) == (0, "") and shapes(done.text) == shapes(output)
    await eventually(lambda: not layer.groups, "the flush")


# All of them


EACH = [
    ["queues"],
    ["logs"],
    ["send", "jobs", "{}"],
    ["group-send", "room", "{}"],
    ["listen", "room"],
    ["flush", "--yes"],
]


@pytest.mark.parametrize("arguments", EACH, ids=lambda arguments: arguments[0])
async def test_memory(prefix: str, arguments: list[str]) -> None:
    """On memory:// there is nothing to see or to do from outside, and that is said."""
    done = await called(*arguments, config={"hosts": ["memory://"], "prefix": prefix})
    assert done.status == 2 and "is on memory://" in done.errors and "Set `hosts`" in done.errors


@pytest.mark.parametrize("arguments", EACH, ids=lambda arguments: arguments[0])
async def test_nobody_there(prefix: str, arguments: list[str]) -> None:
    """Without a server nothing can be found out: exit status 2, with the remedy."""
    config = {"hosts": ["redis://127.0.0.1:1"], "prefix": prefix, "send_timeout": 2}
    done = await called(*arguments, config=config)
    assert done.status == 2 and "Nobody listens there" in done.errors
