"""Goals, tables, and figures for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from .counting import percentile
from .runs import Outcome

CAUGHT_UP_SECONDS = 1.0
HERD_SECONDS = 3.0
HERD_READS = 2
#: Of all streams together: those of one pool of asyncio's, and none that waits in a stream.
HELD_THREADS = 40
HELD_DATABASES = 5
#: From this share on the CPU is full, and the time to caught up says nothing about the layer.
FULL = 0.95


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal of a run, and whether it is met."""

    text: str
    is_met: bool


def goals(outcome: Outcome) -> Iterator[Goal]:
    """The goals of a run; a side without resume has none."""
    if not outcome.side.resume:
        return
    tally = outcome.tally
    yield Goal("messages were expected", tally.expected > 0)
    yield Goal(f"{tally.missing} missing", tally.missing == 0)
    yield Goal(f"{tally.twice} twice", tally.twice == 0)
    yield Goal(f"{tally.disordered} out of order", tally.disordered == 0)
    yield Goal(f"{tally.false_resets} false resets", tally.false_resets == 0)
    yield Goal(f"{outcome.closed_for_good} closed for good", outcome.closed_for_good == 0)
    yield Goal(f"{outcome.live} of {outcome.plan.clients} back", outcome.live == outcome.plan.clients)
    if outcome.run == "drops" and outcome.busy < FULL:
        late = percentile(outcome.clear, 0.99)
        yield Goal(f"p99 to caught up {late:.3f} s", late < CAUGHT_UP_SECONDS)
    if outcome.held is not None:
        held = outcome.held
        yield Goal(f"{held.threads} threads", held.threads <= HELD_THREADS)
        yield Goal(f"{held.databases} databases", held.databases <= HELD_DATABASES)
    if outcome.run == "herd":
        back, reads = outcome.back, outcome.reads
        yield Goal(f"all back in {back or 0:.2f} s", back is not None and back <= HERD_SECONDS)
        yield Goal(f"{reads} reads of logs", reads is not None and 0 < reads <= HERD_READS)


def missed(outcome: Outcome) -> list[str]:
    """The goals that were missed."""
    return [goal.text for goal in goals(outcome) if not goal.is_met]


def milliseconds(values: Sequence[float]) -> str:
    """p50 / p99 / max."""
    if not values:
        return "-"
    shown = (percentile(values, 0.5), percentile(values, 0.99), max(values))
    return " / ".join(f"{1000 * value:,.0f}" for value in shown)


def figures(outcome: Outcome) -> dict[str, str]:
    """The figures of a run, by their headings."""
    tally = outcome.tally
    cells = {
        "side": outcome.side.name,
        "expected": f"{tally.expected:,}",
        "delivered %": f"{tally.delivered:.3f}",
        "missing": f"{tally.missing:,}",
        "twice": f"{tally.twice:,}",
        "disorder": f"{tally.disordered:,}",
        "false resets": f"{tally.false_resets:,}",
        "true resets": f"{tally.true_resets:,}",
        "told by a reset": f"{tally.told:,}",
        "reconnects": f"{len(outcome.visits):,}",
        "p50/p99/max ms": milliseconds(outcome.times),
        "without outages": milliseconds(outcome.clear),
        "XRANGE": f"{outcome.commands['xrange'] + outcome.commands['xrevrange']:,}",
        "server CPU s": f"{outcome.cpu:.1f}",
        "client CPU s": f"{outcome.client_cpu:.1f}",
        "busy %": f"{100 * outcome.busy:.0f}",
    }
    cells |= {
        name.replace("_", " "): f"{value:,}"
        for name, value in outcome.statistics.items()
        if name.startswith(("resumes", "refused", "replay"))
    }
    if outcome.run == "herd":
        cells |= {
            "all back s": "-" if outcome.back is None else f"{outcome.back:.2f}",
            "reads": str(outcome.reads),
            "scripts": str(outcome.scripts),
        }
    if outcome.held is not None:
        held = outcome.held
        cells |= {
            "threads": str(held.threads),
            "KiB/client": f"{held.bytes / 1024 / outcome.plan.clients:.1f}",
            "descriptors": str(held.descriptors),
            "databases": str(held.databases),
        }
    if outcome.run == "cuts":
        cells["cuts"] = f"{outcome.ends['cut']:,}"
    if outcome.side.resume:
        cells["goals"] = "MISSED" if missed(outcome) else "met"
        if outcome.busy >= FULL:
            cells["goals"] += ", CPU full"
    return cells


def heading(outcome: Outcome) -> str:
    """What was done."""
    plan = outcome.plan
    faults = f", faults: {', '.join(plan.faults)}" if plan.faults else ""
    rooms = f"{plan.rooms} rooms of {plan.rate:g} messages/s"
    where = ", a cluster" if plan.is_cluster else ""
    return f"{outcome.run}: {plan.clients} clients, {rooms}, {plan.server}{where}{faults}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """One column per run: there are more figures than runs."""
    rows = Table(show_header=False)
    rows.add_column()
    columns = [figures(outcome) for outcome in outcomes]
    for _ in columns:
        rows.add_column(justify="right")
    for name in dict.fromkeys(name for column in columns for name in column):
        rows.add_row(name, *(column.get(name, "") for column in columns))
    return rows


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that was measured, of the single visits only the slowest."""
    times = {
        name: {
            "count": len(values),
            "p50": percentile(values, 0.5),
            "p99": percentile(values, 0.99),
            "max": max(values, default=0.0),
        }
        for name, values in (("all", outcome.times), ("without outages", outcome.clear))
    }
    return {
        "run": outcome.run,
        "side": outcome.side.name,
        "plan": asdict(outcome.plan),
        "tally": outcome.tally.as_json(outcome.origin),
        "caught_up_seconds": times,
        "slowest": [
            f"{visit.begin - outcome.origin:.3f} to {visit.end - outcome.origin:.3f} s at port {visit.port}"
            for visit in sorted(outcome.visits, key=lambda visit: -visit.seconds)[:10]
        ],
        "live": outcome.live,
        "ends": outcome.ends,
        "faults": [
            f"{begin - outcome.origin:.3f} to {end - outcome.origin:.3f} s: {kind}"
            for kind, begin, end in outcome.faults
        ],
        "fates": outcome.fates,
        "cpu_seconds": outcome.cpu,
        "client_cpu_seconds": outcome.client_cpu,
        "busy": outcome.busy,
        "commands": outcome.commands,
        "statistics": outcome.statistics,
        "all_back_seconds": outcome.back,
        "reads": outcome.reads,
        "scripts": outcome.scripts,
        "held": asdict(outcome.held) if outcome.held is not None else None,
        "goals": [asdict(goal) for goal in goals(outcome)],
    }
