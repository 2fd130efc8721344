"""Partitions without a server: what they hand up is recorded, and their home only says that it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, cast

from channels_asyncq.bus.base import Receiver
from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.opening import Opener
from channels_asyncq.bus.redis.partition import Partition
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.bus.resp.outages import Outages
from channels_asyncq.messages.codecs import BadPayload, Codec
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.messages.framing import FORMATS
from channels_asyncq.names import Topics
from channels_asyncq.settings.options import Options

SESSION = "0123456789abcdef"
#: A payload of somebody without our keys, or that is no message.
UNREADABLE = b"666"


class Recorder(Receiver):
    """What is handed up."""

    def __init__(self) -> None:
        self.delivered: list[tuple[bytes, int]] = []
        self.envelopes: list[Envelope] = []
        self.losses: list[tuple[str, set[bytes]]] = []
        self.unreadable: list[bytes] = []
        self.subscribed: list[bytes] = []
        self.woken: list[bytes] = []
        self.is_full = False
        self.places: int | None = None  # after so many it is full
        self.offers = 0
        self.offered = asyncio.Event()

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        self.offers += 1
        self.offered.set()
        if self.is_full:
            return False
        self.delivered.append((topic, envelope.seq))
        self.envelopes.append(envelope)
        if self.places is not None:
            self.places -= 1
            self.is_full = not self.places
        return True

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        self.losses.append((reason, topics))

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        self.unreadable.append(topic)

    def on_subscribed(self, topic: bytes) -> None:
        self.subscribed.append(topic)

    def on_wake(self, topic: bytes) -> None:
        self.woken.append(topic)

    def on_nothing(self, *arguments: Any, **names: Any) -> None:
        """Everything else: no partition, and no reader of its log, calls it."""
        raise AssertionError(arguments)

    on_overrun = on_external = on_answerable = on_down = on_up = on_forgotten = on_nothing

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        raise AssertionError(partitions)


def page_of(
    entries: Sequence[tuple[bytes, list[bytes]]],
    last: bytes,
    now: int,
    count: int,
    topics: Collection[bytes] = (),
) -> list[Any]:
    """What read_log.lua returns of a log that has these entries from its start on."""
    page = [list(entry) for entry in entries[:count]]
    wanted = [entry for entry in page if not topics or entry[1][1] in topics]
    first, through = (page[0][0], page[-1][0]) if page else (b"", b"")
    return [last, b"%d" % now, len(page), first, through, wanted]


class Subscriptions:
    """Notes which partitions come and go."""

    run_id = b""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.went: list[int] = []

    def take_in(self, partition: Partition) -> None:
        self.came.append(partition.number)

    def release(self, partition: Partition) -> None:
        self.went.append(partition.number)


class Line:
    """A connection for commands that is down, and stays so."""

    wire = None
    is_refusing = False

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def raise_if_overdue(self) -> None:
        pass


class Home:
    """A node as a partition sees it."""

    address = "redis://home:6379/0"
    send_timeout = 30.0

    def __init__(self) -> None:
        self.partitions: dict[int, Partition] = {}
        self.changes = 0
        self.lease = object()
        self.subscriber = Subscriptions()
        self.commands = Line()

    def reads(self, partition: Partition) -> bool:
        return True

    def leave_unwanted(self) -> None:
        pass

    def on_wanted(self, partition: Partition) -> None:
        pass

    def own_topics(self) -> tuple[bytes, bytes]:
        return b"asgi:0:fence:home", b"asgi:0:layouts"

    def partition_of_own(self, topic: bytes) -> Partition | None:
        return None

    async def changed_among(self, partitions: Collection[Partition]) -> list[Partition]:
        return await Node.changed_among(as_node(self), partitions)

    def partition(self, number: int, shared: Shared) -> Partition:
        """A partition whose home this is."""
        return Partition(number, as_node(self), shared)


def as_node(home: object) -> Node:
    return cast(Node, home)


class AnyPayload:
    """A codec that makes a message of any payload but one."""

    def decode(self, payload: bytes) -> dict[str, Any]:
        if payload == UNREADABLE:
            raise BadPayload("no key fits")
        return {"type": "x", "payload": payload}


class Observer:
    """Nobody waits for all connections."""

    def start(self) -> None:
        pass

    def on_links_changed(self) -> None:
        pass


def shared_for(
    receiver: Receiver, loop: asyncio.AbstractEventLoop | None = None, **config: Any
) -> tuple[Options, Shared]:
    """The settings and helpers of a session whose messages are opened as on a bus without keys."""
    options = Options.from_config(config)
    topics = Topics("asgi", 2, [0], SESSION)
    opener = Opener(options, topics, receiver, cast(Codec, AnyPayload()), FORMATS, None)
    return options, Shared(
        options,
        topics,
        bytes.fromhex(SESSION),
        receiver,
        FORMATS,
        opener,
        Outages(),
        Scripts.of(options.recovery),
        loop or asyncio.get_running_loop(),
        Observer(),
    )
