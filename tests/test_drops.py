"""The drop benchmark reads streams exactly, counts what was missed, and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks.drops.__main__ import chosen_sides, main, parser, plan_of
from benchmarks.drops.cluster_faults import CLUSTER_FAULTS
from benchmarks.drops.counting import Ledger, Outage, Sent, Tally, Visit, apart_from, percentile
from benchmarks.drops.links import EventLink, Link, SocketIOLink, SocketLink
from benchmarks.drops.report import as_json, figures, missed
from benchmarks.drops.runs import Outcome, Plan
from benchmarks.drops.servers import busy_share
from benchmarks.drops.sides import SIDES, Side
from benchmarks.drops.streams import (
    CLOSE,
    PING,
    TEXT,
    Chunks,
    Event,
    EventReader,
    FrameReader,
    Head,
    StreamError,
    client_frame,
)
from benchmarks.drops.watching import ScriptCount, ScriptWatch
from benchmarks.runner import BenchmarkError
from channels_asyncq.testing import EmbeddedServer


def pieces(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every split of bytes in two."""
    for at in range(len(data) + 1):
        yield data[:at], data[at:]


def chunked(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def frame(opcode: int, payload: bytes, *, is_last: bool = True) -> bytes:
    """A frame of a server."""
    masked = client_frame(opcode, payload)
    size = len(masked) - len(payload) - 4
    head = bytearray(masked[:size])
    head[0] = (head[0] & 0x7F) | (0x80 if is_last else 0)
    head[1] &= 0x7F
    return bytes(head) + payload


# Streams


def test_head_in_two_pieces() -> None:
    """However the head is split, its status and headers are read, and what follows it is returned."""
    data = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: a:b\r\n\r\nbody"
    for first, second in pieces(data):
        head = Head()
        rest = (head.feed(first) or b"") + (second if head.status else head.feed(second) or b"")
        assert rest == b"body" and head.status == 200 and head.headers["x"] == "a:b"


def test_chunks_in_two_pieces() -> None:
    """However a chunked body is split, its bytes come once, also those of a chunk that is incomplete."""
    data = chunked(b"one", b"2" * 300, b"three")
    for first, second in pieces(data):
        chunks = Chunks()
        assert chunks.feed(first) + chunks.feed(second) == b"one" + b"2" * 300 + b"three"
        assert chunks.is_over
    assert Chunks().feed(b"5\r\nab") == b"ab"


def test_events_in_two_pieces() -> None:
    """However a stream is split, its blocks are read, each when its blank line has come."""
    data = b"retry: 1500\n\nid: 1\nevent: chat\ndata: a\ndata:b\n\n: here\nid: 2\n\nid: 3\ndata: cut"
    expected = [
        Event(retry=1.5),
        Event(id="1", type="chat", data="a\nb"),
        Event(id="2", comment="here"),
    ]
    for first, second in pieces(data):
        events = EventReader()
        assert events.feed(first) + events.feed(second) == expected
    with pytest.raises(StreamError, match="carriage return"):
        EventReader().feed(b"data: a\r\n\n\n")


def test_frames_in_two_pieces() -> None:
    """However frames are split, messages come whole: fragments joined, with a ping between them, of all sizes."""
    long, longest = b"x" * 130, b"y" * 66_000
    fragments = frame(TEXT, b"a", is_last=False) + frame(PING, b"p") + frame(0, b"b")
    expected = [(PING, b"p"), (TEXT, b"ab"), (TEXT, long), (CLOSE, b"\x03\xf4")]
    for first, second in pieces(fragments + frame(TEXT, long) + frame(CLOSE, b"\x03\xf4")):
        frames = FrameReader()
        assert frames.feed(first) + frames.feed(second) == expected
    assert FrameReader().feed(frame(TEXT, longest)) == [(TEXT, longest)]


@pytest.mark.parametrize(
    ("data", "error"), [(client_frame(TEXT, b"a"), "masked"), (b"\xc1\x00", "compressed")]
)
def test_frames_a_server_must_not_send(data: bytes, error: str) -> None:
    with pytest.raises(StreamError, match=error):
        FrameReader().feed(data)


# Connections


class Transport:
    """Notes what a link writes, and how it ends."""

    def __init__(self) -> None:
        self.written = b""
        self.end = ""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.end = "closed"

    def abort(self) -> None:
        self.end = "cut"

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: object) -> None:
        """It is its own socket."""


