"""RedisBus on servers that answer badly, and on one that answers well."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any

import pytest
from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq.bus.base import ChannelRoute, GroupRoute
from channels_asyncq.bus.redis import bus as redis
from channels_asyncq.bus.redis.bus import POP, SCRIPTS, RedisBus, Shard
from channels_asyncq.exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL, HEADER_ONLY, Envelope, unpack
from channels_asyncq.messages.sealing import TOPIC, Seal, place
from channels_asyncq.names import Topic, Topics, new_session_id
from channels_asyncq.settings.keys import Recovery
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.chaos.proxy import proxied
from tests.contract import codes, ended, eventually, every, started
from tests.resp_server import Answer, RespServer, error

SEND_TIMEOUT = 0.3
PAYLOAD = Codec().encode({"type": "test.note"})

LOADING = error("LOADING Redis is loading the dataset in memory")
READONLY = error("READONLY You can't write against a read only replica.")
NOAUTH = error("NOAUTH Authentication required.")
NOPERM = error("NOPERM No permissions to access a channel")
OOM = error("OOM command not allowed when used memory > 'maxmemory'.")
NOREPLICAS = error("NOREPLICAS Not enough good replicas to write.")
ODD = error("ERR something that nobody expects")
GARBAGE = Answer(executes=False, data=b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Owner:
    """A bus and what it calls: takes everything, unless it is told not to."""

    def __init__(self, url: str | list[str], prefix: str, **config: Any) -> None:
        hosts = [url] if isinstance(url, str) else url
        self.options = Options.from_config(
            {"hosts": hosts, "prefix": prefix, "send_timeout": SEND_TIMEOUT, "recovery": None} | config
        )
        self.session_id = new_session_id()
        self.topics = Topics(
            prefix, self.options.partitions, [host.db for host in self.options.hosts], self.session_id
        )
        codec = Codec(self.options.serializer_format)
        self.bus = RedisBus(self.options, self.topics, codec, self.session_id, self)
        self.takes = True
        self.places: int | None = None
        self.arrived: list[tuple[bytes, Envelope]] = []
        self.offered = 0
        self.events: list[str] = []
        self.woken: list[bytes] = []
        self.subscribed: list[bytes] = []
        self.unreadable: list[tuple[bytes, str]] = []
        self.external = 0
        self.answerable = 0
        self.losses: list[tuple[str, set[bytes]]] = []
        self.forgotten: list[tuple[set[int], set[bytes]]] = []
        self.unknown: list[set[int]] = []
        self.group_routes: dict[str, GroupRoute] = {}
        self.channel_routes: dict[str, ChannelRoute] = {}

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        self.offered += 1
        takes = self.takes and (self.places is None or len(self.arrived) < self.places)
        if takes:
            self.arrived.append((topic, envelope))
        return takes

    def on_wake(self, topic: bytes) -> None:
        self.woken.append(topic)

    def on_subscribed(self, topic: bytes) -> None:
        if b":fence:" not in topic and not topic.endswith(b":layouts"):
            self.subscribed.append(topic)

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        self.unreadable.append((topic, reason))

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        self.forgotten.append((set(partitions), topics))

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        self.unknown.append(set(partitions))
        return 1

    def on_overrun(self) -> None:
        raise AssertionError("nothing of another loop comes here")

    def on_external(self) -> None:
        self.external += 1

    def on_answerable(self) -> None:
        self.answerable += 1

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        self.losses.append((reason, topics))

    def on_down(self) -> None:
        self.events.append("down")

    def on_up(self) -> None:
        self.events.append("up")

    # What tests do with it.

    async def up(self, times: int = 1) -> None:
        await eventually(lambda: self.events.count("up") >= times, f"link up, {times} times")

    async def refused(self, *words: str) -> None:
        """Until a connection was tried and failed for a reason with one of these words."""
        await eventually(
            lambda: any(word in self.bus.links()[0].reason for word in words), f"a failure for {words}"
        )

    def group_send(
        self, group: str, payload: bytes, excluded: tuple[str, ...] = ()
    ) -> Awaitable[list[bytes]]:
        if group not in self.group_routes:
            self.group_routes[group] = self.bus.group_route(group)
        return self.group_routes[group].send(payload, excluded)

    def push(self, channel: str, payload: bytes) -> Awaitable[object]:
        if channel not in self.channel_routes:
            self.channel_routes[channel] = self.bus.channel_route(channel)
        return self.channel_routes[channel].send(payload)

    async def join(self, group: str = "room") -> Topic:
        topic = self.topics.group(group).topic
        self.bus.subscribe(topic)
        await self.bus.confirmed(topic)
        return topic

    async def pop(self, number: int, channel: str = "jobs") -> bytes | None:
        answer = self.bus.pop(channel, number)
        assert answer is not None
        [envelope] = await every([answer])
        return None if envelope is None else envelope.payload

    def calls(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Everything that a sender can wait for."""
        inbox = self.topics.inbox("00" * 8)
        return {
            "group_send": lambda: self.group_send("room", PAYLOAD),
            "publish": lambda: self.bus.publish(inbox, "x", PAYLOAD, CONTROL),
            "push": lambda: self.push("jobs", PAYLOAD),
            "add_member": lambda: self.bus.add_member("room", "jobs"),
            "discard_member": lambda: self.bus.discard_member("room", "jobs"),
            "flush": lambda: self.bus.flush(),
        }


COMMAND_OF = {
    "group_send": "EVALSHA",
    "publish": "PUBLISH",
    "push": "EVALSHA",
    "add_member": "EVALSHA",
    "discard_member": "ZREM",
    "flush": "SCAN",
}
each_call = pytest.mark.parametrize("call", COMMAND_OF)

MakeOwner = Callable[..., Awaitable[Owner]]


@pytest.fixture
async def make(prefix: str) -> AsyncIterator[MakeOwner]:
    """Make an owner on a URL; its bus is started, and closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(url: str | list[str], **config: Any) -> Owner:
            owner = Owner(url, prefix, **config)
            stack.push_async_callback(owner.bus.close)
            owner.bus.start()
            return owner

        yield make


@pytest.fixture
async def owner(make: MakeOwner, server: RespServer) -> Owner:
    # What succeeds within it must do so on a busy machine too, after six tenths of it in silence.
    owner = await make(server.url, send_timeout=1.2)
    await owner.up()
    return owner


# What a server answers to commands


@each_call
async def test_unserving(owner: Owner, server: RespServer, call: str) -> None:
    """A server that is there and cannot serve is left and tried again: the call succeeds when it can."""
    for answer in (LOADING, READONLY, NOAUTH, error("MASTERDOWN Link with MASTER is down")):
        server.script(COMMAND_OF[call], answer)
        await every([owner.calls()[call]()])
    [link] = owner.bus.links()
    assert link.reconnects >= 4


@each_call
@pytest.mark.parametrize(
    "answer",
    [OOM, error("MISCONF Redis is configured to save"), NOREPLICAS, error("BUSY Redis is busy")],
    ids=["OOM", "MISCONF", "NOREPLICAS", "BUSY"],
)
async def test_refused_for_now(owner: Owner, server: RespServer, call: str, answer: Answer) -> None:
    """A server that refuses for want of memory or the like: LayerUnavailable with its words, at once."""
    server.script(COMMAND_OF[call], answer)
    with pytest.raises(LayerUnavailable, match=r"OOM|MISCONF|NOREPLICAS|BUSY") as raised:
        await every([owner.calls()[call]()])
    assert raised.value.address.startswith("redis://127.0.0.1:") and str(server.port) in str(raised.value)
    await every([owner.calls()[call]()])
    assert owner.events == ["up"]


@each_call
async def test_forbidden(owner: Owner, server: RespServer, call: str) -> None:
    """A user without permission is told so, with the pattern that it needs."""
    server.script(COMMAND_OF[call], NOPERM)
    with pytest.raises(ChannelLayerError, match=r"NOPERM.*Grant the user 'default' &t\d+x\d+:\*") as raised:
        await every([owner.calls()[call]()])
    assert not isinstance(raised.value, LayerUnavailable)
    assert owner.events == ["up"]


@each_call
async def test_another_error(owner: Owner, server: RespServer, call: str) -> None:
    """Any other error reply is a ChannelLayerError with the server's words and address; the link stays."""
    server.script(COMMAND_OF[call], ODD)
    with pytest.raises(ChannelLayerError, match="refused: ERR something that nobody expects"):
        await every([owner.calls()[call]()])
    await every([owner.calls()[call]()])
    assert owner.events == ["up"]


