"""SUBSCRIBE and UNSUBSCRIBE for the topics of a node and its partitions, and the waiting for confirmations."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ...events import CONNECTION
from ...exceptions import ChannelLayerError
from ...slices import Slice
from ..resp.protocol import WireProtocol
from ..resp.replies import is_redirect
from ..resp.waiters import outcome
from .partition import Partition, PartitionReading, Reading
from .shared import Shared
from .subscriptions import Subscription, SubscriptionLedger

if TYPE_CHECKING:
    from .node import Node


class TopicSubscriber:
    """
    Subscribes to the topics that the partitions at a node want, and to those of the node itself.

    A topic has its state in the `SubscriptionLedger` of its partition, which moves with it. Here is the state of
    the connection: what it refused, and which UNSUBSCRIBE has no reply yet.
    """

    def __init__(self, shared: Shared, node: Node) -> None:
        self._shared = shared
        self._node = node
        self._receiver = shared.receiver
        #: The topic of the fences of the node; empty if it has none now.
        self.fence_topic = b""
        self.layouts_topic = b""
        # The topics of the node itself.
        self._own = SubscriptionLedger({})
        self._is_cluster = shared.topics.is_cluster
        self._subscribe = b"SSUBSCRIBE" if self._is_cluster else b"SUBSCRIBE"
        #: The connection for SUBSCRIBE, from the beginning of its set-up.
        self.wire: WireProtocol | None = None
        #: The reply to the last SUBSCRIBE. Replies come in the order of the commands.
        self.last_asked: asyncio.Future[Any] | None = None
        # By topic: refusals during the set-up. One of them may be the reason why the connection does not come up.
        self._refused: dict[bytes, ReplyError] = {}
        # By topic: the reply to UNSUBSCRIBE that is due.
        self._leaving: dict[bytes, asyncio.Future[Any]] = {}

    # The connection

    def connect(self, wire: WireProtocol) -> None:
        """Use a new connection."""
        self.wire, self.last_asked = wire, None

    def disconnect(self) -> None:
        """Note that the connection is lost, or another one follows."""
        self._own.disconnect()

    def report_refusals(self) -> None:
        """Log the refusals during the set-up: the connection comes up nevertheless."""
        for topic, error in self._refused.items():
            self._note_refused(topic, error)
        self._refused.clear()

    async def subscribe_to_all(
        self, wire: WireProtocol, readings: list[PartitionReading]
    ) -> list[asyncio.Future[Any]]:
        """
        Send SUBSCRIBE for the topics of the node and of these partitions, in slices; return the replies to the
        first.
        """
        replies = self.subscribe_to_own(wire)
        for reading in readings:
            await self.subscribe_to(wire, reading)
        return replies

    def subscribe_to_own(self, wire: WireProtocol) -> list[asyncio.Future[Any]]:
        """
        Send SUBSCRIBE for the topics that the node itself has now, and give up others.

        Returns the replies that are not there yet, also to those that were asked for before.
        """
        self.fence_topic, self.layouts_topic = wanted = self._node.own_topics()
        for entry in self._own:
            if entry.topic not in wanted and self._own.give_up(entry.topic):
                self.send_unsubscribe(wire, entry.topic)
        entries = [self._own.want(topic, is_logged=False) for topic in wanted if topic]
        for entry in entries:
            if entry.asked is None:
                self._send_subscribe(wire, self._own, entry)
        return [entry.asked for entry in entries if entry.asked is not None and not entry.is_confirmed]

    def lose_own(self, topic: bytes) -> bool:
        """Note that the server has ended the subscription to a topic; return whether it is the node's own."""
        return self._own.give_up(topic)

    def is_leaving(self, topic: bytes) -> bool:
        """Whether UNSUBSCRIBE was sent for a topic, and is not answered yet."""
        return topic in self._leaving

    async def subscribe_to(self, wire: WireProtocol, reading: PartitionReading) -> None:
        """
        Send SUBSCRIBE for each wanted topic, in slices, unless a caller has done so.

        `last_asked` is the last reply then, also if a caller has asked for the last topic.
        """
        ledger = reading.partition.subscriptions
        turn = Slice()
        for entry in ledger:
            if not reading.is_current:
                break  # another reading has begun, and waits for its own replies
            # During the last turn it may have been given up, or wanted anew and sent.
            if entry.asked is None and ledger.get(entry.topic) is entry:
                self._send_subscribe(wire, ledger, entry)
            await turn.rest()

    def _send_subscribe(
        self, wire: WireProtocol, ledger: SubscriptionLedger, entry: Subscription
    ) -> asyncio.Future[Any]:
        entry.asked = self.last_asked = reply = wire.call(self._subscribe, entry.topic)
        reply.add_done_callback(partial(self._subscribed, ledger, entry))
        return reply

    def _subscribed(
        self, ledger: SubscriptionLedger, entry: Subscription, reply: asyncio.Future[Any]
    ) -> None:
        error = reply.exception()
        if error is None:
            self._refused.pop(entry.topic, None)
            if ledger.confirm(entry, reply):
                if entry.partition is None or entry.partition.is_live:
                    entry.finish(None)
                if entry.partition is not None and entry.partition.replay.is_active:
                    entry.partition.replay.note_confirmed(entry.topic)
                self._receiver.on_subscribed(entry.topic)
        elif isinstance(error, ReplyError) and entry.asked is reply:
            partition = entry.partition or self._node.partition_of_own(entry.topic)
            if partition is not None and partition.sender.is_redirected(error, self._node):
                if entry.partition is None:
                    entry.asked = None  # it is due again where the node has a partition for it
                elif partition.home is self._node:
                    # It is here still, or for all that is known. Without this topic it must not be live.
                    self._node.read_again(partition)
                return
            if partition is None and self._is_cluster and is_redirect(error):
                return  # of the node itself: the partition with which it moves has left meanwhile
            if self.wire is not None and str(error).startswith("BUSY"):
                # It passes, and nobody would ask again. The next connection subscribes to all topics.
                self.wire.abort(error)
                return
            if self._node.pushes.wire is None:
                self._refused[entry.topic] = error
            else:
                self._note_refused(entry.topic, error)
            ledger.refuse(entry, self._node.refusals.error_for(error))

    def _note_refused(self, topic: bytes, error: ReplyError) -> None:
        diagnosis = self._node.connector.remedies.diagnose(str(error))
        self._node.faults.warn(
            CONNECTION,
            "subscription.refused",
            diagnosis.cause,
            "%(address)s refused a subscription to %(topic)s: %(reason)s",
            level=logging.ERROR,
            address=self._node.address,
            topic=topic.decode(),
            reason=diagnosis.reason,
        )

    # One topic

    def subscribe(self, partition: Partition, topic: bytes, *, is_logged: bool) -> None:
        """Keep a topic subscribed, of a partition that is at this node."""
        entry = partition.subscriptions.want(topic, is_logged)
        wire = self.wire
        # A partition that is away will be subscribed to as a whole.
        if partition.is_away:
            self._node.on_wanted(partition)
        is_due = entry.asked is None and partition.reading is not Reading.AWAY
        if is_due and wire is not None and not wire.is_lost:
            entry.follows = self._leaving.get(topic)
            self._send_subscribe(wire, partition.subscriptions, entry)

    def unsubscribe(self, partition: Partition, topic: bytes) -> None:
        """Give up a topic of a partition that is at this node."""
        if partition.replay.is_active:
            partition.replay.note_given_up(topic)
        wire = self.wire
        if partition.subscriptions.give_up(topic) and wire is not None and not wire.is_lost:
            self.send_unsubscribe(wire, topic)

    def send_unsubscribe(self, wire: WireProtocol, topic: bytes) -> None:
        reply = wire.sunsubscribe(topic) if self._is_cluster else wire.call(b"UNSUBSCRIBE", topic)
        self._leaving[topic] = reply
        reply.add_done_callback(partial(self._left, topic))

    def _left(self, topic: bytes, reply: asyncio.Future[Any]) -> None:
        if self._leaving.get(topic) is reply:
            del self._leaving[topic]

    async def confirmed(self, partition: Partition, topic: bytes, *, is_logged: bool) -> None:
        """Return when a subscription is confirmed and its partition live. Cancelling is safe."""
        node = self._node
        if not node.commands.was_up:
            # Its set-up compares the layouts: no session joins an incompatible namespace.
            node.wake()
            try:
                await node.commands.up()
            except (ChannelLayerError, ImproperlyConfigured):
                if partition.home is node:
                    raise
        if partition.home is not node:
            # It has moved since the caller asked.
            await partition.home.subscriber.topics.confirmed(partition, topic, is_logged=is_logged)
            return
        entry = partition.subscriptions.get(topic)
        if entry is None or (entry.is_confirmed and partition.is_live):
            return
        if entry.asked is None:
            self.subscribe(partition, topic, is_logged=is_logged)  # again, if it was refused
        if node.pushes.wire is None and (refusal := self._refused.get(topic)) is not None:
            raise node.refusals.error_for(refusal) from refusal
        node.pushes.raise_if_overdue()
        node.pushes.start()
        waiter: asyncio.Future[None] = self._shared.loop.create_future()
        entry.waiters.append(waiter)
        try:
            await outcome(waiter)
        finally:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
