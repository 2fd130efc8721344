"""Figures in the pages: each names the command that measures it, and is the one that was measured."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import shlex
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import blocks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RUNS = DOCS / "benchmarks"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted(DOCS.glob("*.md")),
    *sorted(RUNS.glob("*.md")),
]

if not RUNS.is_dir():
    pytest.skip("only the package is here, without its pages", allow_module_level=True)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,4}) (.+)$", re.MULTILINE)

#: What only a measurement can say: microseconds, a number of times, a rate of a core, and columns of numbers.
#: Seconds, bytes and percentages are mostly settings and bounds, so they count in such columns only.
MEASURED = re.compile(
    r"\d (?:us|µs|ns)\b"
    r"|\d times (?:the (?:rate|CPU|memory)|as (?:many|much)|that|our)\b"
    r"|\b1/\d"
    r"|\d[^.|]* of CPU time"
    r"|^\|[-:| ]*--:[-:| ]*\|$",
    re.MULTILINE,
)
#: A benchmark, or a test that counts or holds the figure.
NAMED = re.compile(
    r"(?:python -m |tox -e benchmark -- )(?:benchmarks|tests\.chaos)\b|pytest .*tests/\w+|\btest_\w+\.py"
)


class Section(NamedTuple):
    """A heading, and the text below it up to the next one; and what introduces it."""

    page: str
    heading: str
    text: str
    introduction: str

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}"


def sections(page: str, text: str) -> Iterator[Section]:
    """
    The sections of a page. Those of deeper headings are introduced by the text below the heading above them.

    What stands below the title introduces nothing, because it may be far away. It does on the pages of one run.
    """
    whole = FENCE.sub(lambda match: match[0].replace("#", " "), text)
    found = list(HEADING.finditer(whole))
    above: dict[int, str] = {}
    for heading, following in zip(found, [*found[1:], None], strict=True):
        depth = len(heading[1])
        body = whole[heading.end() : following.start() if following is not None else None]
        higher = [above[each] for each in above if each < depth]
        above = {each: above[each] for each in above if each < depth}
        above[depth] = body if depth > 1 or page.startswith("docs/benchmarks/") else ""
        yield Section(page, heading[2], body, "\n".join(higher))


def is_measured(section: Section) -> bool:
    return MEASURED.search(FENCE.sub("", section.text)) is not None


def is_named(section: Section) -> bool:
    return NAMED.search(section.text + section.introduction) is not None


ALL = [section for page in PAGES for section in sections(name_of(page), page.read_text())]
FIGURES = [section for section in ALL if is_measured(section)]


@pytest.mark.parametrize("section", FIGURES, ids=str)
def test_figures_name_their_command(section: Section) -> None:
    """A section with measured figures names a benchmark, or the test that counts them."""
    assert is_named(section), f"{section} has figures. Name the command that measures them, or delete them"


def test_figures_are_found() -> None:
    """The test above looks at the sections by whose figures people decide."""
    found = {str(section) for section in FIGURES}
    for expected in (
        "README.md: Serve it",
        "README.md: Compared with others",
        "docs/callers.md: Many sends at once",
        "docs/consumers.md: Limits for clients",
        "docs/consumers.md: What a site can expect",
        "docs/delivery.md: What the logs cost",
        "docs/deployment.md: Compression",
        "docs/deployment.md: How many servers",
        "docs/deployment.md: Where commands are billed",
        "docs/drops.md: Figures",
        "docs/performance.md: Histories",
        "docs/performance.md: In short",
        "docs/benchmarks/results.md: idle: an idle process with 1000 channels; ms CPU/s, less is better",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("# A\n\n`python -m benchmarks`\n\n## B\n\nIt takes 3 us.\n", ["B"]),
        ("# A\n\n## B\n\nIt takes 3 us: `python -m benchmarks.flood`.\n", []),
        ("# A\n\n## B\n\n`python -m benchmarks`\n\n### C\n\n| | s |\n|---|---:|\n| a | 1 |\n", []),
        ("# A\n\n## B\n\n`python -m benchmarks`\n\n## C\n\n2.5 times the CPU time\n", ["C"]),
        ("# A\n\n## B\n\nIt waits for 5 s.\n\n```\n3 us\n# 4 us\n```\n", []),
        ("# A\n\n## B\n\n```sh\ntox -e benchmark -- benchmarks.growth\n```\n\nIt takes 3 us.\n", []),
    ],
)
def test_which_sections_lack_a_command(text: str, complaints: list[str]) -> None:
    """The command is in the section or in the one around it, not anywhere on the page."""
    found = [each.heading for each in sections("docs/a.md", text) if is_measured(each) and not is_named(each)]
    assert found == complaints


COMMAND = re.compile(
    r"(?:python -m |tox -e benchmark -- )((?:benchmarks(?:\.\w+)?|tests\.chaos)\b[^`\n|]*)(?=[`\n|])"
)


def commands() -> list[Any]:
    """Each command once, with all its options, also those in brackets."""
    texts = (page.read_text().replace("\\\n", " ") for page in PAGES)
    found = {match[1].strip() for text in texts for match in COMMAND.finditer(text)}
    lines = {
        line.removeprefix("tox -e benchmark -- ").removeprefix("python -m ")
        for each in (
            *blocks("docs/benchmarks.md", "sh"),
            *blocks("docs/drops.md", "sh"),
            *blocks("docs/performance.md", "sh"),
        )
        for line in each.text.replace("\\\n", " ").splitlines()
    }
    return [pytest.param(re.sub(r"[][]", "", command), id=command) for command in sorted(found | lines)]


class Begun(Exception):
    """The command has taken its options, and begins to measure."""


@pytest.mark.parametrize("command", commands())
def test_command_takes_its_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that a page names exists, and begins to measure with exactly these options."""
    pytest.importorskip("rich")
    name, *options = shlex.split(command)
    package = name if "." in name and name not in ("benchmarks.drops", "tests.chaos") else f"{name}.__main__"
    module = importlib.import_module(package)

    def run(main: Coroutine[Any, Any, Any], **_: Any) -> None:
        main.close()
        raise Begun

    def start(*_: Any, **__: Any) -> None:
        raise Begun

    monkeypatch.setattr(asyncio, "run", run)
    monkeypatch.setattr(EmbeddedServer, "__init__", start)
    monkeypatch.setattr(EmbeddedServer, "__del__", lambda server: None, raising=False)
    monkeypatch.setattr(sys, "argv", [name, *(each for each in options if each != "SCENARIO")])
    with pytest.raises(Begun):
        module.main()


