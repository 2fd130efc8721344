"""Sessions on a real cluster whose partitions move: what they send and get, and where their partitions are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, TypeVar

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.cluster.node import ClusterNode
from channels_asyncq.bus.redis.cluster.router import ClusterRouter
from channels_asyncq.bus.redis.partition import Partition
from channels_asyncq.slots import slot_of
from tests.cluster_moves import Step
from tests.cluster_nodes import Node
from tests.clusters import Cluster
from tests.contract import eventually, steps
from tests.sessions import bus_of, session_of

T = TypeVar("T")

#: More than any session waits for the end of a failover.
PATIENCE = 20.0


def redis_bus_of(layer: AsyncQueueChannelLayer) -> RedisBus:
    """The bus of the running loop's session."""
    bus = bus_of(layer)
    assert isinstance(bus, RedisBus)
    return bus


def router_of(layer: AsyncQueueChannelLayer) -> ClusterRouter:
    """The router of the running loop's session."""
    router = redis_bus_of(layer).router
    assert isinstance(router, ClusterRouter)
    return router


def slot_of_inbox(layer: AsyncQueueChannelLayer) -> int:
    """The slot of the channels of the running loop's session."""
    return slot_of(redis_bus_of(layer).shared.topics.inbox(session_of(layer).session_id).name)


def slot_of_queue(layer: AsyncQueueChannelLayer, queue: str) -> int:
    """The slot of a normal channel."""
    return slot_of(redis_bus_of(layer).shared.topics.queue(queue).topic.name)


def slot_of_group(layer: AsyncQueueChannelLayer, group: str) -> int:
    """The slot of a group."""
    return slot_of(layer.topic_of_group(group).encode())


def partition_of(layer: AsyncQueueChannelLayer, slot: int) -> Partition:
    """The partition of a slot in the running loop's session."""
    router = router_of(layer)
    return next(each for each in router.partitions if router._slots[each.number] == slot)


def home_of(layer: AsyncQueueChannelLayer, slot: int) -> ClusterNode:
    """The node at which the session has the partition of a slot."""
    home = partition_of(layer, slot).home
    assert isinstance(home, ClusterNode)
    return home


async def is_at(layers: Iterable[AsyncQueueChannelLayer], slot: int, node: Node) -> None:
    """Return when all sessions read a slot's partition at a node."""
    for layer in layers:
        await eventually(
            lambda layer=layer: (  # type: ignore[misc]  # mypy: the type of a default
                home_of(layer, slot).place[1] == node.port and partition_of(layer, slot).is_live
            ),
            f"the reading of slot {slot} at {node.address}",
        )


async def are_held_or_done(
    layer: AsyncQueueChannelLayer, slot: int, tasks: Collection[asyncio.Task[Any]]
) -> None:
    """Return when tasks of a session have ended, or the home of a slot has refused it several times in a row."""
    redirects = router_of(layer).redirects_for(partition_of(layer, slot).number)
    await eventually(
        lambda: all(task.done() for task in tasks) or redirects._refusals > 3, "the end, or refusals"
    )


class Moving:
    """A classic move of one slot, a step at a time, without blocking the loop."""

    def __init__(self, cluster: Cluster, slot: int, to: Node) -> None:
        self._steps = cluster.classic_steps(slot, to)
        self.step: Step | None = None

    async def until(self, *steps: Step) -> None:
        """Go on until one of these steps is done."""
        while self.step not in steps:
            self.step = await asyncio.to_thread(next, self._steps)

    async def finish(self) -> None:
        """Take all steps that are left."""
        while (step := await asyncio.to_thread(next, self._steps, None)) is not None:
            self.step = step


