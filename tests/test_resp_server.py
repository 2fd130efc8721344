"""The proxy passes on what a real server says, except where it is told to answer badly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hiredis import ReplyError

from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.bus.resp.connector import Connector
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.bus.resp.replies import NoAnswer
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.settings.options import Options
from tests import resp_server
from tests.contract import eventually
from tests.resp_server import RespServer
from tests.wires import Handler, Owner


async def connect(url: str, messages: Handler | None = None) -> WireProtocol:
    [host] = Options.from_config({"hosts": [url]}).hosts
    return await Connector(host).connect(lambda: WireProtocol(owner=Owner(), messages=messages, timeout=0.2))


async def result(future: asyncio.Future[Any]) -> Any:
    try:
        return await future
    except ReplyError as exc:
        return str(exc).split()[0]


async def conversation(url: str, prefix: str) -> list[Any]:
    """What a server answers to every kind of command, and what it publishes."""
    handler = Handler()
    wire, subscriber, seen = await connect(url), await connect(url, handler), handler.seen
    said = [await result(subscriber.call("SUBSCRIBE", prefix)), await result(subscriber.call("PING"))]
    commands: list[tuple[str | bytes | int, ...]] = [
        ("PING",),
        ("SET", prefix, b"\r\n\x00" * 100_000),
        ("SET", prefix, "other", "NX"),
        ("GET", prefix),
        ("GET", f"{prefix}nothing"),
        ("RPUSH", f"{prefix}list", "a", "b"),
        ("EVAL", "return {1, 'two', false, {3, {err = 'FOUR'}}, {}}", 0),
        ("EVALSHA", "0" * 40, 0),
        ("PUBLISH", prefix, b"message"),
        ("UNLINK", prefix, f"{prefix}list"),
        ("NOPE", "x"),
    ]
    said += [await result(wire.call(*command)) for command in commands]
    await eventually(lambda: seen, "the message")
    said += [await result(subscriber.call("UNSUBSCRIBE", prefix)), seen]
    await asyncio.gather(wire.close(), subscriber.close())
    return said


async def test_it_passes_on_what_the_server_says(server: RespServer, prefix: str) -> None:
    """What is not scripted gets the same answers, and the same messages, as from the server itself."""
    assert str(await conversation(server.url, prefix)) == str(await conversation(server.real.url, prefix))


async def test_commands_of_one_write(server: RespServer, prefix: str) -> None:
    """However many commands come together, each gets its own answer."""
    wire = await connect(server.url)
    server.script("INCR", None, resp_server.error("OOM no"))
    answers = await asyncio.gather(*(result(wire.call("INCR", prefix)) for _ in range(50)))
    assert answers == [1, "OOM", *range(2, 50)]
    assert server.received("incr") == [(prefix.encode(),)] * 50
    await wire.close()


async def test_scripted_errors(server: RespServer, prefix: str) -> None:
    """script() answers some commands, always() all of them, restore() ends it; nothing refused is executed."""
    wire = await connect(server.url)
    server.script("SET", resp_server.error("OOM command not allowed"), None, resp_server.error("READONLY no"))
    outcomes = [await result(wire.call("SET", f"{prefix}{number}", "v")) for number in range(4)]
    assert outcomes == ["OOM", b"OK", "READONLY", b"OK"]
    assert [server.real.command("EXISTS", f"{prefix}{number}") for number in range(4)] == [0, 1, 0, 1]
    server.always("PUBLISH", resp_server.error("NOPERM no"))
    server.always("*", resp_server.reply([1, b"two"]))
    assert [await result(wire.call("PUBLISH", prefix, "x")) for _ in range(2)] == ["NOPERM", "NOPERM"]
    assert await wire.call("GET", prefix) == [1, b"two"]
    server.restore()
    assert await wire.call("PUBLISH", prefix, "x") == 0
    await wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(resp_server.half(), id="half"),
        pytest.param(resp_server.half(closes=True), id="half, closed"),
        pytest.param(resp_server.silence(), id="silence"),
        pytest.param(resp_server.silence(executes=False), id="silence, not executed"),
        pytest.param(resp_server.close(), id="closed"),
        pytest.param(resp_server.close(executes=False), id="closed, not executed"),
    ],
)
async def test_scripted_silence_and_ends(server: RespServer, prefix: str, answer: resp_server.Answer) -> None:
    """A reply that does not come, or half of it, leaves the caller without an answer."""
    wire = await connect(server.url)
    server.script("SET", answer)
    with pytest.raises(NoAnswer):
        await wire.call("SET", prefix, "v")
    assert bool(server.real.command("EXISTS", prefix)) is answer.executes
    await wire.close()


async def test_scripted_delay(server: RespServer, prefix: str) -> None:
    """A delayed reply holds up what comes after it on its own connection, messages too, and nobody else."""
    handler = Handler()
    wire, other, seen = await connect(server.url, handler), await connect(server.url), handler.seen
    await wire.call("SUBSCRIBE", prefix)
    event = asyncio.Event()
    server.script("PING", resp_server.after(event))
    first = wire.call("PING")
    await eventually(lambda: server.received("PING"), "the command")
    assert await other.call("PUBLISH", prefix, "x") == 1
    second = wire.call("UNSUBSCRIBE", prefix)
    await other.call("PING")
    assert not (first.done() or second.done() or seen)
    event.set()
    assert await first == [b"pong", b""]
    assert (await second)[0] == b"unsubscribe"
    assert seen == [(prefix.encode(), b"x")]
    await asyncio.gather(wire.close(), other.close())


async def test_scripted_by_the_name_of_a_script(server: RespServer, prefix: str) -> None:
    """EVALSHA can be scripted for one Lua script alone."""
    wire = await connect(server.url)
    await wire.call("SCRIPT", "LOAD", Scripts.of(None).push.text)
    server.script("push", resp_server.error("OOM no"))
    push = (
        "EVALSHA",
        Scripts.of(None).push.sha,
        3,
        prefix,
        f"{prefix}seen",
        f"{prefix}waiting",
        "item",
        1,
        1000,
        1,
    )
    assert await result(wire.call("EVALSHA", "0" * 40, 0)) == "NOSCRIPT"
    assert await result(wire.call(*push)) == "OOM"
    assert await wire.call(*push) == 1
    await wire.close()


async def test_stop_and_start(server: RespServer, prefix: str) -> None:
    """It stops with all its connections, and starts on the same port; the server behind it goes on."""
    wire = await connect(server.url)
    await wire.call("SET", prefix, "v")
    url = server.url
    await server.stop()
    assert not server.connections
    with pytest.raises(LayerUnavailable):
        await connect(url)
    await server.start()
    assert server.url == url
    await wire.close()
    wire = await connect(server.url)
    assert await wire.call("GET", prefix) == b"v"
    await wire.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("WRONGPASS invalid username-password pair or user is disabled.", "password"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
    ],
    ids=["WRONGPASS", "LOADING"],
)
async def test_login(server: RespServer, text: str, reason: str) -> None:
    """It can refuse a login."""
    server.always("AUTH", resp_server.error(text))
    with pytest.raises(LayerUnavailable, match=reason):
        await connect(server.url.replace("//", "//:s3cret@"))
    server.always("AUTH", resp_server.reply("OK"))
    await (await connect(server.url.replace("//", "//:s3cret@"))).close()


# Sharded pub/sub.


async def sharded_conversation(url: str, prefix: str) -> list[Any]:
    """What a server answers to the commands of sharded pub/sub, and what it pushes."""
    handler = Handler()
    wire, subscriber = await connect(url), await connect(url, handler)
    said = [await result(subscriber.call("SSUBSCRIBE", f"{prefix}{number}")) for number in range(2)]
    said.append(await wire.call("SPUBLISH", f"{prefix}0", b"message"))
    said += [await subscriber.sunsubscribe(f"{prefix}{number}".encode()) for number in range(2)]
    said += [await result(subscriber.call("PING")), handler.seen, handler.unsubscribed]
    await asyncio.gather(wire.close(), subscriber.close())
    return said


async def test_it_passes_on_sharded_messages(server: RespServer, prefix: str) -> None:
    """Messages of sharded topics, and the ends of subscriptions, arrive as from the server itself."""
    said = await sharded_conversation(server.url, prefix)
    assert said == await sharded_conversation(server.real.url, prefix)
    assert [topic for topic, _ in said[-2]] == [f"{prefix}0".encode()]
    assert said[-1] == [f"{prefix}{number}".encode() for number in range(2)]
    assert [name for name, *_ in server.commands].count("SUNSUBSCRIBE") == 2


async def test_subscription_that_ends_unasked(server: RespServer, prefix: str) -> None:
    """say() ends a subscription. With a scripted MOVED it is as if the slot had moved under SUNSUBSCRIBE."""
    handler = Handler()
    wire, topic = await connect(server.url, handler), prefix.encode()
    assert await wire.call("SSUBSCRIBE", topic) == [b"ssubscribe", topic, 1]
    [connection] = server.connections
    assert connection.is_subscriber
    server.script("SUNSUBSCRIBE", resp_server.error("MOVED 3999 127.0.0.1:6381"))
    connection.say([b"sunsubscribe", topic, 0])
    futures = [wire.sunsubscribe(topic), wire.call("PING", "last")]
    # The real server still has the subscription.
    assert await asyncio.gather(*futures) == [[b"pong", topic], [b"pong", b"last"]]
    assert handler.unsubscribed == [topic]
    assert await wire.sunsubscribe(topic) == topic
    assert handler.unsubscribed == [topic, topic]
    await wire.close()


async def test_scripted_answers_behind_a_sunsubscribe(server: RespServer, prefix: str) -> None:
    """Commands behind a SUNSUBSCRIBE that is executed get the answers that are scripted for them."""
    wire, topic = await connect(server.url, Handler()), prefix.encode()
    server.script("PING", None, resp_server.reply("scripted"))
    server.script("SSUBSCRIBE", resp_server.error("MOVED 3999 127.0.0.1:6381"), None)
    assert await result(wire.call("SSUBSCRIBE", topic)) == "MOVED"
    assert await result(wire.call("SSUBSCRIBE", topic)) == [b"ssubscribe", topic, 1]
    assert await wire.sunsubscribe(topic) == topic
    assert await wire.call("PING") == b"scripted"
    # The PING of the second one is scripted: no reply of the real server is behind the array.
    server.script("PING", resp_server.reply(topic))
    assert await wire.sunsubscribe(topic) == topic
    assert await wire.call("PING", "real") == b"real"
    await wire.close()


@pytest.mark.parametrize("answer", [resp_server.silence(), resp_server.close()], ids=["silence", "closed"])
async def test_sunsubscribe_without_an_answer(
    server: RespServer, prefix: str, answer: resp_server.Answer
) -> None:
    """A SUNSUBSCRIBE that is executed and not answered: its PING gets no answer either."""
    handler = Handler()
    wire, topic = await connect(server.url, handler), prefix.encode()
    await wire.call("SSUBSCRIBE", topic)
    server.script("SUNSUBSCRIBE", answer)
    with pytest.raises(NoAnswer):
        await wire.sunsubscribe(topic)
    assert handler.unsubscribed == []
    assert server.real.command("PUBSUB", "SHARDCHANNELS", topic) == []
    await wire.close()
