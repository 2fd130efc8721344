"""Which full channels an event loop waits for before it drops messages, and for how long."""

from __future__ import annotations

from collections.abc import Container

from .buffers import ChannelBuffer
from .counters import Counters
from .owner import HubOwner

# Milliseconds of waiting at once, and how many more each delivered envelope is worth.
MOST = 50.0
PER_ENVELOPE = 0.2
# The most that one wait costs: a loop whose turns are longer has other work to do meanwhile.
DEAREST_WAIT = 2.0
# Kept back for readers that have had no turn of the loop since their channels became full.
RESERVE = MOST / 2
# After this many wake-ups the receivers get a turn of the loop before others are woken. With fewer, each of a
# thousand members would wake up for every single message. (`python -m benchmarks fan-out`)
MOST_WOKEN = 1024


class WaitBudget:
    """
    How many milliseconds one event loop may still wait for the readers of its full channels.

    All waiting counts, whatever channels and messages it is for: in all it is never longer than `MOST`, and
    `PER_ENVELOPE` for each envelope that was delivered.

    left                     | which full channels are waited for
    -------------------------|----------------------------------------------------------------------------
    RESERVE or more          | all
    DEAREST_WAIT to RESERVE  | those that became full since the last wait: a reader that keeps up needs no
                             | more than a turn of the loop
    less                     | none
    """

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST

    def earn(self) -> None:
        """Note that an envelope was delivered."""
        self.left = min(MOST, self.left + PER_ENVELOPE)

    def spend(self, milliseconds: float) -> None:
        """Note how long a wait was."""
        self.left -= min(milliseconds, DEAREST_WAIT)

    @property
    def allows_a_turn(self) -> bool:
        """Whether readers that have had no turn of the loop may be waited for."""
        return self.left >= DEAREST_WAIT

    @property
    def allows_a_pause(self) -> bool:
        """Whether any reader may be waited for."""
        return self.left >= RESERVE


class WakeLimit:
    """
    How many more receivers one delivery may wake in this turn of the loop.

    Each delivery has a limit of its own. One that all share would end the slice of a delivery in the middle,
    although few of its own receivers were woken.
    """

    __slots__ = ("_counters", "_end")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._end = counters.woken + MOST_WOKEN

    def is_reached(self) -> bool:
        """Tell whether the woken receivers must have their turn now; if so, count anew."""
        if self._counters.woken < self._end:
            return False
        self._end = self._counters.woken + MOST_WOKEN
        return True


class FlowControl:
    """
    The full channels of one event loop, and which of them deliveries wait for.

    state of a channel | meaning                             | what ends it, beside its reader taking a message
    -------------------|-------------------------------------|--------------------------------------------------
    fresh              | it became full since the last wait  | the next wait is over: tried
    tried              | its reader has had a turn           | the budget is used up: given up, if it was awaited
    given up           | it was waited for in vain           |

    The owner's `on_capacity()` is called when all that is awaited has a place again.
    """

    def __init__(self, owner: HubOwner) -> None:
        self._owner = owner
        self.budget = WaitBudget()
        #: Whether a turn of the loop may be enough for what is awaited.
        self.awaits_a_turn = False
        #: By topic of a group, its full members that were not given up.
        self.full_members: dict[bytes, set[ChannelBuffer]] = {}
        self._fresh: set[ChannelBuffer] = set()
        #: Given up by deliveries to a single channel. Members of groups are not kept when they are given up.
        self._given_up: set[ChannelBuffer] = set()
        # The groups and the single channels that undelivered envelopes are for.
        self._awaited: set[bytes | ChannelBuffer] = set()

    # What happens to channels and members

    def note_full(self, buffer: ChannelBuffer) -> None:
        """Note that a channel may be full now."""
        if not buffer.is_reported_full and buffer.full():
            buffer.is_reported_full = True
            self._fresh.add(buffer)
            for topic in buffer.groups:
                self.full_members.setdefault(topic, set()).add(buffer)

    def on_place_free(self, buffer: ChannelBuffer) -> None:
        """Note that a channel that was full has a place, or is not waited for any more."""
        self._fresh.discard(buffer)
        self._given_up.discard(buffer)
        for topic in buffer.groups:
            self._remove_full_member(topic, buffer)
        self._stop_awaiting(buffer)

    def forget(self, buffer: ChannelBuffer) -> None:
        """Forget a channel that is closed or gone: nobody waits for its reader any more."""
        buffer.is_reported_full = False
        self.on_place_free(buffer)

    def note_join(self, topic: bytes, buffer: ChannelBuffer) -> None:
        """Note that a channel is a member of a group now."""
        if buffer.is_reported_full:
            self.full_members.setdefault(topic, set()).add(buffer)

    def note_leave(self, topic: bytes, buffer: ChannelBuffer) -> None:
        """Note that a channel is no member of a group any more."""
        if buffer.is_reported_full:
            self._remove_full_member(topic, buffer)

    def _remove_full_member(self, topic: bytes, buffer: ChannelBuffer) -> None:
        members = self.full_members.get(topic)
        if members is None:
            return
        members.discard(buffer)
        if not members:
            del self.full_members[topic]
            self._stop_awaiting(topic)

    def _stop_awaiting(self, awaited: bytes | ChannelBuffer) -> None:
        if awaited in self._awaited:
            self._awaited.discard(awaited)
            if not self._awaited:
                self._owner.on_capacity()

    # Whether a delivery must wait

    def must_wait_for_members(self, topic: bytes, excluded: Container[str]) -> bool:
        """Tell whether a full member is worth waiting for, and note that its group is awaited."""
        members = self.full_members.get(topic)
        budget = self.budget
        if members is None or not budget.allows_a_turn:
            return False
        has_fresh = not members.isdisjoint(self._fresh)
        if not has_fresh and not budget.allows_a_pause:
            return False
        # A copy: a member whose expired messages are dropped leaves the set. As a rule the first one decides.
        for buffer in list(members):
            if buffer.channel not in excluded and self._is_worth_waiting_for(buffer):
                self.awaits_a_turn = self.awaits_a_turn or has_fresh
                self._awaited.add(topic)
                return True
        return False

    def must_wait_for_channel(self, buffer: ChannelBuffer) -> bool:
        """Tell whether a full channel is worth waiting for, and note that it is awaited."""
        if buffer in self._given_up or not self._is_worth_waiting_for(buffer):
            return False
        self.awaits_a_turn = self.awaits_a_turn or buffer in self._fresh
        self._awaited.add(buffer)
        return True

    def _is_worth_waiting_for(self, buffer: ChannelBuffer) -> bool:
        budget = self.budget
        has_time = budget.allows_a_pause or (budget.allows_a_turn and buffer in self._fresh)
        return has_time and buffer.full() and not buffer.drop_expired()

    def end_wait(self, milliseconds: float) -> None:
        """Charge the budget for a wait that is over. The undelivered envelopes are offered again next."""
        self.budget.spend(milliseconds)
        self._fresh.clear()  # their readers have had a turn
        self.awaits_a_turn = False
        if not self.budget.allows_a_pause:
            for awaited in self._awaited:
                if isinstance(awaited, bytes):
                    self.full_members.pop(awaited, None)
                else:
                    self._given_up.add(awaited)
        self._awaited.clear()

    def clear(self) -> None:
        """Forget all channels: the hub closes."""
        self.full_members.clear()
        self._fresh.clear()
        self._given_up.clear()
        self._awaited.clear()
