"""Whether a session still holds: each way in which it may have ended, and that the look writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import override_settings
from django.utils.functional import LazyObject
from django.utils.timezone import now

from channels_asyncq.auth.sessions import Claim, claim_of, holds
from tests.sign_in import BACKEND, new_user, quick_passwords, session_store, sign_in

__all__ = ["quick_passwords"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def claim() -> Claim:
    """The claim of a user who has just signed in."""
    found = claim_of(session_store(sign_in(new_user("ada"))))
    assert found is not None
    return found


def put(key: str, value: Any) -> Callable[[Claim], None]:
    """Return a function that puts something into a session."""

    def change(claim: Claim) -> None:
        session = claim.store(claim.key)
        session[key] = value
        session.save()

    return change


def expire(claim: Claim) -> None:
    Session.objects.filter(session_key=claim.key).update(expire_date=now())


def set_password(claim: Claim) -> None:
    user = User.objects.get(pk=claim.user)
    user.set_password("another")
    user.save()


ENDS: dict[str, Callable[[Claim], Any]] = {
    "deleted": lambda claim: claim.store(claim.key).delete(),
    "expired": expire,
    "another user": put(SESSION_KEY, "4711"),
    "signed out": put(SESSION_KEY, None),
    "unknown backend": put(BACKEND_SESSION_KEY, "some.Backend"),
    "no backend": put(BACKEND_SESSION_KEY, None),
    "user deleted": lambda claim: User.objects.filter(pk=claim.user).delete(),
    "not active": lambda claim: User.objects.filter(pk=claim.user).update(is_active=False),
    "another password": set_password,
    "wrong hash": put(HASH_SESSION_KEY, "0" * 64),
    "no hash": put(HASH_SESSION_KEY, None),
    "empty hash": put(HASH_SESSION_KEY, ""),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_it_has_ended(claim: Claim, end: Callable[[Claim], Any]) -> None:
    """Each of these ends it, and it held before."""
    assert holds(claim)
    end(claim)
    assert not holds(claim)


@pytest.mark.parametrize("end", [set_password, put(HASH_SESSION_KEY, "0" * 64)])
def test_looking_writes_nothing(
    claim: Claim, end: Callable[[Claim], Any], django_assert_num_queries: Any
) -> None:
    """A session that does not hold is Django's to delete, at the next request. A look is two queries."""
    end(claim)
    with django_assert_num_queries(2):
        assert not holds(claim)
    assert Session.objects.filter(session_key=claim.key).exists()


def test_other_changes(claim: Claim) -> None:
    """What else is in the session, or in the user, does not matter."""
    put("basket", [1, 2])(claim)
    User.objects.filter(pk=claim.user).update(first_name="Augusta")
    assert holds(claim)


class Plain:
    """A user of somebody's own backend, without a session hash."""


class PlainBackend(ModelBackend):
    def get_user(self, user_id: Any) -> Any:
        return Plain()


def test_users_without_a_hash(claim: Claim) -> None:
    """Django asks for no hash then either."""
    with override_settings(AUTHENTICATION_BACKENDS=[BACKEND, f"{__name__}.PlainBackend"]):
        put(BACKEND_SESSION_KEY, f"{__name__}.PlainBackend")(claim)
        put(HASH_SESSION_KEY, "")(claim)
        assert holds(claim)


def test_claim_of() -> None:
    """A session without a user, or without a key, claims nothing; one behind a LazyObject what it does itself."""
    assert claim_of(None) is None
    assert claim_of(session_store()) is None
    anonymous = session_store()
    anonymous["basket"] = 1
    anonymous.save()
    assert claim_of(session_store(anonymous.session_key)) is None
    unsaved = session_store()
    unsaved[SESSION_KEY] = "1"
    assert claim_of(unsaved) is None
    key = sign_in(user := new_user("ada"))

    class Lazy(LazyObject):  # type: ignore[type-arg]
        def _setup(self) -> None:
            self._wrapped = session_store(key)

    assert claim_of(Lazy()) == Claim(type(session_store()), key, str(user.pk))