@pytest.mark.parametrize("call", ["group_send", "publish", "push"])
@pytest.mark.parametrize(
    "answer",
    [resp_server.half(closes=True), resp_server.close(), resp_server.half(), resp_server.silence()],
    ids=["half, closed", "closed", "half", "silence"],
)
async def test_no_answer_to_a_send(owner: Owner, server: RespServer, call: str, answer: Answer) -> None:
    """A send that was written and not answered is sent again, the same bytes, on the next connection."""
    server.script(COMMAND_OF[call], answer)
    before = len(server.received(COMMAND_OF[call]))
    await every([owner.calls()[call]()])
    first, second = server.received(COMMAND_OF[call])[before : before + 2]
    assert first == second
    await owner.up(2)
    assert server.real.command("LLEN", owner.topics.queue("jobs").topic.name) == (call == "push")


@pytest.mark.parametrize("call", ["group_send", "publish", "push"])
@pytest.mark.parametrize("recovery", [None, {"seconds": 10}])
async def test_no_answer_ever(
    make: MakeOwner, server: RespServer, call: str, recovery: dict[str, int] | None
) -> None:
    """If the server does not come back in time either, nobody knows: DeliveryUnknown, with its address."""
    owner = await make(server.url, recovery=recovery)
    await owner.up()
    port, before = server.port, len(server.commands)
    server.always("EVALSHA", resp_server.silence())
    server.always("PUBLISH", resp_server.silence())
    sending = await started(_wait(owner.calls()[call]()))
    await eventually(lambda: len(server.commands) > before, "the arrival of the command")
    await server.stop()
    with pytest.raises(DeliveryUnknown, match=str(port)):
        await every([sending])


@pytest.mark.parametrize("call", ["add_member", "discard_member", "flush"])
@pytest.mark.parametrize(
    "answer",
    [resp_server.half(closes=True), resp_server.silence(executes=False)],
    ids=["half, closed", "silence"],
)
async def test_no_answer_to_what_can_be_repeated(
    owner: Owner, server: RespServer, call: str, answer: Answer
) -> None:
    """What does no harm when it is done twice is sent again."""
    server.script(COMMAND_OF[call], answer)
    before = len(server.received(COMMAND_OF[call]))
    await every([owner.calls()[call]()])
    assert len(server.received(COMMAND_OF[call])) >= before + 2


async def test_scripts_are_forgotten(owner: Owner, server: RespServer) -> None:
    """NOSCRIPT is no loss: the scripts are loaded and the command is sent again, for waiting and other calls."""
    server.real.command("SCRIPT", "FLUSH")
    await every([owner.push("jobs", PAYLOAD)])
    server.real.command("SCRIPT", "FLUSH")
    assert await owner.pop(1) == PAYLOAD
    server.real.command("SCRIPT", "FLUSH")
    given = owner.bus.give_back("jobs", 1)
    assert given is not None
    await every([given])
    assert await owner.pop(2) == PAYLOAD
    assert owner.events == ["up"]


# What is sent in one turn


def entries_in(command: tuple[Any, ...]) -> list[bytes]:
    """What a command logs, or publishes: its arguments from the first on that begins with the wire's version."""
    return list(itertools.dropwhile(lambda argument: not argument.startswith(b"\x01"), command))


def envelopes_in(command: tuple[Any, ...], seal: Seal | None = None, place: bytes = b"") -> list[Envelope]:
    """The messages in a command that sends, but for the header that is logged in place of a large one."""
    envelopes = [envelope for entry in entries_in(command) for envelope in unpack(entry, seal, place)]
    return [envelope for envelope in envelopes if not envelope.flags & HEADER_ONLY]


def bodies(commands: list[tuple[Any, ...]]) -> list[list[bytes]]:
    return [[envelope.payload for envelope in envelopes_in(command)] for command in commands]


def send_some(owner: Owner, group: str, *payloads: bytes) -> list[Awaitable[object]]:
    return [owner.group_send(group, payload, ()) for payload in payloads]


async def test_sends_of_one_turn(owner: Owner, server: RespServer) -> None:
    """
    The first is alone and leaves at once; those that follow in the same turn share a command for each topic, in
    order, and each sender has its answer.
    """
    before = len(server.received("EVALSHA"))
    sends = (
        send_some(owner, "room", b"1", b"2") + send_some(owner, "hall", b"a") + send_some(owner, "room", b"3")
    )
    assert await every(sends) == [None] * 4
    commands = server.received("EVALSHA")[before:]
    assert bodies(commands) == [[b"1"], [b"2", b"3"], [b"a"]]
    assert [envelope.target for envelope in envelopes_in(commands[1])] == ["room"] * 2


@pytest.mark.parametrize("recovery", [None, {"seconds": 10, "message_bytes": 16_384}])
async def test_numbers_go_by_the_writes(
    make: MakeOwner, server: RespServer, recovery: dict[str, int] | None
) -> None:
    """However topics, large messages and those of sessions mix: a stream's numbers grow with the commands."""
    owner = await make(server.url, recovery=recovery, partitions=1, send_timeout=20)
    await owner.up()
    inbox = owner.topics.inbox("00" * 8)
    large = bytes(20_000)
    before = len(server.commands)
    answers: list[Awaitable[object]] = []
    for number in range(40):
        group = f"room{number % 3}"
        answers += send_some(owner, group, large if number % 7 == 3 else b"%d" % number)
        if number % 5 == 0:
            # What is posted has no answer of its own; it is written before the next, which has.
            owner.bus.post(inbox, "x", PAYLOAD, CONTROL)
            answers.append(owner.bus.publish(inbox, "x", PAYLOAD, CONTROL))
    await every(answers)
    streams: dict[bool, list[int]] = {True: [], False: []}
    for name, *arguments in server.commands[before:]:
        if name in ("EVALSHA", "PUBLISH"):
            is_logged = name == "EVALSHA" and recovery is not None
            streams[is_logged] += [envelope.seq for envelope in envelopes_in(tuple(arguments))]
    for numbers in streams.values():
        assert numbers == list(range(1, len(numbers) + 1))
    assert sum(map(len, streams.values())) == 40 + 2 * 8


@pytest.mark.parametrize(
    ("recovery", "shares"), [({"seconds": 10}, [[1], [3, 1], [1], [2]]), (None, [[1], [4], [1], [2]])]
)
async def test_sends_that_share_are_small(
    make: MakeOwner, server: RespServer, recovery: dict[str, int] | None, shares: list[list[int]]
) -> None:
    """What shares a command has 4 KiB in all, 1 in each entry of the log; what is larger goes alone."""
    owner = await make(server.url, recovery=recovery, send_timeout=20)
    await owner.up()
    payloads = [b"%d" % number + bytes(300) for number in range(8)]
    payloads[5] = bytes(5000)
    before = len(server.received("EVALSHA"))
    await every(send_some(owner, "room", *payloads))
    commands = server.received("EVALSHA")[before:]
    assert [payload for command in bodies(commands) for payload in command] == payloads
    assert [[len(unpack(entry)) for entry in entries_in(command)] for command in commands] == shares
    # However small they are, and one that is larger than an entry should be has one of its own.
    many = [b"x"] * 1000 + [b"%d" % number + bytes(97 * number % 2000) for number in range(1000)]
    before = len(server.received("EVALSHA"))
    await every(send_some(owner, "room", *many))
    commands = server.received("EVALSHA")[before:]
    assert [payload for command in bodies(commands) for payload in command] == many
    most = 4096 if recovery is None else 1024
    for command in commands:
        entries = entries_in(command)
        assert len(envelopes_in(command)) <= 16
        assert len(entries) == 1 or recovery is not None
        assert all(len(entry) <= most or len(unpack(entry)) == 1 for entry in entries)
    assert len(commands) < 1000


