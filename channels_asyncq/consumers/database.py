"""Whether a thread's database connections are due to be closed, as seen from the event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from time import monotonic

from asgiref.sync import SyncToAsync, sync_to_async
from channels import db
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

# The connection wrappers that were opened in each thread. Event loops read the tuples: a tuple is never changed,
# and only its own thread replaces it. Wrappers die with their thread.
_opened: dict[int, tuple[weakref.ref[BaseDatabaseWrapper], ...]] = {}


# The thread of the database code of each ThreadSensitiveContext, or of an event loop outside one, since a visit.
_threads: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()


def _note(connection: BaseDatabaseWrapper) -> None:
    thread = threading.get_ident()
    known = _opened.get(thread, ())
    if not any(reference() is connection for reference in known):
        alive = (reference for reference in known if reference() is not None)
        _opened[thread] = (*alive, weakref.ref(connection))


def _on_connection_created(connection: BaseDatabaseWrapper, **_: object) -> None:
    _note(connection)


connection_created.connect(_on_connection_created, dispatch_uid="channels_asyncq.consumers.database")


def _close_old_connections() -> int:
    # Looked up where Channels looks it up, because tests replace it there.
    db.close_old_connections()  # type: ignore[attr-defined]
    # Also those that were opened before this module was imported, or lent to this thread by another.
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            _note(connection)
    return threading.get_ident()


async def close_old_connections() -> int:
    """
    Call `django.db.close_old_connections()` in the thread of the caller's database code.

    Returns that thread, for `is_due()`; it stays the same for a consumer's whole life.
    """
    thread = await sync_to_async(_close_old_connections)()
    _threads[_owner()] = thread
    return thread


def known_thread() -> int | None:
    """Return the thread of the caller's database code, None if nobody has visited it yet."""
    return _threads.get(_owner())


def _owner() -> object:
    return SyncToAsync.thread_sensitive_context.get(None) or asyncio.get_running_loop()


def is_due(thread: int) -> bool:
    """
    Tell whether `close_old_connections()` would find anything to do in this thread.

    It changes nothing. A connection that the thread is using just now may seem due; the call then waits for the
    thread, as Channels' consumers always do.
    """
    for reference in _opened.get(thread, ()):
        connection = reference()
        if connection is not None and connection.connection is not None and _would_act(connection):
            return True
    return False


def _would_act(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether `close_if_unusable_or_obsolete()` would change anything about an open connection."""
    if (
        type(connection).close_if_unusable_or_obsolete
        is not BaseDatabaseWrapper.close_if_unusable_or_obsolete
    ):
        return True  # a backend that decides for itself
    # Django's clock, not ours: a test that freezes it freezes `close_at` as well.
    close_at = connection.close_at
    return (
        (close_at is not None and monotonic() >= close_at)
        or connection.errors_occurred
        # The next query has to check the health of the connection again.
        or (connection.health_check_done and connection.health_check_enabled)  # type: ignore[attr-defined]
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
    )
