"""
Python's own locks, threads and selectors, also where gevent or eventlet has replaced them.

There a thread is a greenlet, and an event loop in a greenlet would be the running loop of its whole thread.
"""

from __future__ import annotations

import asyncio
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
    """A thread that was started. Implemented by `threading.Thread` and `threads._RealThread`."""

    def join(self, timeout: float | None = None) -> None: ...


def _patcher() -> ModuleType | None:
    """
    Return the module that has patched threads or sockets in this process, or None.

    With patched sockets alone, too, a greenlet that waits must let the others run.
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
    """Tell whether threads are greenlets in this process. This may change: gunicorn patches after `--preload`."""
    return _patcher() is not None


def is_on_a_loop() -> bool:
    """Tell whether an event loop runs in this thread, which a wait would block."""
    if are_greenlets():
        return False  # the running loop may be that of another greenlet, which goes on meanwhile
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def original(module: str, name: str) -> Any:
    """Return the unpatched object of a name in a module of the standard library."""
    patcher = _patcher()
    if patcher is None:
        return getattr(importlib.import_module(module), name)
    if patcher.__name__ == _GEVENT:
        return patcher.get_original(module, name)
    return getattr(patcher.original(module), name)


def lock() -> threading.Lock:
    """Return a lock between threads. No greenlet may switch while it is held."""
    if not are_greenlets():
        return threading.Lock()
    made: threading.Lock = original("_thread", "allocate_lock")()
    return made


def selector() -> selectors.BaseSelector:
    """Return the best unpatched selector of this system: it blocks only its own thread."""
    patcher = _patcher()
    if patcher is not None and patcher.__name__ == _EVENTLET:
        best = _selectors_without_eventlet(patcher).DefaultSelector
    else:
        best = original("selectors", "DefaultSelector")
    made: selectors.BaseSelector = best()
    return made


def _selectors_without_eventlet(patcher: ModuleType) -> ModuleType:
    # eventlet's own copy was made after it had removed epoll from `select`: it takes at most 1024 files.
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
    """Start a daemon thread. (Threads that are no daemons are joined before atexit handlers run.)"""
    if are_greenlets():
        return _RealThread(target)
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _leave_hub() -> None:
    """
    Take apart the hub that a patched socket made in this thread, before the thread ends.

    Left to the garbage collector it may crash the process: greenlet frees the main greenlet of an ended thread
    that only garbage refers to, and the collector visits it afterwards.
    """
    patcher = _patcher()
    if patcher is None:
        return
    if patcher.__name__ == _GEVENT:
        importlib.import_module("gevent").get_hub().destroy(destroy_loop=True)
    else:
        # The hub, its greenlet and the bound method that it would run refer to each other.
        importlib.import_module("eventlet.hubs").get_hub().greenlet = None


class _RealThread:
    """A real thread where threads are greenlets. It is not joined at exit."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._runs = lock()
        self._runs.acquire()
        original("_thread", "start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._target()
        finally:
            try:
                _leave_hub()
            finally:
                self._runs.release()

    def join(self, timeout: float | None = None) -> None:
        if self._runs.acquire(timeout=-1 if timeout is None else timeout):
            self._runs.release()


class Bell:
    """An event that a real thread sets once; a greenlet that waits for it lets other greenlets run."""

    def __init__(self) -> None:
        # Patched sockets: a read switches to other greenlets.
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)

    def ring(self) -> None:
        """Set the event, from any thread. Does nothing after `close()`."""
        try:
            self._theirs.send(b"!")
        except OSError:
            pass

    def wait(self) -> None:
        self._ours.recv(1)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
