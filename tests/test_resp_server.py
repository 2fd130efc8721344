"""The scripted server answers as Redis does, except where it is told to answer badly."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import pytest
from hiredis import ReplyError

from channels_asyncq.bus.connections import Connector
from channels_asyncq.bus.wire import NoAnswer, WireProtocol
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.resp_server import RespServer


@pytest.fixture
async def server() -> AsyncIterator[RespServer]:
    async with RespServer() as server:
        yield server


async def connect(url: str, seen: list[tuple[bytes, bytes]] | None = None) -> WireProtocol:
    [host] = Options.from_config({"hosts": [url]}).hosts

    def on_message(topic: bytes, payload: bytes) -> bool:
        assert seen is not None
        seen.append((topic, payload))
        return True

    return await Connector(host).connect(
        lambda: WireProtocol(
            on_lost=lambda error: None, on_message=None if seen is None else on_message, timeout=0.2
        )
    )


async def result(future: asyncio.Future[Any]) -> Any:
    try:
        return await future
    except ReplyError as exc:
        return str(exc).split()[0]


async def conversation(url: str, prefix: str) -> list[Any]:
    """What a server answers to everything that the layer says."""
    wire = await connect(url)
    seen: list[tuple[bytes, bytes]] = []
    subscriber = await connect(url, seen)
    names = ("push", "pop", "give_back", "group_send", "add_member", "send", "fence", "read_log")
    folder = resources.files("channels_asyncq.bus").joinpath("scripts")
    texts = {name: folder.joinpath(f"{name}.lua").read_bytes() for name in names}
    texts["send"] = texts["send"].replace(b"MOST_ENTRIES", b"100").replace(b"MOST_BYTES", b"100000")
    seen_key, log = f"{prefix}:seen", f"{prefix}:log"
    sha: dict[str, Any] = {name: await wire.call("SCRIPT", "LOAD", text) for name, text in texts.items()}
    queue, taken, members, topic = (f"{prefix}:{name}" for name in ("queue", "taken", "members", "topic"))
    said: list[Any] = [
        await result(subscriber.call("SUBSCRIBE", queue)),
        await result(subscriber.call("SUBSCRIBE", topic)),
        await result(subscriber.call("PING")),
    ]
    commands: list[tuple[bytes | str | int, ...]] = [
        ("PING",),
        ("EVALSHA", "0" * 40, 0),
        ("SET", prefix, "layout", "NX"),
        ("SET", prefix, "other", "NX"),
        ("GET", prefix),
        ("GET", "nothing"),
        *(
            ("EVALSHA", sha["push"], 2, queue, seen_key, f"item {number}", 2, 60_000, number)
            for number in (2, 2, 3, 4, 1)
        ),
        ("EVALSHA", sha["send"], 2, log, members, topic, 0, "logged"),
        ("EVALSHA", sha["send"], 2, log, members, topic, 0, "logged", "in three", "entries"),
        ("EVALSHA", sha["send"], 1, log, topic, 6, "header of a large one"),
        ("EVALSHA", sha["pop"], 2, queue, taken, 1, 60_000),
        ("EVALSHA", sha["pop"], 2, queue, taken, 1, 60_000),
        ("EVALSHA", sha["give_back"], 2, queue, taken, 0, 60_000),
        ("EVALSHA", sha["give_back"], 2, queue, taken, 1, 60_000),
        ("EVALSHA", sha["give_back"], 2, queue, taken, 1, 60_000),
        *(("EVALSHA", sha["pop"], 2, queue, taken, number, 60_000) for number in (2, 3, 4)),
        ("EVALSHA", sha["group_send"], 1, members, topic, "nobody"),
        ("EVALSHA", sha["add_member"], 1, members, "a-queue", 60_000),
        ("EVALSHA", sha["group_send"], 1, members, topic, "somebody"),
        ("ZREM", members, "a-queue", "another"),
        ("PUBLISH", topic, "directly"),
        ("SET", f"{prefix}:[odd]*", "x"),
        ("SCAN", "0", "MATCH", f"{prefix}:\\[odd\\]\\*", "COUNT", 1_000_000),
        ("UNLINK", prefix, f"{prefix}:[odd]*", "nothing"),
        ("NOPE", "x"),
    ]
    for command in commands:
        answer = await result(wire.call(*command))
        # An item begins with the time at which it expires.
        is_item = isinstance(answer, bytes) and answer[13:].startswith(b"item")
        said.append(answer[13:] if is_item else answer)
    _, _, entries = await wire.call("EVALSHA", sha["read_log"], 1, log, "0-0", 10)
    said.append([fields for _, fields in entries])
    said.append(await result(subscriber.call("UNSUBSCRIBE", topic)))
    # The id of a log's entry is the time.
    said.append(sorted((topic, re.sub(rb"#\d+-\d+ ", b"#id ", data)) for topic, data in seen))
    await asyncio.gather(wire.close(), subscriber.close())
    return said


async def test_it_answers_as_redis_does(
    server: RespServer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """Everything the layer says gets the same answers, and the same messages, as from a real server."""
    assert await conversation(server.url, prefix) == await conversation(redis_server.url, prefix)


async def test_scripted_errors(server: RespServer) -> None:
    """script() answers so many commands, always() all of them, restore() ends it; nothing refused is executed."""
    wire = await connect(server.url)
    server.script("SET", resp_server.error("OOM command not allowed"), None, resp_server.error("READONLY no"))
    outcomes = [await result(wire.call("SET", f"k{number}", "v")) for number in range(4)]
    assert outcomes == ["OOM", b"OK", "READONLY", b"OK"]
    assert sorted(server.state.strings) == [b"k1", b"k3"]
    server.always("PUBLISH", resp_server.error("NOPERM no"))
    server.always("*", resp_server.reply([1, b"two"]))
    assert [await result(wire.call("PUBLISH", "t", "x")) for _ in range(2)] == ["NOPERM", "NOPERM"]
    assert await wire.call("GET", "k1") == [1, b"two"]
    server.restore("PUBLISH")
    server.restore()
    assert await wire.call("PUBLISH", "t", "x") == 0
    assert server.received("publish") == [(b"t", b"x")] * 3
    await wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        resp_server.half(),
        resp_server.half(closes=True),
        resp_server.silence(),
        resp_server.close(),
        resp_server.close(executes=False),
    ],
)
async def test_scripted_silence_and_ends(server: RespServer, answer: resp_server.Answer) -> None:
    """A reply that does not come, or half of it, leaves the caller without an answer."""
    wire = await connect(server.url)
    server.script("SET", answer)
    with pytest.raises(NoAnswer):
        await wire.call("SET", "k", "v")
    assert (b"k" in server.state.strings) is answer.executes
    await wire.close()


async def test_scripted_delay(server: RespServer) -> None:
    """A delayed reply holds up what comes after it on its own connection, and nobody else."""
    wire, other = await connect(server.url), await connect(server.url)
    event = asyncio.Event()
    server.script("GET", resp_server.after(event))
    first, second = wire.call("GET", "k"), wire.call("PING")
    await other.call("PING")
    assert not first.done()
    event.set()
    assert await first is None
    assert await second == b"PONG"
    await asyncio.gather(wire.close(), other.close())


async def test_scripted_by_the_name_of_a_script(server: RespServer) -> None:
    """EVALSHA can be scripted for one Lua script alone."""
    wire = await connect(server.url)
    folder = resources.files("channels_asyncq.bus").joinpath("scripts")
    sha = await wire.call("SCRIPT", "LOAD", folder.joinpath("push.lua").read_bytes())
    server.script("push", resp_server.error("OOM no"))
    server.scripts["push"] = lambda server, keys, arguments: 42
    assert await result(wire.call("EVALSHA", sha, 1, "k", "item", 1, 1000)) == "OOM"
    assert await wire.call("EVALSHA", sha, 1, "k", "item", 1, 1000) == 42
    await wire.close()


async def test_restart(server: RespServer) -> None:
    """A restart ends every connection and forgets scripts; keys and the port stay."""
    wire = await connect(server.url)
    await wire.call("SET", "k", "v")
    sha = await wire.call("SCRIPT", "LOAD", "return 1")
    url = server.url
    await server.restart()
    assert server.url == url
    await wire.close()
    wire = await connect(server.url)
    assert await wire.call("GET", "k") == b"v"
    assert await result(wire.call("EVALSHA", sha, 0)) == "NOSCRIPT"
    await wire.close()


async def test_password_and_loading() -> None:
    """It can refuse who connects: by password, and while it is loading."""
    async with RespServer(password="s3cret") as server:
        await (await connect(server.url)).close()
        with pytest.raises(LayerUnavailable):
            await connect(server.url.replace("s3cret", "wr0ng"))
        server.always("AUTH", resp_server.error("LOADING Redis is loading the dataset in memory"))
        with pytest.raises(LayerUnavailable, match="loading"):
            await connect(server.url)
