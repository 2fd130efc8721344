"""Closes sessions on their own event loops, from any thread."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection
from concurrent.futures import Future

from .. import threads
from ..process import relay
from .session import Session

_CLOSE_SECONDS = 2.0
# Held until they are done: a loop holds its tasks weakly.
_closing: set[asyncio.Task[None]] = set()


def close_session(session: Session) -> Future[None]:
    """Close a session on its own loop; the future completes when it has ended."""
    done: Future[None] = Future()

    def begin() -> None:
        # Created here: a loop that stops first never runs this, and a coroutine would be left unawaited.
        task = session.loop.create_task(session.close(), context=contextvars.Context())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
        task.add_done_callback(lambda task: done.set_result(None))

    try:
        session.loop.call_soon_threadsafe(begin)
    except RuntimeError:  # the loop is closed
        session.let_go()
        done.set_result(None)
    return done


async def close_sessions(sessions: Collection[Session], timeout: float) -> None:  # noqa: ASYNC109
    """Close sessions, and wait for those of running loops: those of other loops for `timeout` seconds at most."""
    here = asyncio.get_running_loop()
    elsewhere = []
    for session in sessions:
        if session.loop is not here:
            closing = close_session(session)
            # A loop that stands still closes its session when it runs again.
            if session.loop.is_running():
                elsewhere.append(asyncio.wrap_future(closing))
    for session in sessions:
        if session.loop is here:
            await session.close()
    if elsewhere:
        # Bounded, because a loop may stop just now.
        await asyncio.wait(elsewhere, timeout=timeout)


def close_sessions_from_thread(sessions: Collection[Session]) -> None:
    """Close sessions; wait for the relay's at most two seconds, and for no other: its loop may wait for us."""
    relays = relay.relay().loop
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    for session in sessions:
        closing = close_session(session)
        if session.loop is relays and session.loop is not here:
            _wait_for(closing)


def _wait_for(closing: Future[None]) -> None:
    """Block the thread until a session has ended, for a bounded time."""
    # Not by result(): eventlet replaces the lock in there, and no other thread can wake a greenlet.
    done = threads.lock()
    done.acquire()
    closing.add_done_callback(lambda closing: done.release())
    done.acquire(timeout=_CLOSE_SECONDS)