async def test_a_way_to_a_channel(make: MakeOwner, server: RespServer) -> None:
    """What sends more than once to a channel shares commands with the sends beside it, and encrypts."""
    for keys in ([], ["key"]):
        owner = await make(server.url, symmetric_encryption_keys=keys)
        await owner.up()
        ways = [owner.bus.channel_route(f"specific.{'00' * 8}!{number}") for number in range(2)]
        before = len(server.received("PUBLISH"))
        await every([ways[number % 2].send(PAYLOAD) for number in range(9)])
        commands = server.received("PUBLISH")[before:]
        where = place(TOPIC, owner.topics.inbox("00" * 8).name)
        sent = [envelopes_in(command, owner.bus.seal, where) for command in commands]
        assert list(map(len, sent)) == [1, 8]
        targets = [envelope.target[-1] for envelopes in sent for envelope in envelopes]
        assert targets == list("010101010")
        assert all((PAYLOAD in command[-1]) is not bool(keys) for command in commands)
        await owner.bus.close()


async def test_what_sessions_say_is_not_shared(owner: Owner, server: RespServer) -> None:
    """Messages between sessions go one by one. What joins others goes where the first of them is."""
    inbox = owner.topics.inbox("00" * 8)
    before = len(server.received("PUBLISH"))
    way = owner.bus.channel_route(f"specific.{'00' * 8}!x")
    sends = [
        owner.bus.publish(inbox, "x", b"%d" % number, CONTROL)
        if number % 3 == 1
        else way.send(b"%d" % number)
        for number in range(7)
    ]
    await every(sends)
    commands = server.received("PUBLISH")[before:]
    assert bodies(commands) == [[b"0"], [b"1"], [b"2", b"3", b"5", b"6"], [b"4"]]


async def test_one_of_them_is_cancelled(owner: Owner, server: RespServer) -> None:
    """Who gives up takes nobody along: the others have their answers."""
    first, second, third = [
        asyncio.ensure_future(answer) for answer in send_some(owner, "room", b"1", b"2", b"3")
    ]
    second.cancel()
    assert await every([first, third]) == [None, None]
    assert second.cancelled()


@pytest.mark.parametrize(
    "answer",
    [error("NOSCRIPT No matching script."), LOADING, resp_server.half(closes=True)],
    ids=["NOSCRIPT", "LOADING", "half, closed"],
)
async def test_shared_and_not_executed(owner: Owner, server: RespServer, answer: Answer) -> None:
    """What the server did not execute, or nobody knows, is sent again: all of it, in order, to its senders."""
    topic = await owner.join()
    server.script("EVALSHA", None, answer)
    answers = send_some(owner, "room", b"1", b"2", b"3")
    cancelled = asyncio.ensure_future(answers.pop(1))
    cancelled.cancel()
    await every(answers)
    commands = [command for command in server.received("EVALSHA") if topic.name in command]
    sent = [payload for command in bodies(commands) for payload in command]
    # The one that was given up need not be sent again; all else is, behind what was sent before it.
    assert sent in ([b"1", b"2", b"3", b"3"], [b"1", b"2", b"3", b"2", b"3"])


@pytest.mark.parametrize(
    ("answer", "kind"), [(OOM, LayerUnavailable), (ODD, ChannelLayerError)], ids=["OOM", "ERR"]
)
async def test_shared_and_refused(
    owner: Owner, server: RespServer, answer: Answer, kind: type[Exception]
) -> None:
    """Each sender has an error of its own."""
    server.script("EVALSHA", None, answer)
    answers = send_some(owner, "room", b"1", b"2", b"3")
    [[first, second, third]] = await every([asyncio.gather(*answers, return_exceptions=True)])
    assert first is None and type(second) is type(third) is kind
    assert second is not third and isinstance(second.__cause__, Exception)


@pytest.mark.parametrize("call", ["group_send", "push", "add_member", "pop", "give_back"])
async def test_scripts_may_not_be_loaded_any_more(make: MakeOwner, prefix: str, call: str) -> None:
    """Without the right to load scripts, and without scripts, each call ends and says what right is missing."""
    user = f"site on >pw ~{prefix}:* &{prefix}:* +@all"
    with EmbeddedServer(external=False, user=["default on nopass ~* &* +@all", user]) as server:
        owner = await make(f"redis://site:pw@127.0.0.1:{server.port}/0", send_timeout=2.0)
        await owner.up()
        server.command("ACL", "SETUSER", "site", "-script|load")
        server.command("SCRIPT", "FLUSH")
        server.command("CONFIG", "RESETSTAT")
        asked: dict[str, Callable[[], Awaitable[object]]] = {
            "pop": lambda: required(owner.bus.pop("jobs", 1)),
            "give_back": lambda: required(owner.bus.give_back("jobs", 1)),
        }
        make_call = (owner.calls() | asked)[call]
        with pytest.raises((ChannelLayerError, ConnectionError), match=r"NOSCRIPT.*script\|load") as raised:
            await every([make_call()])
        assert not isinstance(raised.value, LayerUnavailable)
        for _ in range(10):
            with pytest.raises((ChannelLayerError, ConnectionError), match=r"script\|load"):
                await every([make_call()])
        assert calls_of(server, "evalsha") < 40
        assert calls_of(server, "script|load", "rejected_calls") < 40
        assert owner.events == ["up"]
        server.command("ACL", "SETUSER", "site", "+script|load")

        async def is_served() -> bool:
            try:
                await make_call()
            except (ChannelLayerError, ConnectionError):
                return False
            return True

        while await every([is_served()]) != [True]:
            pass


def required(answer: asyncio.Future[Any] | None) -> asyncio.Future[Any]:
    assert answer is not None
    return answer


def calls_of(server: EmbeddedServer, command: str, kind: str = "calls") -> int:
    """How often the server was given a command, of the kinds of INFO."""
    for line in server.command("INFO", "commandstats").decode().splitlines():
        name, _, figures = line.partition(":")
        if name == f"cmdstat_{command}":
            return int(dict(figure.split("=") for figure in figures.split(","))[kind])
    return 0


@pytest.mark.parametrize("call", ["group_send", "push", "add_member", "pop", "give_back"])
async def test_scripts_are_missing_however_often_they_are_loaded(
    owner: Owner, server: RespServer, call: str
) -> None:
    """A script that is missing again after each loading is an error, and no endless repeating."""
    server.always("EVALSHA", error("NOSCRIPT No matching script."))
    before = len(server.commands)
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "pop": lambda: required(owner.bus.pop("jobs", 1)),
        "give_back": lambda: required(owner.bus.give_back("jobs", 1)),
    }
    with pytest.raises((ChannelLayerError, ConnectionError), match=r"NOSCRIPT.*SCRIPT FLUSH"):
        await every([(owner.calls() | asked)[call]()])
    assert len(server.commands) - before < 50
    server.restore()
    await every([(owner.calls() | asked)[call]()])


async def test_many_commands_miss_their_script(owner: Owner, server: RespServer) -> None:
    """The scripts are loaded once for all of them."""
    before = len(server.received("SCRIPT"))
    server.real.command("SCRIPT", "FLUSH")
    await every([asyncio.gather(*(owner.push(f"jobs.{number}", PAYLOAD) for number in range(50)))])
    assert len(server.received("SCRIPT")) - before == len(SCRIPTS)


UNKNOWN = [
    error("NOPERM User site has no permissions to run the 'info|server' command"),
    resp_server.reply(b"# Server\r\nserver_name:valkey\r\n"),
]