class Page:
    """Notes what a link tells the client."""

    def __init__(self) -> None:
        self.position = ""
        self.messages: list[dict[str, Any]] = []
        self.resets: list[str] = []
        self.is_live = False
        self.seconds = 0.0
        self.why = ""

    def at(self, position: str) -> None:
        self.position = position

    def message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def caught_up(self) -> None:
        self.is_live = True

    def reset(self, reason: str, groups: list[str] | None) -> None:
        self.resets.append(reason)

    def wait(self, seconds: float) -> None:
        self.seconds = seconds

    def ended(self, link: Link, why: str) -> None:
        self.why = why


def opened(
    kind: type[Link], data: bytes, position: str = "p0", budget: int | None = None
) -> tuple[Page, Transport]:
    """A page whose connection was sent these bytes."""
    page, transport = Page(), Transport()
    link = kind(page, "/x/?group=a", position, budget)
    link.connection_made(transport)  # type: ignore[arg-type]
    link.data_received(data)
    return page, transport


EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def test_event_link_cut_at_each_byte() -> None:
    """A message and its position count together, or not at all."""
    events = [b'id: p%d\nevent: chat\ndata: {"n": %d}\n\n' % (number, number) for number in (1, 2)]
    data = EVENT_STREAM + chunked(
        b"retry: 2000\n\n" + events[0][:9], events[0][9:] + b": here\nid: p1\n\n", events[1]
    )
    seen = set()
    for budget in range(1, len(data) - len(b"0\r\n\r\n") + 1):
        page, transport = opened(EventLink, data, budget=budget)
        assert (page.why, transport.end) == ("cut", "cut")
        assert page.position == (f"p{len(page.messages)}" if page.messages else "")
        seen.add((len(page.messages), page.is_live, page.seconds))
    assert seen == {(0, False, 0.0), (0, False, 2.0), (1, False, 2.0), (1, True, 2.0), (2, True, 2.0)}
    page, transport = opened(EventLink, data)
    assert (page.why, transport.end) == ("response ended", "closed")
    assert b"Last-Event-ID: p0\r\n" in transport.written


def test_event_link_reset_and_status() -> None:
    """A reset is told with its reason, and the client is live after it; another status ends the stream."""
    reset = b'event: reset\nid: p9\ndata: {"reason": "trimmed", "groups": ["a"]}\n\n'
    page, _ = opened(EventLink, EVENT_STREAM + chunked(reset)[:-5])
    assert (page.resets, page.position, page.is_live, page.why) == (["trimmed"], "p9", True, "")
    page, _ = opened(EventLink, b"HTTP/1.1 503 Busy\r\n\r\n")
    assert page.why == "status 503"


def test_socket_link() -> None:
    """Messages carry positions; `resumed` is live, or a reset for a client with a position; close is answered."""
    message = json.dumps({"id": "p1", "m": {"n": 1}}).encode()
    resumed = json.dumps({"type": "resumed", "id": "p2", "recovered": False, "reason": "trimmed"}).encode()
    retry = json.dumps({"type": "retry", "ms": 700}).encode()
    data = UPGRADED + frame(TEXT, message) + frame(PING, b"x") + frame(TEXT, resumed) + frame(TEXT, retry)
    page, transport = opened(SocketLink, data)
    assert (page.messages, page.position, page.resets) == ([{"n": 1}], "p2", ["trimmed"])
    assert page.is_live and page.seconds == 0.7 and b"&since=p0 " in transport.written
    assert transport.written.endswith(client_frame(0xA, b"x"))
    page, _ = opened(SocketLink, data, position="")
    assert page.resets == []
    page, _ = opened(SocketLink, data + frame(TEXT, b'{"id": "p7"}'))
    assert page.position == "p7" and page.why == ""
    page, transport = opened(SocketLink, data + frame(CLOSE, b"\x03\xf4"))
    assert (page.why, transport.end) == ("close 1012", "closed")


