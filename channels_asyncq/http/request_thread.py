"""Lets go of the thread that Django keeps for a request, with the database connections of that thread."""

from __future__ import annotations

import asyncio

from asgiref.sync import SyncToAsync
from django.db import connections


async def release() -> None:
    """
    End the thread of the current request, and close its database connections.

    Django runs the sync code of each request in a thread of the request, and keeps it until the response has
    ended. A stream may be open for hours. Sync code that runs later for this request gets a new thread.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None or getattr(context, "_executor", None) is not None:
        return  # no thread of the request's own: there is none, or its owner shares it
    executor = SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is None:
        return
    try:
        # In the thread: a connection is closed by the thread that opened it.
        await asyncio.get_running_loop().run_in_executor(executor, connections.close_all)
    finally:
        executor.shutdown(wait=False)
