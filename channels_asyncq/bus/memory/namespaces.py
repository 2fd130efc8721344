"""The brokers of a process, by namespace."""

from __future__ import annotations

import weakref

from ... import threads
from .broker import Broker

# The brokers are held by the layers that use them, and by their sessions.
_brokers: dict[tuple[str, int], tuple[weakref.ref[Broker], weakref.WeakSet[object]]] = {}
_brokers_lock = threads.lock()


def broker_for(prefix: str, database: int, user: object) -> Broker:
    """
    Return the broker of a namespace, which lives as long as one of its users.

    Two layers with one prefix share it, as they would share a server. A layer that is made after they are gone
    finds it empty.
    """
    with _brokers_lock:
        for key in [key for key, (_, users) in _brokers.items() if not users]:
            del _brokers[key]
        reference, users = _brokers.get((prefix, database), (None, weakref.WeakSet[object]()))
        broker = (reference and reference()) or Broker()
        _brokers[prefix, database] = weakref.ref(broker), users
        users.add(user)
        return broker


def leave_broker(prefix: str, database: int, user: object) -> None:
    """End one user's interest in a namespace."""
    with _brokers_lock:
        found = _brokers.get((prefix, database))
        if found is not None:
            found[1].discard(user)
            if not found[1]:
                del _brokers[prefix, database]


def after_fork_in_child() -> None:
    """Start with no namespace: a lock may be held by a thread that the child does not have."""
    global _brokers, _brokers_lock
    _brokers, _brokers_lock = {}, threads.lock()
