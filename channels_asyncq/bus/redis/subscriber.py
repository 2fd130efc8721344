"""The connection for pushes of a node: subscriptions, arriving pushes, and the pushes that were missed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ...exceptions import ChannelLayerError, LayerUnavailable
from ...messages.envelopes import Envelope
from ...slices import Slice
from ..resp.protocol import WireProtocol
from ..resp.replies import InFlight, is_redirect
from .catching_up import CatchingUp
from .handshake import raise_last_words
from .partition import Partition, PartitionReading, Reading
from .redirects import Redirected
from .sequences import parse_position
from .shared import Shared
from .subscribing import TopicSubscriber
from .subscriptions import Subscription

if TYPE_CHECKING:
    from .node import Node

_WAKE = b"+"
_TWO_SERVERS = "commands and pushes reached two servers"


class Subscriber:
    """
    The owner of a node's connection for pushes.

    When the connection is made, this subscribes to all topics that the partitions at the node want. Logged pushes
    that arrive before the server has confirmed all of them are discarded: they are in the logs. Then the
    connection is paused while the ends of the logs are read, so nothing is buffered. A partition that is moved
    here later is subscribed to and read alone. The pauses are counted, so that the end of one reading does not
    let pushes pass during another.
    """

    def __init__(self, shared: Shared, node: Node) -> None:
        self._shared = shared
        self._node = node
        self._index = shared.index
        self._receiver = shared.receiver
        # A logged push begins with the wire version, `#`, and the position of its last entry.
        self._logged = tuple(b"%c#" % version for version in shared.formats.versions)
        self.topics = TopicSubscriber(shared, node)
        self._catching_up = CatchingUp(shared, node, self)
        #: The run_id of its server; empty if it is not known.
        self.run_id = b""
        # The number of readings under way: the connection is paused while there are any.
        self._pauses = 0
        # The last push that was not taken: its bytes, and the rest of its envelopes, the next one last.
        self._held: tuple[bytes, list[Envelope]] | None = None
        # Tasks for partitions that were moved here or away.
        self._tasks: set[asyncio.Task[None]] = set()

    # The life of the connection

    async def set_up(self, wire: WireProtocol) -> None:
        """
        Subscribe to all wanted topics, and deliver the messages that were missed since the connection was lost.

        Raises:
            LayerUnavailable: the server is not that of the commands, or cannot be used.
            ReplyError: the server refused the topic of the fences.
        """
        node, checkpoint = self._node, self._node.checkpoint
        self._disconnect()
        readings = [
            partition.begin_reading()
            for _, partition in sorted(node.partitions.items())
            if node.reads(partition)
        ]
        # A fence sent before may still execute. It would move positions past pushes that are being discarded.
        checkpoint.drop()
        # A session whose layout is refused must not receive the messages of others.
        node.commands.raise_if_overdue()
        self.topics.connect(wire)
        self._held = None
        self._pauses = 0
        info = wire.call("INFO", node.identity_section)
        own = await self.topics.subscribe_to_all(wire, readings)
        # With the last one, all are there.
        last = self.topics.last_asked or info
        await asyncio.wait([info, *own, last])
        raise_last_words([info, last])
        # The waiters for a refused topic have its error. The other topics work, but not without fences.
        for reply in own:
            reply.result()
        if wire.is_lost:
            raise ConnectionResetError("the server was busy, and refused a topic")
        self.topics.report_refusals()
        run_id = node.identity_in(info)
        await node.commands.up()
        self.run_id = run_id
        self._check_server()
        if any(each.is_current and each.partition.position is not None for each in readings):
            # After the confirmations: unlogged messages that are sent from now on arrive.
            await node.lease_keeper.refresh()
            await self._catching_up.catch_up(wire, readings)
            # Partitions that were moved here before they had a position.
            has_fresh = any(each.is_current and each.partition.position is None for each in readings)
            if has_fresh:
                await checkpoint.first([each.partition for each in readings if each.is_current])
            checkpoint.send_in(None if has_fresh else 0.0)
        else:
            # Without logs; or the first time, when there is no position to read from.
            servers = {each.partition.server for each in readings if each.is_current} - {b"", run_id}
            checkpoint.has_changed = checkpoint.has_changed or bool(run_id and servers)
            await checkpoint.first([each.partition for each in readings if each.is_current])
            checkpoint.send_in()
        # Again: the connection for commands may be a new one.
        self._check_server()
        for each in readings:
            if each.is_current:
                each.partition.server = self.run_id

    def _check_server(self) -> None:
        if not self._node.is_at(self.run_id):
            raise LayerUnavailable(self._node.address, _TWO_SERVERS)

    def leave_other_server(self) -> None:
        """
        End the connection if the one for commands, which is new, reached another server.

        Its server may be a replica now. A replica passes on what is published at its master, the fences too, but
        not what was published before it followed that master.
        """
        wire = self._node.pushes.wire
        if wire is not None and not wire.is_lost and not self._node.is_at(self.run_id):
            wire.abort(ConnectionResetError(_TWO_SERVERS))

    def on_up(self, wire: WireProtocol) -> None:
        """Note that the connection is set up: the partitions that were here at its beginning are live."""
        for each in self._node.partitions.values():
            if each.reading is not Reading.AWAY:
                each.enter(Reading.LIVE)
            elif self._node.reads(each):
                self.take_in(each)  # it was moved here meanwhile
            else:
                self._node.on_unread(each)

    def on_refusing(self) -> None:
        """Note that the connection was given up for an answer: nothing is sent on it but by its set-up."""

    def on_lost(self, in_flight: list[InFlight]) -> None:
        """Note that the connection is lost. None of its commands is resent."""
        self._disconnect()
        self._node.logs.on_lost()
        self._node.checkpoint.stop()
        self._node.checkpoint.drop()
        self._node.lease_keeper.renew_later()

    def on_overdue(self, error: Exception) -> None:
        """Fail the waiters for confirmations."""
        for each in self._node.partitions.values():
            each.subscriptions.fail_waiters(error)

    def on_silent(self) -> None:
        """Note that the server has not answered for a while."""
        self._node.on_silent()

    def on_change(self) -> None:
        """Note that the connection came up or was lost."""
        self._node.on_links_changed()

    @property
    def is_awaited(self) -> bool:
        """Whether any task waits for a confirmation."""
        return any(each.subscriptions.is_awaited for each in self._node.partitions.values())

    def _disconnect(self) -> None:
        self._cancel_tasks()
        self.topics.disconnect()
        for each in self._node.partitions.values():
            each.leave_connection()

    def close(self) -> None:
        """Cancel the tasks for partitions that were moved."""
        self._cancel_tasks()

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def resume(self) -> None:
        """Offer the receiver again the envelopes that it did not take, and go on."""
        self._node.log.resume()
        if not self._pauses and self.topics.wire is not None:
            self.topics.wire.resume_now()

    @contextmanager
    def paused(self, wire: WireProtocol) -> Iterator[None]:
        """Take no pushes, and afterwards the one that has waited first."""
        self._pauses += 1
        try:
            yield
        finally:
            if self.topics.wire is wire:
                self._pauses -= 1
                if not self._pauses:
                    wire.resume()

    # Partitions that come and go

    def take_in(self, partition: Partition) -> None:
        """Begin to read a partition that was moved here."""
        if not self._node.reads(partition):
            return
        pushes = self._node.pushes
        wire = pushes.wire
        if wire is None or wire.is_lost:
            pushes.start()  # set_up(), or on_up(), takes it in
            try:
                pushes.raise_if_overdue()
            except (ChannelLayerError, ImproperlyConfigured) as exc:
                partition.subscriptions.fail_waiters(exc)
            return
        reading = partition.begin_reading()
        self._spawn(self._take_in(reading, wire), f"taking in partition {partition.number}")

    async def _take_in(self, reading: PartitionReading, wire: WireProtocol) -> None:
        partition = reading.partition
        try:
            await self.topics.subscribe_to(wire, reading)
            if (last := self.topics.last_asked) is not None:
                await asyncio.wait([last])
            if not reading.is_current or wire.is_lost:
                return
            if self.topics.fence_topic not in (b"", self._node.own_topics()[0]):
                self._renew_own(wire)
            await self._subscribe_to_own(wire)
            if partition.position is None:
                await self._node.checkpoint.first([partition])
            else:
                await self._catching_up.catch_up(wire, [reading])
        except Redirected:
            if reading.is_current:
                self._node.read_again(partition)
            return
        except Exception as exc:
            # Whatever it is, a server that answers nonsense included: a new connection takes in all partitions.
            wire.abort(exc)
            return
        if reading.is_current and not wire.is_lost:
            partition.server = self.run_id
            partition.enter(Reading.LIVE)
            # Messages on topics without a log that were published meanwhile were missed.
            for entry in partition.subscriptions:
                if entry.is_confirmed:
                    self._receiver.on_subscribed(entry.topic)

    async def _subscribe_to_own(self, wire: WireProtocol) -> None:
        """
        Return when the topics of the node itself are confirmed.

        Raises:
            Redirected: the partition in whose slot they are is not here.
            ReplyError: the server refuses them.
        """
        if replies := self.topics.subscribe_to_own(wire):
            await asyncio.wait(replies)
            for reply in replies:
                error = reply.exception()
                if error is not None:
                    raise Redirected(str(error)) if is_redirect(error) else error

    def release(self, partition: Partition) -> None:
        """Unsubscribe from the topics of a partition that was moved away."""
        wire = self.topics.wire
        if wire is None or wire.is_lost:
            return
        if self.topics.fence_topic not in (b"", self._node.own_topics()[0]):
            self._renew_own(wire)
        if topics := [entry.topic for entry in partition.subscriptions if entry.asked is not None]:
            self._spawn(self._unsubscribe_from(wire, topics), f"releasing partition {partition.number}")

    async def _unsubscribe_from(self, wire: WireProtocol, topics: list[bytes]) -> None:
        turn = Slice()
        for topic in topics:
            entry = self._index.get(topic)
            is_back = entry is not None and entry.asked is not None and self._is_here(entry)
            if not is_back and not wire.is_lost:
                self.topics.send_unsubscribe(wire, topic)
            await turn.rest()

    def _renew_own(self, wire: WireProtocol) -> None:
        """Use other topics of the node itself: those of before have moved away. Fences under way are void."""
        checkpoint = self._node.checkpoint
        checkpoint.stop()
        # A partition that waits for its first fence here is read again, over this connection.
        checkpoint.drop(Redirected("the topic of the fences has moved"))
        self._spawn(self._use_own(wire), "renewing topics")

    async def _use_own(self, wire: WireProtocol) -> None:
        try:
            await self._subscribe_to_own(wire)
        except ReplyError as exc:
            wire.abort(exc)  # without fences nobody would notice that it is deaf
            return
        except ConnectionError:
            if wire.is_lost:
                return
            # The partition has moved again, and other topics follow. If it is still here, the next fence does not
            # arrive, and another connection is made.
            self._node.checkpoint.stop()
            self._node.checkpoint.send_in()
            return
        if not wire.is_lost:
            self._node.checkpoint.stop()
            self._node.checkpoint.send_in(0.0)

    def on_unsubscribed(self, topic: bytes) -> None:
        """Act on the end of a subscription to a sharded channel: one that the server has taken back."""
        if self.topics.is_leaving(topic):
            return
        entry = self._index.get(topic)
        wire = self.topics.wire
        if entry is None:
            if self.topics.lose_own(topic) and wire is not None and not wire.is_lost:
                self._renew_own(wire)
        elif entry.is_confirmed and entry.partition is not None and self._is_here(entry):
            self._node.on_taken_back(entry.partition)

    def _is_here(self, entry: Subscription) -> bool:
        return entry.partition is None or entry.partition.home is self._node

    def _spawn(self, coroutine: Coroutine[Any, Any, None], purpose: str) -> None:
        task = self._shared.loop.create_task(
            coroutine,
            name=f"channels_asyncq {purpose} at {self._node.address}",
            context=contextvars.Context(),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Pushes

    def on_message(self, topic: bytes, data: bytes) -> bool:
        """Hand on a push; False if it must be offered again after `resume()`."""
        if self._pauses:
            return False
        receiver = self._receiver
        if data == _WAKE:
            receiver.on_wake(topic)
            return True
        entry = self._index.get(topic)
        if entry is None:
            self._on_own(topic, data)
            return True
        partition = entry.partition
        assert partition is not None
        if partition.home is not self._node:
            return True  # the partition has moved, and is read at its home
        if entry.follows is not None:
            if not entry.follows.done():
                return True  # published before the topic was wanted anew: not for the new subscription
            entry.follows = None
        replay = partition.replay
        position, end = 0, -1
        is_logged = data.startswith(self._logged)
        if is_logged:
            try:
                # The position of the last entry comes first. It is empty if the server refused to write.
                end = data.index(b" ")
                position = parse_position(data[2:end]) if end > 2 else 0
                if not position:
                    # No log has it. The next question about the log begins another epoch.
                    replay.forget()
                    replay.epoch.forget()
                if data.startswith(b"{", end + 1):
                    raise ValueError("JSON from outside is in no log")
            except ValueError as exc:
                receiver.on_unreadable(topic, str(exc))
                return True
            if partition.discards or (position and position <= partition.read_until):
                if not position and self._node.pushes.wire is not None:
                    # The next fence has the count of this refusal, so that has_refused() does not find it.
                    self._node.log.note_missed(topic)
                return True
        held, self._held = self._held, None
        if held is not None and held[0] is data:
            envelopes = held[1]
        else:
            log, opener = self._node.log, self._shared.opener
            dropped = opener.dropped
            envelopes = opener.open_all(
                partition.number, topic, data[end + 1 :], log, is_logged=is_logged, position=position
            )
            if opener.dropped != dropped and position:
                replay.forget()  # the log has messages that did not arrive
            if not envelopes:
                if self._shared.formats.is_foreign(data):
                    # The lease of this session has run out. The next answer about it makes the node connect anew.
                    log.note_missed(topic)
                return True  # leave the position: it may be unreadable too
            envelopes.reverse()
        if not partition.deliver(entry, envelopes, is_logged=is_logged):
            self._held = (data, envelopes)
            return False
        if position:
            partition.passed(position)
        return True

    def _on_own(self, topic: bytes, data: bytes) -> None:
        """Act on a push for the node itself. A push on any other topic was under way when that was given up."""
        if topic == self.topics.fence_topic:
            if self._node.logs.on_push(data):
                return
            try:
                self._node.checkpoint.on_fence(data)
            except ValueError as exc:
                self._receiver.on_unreadable(topic, str(exc))
        elif topic == self.topics.layouts_topic:
            self._node.lease_keeper.look()


def logged_topics(partitions: Collection[Partition]) -> set[bytes]:
    """Return the wanted topics of these partitions that a log may keep."""
    return {entry.topic for partition in partitions for entry in partition.subscriptions if entry.is_logged}
