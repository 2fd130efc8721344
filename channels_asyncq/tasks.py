"""Several awaitables at once, without losing a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def all_of(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """
    Await all of these at once; return their results, in order.

    The first error ends all the others, and is raised when they have ended. Cancelling ends all of them. It is
    never lost: `asyncio.gather()` raises the error of one of them in its place if that comes in the same turn of
    the loop, and a caller that goes on after the error is not cancelled then.
    """
    wanted = list(awaitables)
    if len(wanted) < 2:
        return [await awaitable for awaitable in wanted]
    futures = [asyncio.ensure_future(awaitable) for awaitable in wanted]
    failed: list[asyncio.Future[T]] = []
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and _has_failed(future)]
    finally:
        if unfinished := [future for future in futures if not future.done()]:
            for future in unfinished:
                future.cancel()
            await asyncio.wait(unfinished)
        for future in futures:
            _has_failed(future)
    return [future.result() for future in failed or futures]


def _has_failed(future: asyncio.Future[T]) -> bool:
    """Tell whether a future that is done has an error, which counts as retrieved from now on."""
    return future.cancelled() or future.exception() is not None
