"""A forked child starts afresh: it uses and ends nothing that it has inherited."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from ..bus.memory import namespaces
from ..process import relay


class Inheritor(Protocol):
    """Something that a forked child must make anew. Implemented by `session.registry.SessionRegistry`."""

    def start_afresh_in_child(self) -> object:
        """Start afresh; return everything that was inherited."""


_inheritors: weakref.WeakSet[Inheritor] = weakref.WeakSet()
# The objects that a forked child has inherited. They are never closed, aborted or collected: that would take
# their descriptors out of the selector that the child shares with its parent, and the parent would go deaf.
_inherited: list[object] = []
_pid = os.getpid()


def start_afresh_after_forks(inheritor: Inheritor) -> None:
    """Have an object start afresh in each forked child."""
    _inheritors.add(inheritor)


def is_unnoticed() -> bool:
    """Tell whether this is a child that was forked in C, as uWSGI does: Python's hooks did not run there."""
    return os.getpid() != _pid


def notice_fork() -> None:
    """Start afresh in a child in which Python's hooks did not run."""
    if is_unnoticed():
        _after_fork_in_child()


def running_relay() -> relay.Relay:
    """Return the relay of this process."""
    notice_fork()
    return relay.relay()


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    _inherited.append(relay.after_fork_in_child())
    namespaces.after_fork_in_child()
    _inherited.extend(inheritor.start_afresh_in_child() for inheritor in list(_inheritors))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
