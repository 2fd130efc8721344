"""
Make docs/grid.md of the results that the cells of the grid have left.

    python -m tests.grid_page .tox/grid/*.jsonl > docs/grid.md
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import grid

Result = dict[str, Any]

#: What each job of the night tries that no cell does.
JOBS = {
    "main-branches": "the main branches of Django, Channels and redis-py, on Python 3.14",
    "free-threaded": "free-threaded Python 3.14 (3.13 was [tried by hand](platforms.md))",
    "macos": "macOS",
    "musl": "Linux with musl (Alpine), on Python 3.13",
    "windows": "Windows, with the tests that need no server",
}

#: Packages on top, which were tried by hand: what, when, and what came of it.
BY_HAND = [
    (
        "chanx 2.13.0",
        "2026-11-30",
        "pass: 17 of 17 tests of two of its modules; two processes under uvicorn, `broadcast_message()` with and "
        "without `exclude_current`, `broadcast_event()` from a third process; Python 3.13, Django 6.1.3, "
        "Channels 4.3.2, Redis 7.0",
    ),
    (
        "strawberry-graphql 0.341.2",
        "2026-11-30",
        "pass: 12 of 12 tests of its module about layers; a subscription with `listen_to_channel(groups=[...])` "
        "in two processes under uvicorn gets what a mutation and another process send, and its memberships end "
        "with it; the same versions",
    ),
    (
        "channels_graphql_ws 1.0.0rc7",
        "2026-11-30",
        "pass: subscriptions in two processes, under uvicorn and under Daphne, get what a mutation and a third "
        "process broadcast, in order, and `unsubscribe()` ends them; the same versions, and Django 5.2.19. It "
        "requires Django 4 (0.9.1 requires Django 3), so pip refuses it beside this layer: it was installed with "
        "`--no-deps`. Its tests were not run",
    ),
    ("django-eventstream 5.3.4", "2026-11-30", "nothing to try: it uses no channel layer"),
]
#: The checks of each row, and when they pass.
CHECKS = {
    "connect": "three clients are let in",
    "message": "each gets two messages of its group, in order",
    "resume": "a resumable consumer or event stream: a client that was cut off comes back with its position, and "
    "misses nothing",
    "stop": f"SIGTERM while all are connected: the server ends within {grid.STOP_LIMIT:.0f} s with exit "
    "status 0, and its memberships are gone. (uvicorn ends by SIGTERM: after a clean stop "
    "it raises the signal again)",
    "log": "the server's log has no traceback, and no word of asyncio about lost tasks",
}


def read(paths: Iterable[Path]) -> list[Result]:
    """Return the results in these files, but for those of cells that are no longer in tox.ini."""
    results = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    cells = grid.cells()
    return [
        result
        for result in results
        if result["cell"] in cells and result["web"] in cells[result["cell"]].web_servers
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [" | ".join(head), *(" | ".join(row) for row in rows)]
    lines.insert(1, "|".join(["---"] * len(head)))
    return "".join(f"| {line} |\n" if "---|" not in line else f"|{line}|\n" for line in lines)


def versions_of(results: Iterable[Result], package: str) -> str:
    """Return the versions of a package in these results."""
    return ", ".join(sorted({result["versions"][package] for result in results}))


def title(web: str, results: Sequence[Result]) -> str:
    """Return a web server's name with its versions, as `hypercorn 0.18.0`."""
    name, _, protocol = web.partition("-")
    shown = "Daphne" if name == "daphne" else name
    if not results:
        return f"{shown} {protocol}".strip()
    shown += f" {versions_of(results, name)}"
    if name == "uvicorn":
        library = "wsproto" if protocol == "wsproto" else "websockets"
        shown += f", `--ws {protocol}` ({library} {versions_of(results, library)})"
    return shown


