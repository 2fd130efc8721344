"""A clock that tests turn by hand, for what expires."""

import sys
from collections.abc import Iterable

import pytest


class Clock:
    """Stands in for `clock.monotonic` in the modules it is put into."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds

    def put_into(self, monkeypatch: pytest.MonkeyPatch, modules: Iterable[str]) -> None:
        """Have these modules and folders of the package read this clock, until the test ends."""
        for module in modules:
            path = f"channels_asyncq.{module}"
            found = [name for name in list(sys.modules) if name == path or name.startswith(f"{path}.")]
            readers = [name for name in found if hasattr(sys.modules[name], "monotonic")]
            assert readers, f"nothing in {path} reads the clock"
            for name in readers:
                monkeypatch.setattr(f"{name}.monotonic", self)