def test_socket_io_link() -> None:
    """The session and the offset of the last message are the position, until the server gives another session."""
    first = UPGRADED + frame(TEXT, b'0{"sid":"x"}')
    message = frame(TEXT, b'42["message",{"n":1},"7-0"]')
    back = frame(TEXT, b'40{"sid":"y","pid":"s1"}') + message + frame(TEXT, b'42["here",{"recovered":true}]')
    page, transport = opened(SocketIOLink, first + back + frame(TEXT, b"2"), position="s1 6-0")
    assert (page.messages, page.position, page.is_live, page.resets) == ([{"n": 1}], "s1 7-0", True, [])
    assert b'40{"pid": "s1", "offset": "6-0"}' in transport.written
    assert transport.written.endswith(client_frame(TEXT, b"3"))
    other = (
        frame(TEXT, b'40{"sid":"y","pid":"s2"}') + message + frame(TEXT, b'42["here",{"recovered":false}]')
    )
    page, _ = opened(SocketIOLink, first + other, position="s1 6-0")
    assert page.resets == ["not_recovered"] and page.position == "s2 7-0"


# Counts


def count(numbers: list[int], fates: str, reset: int | None = None, losses: tuple[float, ...] = ()) -> Tally:
    """Count a client that got these numbers, and perhaps a reset before one, at the second of its number."""
    ledger = Ledger()
    resets = []
    for number in numbers:
        if number == reset:
            ledger.tell(number)
            resets.append((float(number), "server_changed"))
        ledger.take(number)
    if reset is not None and reset not in numbers:
        ledger.tell(reset)
        resets.append((float(reset), "server_changed"))
    client = json.loads(json.dumps({"ledgers": {"a": ledger.as_json()}, "resets": resets}))
    tally = Tally()
    tally.add(client, {"a": Sent([number + 0.5 for number in range(len(fates))], fates)}, losses)
    return tally


@pytest.mark.parametrize(
    ("numbers", "fates", "expected"),
    [
        ([0, 1, 2], "aaa", Tally(expected=3)),
        ([0, 2], "aaa", Tally(expected=3, missing=1)),
        ([0, 1], "aaa", Tally(expected=3, missing=1)),
        ([], "aaa", Tally(expected=3, missing=3)),
        ([2], "aaa", Tally(expected=3, missing=2)),
        ([0, 1, 1, 2], "aaa", Tally(expected=3, twice=1)),
        ([0, 3, 2], "aaaa", Tally(expected=4, missing=1, disordered=1)),
        ([0, 3, 1, 2], "aaaa", Tally(expected=4, disordered=2)),
        ([0, 3, 2, 2], "aaaa", Tally(expected=4, missing=1, disordered=1, twice=1)),
        # What was refused need not come, what has an unknown fate may come.
        ([0, 3], "aura", Tally(expected=2)),
        ([0, 1, 3], "aura", Tally(expected=2)),
    ],
)
def test_tally(numbers: list[int], fates: str, expected: Tally) -> None:
    """Messages are counted by their numbers, from the first that was sent to the last."""
    assert count(numbers, fates) == expected


def test_tally_of_resets() -> None:
    """A reset tells of what was sent before it; it is true once after each loss of the server's data."""
    true = count([0, 4, 5], "aaaaaa", reset=4, losses=(3.0,))
    assert (true.told, true.missing, true.true_resets, true.false_resets) == (3, 0, 1, 0)
    assert true.delivered == 50 and true.reasons == {"server_changed": 1}
    false = count([0, 4, 5], "aaaaaa", reset=4)
    assert (false.told, false.true_resets, false.false_resets) == (3, 0, 1)
    # What was sent before a reset does not matter when it comes again after it; what was sent later does.
    assert count([0, 1, 1], "aaa", reset=2, losses=(1.0,)).twice == 1
    ledger = Ledger()
    ledger.take(0)
    ledger.tell(1.0)
    ledger.take(0)
    assert (ledger.twice[0].first, ledger.twice[0].told_at) == (0, 1.0)
    # A reset may come behind the first message after the gap of which it tells, but not at any time.
    for seconds, missing in ((0.5, 0), (1.5, 2)):
        ledger = Ledger()
        ledger.take(2)
        ledger.tell(ledger.gaps[0].when + seconds)
        tally = Tally()
        tally.add({"ledgers": {"a": ledger.as_json()}, "resets": []}, {"a": Sent([0.0] * 3, "aaa")}, ())
        assert (tally.missing, tally.told) == (missing, 2 - missing)
    # The reset came before number 4 was sent, and 4 and 5 are missing.
    assert count([0, 1, 2, 3], "aaaaaa", reset=4, losses=(3.0,)).missing == 2
    tally = Tally()
    client = {"ledgers": {}, "resets": [(5.0, "server_changed"), (6.0, "ahead"), (9.0, "server_changed")]}
    tally.add(client, {}, (4.0, 8.0))
    assert (tally.true_resets, tally.false_resets) == (2, 1)


