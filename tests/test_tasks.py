"""Several awaitables at once: results, the first error, cancellation, and both in one turn of the loop."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq.tasks import all_of


async def value(number: int, event: asyncio.Event | None = None) -> int:
    if event is not None:
        await event.wait()
    return number


class Forever:
    """A coroutine that ends by cancellation alone, and takes a turn of the loop for that."""

    def __init__(self) -> None:
        self.has_ended = False

    async def run(self) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.has_ended = True
        return 0


async def failing(event: asyncio.Event) -> int:
    await event.wait()
    raise ConnectionResetError("lost")


async def test_the_results_are_in_order() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await all_of([value(1, event), value(2), value(3, event)]) == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 1])
async def test_few(count: int) -> None:
    assert await all_of(value(number) for number in range(count)) == list(range(count))


async def test_an_error_ends_the_others() -> None:
    event, forever = asyncio.Event(), Forever()
    asyncio.get_running_loop().call_soon(event.set)
    with pytest.raises(ConnectionResetError, match="lost"):
        await all_of([forever.run(), failing(event), value(1)])
    assert forever.has_ended


async def test_of_two_errors_the_first_in_the_list_is_raised() -> None:
    event = asyncio.Event()
    event.set()

    async def other() -> int:
        raise ValueError("other")

    with pytest.raises(ConnectionResetError):
        await all_of([failing(event), other()])


async def test_cancelling_ends_all() -> None:
    first, second = Forever(), Forever()
    task = asyncio.create_task(all_of([first.run(), second.run()]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.has_ended
    assert second.has_ended


async def test_an_error_in_the_turn_of_a_cancellation_does_not_hide_it() -> None:
    """A reader that came back went on reading after it was cancelled, if a read failed in the same turn."""
    loop = asyncio.get_running_loop()
    event, forever = asyncio.Event(), Forever()
    task = asyncio.create_task(all_of([failing(event), forever.run()]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event.set()  # the first fails in the next turn,
    loop.call_soon(task.cancel)  # and this is called in the same
    with pytest.raises(asyncio.CancelledError):
        await task
    assert forever.has_ended