class Company:
    """
    Sessions with a channel each, which are in the same groups. They write down everything that arrives.

    A message has the name of its stream (one sending session to one name) and a number in it, from 1 on. So a
    loss, a repeat and a change of the order are seen.
    """

    def __init__(self, layers: list[AsyncQueueChannelLayer]) -> None:
        self.layers = layers
        self.channels: list[str] = []
        self.groups: list[str] = []
        self.sent: Counter[tuple[int, str]] = Counter()
        #: What arrived, by receiving session, sending session and name.
        self.heard: defaultdict[tuple[int, int, str], list[int]] = defaultdict(list)
        self.notices: list[dict[str, Any]] = []
        self.notices_of: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        #: How often each job was taken, by its number.
        self.jobs: Counter[int] = Counter()
        self.pushed = 0
        self._sends: list[asyncio.Task[None]] = []
        self._receivers: list[asyncio.Task[None]] = []
        self._is_over = False

    async def join(self, *groups: str) -> None:
        """Give each session a channel, and let all channels join the groups."""
        self.groups = list(groups)
        for number, layer in enumerate(self.layers):
            channel = await layer.new_channel()
            self.channels.append(channel)
            await asyncio.gather(*(layer.group_add(group, channel) for group in groups))
            self._receivers.append(asyncio.create_task(self._receive(number, layer, channel)))

    def work(self, queue: str, *, is_impatient: bool = False) -> None:
        """Let each session take jobs from a normal channel; `is_impatient` ones give up all the time."""
        work = self._work_impatiently if is_impatient else self._work
        self._receivers += [asyncio.create_task(work(layer, queue)) for layer in self.layers]

    async def _receive(self, number: int, layer: AsyncQueueChannelLayer, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            if message["type"] == "number":
                self.heard[number, message["from"], message["to"]].append(message["n"])
            else:
                self.notices.append(message)
                self.notices_of[number].append(message)

    async def _work(self, layer: AsyncQueueChannelLayer, queue: str) -> None:
        while True:
            self.jobs[(await layer.receive(queue))["n"]] += 1

    async def _work_impatiently(self, layer: AsyncQueueChannelLayer, queue: str) -> None:
        for turns in itertools.cycle(range(8)):
            receiving = asyncio.create_task(layer.receive(queue))
            try:
                await steps(turns)
            finally:
                receiving.cancel()
            await asyncio.wait([receiving])
            if not receiving.cancelled() and receiving.exception() is None:
                self.jobs[receiving.result()["n"]] += 1

    def send(self, number: int, name: str, count: int = 1) -> list[asyncio.Task[None]]:
        """Let a session send the next messages of a stream, all at once: to a group, or to a channel."""
        tasks = []
        for _ in range(count):
            self.sent[number, name] += 1
            message = {"type": "number", "from": number, "to": name, "n": self.sent[number, name]}
            layer = self.layers[number]
            is_group = name in self.groups
            call = layer.group_send(name, message) if is_group else layer.send(name, message)
            tasks.append(asyncio.create_task(call))
        self._sends += tasks
        return tasks

    def send_to_all(self, count: int = 1) -> list[asyncio.Task[None]]:
        """Let each session send to each group and each channel."""
        return [
            task
            for number in range(len(self.layers))
            for name in (*self.groups, *self.channels)
            for task in self.send(number, name, count)
        ]

    def push(self, number: int, queue: str, count: int = 1) -> list[asyncio.Task[None]]:
        """Let a session put jobs into a normal channel."""
        tasks = []
        for _ in range(count):
            self.pushed += 1
            tasks.append(
                asyncio.create_task(self.layers[number].send(queue, {"type": "job", "n": self.pushed}))
            )
        self._sends += tasks
        return tasks

    @contextlib.asynccontextmanager
    async def at_work(self, queue: str = "") -> AsyncIterator[None]:
        """Send all the time: each session to each group and channel, one message after the other, and jobs."""
        names = (*self.groups, *self.channels)
        streams = [(number, name) for number in range(len(self.layers)) for name in names]
        tasks = [asyncio.create_task(self._keep_sending(*stream)) for stream in streams]
        if queue:
            tasks += [
                asyncio.create_task(self._keep_pushing(number, queue)) for number in range(len(self.layers))
            ]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)
            self._is_over = False

    async def _keep_sending(self, number: int, name: str) -> None:
        while not self._is_over:
            [task] = self.send(number, name)
            await task

    async def _keep_pushing(self, number: int, queue: str) -> None:
        while not self._is_over:
            [task] = self.push(number, queue)
            await task

    async def settle(self) -> None:
        """Return when all sends have returned, and one more message of each stream has arrived everywhere."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._sends)
            self._sends = []
            await asyncio.gather(*(self.send(number, name)[0] for number, name in list(self.sent)))
        await eventually(lambda: not self.missing(), "the arrival of all messages")
        if self.pushed:
            await eventually(lambda: len(self.jobs) >= self.pushed, "the arrival of all jobs")

    async def settle_what_may_be_lost(self) -> None:
        """Return as `settle()` does, but wait for the last messages only: earlier ones may be lost."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._sends, return_exceptions=True)
            self._sends = []
            await asyncio.gather(*(self.send(number, name)[0] for number, name in list(self.sent)))

        def has_last() -> bool:
            return all(
                self.sent[sender, name] not in left for (_, sender, name), left in self.missing().items()
            )

        await eventually(has_last, "the arrival of the last messages")

    def assert_order(self) -> None:
        """Assert that nothing has arrived twice or out of order."""
        for numbers in self.heard.values():
            assert numbers == sorted(set(numbers))

    def missing(self) -> dict[tuple[int, int, str], set[int]]:
        """Return the numbers that have not arrived, by receiving session, sending session and name."""
        found = {}
        for (number, name), count in self.sent.items():
            receivers = range(len(self.layers)) if name in self.groups else [self.channels.index(name)]
            for receiver in receivers:
                key = receiver, number, name
                if left := set(range(1, count + 1)).difference(self.heard[key]):
                    found[key] = left
        return found

    def assert_intact(self) -> None:
        """Assert that everything has arrived once and in order, and that nobody was told of a loss."""
        assert not self.missing()
        for (_, sender, name), numbers in self.heard.items():
            assert numbers == list(range(1, self.sent[sender, name] + 1))
        assert self.jobs == dict.fromkeys(range(1, self.pushed + 1), 1)
        assert not self.notices

    async def leave(self) -> None:
        """Receive no more."""
        tasks = [*self._receivers, *self._sends]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
