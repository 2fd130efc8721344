"""
The grid of what is tried together: its cells, which are in tox.ini, and what is expected of them.

A cell is an environment of tox, and has its web servers in the section [grid]. `tox -e NAME` runs test_grid.py
there, and grid_page.py makes docs/grid.md of what the cells have left.
"""

import configparser
import itertools
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Seconds within which a server with open connections has to end after SIGTERM.
STOP_LIMIT = 5.0
#: What each server is told, so that it does not wait longer than that for connections that stay open.
STOP_OPTIONS = {
    "uvicorn": ["--timeout-graceful-shutdown", "3"],
    "gunicorn": ["--graceful-timeout", "3"],
    "hypercorn": ["--graceful-timeout", "3"],
    "granian": ["--workers-kill-timeout", "3"],
}
#: After a clean stop uvicorn raises the signal again that it got.
EXIT_STATUS = {"uvicorn": -signal.SIGTERM}
#: Faults of web servers that are known, by server and check.
KNOWN = {
    (
        "hypercorn",
        "stop",
    ): "its worker process hears no signal, so event streams do not end by themselves, and on "
    "Python 3.12 and later it waits for open connections without a limit: "
    "[end them first](deployment.md#each-server)",
    ("hypercorn", "log"): "it logs the cancelling of its own connections",
}

#: The kinds of clients, and what they are called on the page.
KINDS = {
    "channels": "Channels' async consumer",
    "channels-sync": "Channels' sync consumer",
    "ours": "async consumer",
    "ours-sync": "sync consumer",
    "ours-json": "JSON consumer",
    "resumable": "resumable consumer",
    "stream": "event stream",
}
RESUMABLE = ("resumable", "stream")

#: The servers of messages: how each calls itself, and how its version begins.
SERVERS = {"redis70": ("Redis", "7.0"), "redis8": ("Redis", "8"), "valkey9": ("Valkey", "9")}
#: The Pythons that a version of Django does not have among its own.
IMPOSSIBLE = {
    frozenset(pair)
    for pair in [("py311", "django60"), ("py311", "django61"), ("py315", "django52"), ("py315", "django60")]
}


@dataclass(frozen=True)
class Cell:
    """An environment of tox: the versions that it has, and the web servers that it runs on them."""

    name: str
    #: Of Python, Django, redis-py, and the server of messages.
    versions: tuple[str, str, str, str]
    web_servers: tuple[str, ...]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """What is tried together: the versions, and one web server."""
        for web in self.web_servers:
            yield (*self.versions, web)

    def is_about(self, server: str, version: str) -> bool:
        """Whether a server of messages is the one in the cell's name."""
        name, beginning = SERVERS[self.versions[3]]
        return server == name and f"{version}.".startswith(f"{beginning}.")


def cells() -> dict[str, Cell]:
    """Return the cells of tox.ini by the names of their environments."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    found = {}
    for name, web_servers in parser["grid"].items():
        _, python, django, redis_py, server, daphne = name.split("-")
        others = [web.strip() for web in web_servers.split(",")]
        found[name] = Cell(
            name, (python, django, redis_py, server), (f"daphne-{daphne[-2]}.{daphne[-1]}", *others)
        )
    return found


def pairs(rows: Iterable[tuple[str, ...]]) -> set[frozenset[str]]:
    """Return the pairs of values that occur together."""
    return {frozenset(pair) for row in rows for pair in itertools.combinations(row, 2)}


def wanted(rows: Iterable[tuple[str, ...]]) -> set[frozenset[str]]:
    """Return all pairs of the values that occur in these rows, but for those that cannot be."""
    columns = [set(column) for column in zip(*rows, strict=True)]
    every = {
        frozenset(pair)
        for one, other in itertools.combinations(columns, 2)
        for pair in itertools.product(one, other)
    }
    return every - IMPOSSIBLE
