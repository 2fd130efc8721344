"""Long work in slices: order, the time of a turn, errors, ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from channels_asyncq.slices import SHORT, SLICE, Slice, Slices, Turnstile
from tests.clock import Clock
from tests.contract import ended, every, started, steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["slices"])
    return clock


class Work:
    """Slices on the running loop, what was done in each turn of it, and how often they were idle again."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.done: list[str] = []
        self.idle = 0
        self.slices = Slices(asyncio.get_running_loop(), owner=self)

    def on_idle(self) -> None:
        self.idle += 1

    def job(self, name: str, count: int, *, must_end: bool = False, fails: bool = False) -> Iterator[bool]:
        """Work of 0.22 slices between two yields."""
        for number in range(count):
            self.clock.turn(0.22 * SLICE)
            self.done.append(f"{name}{number}")
            yield must_end
        if fails:
            raise ValueError(name)


@pytest.fixture
async def work(clock: Clock) -> Work:
    return Work(clock)


async def test_what_is_short_is_done_at_once(work: Work) -> None:
    """What fits into a slice is done when run() returns, and nobody is told that it is idle again."""
    work.slices.run(work.job("a", 3))
    assert work.done == ["a0", "a1", "a2"] and not work.slices.is_busy
    await steps(3)
    assert work.idle == 0


async def test_one_after_the_other(work: Work) -> None:
    """Jobs are done in the order in which they came, a slice in each turn of the loop."""
    work.slices.run(work.job("a", 12))
    work.slices.run(work.job("b", 2))
    assert work.slices.is_busy
    counts = [len(work.done)]
    while work.slices.is_busy:
        await steps(1)
        counts.append(len(work.done))
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= 5
    assert work.done == [f"a{n}" for n in range(12)] + ["b0", "b1"]
    assert work.idle == 1


async def test_a_job_that_must_end_its_slice(work: Work) -> None:
    """A job may give up the rest of its slice."""
    work.slices.run(work.job("a", 3, must_end=True))
    assert work.done == ["a0"] and work.slices.is_busy
    await steps(1)
    assert work.done == ["a0", "a1"]
    await work.slices.idle()
    assert len(work.done) == 3


async def test_jobs_of_one_turn_share_its_slice(work: Work) -> None:
    """After a slice the turn is over for all jobs, also if each is done."""
    for name in "abc":
        work.slices.run(work.job(name, 2))
    assert len(work.done) == 5 and work.slices.is_busy
    await work.slices.idle()
    assert len(work.done) == 6
    work.clock.turn(1.0)
    work.slices.run(work.job("d", 4))
    assert len(work.done) == 10 and not work.slices.is_busy, "a later one has a slice of its own"


async def test_a_job_that_fails(work: Work) -> None:
    """It raises where it is, is not tried again, and those behind it are done."""
    with pytest.raises(ValueError, match="a"):
        work.slices.run(work.job("a", 1, fails=True))
    assert not work.slices.is_busy
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: errors.append(context["exception"])
    )
    work.slices.run(work.job("b", 7, fails=True))
    work.slices.run(work.job("c", 1))
    await work.slices.idle()
    assert work.done[-1] == "c0" and [str(error) for error in errors] == ["b"]
    assert work.idle == 1


async def test_a_job_that_gives_another_one(work: Work) -> None:
    """It is done behind the first, never inside it."""

    def job() -> Iterator[bool]:
        work.slices.run(work.job("inner", 1))
        work.done.append("outer")
        yield False

    work.slices.run(job())
    assert work.done == ["outer", "inner0"] and not work.slices.is_busy


async def test_clear(work: Work) -> None:
    """What is unfinished is dropped, and what comes next has its turn."""
    work.slices.run(work.job("a", 100))
    work.slices.clear()
    work.slices.run(work.job("b", 1))
    await work.slices.idle()
    assert work.done == ["a0", "a1", "a2", "a3", "a4", "b0"]


async def test_idle_cancelled(work: Work) -> None:
    """Who waits for the end may be cancelled; the work goes on, and others who wait are told."""
    await work.slices.idle()
    work.slices.run(work.job("a", 60))
    first, second = asyncio.create_task(work.slices.idle()), asyncio.create_task(work.slices.idle())
    await steps(2)
    first.cancel()
    await every([second])
    assert first.cancelled() and len(work.done) == 60


async def test_a_coroutine_rests(clock: Clock) -> None:
    """A coroutine gives the loop a turn whenever its time is over, and not before."""
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    turn()
    slice = Slice()
    for _ in range(3):
        clock.turn(SHORT / 4)
        await slice.rest()
    assert turns == 1
    clock.turn(SLICE)
    await slice.rest()
    assert turns == 2
    await slice.rest()
    assert turns == 2


async def test_resting_cancelled(clock: Clock) -> None:
    """Cancelling ends the coroutine and nothing else."""
    slice = Slice()

    async def work() -> None:
        while True:
            clock.turn(SLICE)
            await slice.rest()

    task = await started(work())
    task.cancel()
    await ended(task)
    assert task.cancelled()


class Crowd:
    """Tasks that pass through a turnstile, and how long each turn of the loop took because of them."""

    def __init__(self, clock: Clock) -> None:
        self.turnstile = Turnstile(asyncio.get_running_loop())
        self.passed: list[int] = []
        self.turns: list[float] = []
        self._clock = clock
        self._now = clock.now

    async def come(self, number: int, seconds: float) -> None:
        await self.turnstile.pass_through()
        self.passed.append(number)
        self._clock.turn(seconds)

    async def watch(self) -> None:
        while True:
            self.turns.append(self._clock.now - self._now)
            self._now = self._clock.now
            await asyncio.sleep(0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9, 3.0])
async def test_a_crowd_passes_in_turns(clock: Clock, share: float) -> None:
    """In their order; one turn takes no longer than two slices and one task."""
    crowd = Crowd(clock)
    watching = asyncio.create_task(crowd.watch())
    await every(crowd.come(number, share * SLICE) for number in range(200))
    watching.cancel()
    assert crowd.passed == list(range(200))
    assert max(crowd.turns) <= (2 + share) * SLICE
    # Few turns are nearly empty.
    assert len(crowd.turns) < 20 + 200 * max(share, 0.02) * 4


async def test_a_task_of_a_crowd_that_is_cancelled(clock: Clock) -> None:
    """It takes nobody's turn."""
    crowd = Crowd(clock)
    tasks = [asyncio.create_task(crowd.come(number, SLICE)) for number in range(10)]
    await steps(1)
    for task in tasks[2:9]:
        task.cancel()
    await asyncio.wait(tasks)
    assert crowd.passed == [0, 1, 9]


async def test_one_task_passes_at_once(clock: Clock) -> None:
    """Nothing waits where there is no crowd."""
    crowd = Crowd(clock)
    for number in range(3):
        task = asyncio.create_task(crowd.come(number, 0.1 * SLICE))
        await steps(1)
        assert task.done()