def test_results_are_those_of_the_run() -> None:
    """docs/benchmarks/results.md is what the benchmark makes of its figures, with command and day."""
    pytest.importorskip("rich")
    from benchmarks.report import Comparison, page
    from benchmarks.runner import Result
    from benchmarks.scenarios import load

    figures = run_of("results")
    comparisons = [
        Comparison(
            load()[name],
            [
                Result(layer, each["figures"], each["lost"], each["details"], each["error"])
                for layer, each in scenario["layers"].items()
            ],
        )
        for name, scenario in figures["scenarios"].items()
    ]
    text = RUNS.joinpath("results.md").read_text()
    assert text == page(comparisons, figures)
    assert f"`{figures['command']}` on {figures['date']}" in text


def run_of(name: str) -> Any:
    return json.loads(RUNS.joinpath(f"{name}.json").read_text())


def times(scenario: str, layer: str = "asyncq") -> float:
    """How many times better a layer was in a scenario than `channels_redis.pubsub`."""
    return float(run_of("results")["scenarios"][scenario]["layers"][layer]["ratio"])


def detail(scenario: str, name: str, layer: str = "asyncq") -> float:
    rounds = run_of("results")["scenarios"][scenario]["layers"][layer]["details"]
    return float(sorted(each[name] for each in rounds)[len(rounds) // 2])


def limit(name: str) -> float:
    return float(run_of("results")["limits"][name])


def ratio(name: str) -> float:
    """A ratio of the run with WebSockets."""
    return float(run_of("websockets")["ratios"][name]["ratio"])


def median(side: str, figure: str) -> float:
    """A median of the run with WebSockets."""
    return float(run_of("websockets")["rows"][side]["figures"][figure]["median"])


def cost(kind: str, size: int, layer: str = "asyncq") -> float:
    """A point of the run about growth."""
    return float(dict(run_of("growth")[kind][layer])[size])


def of_owner(owner: str, profile: str) -> float:
    """A cell of the profile of WebSockets."""
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in RUNS.joinpath("websockets-profile.md")
        .read_text()
        .partition("## By function")[0]
        .splitlines()
        if line.startswith("|")
    ]
    (row,) = (row for row in table if row[0] == owner)
    return float(row[table[0].index(profile)])


OURS, THEIRS = "this layer; uvicorn", "redis.pubsub"
NO_LOG = "asyncq, no log"
TASKS = "queue and task per client; uvicorn"

#: The page, what is around each number, and the numbers as measured. A @ stands for a number.
STATED: list[tuple[str, str, list[float]]] = [
    (
        "README.md",
        "frames of 2 KB take @ times the CPU time",
        [ratio("frame, 2 KB: with compression / without")],
    ),
    ("README.md", "each connection @ times the memory", [ratio("open, 2 KB: with compression / without")]),
    ("README.md", "to one group made @ times as many sends per second", [times("senders")]),
    (
        "docs/deployment.md",
        "takes @ times the CPU time then, and an open connection @ times the memory: @ KiB in place of @.",
        [
            ratio("frame, 2 KB: with compression / without"),
            ratio("open, 2 KB: with compression / without"),
            median("this layer; uvicorn, deflate", "open, 2 KB"),
            median(OURS, "open, 2 KB"),
        ],
    ),
    (
        "docs/consumers.md",
        "channels_redis takes @ times the CPU time of our consumer under uvicorn, and @ times under Daphne.",
        [
            ratio("handler, 100 B, uvicorn: channels_redis / this layer"),
            ratio("handler, 100 B, Daphne: channels_redis / this layer"),
        ],
    ),
    ("docs/consumers.md", "(#one-frame-for-the-whole-room) | @", [1e6 / median(OURS, "frame, 100 B")]),
    ("docs/consumers.md", "made by a handler with `send_json()` | @", [1e6 / median(OURS, "handler, 100 B")]),
    ("docs/consumers.md", "clients that connect and join one group | @", [1e6 / median(OURS, "1 group")]),
    ("docs/consumers.md", "A GiB holds @ open connections", [2**20 / median(OURS, "open, 2 KB")]),
    (
        "docs/consumers.md",
        "through our consumer costs @ times as much, a message with a handler @ times",
        [
            ratio("frame, 100 B: this layer / queue and task per client"),
            ratio("handler, 100 B: this layer / queue and task per client"),
        ],
    ),
    (
        "docs/consumers.md",
        "costs the server @ times the CPU time that it costs with a sync consumer of Channels",
        [ratio("frame, 100 B: sync consumer, this layer's / Channels'")],
    ),
    (
        "docs/performance.md",
        "takes @ times the CPU time of `ws` for a frame, and @ times that of Socket.IO with a handler",
        [ratio("frame, 100 B: this layer / ws"), ratio("handler, 100 B: this layer / Socket.IO")],
    ),
    (
        "docs/performance.md",
        "bare loop of uvicorn takes @ times that of `ws`, and a queue and a task per client @ times. "
        "With a handler these take @ times that of Socket.IO.",
        [
            median("bare loop; uvicorn", "frame, 100 B") / median("ws; Node", "frame, 100 B"),
            median(TASKS, "frame, 100 B") / median("ws; Node", "frame, 100 B"),
            median(TASKS, "handler, 100 B") / median("Socket.IO; Node", "handler, 100 B"),
        ],
    ),
    (
        "docs/performance.md",
        "A frame takes @ us: @ to write to the socket, @ in the server, @ in asyncio, and @ in this layer",
        [
            of_owner(owner, "frame, this layer")
            for owner in (
                "all",
                "kernel: writing to sockets",
                "server: uvicorn, websockets",
                "asyncio",
                "this layer and its consumers",
            )
        ],
    ),
    (
        "docs/performance.md",
        "of one client after the other, takes @ us, and a task for each client @.",
        [of_owner("all", "frame, bare loop"), of_owner("all", "frame, queue and task per client")],
    ),
    (
        "docs/performance.md",
        "runs at @ of the rate of an empty `async_to_sync` call, and at @ without the log",
        [detail("async-to-sync", "of_empty"), detail("async-to-sync", "of_empty", NO_LOG)],
    ),
    (
        "docs/performance.md",
        "Local fan-out reaches @",
        [detail("local", "of_bare_queues")],
    ),
    ("docs/performance.md", "**One sender that waits for each answer**: @ times.", [times("sequential")]),
    ("docs/performance.md", "**A round trip**: 1/@ of the time", [times("round-trip")]),
    (
        "docs/performance.md",
        "sender and receiver taking turns: @ times; **ten members**: @ times.",
        [times("one-member"), times("small-room")],
    ),
    (
        "docs/performance.md",
        "process: @ times, a matter of dicts in both layers. A group that is new to the process: @ times",
        [times("rooms"), times("own-groups")],
    ),
    (
        "docs/performance.md",
        "Channels of another process get @ times as many:",
        [times("direct", NO_LOG) / times("direct")],
    ),
    (
        "docs/performance.md",
        "written by hand | @ a second",
        [limit("PUBLISH to nobody, 32 in flight, by hand")],
    ),
    (
        "docs/performance.md",
        "one task to another | @ a second",
        [limit("asyncio.Queue, from one task to another")],
    ),
    (
        "docs/performance.md",
        "empty `async_to_sync` calls | @ a second",
        [limit("an empty async_to_sync() call")],
    ),
    (
        "docs/performance.md",
        "@ us for the first member, @ us for each of a thousand and @ us for each of ten thousand "
        "(@ and @ us with the other layer)",
        [
            *(cost("members", size) for size in (1, 1000, 10_000)),
            *(cost("members", size, THEIRS) for size in (1000, 10_000)),
        ],
    ),
    (
        "docs/performance.md",
        "from @ us with one process to @ us with sixteen, and from @ to @ us with the other layer",
        [cost("processes", size, layer) for layer in ("asyncq", THEIRS) for size in (1, 16)],
    ),
    (
        "docs/performance.md",
        "@ and @ us up to 1,000 characters, @ us with 10,000, @ us with 100,000 "
        "(@ to @, @ and @ us with the other layer)",
        [cost("bytes", 10**size, layer) for layer in ("asyncq", THEIRS) for size in (2, 3, 4, 5)],
    ),
    (
        "docs/performance.md",
        "it is @ ms, and @ ms with the other layer",
        [cost("bytes", 10**6, layer) / 1000 for layer in ("asyncq", THEIRS)],
    ),
]
#: The rows of the table "In short", and their scenarios.
IN_SHORT = {
    "32 concurrent senders, sends/s": "senders",
    "1000 members in another process, deliveries/s": "fan-out",
    "10 members, 32 senders": "small-room-32",
    "one sender, one message after the other": "sequential",
    "32 senders to 32 channels of another process": "direct",
    "a message and its answer, at rest: time": "round-trip",
    "the same, busy: time": "round-trip-busy",
    "clients that come, join a room and leave": "join-leave",
    "`async_to_sync(group_send)`, calls/s": "async-to-sync",
    "`channels_asyncq.sync.group_send` instead": "sync",
    "idle, 1000 channels: CPU time": "idle",
    "memory of an open channel": "memory-channels",
}


def is_rounded(text: str, value: float) -> bool:
    """Whether a number is a measured one, rounded to its last digit."""
    return f"{value:.{len(text.partition('.')[2])}f}" == text.replace(",", "")


@pytest.mark.parametrize(
    ("page", "words", "values"), STATED, ids=[f"{page}: {words}" for page, words, _ in STATED]
)
def test_stated_as_measured(page: str, words: str, values: list[float]) -> None:
    """A figure in a sentence is the one of the published run, wherever it stands."""
    text = " ".join(ROOT.joinpath(page).read_text().split())
    found = re.findall(re.escape(words).replace("@", r"(\d[\d,]*(?:\.\d+)?)"), text)
    assert len(found) == 1, f"{words!r} is on the page {len(found)} times"
    numbers = [found[0]] if isinstance(found[0], str) else found[0]
    for number, value in zip(numbers, values, strict=True):
        assert is_rounded(number, value), f"{number} is on the page, {value} was measured"


def test_in_short() -> None:
    """The first table of docs/performance.md has the ratios of the published run."""
    section = next(each for each in FIGURES if str(each) == "docs/performance.md: In short")
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.text.splitlines() if "|" in line
    ]
    found = {label: cells for label, *cells in table if len(cells) == 2 and re.search(r"\d", cells[0])}
    assert set(found) == set(IN_SHORT)
    for label, cells in found.items():
        for cell, layer in zip(cells, ("asyncq", NO_LOG), strict=True):
            assert is_rounded(cell.removeprefix("1/"), times(IN_SHORT[label], layer)), label


