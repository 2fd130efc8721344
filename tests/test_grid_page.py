"""The grid has every pair, and its page says what was run and what was not."""

import itertools
import re
from typing import Any

import pytest

from tests import grid, grid_page
from tests.test_ci import WORKFLOWS, tox

PAGE = grid.ROOT / "docs" / "grid.md"

needs_workflows = pytest.mark.skipif(
    not WORKFLOWS.is_dir(), reason="the workflows are in the repository only"
)


def rows() -> list[tuple[str, ...]]:
    return [row for cell in grid.cells().values() for row in cell.rows()]


def section(page: str, title: str) -> str:
    """Return what is under a heading."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def body(text: str) -> list[list[str]]:
    """Return the rows of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def result(**facts: Any) -> dict[str, Any]:
    """A result of the first cell."""
    cell = next(iter(grid.cells().values()))
    versions = dict.fromkeys(("Django", "channels", "redis", "daphne"), "1.2.3")
    name, beginning = grid.SERVERS[cell.versions[3]]
    return {
        "cell": cell.name,
        "web": cell.web_servers[0],
        "kind": "ours",
        "check": "stop",
        "failed": "",
        "seconds": 1.25,
        "date": "2030-01-02",
        "versions": {"Python": "3.11.7", name: beginning, **versions},
        **facts,
    }


# The cells


def test_every_pair_is_in_a_cell() -> None:
    """Whatever two values one takes, some cell has both, but for a Django that is not for the Python."""
    assert grid.wanted(rows()) <= grid.pairs(rows())


def test_a_pair_that_is_missing_is_found() -> None:
    """Two rows that share nothing lack every pair across them; what cannot be is not asked for."""
    few = [("py311", "django52", "a"), ("py312", "django60", "b")]
    missing = grid.wanted(few) - grid.pairs(few)
    assert missing == {
        frozenset(pair)
        for pair in [
            ("py311", "b"),
            ("py312", "a"),
            ("py312", "django52"),
            ("django52", "b"),
            ("django60", "a"),
        ]
    }


def test_no_cell_is_impossible() -> None:
    """No cell has a Django that its Python cannot run."""
    assert not grid.IMPOSSIBLE & grid.pairs(rows())


def test_every_value_is_installed() -> None:
    """tox.ini says what each part of a cell's name means; nothing else may be in a name."""
    known = set(re.findall(r"^\s*(\w+): ", "\n".join(tox()["testenv"].values()), re.MULTILINE))
    for name in grid.cells():
        unknown = {factor for factor in name.split("-") if not re.fullmatch(r"py\d+", factor)} - known
        assert not unknown, name
    servers = {web.partition("-")[0] for _, _, _, _, web in rows()}
    assert servers == {"daphne", *grid.STOP_OPTIONS}


def test_a_cell_knows_its_server() -> None:
    """A cell is about one server of messages: neither another version nor another make passes for it."""
    cell = next(cell for cell in grid.cells().values() if cell.versions[3] == "redis8")
    assert cell.is_about("Redis", "8.6.3")
    for name, version in [("Redis", "7.0.15"), ("Redis", "80.1"), ("Valkey", "8.1.1")]:
        assert not cell.is_about(name, version)


# The page


def test_published_page() -> None:
    """docs/grid.md was made of results: it has its date, each web server, and each cell as it is in tox.ini."""
    page = PAGE.read_text()
    assert re.search(r", last on 20\d\d-\d\d-\d\d", page)
    cells = body(section(page, "Cells"))
    assert [row[5] for row in cells] == [", ".join(cell.web_servers) for cell in grid.cells().values()]
    assert sum(row[6] != "not run" for row in cells) >= 12
    servers = body(section(page, "Web servers and consumers"))
    assert len(servers) == len({row[-1] for row in rows()})
    assert all(len(row) == len(grid.KINDS) + 2 for row in servers)
    numbers = set(re.findall(r"FAIL\*\*: [a-z, ]+ in \d+ of \d+ \(([\d, ]+)\)", page))
    named = {number for group in numbers for number in group.split(", ")}
    assert named == set(re.findall(r"^(\d+)\. ", section(page, "Failures"), re.MULTILINE))


@needs_workflows
def test_page_without_results() -> None:
    """Nothing passes that was not run."""
    page = grid_page.page([])
    assert "last on never" in page
    assert {row[6] for row in body(section(page, "Cells"))} == {"not run"}
    servers = body(section(page, "Web servers and consumers"))
    assert set(itertools.chain.from_iterable(row[1:-1] for row in servers)) == {"not run"}
    assert "- Python 3.11, with anything." in section(page, "Pairs that were not run")
    assert "- Python 3.11: cells" in section(page, "Configured, not run")
    assert "the job `main-branches`" in page and "the job `macos`" in page


@needs_workflows
def test_page_with_a_failure() -> None:
    """A failure is red where it happened, with its reason, and what passed beside it is green."""
    page = grid_page.page([result(), result(kind="stream", failed="it hangs")])
    (row,) = (row for row in body(section(page, "Web servers and consumers")) if "1.2.3" in row[0])
    outcomes = dict(zip(grid.KINDS, row[1:-1], strict=True))
    assert (outcomes["ours"], outcomes["stream"], outcomes["resumable"], row[-1]) == (
        "pass",
        "**FAIL**: stop in 1 of 1 (1)",
        "not run",
        "1.2 s",
    )
    assert "stop: it hangs. On Python 3.11, with event stream." in section(page, "Failures")
    assert body(section(page, "Cells"))[0][6] == "1 pass, **1 FAIL**"


def test_results_of_former_cells_are_left_out(tmp_path: Any) -> None:
    """A file of a cell that tox.ini has no longer says nothing about the present."""
    file = tmp_path / "old.jsonl"
    file.write_text('{"cell": "grid-py27", "web": "daphne-4.1"}\n')
    assert grid_page.read([file]) == []


@needs_workflows
def test_jobs_on_the_page_exist() -> None:
    """What the page calls configured is a job of the night."""
    assert set(grid_page.JOBS) <= set(grid_page.jobs())
