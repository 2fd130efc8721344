"""The pages of the example with server-sent events, in headless Chromium: live orders, and words of a worker."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.browsers import Browser, Page, chromium, playwright
from tests.example_browser import MARKS, OpenPage, Site, expect, people, started, targets

pytest.importorskip("daphne")
pytestmark = MARKS


@pytest.fixture
def site(tmp_path: Path, own_redis_server: EmbeddedServer) -> Iterator[Site]:
    with started(tmp_path, own_redis_server) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[OpenPage]:
    with people(browser, site) as opened:
        yield opened


# Orders


@pytest.fixture
def tables(open_page: OpenPage) -> tuple[Page, Page]:
    """The table of orders on both servers."""
    pages = open_page(0, "Ada", "/orders/"), open_page(1, "Grace", "/orders/")
    for page in pages:
        expect(page, "#status").to_have_text("Live")
    return pages


def receive(page: Page) -> None:
    press(page, "New order", "/receive/")


def advance(page: Page) -> None:
    press(page, "Advance the oldest", "/advance/")


def press(page: Page, button: str, path: str) -> None:
    with page.expect_response(re.compile(f"{path}$")) as response:
        page.get_by_role("button", name=button).click()
    assert response.value.status == 204


def shows(page: Page, *orders: str) -> None:
    """Wait until a table has these orders, each once and in this order."""
    expect(page, "#orders tbody tr").to_have_text([re.compile(order, re.DOTALL) for order in orders])


def test_orders_are_live(tables: tuple[Page, Page]) -> None:
    """New orders come to the top of every table, changed ones stay at their place."""
    ada, grace = tables
    receive(ada)
    receive(grace)
    receive(ada)
    for page in tables:
        shows(page, r"3\s.*Received", r"2\s.*Received", r"1\s.*Received")
    advance(grace)
    for page in tables:
        shows(page, r"3\s.*Received", r"2\s.*Received", r"1\s.*Packed")
    ada.reload()
    advance(ada)
    for page in tables:
        shows(page, r"3\s.*Received", r"2\s.*Received", r"1\s.*Sent")


def test_orders_through_kill_9(tables: tuple[Page, Page], site: Site) -> None:
    """A table whose server is killed says so, and shows what it missed when the server is back."""
    ada, grace = tables
    receive(ada)
    shows(ada, "Received")
    for number in range(2):
        site.kill(site.ports[0])
        expect(ada, "#status").to_contain_text("Connection lost")
        advance(grace)
        receive(grace)
        shows(grace, "Received", *["Received"] * number, "Packed" if number == 0 else "Sent")
        site.start(site.ports[0])
        shows(ada, "Received", *["Received"] * number, "Packed" if number == 0 else "Sent")
        expect(ada, "#status").to_have_text("Live")
    expect(ada, "#recovery").to_have_text("")


def test_orders_through_a_restart_of_the_message_server(tables: tuple[Page, Page], site: Site) -> None:
    """Without the log of before, the pages say that changes did not come, and load the table."""
    ada, grace = tables
    receive(ada)
    for page in tables:
        shows(page, "Received")
    site.server.kill()
    advance(grace)
    receive(grace)
    site.server.restart()
    for page in tables:
        expect(page, "#recovery").to_contain_text("so the table was loaded again")
        shows(page, r"2\s.*Received", r"1\s.*Packed")
        expect(page, "#status").to_have_text("Live")
    advance(ada)
    for page in tables:
        shows(page, r"2\s.*Received", r"1\s.*Sent")


def test_orders_when_the_server_is_out_at_first(open_page: OpenPage, site: Site) -> None:
    """A page that was loaded without a message server is right, and stays right, when the server is there."""
    site.server.kill()
    ada = open_page(0, "Ada", "/orders/")
    grace = open_page(1, "Grace", "/orders/")
    receive(grace)
    site.server.restart()
    for page in (ada, grace):
        shows(page, "Received")
        expect(page, "#status").to_have_text("Live")
    advance(grace)
    for page in (ada, grace):
        shows(page, "Packed")


def test_orders_behind_a_proxy_that_answers_502(tables: tuple[Page, Page], site: Site) -> None:
    """An EventSource that gave up is replaced by one that goes on from the last id, not from the beginning."""
    ada, grace = tables
    rendered = ada.get_attribute("#orders", "sse-connect")
    receive(grace)
    shows(ada, "Received")
    last = ada.get_attribute("#orders", "sse-connect")
    assert last != rendered
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=502)
        else:
            route.continue_()

    ada.route(re.compile("/orders/events/"), answer)
    site.kill(site.ports[0])
    expect(ada, "#status").to_contain_text("Connection lost")
    advance(grace)
    site.start(site.ports[0])
    shows(ada, "Packed")
    assert len(asked) >= 2
    assert asked[-1].endswith(str(last))
    expect(ada, "#recovery").to_have_text("")


def test_orders_without_scripts(open_page: OpenPage) -> None:
    """The buttons and the table work without scripts: each press loads the table."""
    ada = open_page(0, "Ada", "/orders/", java_script_enabled=False)
    for state in ("Received", "Packed"):
        ada.get_by_role("button", name="New order" if state == "Received" else "Advance the oldest").click()
        shows(ada, state)


# Words


def the_text() -> str:
    from tokens.worker import TEXT

    return TEXT


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask").click()
    expect(page, "#status").to_have_text("The answer is being written…")


def has_begun(page: Page) -> None:
    expect(page, "#answer").to_contain_text(the_text()[:60])


def is_written(page: Page) -> bool:
    return bool(page.text_content("#answer") == the_text())


def test_words_through_reloads_in_the_middle(open_page: OpenPage) -> None:
    """A page that is loaded again has all words from the first on, each once; so has one on another server."""
    ada = open_page(0, "Ada", "/tokens/")
    ask(ada)
    has_begun(ada)
    grace = open_page(1, "Grace", ada.url.partition(str(ada.url.split("/")[2]))[2])
    for _ in range(3):
        ada.reload()
        has_begun(ada)
        assert not is_written(ada)
    for page in (ada, grace):
        expect(page, "#status").to_have_text("The answer is whole.")
        assert is_written(page)
        assert page.get_attribute("#answer", "aria-busy") == "false"
    ada.reload()
    assert is_written(ada)
    expect(ada, "#status").to_have_text("The answer is whole.")


def test_words_through_kill_9(open_page: OpenPage, site: Site) -> None:
    """A page whose server is killed in the middle goes on where it was when the server is back."""
    ada = open_page(0, "Ada", "/tokens/")
    ask(ada)
    has_begun(ada)
    site.kill(site.ports[0])
    expect(ada, "#status").to_contain_text("The connection is lost")
    assert not is_written(ada)
    site.start(site.ports[0])
    expect(ada, "#status").to_have_text("The answer is whole.")
    assert is_written(ada)


def test_words_through_a_restart_of_the_message_server(open_page: OpenPage, site: Site) -> None:
    """When words are missing for good, the page says so, and loads the answer when it is whole."""
    ada = open_page(0, "Ada", "/tokens/")
    ask(ada)
    has_begun(ada)
    site.server.kill()
    site.server.restart()
    expect(ada, "#status").to_contain_text("Some words did not come")
    expect(ada, "#status").to_contain_text("so the whole answer was loaded", timeout=60_000)
    assert is_written(ada)


def test_words_of_a_worker_that_is_killed(open_page: OpenPage, site: Site) -> None:
    """An answer that will never be whole does not look like one that is being written."""
    ada = open_page(0, "Ada", "/tokens/")
    ask(ada)
    has_begun(ada)
    site.worker.stop(signal.SIGKILL)
    expect(ada, "#status").to_contain_text("ask again", timeout=60_000)
    assert not is_written(ada)


def test_question_that_is_refused(open_page: OpenPage) -> None:
    """A question that the form lets through and the server does not is answered with a reason."""
    ada = open_page(0, "Ada", "/tokens/")
    ada.fill("#question", "  ")
    ada.get_by_role("button", name="Ask").click()
    expect(ada, "[role=alert]").to_contain_text("1 to 200 characters")


# Each page


def test_strict_content_security_policy(open_page: OpenPage) -> None:
    """The pages work where nothing but the site's own files and connections is allowed."""
    page = open_page(0, "Ada", "/")
    for path in ("/", "/chat/lobby/", "/orders/", "/tokens/"):
        response = page.goto("/".join(page.url.split("/")[:3]) + path)
        assert response.headers["content-security-policy"].startswith("default-src 'self';")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/orders/", "/tokens/"])
def test_phone_and_desktop_fit(open_page: OpenPage, path: str, scheme: str) -> None:
    """Nothing is wider than a phone or a desktop, and whatever can be touched is large enough for a finger."""
    for size in ({"width": 390, "height": 844}, {"width": 1280, "height": 800}):
        page = open_page(0, "Ada", path, viewport=size, color_scheme=scheme, has_touch=True)
        if path == "/orders/":
            receive(page)
            expect(page, "#orders tbody tr").not_to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        found = targets(page)
        if path == "/tokens/":
            ask(page)
            has_begun(page)
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
            found |= targets(page)
        for name, (width, height) in found.items():
            assert width >= 44 and height >= 44, name


def test_pages_are_found_from_the_first(open_page: OpenPage) -> None:
    """The first page leads to the others, and they lead back."""
    ada = open_page(0, "Ada", "/")
    for title in ("Live orders", "Answers, word by word"):
        ada.get_by_role("link", name=title).click()
        playwright.expect(ada).to_have_title(title)
        ada.get_by_role("link", name="All pages").click()
        playwright.expect(ada).to_have_title("Rooms · Chat")
