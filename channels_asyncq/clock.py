"""The clock that everything here goes by, which no test stops."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import ModuleType

__all__ = ["monotonic", "time_ns"]


def _own_copy() -> ModuleType:
    """
    Return another module `time`, with functions of its own.

    freezegun replaces the functions of `time` in every module that holds one: a frozen `monotonic()` jumps by
    decades, so that whatever waits here would expire, and then stands still. It knows them by their identity,
    and does not know these. They are as fast as the others, and real also if the clock is frozen just now.
    """
    spec = find_spec("time")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_time = _own_copy()

#: `time.monotonic()`, for all that compares times of this process.
monotonic: Callable[[], float] = _time.monotonic
#: `time.time_ns()`, for what other processes compare with their own.
time_ns: Callable[[], int] = _time.time_ns
