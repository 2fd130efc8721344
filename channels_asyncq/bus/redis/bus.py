"""The bus of one session over one or more Redis or Valkey servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from ...messages.codecs import Codec
from ...messages.framing import FORMATS, Formats
from ...messages.sealing import Seal
from ...names import Topics
from ...settings.options import Options
from ...tasks import all_of
from ..base import Receiver
from ..resp.outages import Outages
from .connections import RedisConnections
from .histories import RedisHistories
from .log import RedisLog
from .members import RedisMembers
from .node import Node
from .opening import Opener
from .partition import Partition
from .pubsub import RedisPubSub
from .queues import RedisQueues
from .register import RedisRegister
from .routers import router_for
from .scripts import Scripts
from .shared import Shared
from .sweep import Sweep


class RedisBus:
    """
    Wires the nodes, the partitions and the router of a session.

    A name belongs to a partition. The partition has the sender and the topics, and belongs to a node. Objects
    that live longer than one send hold the partition, and never the node.
    """

    def __init__(
        self,
        options: Options,
        topics: Topics,
        codec: Codec,
        session_id: str,
        receiver: Receiver,
        outages: Outages | None = None,
        formats: Formats = FORMATS,
    ) -> None:
        self._options = options
        self._receiver = receiver
        own_id = bytes.fromhex(session_id)
        keys = options.symmetric_encryption_keys
        self._seal = Seal(keys, self._max_age, own_id) if keys else None
        self.shared = shared = Shared(
            options,
            topics,
            own_id,
            receiver,
            formats,
            Opener(options, topics, receiver, codec, formats, self._seal),
            outages or Outages(),
            Scripts.of(
                options.recovery,
                options.partitions,
                keepings={kept for _, kept in options.history},
                is_cluster=topics.is_cluster,
            ),
            asyncio.get_running_loop(),
            self,
        )
        self.router = router_for(shared)
        self.partitions = [
            Partition(number, self.router.home_of(number), shared, self.router.redirects_for(number))
            for number in range(topics.partitions)
        ]
        self.router.adopt(self.partitions)
        self.log = RedisLog(shared, self.partitions)
        self.pubsub = RedisPubSub(shared, self.partitions, self._seal, self.router, self.log)
        self.histories = RedisHistories(shared, self.partitions, self.log)
        self.queues = RedisQueues(shared, self.partitions, self._seal)
        self.members = RedisMembers(shared, self.partitions)
        self.connections = RedisConnections(self.router, self.partitions)
        self.register = RedisRegister(topics, self.partitions[0])
        self._is_up = False
        self._is_closed = False

    @property
    def nodes(self) -> list[Node]:
        """The nodes in use."""
        return self.router.nodes

    # Life

    def start(self) -> None:
        self.router.start()

    async def answered(self) -> None:
        await all_of(node.answered() for node in self.nodes)

    def rest(self) -> Awaitable[None] | None:
        if self._is_closed or any(node.is_busy for node in self.nodes):
            return None
        # This is not an outage: do not report it as one.
        self._is_up = False
        self.router.stop()
        return _all_done([node.rest() for node in self.nodes])

    async def close(self) -> None:
        self._is_closed = True
        self.histories.close()
        try:
            await self.router.leave()
            await all_of(node.close() for node in self.nodes)
        except asyncio.CancelledError:
            self.router.stop()
            for node in self.nodes:
                node.abort()
            raise

    def let_go(self) -> None:
        self._is_closed = True
        for node in self.nodes:
            node.let_go()

    def on_links_changed(self) -> None:
        """Notify the receiver when all nodes are up, and when an outage begins."""
        router = self.router
        has_changed = router.is_down if self._is_up else router.is_up
        if not has_changed or self._is_closed:
            return
        self._is_up = not self._is_up
        if self._is_up:
            self._receiver.on_up()
        else:
            self._receiver.on_down()

    # State

    def options_changed(self) -> None:
        if self._seal is not None:
            self._seal.limit_age(self._max_age)

    @property
    def _max_age(self) -> float:
        # An unanswered message is resent as it is, up to `send_timeout` later, and expires after that.
        return self._options.expiry + self._options.send_timeout

    async def flush(self) -> None:
        await Sweep(self.shared, self.partitions).run()


async def _all_done(awaitables: Iterable[Awaitable[object]]) -> None:
    await all_of(awaitables)
