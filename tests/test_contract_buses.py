"""The contract of `bus.base`, protocol by protocol, on the bus in memory and on that of Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import pytest

from channels_asyncq.bus.base import Bus
from channels_asyncq.bus.memory.broker import Broker
from channels_asyncq.bus.memory.bus import MemoryBus
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.names import new_session_id
from channels_asyncq.settings.options import Options
from tests.contract.buses import (
    ConnectionRules,
    LogRules,
    MakeSession,
    MemberRules,
    PubSubRules,
    WorkQueueRules,
)


class Recorder:
    """A session as a bus sees it. It takes everything, unless it is told not to."""

    bus: Bus

    def __init__(self, url: str, prefix: str) -> None:
        self.options = Options.from_config({"hosts": [url], "prefix": prefix, "capacity": 3})
        self.session_id = new_session_id()
        self.topics = self.options.topics(self.session_id)
        self.takes = True
        self.arrived: list[tuple[bytes, Envelope]] = []
        self.woken: list[bytes] = []

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if self.takes:
            if envelope.message is None:
                envelope.message = Codec().decode(envelope.payload)
            self.arrived.append((topic, envelope))
        return self.takes

    def on_wake(self, topic: bytes) -> None:
        self.woken.append(topic)

    def on_subscribed(self, topic: bytes) -> None: ...
    def on_answerable(self) -> None: ...
    def on_up(self) -> None: ...
    def on_down(self) -> None: ...
    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None: ...

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        return 0

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        raise AssertionError(reason)

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        raise AssertionError(reason)

    def on_overrun(self) -> None:
        raise AssertionError("nothing overruns")

    def on_external(self) -> None:
        raise AssertionError("nothing comes from outside")


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.server)])
async def make_session(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[MakeSession]:
    """Make sessions of one namespace; their buses are started, and closed at the end."""
    broker = Broker()
    made: list[Recorder] = []

    async def make_session() -> Recorder:
        if request.param == "memory":
            session = Recorder("memory://", prefix)
            session.bus = MemoryBus(
                broker, session.options, session.topics, Codec(), session.session_id, session
            )
        else:
            session = Recorder(request.getfixturevalue("redis_url"), prefix)
            session.bus = RedisBus(session.options, session.topics, Codec(), session.session_id, session)
        session.bus.start()
        made.append(session)
        return session

    yield make_session
    for session in made:
        await session.bus.close()


class TestPubSub(PubSubRules): ...


class TestWorkQueues(WorkQueueRules): ...


class TestMembers(MemberRules): ...


class TestLog(LogRules): ...


class TestConnections(ConnectionRules): ...
