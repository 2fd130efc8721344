"""Wanted against confirmed topics: the table, and a server that answers late."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channels_asyncq.bus.redis.subscriptions import Subscription, SubscriptionLedger
from channels_asyncq.exceptions import LayerUnavailable

# The table: (state, what happens) -> (state, what the call answers). A state is None where there is no entry.

State = tuple[bool, bool] | None
NOT_WANTED: State = None
WANTED: State = (False, False)
ASKED: State = (True, False)
CONFIRMED: State = (True, True)


def in_state(state: State) -> tuple[SubscriptionLedger, Subscription]:
    """A ledger with topic `a` in this state, and the entry; one that was forgotten if there is none."""
    ledger = SubscriptionLedger()
    entry = ledger.want(b"a")
    if state is None:
        ledger.give_up(b"a")
    else:
        entry.is_sent = state[0]
        if state[1]:
            assert ledger.confirm(entry)
    return ledger, entry


def state_of(ledger: SubscriptionLedger) -> State:
    entry = ledger.get(b"a")
    return None if entry is None else (entry.is_sent, entry.is_confirmed)


ERROR = LayerUnavailable("redis://nowhere", "no reason")


@pytest.mark.parametrize(
    ("before", "event", "after", "answer"),
    [
        (NOT_WANTED, "want", WANTED, False),
        (WANTED, "want", WANTED, False),
        (ASKED, "want", ASKED, True),
        (CONFIRMED, "want", CONFIRMED, True),
        (NOT_WANTED, "give_up", NOT_WANTED, False),
        (WANTED, "give_up", NOT_WANTED, False),
        (ASKED, "give_up", NOT_WANTED, True),
        (CONFIRMED, "give_up", NOT_WANTED, True),
        (NOT_WANTED, "confirm", NOT_WANTED, False),
        (ASKED, "confirm", CONFIRMED, True),
        (CONFIRMED, "confirm", CONFIRMED, True),
        (NOT_WANTED, "refuse", NOT_WANTED, None),
        (ASKED, "refuse", WANTED, None),
        (NOT_WANTED, "disconnect", NOT_WANTED, None),
        (WANTED, "disconnect", WANTED, None),
        (ASKED, "disconnect", WANTED, None),
        (CONFIRMED, "disconnect", WANTED, None),
        (WANTED, "fail_waiters", WANTED, None),
        (ASKED, "fail_waiters", ASKED, None),
    ],
)
def test_the_table(before: State, event: str, after: State, answer: object) -> None:
    """Each event in each state leads to one state, and says whether something is to be sent."""
    ledger, entry = in_state(before)
    events: dict[str, Callable[[], object]] = {
        "want": lambda: ledger.want(b"a").is_sent,
        "give_up": lambda: ledger.give_up(b"a"),
        "confirm": lambda: ledger.confirm(entry),
        "refuse": lambda: ledger.refuse(entry, ERROR),
        "disconnect": lambda: ledger.disconnect(),
        "fail_waiters": lambda: ledger.fail_waiters(ERROR),
    }
    assert events[event]() is answer
    assert state_of(ledger) == after
    assert len(ledger) == len(list(ledger)) == (after is not None)


async def waiter_of(entry: Subscription) -> asyncio.Future[None]:
    waiter = asyncio.get_running_loop().create_future()
    entry.waiters.append(waiter)
    return waiter


async def test_who_waits_is_told() -> None:
    """A confirmation and a giving up let go of who waits; a refusal and an overdue link give the error."""
    for event, error in (("confirm", None), ("give_up", None), ("refuse", ERROR), ("fail_waiters", ERROR)):
        ledger, entry = in_state(ASKED)
        waiters = [await waiter_of(entry) for _ in range(2)]
        waiters[0].cancel()
        if event == "confirm":
            ledger.confirm(entry)
        elif event == "give_up":
            ledger.give_up(b"a")
        elif event == "refuse":
            ledger.refuse(entry, ERROR)
        else:
            ledger.fail_waiters(ERROR)
        assert waiters[0].cancelled() and waiters[1].exception() is error
        assert entry.waiters == []


async def test_who_waits_through_a_reconnect() -> None:
    """The end of a connection leaves those who wait waiting: the next confirmation is for them."""
    ledger, entry = in_state(ASKED)
    waiter = await waiter_of(entry)
    ledger.disconnect()
    assert not waiter.done()
    entry.is_sent = True
    assert ledger.confirm(entry) and waiter.done() and waiter.exception() is None


async def test_an_old_reply_is_for_nobody() -> None:
    """A topic that was given up and wanted again is not confirmed, nor refused, by the reply to the old one."""
    ledger, old = in_state(ASKED)
    ledger.give_up(b"a")
    new = ledger.want(b"a")
    new.is_sent = True
    waiter = await waiter_of(new)
    assert not ledger.confirm(old)
    ledger.refuse(old, ERROR)
    assert state_of(ledger) == ASKED and not waiter.done() and ledger.get(b"a") is new
    assert ledger.confirm(new) and waiter.done()


def test_iteration_bears_changes() -> None:
    """Topics may be given up and wanted while the ledger is gone through."""
    ledger = SubscriptionLedger()
    for name in (b"a", b"b", b"c"):
        ledger.want(name)
    for entry in ledger:
        ledger.give_up(entry.topic)
        ledger.want(entry.topic + b"2")
    assert sorted(entry.topic for entry in ledger) == [b"a2", b"b2", b"c2"]


TOPICS = st.sampled_from([b"a", b"b"])


class LastWordMachine(RuleBasedStateMachine):
    """
    A ledger, a link that comes and goes, and a server that answers later and in order.

    The owner sends what the ledger says. Whenever everything is answered, the server has exactly what is wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = SubscriptionLedger()
        self.wanted: set[bytes] = set()
        self.is_up = False
        self.subscribed: set[bytes] = set()
        self.commands: deque[tuple[bytes, Subscription | None]] = deque()
        self.replies: deque[Subscription] = deque()

    def send_subscribe(self, entry: Subscription) -> None:
        entry.is_sent = True
        self.commands.append((entry.topic, entry))

    @rule(topic=TOPICS)
    def want(self, topic: bytes) -> None:
        self.wanted.add(topic)
        entry = self.ledger.want(topic)
        if self.is_up and not entry.is_sent:
            self.send_subscribe(entry)

    @rule(topic=TOPICS)
    def give_up(self, topic: bytes) -> None:
        self.wanted.discard(topic)
        if self.ledger.give_up(topic) and self.is_up:
            self.commands.append((topic, None))

    @rule()
    def connect(self) -> None:
        if not self.is_up:
            self.is_up = True
            self.ledger.disconnect()
            for entry in self.ledger:
                self.send_subscribe(entry)

    @rule(executed=st.integers(0, 3))
    def lose(self, executed: int) -> None:
        for _ in range(min(executed, len(self.commands))):
            self.execute()
        self.is_up = False
        self.subscribed.clear()
        self.commands.clear()
        self.replies.clear()
        self.ledger.disconnect()

    @rule()
    def execute(self) -> None:
        if self.commands:
            topic, entry = self.commands.popleft()
            if entry is None:
                self.subscribed.discard(topic)
            else:
                self.subscribed.add(topic)
                self.replies.append(entry)

    @rule()
    def reply(self) -> None:
        if self.replies:
            self.ledger.confirm(self.replies.popleft())

    @rule()
    def everything_is_answered(self) -> None:
        while self.commands or self.replies:
            self.execute()
            self.reply()
        if self.is_up:
            assert self.subscribed == self.wanted
            assert {entry.topic for entry in self.ledger if entry.is_confirmed} == self.wanted

    @invariant()
    def wants_what_was_said_last(self) -> None:
        assert {entry.topic for entry in self.ledger} == self.wanted

    @invariant()
    def what_is_confirmed_is_subscribed(self) -> None:
        for entry in self.ledger:
            if entry.is_confirmed:
                assert self.is_up and entry.is_sent
                assert entry.topic in self.subscribed
                assert entry.topic not in {topic for topic, _ in self.commands}


TestLastWordMachine = LastWordMachine.TestCase
TestLastWordMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
