"""The page of the channel layer in Django's admin, in headless Chromium: it is live, and fits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.admin_pages import PASSWORD, AdminSite, admin_site, crowd
from tests.browsers import Browser, Page, chromium, chromium_with_tabs, playwright
from tests.example import HOST, Program
from tests.example_browser import MARKS, expect, violations

pytest.importorskip("daphne")
pytestmark = MARKS

#: Where pictures of the page are kept, to be looked at.
PICTURES = os.environ.get("ADMIN_PICTURES")

#: By the clock of the page, which asks for figures every 5 s.
LONGER_THAN_ITS_PAUSE = "new Promise((done) => setTimeout(done, 6_000))"

SignIn = Callable[..., Page]


@pytest.fixture(scope="module")
def message_server() -> Iterator[EmbeddedServer]:
    """A server for this module. Tests that kill it start it again."""
    with EmbeddedServer(external=False) as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, message_server: EmbeddedServer) -> Iterator[AdminSite]:
    with admin_site(tmp_path_factory.mktemp("admin"), message_server) as site:
        yield site


@pytest.fixture
def others(site: AdminSite) -> Iterator[Program]:
    """A process with 7 members of the group `lobby`, and a full channel."""
    with crowd(site, 7) as others:
        yield others


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def sign_in(browser: Browser, site: AdminSite) -> Iterator[SignIn]:
    """Open the page as somebody who may see it. Nothing may break the policy, or ask elsewhere."""
    problems: list[str] = []

    def signed_in(**options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.extend(violations(line.text)))
        page.on("request", lambda request: problems.extend([] if HOST in request.url else [request.url]))
        enter(page, site)
        return page

    yield signed_in
    for context in browser.contexts:
        context.close()
    assert problems == []


def enter(page: Page, site: AdminSite) -> None:
    response = page.goto(site.address())
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    page.fill("[name=username]", "viewer")
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")


def lobby(page: Page) -> Any:
    """The number of members of the group `lobby`."""
    return page.locator("#asyncq-groups tr:has(th:text-is('lobby')) td:nth-of-type(1)")


def members(page: Page) -> Any:
    return playwright.expect(lobby(page))


def take_picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def another_joins(others: Program) -> None:
    others.process.send_signal(signal.SIGUSR1)


def test_page_refreshes(sign_in: SignIn, site: AdminSite, others: Program) -> None:
    """New figures come without a reload. A process that is stopped is named, until it runs again."""
    page = sign_in()
    expect(page, "#asyncq-channels tbody tr").to_have_count(1)
    page.evaluate("window.isTheSame = true")
    members(page).to_have_text("7")
    another_joins(others)
    members(page).to_have_text("8")
    others.process.send_signal(signal.SIGSTOP)
    try:
        expect(page, "#asyncq-notes").to_contain_text(f":{others.process.pid}:admin_crowd (no answer)")
        expect(page, "#asyncq-processes tbody tr").to_have_count(1)
    finally:
        others.process.send_signal(signal.SIGCONT)
    members(page).to_have_text("8")
    expect(page, "#asyncq-notes").not_to_contain_text("no answer")
    assert page.evaluate("window.isTheSame")


def test_refresh_can_be_switched_off(sign_in: SignIn, others: Program) -> None:
    """Without the tick the page stays as it is, and asks nothing; with it, it goes on at once."""
    page = sign_in()
    members(page).to_have_text("7")
    page.get_by_label("Refresh every 5 seconds").uncheck()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    another_joins(others)
    others.wait_for("members: 8")
    page.evaluate(LONGER_THAN_ITS_PAUSE)
    members(page).to_have_text("7")
    assert asked == []
    page.get_by_label("Refresh every 5 seconds").check()
    members(page).to_have_text("8")


def test_hidden_tab_asks_nothing(browser: Browser, site: AdminSite, others: Program, tmp_path: Path) -> None:
    """A tab behind another one rests, and has new figures when it is in front again."""
    with chromium_with_tabs(browser, tmp_path / "profile") as people:
        page = people.contexts[0].new_page()
        enter(page, site)
        members(page).to_have_text("7")
        other = people.contexts[0].new_page()
        other.bring_to_front()
        page.wait_for_function("document.hidden")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        # What was under way when it was hidden is done.
        page.evaluate(LONGER_THAN_ITS_PAUSE)
        asked.clear()
        another_joins(others)
        others.wait_for("members: 8")
        page.evaluate(LONGER_THAN_ITS_PAUSE)
        assert asked == []
        page.bring_to_front()
        members(page).to_have_text("8")


def test_site_that_is_down(sign_in: SignIn, site: AdminSite, others: Program) -> None:
    """Without its server the page keeps what it has, and says that it is not refreshed, until it is."""
    page = sign_in()
    members(page).to_have_text("7")
    site.stop(signal.SIGKILL)
    expect(page, "#asyncq-state").to_contain_text("Not refreshed")
    members(page).to_have_text("7")
    another_joins(others)
    site.start()
    members(page).to_have_text("8")
    expect(page, "#asyncq-state").to_be_empty()


def test_message_server_that_is_down(
    sign_in: SignIn, message_server: EmbeddedServer, others: Program
) -> None:
    """Without the message server there are no figures but the reason, until it is back."""
    page = sign_in()
    members(page).to_have_text("7")
    message_server.kill()
    expect(page, "#asyncq-notes").to_contain_text("The processes cannot be reached")
    expect(page, "#asyncq-processes").to_be_hidden()
    message_server.restart()
    members(page).to_have_text("7", timeout=40_000)
    expect(page, "#asyncq-notes").not_to_contain_text("cannot be reached")


def test_signed_out_elsewhere(sign_in: SignIn) -> None:
    """A page whose user has signed out in another tab says so, and shows no login in the place of figures."""
    page = sign_in()
    expect(page, "#asyncq-processes tbody tr").to_have_count(1)
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name="Log out").click()
    expect(page, "#asyncq-state").to_contain_text("you are signed out")
    expect(page, "[name=password]").to_have_count(0)


def test_page_without_scripts(sign_in: SignIn, others: Program) -> None:
    """Without scripts the page has its figures all the same, and others when it is loaded again."""
    page = sign_in(java_script_enabled=False)
    members(page).to_have_text("7")
    expect(page, "#asyncq-switch").to_be_hidden()
    another_joins(others)
    others.wait_for("members: 8")
    # A look serves for a second.
    for _ in range(100):
        page.reload()
        if lobby(page).text_content() == "8":
            break
    members(page).to_have_text("8")


def test_focus_and_scrolling_stay(sign_in: SignIn, others: Program) -> None:
    """A table that somebody has scrolled stays where it is when new figures come."""
    page = sign_in(viewport={"width": 390, "height": 844})
    members(page).to_have_text("7")
    table = page.locator("#asyncq-groups")
    table.focus()
    assert table.evaluate("part => { part.scrollLeft = 30; return part.scrollLeft; }") == 30
    another_joins(others)
    members(page).to_have_text("8")
    assert table.evaluate("part => [part.scrollLeft, part === document.activeElement]") == [30, True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_admin_page_fits(
    sign_in: SignIn, others: Program, message_server: EmbeddedServer, scheme: str, width: int, height: int
) -> None:
    """
    The page is as wide as a desktop or a phone, its tables scroll by themselves, and it has the colours of the
    admin in its light and its dark scheme, with enough contrast.
    """
    page = sign_in(viewport={"width": width, "height": height}, color_scheme=scheme)
    members(page).to_have_text("7")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    for selector in ("#asyncq-groups td", "#asyncq-processes tfoot td", "#asyncq-time", ".asyncq-fault"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
    assert page.evaluate("document.documentElement.scrollWidth") == width
    take_picture(page, f"figures-{scheme}-{width}")
    others.process.send_signal(signal.SIGSTOP)
    try:
        expect(page, "#asyncq-notes").to_contain_text("no answer")
    finally:
        others.process.send_signal(signal.SIGCONT)
    take_picture(page, f"missing-{scheme}-{width}")
    message_server.kill()
    expect(page, "#asyncq-notes").to_contain_text("cannot be reached")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".errornote").first.evaluate(CONTRAST) >= 4.5
    take_picture(page, f"down-{scheme}-{width}")
    message_server.restart()


#: The contrast between the text of an element and what is behind it, as WCAG counts it.
CONTRAST = """element => {
    const light = (colour) => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number).map((each) => each / 255)
            .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    let behind = element;
    const colour = (one) => getComputedStyle(one).backgroundColor;
    while (/, 0\\)$/.test(colour(behind))) behind = behind.parentElement;
    const both = [light(getComputedStyle(element).color), light(colour(behind))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
}"""
