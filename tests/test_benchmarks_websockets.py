"""`python -m benchmarks.websockets`: it counts frames, says whose time it is, and leaves no server behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("rich")
pytest.importorskip("uvicorn")
if sys.platform == "win32":
    pytest.skip("the CPU time of a process comes from /proc", allow_module_level=True)

from benchmarks.node import install_packages, node_command
from benchmarks.runner import BenchmarkError
from benchmarks.sockets import pages, profile_pages
from benchmarks.sockets.clients import Connection
from benchmarks.sockets.messages import content
from benchmarks.sockets.profiling import (
    ASYNCIO,
    JSON,
    OTHER,
    OURS,
    SERVER,
    SOCKET_READ,
    SOCKET_WRITE,
    Frame,
    Profile,
)
from benchmarks.sockets.results import RATIOS, Result
from benchmarks.sockets.rounds import Round
from benchmarks.sockets.sides import SIDES, chosen_sides

COMMAND = (sys.executable, "-m", "benchmarks.websockets")
OURS_UVICORN, WS, BARE = (SIDES[name] for name in ("this layer; uvicorn", "ws; Node", "bare loop; uvicorn"))
PATIENCE = 60.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        yield ours, theirs


def test_frames_are_counted_at_every_split(pair: tuple[socket.socket, socket.socket]) -> None:
    """Short and long messages count, however their bytes come. Pings do not, and are answered."""
    stream = (
        bytes([0x81, 3])
        + b"abc"
        + bytes([0x89, 2])
        + b"hi"
        + bytes([0x82, 126])
        + (300).to_bytes(2)
        + b"x" * 300
    )
    stream += bytes([0x81, 127]) + (70_000).to_bytes(8) + b"y" * 70_000 + bytes([0xC1, 1]) + b"z"
    for split in [*range(330), len(stream) - 1]:
        connection = Connection(pair[0])
        assert connection.feed(stream[:split]) + connection.feed(stream[split:]) == connection.frames == 4
        assert pair[1].recv(100) == bytes([0x8A, 0x82, 0, 0, 0, 0]) + b"hi"


@pytest.mark.parametrize("size", [100, 2048])
def test_size_of_a_message(size: int) -> None:
    """Its JSON has the size, and each message is another one: equal ones would compress to nothing."""
    texts = {json.dumps(content(size, number)) for number in range(50)}
    assert len(texts) == 50 and {len(text) for text in texts} == {size}


def test_rows() -> None:
    """A regular expression chooses the sides; one that fits none is refused, with the names."""
    assert chosen_sides("") == list(SIDES.values())
    assert [side.name for side in chosen_sides("^WS;")] == ["ws; Node"]
    with pytest.raises(BenchmarkError, match=r"fits none of: bare loop; uvicorn"):
        chosen_sides("nobody")
    with pytest.raises(BenchmarkError, match="is no regular expression"):
        chosen_sides("(")


def test_sides_without_groups() -> None:
    """Those that are a part of every application, and no application."""
    without = {side.name for side in SIDES.values() if not side.has_groups}
    servers = ("uvicorn", "Daphne", "granian", "gunicorn", "hypercorn")
    assert without == {*(f"bare loop; {server}" for server in servers), "queue and task per client; uvicorn"}


def test_sides_that_cannot_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without node, without a server, and where our sync consumer is that of Channels: each says why."""
    from channels.generic import websocket as theirs

    from channels_asyncq.generic import websocket as ours

    assert OURS_UVICORN.obstacle() is None
    sync = SIDES["this layer, sync consumer; uvicorn"]
    monkeypatch.setattr(ours, "JsonWebsocketConsumer", type("Own", (theirs.JsonWebsocketConsumer,), {}))
    assert sync.obstacle() is None
    monkeypatch.setattr(ours, "JsonWebsocketConsumer", theirs.JsonWebsocketConsumer)
    assert sync.obstacle() == "the sync consumers of channels_asyncq are those of Channels"
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert WS.obstacle() == "there is no node and npm on PATH"
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert OURS_UVICORN.obstacle() == "uvicorn is not installed"


def test_ratios_and_what_is_left_out() -> None:
    """Ratios and capacities come from medians. The page says who has lost messages, and who is left out."""
    ours = Result(
        OURS_UVICORN, [Round({"frame, 100 B": cost, "1 group": 300.0}) for cost in (11.0, 12.0, 90.0)]
    )
    ws = Result(WS, [Round({"frame, 100 B": 10.0})])
    bare = Result(BARE, [Round({"1 group": 250.0}, lost=7)], ["it failed"])
    results = [ours, ws, bare]
    by_name = {result.side.name: result for result in results}
    ratios = {each.name: each.value(by_name) for each in RATIOS}
    assert ratios["frame, 100 B: this layer / ws"] == 1.2
    assert ratios["connect, 1 group: this layer / bare loop"] == 1.2
    assert ratios["handler, 100 B: this layer / Socket.IO"] is None
    text = pages.page(results, {"Socket.IO; Node": "why"}, "conditions")
    assert "| this layer | uvicorn | 12 (11 to 90) |  |  |  |" in text
    assert "| frame, 100 B: this layer / ws | 1.20 | 1.15 | missed |" in text
    assert "| connect, 1 group: this layer / bare loop | 1.20 | 1.5 | met |" in text
    assert "| this layer | uvicorn | 83,333 |  | 3,333 |  |" in text
    assert "- bare loop; uvicorn: 7 messages lost, 1 rounds failed." in text
    assert "- Socket.IO; Node is left out: why." in text
    assert not bare.is_complete and not ours.is_complete


