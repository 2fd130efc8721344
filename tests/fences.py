"""How often fences are sent, for tests that do not wait for five seconds."""

from __future__ import annotations

import pytest

from channels_asyncq.bus.redis import checkpoint, leasing


def fence_every(monkeypatch: pytest.MonkeyPatch, seconds: float, longest: float | None = None) -> None:
    """Send fences, and renew leases, so often; and take a connection for deaf after `longest` without one."""
    monkeypatch.setattr(leasing, "RENEW_EVERY", seconds)
    monkeypatch.setattr(checkpoint, "RENEW_EVERY", seconds)
    if longest is not None:
        monkeypatch.setattr(checkpoint, "LONGEST_FENCE", longest)
