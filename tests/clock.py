"""A clock that tests turn by hand, for what expires."""

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
        """Have these modules of the package read this clock, until the test ends."""
        for module in modules:
            monkeypatch.setattr(f"channels_asyncq.{module}.monotonic", self)