def test_one_message_server_figures_agree() -> None:
    """What docs/deployment.md says of a server's CPU time is in the tables of docs/performance.md."""
    text = " ".join(DOCS.joinpath("deployment.md").read_text().split())
    page = DOCS.joinpath("performance.md").read_text()
    one_by_one, single, shared = (
        float(number)
        for words in ("go to two processes", "nobody gets a copy", "in each command")
        for number in re.findall(rf"\| [^|]*{words} \| ([\d.]+) \|", text)
    )
    assert f"| one server | {one_by_one:g} us | {one_by_one:g} us |" in page
    assert f"| of 200 B, one group | {single} us |" in page
    (together,) = re.findall(r"\| 16 of 200 B in one command, one group \| ([\d.]+) us \|", page)
    assert is_rounded(str(shared), float(together) / 16)


def test_message_of_the_benchmarks() -> None:
    """docs/benchmarks.md says how large it is."""
    pytest.importorskip("rich")
    from benchmarks.scenario import CHAT_MESSAGE
    from channels_asyncq.messages.codecs import Codec

    assert len(CHAT_MESSAGE) == 6
    size = len(Codec().encode(dict(CHAT_MESSAGE)))
    assert f"six keys, {size} bytes when encoded" in DOCS.joinpath("benchmarks.md").read_text()
