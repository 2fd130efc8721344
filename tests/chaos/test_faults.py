"""Every scenario for a few seconds. A failure names its seed; see tests/chaos/__init__.py for long runs."""

import pytest

from . import fleet
from .scenarios import SCENARIOS

pytestmark = [pytest.mark.chaos, pytest.mark.processes, pytest.mark.timeout(180)]

SECONDS = fleet.seconds_of_run(3.0)


@pytest.mark.timeout(300 + 3 * SECONDS)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_scenario(name: str) -> None:
    """
    Of every message of every sender each member has one copy, in order, or was told; nobody is told without
    cause. How soon sends go on after a failover is judged in long runs: here it depends on who else computes.
    """
    seed = fleet.seed_of_run()
    print(f"CHAOS_SEED={seed}")
    outcome = await fleet.run(SCENARIOS[name], seed, SECONDS, judges_times=False)
    print(outcome)
    assert not outcome.verdict.complaints, f"{outcome}\n" + "\n".join(outcome.verdict.complaints[:20])
    assert outcome.faults > 0
    assert outcome.verdict.receipts > 1000
