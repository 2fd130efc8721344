"""`manage.py asyncq` check, queues, logs, send, group-send, listen and flush, as processes beside this one."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.identity import identity
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.clusters import Cluster
from tests.contract import DEADLINE, ended, eventually, note
from tests.contract import started as begun
from tests.processes.asyncq import asyncq, started

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

PAGE = Path(__file__).parent.parent / "docs" / "operating.md"
HERE = identity()


def sample(beginning: str, number: int = 0) -> list[str]:
    """Return the lines of an output on the page, by the beginning of its command."""
    found = re.findall(
        r"^```console\n\$ python manage\.py asyncq (.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.M
    )
    texts = [text for command, text in found if command.startswith(beginning)]
    return shapes(texts[number])


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
    return {"hosts": [redis_url], "prefix": prefix, "partitions": 4}


@pytest.fixture
async def layer(config: dict[str, Any]) -> AsyncIterator[AsyncQueueChannelLayer]:
    """The layer of this process."""
    async with contract.layers(**config) as make_layer:
        yield await make_layer()


# check


async def test_check(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """A server that is right: as on the page, with exit status 0."""
    await layer.new_channel()
    done = await asyncq("check", **config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("check")
    assert all(len(line) <= 80 for line in done.lines)


async def test_check_of_a_limited_user(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """Faults and what cannot be seen: as on the page, with exit status 1."""
    rules = [f"~{prefix}:*", f"&{prefix}:*", "+@all", "-xadd", "-config", "-client|setname"]
    own_redis_server.command("ACL", "SETUSER", "site", "on", ">secret", *rules)
    own_redis_server.command("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    async with contract.layers(hosts=[own_redis_server.url], prefix=prefix) as make_layer:
        await (await make_layer()).new_channel()
        url = own_redis_server.url.replace("://", "://site:secret@")
        done = await asyncq("check", hosts=[url], prefix=prefix)
        as_json = await asyncq("check", "--json", hosts=[url], prefix=prefix)
    assert done.status == as_json.status == 1
    assert shapes(done.text) == sample("check", 1)
    found = as_json.found
    assert not found["ok"]
    faults = [each for each in found["findings"] if each["state"] == "fault"]
    assert [fault["subject"] for fault in faults] == ["rights", "eviction"]
    assert faults[0]["remedy"].startswith("ACL SETUSER site +xadd")


async def test_check_of_a_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Each primary is in it."""
    done = await asyncq("check", "--json", hosts=[redis_cluster.url], prefix=prefix)
    assert done.status == 0, done
    servers = {each["server"] for each in done.found["findings"]}
    assert servers == {f"redis://{node.address}/0" for node in redis_cluster.primaries()}


async def test_check_without_a_server(prefix: str) -> None:
    """A wrong port is a fault; wrong settings leave nothing to check; memory:// has no server."""
    done = await asyncq("check", hosts=["redis://127.0.0.1:1"], prefix=prefix)
    assert done.status == 1 and "Nobody listens there" in done.text
    done = await asyncq("check", hosts=["nonsense://"], prefix=prefix)
    assert done.status == 2 and "there is no such kind of host" in done.errors
    done = await asyncq("check", hosts=["memory://"], prefix=prefix)
    assert done.status == 0 and "no server" in done.text


# queues and logs


