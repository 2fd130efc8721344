"""Gate: the order in which senders get a connection after they had to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq.bus.redis.gate import Gate, Ticket
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.exceptions import LayerUnavailable
from tests.contract import ended, every, started

ONE, OTHER = (cast(WireProtocol, object()) for _ in range(2))
ERROR = LayerUnavailable("redis://nowhere", "no reason")

State = tuple[WireProtocol | None, WireProtocol | None]
SHUT: State = (None, None)
OPENING: State = (ONE, None)
OPEN: State = (ONE, ONE)
# For senders as while it opens, but it stays so.
HELD = OPENING


async def turn(gate: Gate) -> WireProtocol | None:
    """Wait for a turn, and return the connection."""
    await gate.turn(gate.line_up(gate.take_ticket()))
    return gate.at


async def in_state(state: State) -> Gate:
    """A gate in this state; while it opens, somebody has waited and has not had a turn."""
    gate = Gate()
    if state is OPENING:
        await started(turn(gate))
    if state is not SHUT:
        gate.open(ONE)
    assert state_of(gate) == state
    return gate


def state_of(gate: Gate) -> State:
    return gate.at, gate.wire


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (SHUT, "open", OPEN),
        (SHUT, "shut", SHUT),
        (SHUT, "fail", SHUT),
        (OPENING, "a turn", OPEN),
        (OPENING, "shut", SHUT),
        (OPENING, "fail", OPENING),
        (OPENING, "open another", (OTHER, OTHER)),
        (OPENING, "hold", HELD),
        (SHUT, "hold", SHUT),
        (OPEN, "hold", HELD),
        (OPEN, "shut", SHUT),
        (OPEN, "fail", OPEN),
        (OPEN, "open another", (OTHER, OTHER)),
    ],
)
async def test_the_table(before: State, event: str, after: State) -> None:
    """Each event in each state leads to one state."""
    gate = await in_state(before)
    events: dict[str, Callable[[], object]] = {
        "open": lambda: gate.open(ONE),
        "open another": lambda: gate.open(OTHER),
        "shut": gate.shut,
        "hold": gate.hold,
        "fail": lambda: gate.fail(ERROR),
        "a turn": lambda: None,
    }
    events[event]()
    if event == "a turn":
        await asyncio.sleep(0)
    assert state_of(gate) == after


async def test_in_the_order_in_which_they_came() -> None:
    """Who comes while those who waited have not had their turn waits behind them."""
    gate = Gate()
    order: list[str] = []

    async def use(name: str) -> None:
        assert (gate.wire or await turn(gate)) is ONE
        order.append(name)

    tasks = [await started(use(name)) for name in "abc"]
    assert gate
    gate.open(ONE)
    assert gate.wire is None and not order
    tasks += [asyncio.create_task(use(name)) for name in "de"]
    await every(tasks)
    assert order == ["a", "b", "c", "d", "e"]
    await asyncio.sleep(0)
    assert gate.wire is ONE and not gate


async def test_shut_before_they_had_their_turn() -> None:
    """Nobody is let through late: the gate stays shut, whatever was under way."""
    gate = Gate()
    waiting = await started(turn(gate))
    gate.open(ONE)
    later = await started(turn(gate))
    gate.shut()
    await every([waiting])
    for _ in range(5):
        await asyncio.sleep(0)
    assert state_of(gate) == SHUT and gate and not later.done()
    gate.open(OTHER)
    assert await every([later]) == [OTHER]


@pytest.mark.parametrize("event", ["open", "shut"])
async def test_held(event: str) -> None:
    """Until it is opened for another connection, nobody who comes has a turn, also if it was opening."""
    gate = await in_state(OPENING)
    gate.hold()
    later = await started(turn(gate))
    for _ in range(5):
        await asyncio.sleep(0)
    assert state_of(gate) == HELD and not later.done()
    if event == "shut":
        gate.shut()
        assert state_of(gate) == SHUT
    gate.open(OTHER)
    assert await every([later]) == [OTHER]
    await asyncio.sleep(0)
    assert state_of(gate) == (OTHER, OTHER)


@pytest.mark.parametrize("error", [ERROR, ImproperlyConfigured("laid out otherwise")])
async def test_failed(error: Exception) -> None:
    """Everybody who waits has an error of their own, and who comes later waits."""
    gate = Gate()
    waiting = [await started(turn(gate)) for _ in range(3)]
    gate.fail(error)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [type(error)] * 3
    assert len({id(result) for result in [*results, error]}) == 4
    assert not gate
    later = await started(turn(gate))
    assert gate and not later.done()
    gate.open(ONE)
    await every([later])


@pytest.mark.parametrize("when", ["while it waits", "in its turn"])
async def test_cancelled(when: str) -> None:
    """One that is cancelled takes nobody along, and is waited for by nobody."""
    gate = Gate()
    waits: list[Awaitable[WireProtocol | None]] = [await started(turn(gate)) for _ in range(3)]
    second = cast("asyncio.Task[WireProtocol]", waits.pop(1))
    if when == "in its turn":
        gate.open(ONE)
    second.cancel()
    if when == "while it waits":
        await ended(second)
        gate.open(ONE)
    assert await every(waits) == [ONE, ONE]
    assert second.cancelled() and not gate
    await asyncio.sleep(0)
    assert state_of(gate) == OPEN


async def test_an_old_ticket_keeps_its_place() -> None:
    """Who was let through and came too late has its place back; what is sent again comes before all of them."""
    gate = Gate()
    first, second = gate.take_ticket(), gate.take_ticket()
    order: list[str] = []

    async def wait(name: str, ticket: Ticket) -> None:
        await gate.turn(gate.line_up(ticket))
        order.append(name)

    waits = [
        await started(wait("second", second)),
        await started(wait("third", gate.take_ticket())),
        await started(wait("first", first)),
        await started(wait("again", gate.take_ticket(is_resend=True))),
        await started(wait("again, too", gate.take_ticket(is_resend=True))),
    ]
    gate.open(ONE)
    await every(waits)
    assert order == ["again", "again, too", "first", "second", "third"]
