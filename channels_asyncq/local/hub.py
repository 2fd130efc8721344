"""Local channels and the members of groups: who is here. Synchronous, no I/O, no await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TypeVar

from channels.exceptions import ChannelFull

from ..clock import monotonic
from ..events import LOSS, Throttle
from ..exceptions import ChannelClosed
from ..messages.envelopes import Envelope
from ..settings.options import Options
from ..slices import Slices
from .buffers import ChannelBuffer, Counters
from .flow import MOST, WaitBudget

T = TypeVar("T")

# A closed channel's name is remembered this long, so that late senders and receivers are told.
CLOSED_NAMES_KEPT = 300.0
# But no more than these, where channels come and go fast.
MOST_CLOSED_NAMES = 10_000
# A reader may be this many expiries late before its expired messages cost it its groups.
_ABANDONED_AFTER = 2.0
_NEVER = float("inf")
# So many channels are served between two looks at the clock.
_MANY = 256
# Or so many, where each costs ten times as much.
_SOME = 64
# When so many receivers were woken, they get their turn before others are woken. Fewer would have each of a
# thousand readers woken for every message: 3 times the CPU time.
_MOST_WOKEN = 1024


class Member:
    """
    One channel's place in one group.

    It `joined` once; `added` is the time of the latest group_add(). `joiners` are the calls that
    still wait for it.
    """

    __slots__ = ("added", "buffer", "is_confirmed", "joined", "joiners")

    def __init__(self, buffer: ChannelBuffer) -> None:
        self.buffer = buffer
        self.joined = self.added = monotonic()
        self.is_confirmed = False
        self.joiners = 0


class Group:
    """The local members of one group by channel name, and the earliest time at which one can lapse."""

    __slots__ = ("lapses_at", "members", "topic")

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.members: dict[str, Member] = {}
        self.lapses_at = _NEVER


class Hub:
    """
    The channels that one session reads, and their groups by topic.

    `on_empty(topic)` is called when a group lost its last member in another way than by `leave()`, and
    `on_room()` when the channels that `deliver` had to wait for have a place again. What goes to many channels
    goes in slices. While `slices` is busy nothing may be delivered: it would overtake what is unfinished. What
    `chores` does is done beside it.
    """

    def __init__(
        self,
        options: Options,
        on_empty: Callable[[bytes], None],
        on_room: Callable[[], None],
        make_notice: Callable[[str], Envelope | None],
        slices: Slices,
        chores: Slices,
    ) -> None:
        self._options = options
        self._slices = slices
        self._chores = chores
        self._on_empty = on_empty
        self._on_room = on_room
        self._make_notice = make_notice
        self.counters = Counters(options.max_buffered_bytes)
        self.throttle = Throttle()
        self.channels: dict[str, ChannelBuffer] = {}
        self.groups: dict[bytes, Group] = {}
        self.closed_names: dict[str, float] = {}
        self.budget = WaitBudget()
        #: Whether a turn of the loop may be enough for those that are waited for.
        self.awaits_a_turn = False
        # By topic of a group: its full members, but those that were waited for in vain since they read last.
        self._full: dict[bytes, set[ChannelBuffer]] = {}
        # Became full since the last wait; and those that deliver_to() waited for in vain.
        self._fresh: set[ChannelBuffer] = set()
        self._hopeless: set[ChannelBuffer] = set()
        # What must wait is for these groups and channels.
        self._awaited: set[bytes | ChannelBuffer] = set()
        self._departures = 0  # how often a member left a group
        self._most_woken = _MOST_WOKEN  # when so many receivers were woken, a turn of the loop is theirs
        self._watchers: list[asyncio.Future[None]] = []
        # By every buffer; made once.
        self._told = self._has_room, self._has_expired, self._missed_more

    # Channels

    def open(self, channel: str) -> ChannelBuffer:
        """
        Return the buffer of a channel, made if it is not there.

        Raises:
            ChannelClosed: it was closed.
        """
        buffer = self.channels.get(channel)
        if buffer is None:
            if channel in self.closed_names:
                raise ChannelClosed(channel)
            buffer = self.make(channel)
        return buffer

    def make(self, channel: str) -> ChannelBuffer:
        """Return the buffer of a channel that was never there."""
        capacity = self._options.capacity_of(channel)
        on_room, on_expired, on_missed = self._told  # a call with * takes a third longer
        buffer = ChannelBuffer(channel, capacity, self.counters, on_room, on_expired, on_missed)
        self.channels[channel] = buffer
        return buffer

    def close_channel(self, channel: str) -> None:
        """
        Close a channel: it leaves its groups and accepts nothing; receivers get what is left, then ChannelClosed.
        """
        self.closed_names.setdefault(channel, monotonic())
        if len(self.closed_names) > MOST_CLOSED_NAMES:
            del self.closed_names[next(iter(self.closed_names))]
        buffer = self.channels.get(channel)
        if buffer is None:
            return
        self._leave_groups(buffer)
        buffer.close()
        self._settle(buffer)
        if not buffer.queued and not buffer.waiting:
            del self.channels[channel]
        self._wake_watchers()

    def discard(self, buffer: ChannelBuffer) -> None:
        """Close a channel whose only reader has gone; what still waits in it is counted as dropped."""
        buffer.is_kept = False
        if count := buffer.clear():
            self.counters.dropped["closed"] += count
        self.close_channel(buffer.channel)

    def close(self, reason: type[ChannelClosed]) -> None:
        """
        Forget every channel and group at once, and close the channels in slices.

        What still waited in them is counted as dropped. What is unfinished is dropped.
        """
        buffers, self.channels = list(self.channels.values()), {}
        groups, self.groups = list(self.groups.values()), {}
        self._departures += 1
        self._full.clear()
        self._fresh.clear()
        self._hopeless.clear()
        self._awaited.clear()
        self._chores.clear()
        self._slices.clear()
        self._slices.run(self._close_all(buffers, groups, reason))
        self._wake_watchers()

    def _close_all(
        self, buffers: list[ChannelBuffer], groups: list[Group], reason: type[ChannelClosed]
    ) -> Iterator[bool]:
        # Emptied on the way: to free all of them at the end would be a long turn of its own.
        buffers.reverse()
        woken = 0
        while buffers:
            for _ in range(min(_SOME, len(buffers))):
                buffer = buffers.pop()
                woken += buffer.waiting
                self.counters.dropped["closed"] += buffer.clear()
                buffer.close(reason)
            must_end = woken >= _MOST_WOKEN // 3  # they get an exception, which takes longer
            if must_end:
                woken = 0
            yield must_end
        yield from _release(groups)

    def flush(self, flushed: Callable[[], None]) -> list[bytes]:
        """
        Forget every group at once, and drop every message in slices; then call `flushed()`.

        Returns the topics that have no member any more.
        """
        groups, self.groups = self.groups, {}
        self._departures += 1
        self.closed_names.clear()
        self._slices.run(self._flush(list(self.channels.values()), list(groups.values()), flushed))
        return list(groups)

    def _flush(
        self, buffers: list[ChannelBuffer], groups: list[Group], flushed: Callable[[], None]
    ) -> Iterator[bool]:
        for some in _chunks(buffers, _SOME):
            for buffer in some:
                if self.channels.get(buffer.channel) is buffer:
                    self._flush_channel(buffer)
            yield False
        yield from _release(groups)
        flushed()

    def _flush_channel(self, buffer: ChannelBuffer) -> None:
        self.counters.dropped["flushed"] += buffer.clear()
        # It may have joined a group since.
        buffer.groups = {topic for topic in buffer.groups if self._is_member(topic, buffer.channel)}
        if buffer.closed is not None:
            del self.channels[buffer.channel]

    def sweep(self) -> None:
        """
        Drop what expired, memberships that lapsed, and the buffers that nobody uses any more.

        In slices beside the deliveries: what changes meanwhile is seen when its turn comes, or by the next sweep.
        """
        if not self._chores.is_busy:
            self._chores.run(self._sweep())

    def _sweep(self) -> Iterator[bool]:
        now = monotonic()
        for groups in _chunks(list(self.groups.values())):
            for group in groups:
                if now >= group.lapses_at:
                    yield from self._drop_lapsed(group, now)
            yield False
        for buffers in _chunks(list(self.channels.values()), _SOME):
            for buffer in buffers:
                if self.channels.get(buffer.channel) is buffer:
                    self._sweep_channel(buffer, now)
            yield False
        for channel, since in list(self.closed_names.items()):
            if now - since > CLOSED_NAMES_KEPT and channel not in self.channels:
                del self.closed_names[channel]

    def _sweep_channel(self, buffer: ChannelBuffer, now: float) -> None:
        expiry = self._options.expiry
        buffer.drop_expired()
        if buffer.is_awaited or now - buffer.last_used <= expiry:
            return
        is_abandoned = buffer.lost_expired and now - buffer.last_used > _ABANDONED_AFTER * expiry
        if is_abandoned:
            self._leave_groups(buffer)
        is_empty = not (buffer.has_messages if is_abandoned else buffer.queued)
        if is_empty and not buffer.groups and not buffer.is_kept:
            self._settle(buffer)
            del self.channels[buffer.channel]

    def options_changed(self) -> None:
        """
        Hold the channels to their capacities, and the groups to `group_expiry`, as they are now.

        At once where there are few, as in tests, whose next send is to find them changed; else in slices.
        """
        if len(self.channels) + len(self.groups) <= _MANY:
            for _ in self._adjust():
                pass
        else:
            self._chores.run(self._adjust())

    def _adjust(self) -> Iterator[bool]:
        for buffers in _chunks(list(self.channels.values()), _SOME):
            for buffer in buffers:
                if self.channels.get(buffer.channel) is buffer:
                    buffer.resize(self._options.capacity_of(buffer.channel))
                    self._note_full(buffer)
            yield False
        for groups in _chunks(list(self.groups.values())):
            for group in groups:
                group.lapses_at = 0.0  # when it is, the next delivery or sweep finds out
            yield False

    # Groups

    def join(self, topic: bytes, channel: str) -> Member:
        """
        Make the channel a member, or renew its membership.

        Raises:
            ChannelClosed: the channel was closed.
        """
        buffer = self.channels.get(channel) or self.open(channel)
        if buffer.closed is not None:
            raise buffer.closed(channel)
        group = self.groups.get(topic)
        if group is None:
            group = self.groups[topic] = Group(topic)
        member = group.members.get(channel)
        if member is None:
            member = group.members[channel] = Member(buffer)
            buffer.groups.add(topic)
            if buffer.is_reported_full:
                self._full.setdefault(topic, set()).add(buffer)
        else:
            member.added = monotonic()
        lapses_at = member.added + self._options.group_expiry
        if lapses_at < group.lapses_at:
            group.lapses_at = lapses_at
        return member

    def abandon(self, topic: bytes, member: Member) -> bool:
        """
        Take back a membership that was never confirmed and that no other group_add() waits for.

        Returns whether the group has lost its last member by it.
        """
        group = self.groups.get(topic)
        channel = member.buffer.channel
        if group is None or group.members.get(channel) is not member or member.is_confirmed or member.joiners:
            return False
        return self.leave(topic, channel)

    def leave(self, topic: bytes, channel: str) -> bool:
        """End a membership if there is one; return whether the group has lost its last member by it."""
        group = self.groups.get(topic)
        if group is None:
            return False
        member = group.members.pop(channel, None)
        if member is None:
            return False
        self._departures += 1
        member.buffer.groups.discard(topic)
        if member.buffer.is_reported_full:
            self._is_not_full(topic, member.buffer)
        if group.members:
            return False
        del self.groups[topic]
        return True

    def _leave_groups(self, buffer: ChannelBuffer) -> None:
        for topic in list(buffer.groups):
            if self.leave(topic, buffer.channel):
                self._on_empty(topic)

    def _drop_lapsed(self, group: Group, now: float) -> Iterator[bool]:
        group_expiry = self._options.group_expiry
        group.lapses_at = _NEVER
        for some in _chunks(list(group.members.values())):
            for member in some:
                lapses_at = max(member.added, member.buffer.last_received) + group_expiry
                if lapses_at > now:
                    group.lapses_at = min(group.lapses_at, lapses_at)
                elif self._is_there(group, member) and self.leave(group.topic, member.buffer.channel):
                    self._on_empty(group.topic)
            yield False

    def _is_member(self, topic: bytes, channel: str) -> bool:
        group = self.groups.get(topic)
        return group is not None and channel in group.members

    def _is_there(self, group: Group, member: Member) -> bool:
        """Tell whether a membership has not ended since."""
        return self.groups.get(group.topic) is group and group.members.get(member.buffer.channel) is member

    # Delivery

    def deliver(self, topic: bytes, envelope: Envelope) -> bool:
        """
        Put the envelope into the buffer of every member of the group; False if it must wait.

        It must wait when a member is full and there is time left to wait for its reader (see `WaitBudget`);
        nothing was delivered then, and the same envelope has to be offered again.
        """
        group = self.groups.get(topic)
        if group is None:
            return True
        excluded = frozenset(envelope.excluded) if envelope.excluded else ()
        is_large = len(group.members) > _MANY
        if not is_large and monotonic() >= group.lapses_at:
            for _ in self._drop_lapsed(group, monotonic()):
                pass
        if self._full and self._must_wait_for_members(topic, excluded):
            return False
        budget = self.budget
        if budget.left < MOST:
            budget.earn()
        if is_large:
            self._slices.run(self._deliver_to_many(group, envelope, excluded))
            return True
        put = self._put
        if excluded:
            for channel, member in list(group.members.items()):
                if channel not in excluded:
                    put(member.buffer, envelope)
        else:
            # A list, because a member whose channel closes on overflow leaves the group.
            for member in list(group.members.values()):
                put(member.buffer, envelope)
        if self.counters.woken >= self._most_woken:
            self._give_a_turn()
        return True

    def _give_a_turn(self) -> None:
        """Deliver nothing more before those who were woken have had a turn of the loop."""
        self._most_woken = self.counters.woken + _MOST_WOKEN
        self._slices.run(iter((True,)))

    def _deliver_to_many(self, group: Group, envelope: Envelope, excluded: Container[str]) -> Iterator[bool]:
        """Put the envelope into the buffers of those who are members now, and still are when it is their turn."""
        members = list(group.members.values())
        departures = self._departures
        now = monotonic()
        if now >= group.lapses_at:
            yield from self._drop_lapsed(group, now)
        put, counters = self._put, self.counters
        most_woken = counters.woken + _MOST_WOKEN
        for some in _chunks(members):
            if excluded or self._departures != departures:
                some = [
                    member
                    for member in some
                    if member.buffer.channel not in excluded and self._is_there(group, member)
                ]
            for member in some:
                put(member.buffer, envelope)
            must_end = counters.woken >= most_woken
            if must_end:
                most_woken = counters.woken + _MOST_WOKEN
            yield must_end

    def deliver_to(self, channel: str, envelope: Envelope) -> bool:
        """Put an envelope from elsewhere into one channel of this session; False if it must wait."""
        buffer = self.channels.get(channel)
        if buffer is None:
            if channel in self.closed_names:
                self.counters.dropped["closed"] += 1
                return True
            buffer = self.open(channel)
        if buffer.is_reported_full and self._must_wait_for_channel(buffer):
            return False
        budget = self.budget
        if budget.left < MOST:
            budget.earn()
        self._put(buffer, envelope)
        if self.counters.woken >= self._most_woken:
            self._give_a_turn()
        return True

    def put_own(self, channel: str, envelope: Envelope) -> None:
        """
        Put an envelope of this session's own send() into one of its channels.

        Raises:
            ChannelFull: at once; the caller decides what to do.
            ChannelClosed: it was closed.
        """
        buffer = self.open(channel)
        buffer.require_place()
        if self.counters.most_bytes is not None and self._is_too_much(buffer, envelope):
            raise ChannelFull(
                f"channel {channel!r} is not empty, and messages of {self.counters.held_bytes} bytes wait in "
                f"this event loop; max_buffered_bytes is {self.counters.most_bytes}: read faster, or raise it"
            )
        self._put(buffer, envelope)

    def broadcast(self, envelope: Envelope) -> None:
        """Put an envelope into every channel of this session."""
        self._slices.run(self._put_into_all(list(self.channels.values()), envelope))

    def _put_into_all(self, buffers: list[ChannelBuffer], envelope: Envelope) -> Iterator[bool]:
        most_woken = self.counters.woken + _MOST_WOKEN
        for some in _chunks(buffers):
            for buffer in some:
                if self.channels.get(buffer.channel) is buffer:
                    self._put(buffer, envelope)
            must_end = self.counters.woken >= most_woken
            if must_end:
                most_woken = self.counters.woken + _MOST_WOKEN
            yield must_end

    def _put(self, buffer: ChannelBuffer, envelope: Envelope) -> None:
        counters = self.counters
        if buffer.closed is not None:
            counters.dropped["closed"] += 1
            return
        if counters.most_bytes is not None and self._is_too_much(buffer, envelope):
            left = -1
        else:
            left = buffer.offer(envelope)
        if left > 0:
            counters.delivered += 1
            if self._watchers:
                self._wake_watchers()
        elif left == 0 or self._overflow(buffer, envelope):
            self.note_put(buffer)

    def note_put(self, buffer: ChannelBuffer) -> None:
        """Note that an envelope was put into a buffer, which may be full now."""
        self.counters.delivered += 1
        self._note_full(buffer)
        if self._watchers:
            self._wake_watchers()

    def _note_full(self, buffer: ChannelBuffer) -> None:
        if not buffer.is_reported_full and buffer.full():
            buffer.is_reported_full = True
            self._fresh.add(buffer)
            for topic in buffer.groups:
                self._full.setdefault(topic, set()).add(buffer)

    def count_full(self, channel: str) -> None:
        """Note that a group's message found a normal channel full."""
        self.counters.dropped["overflow"] += 1
        self._log_overflow(channel)

    def _is_too_much(self, buffer: ChannelBuffer, envelope: Envelope) -> bool:
        """Would this exceed the bytes of the process? An empty channel takes it still: its reader keeps up."""
        most = self.counters.most_bytes
        added = 0 if envelope.holders else len(envelope.payload)
        return most is not None and self.counters.held_bytes + added > most and buffer.has_messages

    def _overflow(self, buffer: ChannelBuffer, envelope: Envelope) -> bool:
        """Apply the `overflow` setting to a full buffer; return whether the envelope is in it now."""
        self.counters.dropped["overflow"] += 1
        policy = self._options.overflow
        if policy == "close":
            self._log_overflow(buffer.channel)
            self.counters.told["overflow"] += 1
            self.close_channel(buffer.channel)
            return False
        if "overflow" not in buffer.losses:
            self._log_overflow(buffer.channel)
        if policy == "drop_newest" or not buffer.has_messages:
            self._tell(buffer, "overflow", [envelope.target], at_head=False)
            return False
        dropped = [buffer.drop_oldest()]
        while self._is_too_much(buffer, envelope):
            self.counters.dropped["overflow"] += 1
            dropped.append(buffer.drop_oldest())
        buffer.offer(envelope)
        self._tell(buffer, "overflow", [each.target for each in dropped], at_head=True)
        return True

    def _log_overflow(self, channel: str) -> None:
        options = self._options
        if self.counters.most_bytes is not None and self.counters.held_bytes >= self.counters.most_bytes / 2:
            limit = f"max_buffered_bytes ({options.max_buffered_bytes}; {self.counters.held_bytes} wait)"
        else:
            limit = f"{options.capacity_rule(channel)} ({options.capacity_of(channel)})"
        self.throttle.warn(
            LOSS,
            "loss.overflow",
            "channel %s is full by %s, and its reader is too slow: messages are dropped (overflow=%r); raise "
            "that setting, or read faster",
            channel,
            limit,
            options.overflow,
        )

    # Losses that the channels concerned are told, once per reason until their readers have caught up

    def tell(
        self,
        reason: str,
        groups: Iterable[tuple[bytes, str]],
        told: Callable[[int, int], None],
        *,
        everybody: bool,
    ) -> None:
        """
        Tell the members of these groups, topic and name, that they missed something, before what comes later.

        Or everybody, if it may have been sent to a channel. Those who join or open a channel from now on missed
        nothing. It goes in slices; then `told` is called with the number of channels and of groups.
        """
        buffers = list(self.channels.values()) if everybody else []
        self._slices.run(self._tell_all(reason, groups, buffers, monotonic(), told))

    def _tell_all(
        self,
        reason: str,
        groups: Iterable[tuple[bytes, str]],
        buffers: list[ChannelBuffer],
        since: float,
        told: Callable[[int, int], None],
    ) -> Iterator[bool]:
        concerned: dict[ChannelBuffer, list[str]] = {}
        count = 0
        for topic, name in groups:
            group = self.groups.get(topic)
            for members in _chunks(list(group.members.values()) if group is not None else []):
                for member in members:
                    if member.joined <= since:
                        concerned.setdefault(member.buffer, []).append(name)
                yield False
            count += 1
            yield False
        for some in _chunks(buffers):
            for buffer in some:
                concerned.setdefault(buffer, [])
            yield False
        most_woken = self.counters.woken + _MOST_WOKEN
        for some in _chunks(list(concerned), _SOME):
            for buffer in some:
                if self.channels.get(buffer.channel) is buffer:
                    self._tell(buffer, reason, concerned[buffer], at_head=False)
            must_end = self.counters.woken >= most_woken
            if must_end:
                most_woken = self.counters.woken + _MOST_WOKEN
            yield must_end
        told(len(concerned), count)

    def _has_expired(self, buffer: ChannelBuffer, targets: set[str]) -> None:
        self._tell(buffer, "expired", sorted(targets), at_head=True)

    def _missed_more(self, buffer: ChannelBuffer, reason: str, groups: list[str]) -> None:
        self._tell(buffer, reason, groups, at_head=False)

    def _tell(self, buffer: ChannelBuffer, reason: str, targets: list[str], *, at_head: bool) -> None:
        if buffer.closed is not None:
            return
        groups = [target for target in targets if target and "!" not in target]
        loss = buffer.losses.get(reason)
        if loss is not None:
            if self._options.on_loss is not None:
                loss.add(groups)
            return
        self.counters.told[reason] += 1
        buffer.tell(reason, groups, self._make_notice(reason), at_head=at_head)

    # Flow: a full buffer stops the reader of the wire for a while, before anything is dropped (see WaitBudget)

    def _must_wait_for_members(self, topic: bytes, excluded: Container[str]) -> bool:
        """Tell whether a full member is worth waiting for, and note that the group is waited for."""
        full = self._full.get(topic)
        budget = self.budget
        if full is None or not budget.allows_a_turn:
            return False
        has_fresh = not full.isdisjoint(self._fresh)
        if not has_fresh and not budget.allows_a_pause:
            return False
        # A copy, because one that drops what expired is not full any more. As a rule the first decides.
        for buffer in list(full):
            if buffer.channel not in excluded and self._is_worth_waiting_for(buffer):
                self.awaits_a_turn = self.awaits_a_turn or has_fresh
                self._awaited.add(topic)
                return True
        return False

    def _must_wait_for_channel(self, buffer: ChannelBuffer) -> bool:
        """Tell whether a full channel is worth waiting for, and note that it is waited for."""
        if buffer in self._hopeless or not self._is_worth_waiting_for(buffer):
            return False
        self.awaits_a_turn = self.awaits_a_turn or buffer in self._fresh
        self._awaited.add(buffer)
        return True

    def _is_worth_waiting_for(self, buffer: ChannelBuffer) -> bool:
        budget = self.budget
        has_time = budget.allows_a_pause or (budget.allows_a_turn and buffer in self._fresh)
        return has_time and buffer.full() and not buffer.drop_expired()

    def spend(self, milliseconds: float) -> None:
        """Count the time for which what must wait has waited; whatever is still held is offered next."""
        self.budget.spend(milliseconds)
        self._fresh.clear()  # their readers have had a turn
        self.awaits_a_turn = False
        if not self.budget.allows_a_pause:
            # They were waited for in vain, and are not waited for again before their readers take something.
            for awaited in self._awaited:
                if isinstance(awaited, bytes):
                    self._full.pop(awaited, None)
                else:
                    self._hopeless.add(awaited)
        self._awaited.clear()

    def _has_room(self, buffer: ChannelBuffer) -> None:
        self._fresh.discard(buffer)
        self._hopeless.discard(buffer)
        for topic in buffer.groups:
            self._is_not_full(topic, buffer)
        self._await_no_more(buffer)

    def _is_not_full(self, topic: bytes, buffer: ChannelBuffer) -> None:
        """Note that a member has a place, or is none any more."""
        full = self._full.get(topic)
        if full is None:
            return
        full.discard(buffer)
        if not full:
            del self._full[topic]
            self._await_no_more(topic)

    def _await_no_more(self, awaited: bytes | ChannelBuffer) -> None:
        if awaited in self._awaited:
            self._awaited.discard(awaited)
            if not self._awaited:
                self._on_room()

    def _settle(self, buffer: ChannelBuffer) -> None:
        """Forget that a buffer is full: it is closed or gone, and nobody waits for its reader any more."""
        buffer.is_reported_full = False
        self._has_room(buffer)

    # Receivers of a whole prefix

    def take_any(self, prefix: str) -> Envelope | None:
        """Remove and return the oldest envelope of all channels whose name begins so, or None."""
        waiting = [buffer for channel, buffer in self.channels.items() if channel.startswith(prefix)]
        for buffer in waiting:
            buffer.drop_expired()
        for buffer in sorted(
            waiting, key=lambda buffer: buffer.oldest.expires_at if buffer.oldest else _NEVER
        ):
            envelope = buffer.take()
            if envelope is not None:
                return envelope
        return None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a message, or holds a channel open to read from it."""
        return bool(self._watchers) or any(
            buffer.is_awaited or buffer.is_kept for buffer in self.channels.values()
        )

    def watch(self) -> asyncio.Future[None]:
        """Return a future that is done after the next delivery, or when a channel or the hub is closed."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        watcher.add_done_callback(self._stop_watching)  # one that was cancelled is still in the list
        return watcher

    def _stop_watching(self, watcher: asyncio.Future[None]) -> None:
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)


def _chunks(items: list[T], size: int = _MANY) -> Iterator[list[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _release(groups: list[Group]) -> Iterator[bool]:
    """Empty groups that are forgotten: to free all their members at the end would be a long turn of its own."""
    while groups:
        members = groups.pop().members
        while members:
            for _ in range(min(_MANY, len(members))):
                members.popitem()
            yield False
        yield False