@pytest.mark.parametrize("answer", UNKNOWN, ids=["forbidden", "incomplete"])
@pytest.mark.parametrize("known", ["never", "before", "after"])
async def test_server_that_does_not_say_which_it_is(
    make: MakeOwner, server: RespServer, answer: Answer, known: str
) -> None:
    """It is used all the same; at a reconnect it may be another one, whose log lacks the end: that is told."""
    if known != "before":
        server.always("INFO", answer)
    owner = await make(server.url, recovery={}, send_timeout=5.0)
    topic = await owner.join()
    await every([owner.group_send("room", PAYLOAD)])
    assert owner.losses == []
    server.restore()
    if known != "after":
        server.always("INFO", answer)
    for count in range(1, 3):
        for connection in server.connections:
            if connection.is_subscriber:
                connection.abort()
        await owner.up(1 + count)
        expected = 1 if known == "after" else count
        assert owner.losses == [("server_changed", {topic.name})] * expected
    await every([owner.group_send("room", PAYLOAD)])
    await eventually(lambda: len(owner.arrived) == 2, "both messages")


async def test_shared_and_never_answered(make: MakeOwner, server: RespServer) -> None:
    """Each sender is told DeliveryUnknown, or LayerUnavailable if its message was not written."""
    owner = await make(server.url)
    await owner.up()
    server.always("EVALSHA", resp_server.silence())
    written = await started(
        _wait(asyncio.gather(*send_some(owner, "room", b"1", b"2"), return_exceptions=True))
    )
    await eventually(lambda: len(server.received("EVALSHA")) >= 2, "the arrival of both commands")
    [shard] = owner.bus._shards
    assert shard.commands.wire is not None
    shard.commands.wire.pause_writing()
    shard.commands.wire.pipeline.has_capacity = True
    unwritten = asyncio.gather(*send_some(owner, "room", b"3", b"4"), return_exceptions=True)
    await server.stop()
    results = await every([written, unwritten])
    assert [[type(result) for result in some] for some in results] == [
        [DeliveryUnknown] * 2,
        [LayerUnavailable] * 2,
    ]


@pytest.mark.parametrize("kind", ["send", "repeatable", "ask"])
@pytest.mark.parametrize("answer", [resp_server.silence(), resp_server.close()], ids=["silence", "closed"])
async def test_server_that_serves_and_never_answers(
    make: MakeOwner, server: RespServer, answer: Answer, kind: str
) -> None:
    """A server that lets everybody in and answers no command: each call ends, and so does each later one."""
    owner = await make(server.url)
    await owner.up()
    server.always("EVALSHA", answer)
    for _ in range(2):
        if kind == "ask":
            asked = None
            while asked is None:
                await eventually(lambda: owner.events.count("up") > owner.events.count("down"))
                asked = owner.bus.pop("jobs", 1)
            with pytest.raises(ConnectionError):
                await every([asked])
        elif kind == "send":
            with pytest.raises((DeliveryUnknown, LayerUnavailable)):
                await every([owner.group_send("room", PAYLOAD, ())])
        else:
            with pytest.raises(LayerUnavailable):
                await every([owner.bus.add_member("lobby", "jobs")])
    server.restore()
    answered: list[object] = []
    while not answered:
        # Within so short a send_timeout a busy machine may not answer.
        with contextlib.suppress(DeliveryUnknown, LayerUnavailable):
            answered = await every([owner.group_send("room", PAYLOAD, ())])
    assert answered == [None]


async def test_message_larger_than_the_link_carries(make: MakeOwner, redis_server: EmbeddedServer) -> None:
    """A message that needs longer than send_timeout to leave is sent once, and what is behind it follows."""
    async with proxied(redis_server.port) as proxy:
        proxy.narrow()
        owner = await make(proxy.url, send_timeout=1.0)
        await owner.join()
        proxy.delays["up"] = lambda: 0.03
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        await every([owner.group_send("room", large, ()), owner.group_send("room", PAYLOAD, ())])
        proxy.delays["up"] = None
        await eventually(lambda: len(owner.arrived) == 2, "both messages")
        assert [envelope.payload for _, envelope in owner.arrived] == [large, PAYLOAD]
        assert owner.events == ["up"]


