"""The script resume.js in headless Chromium, against uvicorn and Daphne, which are killed and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.template import Context, Template

import channels_asyncq
from tests.browsers import CHROMIUM, Browser, Page, chromium, chromium_with_tabs
from tests.code_blocks import block
from tests.example import HOST, Program, free_port

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="kill -9 wants POSIX"),
    pytest.mark.timeout(120),
]

ROOT = Path(__file__).resolve().parent.parent
APPLICATION = "tests.processes.resume_site:application"
LONG = 60_000  # ms: a delay that no test waits for
FIRST, LONGEST = 500, 20_000  # ms, as in the script
NOTE_VISIBILITY = """
addEventListener("visibilitychange", () => told.push({ type: "seen", hidden: document.hidden }))
"""

Event = dict[str, Any]
OpenPage = Callable[[], Page]


class Site:
    """One server of the room, whose log is a file."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self.log = folder / "room.log"
        self.log.touch()
        self.refusing = folder / "refusing"
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(Path(channels_asyncq.__file__).parent.parent), str(ROOT)]),
            "RESUME_LOG": str(self.log),
        }
        self.server: Program | None = None

    def start(self, **more: str) -> None:
        command = {
            "daphne": ["-m", "daphne", "-b", HOST, "-p", str(self.port), APPLICATION],
            "uvicorn": [
                *("-m", "uvicorn", "--host", HOST, "--port", str(self.port), "--lifespan", "off", APPLICATION)
            ],
        }[self.kind]
        self.server = Program(*command, environment=self.environment | more).__enter__()
        try:
            self.server.wait_for("Listening on TCP address|Uvicorn running on")
        except BaseException:
            self.kill()
            raise

    def signal(self, number: signal.Signals) -> None:
        assert self.server is not None
        self.server.process.send_signal(number)

    def kill(self) -> None:
        if self.server is not None:
            self.server.stop(signal.SIGKILL)
            self.server.__exit__(None, None, None)
            self.server = None

    def say(self, text: str) -> None:
        """Say something while no server is there to tell it."""
        with self.log.open("a") as log:
            log.write(f"{text}\n")


@pytest.fixture
def kind() -> str:
    return "uvicorn"


@pytest.fixture
def site(tmp_path: Path, kind: str) -> Iterator[Site]:
    site = Site(tmp_path, kind)
    site.start()
    yield site
    site.kill()


