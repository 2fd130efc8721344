"""Receivers of Django's signals: a user signs out, is changed, or is deleted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model, user_logged_out
from django.db import router
from django.db.models.signals import post_delete, post_save, pre_save

from ..messages.closing import NEW_SESSION, SIGNED_OUT, UNAUTHORIZED, Close
from .guard import guarded
from .names import session_group, user_group
from .sessions import Claim, claim_of, end, is_in_cookie
from .telling import tell_in_time

_SIGNED_OUT = Close(SIGNED_OUT, "signed out")
_CHANGED = Close(UNAUTHORIZED, "the password has changed", NEW_SESSION)
# The attribute of a user that is being saved which says whether that ends the sessions.
_ENDS_SESSIONS = "_asyncq_ends_sessions"


def connect() -> None:
    """Connect the receivers, also for models that inherit from that of users, and for its proxies."""
    user_logged_out.connect(on_logged_out, dispatch_uid="channels_asyncq.auth")
    user_model = get_user_model()
    for model in apps.get_models():
        if issubclass(model, user_model):
            pre_save.connect(on_saving, model, dispatch_uid="channels_asyncq.auth")
            post_save.connect(on_saved, model, dispatch_uid="channels_asyncq.auth")
            post_delete.connect(on_deleted, model, dispatch_uid="channels_asyncq.auth")


def on_logged_out(sender: object, request: Any, **_: object) -> None:
    """Close the connections of a session when it is gone. The signal comes before Django deletes it."""
    claim = _claim_of(request)
    if claim is None:
        return
    model: Any = getattr(claim.store(claim.key), "model", None)
    using = None if model is None else router.db_for_write(model)
    # Else a socket that connects after the message, and before Django deletes the session, would stay.
    end(claim.store, claim.key, using)
    tell_in_time(session_group(claim.key), _SIGNED_OUT, using)


def _claim_of(request: Any) -> Claim | None:
    if request is None:
        return guarded.get()  # channels.auth.logout(), in a consumer
    session = getattr(request, "session", None)
    if session is None or is_in_cookie(type(session)):
        return None
    return claim_of(session)


def on_saving(
    sender: Any,
    instance: Any,
    raw: bool,
    using: str,
    update_fields: Collection[str] | None,
    **_: object,
) -> None:
    """Compare a user with the stored one: is the session hash another one, or is the user not active any more?"""
    vars(instance).pop(_ENDS_SESSIONS, None)
    only_a_login = update_fields is not None and set(update_fields) <= {"last_login"}
    if raw or only_a_login or instance.pk is None:
        return
    stored = sender._base_manager.using(using).filter(pk=instance.pk).first()
    if stored is None:
        return
    before = _standing(stored)
    if update_fields is None:
        after = _standing(instance)
    else:
        for name in update_fields:
            attribute = instance._meta.get_field(name).attname  # of a relation the key, without a query
            setattr(stored, attribute, getattr(instance, attribute))
        after = _standing(stored)
    setattr(instance, _ENDS_SESSIONS, before != after)


def _standing(user: Any) -> tuple[str, bool]:
    """Return what the sessions of a user depend on."""
    auth_hash = user.get_session_auth_hash() if hasattr(user, "get_session_auth_hash") else ""
    return auth_hash, bool(getattr(user, "is_active", True))


def on_saved(sender: object, instance: Any, using: str, **_: object) -> None:
    """Close the connections of a user whose sessions have ended. The browser that changed it comes back."""
    if vars(instance).pop(_ENDS_SESSIONS, False):
        tell_in_time(user_group(instance), _CHANGED, using)


def on_deleted(sender: object, instance: Any, using: str, **_: object) -> None:
    """Close the connections of a user who was deleted."""
    tell_in_time(user_group(instance), _SIGNED_OUT, using)