def test_percentile_and_outages() -> None:
    """The share of values below; visits that an outage touches at either end are left out."""
    assert percentile([3, 1, 2], 0.5) == 2 and percentile([1, 2], 0.99) == 2 and percentile([], 0.5) == 0
    times = [(0.0, 1.0), (0.5, 4.0), (2.5, 2.6), (3.5, 5.0), (1.0, 9.0)]
    visits = [Visit(*time, port=1) for time in times]
    assert apart_from(visits, [Outage(2.0, 3.0)]) == [visits[0], visits[3]]
    assert apart_from(visits, [Outage(2.0, 3.0, 1)]) == [visits[0], visits[3]]
    assert apart_from(visits, [Outage(2.0, 3.0, 2)]) == visits


def test_busy_share() -> None:
    """Idle time and waiting for disks are not busy."""
    assert busy_share([0] * 8, [10, 0, 10, 60, 20, 0, 0, 0]) == pytest.approx(0.2)


def test_scripts_that_read() -> None:
    """A script counts as a read once, however many logs it reads; a command of a client is none."""
    scripts = ScriptCount()
    for text in (
        '1.0 [0 1.2.3.4:5] "XRANGE" "log" "-" "+"',
        '1.1 [0 1.2.3.4:5] "EVALSHA" "abc" "0"',
        '1.1 [0 lua] "xrange" "log" "-" "+"',
        '1.1 [0 lua] "xrange" "other" "-" "+"',
        '1.2 [0 1.2.3.4:5] "EVALSHA" "def" "0"',
        '1.2 [0 lua] "XADD" "log" "*" "a" "b"',
    ):
        scripts.take(text.encode())
    assert (scripts.scripts, scripts.reads) == (2, 1)


def test_scripts_of_a_server(redis_server: EmbeddedServer) -> None:
    """The commands of a script follow it in MONITOR: only the script that reads a log is counted as a read."""
    watch = ScriptWatch(redis_server)
    redis_server.command("EVAL", "redis.call('XRANGE', KEYS[1], '-', '+')", 1, "drops")
    redis_server.command("EVAL", "return redis.call('EXISTS', KEYS[1])", 1, "drops")
    watch.stop()
    assert (watch.count.scripts, watch.count.reads) == (2, 1)


# Goals


def outcome(run: str = "drops", side: str = "sse") -> Outcome:
    """An outcome without a fault."""
    good = Outcome(run, SIDES[side], Plan(clients=2), Tally(expected=10), live=2, clear=[0.1])
    return replace(good, back=1.0, reads=1) if run == "herd" else good


def test_goals() -> None:
    """Each goal is missed by itself, and a side without resume has none."""
    assert missed(outcome()) == missed(outcome("herd")) == missed(outcome("cuts")) == []
    for tally, text in (
        (Tally(), "messages were expected"),
        (Tally(expected=1, missing=1), "1 missing"),
        (Tally(expected=1, twice=2), "2 twice"),
        (Tally(expected=1, disordered=3), "3 out of order"),
        (Tally(expected=1, false_resets=4), "4 false resets"),
    ):
        assert missed(replace(outcome(), tally=tally)) == [text]
        assert missed(replace(outcome(side="sse-control"), tally=tally)) == []
    assert missed(replace(outcome(), live=1)) == ["1 of 2 back"]
    assert missed(replace(outcome(), clear=[1.5])) == ["p99 to caught up 1.500 s"]
    full = replace(outcome(), clear=[1.5], busy=0.99)
    assert missed(full) == [] and figures(full)["goals"] == "met, CPU full"
    assert missed(replace(outcome("herd"), back=3.5, reads=3)) == ["all back in 3.50 s", "3 reads of logs"]
    closed = outcome()
    closed.ends["status 503"] += 1
    assert missed(closed) == ["1 closed for good"]


def test_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --check a missed goal is said and makes the command fail; without, it is only said."""
    found = outcome()

    async def play(plan: Plan, side: Side, folder: Path) -> Outcome:
        return found

    monkeypatch.setattr("benchmarks.drops.__main__.drops", play)
    assert main(["--kind", "sse", "--check"]) == 0
    found.tally.missing = 3
    assert main(["--kind", "sse", "--check"]) == 1 and "MISSED: 3 missing" in capsys.readouterr().out
    assert main(["--kind", "sse"]) == 0


def test_a_server_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that cannot be made says why, and is not taken for a missed goal."""

    async def play(plan: Plan, side: Side, folder: Path) -> Outcome:
        raise BenchmarkError("no port")

    monkeypatch.setattr("benchmarks.drops.__main__.drops", play)
    assert main(["--kind", "sse", "--check"]) == 2 and capsys.readouterr().err == "no port\n"


