"""The systemd of tests/systemd.py leaves the machine as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.systemd import Systemd, needs_systemd

pytestmark = [needs_systemd, pytest.mark.processes]

UNIT = "[Service]\nExecStart=/bin/sleep infinity\n"


def own_groups() -> str:
    return Path("/proc/self/cgroup").read_text()


async def test_two_at_once() -> None:
    """
    Each manager has its own units and control groups, also where the units have the same name. The groups of all
    other processes stay as they were, and at the end those of the managers are gone.
    """
    before = own_groups()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        async with Systemd(Path(one)) as first, Systemd(Path(other)) as second:
            for each in (first, second):
                await each.install("same.service", UNIT)
                await each.do("start", "same.service")
                assert int(await each.property("same.service", "MainPID")) in each.processes()
            assert not set(first.processes()) & set(second.processes())
            await first.do("stop", "same.service")
            assert await second.property("same.service", "ActiveState") == "active"
            assert own_groups() == before
        assert not first.groups() and not second.groups()


async def test_what_a_test_leaves_running_ends() -> None:
    """A unit that ignores SIGTERM, and that no test stops, does not outlive the manager."""
    with tempfile.TemporaryDirectory() as folder:
        async with Systemd(Path(folder)) as manager:
            await manager.install(
                "stays.service",
                "[Service]\nExecStart=sh -c 'trap \"\" TERM; sleep infinity'\nTimeoutStopSec=1\n",
            )
            await manager.do("start", "stays.service")
            process = int(await manager.property("stays.service", "MainPID"))
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
