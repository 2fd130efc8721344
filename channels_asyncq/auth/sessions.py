"""What a session says of its user, and whether it still holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.crypto import constant_time_compare


@dataclass(frozen=True, slots=True)
class Claim:
    """A session with a user. `user` is the primary key as a text."""

    store: type[SessionBase]
    key: str
    user: str


def claim_of(session: Any) -> Claim | None:
    """
    Return the claim of a session, None for a session without a user. May read it from where it is stored.

    Raises:
        ImproperlyConfigured: the session is in a cookie, so only the browser can end it.
    """
    user = None if session is None else session.get(SESSION_KEY)
    if user is None or session.session_key is None:
        return None
    store = session.__class__  # also of what a LazyObject stands for
    if is_in_cookie(store):
        raise ImproperlyConfigured(
            f"SESSION_ENGINE={settings.SESSION_ENGINE!r} keeps sessions in cookies, which only browsers can end; "
            "channels_asyncq.auth needs them on the server: 'django.contrib.sessions.backends.cached_db', for one"
        )
    return Claim(store, session.session_key, str(user))


def is_in_cookie(store: type[SessionBase]) -> bool:
    return any(base.__module__ == "django.contrib.sessions.backends.signed_cookies" for base in store.__mro__)


def end(store: type[SessionBase], key: str, using: str | None) -> None:
    """
    Delete a session; where a transaction on its database is open, once more after the commit.

    Others find it in the database until then, and one that looks for it puts it into the cache again.
    """
    store(key).delete(key)
    if using is not None and transaction.get_connection(using).in_atomic_block:
        transaction.on_commit(partial(store(key).delete, key), using=using, robust=True)


def holds(claim: Claim) -> bool:
    """
    Tell whether a session is still there, and its user may still sign in with the present password.

    `django.contrib.auth.get_user()` asks the same, but it writes: it deletes a session that does not hold, and
    gives a new key to one that holds by a fallback of SECRET_KEY. The browser would not learn that key from here.
    """
    session = claim.store(claim.key)
    if str(session.get(SESSION_KEY)) != claim.user:
        return False
    backend = session.get(BACKEND_SESSION_KEY)
    if backend not in settings.AUTHENTICATION_BACKENDS:
        return False
    key = get_user_model()._meta.pk.to_python(claim.user)
    user: Any = load_backend(str(backend)).get_user(key)
    if user is None:
        return False
    if not hasattr(user, "get_session_auth_hash"):
        return True
    known = session.get(HASH_SESSION_KEY)
    if not known:
        return False
    return constant_time_compare(known, user.get_session_auth_hash()) or any(
        constant_time_compare(known, each) for each in user.get_session_auth_fallback_hash()
    )
