"""Ends the connections of a user, or the sessions too."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.db import router, transaction
from django.utils.module_loading import import_string
from django.utils.timezone import now

from .. import threads
from ..messages.closing import SIGNED_OUT, Close, close_of
from .names import user_group
from .sessions import end
from .telling import atell, tell, tell_in_time

# Rows that are read at once.
_ROWS = 1000


def disconnect_user(user: Any, code: int = SIGNED_OUT, reason: str = "signed out") -> None:
    """
    Close the WebSockets and streams of a user, in all processes. The sessions stay: the user may connect again.

    In a transaction of the user's database they are closed after the commit, and not if it is rolled back. An
    error after the commit is logged as `session.untold`.

    Args:
        code: of the close frame. With 4000 to 4499 clients do not come back by themselves.
        reason: at most 123 bytes.

    Raises:
        RuntimeError: an event loop runs in this thread; await `adisconnect_user()` there.
        TypeError, ValueError: the code or the reason is nothing that a server may send.
        LayerUnavailable, DeliveryUnknown, LayerClosed: as `group_send()`.
    """
    close = close_of({"code": code, "reason": reason})
    _refuse_on_a_loop("disconnect_user")
    using = router.db_for_write(get_user_model(), instance=user)
    if transaction.get_connection(using).in_atomic_block:
        tell_in_time(user_group(user), close, using)
    else:
        tell(user_group(user), close)


async def adisconnect_user(user: Any, code: int = SIGNED_OUT, reason: str = "signed out") -> None:
    """
    Close the WebSockets and streams of a user, in all processes. As `disconnect_user()`, at once.

    Cancelling may leave some of them open.
    """
    await atell(user_group(user), close_of({"code": code, "reason": reason}))


def logout_everywhere(user: Any) -> int:
    """
    Delete all sessions of a user, then close the connections with 4401. Returns the number of sessions.

    It reads every session that has not expired, because sessions have no column for the user. In a
    transaction of the sessions' database the connections are closed after the commit. An error of the channel
    layer is logged as `session.untold`: the sessions are gone all the same.

    Raises:
        RuntimeError: an event loop runs in this thread; await `alogout_everywhere()` there.
        ImproperlyConfigured: SESSION_ENGINE cannot list sessions.
        TypeError: it is no user of the database.
    """
    _refuse_on_a_loop("logout_everywhere")
    group = user_group(user)
    store = _store()
    model: Any = store().model  # type: ignore[attr-defined]
    key = user._meta.pk.value_to_string(user)
    using = router.db_for_write(model)
    ended = 0
    for row in model.objects.filter(expire_date__gt=now()).iterator(chunk_size=_ROWS):
        if str(row.get_decoded().get(SESSION_KEY)) == key:
            end(store, row.session_key, using)  # where there is a cache, from there too
            ended += 1
    tell_in_time(group, Close(SIGNED_OUT, "signed out"), using)
    return ended


async def alogout_everywhere(user: Any) -> int:
    """Delete all sessions of a user, then close the connections. As `logout_everywhere()`, in a thread."""
    return await database_sync_to_async(logout_everywhere)(user)


def _store() -> type[SessionBase]:
    store: type[SessionBase] = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
    if not hasattr(store, "model"):
        raise ImproperlyConfigured(
            f"logout_everywhere() needs sessions in a database, which can be listed; with SESSION_ENGINE="
            f"{settings.SESSION_ENGINE!r} use 'django.contrib.sessions.backends.cached_db', or change the user's "
            "password, which ends the sessions too"
        )
    return store


def _refuse_on_a_loop(name: str) -> None:
    if threads.is_on_a_loop():
        raise RuntimeError(
            f"channels_asyncq.auth.{name}() would block the event loop that runs in this thread: "
            f"use `await a{name}(...)` here"
        )
