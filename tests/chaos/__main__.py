"""Run scenarios in earnest, and print what came of each; the exit code says whether a promise was broken."""

import argparse
import asyncio
import sys
from collections import Counter

from . import fleet
from .scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=", ".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=fleet.seconds_of_run(12.0))
    parser.add_argument("--seed", default=fleet.seed_of_run())
    parser.add_argument("--times", type=int, default=1, help="runs of each, with a fleet of its own for each")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    failed = 0
    for name in arguments.scenarios or SCENARIOS:
        totals: Counter[str] = Counter()
        for run in range(arguments.times):
            seed = f"{arguments.seed}.{run}" if run else str(arguments.seed)
            outcome = asyncio.run(fleet.run(SCENARIOS[name], seed, arguments.seconds))
            complaints = outcome.verdict.complaints
            print("FAILED" if complaints else "ok", outcome, flush=True)
            for complaint in complaints[:10]:
                print("   ", complaint, flush=True)
            failed += bool(complaints)
            totals.update(outcome.counts())
        if arguments.times > 1:
            print(
                f"{name}, {arguments.times} runs:", ", ".join(f"{n:,} {what}" for what, n in totals.items())
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
