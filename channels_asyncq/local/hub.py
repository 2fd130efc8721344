"""What arrives for one event loop, and which of its channels get it. Synchronous, no I/O, no await."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..clock import monotonic
from ..events import Throttle
from ..exceptions import ChannelClosed, TooManyGroups
from ..messages.envelopes import Envelope
from ..settings.options import Options
from ..slices import Slices
from .buffers import ChannelBuffer, GroupLimit
from .channels import Channels
from .chunks import MANY, SOME, chunks
from .counters import Counters
from .flow import MOST, MOST_WOKEN, FlowControl, WakeLimit
from .groups import Group, Groups, Member, empty
from .overflow import Overflow, would_exceed_bytes
from .owner import HubOwner
from .watchers import Watchers

_NOBODY: frozenset[str] = frozenset()


class Hub:
    """
    The channels that one session reads, their groups, and the deliveries to them.

    What goes to many channels goes in slices. While `slices` is busy nothing may be delivered: it would overtake
    what is unfinished. `chores` are done beside deliveries.
    """

    def __init__(self, options: Options, owner: HubOwner, slices: Slices, chores: Slices) -> None:
        self._owner = owner
        self._slices = slices
        self._chores = chores
        self.counters = Counters(options.max_buffered_bytes)
        self.throttle = Throttle()
        self.flow = FlowControl(owner)
        self.groups = Groups(options, self.flow, owner)
        self.watchers = Watchers()
        self.channels = Channels(options, self.counters, self.flow, self.groups, self.watchers)
        self.overflow = Overflow(options, self.counters, self.throttle, self.channels)
        # When `counters.woken` is this high, small deliveries pause for a turn of the loop.
        self._next_pause = MOST_WOKEN

    def join(self, topic: bytes, channel: str) -> Member:
        """
        Make the channel a member, or renew its membership.

        Raises:
            ChannelClosed: the channel was closed.
            TooManyGroups: it is in as many groups as it may be in.
        """
        buffer = self.channels.buffers.get(channel) or self.channels.open(channel)
        if buffer.group_limit is not None:
            self.require_room_in(buffer, buffer.group_limit, {topic})
        return self.groups.join(topic, buffer)

    def require_room_in(self, buffer: ChannelBuffer, limit: GroupLimit, topics: set[bytes]) -> None:
        """
        Return if a channel may be in these groups, beside those that it is in.

        Raises:
            TooManyGroups: it may not; this is counted.
        """
        new = topics - buffer.groups
        if new and len(buffer.groups) + len(new) > limit.most + buffer.own_groups:
            self.counters.limited["max_groups"] += 1
            raise TooManyGroups(buffer.channel, limit.most, limit.setting)

    # Delivery

    def deliver(self, topic: bytes, envelope: Envelope) -> bool:
        """
        Put the envelope into the buffer of every member of the group; False if it must wait.

        It must wait when a member is full and there is time left to wait for its reader (see `WaitBudget`).
        Then nothing was delivered, and the same envelope has to be offered again.
        """
        group = self.groups.by_topic.get(topic)
        if group is None:
            return True
        excluded = frozenset(envelope.excluded) if envelope.excluded else _NOBODY
        is_large = len(group.members) > MANY
        if not is_large and monotonic() >= group.lapses_at:
            _do_at_once(self.groups.drop_lapsed(group, monotonic()))
        flow = self.flow
        if flow.full_members and flow.must_wait_for_members(topic, excluded):
            return False
        if flow.budget.left < MOST:
            flow.budget.earn()
        if is_large:
            self._slices.run(self._deliver_to_many(group, envelope, excluded))
            return True
        put = self._put
        if excluded:
            for channel, member in list(group.members.items()):
                if channel not in excluded and excluded.isdisjoint(member.buffer.former):
                    put(member.buffer, envelope)
        else:
            # A list: a member whose channel closes on overflow leaves the group.
            for member in list(group.members.values()):
                put(member.buffer, envelope)
        if self.counters.woken >= self._next_pause:
            self._pause()
        return True

    def _pause(self) -> None:
        """Deliver nothing more before the woken receivers have had a turn of the loop."""
        self._next_pause = self.counters.woken + MOST_WOKEN
        self._slices.run(iter((True,)))

    def _deliver_to_many(self, group: Group, envelope: Envelope, excluded: frozenset[str]) -> Iterator[bool]:
        """Put the envelope into the buffers of those present members that have not left when it is their turn."""
        members = list(group.members.values())
        groups = self.groups
        departures = groups.departures
        now = monotonic()
        if now >= group.lapses_at:
            yield from groups.drop_lapsed(group, now)
        put = self._put
        limit = WakeLimit(self.counters)
        for some in chunks(members):
            if excluded or groups.departures != departures:
                some = [
                    member
                    for member in some
                    if member.buffer.channel not in excluded
                    and excluded.isdisjoint(member.buffer.former)
                    and groups.has(group, member)
                ]
            for member in some:
                put(member.buffer, envelope)
            yield limit.is_reached()

    def deliver_to(self, channel: str, envelope: Envelope) -> bool:
        """Put an envelope from elsewhere into one channel of this session; False if it must wait."""
        channels, flow = self.channels, self.flow
        buffer = channels.buffers.get(channel)
        if buffer is None:
            if channel in channels.closed_names:
                self.counters.drop("closed", channel, envelope)
                return True
            buffer = channels.open(channel)
        if buffer.is_reported_full and flow.must_wait_for_channel(buffer):
            return False
        if flow.budget.left < MOST:
            flow.budget.earn()
        self._put(buffer, envelope)
        if self.counters.woken >= self._next_pause:
            self._pause()
        return True

    def put_own(self, channel: str, envelope: Envelope) -> None:
        """
        Put an envelope of this session's own send() into one of its channels.

        Raises:
            ChannelFull: at once; the caller decides what to do.
            ChannelClosed: it was closed.
        """
        buffer = self.channels.open(channel)
        self.overflow.require_place(buffer, envelope)
        self._put(buffer, envelope)

    def broadcast(self, envelope: Envelope) -> None:
        """Put an envelope into every channel of this session."""
        self._slices.run(self._put_into_all(list(self.channels.buffers.values()), envelope))

    def _put_into_all(self, buffers: list[ChannelBuffer], envelope: Envelope) -> Iterator[bool]:
        limit = WakeLimit(self.counters)
        for some in chunks(buffers):
            for buffer in some:
                if self.channels.has(buffer):
                    self._put(buffer, envelope)
            yield limit.is_reached()

    def _put(self, buffer: ChannelBuffer, envelope: Envelope) -> None:
        counters = self.counters
        if buffer.closed is not None:
            counters.drop("closed", buffer.channel, envelope)
            return
        if counters.most_bytes is not None and would_exceed_bytes(counters, buffer, envelope):
            left = -1
        else:
            left = buffer.offer(envelope)
        if left > 0:
            counters.delivered += 1
            if self.watchers.waiting:
                self.watchers.wake()
        elif left == 0 or self.overflow.put(buffer, envelope):
            self.note_put(buffer)

    def note_put(self, buffer: ChannelBuffer) -> None:
        """Note that an envelope was put into a buffer, which may be full now."""
        self.counters.delivered += 1
        self.flow.note_full(buffer)
        if self.watchers.waiting:
            self.watchers.wake()

    # Losses

    def notify_loss(self, reason: str, groups: Iterable[tuple[bytes, str]], *, everybody: bool) -> None:
        """
        Notify the members of these groups, by topic and name, that they missed something, before later messages.

        With `everybody` all channels are notified: it may have been sent to one of them. Channels that join or
        are opened from now on missed nothing. It goes in slices; then the owner gets `on_loss_notified()`.
        """
        buffers = list(self.channels.buffers.values()) if everybody else []
        self._slices.run(self._notify_all(reason, groups, buffers, monotonic()))

    def _notify_all(
        self, reason: str, groups: Iterable[tuple[bytes, str]], buffers: list[ChannelBuffer], since: float
    ) -> Iterator[bool]:
        concerned: dict[ChannelBuffer, list[str]] = {}
        count = 0
        for topic, name in groups:
            group = self.groups.by_topic.get(topic)
            for members in chunks(list(group.members.values()) if group is not None else []):
                for member in members:
                    if member.joined <= since:
                        concerned.setdefault(member.buffer, []).append(name)
                yield False
            count += 1
            yield False
        for some in chunks(buffers):
            for buffer in some:
                concerned.setdefault(buffer, [])
            yield False
        limit = WakeLimit(self.counters)
        for some in chunks(list(concerned), SOME):
            for buffer in some:
                if self.channels.has(buffer):
                    buffer.notify_loss(reason, concerned[buffer], at_head=False)
            yield limit.is_reached()
        self._owner.on_loss_notified(reason, len(concerned), count)

    # Everything at once

    def sweep(self) -> None:
        """
        Drop what expired, memberships that lapsed, and the buffers that nobody uses any more.

        In slices beside the deliveries. Changes meanwhile are seen now or by the next sweep.
        """
        if not self._chores.is_busy:
            self._chores.run(self._sweep())

    def _sweep(self) -> Iterator[bool]:
        now = monotonic()
        yield from self.groups.sweep(now)
        yield from self.channels.sweep(now)

    def options_changed(self) -> None:
        """
        Hold the channels to their capacities, and the groups to `group_expiry`, as they are now.

        At once if there are few, as in tests, whose next send has to find them changed; else in slices.
        """
        if len(self.channels.buffers) + len(self.groups.by_topic) <= MANY:
            _do_at_once(self._adjust())
        else:
            self._chores.run(self._adjust())

    def _adjust(self) -> Iterator[bool]:
        yield from self.channels.resize()
        yield from self.groups.expect_lapses()

    def flush(self, flushed: Callable[[], None]) -> list[bytes]:
        """
        Forget every group at once, and drop every message in slices; then call `flushed()`.

        Returns the topics that have no member any more.
        """
        groups = self.groups.forget_all()
        self.channels.closed_names.clear()
        topics = [group.topic for group in groups]
        self._slices.run(self._flush(list(self.channels.buffers.values()), groups, flushed))
        return topics

    def _flush(
        self, buffers: list[ChannelBuffer], groups: list[Group], flushed: Callable[[], None]
    ) -> Iterator[bool]:
        yield from self.channels.flush(buffers)
        yield from empty(groups)
        flushed()

    def close(self, reason: type[ChannelClosed]) -> None:
        """
        Forget every channel and group at once, and close the channels in slices.

        What waited in them is counted as dropped. Unfinished deliveries and chores are abandoned.
        """
        buffers = self.channels.forget_all()
        groups = self.groups.forget_all()
        self.flow.clear()
        self._chores.clear()
        self._slices.clear()
        self._slices.run(self._close_all(buffers, groups, reason))
        self.watchers.wake()

    def _close_all(
        self, buffers: list[ChannelBuffer], groups: list[Group], reason: type[ChannelClosed]
    ) -> Iterator[bool]:
        yield from self.channels.close_all(buffers, reason)
        yield from empty(groups)


def _do_at_once(job: Iterator[bool]) -> None:
    for _ in job:
        pass
