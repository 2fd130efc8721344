"""
Python's own locks, threads and selectors, also where gevent or eventlet has replaced them.

There a thread is a greenlet, and an event loop in one would be the running loop of all others of its thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

_GEVENT = "gevent.monkey"
_EVENTLET = "eventlet.patcher"


class Joinable(Protocol):
    """A thread that was started."""

    def join(self, timeout: float | None = None) -> None: ...


def _patcher() -> ModuleType | None:
    """
    Return the module that has made greenlets take turns in this process, or None.

    It may have left threads alone: where a greenlet that reads lets others run, one that sends must too.
    """
    gevent = sys.modules.get(_GEVENT)
    if gevent is not None and (gevent.is_module_patched("threading") or gevent.is_module_patched("socket")):
        return gevent
    eventlet = sys.modules.get(_EVENTLET)
    if eventlet is not None and (
        eventlet.is_monkey_patched("thread") or eventlet.is_monkey_patched("socket")
    ):
        return eventlet
    return None


def are_greenlets() -> bool:
    """Whether threads are greenlets in this process. It may begin late: gunicorn patches after `--preload`."""
    return _patcher() is not None


def original(module: str, name: str) -> Any:
    """Return what a name of a module of the standard library means when nobody has replaced it."""
    patcher = _patcher()
    if patcher is None:
        return getattr(importlib.import_module(module), name)
    if patcher.__name__ == _GEVENT:
        return patcher.get_original(module, name)
    return getattr(patcher.original(module), name)


def lock() -> threading.Lock:
    """Return a lock between threads. It must not be held where a greenlet may be switched."""
    if not are_greenlets():
        return threading.Lock()
    made: threading.Lock = original("_thread", "allocate_lock")()
    return made


def selector() -> selectors.BaseSelector:
    """Return the best selector of this system, which blocks its thread and no other."""
    patcher = _patcher()
    if patcher is not None and patcher.__name__ == _EVENTLET:
        best = _selectors_without_eventlet(patcher).DefaultSelector
    else:
        best = original("selectors", "DefaultSelector")
    made: selectors.BaseSelector = best()
    return made


def _selectors_without_eventlet(patcher: ModuleType) -> ModuleType:
    # eventlet's own copy was made when `select` had lost its epoll, and takes no more than 1024 files.
    spec = importlib.util.find_spec("selectors")
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    replaced, sys.modules["select"] = sys.modules["select"], patcher.original("select")
    try:
        spec.loader.exec_module(copy)
    finally:
        sys.modules["select"] = replaced
    return copy


def start(target: Callable[[], None], name: str) -> Joinable:
    """Start a daemon thread: other threads are joined before atexit handlers run."""
    if are_greenlets():
        return _RealThread(target)
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class _RealThread:
    """A thread beside that of the greenlets. Nobody joins it at the exit."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._runs = lock()
        self._runs.acquire()
        original("_thread", "start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._runs.release()

    def join(self, timeout: float | None = None) -> None:
        if self._runs.acquire(timeout=-1 if timeout is None else timeout):
            self._runs.release()


class Bell:
    """What a greenlet waits for while others run: a thread rings it once."""

    def __init__(self) -> None:
        # Replaced too: reading from it switches to other greenlets.
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)

    def ring(self) -> None:
        """From any thread; of no effect once it is closed."""
        try:
            self._theirs.send(b"!")
        except OSError:
            pass

    def wait(self) -> None:
        self._ours.recv(1)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