both = pytest.mark.parametrize("kind", ["uvicorn", "daphne"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page of the site, whose Content Security Policy nothing may have violated at the end."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_site(page, site)
    yield page
    assert page.evaluate("violations") == []
    context.close()
    assert problems == []


def open_site(page: Page, site: Site) -> None:
    response = page.goto(f"http://{HOST}:{site.port}/")
    assert response.headers["content-security-policy"] == "default-src 'self'"
    wait(page, "window.connect")


def connect(page: Page, **options: Any) -> None:
    """Connect, and wait until nothing is missing."""
    page.evaluate("(options) => { window.socket = connect(options) }", options)
    wait(page, "told.some(({type}) => type === 'recovered')")


def wait(page: Page, condition: str, argument: object = None) -> None:
    """Wait until an expression of the page is true. (`wait_for_function()` evals, which the policy forbids.)"""
    ends_well = page.evaluate(
        f"""async (argument) => {{
          for (const end = performance.now() + 100_000; performance.now() < end; ) {{
            if ({condition}) return true;
            await new Promise((done) => setTimeout(done, 10));
          }}
        }}""",
        argument,
    )
    assert ends_well, (condition, told(page))


def told(page: Page, kind: str = "", events: str = "told") -> list[Event]:
    """The events that the page was told of so far, of a kind if one is named."""
    found: list[Event] = page.evaluate(events)
    return [event for event in found if kind in ("", event["type"])]


def wait_for(page: Page, kind: str, count: int) -> Event:
    """Wait until so many events of a kind were told; return the last of them."""
    wait(page, f"told.filter(({{type}}) => type === {kind!r}).length >= {count}")
    return told(page, kind)[count - 1]


def tell(page: Page, **order: Any) -> None:
    """Have the server do something, in the order of the keys."""
    assert page.evaluate("(text) => socket.send(text)", json.dumps(order)) is True


def texts(page: Page) -> list[str]:
    """The messages of the room that the page got."""
    return [event["data"] for event in told(page, "message") if event["lastEventId"]]


def positions_sent(page: Page) -> list[str]:
    """The `since` of each connection, as the server saw it."""
    own = [event["data"] for event in told(page, "message") if not event["lastEventId"]]
    return [json.loads(data)["since"] for data in own if data.startswith('{"since"')]


def come_online(page: Page) -> None:
    """The network of the browser goes and comes back: the page has heard of it when this returns."""
    page.evaluate("window.back = new Promise((heard) => addEventListener('online', heard)); 0")
    page.context.set_offline(True)
    page.context.set_offline(False)
    page.evaluate("back.then(() => 0)")


def another_comes_back(page: Page, ms: int = 0) -> None:
    """A new socket is sent away for so long and returns: what another one would do meanwhile is done."""
    page.evaluate("window.others = []; window.other = connect({}, others); 0")
    wait(page, "others.some(({ type }) => type === 'recovered')")
    order = {"send": json.dumps({"type": "retry", "ms": ms}), "close": [4012]}
    page.evaluate("(text) => other.send(text)", json.dumps(order))
    wait(page, "others.filter(({ type }) => type === 'recovered').length === 2")


def send_away(page: Page, ms: int = LONG) -> Event:
    """Have the server close the connection and tell the page to wait; return the close event."""
    tell(page, send=json.dumps({"type": "retry", "ms": ms}), close=[4012])
    return wait_for(page, "close", 1)


@both
def test_messages_and_own_frames(page: Page) -> None:
    """A message of the room comes with its position; another frame of the consumer as it is, whatever it is."""
    connect(page)
    assert positions_sent(page) == [""]
    (recovered,) = told(page, "recovered")
    assert recovered["recovered"] is True
    assert (recovered["reason"], recovered["first"], recovered["position"]) == ("", True, "p~0")
    own = [
        "id",
        "7",
        "null",
        '"m"',
        "[1]",
        "{}",
        '{"type": "retry"}',
        '{"type": "resumed"}',
        '{"id": 9, "a": 1}',
    ]
    for frame in own:
        tell(page, send=frame)
    tell(page, say="hello")
    wait(page, "socket.position === 'p~1'")
    *others, last = told(page, "message")[1:]
    assert [(event["data"], event["lastEventId"], event["position"]) for event in others] == [
        (frame, "", "p~0") for frame in own
    ]
    assert (last["data"], last["lastEventId"], last["position"]) == ("hello", "p~1", "p~1")


@both
def test_killed_server(page: Page, site: Site) -> None:
    """After each kill -9 the page comes back from its last position: nothing is missing, double or disordered."""
    connect(page)
    expected = []
    for number in (1, 2, 3):
        tell(page, say=f"before {number}")
        wait(page, f"socket.position === 'p~{2 * number - 1}'")
        closes = len(told(page, "close"))
        site.kill()
        assert wait_for(page, "close", closes + 1)["code"] == 1006
        site.say(f"meanwhile {number}")
        site.start()
        recovered = wait_for(page, "recovered", number + 1)
        assert recovered["recovered"] is True and recovered["first"] is False
        assert recovered["position"] == f"p~{2 * number}"
        expected += [f"before {number}", f"meanwhile {number}"]
    assert texts(page) == expected
    assert positions_sent(page) == ["", "p~1", "p~3", "p~5"]
    # What was missed comes before the event.
    kinds = [
        event["type"] for event in told(page) if event["type"] == "recovered" or event.get("lastEventId")
    ]
    assert kinds == ["recovered", *["message", "message", "recovered"] * 3]


def test_heartbeats_and_parts(page: Page) -> None:
    """An id alone moves the position and is not shown; a message without an id is shown and moves nothing."""
    connect(page)
    tell(page, send='{"id": "p~0~"}')
    tell(page, send='{"m": null}')
    tell(page, send='{"id": "p~00", "m": "second"}')
    wait(page, "socket.position === 'p~00'")
    messages = [(event["data"], event["lastEventId"]) for event in told(page, "message")[1:]]
    assert messages == [(None, "p~0~"), ("second", "p~00")]


def test_name_of_the_channel_travels_along(page: Page) -> None:
    """What `resumed` has behind ~~ is added to each later position, until the next `resumed`."""
    connect(page)
    resumed = {"type": "resumed", "recovered": False, "reason": "overflow"}
    tell(page, send=json.dumps({**resumed, "id": "p~0~~specific.a~~specific.b~c"}))
    tell(page, send='{"id": "p~1", "m": "hello"}')
    tell(page, send=json.dumps({**resumed, "id": "p~2"}))
    tell(page, send='{"id": "p~3", "m": "again"}')
    wait(page, "socket.position === 'p~3'")
    channel = "~~specific.a~~specific.b~c"
    assert [event["position"] for event in told(page)[-4:]] == [
        f"p~0{channel}",
        f"p~1{channel}",
        "p~2",
        "p~3",
    ]
    assert [event["lastEventId"] for event in told(page, "message")[-2:]] == [f"p~1{channel}", "p~3"]
    assert told(page, "recovered")[-1]["first"] is False


def test_position_of_the_view(page: Page, site: Site) -> None:
    """With the position that the view rendered, the first connection brings what came since."""
    for text in ("rendered", "missed"):
        site.say(text)
    connect(page, since="p~1")
    assert positions_sent(page) == ["p~1"]
    assert texts(page) == ["missed"]
    (recovered,) = told(page, "recovered")
    assert recovered["recovered"] is True and recovered["first"] is True


def test_position_that_is_gone(page: Page, site: Site) -> None:
    """If the server cannot bring what was missed, the page is told so, and goes on from the newest position."""
    connect(page)
    site.kill()
    for text in ("one", "two", "three"):
        site.say(text)
    site.start(RESUME_FIRST="2")
    recovered = wait_for(page, "recovered", 2)
    assert recovered["recovered"] is False
    assert (recovered["reason"], recovered["first"], recovered["position"]) == ("trimmed", False, "p~3")
    tell(page, say="four")
    wait(page, "socket.position === 'p~4'")
    assert texts(page) == ["four"]


def test_position_that_the_page_sets(page: Page) -> None:
    """A page may set the position; without one the next connection starts afresh."""
    connect(page)
    tell(page, say="one")
    wait(page, "socket.position === 'p~1'")
    page.evaluate("socket.position = ''")
    tell(page, close=[4500])
    wait_for(page, "recovered", 2)
    assert positions_sent(page) == ["", ""]
    assert texts(page) == ["one"]


def test_delays_are_bounded_and_jittered(page: Page, site: Site) -> None:
    """The nth delay is anything from 0 to 500 ms times two to the n, and to 20 s; each is waited for."""
    site.kill()
    page.evaluate("connectMany(6)")
    # For the seventh, 20 s are the limit.
    wait(page, "attempts.every((events) => events.length >= 7)")
    shares = []
    for events in page.evaluate("attempts"):
        for number, (event, following) in enumerate(zip(events, [*events[1:], None], strict=True)):
            limit = min(LONGEST, FIRST * 2**number)
            assert event["type"] == "close" and event["code"] == 1006
            assert 0 <= event["delay"] <= limit
            shares.append(event["delay"] / limit)
            if following is not None:
                assert following["at"] - event["at"] >= event["delay"] - 2
    quarters = {int(4 * share) for share in shares}
    assert quarters >= {0, 1, 2, 3}
    assert len(set(shares)) > len(shares) / 2


def test_good_connection_ends_the_growth(page: Page, site: Site) -> None:
    """After a connection that was resumed the delays begin again."""
    site.kill()
    page.evaluate("connectMany(4)")
    wait(page, "attempts.every((events) => events.length >= 4)")
    site.start()
    wait(page, "attempts.every((events) => events.some(({ type }) => type === 'recovered'))")
    before = page.evaluate("attempts.map((events) => events.length)")
    site.kill()
    wait(page, "attempts.every((events, n) => events.length > argument[n])", before)
    after = page.evaluate("(before) => attempts.map((events, n) => events[before[n]])", before)
    assert [event["type"] for event in after] == ["close"] * 4
    assert all(event["delay"] <= FIRST for event in after)


def test_wake_ends_the_growth(page: Page, site: Site) -> None:
    """When an attempt at a wake fails, the delays begin again."""
    site.kill()
    page.evaluate("connectMany(4)")
    wait(page, "attempts.every((events) => events.length >= 4)")
    before = page.evaluate("attempts.map((events) => events.length)")
    come_online(page)
    wait(page, "attempts.every((events, n) => events.length > argument[n])", before)
    # While the network was away an attempt may have failed too, before the wake.
    wait(
        page,
        "attempts.every((events, n) => events.slice(argument[n]).some(({ delay }) => delay <= 500))",
        before,
    )


@both
def test_retry_frame(page: Page) -> None:
    """A page that is told when to come back waits just that long, and next time by itself again."""
    connect(page)
    closed = send_away(page, 700)
    assert closed["code"] == 4012 and closed["delay"] == 700
    wait_for(page, "recovered", 2)
    again = next(event for event in told(page, "message") if event["at"] > closed["at"])
    assert again["at"] - closed["at"] >= 698
    tell(page, close=[4500])
    assert wait_for(page, "close", 2)["delay"] <= FIRST


def test_wake_when_the_network_is_back(page: Page) -> None:
    """At `online` the page comes back at once."""
    connect(page)
    closed = send_away(page)
    come_online(page)
    assert wait_for(page, "recovered", 2)["at"] - closed["at"] < LONG / 2


def test_wake_when_visible(browser: Browser, site: Site, tmp_path: Path) -> None:
    """A tab that goes to the background waits on; when it is in front again, it comes back at once."""
    with chromium_with_tabs(browser, tmp_path / "profile") as tabs:
        (context,) = tabs.contexts
        page = context.new_page()
        open_site(page, site)
        connect(page)
        page.evaluate(NOTE_VISIBILITY)
        closed = send_away(page)
        context.new_page().bring_to_front()
        assert wait_for(page, "seen", 1)["hidden"] is True
        another_comes_back(page)
        assert len(told(page, "recovered")) == 1
        page.bring_to_front()
        assert wait_for(page, "recovered", 2)["at"] - closed["at"] < LONG / 2
        kinds = [event["type"] for event in told(page)]
        assert kinds[-5:] == ["close", "seen", "seen", "message", "recovered"]
        # A page in the background hears of the network.
        tell(page, send=json.dumps({"type": "retry", "ms": LONG}), close=[4012])
        closed = wait_for(page, "close", 2)
        context.pages[-1].bring_to_front()
        assert wait_for(page, "seen", 3)["hidden"] is True
        come_online(page)
        assert wait_for(page, "recovered", 3)["at"] - closed["at"] < LONG / 2


def test_wake_when_shown_again(page: Page) -> None:
    """At `pageshow` the page comes back at once: for some browsers it is the only sign of a kept page."""
    connect(page)
    closed = send_away(page)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    assert wait_for(page, "recovered", 2)["at"] - closed["at"] < LONG / 2


@both
def test_back_and_forward(page: Page, site: Site) -> None:
    """A page that is left says goodbye, the browser keeps it, and it comes back at once without a gap."""
    connect(page)
    tell(page, say="before")
    wait(page, "socket.position === 'p~1'")
    for number in (1, 2):
        page.goto(f"http://{HOST}:{site.port}/other/")
        site.say(f"meanwhile {number}")
        page.go_back(wait_until="commit")
        wait_for(page, "recovered", number + 1)
    assert [event["persisted"] for event in told(page, "pageshow")][-2:] == [True, True]
    assert [event["code"] for event in told(page, "close")] == [1001, 1001]
    assert texts(page) == ["before", "meanwhile 1", "meanwhile 2"]
    assert positions_sent(page) == ["", "p~1", "p~2"]


def test_page_that_is_left_waits_for_its_return(page: Page) -> None:
    """From `pagehide` on the page connects no more: a browser does not keep one that has a connection."""
    connect(page)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    assert wait_for(page, "close", 1)["code"] == 1001
    another_comes_back(page, FIRST + 200)
    assert len(told(page, "recovered")) == 1
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    wait_for(page, "recovered", 2)


def test_page_left_while_it_waits(page: Page, site: Site) -> None:
    """A page that waits for its delay when it is left tells of no second close, and comes back at once."""
    connect(page)
    closed = send_away(page)
    page.goto(f"http://{HOST}:{site.port}/other/")
    page.go_back(wait_until="commit")
    assert wait_for(page, "recovered", 2)["at"] - closed["at"] < LONG / 2
    assert len(told(page, "close")) == 1


def test_dead_connection_is_left_at_a_wake(page: Page, site: Site) -> None:
    """A connection that was silent for too long when the page wakes is given up, one that was not is kept."""
    connect(page, silence=LONG)
    come_online(page)
    tell(page, say="kept")
    wait(page, "socket.position === 'p~1'")
    assert told(page, "close") == []
    page.evaluate("socket.close()")
    page.evaluate("told.length = 0")
    connect(page, silence=200, since="p~1")
    site.signal(signal.SIGSTOP)
    site.say("missed")
    tell(page, say="into the void")
    wait(page, "performance.now() > told.at(-1).at + 300")
    come_online(page)
    closed = wait_for(page, "close", 1)
    assert closed["code"] == 1006 and closed["delay"] == 0
    site.signal(signal.SIGCONT)
    wait_for(page, "recovered", 2)
    assert positions_sent(page) == ["p~1", "p~1"]
    wait(page, "socket.position === 'p~3'")
    assert texts(page) == ["missed", "into the void"]
    # The end of the old connection has come by now, and is nobody's.
    another_comes_back(page, FIRST)
    assert len(told(page, "close")) == 1 and len(told(page, "recovered")) == 2


def test_attempt_that_hangs_is_given_up(page: Page, site: Site) -> None:
    """A server that accepts and never answers is left after 20 s; an open connection is not."""
    page.evaluate("window.kept = []; connect({}, kept); 0")
    wait(page, "kept.some(({ type }) => type === 'recovered')")
    site.signal(signal.SIGSTOP)
    began = page.evaluate("window.socket = connect(); performance.now()")
    closed = wait_for(page, "close", 1)
    assert closed["code"] == 1006
    assert LONGEST - 50 <= closed["at"] - began <= 2 * LONGEST
    assert told(page, "close", "kept") == []
    site.signal(signal.SIGCONT)
    wait_for(page, "recovered", 1)


def is_final(page: Page, code: list[int]) -> bool:
    """Whether the page stays away after the server closed with this code."""
    page.evaluate("told.length = 0")
    connect(page)
    tell(page, close=code)
    closed = wait_for(page, "close", 1)
    assert closed["code"] == (code or [1000])[0]
    if closed["delay"] is None:
        return True
    wait_for(page, "recovered", 2)
    page.evaluate("socket.close()")
    return False


def test_codes_that_are_final(page: Page) -> None:
    """1000, 1008 and 1009, and 4000 to 4499 with two exceptions, end it for good."""
    final = [[], [1000], [1008], [1009], [4000], [4003], [4011], [4401], [4403], [4404], [4499]]
    assert [is_final(page, code) for code in final] == [True] * len(final)
    come_online(page)
    assert page.evaluate("socket.send('{}')") is False
    another_comes_back(page)
    assert told(page)[-1]["type"] == "close"


def test_codes_after_which_it_comes_back(page: Page) -> None:
    """A server that goes, fails or is too busy is tried again."""
    back = [[1001], [1011], [1012], [1013], [3000], [4012], [4013], [4500], [4999]]
    assert [is_final(page, code) for code in back] == [False] * len(back)


def test_reason_of_the_server(page: Page) -> None:
    """The reason that the consumer gives comes with the code. (Daphne sends none.)"""
    connect(page)
    tell(page, close=[4403, "not you"])
    closed = wait_for(page, "close", 1)
    assert (closed["code"], closed["reason"]) == (4403, "not you")


@pytest.mark.parametrize("kind", ["daphne"])
def test_codes_under_daphne(page: Page) -> None:
    """close() without a code is final, and what stands for 1012 and 1013 is not."""
    codes: list[list[int]] = [[], [4003], [4012], [4013]]
    assert [is_final(page, code) for code in codes] == [True, True, False, False]


def test_send_and_close(page: Page) -> None:
    """While there is no connection send() refuses; after close() there is none any more, and it is told once."""
    assert page.evaluate("window.socket = connect(); socket.send('{}')") is False
    wait_for(page, "recovered", 1)
    tell(page, send="heard")
    wait(page, "told.at(-1).data === 'heard'")
    assert page.evaluate("socket.close(); socket.close(); socket.send('{}')") is False
    come_online(page)
    (closed,) = told(page, "close")
    assert closed["code"] == 1000 and closed["delay"] is None
    assert told(page)[-1] == closed


def test_close_while_it_waits(page: Page) -> None:
    """close() ends the waiting too, from a listener of the event that tells of the wait."""
    connect(page)
    page.evaluate("socket.addEventListener('close', () => socket.close(), { once: true }); 0")
    tell(page, close=[4500])
    wait_for(page, "close", 2)
    come_online(page)
    another_comes_back(page)
    # The later call is told first: the listener that closes was asked after the one that notes.
    assert [event["delay"] is None for event in told(page, "close")] == [False, True]
    assert len(told(page, "recovered")) == 1


def test_urls(page: Page, site: Site) -> None:
    """The url may be absolute, of http: or ws:, and have a query of its own; a wrong one is refused at once."""
    for scheme in ("http", "ws"):
        page.evaluate("told.length = 0")
        connect(page, url=f"{scheme}://{HOST}:{site.port}/ws/room/?a=b", since="p~0")
        assert positions_sent(page) == ["p~0"]
        page.evaluate("socket.close()")
    error = page.evaluate(
        "(() => { try { connect({ url: 'ftp://x/' }) } catch (error) { return error.name } })()"
    )
    assert error == "SyntaxError"


@both
def test_consumer_of_the_package(page: Page, site: Site, redis_url: str, prefix: str) -> None:
    """With ResumableWebsocketConsumer too, what was sent while the page was away comes once and in order."""
    site.kill()
    layer = {"RESUME_LAYER": json.dumps({"hosts": [redis_url], "prefix": prefix})}
    site.start(**layer)
    connect(page, url="/ws/package/")
    expected = []
    for number in (1, 2, 3):
        sent_meanwhile = [f"meanwhile {number}.{n}" for n in range(3)]
        tell(page, say=f"before {number}")
        wait(page, f"told.some(({{ data }}) => data === 'before {number}')")
        tell(page, leave=sent_meanwhile)
        recovered = wait_for(page, "recovered", number + 1)
        assert (recovered["recovered"], recovered["reason"], recovered["first"]) == (True, "", False)
        expected += [f"before {number}", *sent_meanwhile]
    site.kill()
    site.start(**layer)
    assert wait_for(page, "recovered", 5)["recovered"] is True
    assert texts(page) == expected
    tell(page, answer={"own": True})
    wait(page, "told.at(-1).type === 'message'")
    assert json.loads(told(page)[-1]["data"]) == {"own": True}
    assert "~~" in page.evaluate("socket.position")


CLIENT = "docs/browser-client.md"
#: The functions of the page's own.
NOTES = """
window.notes = [];
for (const name of ["show", "load", "say", "answered"]) {
  window[name] = (data) => { notes.push(data === undefined ? [name] : [name, data]) };
}
"""
ORDERS = """
document.body.append(Object.assign(document.createElement("main"), { id: "orders" }));
document.getElementById("orders").dataset.since = "p~1";
"""
#: As the page of the site has it.
VIOLATIONS = """
window.told = [];
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective }) => violations.push(violatedDirective));
"""


def is_noted(page: Page, *note: str) -> None:
    """Wait until the snippet has called this function of the page with this."""
    wait(
        page,
        "notes.some((note) => JSON.stringify(note) === argument)",
        json.dumps(note, separators=(",", ":")),
    )


def test_documented_script(page: Page, site: Site) -> None:
    """The example of the script shows what was missed, tells what is the consumer's own, and loads if it must."""
    for text in ("rendered", "missed"):
        site.say(text)
    html = Template(block(CLIENT, "html")).render(Context({"position": "p~1"}))
    site.log.with_name("documented.html").write_text(html)
    name = "**/static/myapp/room.js"
    script = block(CLIENT, "js", having="// myapp/static/myapp/room.js\n")
    page.route(name, lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.add_init_script(NOTES + VIOLATIONS)
    page.goto(f"http://{HOST}:{site.port}/documented/")
    is_noted(page, "say", "Live")
    assert page.evaluate("notes") == [["answered", {"since": "p~1"}], ["show", "missed"], ["say", "Live"]]
    site.kill()
    is_noted(page, "say", "Connection lost")
    site.say("gone")
    site.start(RESUME_FIRST="3")
    is_noted(page, "load")
    assert page.evaluate("notes.filter(([name]) => name === 'show').length") == 1


def test_documented_storage(page: Page) -> None:
    """The example for reloads keeps the words and their position together, and begins there after one."""
    connect(page)
    page.evaluate(f"() => {{ {block(CLIENT, 'js', having='sessionStorage')} }}")
    for number, word in enumerate(("one ", "two "), 1):
        tell(page, send=json.dumps({"id": f"p~{number}", "m": {"text": word}}))
    tell(page, send="the end")
    wait(page, "told.some(({ data }) => data === 'the end')")
    page.reload()
    wait(page, "window.connect")
    assert page.evaluate("sessionStorage.words") == "one two "
    page.evaluate('() => { window.socket = connect({ since: sessionStorage.getItem("since") ?? "" }) }')
    wait_for(page, "recovered", 1)
    assert positions_sent(page) == ["p~2"]


def test_documented_websocket(page: Page, site: Site) -> None:
    """The example of a plain WebSocket comes back where it was, without a gap, and loads if it must."""
    page.evaluate(f"() => {{ {NOTES} {block(CLIENT, 'js', having='new WebSocket(')} }}")
    page.evaluate("window.socket = connect(); 0")
    wait_for(page, "recovered", 1)
    tell(page, say="one")
    is_noted(page, "show", "one")
    site.kill()
    site.say("two")
    site.start()
    is_noted(page, "show", "two")
    assert page.evaluate("notes") == [["show", "one"], ["show", "two"]]
    site.kill()
    site.start(RESUME_FIRST="3")
    is_noted(page, "load")


def test_documented_event_source(page: Page, site: Site) -> None:
    """The example of EventSource goes on after ends of its stream and after a refusal, and loads if it must."""
    for text in ("rendered", "missed"):
        site.say(text)
    page.evaluate(f"() => {{ {NOTES} {ORDERS} {block(CLIENT, 'js', having='new EventSource(')} }}")
    is_noted(page, "show", "missed")
    site.say("later")
    is_noted(page, "show", "later")
    with page.expect_response(lambda response: response.status == 503):
        site.refusing.touch()
    site.say("while refused")
    site.refusing.unlink()
    is_noted(page, "show", "while refused")
    assert page.evaluate("notes") == [["show", "missed"], ["show", "later"], ["show", "while refused"]]
    site.kill()
    site.start(RESUME_FIRST="5")
    is_noted(page, "load")


def test_the_policy_is_in_force(page: Page) -> None:
    """The Content Security Policy of these tests does see an inline script."""
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.bad = 1' }))"
    )
    wait(page, "violations.length === 1")
    assert page.evaluate("[window.bad, violations.pop()]") == [None, "script-src-elem"]