class Failures:
    """The failures that the tables refer to by number, one for each web server, check and reason."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], list[Result]] = {}

    def add(self, result: Result) -> int:
        """Note a failure; return its number."""
        reason = result["failed"]
        if known := grid.KNOWN.get((result["web"].partition("-")[0], result["check"])):
            reason += f" ({known})"
        key = (result["web"], result["check"], reason)
        self.found.setdefault(key, []).append(result)
        return list(self.found).index(key) + 1

    def lines(self) -> str:
        if not self.found:
            return "None.\n"
        lines = []
        for number, ((web, check, reason), results) in enumerate(self.found.items(), 1):
            pythons = sorted({result["versions"]["Python"].rpartition(".")[0] for result in results})
            kinds = [
                name for kind, name in grid.KINDS.items() if kind in {result["kind"] for result in results}
            ]
            clients = "every kind of client" if len(kinds) == len(grid.KINDS) else ", ".join(kinds)
            lines.append(
                f"{number}. {web}, {check}: {reason}. On Python {', '.join(pythons)}, with {clients}.\n"
            )
        return "".join(lines)


def web_servers(results: Sequence[Result], failures: Failures) -> str:
    """Return the table of web servers and kinds of clients."""
    rows = []
    for web in sorted({web for cell in grid.cells().values() for web in cell.web_servers}):
        of_web = [result for result in results if result["web"] == web]
        row = [title(web, of_web)]
        for kind in grid.KINDS:
            of_kind = [result for result in of_web if result["kind"] == kind]
            failed = sorted({failures.add(result) for result in of_kind if result["failed"]})
            cells = {result["cell"] for result in of_kind}
            wrong = {result["cell"] for result in of_kind if result["failed"]}
            if not of_kind:
                row.append("not run")
            elif failed:
                checks = ", ".join(sorted({result["check"] for result in of_kind if result["failed"]}))
                numbers = ", ".join(map(str, failed))
                row.append(f"**FAIL**: {checks} in {len(wrong)} of {len(cells)} ({numbers})")
            else:
                row.append("pass")
        stops = [result["seconds"] for result in of_web if result["check"] == "stop" and not result["failed"]]
        row.append(f"{max(stops):.1f} s" if stops else "")
        rows.append(row)
    return table(["web server", *grid.KINDS.values(), "slowest clean stop"], rows)


def cell_table(results: Sequence[Result]) -> str:
    """Return the table of cells, with what became of their checks."""
    rows = []
    for cell in grid.cells().values():
        own = [result for result in results if result["cell"] == cell.name]
        failed = sum(bool(result["failed"]) for result in own)
        outcome = (
            f"{len(own) - failed} pass" + (f", **{failed} FAIL**" if failed else "") if own else "not run"
        )
        if own:
            versions = [
                versions_of(own, "Python"),
                versions_of(own, "Django"),
                versions_of(own, "channels"),
                versions_of(own, "redis"),
                f"{grid.SERVERS[cell.versions[3]][0]} {versions_of(own, grid.SERVERS[cell.versions[3]][0])}",
            ]
        else:
            python, django, redis_py, server = cell.versions
            versions = [
                f"3.{python[3:]}",
                f"{django[6]}.{django[7]}",
                "4.3",
                redis_py.removeprefix("redispy"),
                " ".join(grid.SERVERS[server]),
            ]
        rows.append([*versions, ", ".join(cell.web_servers), outcome])
    return table(
        ["Python", "Django", "Channels", "redis-py", "server of messages", "web servers", "checks"], rows
    )


def pairs_not_run(results: Sequence[Result]) -> str:
    """Return the pairs of values that occur in cells, and in none that was run."""
    ran = {(result["cell"], result["web"]) for result in results}
    rows = [(cell.name, row) for cell in grid.cells().values() for row in cell.rows()]
    missing = grid.wanted(row for _, row in rows) - grid.pairs(
        row for name, row in rows if (name, row[-1]) in ran
    )
    pythons = {cell.versions[0] for cell in grid.cells().values()}
    absent = {python for python in pythons if not any(f"-{python}-" in name for name, _ in ran)}
    without = sorted(", ".join(sorted(pair)) for pair in missing if not pair & absent)
    lines = [f"- Python 3.{python[3:]}, with anything." for python in sorted(absent)]
    lines += [f"- {first} with {second}." for first, second in (pair.split(", ") for pair in without)]
    return "\n".join(lines) + "\n" if lines else "None.\n"


def jobs() -> list[str]:
    """Return the ids of the jobs of the night."""
    workflow = grid.ROOT / ".github" / "workflows" / "nightly.yml"
    return list(yaml.safe_load(workflow.read_text())["jobs"])


def page(results: Sequence[Result]) -> str:
    """Return the text of docs/grid.md."""
    failures = Failures()
    dates = sorted({result["date"] for result in results})
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "never"
    servers = web_servers(results, failures)
    configured = [f"- {JOBS[job]}: the job `{job}` of the nightly workflow." for job in jobs() if job in JOBS]
    configured.append(
        "- these cells on GitHub, with the Redis 8 that its makers package: the weekly workflow."
    )
    configured += [
        f"- Python 3.{python[3:]}: cells of the weekly workflow."
        for python in sorted({cell.versions[0] for cell in grid.cells().values()})
        if not any(f"-{python}-" in result["cell"] for result in results)
    ]
    options = [[name, f"`{' '.join(options)}`"] for name, options in sorted(grid.STOP_OPTIONS.items())]
    return f"""\
# Grid

What was run together, on Linux with glibc, last on {days}. Tests make this page: a cell is an environment of
tox, and `python -m tests.grid_page` writes what came of the cells. Each pair of values, such as a web server and
a version of Django, is in at least one cell: a test counts that. Left out are pairs of Django and a Python that
it is not for. Not every combination of more than two is in a cell.

## Web servers and consumers

{servers}
"Channels'" consumers come with Channels; the others are [those of this package](consumers.md).

## Failures

{failures.lines()}
## Cells

`tox -e {next(iter(grid.cells()))}` runs the first one.
A Redis is `redis-server` on PATH, or the program that `REDIS_70` or `REDIS_8` names. Valkey comes with a wheel.

{cell_table(results)}
## What is checked

Each web server runs one small site, once for each kind of client.

{table(["check", "passes if"], CHECKS.items())}
The servers have these options, and are otherwise as by default. If one of them takes more than three seconds to
stop, it has waited for this limit. Without it, some servers wait for as long as a client stays. Nothing is
[drained](deployment.md#before-a-server-stops) here.

{table(["web server", "options"], options)}
## Pairs that were not run

{pairs_not_run(results)}
## Packages on top

Tried by hand with this layer. [Tests of other projects](migrating.md#tests-of-other-projects) says which of their
tests were run, and how. The same page has djangochannelsrestframework, with all of its tests.

{table(["package", "date", "outcome"], BY_HAND)}
## Configured, not run

{chr(10).join(configured)}
"""


if __name__ == "__main__":
    print(page(read(map(Path, sys.argv[1:]))), end="")
