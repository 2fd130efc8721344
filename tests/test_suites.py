"""
The tests of other projects on this layer. Which of them fail, and why, is on the page about migrating.

`tox -e suites` downloads their source distributions, and names the folder in SUITES. That of Channels has no
tests: put an archive of its repository, such as `channels-4.3.2.tar.gz`, into a folder by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from channels_asyncq.testing import HOST, EmbeddedServer
from tests.code_blocks import block
from tests.test_docs import DOCS, code_in, rows

ROOT = Path(__file__).resolve().parent.parent
SUITES = ROOT / "tests" / "suites"
PAGE = DOCS / "migrating.md"


class Suite(NamedTuple):
    """A project whose tests are run."""

    project: str
    #: The classes that this layer stands in for.
    in_place_of: tuple[str, ...]
    #: Patterns of the modules whose tests make them.
    modules: str
    options: tuple[str, ...] = ()
    #: What its tests import besides.
    path: tuple[Path, ...] = ()
    #: Nothing downloads it.
    is_by_hand: bool = False


ALL = [
    Suite(
        "channels_redis",
        ("channels_redis.core.RedisChannelLayer", "channels_redis.pubsub.RedisPubSubChannelLayer"),
        "test_*core.py test_*pubsub.py test_*sentinel.py",
    ),
    Suite(
        "djangochannelsrestframework",
        ("channels.layers.InMemoryChannelLayer",),
        "test_*.py",
        ("--ds=suite_settings",),
        (SUITES / "restframework",),
    ),
    Suite(
        "Channels",
        ("channels.layers.InMemoryChannelLayer",),
        "test_inmemorychannel.py test_layers.py test_generic_*.py",
        is_by_hand=True,
    ),
]

needs_suites = pytest.mark.skipif("SUITES" not in os.environ, reason="`tox -e suites` downloads them")


def expected(project: str) -> dict[str, str]:
    """The tests that the page says fail here, and why."""
    return {
        test: reason
        for cell, reason in rows(PAGE, f"test of {project}", "why it fails here")
        for test in code_in(cell)
    }


def figures(project: str) -> tuple[str, int, int]:
    """What the page says of a project: its version, how many tests there are, how many pass."""
    (row,) = (row for row in rows(PAGE, "project", "version", "tests", "pass") if row[0].startswith(project))
    return row[1], int(row[2]), int(row[3])


#: A test of another project, of a layer that this one stands in for.
MADE_IN_PLACE = """
import asyncio

from channels.layers import InMemoryChannelLayer


def test_send():
    asyncio.run(InMemoryChannelLayer().send("jobs", {"type": "a.job"}))
"""


def judge(outcomes: dict[str, str], differences: dict[str, str]) -> list[str]:
    """What of the outcomes is not what the page says: one line for each test."""
    found = [
        f"{test} {outcome}, and the page does not say so"
        for test, outcome in outcomes.items()
        if outcome != "passed" and test not in differences
    ]
    found += [
        f"{test} {outcomes.get(test, 'is gone')}, and the page says that it fails"
        for test in differences
        if outcomes.get(test) != "failed"
    ]
    return found


def outcomes_in(report: Path) -> dict[str, str]:
    """By test, what became of it. What its own project expects to fail has passed if it does."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.attrib['classname'].rpartition('.')[2]}.py::{case.attrib['name']}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes[test] = "failed"
        elif skipped is not None and skipped.get("type") != "pytest.xfail":
            outcomes[test] = "was skipped"
        else:
            outcomes[test] = "passed"
    return outcomes


