"""The groups of a user's connections, and of a session's."""

from __future__ import annotations

import hashlib
import re
from typing import Any

# Shorter than a group's name may be, by what stands before it.
_PLAIN = re.compile(r"[a-zA-Z0-9_.\-]{1,80}", re.ASCII)


def user_group(user: Any) -> str:
    """
    Return the group that the connections of a user are in: `user.42` for the primary key 42.

    A primary key that cannot stand in the name of a group is hashed: `userhash.<SHA-256>`.

    Raises:
        TypeError: it is no user of the database.
    """
    if getattr(user, "pk", None) is None:
        raise TypeError(f"{user!r} has no primary key, so nobody is signed in as this user")
    return group_of_key(user._meta.pk.value_to_string(user))


def group_of_key(key: str) -> str:
    """Return the same for a primary key as sessions have it, a text."""
    if _PLAIN.fullmatch(key):
        return f"user.{key}"
    return f"userhash.{hashlib.sha256(key.encode()).hexdigest()}"


def session_group(session_key: str) -> str:
    """Return the group of the connections of a session. Its key is a secret, so the name has a digest of it."""
    return f"session.{hashlib.sha256(session_key.encode()).hexdigest()}"