async def test_fence_behind_a_message_that_takes_long(
    make: MakeOwner, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener is not deaf while a message arrives over a slow link: it may be in no log."""
    monkeypatch.setattr("channels_asyncq.bus.redis.bus._FENCE_EVERY", 0.05)
    monkeypatch.setattr("channels_asyncq.bus.redis.bus._LONGEST_FENCE", 0.3)
    async with proxied(redis_server.port) as proxy:
        owner = await make(proxy.url, recovery={}, send_timeout=5.0)
        await owner.join()
        proxy.delays["down"] = lambda: 0.02
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        await every([owner.group_send("room", large)])
        await eventually(lambda: owner.arrived, "the message")
        assert owner.events == ["up"] and owner.losses == []


async def test_lease_while_a_fence_is_waited_for(
    make: MakeOwner, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """A fence may be under way for longer than a lease holds; it is renewed meanwhile."""
    monkeypatch.setattr("channels_asyncq.bus.redis.bus._FENCE_EVERY", 0.05)
    monkeypatch.setattr("channels_asyncq.bus.redis.bus._LONGEST_FENCE", 0.3)
    async with proxied(redis_server.port) as proxy:
        owner = await make(proxy.url, recovery={}, send_timeout=5.0)
        await owner.join()
        proxy.delays["down"] = lambda: 0.02
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        sending = asyncio.gather(owner.group_send("room", large))
        ends = set()
        while not owner.arrived:
            ends.add(redis_server.command("ZRANGE", f"{prefix}:0:layouts", 0, -1, "WITHSCORES")[1])
            await asyncio.sleep(0.01)
        await sending
        assert len(ends) > 4


async def test_closed_with_unwritten_sends(make: MakeOwner, server: RespServer) -> None:
    """What was not written when the bus is closed, or cut off, fails; nobody waits, and no task is left."""
    for is_cut_off in (False, True):
        owner = await make(server.url)
        await owner.up()
        [shard] = owner.bus._shards
        assert shard.commands.wire is not None
        shard.commands.wire.pause_writing()
        shard.commands.wire.pipeline.has_capacity = True
        answers = asyncio.gather(*send_some(owner, "room", b"1", b"2"), return_exceptions=True)
        if is_cut_off:
            shard.abort()
        else:
            await owner.bus.close()
        [results] = await every([answers])
        assert [type(result) for result in results] == [LayerClosed] * 2
        assert not [task for task in asyncio.all_tasks() if "sending again" in task.get_name()]


async def test_order_after_a_server_that_could_not_serve(owner: Owner, server: RespServer) -> None:
    """What was refused is sent again in its order, and what is sent meanwhile comes behind it."""
    await owner.join()
    server.always("EVALSHA", READONLY)
    payloads = [Codec().encode({"type": "test.note", "n": number}) for number in range(12)]
    sends = send_some(owner, "room", *payloads[:8])
    await eventually(lambda: "down" in owner.events, "the end of the connection")
    sends += [await started(_wait(send)) for send in send_some(owner, "room", *payloads[8:])]
    server.restore()
    await every(sends)
    await eventually(lambda: len(owner.arrived) == 12, "everything")
    assert [envelope.payload for _, envelope in owner.arrived] == payloads


async def test_refused_when_it_is_sent_again(owner: Owner, server: RespServer) -> None:
    """What was not answered, and is refused on the next connection, may have been executed: nobody knows."""
    server.script("EVALSHA", resp_server.half(closes=True), error("NOSCRIPT No matching script."))
    with pytest.raises(DeliveryUnknown, match="refused when it was sent again: NOSCRIPT"):
        await every([owner.group_send("room", PAYLOAD, ())])
    assert await every([owner.group_send("room", PAYLOAD, ())]) == [None]


async def test_unserving_when_it_is_sent_again(owner: Owner, server: RespServer) -> None:
    """The same of a server that cannot serve: that connection is given up as well."""
    server.script("EVALSHA", resp_server.half(closes=True), READONLY)
    with pytest.raises(DeliveryUnknown, match="refused when it was sent again: READONLY"):
        await every([owner.group_send("room", PAYLOAD, ())])
    await owner.up(3)
    assert await every([owner.group_send("room", PAYLOAD, ())]) == [None]


async def test_posted_once(owner: Owner, server: RespServer) -> None:
    """What is posted is not sent again, whatever becomes of it."""
    inbox = owner.topics.inbox("00" * 8)
    server.script("PUBLISH", error("NOSCRIPT or whatever"), resp_server.half(closes=True))
    owner.bus.post(inbox, "x", PAYLOAD, CONTROL)
    owner.bus.post(inbox, "x", PAYLOAD, CONTROL)
    await owner.up(2)
    owner.bus.post(inbox, "x", PAYLOAD, CONTROL)
    await every([owner.bus.publish(inbox, "x", PAYLOAD, CONTROL)])
    sent = [unpack(command[-1])[0].seq for command in server.received("PUBLISH") if inbox.name in command]
    assert sent == [1, 2, 3, 4]


async def test_bound_across_connections(make: MakeOwner, server: RespServer) -> None:
    """However often the connection is lost, 1024 messages are without an answer at most."""
    owner = await make(server.url, send_timeout=5.0)
    await owner.up()
    server.always("EVALSHA", resp_server.silence())
    [shard] = owner.bus._shards
    sends = [asyncio.ensure_future(_wait(send)) for send in send_some(owner, "room", *[PAYLOAD] * 3000)]
    before = len(server.received("EVALSHA"))
    for _ in range(3):
        await eventually(lambda: len(sequence(server, before)) >= 1024, "the messages in flight")  # noqa: B023
        wire = shard.commands.wire
        assert wire is not None and not wire.pipeline.has_capacity
        assert sequence(server, before) == list(range(1, 1025))
        before = len(server.received("EVALSHA"))
        server.cut()
    server.restore()
    assert await every(sends) == [None] * 3000
    wire = shard.commands.wire
    assert (
        wire is not None
        and wire.pipeline.has_capacity
        and (wire.pending, wire.pipeline.unanswered_bytes) == (0, 0)
    )


def sequence(server: RespServer, before: int) -> list[int]:
    """The numbers of what was sent to groups since so many EVALSHA, as they came."""
    return [
        envelope.seq for command in server.received("EVALSHA")[before:] for envelope in envelopes_in(command)
    ]


async def test_held_in_the_middle(owner: Owner, server: RespServer) -> None:
    """Where one of them is not taken the rest waits with it; offered again, each arrives once and in order."""
    topic = await owner.join()
    owner.places = 3
    await every(send_some(owner, "room", *[PAYLOAD] * 6))
    await eventually(lambda: owner.offered == 4, "the one that is not taken")
    assert [envelope.seq for _, envelope in owner.arrived] == [1, 2, 3]
    owner.places = None
    owner.bus.resume()
    await eventually(lambda: len(owner.arrived) == 6, "the others")
    assert [(name, envelope.seq) for name, envelope in owner.arrived] == [
        (topic.name, n) for n in range(1, 7)
    ]


async def test_a_fence_behind_a_held_message(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is too busy to read for longer than a fence may take is not deaf: the connection stays."""
    await owner.join()
    looks = 0
    is_deaf = Shard._is_deaf

    def look(shard: Shard, fence: asyncio.Future[None], *more: Any) -> None:
        nonlocal looks
        looks += not fence.done()
        is_deaf(shard, fence, *more)

    monkeypatch.setattr(Shard, "_is_deaf", look)
    monkeypatch.setattr(redis, "_FENCE_EVERY", 0.01)
    monkeypatch.setattr(redis, "_LONGEST_FENCE", 0.01)
    owner.takes = False
    await every(send_some(owner, "room", PAYLOAD))
    await eventually(lambda: owner.offered, "the one that is not taken")
    for shard in owner.bus._shards:
        shard._send_fence()
    await eventually(lambda: looks >= 4, "looks for a fence that is not there")
    assert [link.reconnects for link in owner.bus.links()] == [0]
    owner.takes = True
    owner.bus.resume()
    await eventually(lambda: owner.arrived, "the message")


@pytest.mark.parametrize("keys", [[], ["key"]], ids=["open", "sealed"])
@pytest.mark.parametrize("most", [1024, 5000, Recovery().message_bytes])
async def test_message_bytes(make: MakeOwner, server: RespServer, keys: list[str], most: int) -> None:
    """
    A message that is as large as `message_bytes`, when encoded, is recovered, whatever shares a command with it.
    Of one that is larger by a byte the log has the header only, and the loss is told.
    """
    config = {
        "recovery": {"message_bytes": most},
        "symmetric_encryption_keys": keys,
        "partitions": 1,
        "send_timeout": 30,  # the confirmation is waited for, however slow this machine is
    }
    receiver, sender = await make(server.url, **config), await make(server.real.url, **config)
    await receiver.up()
    await sender.up()
    topic = await receiver.join()
    sizes = (20, most, most, 20) if most < 2000 else (20, most, 20)
    for extra, losses in ((0, []), (1, [("too_large", {topic.name})])):
        confirms = asyncio.Event()
        server.script("SUBSCRIBE", resp_server.after(confirms))
        [shard] = receiver.bus._shards
        assert shard.pushes.wire is not None
        subscribed = len(server.received("SUBSCRIBE"))
        shard.pushes.wire.abort(ConnectionResetError("what is sent now is missed"))
        await eventually(lambda: len(server.received("SUBSCRIBE")) > subscribed, "the new connection")  # noqa: B023
        payloads = [_payload_of(size + extra) for size in sizes]
        await every(send_some(sender, "room", *payloads))
        log = server.real.command("XRANGE", sender.topics.log(0), "-", "+")
        assert (b"h" in [fields[2] for _, fields in log if fields[0] == b"t"]) is bool(extra)
        receiver.arrived.clear()
        confirms.set()
        whole = [payload for payload in payloads if len(payload) <= most]
        await eventually(lambda: len(receiver.arrived) == len(whole), "what is in the log")  # noqa: B023
        await eventually(lambda: shard.pushes.wire is not None, "the end of the recovery")  # noqa: B023
        assert [envelope.payload for _, envelope in receiver.arrived] == whole
        assert receiver.losses == losses
        assert receiver.unreadable == []


def _payload_of(size: int) -> bytes:
    """An encoded message of this size."""
    codec = Codec()
    pad = size - len(codec.encode({"type": "m", "pad": b""}))
    while len(payload := codec.encode({"type": "m", "pad": bytes(pad)})) > size:
        pad -= 1
    assert len(payload) == size
    return payload


async def test_held_between_entries_of_the_log(make: MakeOwner, server: RespServer) -> None:
    """
    What is logged in several entries arrives in one push. If the connection ends while the rest of it is held,
    that is read from the log: each message arrives once and in order.
    """
    owner = await make(server.url, recovery={"seconds": 10}, partitions=1, serializer_format="json")
    await owner.up()
    await owner.join()
    payloads = [b'{"type":"test.note","text":"%s"}' % (b"x" * 300) for _ in range(8)]
    owner.places = 4
    await every(send_some(owner, "room", *payloads))
    await eventually(lambda: owner.offered == 5, "the one that is not taken")
    log = server.real.command("XRANGE", owner.topics.log(0), "-", "+")
    assert [len(unpack(fields[3])) for _, fields in log if fields[0] == b"t"] == [1, 2, 2, 2, 1]
    [shard] = owner.bus._shards
    assert shard.pushes.wire is not None
    shard.pushes.wire.abort(ConnectionResetError("nothing of it is delivered any more"))
    await eventually(lambda: shard.log.is_reading and owner.offered > 5, "the log")
    owner.places = None
    owner.bus.resume()
    await eventually(lambda: len(owner.arrived) >= 8, "the rest")
    await every(send_some(owner, "room", *payloads))
    await eventually(lambda: len(owner.arrived) >= 16, "what comes after")
    assert [envelope.seq for _, envelope in owner.arrived] == list(range(1, 17))
    assert not owner.losses


@pytest.mark.parametrize(
    "data",
    [
        b"\x01#9999999999999-0 garbage",
        b'\x01#9999999999999-0 {"type":"of.outside"}',
        b"\x01#%d-0 garbage" % 2**64,
    ],
)
async def test_an_unreadable_push_moves_no_position(make: MakeOwner, server: RespServer, data: bytes) -> None:
    """
    Its position may be made up: with one of the future the next messages would not be read from the log, and one
    that no log can have would be refused each time.
    """
    owner = await make(server.url, recovery={"seconds": 10}, partitions=1)
    await owner.up()
    topic = await owner.join()
    [shard] = owner.bus._shards
    before = dict(shard.log.positions)
    server.real.command("PUBLISH", topic.name, data)
    await eventually(lambda: owner.unreadable, "the garbage")
    assert before and shard.log.positions == before
    await every(send_some(owner, "room", PAYLOAD))
    await eventually(lambda: owner.arrived, "a message")
    assert shard.log.positions != before


async def test_one_of_them_is_unreadable(make: MakeOwner, server: RespServer) -> None:
    """The others arrive; it is told once."""
    owner = await make(server.url, serializer_format="json")
    await owner.up()
    await owner.join()
    good, bad = b'{"type":"test.note"}', b"not a message"
    await every(send_some(owner, "room", good, good, bad, good))
    await eventually(lambda: len(owner.arrived) == 3, "the others")
    assert [envelope.seq for _, envelope in owner.arrived] == [1, 2, 4]
    assert len(owner.unreadable) == 1


# What a server answers to questions that nobody waits in a call for


@pytest.mark.parametrize("answer", [OOM, NOPERM, ODD], ids=["OOM", "NOPERM", "ERR"])
async def test_pop_refused(
    owner: Owner, server: RespServer, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused question fails with ConnectionError, and is told in the log, not for each of a flood."""
    server.script("pop", answer, answer)
    for number in (1, 2):
        with pytest.raises(ConnectionAbortedError):
            await owner.pop(number)
    assert codes(caplog) == ["command.refused"]
    assert owner.events == ["up"]


@pytest.mark.parametrize("answer", [LOADING, READONLY], ids=["LOADING", "READONLY"])
async def test_pop_of_a_server_that_cannot_serve(owner: Owner, server: RespServer, answer: Answer) -> None:
    """The question fails with ConnectionError; under the same number the item comes when it can serve."""
    await owner.push("jobs", PAYLOAD)
    server.script("pop", answer)
    with pytest.raises(ConnectionError):
        await owner.pop(1)
    await owner.up(2)
    assert await owner.pop(1) == PAYLOAD
    assert await owner.pop(2) is None


@pytest.mark.parametrize(
    "answer", [resp_server.half(closes=True), resp_server.silence()], ids=["half, closed", "silence"]
)
async def test_pop_without_an_answer(owner: Owner, server: RespServer, answer: Answer) -> None:
    """A question that was not answered is asked again by the line: one item, taken once."""
    for _ in range(2):
        await owner.push("jobs", PAYLOAD)
    server.script("pop", answer)
    assert [await owner.pop(number) for number in (1, 2, 3)] == [PAYLOAD, PAYLOAD, None]


async def test_pop_while_down(owner: Owner, server: RespServer) -> None:
    """Without a link there is no answer to come: None."""
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    assert owner.bus.pop("jobs", 1) is None and owner.bus.give_back("jobs", 1) is None
    owner.bus.post(owner.topics.inbox("00" * 8), "x", PAYLOAD, CONTROL)


async def test_pop_of_garbage(owner: Owner, server: RespServer) -> None:
    """An item that is no message is a ValueError of the answer."""
    topic = owner.topics.queue("jobs").topic.name
    server.real.command("RPUSH", topic, b"9" * 13 + b"garbage")
    with pytest.raises(ValueError, match="too few"):
        await owner.pop(1)


async def test_pop_given_up(owner: Owner, server: RespServer) -> None:
    """An answer that nobody waits for any more is dropped quietly."""
    answer = owner.bus.pop("jobs", 1)
    assert answer is not None
    await every([answer])
    event = asyncio.Event()
    server.script("pop", resp_server.after(event))
    shard = owner.bus._shards[0]
    asked = shard.ask(b"EVALSHA", POP.sha, 2, b"list", b"taken", 1, 1000, 1, 1)
    assert asked is not None
    asked.cancel()
    event.set()
    await owner.pop(2)


# Subscriptions


async def test_subscriptions_are_made_again(owner: Owner, server: RespServer) -> None:
    """After a cut everything wanted is subscribed before the link counts as up; what was given up is not."""
    topics = [await owner.join(group) for group in ("room", "lobby", "left")]
    owner.bus.unsubscribe(topics[2])
    server.cut()
    await owner.up(2)
    assert owner.events == ["up", "down", "up"]
    assert [owner.bus.is_confirmed(topic) for topic in topics] == [True, True, False]
    assert sorted(owner.subscribed) == sorted(
        [topic.name for topic in topics] + [topics[0].name, topics[1].name]
    )
    await owner.group_send("lobby", PAYLOAD, ())
    await owner.group_send("left", PAYLOAD, ())
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: len(owner.arrived) == 2, "two messages")
    assert [topic for topic, _ in owner.arrived] == [topics[1].name, topics[0].name]


async def test_the_last_word_through_a_cut(owner: Owner, server: RespServer) -> None:
    """Joined, left and joined again while the link is down: subscribed once when it is back."""
    topic = owner.topics.group("room").topic
    server.cut()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    owner.bus.subscribe(topic)
    owner.bus.unsubscribe(topic)
    assert not owner.bus.is_confirmed(topic)
    owner.bus.subscribe(topic)
    await every([owner.bus.confirmed(topic)])
    assert server.received("SUBSCRIBE").count((topic.name,)) == 1 and not server.received("UNSUBSCRIBE")


async def test_the_last_word_before_the_reply(owner: Owner, server: RespServer) -> None:
    """Left before the confirmation: UNSUBSCRIBE follows, and the reply confirms nothing."""
    topic = owner.topics.group("room").topic
    event = asyncio.Event()
    server.script("SUBSCRIBE", resp_server.after(event))
    owner.bus.subscribe(topic)
    waiting = await started(owner.bus.confirmed(topic))
    owner.bus.unsubscribe(topic)
    await every([waiting])
    event.set()
    other = await owner.join("lobby")
    assert server.received("UNSUBSCRIBE") == [(topic.name,)]
    assert owner.subscribed == [other.name]


@pytest.mark.parametrize("answer", [NOPERM, ODD], ids=["NOPERM", "ERR"])
async def test_a_subscription_is_refused(
    owner: Owner, server: RespServer, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for it gets the error and the log an event; other topics and the link do not suffer."""
    server.script("SUBSCRIBE", answer)
    with pytest.raises(ChannelLayerError, match="refused"):
        await every([owner.join("room")])
    await every([owner.join("lobby")])
    assert codes(caplog) == ["subscription.refused"]
    assert owner.events == ["up"]
    await every([owner.join("room")])


async def test_a_subscription_is_refused_at_a_reconnect(
    owner: Owner, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One topic that is refused does not keep the link from coming up for the others."""
    topics = [await owner.join(group) for group in ("room", "lobby")]
    server.script("SUBSCRIBE", None, None, NOPERM)  # the first two are not of groups
    server.cut()
    await owner.up(2)
    assert [owner.bus.is_confirmed(topic) for topic in topics] == [False, True]
    assert "subscription.refused" in codes(caplog)


@pytest.mark.parametrize(
    "answer",
    [resp_server.half(), resp_server.silence(), resp_server.half(closes=True)],
    ids=["half", "silence", "half, closed"],
)
async def test_a_confirmation_that_does_not_come(owner: Owner, server: RespServer, answer: Answer) -> None:
    """A listener that is not confirmed in time is no listener: it is connected again, and who waits is served."""
    server.script("SUBSCRIBE", answer)
    await every([owner.join()])
    assert "down" in owner.events
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.arrived, "a message")


async def test_confirmed_cancelled(owner: Owner, server: RespServer) -> None:
    """Cancelling who waits for a confirmation leaves nothing behind; the topic stays wanted."""
    event = asyncio.Event()
    server.script("SUBSCRIBE", resp_server.after(event))
    topic = owner.topics.group("room").topic
    owner.bus.subscribe(topic)
    waiting = await started(owner.bus.confirmed(topic))
    waiting.cancel()
    await ended(waiting)
    entry = owner.bus._shards[0].ledger.get(topic.name)
    assert entry is not None and entry.waiters == []
    event.set()
    await every([owner.bus.confirmed(topic)])


async def test_confirmed_in_an_outage(make: MakeOwner, server: RespServer) -> None:
    """It waits `send_timeout`, then LayerUnavailable; then at once; each caller has an error of its own."""
    owner = await make(server.url)
    await owner.up()
    await server.stop()
    topic = owner.topics.group("room").topic
    owner.bus.subscribe(topic)
    waiting = [await started(owner.bus.confirmed(topic)) for _ in range(2)]
    errors = await every([asyncio.gather(*waiting, return_exceptions=True)])
    assert [type(one) for one in errors[0]] == [LayerUnavailable] * 2
    assert errors[0][0] is not errors[0][1]
    with pytest.raises(LayerUnavailable):
        await owner.bus.confirmed(topic)


async def test_a_held_message_is_opened_once(owner: Owner) -> None:
    """A message that is not taken is offered again, the same object, and what follows waits behind it."""
    await owner.join()
    owner.takes = False
    for _ in range(2):
        await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.offered, "an offer")
    owner.bus.resume()
    owner.bus.resume()
    assert owner.arrived == []
    owner.takes = True
    owner.bus.resume()
    await eventually(lambda: len(owner.arrived) == 2, "both messages")
    assert owner.arrived[0][1].seq + 1 == owner.arrived[1][1].seq


# Setting up


@pytest.mark.parametrize("command", ["ROLE", "SCRIPT", "SET", "GET", "SUBSCRIBE"])
@pytest.mark.parametrize(
    "answer",
    [LOADING, resp_server.half(closes=True), resp_server.half(), resp_server.silence(), GARBAGE],
    ids=["LOADING", "half, closed", "half", "silence", "garbage"],
)
async def test_a_bad_start(make: MakeOwner, server: RespServer, command: str, answer: Answer) -> None:
    """Whatever the first answer of its kind is while a connection is set up, the next attempt heals it."""
    if command == "SUBSCRIBE" and answer is LOADING:
        command = "*"  # Redis takes subscriptions while it loads
    server.script(command, answer)
    owner = await make(server.url)
    await owner.up()
    await every([owner.join()])
    await owner.group_send("room", PAYLOAD, ())
    await eventually(lambda: owner.arrived, "a message")


async def test_back_before_the_server_knew(owner: Owner, server: RespServer) -> None:
    """What is sent after the last member has left and before the next one joins reaches nobody."""
    topic = await owner.join()
    owner.bus.unsubscribe(topic)
    server.real.command("PUBLISH", topic.name, '{"type": "sent.between"}')
    await owner.join()
    server.real.command("PUBLISH", topic.name, '{"type": "sent.after"}')
    await eventually(lambda: owner.arrived, "the message")
    assert [envelope.message for _, envelope in owner.arrived] == [{"type": "sent.after"}]


async def test_a_replica(make: MakeOwner, server: RespServer) -> None:
    """Only masters are used: a replica is told as the reason, until it is promoted."""
    server.always("ROLE", resp_server.reply([b"slave", b"10.0.0.1", 6379, b"connected", 0]))
    owner = await make(server.url)
    await owner.refused("replica")
    assert owner.bus.links()[0].state == "connecting"
    with pytest.raises(LayerUnavailable, match="it is a replica; only masters are used"):
        await owner.group_send("room", PAYLOAD, ())
    server.restore()
    await owner.up()
    await owner.group_send("room", PAYLOAD, ())


@pytest.mark.parametrize("answer", [NOPERM, error("ERR unknown command 'ROLE'")], ids=["NOPERM", "ERR"])
async def test_no_permission_for_role(make: MakeOwner, server: RespServer, answer: Answer) -> None:
    """A user who may not ask for the role is taken at its word."""
    server.always("ROLE", answer)
    owner = await make(server.url)
    await owner.up()
    await owner.group_send("room", PAYLOAD, ())


async def test_a_layout_that_cannot_be_written(make: MakeOwner, server: RespServer) -> None:
    """If the layout is not there and may not be written, that is the reason."""
    server.always("LEASE", NOPERM)
    owner = await make(server.url)
    await owner.refused("NOPERM")
    with pytest.raises(LayerUnavailable, match="NOPERM"):
        await owner.group_send("room", PAYLOAD, ())
    server.restore()
    await owner.up()


async def test_another_layout(make: MakeOwner, server: RespServer) -> None:
    """ImproperlyConfigured with both layouts, for all who wait, at once; it ends when the other has gone."""
    first = await make(server.url, partitions=8)
    await first.up()
    second = await make(server.url, partitions=4)
    topic = second.topics.group("room").topic
    second.bus.subscribe(topic)
    for wait in (
        lambda: second.group_send("room", PAYLOAD, ()),
        lambda: second.bus.checked(topic),
        lambda: second.bus.confirmed(topic),
    ):
        with pytest.raises(ImproperlyConfigured, match=r"partitions: 8.*partitions: 4"):
            await every([wait()])
    assert not second.subscribed or second.events == []
    await first.bus.close()
    await second.up()
    await every([second.bus.checked(topic), second.bus.confirmed(topic)])


async def test_a_wrong_password(make: MakeOwner, server: RespServer) -> None:
    """LayerUnavailable says what the server said, and not the password."""
    server.always("AUTH", error("WRONGPASS invalid username-password pair or user is disabled."))
    owner = await make(server.url.replace("//", "//:wr0ng@"))
    await owner.refused("password", "WRONGPASS")
    with pytest.raises(LayerUnavailable, match=r"(?i)password|auth") as raised:
        await owner.group_send("room", PAYLOAD, ())
    assert "wr0ng" not in str(raised.value)


async def test_a_server_that_says_nothing(make: MakeOwner, server: RespServer) -> None:
    """A server that accepts connections and never answers is no server; it is found when it wakes up."""
    server.always("*", resp_server.silence())
    owner = await make(server.url)
    with pytest.raises(LayerUnavailable):
        await every([owner.group_send("room", PAYLOAD, ())])
    server.restore()
    await owner.up()


async def test_checked(make: MakeOwner, server: RespServer) -> None:
    """It waits for the server however long that takes, beyond `send_timeout`; cancelling it harms nobody."""
    await server.stop()
    owner = await make(server.url)
    topic = owner.topics.queue("jobs").topic
    waiting = [await started(owner.bus.checked(topic)) for _ in range(3)]
    waiting[0].cancel()
    with pytest.raises(LayerUnavailable):
        await owner.push("jobs", PAYLOAD)
    assert [one.done() for one in waiting] == [True, False, False]
    await server.start()
    await every(waiting[1:])


# Outage


async def test_waiting_is_over(make: MakeOwner, server: RespServer) -> None:
    """Sends wait `send_timeout` from the loss of the link, then fail, then at once; each with its own error."""
    owner = await make(server.url)
    await owner.up()
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    calls = list(owner.calls().values())
    results = await every([asyncio.gather(*(call() for call in calls), return_exceptions=True)])
    assert [type(result) for result in results[0]] == [LayerUnavailable] * len(calls)
    assert len({id(result) for result in results[0]}) == len(calls)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for call in calls:
        with pytest.raises(LayerUnavailable):
            await call()
    assert loop.time() - began < SEND_TIMEOUT
    [link] = owner.bus.links()
    assert link.state == "connecting" and link.reason


async def test_a_waiting_send_cancelled(owner: Owner, server: RespServer) -> None:
    """A send that is cancelled while it waits for the link is not sent when it is back."""
    await owner.join()
    await server.stop()
    await eventually(lambda: "down" in owner.events, "the loss of the link")
    waiting = await started(_wait(owner.group_send("room", PAYLOAD, ())))
    waiting.cancel()
    await ended(waiting)
    await server.start()
    await owner.up(2)
    await owner.group_send("room", PAYLOAD, ("x!y",))
    await eventually(lambda: owner.arrived, "a message")
    assert [envelope.excluded for _, envelope in owner.arrived] == [("x!y",)]


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def test_one_of_two_links(owner: Owner, server: RespServer) -> None:
    """The loss of one connection of the two is a loss; when it is back, so is the link: told once each."""
    await owner.join()
    for connection in list(server.connections):
        if connection.is_subscriber:
            connection.abort()
    await owner.up(2)
    for connection in list(server.connections):
        if not connection.is_subscriber:
            connection.abort()
    await owner.up(3)
    assert owner.events == ["up", "down", "up", "down", "up"]
    assert owner.bus.links()[0].reconnects == 2


# Several hosts


async def test_two_hosts(make: MakeOwner, server: RespServer, own_redis_server: EmbeddedServer) -> None:
    """A name's partition decides its host, for topics, lists and keys; up means all; flush reaches all."""
    async with RespServer(own_redis_server) as other:
        owner = await make([server.url, other.url])
        await owner.up()
        queues = [owner.topics.queue(f"jobs{number}").topic for number in range(16)]
        for number in range(16):
            group = f"room{number}"
            topic = await owner.join(group)
            await owner.group_send(group, PAYLOAD, ())
            await owner.push(f"jobs{number}", PAYLOAD)
            await owner.bus.add_member(group, "jobs")
            host = (server, other)[topic.shard]
            assert (topic.name,) in host.received("SUBSCRIBE")
        await eventually(lambda: len(owner.arrived) == 16, "all messages")
        for host in (server, other):
            commands = host.received("EVALSHA")
            pushed = {queue.name for queue in queues if any(queue.name in command for command in commands)}
            assert pushed == {queue.name for queue in queues if (server, other)[queue.shard] is host}
            assert pushed and [host.real.command("LLEN", name) for name in pushed] == [1] * len(pushed)
        await owner.bus.flush()
        for host in (server, other):
            assert host.real.command("KEYS", f"{owner.options.prefix}:0:queue:*") == []
            assert host.real.command("KEYS", f"{owner.options.prefix}:0:members:*") == []
        await other.stop()
        await eventually(lambda: owner.events == ["up", "down"], "the loss of a host")
        assert [link.state for link in owner.bus.links()] == ["connected", "connecting"]


# Ending


async def test_close(make: MakeOwner, server: RespServer) -> None:
    """Closed: connections end, nobody is told of a loss, calls are refused; a second close is fine."""
    owner = await make(server.url)
    await owner.up()
    await owner.bus.close()
    await owner.bus.close()
    await eventually(lambda: not server.connections, "the end of the connections")
    assert owner.events == ["up"] and [link.state for link in owner.bus.links()] == ["closed"]
    for name, call in owner.calls().items():
        with pytest.raises(LayerClosed):
            await call()
        assert name


@pytest.mark.parametrize("answer", [LOADING, resp_server.silence()], ids=["LOADING", "silence"])
async def test_close_while_connecting(make: MakeOwner, server: RespServer, answer: Answer) -> None:
    """Closing does not wait for a connection that is being made; who waits for it is told; no task is left."""
    server.always("ROLE", answer)
    owner = await make(server.url, send_timeout=20)
    waiting = await started(_wait(owner.group_send("room", PAYLOAD, ())))
    checked = await started(owner.bus.checked(owner.topics.queue("jobs").topic))
    await eventually(lambda: server.received("ROLE"), "a connection under way")
    async with asyncio.timeout(10):
        await owner.bus.close()
    for one in (waiting, checked):
        with pytest.raises(LayerClosed):
            await one
    assert asyncio.all_tasks() == {asyncio.current_task()}


# On a server that answers well


async def test_on_a_real_server(make: MakeOwner, redis_url: str) -> None:
    """Everything a session asks of a bus, on Valkey or Redis."""
    owner, other = await make(redis_url), await make(redis_url)
    await every([owner.up(), other.up()])
    topic = await owner.join()
    await other.join()
    assert await other.bus.publish(topic, "somebody", PAYLOAD, CONTROL) == 2
    await other.bus.add_member("room", "jobs")
    assert await other.group_send("room", PAYLOAD, ("a!b",)) == [b"jobs"]
    await other.bus.discard_member("room", "jobs")
    assert not await other.group_send("room", PAYLOAD, ())
    await eventually(lambda: len(owner.arrived) == len(other.arrived) == 3, "everything")
    for one in (owner, other):
        envelopes = [envelope for _, envelope in one.arrived]
        assert [envelope.target for envelope in envelopes] == ["somebody", "room", "room"]
        assert [envelope.flags for envelope in envelopes] == [CONTROL, 0, 0]
        assert [envelope.excluded for envelope in envelopes] == [(), ("a!b",), ()]
        assert {envelope.session_id.hex() for envelope in envelopes} == {other.session_id}
        assert [envelope.seq for envelope in envelopes] == [1, 2, 3]


async def test_a_normal_channel_on_a_real_server(make: MakeOwner, redis_url: str) -> None:
    """Push, pop, the same number again, give back, another one's turn, capacity and wake-ups."""
    owner, other = await make(redis_url), await make(redis_url, capacity=2)
    await every([owner.up(), other.up()])
    topic = owner.topics.queue("jobs").topic
    owner.bus.subscribe(topic)
    await owner.bus.confirmed(topic)
    payloads = [Codec().encode({"type": "t", "n": n}) for n in range(3)]
    for payload in payloads[:2]:
        await other.push("jobs", payload)
    with pytest.raises(ChannelFull, match="'jobs' holds 2 messages"):
        await other.push("jobs", payloads[2])
    assert [await owner.pop(1), await owner.pop(1)] == [payloads[0]] * 2
    assert await other.pop(1) == payloads[1]
    for _ in range(2):
        given = owner.bus.give_back("jobs", 1)
        assert given is not None
        await every([given])
    assert await other.pop(2) == payloads[0]
    assert await other.pop(3) is None and await owner.pop(2) is None
    await eventually(lambda: owner.woken == [topic.name] * 3, "three wake-ups")
    await other.push("jobs", payloads[2])
    await owner.bus.flush()
    assert await owner.pop(3) is None


async def test_sequence_numbers_follow_the_calls(make: MakeOwner, redis_url: str) -> None:
    """However many send at once, messages arrive in the order of the calls, numbered one by one."""
    owner = await make(redis_url, send_timeout=20)
    await owner.up()
    await owner.join()
    sends = [owner.group_send("room", PAYLOAD, ()) for _ in range(2000)]
    await every([_wait(send) for send in sends])
    await eventually(lambda: len(owner.arrived) == 2000, "everything")
    assert [envelope.seq for _, envelope in owner.arrived] == list(range(1, 2001))


async def test_closed_while_it_comes_up(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus whose connections come up in the turn in which it is closed sends no fences, and is freed."""
    leave = Shard._leave

    async def leave_when_it_is_up(shard: Shard) -> None:
        await eventually(lambda: shard.is_up, "both connections")
        await leave(shard)

    monkeypatch.setattr(Shard, "_leave", leave_when_it_is_up)
    owner = Owner(redis_url, prefix)
    owner.bus.start()
    await owner.bus.close()
    reference = weakref.ref(owner)
    del owner
    await eventually(lambda: gc.collect() >= 0 and reference() is None, "the end of the bus")
