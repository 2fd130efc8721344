"""The clock of this package, which no test freezes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import ModuleType

__all__ = ["monotonic", "time_ns"]


def _own_copy() -> ModuleType:
    """
    Return another instance of the module `time`, with functions of its own.

    freezegun replaces the functions of `time` in every module that refers to them. A frozen `monotonic()` jumps
    by decades, so that all that waits here would expire, and then stands still. freezegun finds functions by
    identity, so it leaves these alone. They are as fast as those of `time`, and work under a frozen clock too.
    """
    spec = find_spec("time")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_time = _own_copy()

#: `time.monotonic()`, for times that are compared within this process.
monotonic: Callable[[], float] = _time.monotonic
#: `time.time_ns()`, for times that other processes compare with theirs.
time_ns: Callable[[], int] = _time.time_ns
