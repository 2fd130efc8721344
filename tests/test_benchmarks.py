"""The benchmarks still run, count what is lost, and say so."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

rich = pytest.importorskip("rich")

from benchmarks.__main__ import command_of, parser  # noqa: E402
from benchmarks.layers import CONTENDERS, OURS, THEIRS  # noqa: E402
from benchmarks.limits import limits  # noqa: E402
from benchmarks.nats import NatsServer  # noqa: E402
from benchmarks.report import Comparison, markdown  # noqa: E402
from benchmarks.runner import Result, Round  # noqa: E402
from benchmarks.scenarios import load  # noqa: E402
from benchmarks.scenarios.growth import Growth  # noqa: E402
from channels_asyncq.testing import EmbeddedServer  # noqa: E402

SCENARIOS = {name: scenario for name, scenario in load().items() if scenario.is_default}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False, client_output_buffer_limit="pubsub 0 0 0") as server:
        yield server


def comparison() -> Comparison:
    ours, theirs = Result(OURS, [900.0, 800.0, 1000.0], [0, 0, 0]), Result(THEIRS, [100.0], [0, 5, 0])
    lossy = Result("redis.core", [], [7, 7, 7])
    return Comparison(SCENARIOS["senders"], [ours, theirs, lossy])


def test_ratio_and_goal() -> None:
    """The ratio is that of the medians; a goal is met, missed, or cannot be told."""
    ours, theirs, lossy = comparison().results
    assert comparison().ratio(ours) == 9.0 and comparison().is_goal_met(ours) is True
    assert comparison().ratio(lossy) is None and comparison().is_goal_met(theirs) is None
    assert not comparison().has_failed
    ours.lost[0] = 1
    assert Comparison(SCENARIOS["senders"], [ours, theirs]).has_failed


def test_a_layer_that_lost_messages_has_no_figure() -> None:
    """It says how many it lost; the table says who is left out, and why."""
    text = markdown([comparison()])
    assert "| asyncq | 900 | 800 | 1,000 | 0 | 9.00 x | >= 8 x met |" in text
    assert "| redis.core | lost | - | - | 21 | - |  |" in text
    assert "memory is left out: it serves one process only." in text


@pytest.mark.parametrize(
    "options", [[], ["senders", "idle", "--rounds", "2", "--limits"], ["--layers", "a;b, c"]]
)
def test_the_command_of_a_run(options: list[str]) -> None:
    """The page of a run names a command that measures the same again."""
    arguments = parser().parse_args(options)
    assert parser().parse_args(shlex.split(command_of(arguments))[3:]) == arguments


def test_plots(tmp_path: Path) -> None:
    """A plot is an SVG with the names of the layers that have a figure; the same figures give the same bytes."""
    plots = pytest.importorskip("benchmarks.plots")
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        plots.bars(comparison(), path)
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    plots.curves("t", "x", "y", {"ours": [(1, 2), (10, 3)]}, tmp_path / "curve.svg")
    assert ElementTree.parse(tmp_path / "curve.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name == "idle")) for name in SCENARIOS]
)
async def test_every_scenario(server: EmbeddedServer, name: str) -> None:
    """One round of each with our layer: it has a figure, and nothing is lost."""
    scenario = SCENARIOS[name]
    layer = "asyncq, memory" if name == "local" else OURS
    measurement = await Round(server, scenario, CONTENDERS[layer]).play()
    assert measurement.figure > 0 and measurement.lost == 0


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["channels", "groups", "members", "processes", "bytes"])
async def test_growth(server: EmbeddedServer, kind: str) -> None:
    """One point of each curve."""
    measurement = await Round(server, Growth(kind, 2), CONTENDERS[OURS]).play()
    assert measurement.figure > 0


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["senders", "sequential", "round-trip", "join-leave", "sync"])
async def test_another_server(name: str) -> None:
    """channels_nats takes part on a nats-server of its own, and what it published is counted there."""
    contender = CONTENDERS["nats"]
    if not contender.is_installed:
        pytest.skip("no channels_nats, or no nats-server on PATH")
    with NatsServer() as nats:
        measurement = await Round(nats, SCENARIOS[name], contender).play()
    assert measurement.figure > 0 and measurement.lost == 0


def test_no_server_for_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a nats-server its layer is not among all; to start one says what is missing."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert not CONTENDERS["nats"].is_installed
    with pytest.raises(RuntimeError, match="no nats-server on PATH"), NatsServer():
        pass


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform == "win32", reason="the memory of a process comes from /proc")
def test_flood(tmp_path: Path) -> None:
    """The command for a client that floods has figures with and without it."""
    pytest.importorskip("uvicorn")
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.flood", "--rounds", "1", "--clients", "3", "--seconds", "1"]
    done = subprocess.run([*command, "--actions", "wait", "--json", figures], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert list(found) == ["uvicorn", "daphne"]
    rounds = [each for server in found.values() for kind in server["wait"].values() for each in kind]
    assert len(rounds) == 4 and all(0 < each["p50"] <= each["p99"] for each in rounds)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "options",
    [("--places", "one server;3 primaries"), ("--places", "1 primary", "--idle")],
    ids=["load", "idle"],
)
def test_clusters(tmp_path: Path, options: Sequence[str]) -> None:
    """The command for clusters has a figure for every place, and nothing is lost."""
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.clusters",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--rate",
        "200",
    ]
    done = subprocess.run([*command, *options, "--json", figures], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [each for rounds in json.loads(figures.read_text()).values() for each in rounds]
    assert len(rounds) == (3 if "--idle" in options else 2)
    assert all("client" in each and each["lost"] == 0 for each in rounds)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(120)
def test_histories(capsys: pytest.CaptureFixture[str]) -> None:
    """The command for histories has a figure for every case, and for reads."""
    from benchmarks import histories

    assert histories.main(["--rounds", "1", "--commands", "400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("a history has" in line for line in lines) == len(histories.CASES)
    assert sum("are read in" in line for line in lines) == 4


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("options", [(), ("--cluster",)], ids=["one server", "cluster"])
def test_recovery(options: Sequence[str]) -> None:
    """The command for recovery has a figure for all that it measures, and its readers miss nothing."""
    few = ["--rounds", "1", "--seconds", "1", "--rate", "500", "--others", "10", "--readers", "2"]
    command = [sys.executable, "-m", "benchmarks.recovery", *few, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {name: float(figure) for name, figure, *_ in map(str.split, done.stdout.splitlines())}
    assert set(figures) == {"seconds", "cpu", "sent", "reader_cpu", "received", "told"}
    assert figures["received"] > 0 and figures["told"] == 0


@pytest.mark.slow
@pytest.mark.nightly
def test_limits(server: EmbeddedServer) -> None:
    """What no layer can exceed has figures."""
    assert all(value > 100 for value in limits(server).values())