async def test_queues(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Exactly what was sent, and who reads: as on the page."""
    reading = await begun(layer.receive("jobs"))
    await eventually(lambda: layer.statistics().connected, "the reader")
    for n in range(3):
        await layer.send("mails", note(n))
    done = await asyncq("queues", **config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("queues")
    found = (await asyncq("queues", "--json", **config)).found
    jobs, mails = found["queues"]
    assert jobs == {"channel": "jobs", "length": 0, "bytes": 0, "oldest": None, "readers": [HERE]}
    assert (mails["channel"], mails["length"], mails["readers"]) == ("mails", 3, [])
    assert found["missing"] == []
    await ended(_cancelled(reading))


def _cancelled(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    task.cancel()
    return task


async def test_queues_of_a_process_that_is_stopped(
    layer: AsyncQueueChannelLayer, config: dict[str, Any]
) -> None:
    """A process that does not answer is named, and the exit status is 1."""
    listener = await started("listen", "room", **config)
    try:
        await _is_listening(listener, layer)
        listener.send_signal(signal.SIGSTOP)
        done = await asyncq("queues", "--timeout", "1", **config)
        assert done.status == 1
        assert re.search(rf"^missing: \S+:{listener.pid}:asyncq \(no answer\)$", done.text, re.M), done
    finally:
        listener.kill()
        await listener.wait()


async def test_logs(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Each partition has its line: as on the page."""
    for group in ("room.1", "room.2", "room.3"):
        await layer.group_send(group, note(1))
    done = await asyncq("logs", **config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("logs")
    found = (await asyncq("logs", "--json", **config)).found
    assert found["seconds"] == 60
    assert sum(log["entries"] for log in found["logs"]) == 3
    without = await asyncq("logs", **{**config, "recovery": None, "prefix": f"{config['prefix']}x"})
    assert without.lines == ["there are no logs: the setting recovery is None"]


async def test_watch(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """The queues are shown again and again, as they are then, until Ctrl-C."""
    await layer.send("mails", note(1))
    process = await started("queues", "--watch", "0.05", "--json", **config)
    assert process.stdout is not None
    async with asyncio.timeout(2 * DEADLINE):
        seen: list[int] = []
        while 2 not in seen:
            found = json.loads(await process.stdout.readline())
            seen.append(found["queues"][0]["length"])
            if len(seen) == 2:
                await layer.send("mails", note(2))
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert seen[0] == 1 and process.returncode == 0


async def test_on_a_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Queues, logs and sends reach all primaries."""
    config = {"hosts": [redis_cluster.url], "prefix": prefix}
    async with contract.layers(**config) as make_layer:
        layer = await make_layer()
        channel = await layer.new_channel()
        for n in range(12):
            await layer.send(f"jobs.{n:02}", note(n))
            await layer.group_add(f"room.{n:02}", channel)
            await layer.group_send(f"room.{n:02}", note(n))
        await layer.group_add("room.00", "jobs.00")
        found = (await asyncq("queues", "--json", **config)).found
        assert [queue["channel"] for queue in found["queues"]] == [f"jobs.{n:02}" for n in range(12)]
        found = (await asyncq("logs", "--json", **config)).found
        assert sum(log["entries"] for log in found["logs"]) == 12
        assert len({log["server"] for log in found["logs"]}) == 3
        done = await asyncq("group-send", "room.00", '{"type": "x"}', "--json", **config)
        assert done.found["processes"] == [{"process": HERE, "channels": 1}]
        assert done.found["queued"] == ["jobs.00"]
        done = await asyncq("flush", "--yes", **config)
        assert done.status == 0
        assert (await asyncq("queues", "--json", **config)).found["queues"] == []


# send and group-send


async def _is_listening(process: asyncio.subprocess.Process, layer: AsyncQueueChannelLayer) -> bytes:
    """Return what a listener to the group "room" prints of the first message that it gets."""
    assert process.stdout is not None
    line = await begun(process.stdout.readline())
    while not line.done():
        assert process.returncode is None
        await layer.group_send("room", note(0))
        await asyncio.wait([line], timeout=0.05)
    return line.result()


async def test_group_send(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """The processes that take it are shown, with their channels, and the queues: as on the page."""
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in (*channels, "mails"):
        await layer.group_add("room", channel)
    listener = await started("listen", "room", **config)
    try:
        await _is_listening(listener, layer)
        await layer.flush()
        for channel in (*channels, "mails"):
            await layer.group_add("room", channel)
        # A flush ends the membership of the listener as well.
        listener.kill()
        await listener.wait()
        listener = await started("listen", "room", **config)
        await _is_listening(listener, layer)
        text = '{"type": "test.note", "n": 99}'
        done = await asyncq("group-send", "room", text, "--exclude", channels[0], **config)
    finally:
        listener.kill()
        await listener.wait()
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("group-send")
    assert f"  {HERE}: 2" in done.lines and re.search(rf":{listener.pid}:asyncq: 1$", done.text, re.M)
    for channel in channels[1:]:
        while await contract.receive(layer, channel) != note(99):
            pass


async def test_group_send_to_nobody(config: dict[str, Any]) -> None:
    """Nobody took it: exit status 1."""
    done = await asyncq("group-send", "room", '{"type": "x"}', **config)
    assert done.status == 1 and done.lines == ["0 processes took it, for 0 channels"]


async def test_send(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """To a normal channel, and to one of a process: as on the page. It arrives."""
    reading = await begun(layer.receive("jobs"))
    channel = await layer.new_channel()
    done = await asyncq("send", "jobs", '{"type": "job"}', **config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("send jobs") and f"  {HERE}" in done.lines
    assert await reading == {"type": "job"}
    done = await asyncq("send", channel, '{"type": "job", "n": 1}', **config)
    assert (done.status, done.errors) == (0, "")
    assert shapes(done.text) == sample("send 'specific") and f"  {HERE}" in done.lines
    assert await contract.receive(layer, channel) == {"type": "job", "n": 1}
    gone = await asyncq("send", channel.replace("!", "!gone"), '{"type": "job"}', "--json", **config)
    assert gone.status == 1 and gone.found["processes"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["send", "a b", "{}"], "may contain only"),
        (["send", "a", "[]"], "no JSON object"),
        (["send", "a", "{"], "no JSON"),
        (["group-send", "a!b", "{}"], "may contain only"),
        (["group-send", "a", "{}", "--exclude", "a b"], "may contain only"),
        (["listen", "a!b"], "may contain only"),
    ],
)
async def test_not_sent(config: dict[str, Any], arguments: list[str], words: str) -> None:
    """A wrong name or text is refused with the reason, and exit status 2."""
    done = await asyncq(*arguments, **config)
    assert done.status == 2 and words in done.errors and "Traceback" not in done.errors


async def test_send_to_a_full_channel(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """A normal channel that is full refuses it."""
    await layer.send("jobs", note(1))
    done = await asyncq("send", "jobs", '{"type": "job"}', **config, capacity=1)
    assert done.status == 2 and "not sent" in done.errors


# listen


async def test_listen(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Messages with their time and sender: as on the page, and as JSON."""
    for arguments in (["listen", "room", "--count", "1"], ["listen", "room", "--count", "1", "--json"]):
        process = await started(*arguments, **config)
        assert process.stdout is not None
        first = await _is_listening(process, layer)
        rest, errors = await process.communicate()
        assert process.returncode == 0 and not errors
        text = (first + rest).decode()
        if "--json" in arguments:
            found = json.loads(text)
            assert (found["group"], found["sender"], found["message"]) == ("room", HERE, note(0))
        else:
            head, message = shapes(text)
            on_the_page = sample("listen")
            assert head == on_the_page[0].replace("chat", "room")
            assert json.loads(text.splitlines()[1]) == note(0) and message[0] == on_the_page[1][0] == "{"


async def test_listen_with_encryption(config: dict[str, Any]) -> None:
    """Without the keys of the site it refuses, and names the setting; with them it prints the messages."""
    keys = {"symmetric_encryption_keys": [Fernet.generate_key().decode()]}
    async with contract.layers(**config, **keys) as make_layer:
        layer = await make_layer()
        await layer.new_channel()
        done = await asyncq("listen", "room", **config)
        assert done.status == 2 and "symmetric_encryption_keys" in done.errors and not done.text
        process = await started("listen", "room", "--json", "--count", "1", **config, **keys)
        assert json.loads(await _is_listening(process, layer))["message"] == note(0)
        await process.communicate()
        assert process.returncode == 0


async def test_listen_is_interrupted(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """Ctrl-C ends it without a traceback."""
    process = await started("listen", "room", **config)
    await _is_listening(process, layer)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert b"Traceback" not in errors and process.returncode == 130


# flush


@pytest.mark.parametrize(("answer", "is_dropped"), [("y\n", True), ("n\n", False), ("", False)])
async def test_flush_asks(
    layer: AsyncQueueChannelLayer, config: dict[str, Any], answer: str, is_dropped: bool
) -> None:
    """Only yes is yes; no answer is none."""
    await layer.send("mails", note(1))
    done = await asyncq("flush", answer=answer, **config)
    assert f"of the prefix '{config['prefix']}'" in done.text and "[y/N]" in done.text
    assert done.status == (0 if is_dropped else 1)
    (left,) = [(await asyncq("queues", "--json", **config)).found["queues"]]
    assert bool(left) is not is_dropped


async def test_flush(layer: AsyncQueueChannelLayer, config: dict[str, Any]) -> None:
    """With --yes nothing is asked: as on the page. Without it, JSON is refused."""
    await layer.group_add("room", await layer.new_channel())
    await layer.send("mails", note(1))
    done = await asyncq("flush", "--json", **config)
    assert done.status == 2 and "--yes" in done.errors
    done = await asyncq("flush", "--yes", **config)
    assert (done.status, done.errors) == (0, "") and shapes(done.text) == sample("flush")
    await eventually(lambda: not layer.groups, "the flush")


# All of them


@pytest.mark.parametrize(
    "arguments",
    [
        ["queues"],
        ["logs"],
        ["send", "jobs", "{}"],
        ["group-send", "room", "{}"],
        ["listen", "room"],
        ["flush", "--yes"],
    ],
    ids=lambda arguments: arguments[0],
)
async def test_memory(prefix: str, arguments: list[str]) -> None:
    """On memory:// there is nothing to see or to do from outside, and that is said."""
    done = await asyncq(*arguments, hosts=["memory://"], prefix=prefix)
    assert done.status == 2 and "is on memory://" in done.errors and "Set `hosts`" in done.errors


@pytest.mark.parametrize(
    "arguments",
    [["queues"], ["logs"], ["send", "jobs", "{}"], ["group-send", "room", "{}"], ["listen", "room"]],
    ids=lambda arguments: arguments[0],
)
async def test_nobody_there(prefix: str, arguments: list[str]) -> None:
    """Without a server nothing can be found out: exit status 2, with the remedy."""
    done = await asyncq(*arguments, hosts=["redis://127.0.0.1:1"], prefix=prefix, send_timeout=1)
    assert done.status == 2 and "Nobody listens there" in done.errors
    assert "Traceback" not in done.errors