def run(suite: Suite, server: EmbeddedServer, sentinel: EmbeddedServer, folder: Path) -> dict[str, str]:
    """Unpack a source distribution, and run its tests on this layer."""
    name = suite.project.lower()
    archives = list(Path(os.environ["SUITES"]).glob(f"{name}-*.tar.gz"))
    if suite.is_by_hand and not archives:
        pytest.skip("nobody has put an archive there")
    (archive,) = archives
    with tarfile.open(archive) as sdist:
        sdist.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    assert root.name == f"{name}-{version(name)}", "another one is installed"
    modules = sorted({path for name in suite.modules.split() for path in (root / "tests").glob(name)})
    assert modules
    report = folder / "report.xml"
    path = [str(SUITES), *map(str, suite.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDEVMODE": "",
        "IN_PLACE_OF": " ".join(suite.in_place_of),
        "REDIS_URL": server.url,
        "SENTINEL_PORT": str(sentinel.port),
    }
    # Their limit of 10 s is for machines with nothing else to do.
    command = [sys.executable, "-m", "pytest", "-p", "in_place", "-p", "no:cacheprovider", "--timeout=60"]
    command += [*suite.options, f"--junitxml={report}", *map(str, modules)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    print(done.stdout[-20_000:], done.stderr[-5_000:])
    assert done.returncode in (0, 1)
    return outcomes_in(report)


@needs_suites
@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", ALL, ids=lambda suite: suite.project)
def test_differences(suite: Suite, redis_server: EmbeddedServer, tmp_path: Path) -> None:
    """Every test of the project passes on this layer but those that the page names, and all of these fail."""
    watched = f"monitor sentinel {HOST} {redis_server.port} 1"
    with EmbeddedServer(external=False, requirepass="channels_redis", sentinel=[watched]) as sentinel:
        outcomes = run(suite, redis_server, sentinel, tmp_path)
    assert judge(outcomes, expected(suite.project)) == []
    release, tests, passed = figures(suite.project)
    # By hand, the files need not be those of the page, which are not from a tag.
    if release == version(suite.project) and not suite.is_by_hand:
        assert (tests, passed) == (len(outcomes), list(outcomes.values()).count("passed"))


@pytest.mark.parametrize("suite", ALL, ids=lambda suite: suite.project)
def test_figures_of_the_page(suite: Suite) -> None:
    """The tests that pass and those of the table are all that there are, and each difference has a reason."""
    differences = expected(suite.project)
    _, tests, passed = figures(suite.project)
    assert tests - passed == len(differences)
    assert all(differences.values())


def test_both_surprises_are_red() -> None:
    """A failure that the page does not name, and one that it names and that does not happen."""
    outcomes = {"a": "passed", "b": "failed", "c": "was skipped", "d": "passed"}
    assert judge(outcomes, {"b": "why"}) == ["c was skipped, and the page does not say so"]
    assert judge(outcomes, {"c": "why"}) == [
        "b failed, and the page does not say so",
        "c was skipped, and the page says that it fails",
    ]
    assert judge(outcomes, {"b": "", "c": "", "d": "", "e": ""})[1:] == [
        "d passed, and the page says that it fails",
        "e is gone, and the page says that it fails",
    ]


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="one" />
<testcase classname="tests.test_a" name="two[1]"><failure /></testcase>
<testcase classname="tests.test_a" name="three"><error /></testcase>
<testcase classname="tests.test_a" name="four"><skipped type="pytest.xfail" /></testcase>
<testcase classname="tests.test_a" name="five"><skipped type="pytest.skip" /></testcase>
</testsuite></testsuites>"""


def test_outcomes_of_a_report(tmp_path: Path) -> None:
    """An error in a fixture is a failure; what its own project expects to fail is none."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert outcomes_in(report) == {
        "test_a.py::one": "passed",
        "test_a.py::two[1]": "failed",
        "test_a.py::three": "failed",
        "test_a.py::four": "passed",
        "test_a.py::five": "was skipped",
    }


@pytest.mark.server
@pytest.mark.skipif(sys.platform == "win32", reason="the page has a command for a POSIX shell")
def test_command_of_the_page(redis_server: EmbeddedServer, tmp_path: Path) -> None:
    """By the command for a run by hand, what another project's tests make is this layer, on the server named."""
    (tmp_path / "channels_asyncq").symlink_to(ROOT)
    tests = tmp_path / "channels" / "tests"
    tests.mkdir(parents=True)
    (tests.parent / "pytest.ini").write_text("[pytest]\naddopts = --ds=django.conf.global_settings\n")
    command = block("docs/migrating.md", "sh", having="IN_PLACE_OF")
    assert "redis://localhost:6379/0" in command
    for name in (modules := re.findall(r"tests/(test_\w+\.py)", command)):
        (tests / name).write_text(MADE_IN_PLACE)
    done = subprocess.run(
        ["sh", "-c", command.replace("redis://localhost:6379/0", redis_server.url)],
        cwd=tests.parent,
        env={"PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{len(modules)} passed" in done.stdout, done.stdout + done.stderr
    assert redis_server.command("KEYS", "test1:*jobs*")
