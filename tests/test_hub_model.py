"""Everything that can happen to a hub, against a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from channels.exceptions import ChannelFull
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channels_asyncq.exceptions import ChannelClosed
from channels_asyncq.local.channels import CLOSED_NAMES_KEPT
from channels_asyncq.local.hub import Hub
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.options import Options
from channels_asyncq.slices import Slices
from tests.clock import Clock
from tests.hubs import EXPIRY, GROUP_EXPIRY, envelope


@dataclass
class Channel:
    """What a channel is to the model: its messages with their ends, its groups with the times of joining."""

    used: float
    waiting: list[tuple[int, float]] = field(default_factory=list)
    groups: dict[str, float] = field(default_factory=dict)
    received: float = 0.0
    lost: bool = False


CHANNELS = st.sampled_from(["a", "c!1", "c!2"])


GROUPS = st.sampled_from(["room", "lobby"])


CAPACITY = 2


class HubMachine(RuleBasedStateMachine):
    """Everything that can happen to a hub; it and the model agree on every message, place and member."""

    @initialize(overflow=st.sampled_from(["drop_newest", "drop_oldest", "close"]))
    def begin(self, overflow: str) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.clock.put_into(self.patch, ["local", "slices"])
        # Thousands of examples would each be worth a line.
        self.patch.setattr("channels_asyncq.events.LOSS.disabled", True)
        self.overflow = overflow
        self.subscribed: set[bytes] = set()
        options = Options(
            hosts=(Host("memory"),),
            overflow=overflow,  # type: ignore[arg-type]
            expiry=EXPIRY,
            group_expiry=GROUP_EXPIRY,
            capacity=CAPACITY,
        )
        slices, chores = (Slices(cast(asyncio.AbstractEventLoop, self)) for _ in range(2))
        self.hub = Hub(options, self, slices, chores)
        self.model: dict[str, Channel] = {}
        self.closed: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    # What the hub calls.

    def call_soon(self, callback: Callable[[], object], *, context: Context | None = None) -> None:
        """The loop never turns."""

    def on_group_empty(self, topic: bytes) -> None:
        self.subscribed.remove(topic)

    def on_capacity(self) -> None: ...

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None: ...

    # What the model does.

    def opened(self, name: str) -> Channel | None:
        if name not in self.model and name in self.closed:
            return None
        return self.model.setdefault(name, Channel(self.clock.now, received=self.clock.now))

    def purge(self, channel: Channel) -> None:
        live = [entry for entry in channel.waiting if entry[1] > self.clock.now]
        if len(live) < len(channel.waiting):
            self.counts["expired"] += len(channel.waiting) - len(live)
            channel.waiting, channel.lost = live, True

    def put(self, name: str) -> None:
        channel = self.model[name]
        if name in self.closed:
            self.counts["closed"] += 1
            return
        if len(channel.waiting) >= CAPACITY:
            self.purge(channel)
        if len(channel.waiting) >= CAPACITY:
            self.counts["overflow"] += 1
            if self.overflow == "close":
                self.closing(name)
            if self.overflow != "drop_oldest":
                return
            del channel.waiting[0]
        channel.waiting.append((self.number, self.clock.now + EXPIRY))
        self.counts["delivered"] += 1

    def closing(self, name: str) -> None:
        self.closed.setdefault(name, self.clock.now)
        if name in self.model:
            self.model[name].groups.clear()
            if not self.model[name].waiting:
                del self.model[name]

    def lapse(self, group: str) -> None:
        for channel in self.model.values():
            joined = channel.groups.get(group)
            if joined is not None and max(joined, channel.received) + GROUP_EXPIRY <= self.clock.now:
                del channel.groups[group]

    def next_envelope(self, excluded: tuple[str, ...] = ()) -> Envelope:
        self.number += 1
        return envelope(str(self.number), excluded=excluded)

    def insist(self, is_full: list[str], offer: Any) -> None:
        """Offer until it is taken; it may have to wait only for a channel that is full."""
        before = {name: buffer.queued for name, buffer in self.hub.channels.buffers.items()}
        for _ in range(50):
            if offer():
                return
            assert any(len(self.model[name].waiting) >= CAPACITY for name in is_full if name in self.model)
            assert before == {
                name: buffer.queued for name, buffer in self.hub.channels.buffers.items()
            } or any(entry[1] <= self.clock.now for one in self.model.values() for entry in one.waiting)
            self.hub.flow.end_wait(10.0)
        raise AssertionError("the hub waits for ever")

    # What happens.

    @rule(name=CHANNELS)
    def open(self, name: str) -> None:
        if self.opened(name) is None:
            with pytest.raises(ChannelClosed):
                self.hub.channels.open(name)
        else:
            self.hub.channels.open(name)

    @rule(name=CHANNELS, group=GROUPS)
    def join(self, name: str, group: str) -> None:
        channel = self.opened(name)
        if name in self.closed:
            with pytest.raises(ChannelClosed):
                self.hub.join(group.encode(), name)
            return
        assert channel is not None
        channel.groups[group] = self.clock.now
        self.hub.join(group.encode(), name)
        self.subscribed.add(group.encode())

    @rule(name=CHANNELS, group=GROUPS)
    def leave(self, name: str, group: str) -> None:
        was_in = name in self.model and self.model[name].groups.pop(group, None) is not None
        is_empty = not any(group in channel.groups for channel in self.model.values())
        was_last = self.hub.groups.leave(group.encode(), name)
        assert was_last is (was_in and is_empty)
        if was_last:
            self.subscribed.remove(group.encode())

    @rule(group=GROUPS, excluded=st.sets(CHANNELS, max_size=2))
    def deliver(self, group: str, excluded: set[str]) -> None:
        self.lapse(group)
        one = self.next_envelope(tuple(excluded))
        names = [name for name, channel in self.model.items() if group in channel.groups]
        names = [name for name in names if name not in excluded]
        self.insist(names, lambda: self.hub.deliver(group.encode(), one))
        for name in names:
            self.put(name)

    @rule(group=GROUPS)
    def burst(self, group: str) -> None:
        for _ in range(CAPACITY + 1):
            self.deliver(group, set())

    @rule(group=GROUPS)
    def everybody_joins(self, group: str) -> None:
        for name in ("a", "c!1", "c!2"):
            self.join(name, group)

    @rule(name=CHANNELS)
    def deliver_to(self, name: str) -> None:
        one = self.next_envelope()
        self.insist([name], lambda: self.hub.deliver_to(name, one))
        if self.opened(name) is None:
            self.counts["closed"] += 1
        else:
            self.put(name)

    @rule(name=CHANNELS)
    def put_own(self, name: str) -> None:
        one, channel = self.next_envelope(), self.opened(name)
        if name in self.closed or channel is None:
            with pytest.raises(ChannelClosed):
                self.hub.put_own(name, one)
            return
        if len(channel.waiting) >= CAPACITY:
            self.purge(channel)
        if len(channel.waiting) >= CAPACITY:
            with pytest.raises(ChannelFull):
                self.hub.put_own(name, one)
        else:
            self.hub.put_own(name, one)
            self.put(name)

    @rule()
    def broadcast(self) -> None:
        self.hub.broadcast(self.next_envelope())
        for name in list(self.model):
            self.put(name)

    @rule(name=CHANNELS)
    def take(self, name: str) -> None:
        buffer = self.hub.channels.buffers.get(name)
        assert (buffer is None) is (name not in self.model)
        if buffer is None:
            return
        taken, channel = buffer.take(), self.model[name]
        self.purge(channel)
        assert (taken is None) is (not channel.waiting)
        if taken is not None:
            assert int(taken.payload) == channel.waiting.pop(0)[0]
            channel.used = channel.received = self.clock.now
            channel.lost = False
            self.counts["taken"] += 1

    @rule()
    def take_any(self) -> None:
        names = [name for name in self.model if name.startswith("c!")]
        live = {name: [one for one in self.model[name].waiting if one[1] > self.clock.now] for name in names}
        taken = self.hub.channels.take_any("c!")
        assert (taken is None) is (not any(live.values()))
        for name in names:
            # It need not look into every channel; where it did, what had expired is dropped.
            oldest = self.hub.channels.buffers[name].oldest
            if oldest is None or oldest.expires_at > self.clock.now:
                self.purge(self.model[name])
        if taken is None:
            return
        number = int(taken.payload)
        [channel] = [
            self.model[name]
            for name in names
            if live[name][:1] == [(number, taken.expires_at)]
            and self.hub.channels.buffers[name].queued < len(self.model[name].waiting)
        ]
        channel.waiting.pop(0)
        channel.used = channel.received = self.clock.now
        channel.lost = False
        self.counts["taken"] += 1

    @rule(name=CHANNELS)
    def close_channel(self, name: str) -> None:
        self.closing(name)
        self.hub.channels.close(name)

    @rule()
    def flush(self) -> None:
        for name, channel in list(self.model.items()):
            self.counts["flushed"] += len(channel.waiting)
            channel.waiting.clear()
            channel.groups.clear()
            if name in self.closed:
                del self.model[name]
        self.closed.clear()
        topics = self.hub.flush(lambda: None)
        assert set(topics) == self.subscribed and len(topics) == len(self.subscribed)
        self.subscribed.clear()

    @rule()
    def sweep(self) -> None:
        now = self.clock.now
        for group in ("room", "lobby"):
            self.lapse(group)
        for name, channel in list(self.model.items()):
            self.purge(channel)
            if channel.lost and now - channel.used > 2 * EXPIRY:
                channel.groups.clear()
            if now - channel.used > EXPIRY and not channel.groups and not channel.waiting:
                del self.model[name]
        for name, since in list(self.closed.items()):
            if now - since > CLOSED_NAMES_KEPT and name not in self.model:
                del self.closed[name]
        self.hub.sweep()

    @rule(seconds=st.sampled_from([1.0, EXPIRY / 2, EXPIRY, GROUP_EXPIRY / 2]))
    def time_passes(self, seconds: float) -> None:
        self.clock.turn(seconds)

    # What always holds.

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def agrees(self) -> None:
        for name, buffer in self.hub.channels.buffers.items():
            assert [int(one.payload) for one in buffer._envelopes] == [
                number for number, _ in self.model[name].waiting
            ]
            assert buffer.queued <= CAPACITY
            assert (buffer.closed is not None) is (name in self.closed)
            assert buffer.groups == {group.encode() for group in self.model[name].groups}
        assert set(self.hub.channels.buffers) == set(self.model)
        assert set(self.hub.channels.closed_names) == set(self.closed)

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def groups_are_what_the_owner_was_told(self) -> None:
        members = {topic: set(group.members) for topic, group in self.hub.groups.by_topic.items()}
        expected: dict[bytes, set[str]] = {}
        for name, channel in self.model.items():
            for group in channel.groups:
                expected.setdefault(group.encode(), set()).add(name)
        assert members == expected and set(members) == self.subscribed

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def nothing_is_lost_without_being_counted(self) -> None:
        counters = self.hub.counters
        reasons = ("expired", "overflow", "closed", "flushed")
        assert {reason: counters.dropped[reason] for reason in reasons} == {
            reason: self.counts[reason] for reason in reasons
        }
        assert counters.delivered == self.counts["delivered"]
        waiting = sum(buffer.queued for buffer in self.hub.channels.buffers.values())
        gone = self.counts["taken"] + self.counts["expired"] + self.counts["flushed"]
        replaced = self.counts["overflow"] if self.overflow == "drop_oldest" else 0
        assert counters.delivered == waiting + gone + replaced

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def only_what_is_here_and_full_is_waited_for(self) -> None:
        open_ones = {buffer for buffer in self.hub.channels.buffers.values() if buffer.closed is None}
        full = {buffer for buffer in open_ones if buffer.full()}
        assert {buffer for buffer in open_ones if buffer.is_reported_full} == full
        for topic, members in self.hub.flow.full_members.items():
            assert members
            assert members <= full & {
                member.buffer for member in self.hub.groups.by_topic[topic].members.values()
            }
        assert self.hub.flow._fresh | self.hub.flow._given_up <= full
        assert self.hub.flow._awaited <= full | set(self.hub.flow.full_members)


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