def test_json_has_all_figures() -> None:
    """What goes to a file can be encoded, counts included."""
    good = outcome()
    good.tally.reasons["trimmed"] += 1
    assert json.loads(json.dumps(as_json(good)))["tally"]["reasons"] == {"trimmed": 1}


def test_options() -> None:
    """Options choose sides and sizes; unknown names are refused with those that there are."""
    arguments = parser().parse_args(["--herd", "--kind", "sse"])
    assert [side.name for side in chosen_sides(arguments)] == ["sse"]
    assert plan_of(arguments) == Plan(clients=2000, seconds=5.0, servers=1)
    assert plan_of(parser().parse_args(["--faults"])).faults == (
        "server",
        "connections",
        "stop",
        "empty",
        "restart",
    )
    everything = parser().parse_args(["--cluster", "--faults"])
    assert plan_of(everything).faults == tuple(CLUSTER_FAULTS) and plan_of(everything).is_cluster
    refused = (["--cluster", "--herd"], ["--cluster", "--compare"], ["--cluster", "--faults", "empty"])
    for option in (["--sides", "sse,x"], ["--faults", "x"], ["--stay", "1"], *refused):
        with pytest.raises(SystemExit):
            main(option)


SMALL = ["--clients", "20", "--rooms", "2", "--seconds", "5", "--stay", "1,2", "--away", "0.5"]


def play(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """Run the command to its end; return the figures of each side."""
    pytest.importorskip("uvicorn")
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.drops", *SMALL, *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs: list[dict[str, Any]] = json.loads(path.read_text())
    return runs


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_run_without_resume(tmp_path: Path) -> None:
    """Clients that are cut off and not resumed miss messages, get none twice, and all come back."""
    for run in play(tmp_path, "--sides", "sse-control,websocket-control", "--faults", "server"):
        tally = run["tally"]
        assert 0 < tally["missing"] < tally["expected"] and tally["twice"] == tally["disordered"] == 0
        assert run["live"] == 20 and run["ends"]["cut"] > 20 and run["cpu_seconds"] > 0


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_run_with_resume(tmp_path: Path) -> None:
    """Clients that resume get every message once and in order, and all come back."""
    faults = "--faults", "server,connections", "--every", "1,2"
    for run in play(tmp_path, "--sides", "sse,websocket", *faults):
        assert run["tally"]["delivered"] == 100 and run["ends"]["cut"] > 20
        # How soon they have caught up is the machine's affair here.
        goals = [goal for goal in run["goals"] if "p99" not in goal["text"]]
        assert goals and all(goal["is_met"] for goal in goals), goals


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "server",
    ["uvicorn", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("granian", "hypercorn"))],
)
def test_a_run_with_restarts(tmp_path: Path, server: str) -> None:
    """Servers that are drained and started again, in turn, cost no client a message."""
    pytest.importorskip(server)
    faults = "--faults", "restart", "--drain", "2", "--every", "0.5,1", "--seconds", "12", "--server", server
    for run in play(tmp_path, "--sides", "sse,websocket", *faults):
        assert run["tally"]["delivered"] == 100 and run["faults"]
        goals = [goal for goal in run["goals"] if "p99" not in goal["text"]]
        assert goals and all(goal["is_met"] for goal in goals), goals


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("faults", "is_planned"), [("move,failover", True), ("kill,stop", False)])
def test_a_run_on_a_cluster(tmp_path: Path, faults: str, is_planned: bool) -> None:
    """Planned changes lose nothing and reset nobody. After others a message that is missing has its reset."""
    options = ["--cluster", "--sides", "websocket", "--faults", faults, "--every", "1,2", "--seconds", "8"]
    [run] = play(tmp_path, *options)
    assert run["faults"] and run["ends"]["cut"] > 20
    goals = [goal for goal in run["goals"] if "p99" not in goal["text"]]
    assert goals and all(goal["is_met"] for goal in goals), (goals, run["tally"])
    if is_planned:
        assert run["tally"]["delivered"] == 100 and not run["tally"]["reasons"]
    else:
        # None, if the nodes that failed had no room.
        assert run["tally"]["reasons"].keys() <= {"server_changed"}