def line_of(file: str, text: str) -> int:
    """The first line of a file with that text."""
    return next(number for number, line in enumerate(Path(file).read_text().splitlines(), 1) if text in line)


def test_owners() -> None:
    """A call of a socket is the kernel's time, even in asyncio; what Python does for a caller is the caller's."""
    selector_events = asyncio.selector_events.__file__
    package = str(Path(__file__).parents[1] / "channels_asyncq" / "layer.py")
    uvicorn = "/venv/lib/python3.13/site-packages/uvicorn/main.py"
    assert (
        Frame("write", selector_events, line_of(selector_events, "n = self._sock.send(data)")).owner
        == SOCKET_WRITE
    )
    assert Frame("read", selector_events, line_of(selector_events, "self._sock.recv(")).owner == SOCKET_READ
    assert Frame("write", selector_events, 1).owner == ASYNCIO
    assert (
        Frame("send", uvicorn, 1).owner == SERVER
        and Frame("send", uvicorn, 1).place == "send (uvicorn/main.py)"
    )
    assert Frame("send", package, 1).owner == OURS
    assert Frame("send", package, 1).place == "send (channels_asyncq/layer.py)"
    assert Frame("dumps", json.__file__, 1).owner == JSON
    assert Frame("wrap", "/usr/lib/python3.13/functools.py", 1).owner is None


def test_a_profile_is_the_cost_by_shares() -> None:
    """Samples of a function without an owner count for its caller; the sum of the owners is the whole."""
    profile = Profile("frame", 20.0)
    nobody, server = (
        ("wrap", "/usr/lib/python3.13/functools.py", 1),
        ("send", "/site-packages/uvicorn/a.py", 1),
    )
    profile.add_all([((nobody, server), 3), ((server,), 5), ((nobody,), 2)])
    assert profile.samples == 10
    assert profile.of_owner(SERVER) == 16.0 and profile.of_owner(OTHER) == 4.0
    text = profile_pages.page([profile], "conditions")
    assert f"| {SERVER} | 16 |" in text and "| all | 20 |" in text
    assert f"| `send (uvicorn/a.py)` | {SERVER} | 16 |" in text


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named npm, to be written; packages are cached in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tmp_path.joinpath("package.json").write_text("{}")
    return tmp_path / "npm"


def test_packages_are_installed_once(npm: Path) -> None:
    """The second time needs no npm; the script's command names the folder."""
    npm.write_text("#!/bin/sh\nmkdir node_modules\n")
    npm.chmod(0o755)
    asyncio.run(install_packages(npm.parent))
    npm.write_text("#!/bin/sh\nexit 1\n")
    asyncio.run(install_packages(npm.parent))
    found = next(part for part in node_command(npm.parent, "a.js") if part.startswith("NODE_PATH="))
    assert Path(found.partition("=")[2]).is_dir()


def test_packages_that_cannot_be_installed(npm: Path) -> None:
    """The error has what npm said, and nothing half done stays."""
    npm.write_text("#!/bin/sh\nmkdir node_modules\necho no network\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(BenchmarkError, match="no network"):
        asyncio.run(install_packages(npm.parent))
    assert not list((npm.parent / "cache" / "channels_asyncq-benchmarks").iterdir())


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.timeout(500)
def test_check(tmp_path: Path) -> None:
    """A quick round of every side gives all figures, a page, a plot and JSON."""
    pytest.importorskip("matplotlib")
    options = ("--check", "--docs", str(tmp_path))
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "websockets.json").read_text())
    assert set(figures["rows"]) | set(figures["left_out"]) == set(SIDES)
    assert {name for name in figures["left_out"] if not SIDES[name].is_node} <= {
        "this layer, sync consumer; uvicorn"
    }
    compressing = {name for name, row in figures["rows"].items() if row["compresses"]}
    assert compressing == {"this layer; uvicorn, deflate", "bare loop; hypercorn", "this layer; hypercorn"}
    row = figures["rows"]["this layer; uvicorn"]
    assert len(row["figures"]) == 9 and row["lost"] == 0
    assert ElementTree.parse(tmp_path / "websockets.svg").getroot().tag.endswith("svg")
    assert "| this layer | uvicorn |" in (tmp_path / "websockets.md").read_text()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.timeout(300)
def test_profile(tmp_path: Path) -> None:
    """The page has owners, and a table of functions for each of the eight profiles."""
    options = ("--profile", "--clients", "100", "--messages", "3", "--docs", str(tmp_path))
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "websockets-profile.md").read_text()
    assert text.count("## By function") == 8
    assert f"| {SOCKET_WRITE} |" in text and f"| {SERVER} |" in text and f"| {OURS} |" in text


def processes_with(mark: str) -> Sequence[str]:
    """The commands of the processes that have inherited a variable with that value."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(150)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("side", ["this layer; uvicorn$", "this layer; granian"])
def test_told_to_stop(number: signal.Signals, side: str) -> None:
    """It ends with the status of the signal, and takes all servers and their workers along."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "CHANNELS_ASYNCQ_TEST_MARK": mark}
    process = subprocess.Popen([*COMMAND, "--rows", side, "--rounds", "50"], env=environment)
    deadline = time.monotonic() + PATIENCE
    try:
        while not any("benchmarks.sockets.site" in command for command in processes_with(mark)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    finally:
        process.kill()
        process.wait()
    while left := processes_with(mark):
        assert time.monotonic() < deadline + PATIENCE, left
        time.sleep(0.05)
