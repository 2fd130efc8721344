"""Wanted against confirmed topics: the table, and a server that answers late."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channels_asyncq.bus.redis.subscriptions import Subscription, SubscriptionLedger
from channels_asyncq.exceptions import LayerUnavailable

# The table: (state, what happens) -> (state, what the call answers). A state is None where there is no entry,
# else whether SUBSCRIBE was sent and whether it is confirmed.

State = tuple[bool, bool] | None
NOT_WANTED: State = None
WANTED: State = (False, False)
ASKED: State = (True, False)
CONFIRMED: State = (True, True)

Reply = asyncio.Future[Any]


async def in_state(state: State) -> tuple[SubscriptionLedger, Subscription, Reply]:
    """A ledger with topic `a` in this state, its entry and a reply; the entry is given up if there is none."""
    ledger = SubscriptionLedger({})
    entry = ledger.want(b"a", is_logged=True)
    reply: Reply = asyncio.get_running_loop().create_future()
    if state is None:
        ledger.give_up(b"a")
    elif state[0]:
        entry.asked = reply
        if state[1]:
            assert ledger.confirm(entry, reply)
    return ledger, entry, reply


def state_of(ledger: SubscriptionLedger) -> State:
    entry = ledger.get(b"a")
    return None if entry is None else (entry.asked is not None, entry.is_confirmed)


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
        (WANTED, "confirm", WANTED, False),
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
        (ASKED, "finish_confirmed", ASKED, None),
        (CONFIRMED, "finish_confirmed", CONFIRMED, None),
    ],
)
async def test_the_table(before: State, event: str, after: State, answer: object) -> None:
    """Each event in each state leads to one state, and says whether something is to be sent."""
    ledger, entry, reply = await in_state(before)
    events: dict[str, Callable[[], object]] = {
        "want": lambda: ledger.want(b"a", is_logged=True).asked is not None,
        "give_up": lambda: ledger.give_up(b"a"),
        "confirm": lambda: ledger.confirm(entry, reply),
        "refuse": lambda: ledger.refuse(entry, ERROR),
        "disconnect": lambda: ledger.disconnect(),
        "fail_waiters": lambda: ledger.fail_waiters(ERROR),
        "finish_confirmed": lambda: ledger.finish_confirmed(),
    }
    assert events[event]() is answer
    assert state_of(ledger) == after
    assert len(ledger) == len(list(ledger)) == (after is not None)


async def waiter_of(entry: Subscription) -> asyncio.Future[None]:
    waiter = asyncio.get_running_loop().create_future()
    entry.waiters.append(waiter)
    return waiter


@pytest.mark.parametrize(
    ("event", "error"),
    [("give_up", None), ("refuse", ERROR), ("fail_waiters", ERROR), ("finish_confirmed", None)],
)
async def test_who_waits_is_told(event: str, error: Exception | None) -> None:
    """A partition that is live and a giving up end the waiting; a refusal and an overdue link with the error."""
    ledger, entry, reply = await in_state(ASKED)
    waiters = [await waiter_of(entry) for _ in range(2)]
    assert ledger.is_awaited
    waiters[0].cancel()
    if event == "give_up":
        ledger.give_up(b"a")
    elif event == "refuse":
        ledger.refuse(entry, ERROR)
    elif event == "fail_waiters":
        ledger.fail_waiters(ERROR)
    else:
        ledger.confirm(entry, reply)
        ledger.finish_confirmed()
    assert waiters[0].cancelled() and waiters[1].exception() is error
    assert entry.waiters == [] and not ledger.is_awaited


async def test_a_confirmation_is_not_enough() -> None:
    """Who waits for a topic waits until its partition is live, too; for one that is not confirmed, longer."""
    ledger, entry, reply = await in_state(ASKED)
    other = ledger.want(b"b", is_logged=True)
    waiter, patient = await waiter_of(entry), await waiter_of(other)
    assert ledger.confirm(entry, reply) and not waiter.done()
    ledger.finish_confirmed()
    assert waiter.done() and not patient.done()


async def test_who_waits_through_a_reconnect() -> None:
    """The end of a connection leaves those who wait waiting: the next confirmation is for them."""
    ledger, entry, old = await in_state(ASKED)
    waiter = await waiter_of(entry)
    ledger.disconnect()
    assert not waiter.done()
    entry.asked = new = asyncio.get_running_loop().create_future()
    assert not ledger.confirm(entry, old)
    assert ledger.confirm(entry, new)
    ledger.finish_confirmed()
    assert waiter.done() and waiter.exception() is None


async def test_an_old_reply_is_for_nobody() -> None:
    """A topic that was given up and wanted again is not confirmed, nor refused, by the reply to the old one."""
    ledger, old, old_reply = await in_state(ASKED)
    ledger.give_up(b"a")
    new = ledger.want(b"a", is_logged=True)
    new.asked = asyncio.get_running_loop().create_future()
    waiter = await waiter_of(new)
    assert not ledger.confirm(old, old_reply)
    assert not ledger.confirm(new, old_reply)
    ledger.refuse(old, ERROR)
    assert state_of(ledger) == ASKED and not waiter.done() and ledger.get(b"a") is new
    assert ledger.confirm(new, new.asked)


def test_ledgers_share_an_index() -> None:
    """What arrives finds its entry by the topic, of whichever ledger; one that is wanted anew has a new entry."""
    index: dict[bytes, Subscription] = {}
    ledgers = [SubscriptionLedger(index) for _ in range(2)]
    first, second = ledgers[0].want(b"a", is_logged=True), ledgers[1].want(b"b", is_logged=False)
    assert index == {b"a": first, b"b": second}
    assert (first.is_logged, second.is_logged) == (True, False)
    assert ledgers[0].want(b"a", is_logged=True) is first
    assert not ledgers[1].give_up(b"a") and index[b"a"] is first
    ledgers[0].give_up(b"a")
    assert set(index) == {b"b"}
    assert ledgers[0].want(b"a", is_logged=True) is index[b"a"] is not first
    ledgers[1].disconnect()
    assert set(index) == {b"a", b"b"}


def test_iteration_bears_changes() -> None:
    """Topics may be given up and wanted while the ledger is gone through."""
    ledger = SubscriptionLedger({})
    for name in (b"a", b"b", b"c"):
        ledger.want(name, is_logged=True)
    for entry in ledger:
        ledger.give_up(entry.topic)
        ledger.want(entry.topic + b"2", is_logged=True)
    assert sorted(entry.topic for entry in ledger) == [b"a2", b"b2", b"c2"]


TOPICS = st.sampled_from([b"a", b"b"])


class LastWordMachine(RuleBasedStateMachine):
    """
    A ledger, a link that comes and goes or moves, and a server that answers later and in order.

    The owner sends what the ledger says. Whenever everything is answered, the server has exactly what is wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.index: dict[bytes, Subscription] = {}
        self.ledger = SubscriptionLedger(self.index)
        self.wanted: set[bytes] = set()
        self.is_up = False
        self.subscribed: set[bytes] = set()
        self.commands: deque[tuple[bytes, Subscription | None, Reply | None]] = deque()
        self.replies: deque[tuple[Subscription, Reply]] = deque()

    def send_subscribe(self, entry: Subscription) -> None:
        entry.asked = self.loop.create_future()
        self.commands.append((entry.topic, entry, entry.asked))

    @rule(topic=TOPICS)
    def want(self, topic: bytes) -> None:
        self.wanted.add(topic)
        entry = self.ledger.want(topic, is_logged=True)
        if self.is_up and entry.asked is None:
            self.send_subscribe(entry)

    @rule(topic=TOPICS)
    def give_up(self, topic: bytes) -> None:
        self.wanted.discard(topic)
        if self.ledger.give_up(topic) and self.is_up:
            self.commands.append((topic, None, None))

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
    def move(self) -> None:
        """To another connection that is up: what the last one still answers confirms nothing."""
        late = list(self.replies)
        self.lose(executed=0)
        self.connect()
        for entry, reply in late:
            assert not self.ledger.confirm(entry, reply)

    @rule()
    def execute(self) -> None:
        if self.commands:
            topic, entry, reply = self.commands.popleft()
            if entry is None or reply is None:
                self.subscribed.discard(topic)
            else:
                self.subscribed.add(topic)
                self.replies.append((entry, reply))

    @rule()
    def reply(self) -> None:
        if self.replies:
            self.ledger.confirm(*self.replies.popleft())

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
        assert {entry.topic for entry in self.ledger} == set(self.index) == self.wanted
        assert all(self.index[entry.topic] is entry for entry in self.ledger)

    @invariant()
    def what_is_confirmed_is_subscribed(self) -> None:
        for entry in self.ledger:
            if entry.is_confirmed:
                assert self.is_up and entry.asked is not None
                assert entry.topic in self.subscribed
                assert entry.topic not in {topic for topic, *_ in self.commands}

    def teardown(self) -> None:
        self.loop.close()


TestLastWordMachine = LastWordMachine.TestCase
TestLastWordMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
