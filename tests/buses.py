"""Buses of the tests: what they call, what they hear, and what they wrote."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from channels_asyncq.bus.base import ChannelRoute, GroupRoute
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.messages.codecs import Codec, codec_for
from channels_asyncq.messages.envelopes import CONTROL, HEADER_ONLY, Envelope
from channels_asyncq.messages.framing import unpack
from channels_asyncq.messages.sealing import Seal
from channels_asyncq.names import Topic, new_session_id, owner_of
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.contract import eventually, every
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
        self.topics = self.options.topics(self.session_id)
        codec = codec_for(self.options.serializer_format)
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
            lambda: any(word in self.bus.connections.links()[0].reason for word in words),
            f"a failure for {words}",
        )

    def group_send(
        self, group: str, payload: bytes, excluded: tuple[str, ...] = ()
    ) -> Awaitable[list[bytes]]:
        if group not in self.group_routes:
            self.group_routes[group] = self.bus.pubsub.group_route(group)
        return self.group_routes[group].send(payload, excluded)

    def channel_route(self, channel: str) -> ChannelRoute:
        owner = owner_of(channel)
        if owner is None:
            return self.bus.queues.route(channel)
        return self.bus.pubsub.channel_route(channel, owner)

    def push(self, channel: str, payload: bytes) -> Awaitable[object]:
        if channel not in self.channel_routes:
            self.channel_routes[channel] = self.channel_route(channel)
        return self.channel_routes[channel].send(payload)

    async def join(self, group: str = "room") -> Topic:
        topic = self.topics.group(group).topic
        self.bus.pubsub.subscribe(topic)
        await self.bus.pubsub.confirmed(topic)
        return topic

    async def pop(self, number: int, channel: str = "jobs") -> bytes | None:
        answer = self.bus.queues.pop(channel, number)
        assert answer is not None
        [envelope] = await every([answer])
        return None if envelope is None else envelope.payload

    def calls(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Everything that a sender can wait for."""
        inbox = self.topics.inbox("00" * 8)
        return {
            "group_send": lambda: self.group_send("room", PAYLOAD),
            "publish": lambda: self.bus.pubsub.publish(inbox, "x", PAYLOAD, CONTROL),
            "push": lambda: self.push("jobs", PAYLOAD),
            "add_member": lambda: self.bus.members.add("room", "jobs"),
            "discard_member": lambda: self.bus.members.discard("room", "jobs"),
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


UNKNOWN = [
    error("NOPERM User site has no permissions to run the 'info|server' command"),
    resp_server.reply(b"# Server\r\nserver_name:valkey\r\n"),
]


def sequence(server: RespServer, before: int) -> list[int]:
    """The numbers of what was sent to groups since so many EVALSHA, as they came."""
    return [
        envelope.seq for command in server.received("EVALSHA")[before:] for envelope in envelopes_in(command)
    ]


def payload_of(size: int) -> bytes:
    """An encoded message of this size."""
    codec = Codec()
    pad = size - len(codec.encode({"type": "m", "pad": b""}))
    while len(payload := codec.encode({"type": "m", "pad": bytes(pad)})) > size:
        pad -= 1
    assert len(payload) == size
    return payload


async def waited_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@asynccontextmanager
async def owners(prefix: str) -> AsyncIterator[MakeOwner]:
    """Make owners on URLs; their buses are started, and closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(url: str | list[str], **config: Any) -> Owner:
            owner = Owner(url, prefix, **config)
            stack.push_async_callback(owner.bus.close)
            owner.bus.start()
            return owner

        yield make
