"""The chat in headless Chromium: two pages on two Daphne processes that talk to each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.browsers import Browser, Page, chromium, playwright
from tests.example_browser import MARKS, OpenPage, Site, Wire, expect, is_live, people, started, targets

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


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    expect(page, "#message").to_have_value("")


def test_two_pages_talk(open_page: OpenPage, site: Site) -> None:
    """Each page sees its server, the other, who is typing, what is said, whose it is, how many words it was."""
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace")
    for page in (ada, grace):
        is_live(page)
        expect(page, "#here .who").to_have_text(
            ["Ada", "Grace"] if page is ada else ["Grace", "Ada"], timeout=20_000
        )
    for number, page in enumerate((ada, grace)):
        port = site.ports[number]
        expect(page, "#server").to_have_text(f"server {port}, pid {site.daphnes[port].process.pid}")
    expect(ada, "#empty").to_be_visible()
    ada.type("#message", "Hello")
    expect(grace, "#typing").to_have_text("Ada is typing…")
    expect(ada, "#typing").to_have_text("")
    ada.press("#message", "Enter")
    expect(grace, ".message .text").to_have_text(["Hello"])
    expect(grace, ".message.own").to_have_count(0)
    expect(ada, ".message.own .text").to_have_text(["Hello"])
    expect(ada, "#empty").to_be_hidden()
    say(grace, "Good morning, Ada")
    expect(ada, ".message .text").to_have_text(["Hello", "Good morning, Ada"])
    for page in (ada, grace):
        expect(page, "#tally").to_have_text("4 words")


def test_html_stays_text(open_page: OpenPage) -> None:
    """Markup in a message or a name is shown as it was written, and never runs."""
    markup = "<img src=x onerror=alert(1)>"
    ada, grace = open_page(0, "Ada"), open_page(1, markup)
    is_live(ada)
    is_live(grace)
    say(grace, f"{markup}<script>alert(2)</script>")
    expect(ada, ".message .text").to_have_text([f"{markup}<script>alert(2)</script>"])
    expect(ada, ".message .author").to_have_text([markup])
    expect(ada, "#here .who").to_contain_text(["Ada", markup])
    assert ada.locator("img").count() == 0


def test_sync_view_button(open_page: OpenPage) -> None:
    """A message sent through the sync view reaches both pages."""
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    ada.fill("#message", "by way of a view")
    with ada.expect_response(re.compile("/send/$")) as response:
        ada.click("#send-view")
    assert response.value.status == 201
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["by way of a view"])
    expect(ada, "#message").to_have_value("")


def test_refused_message_is_told_and_kept_out(open_page: OpenPage) -> None:
    """What the server refuses is told in the page, and the words are back where they can be changed."""
    ada = open_page(0, "Ada")
    is_live(ada)
    ada.evaluate("document.getElementById('message').removeAttribute('maxlength')")
    for button in ("#send", "#send-view"):
        ada.fill("#message", "x" * 1001)
        ada.click(button)
        expect(ada, "#error").to_contain_text("1000 is the limit")
        expect(ada, ".message").to_have_count(0)
        expect(ada, "#message").to_have_value("x" * 1001)
        say(ada, "")


def test_new_name_is_seen_and_kept(open_page: OpenPage) -> None:
    """A new name reaches the others, and is still there after a reconnect, and when the page is loaded again."""
    wire = Wire()
    ada, grace = open_page(0, "Ada", wire=wire), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    ada.fill("#name", "Countess")
    ada.press("#name", "Enter")
    expect(grace, "#here .who").to_have_text(["Grace", "Countess"])
    wire.cut()
    expect(ada, "#state").to_have_text("Connection lost")
    wire.mend()
    is_live(ada)
    say(ada, "still me")
    expect(grace, ".message .author").to_have_text(["Countess"])
    ada.reload()
    is_live(ada)
    expect(ada, "#name").to_have_value("Countess")


def test_killed_server_reconnect_and_missed_messages(open_page: OpenPage, site: Site) -> None:
    """
    After kill -9 of a server its page says so, and the other page sees who is gone.

    When the server is back, the page reconnects by itself and gets what it missed, each message once.
    """
    wire = Wire()
    wire.loses = ("history",)
    ada, grace = open_page(0, "Ada", wire=wire), open_page(1, "Grace")
    is_live(ada)
    expect(grace, "#here .who").to_have_text(["Grace", "Ada"])
    say(ada, "before")
    expect(grace, ".message .text").to_have_text(["before"])
    site.kill(site.ports[0])
    expect(ada, "#state").to_have_text("Connection lost")
    expect(ada, "#retry").to_be_visible()
    expect(ada, "#here .who").to_have_text(["Ada", "Grace"])
    expect(ada, "#as-of").to_contain_text("as of")
    say(grace, "meanwhile")
    expect(grace, "#here .who").to_have_text(["Grace"], timeout=20_000)
    site.start(site.ports[0])
    is_live(ada)
    expect(ada, "#as-of").to_have_text("")
    expect(ada, ".message .text").to_have_text(["before", "meanwhile"])
    expect(grace, "#here .who").to_have_text(["Grace", "Ada"], timeout=20_000)
    say(ada, "after")
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["before", "meanwhile", "after"])


def test_reload_while_others_talk(open_page: OpenPage) -> None:
    """A page that is loaded again and again has every word once and in order: nothing is missed in between."""
    wire = Wire()
    wire.loses = ("history",)  # so that all comes with the page, or live
    ada, grace = open_page(0, "Ada", wire=wire), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    said = [str(number) for number in range(40)]
    grace.evaluate(
        """said => {
            const field = document.getElementById("message");
            const next = setInterval(() => {
                field.value = said.shift();
                document.getElementById("composer").requestSubmit(document.getElementById("send"));
                if (!said.length) clearInterval(next);
            }, 100);
        }""",
        said,
    )
    for _ in range(4):
        is_live(ada)
        ada.reload()
    expect(grace, ".message .text").to_have_text(said)
    expect(ada, ".message .text").to_have_text(said)
    expect(ada, "#recovery").to_have_text("")


def test_cut_connection_resumes(open_page: OpenPage) -> None:
    """A page whose connection breaks, as in sleep, gets what it missed when it is back, and nothing twice."""
    wire = Wire()
    wire.loses = ("history",)
    ada, grace = open_page(0, "Ada", wire=wire), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    said = []
    for number in range(3):
        say(grace, f"heard {number}")
        said.append(f"heard {number}")
        expect(ada, ".message .text").to_have_text(said)
        wire.cut()
        expect(ada, "#state").to_have_text("Connection lost")
        say(grace, f"missed {number}")
        said.append(f"missed {number}")
        expect(grace, ".message .text").to_have_text(said)
        wire.mend()
        ada.evaluate("dispatchEvent(new Event('online'))")
        expect(ada, ".message .text").to_have_text(said)
        is_live(ada)
    assert [frame for frame in wire.frames if '"recovered": false' in frame] == []
    expect(ada, "#recovery").to_have_text("")


def test_paused_message_server(open_page: OpenPage, site: Site) -> None:
    """A message server that stalls for a while loses nothing, and no page says that it did."""
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    site.server.pause()
    say(ada, "patience")
    expect(ada, ".message .text").to_have_text(["patience"])
    site.server.resume()
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["patience"])
        expect(page, "#recovery").to_have_text("")


def test_killed_message_server(open_page: OpenPage, site: Site) -> None:
    """
    During an outage the pages say so and keep what is said, by either button and once.

    Each shows what the other said all the same, and keeps its connection for as long as it lasts. The server
    comes back without its log: the pages say that something did not come live, and load the messages.
    """
    wire = Wire()
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace", wire=wire)
    is_live(ada)
    is_live(grace)
    for page in (ada, grace):
        expect(page, "#here .who").to_have_count(2)
    site.server.kill()
    for page in (ada, grace):
        expect(page, "#state").to_have_text("Live updates interrupted", timeout=20_000)
        expect(page, "#outage").to_contain_text("What you write is kept")
        expect(page, "#as-of").to_contain_text("as of")
        expect(page, "#here .who").to_have_count(2)
    say(ada, "anybody?")
    ada.fill("#message", "by way of a view")
    with ada.expect_response(re.compile("/send/$")) as response:
        ada.click("#send-view")
        expect(ada, "#message").to_have_value("")  # before the answer
    assert response.value.status == 202
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["anybody?", "by way of a view"])
    expect(ada, ".message .fate").to_have_text(["Kept; the others see it later"] * 2)
    expect(ada, "#error").to_have_text("")
    wire.frames.clear()
    while not wire.frames:  # a socket that is silent for long would be given up
        grace.wait_for_timeout(100)
    site.server.restart()
    for page in (ada, grace):
        is_live(page)
        expect(page, ".message .text").to_have_text(["anybody?", "by way of a view"])
        expect(page, "#here .who").to_have_count(2)
        expect(page, "#outage").to_have_text("")
        expect(page, "#recovery").to_contain_text("loaded again")
        expect(page, ".message .fate").to_have_text(["", ""])
        expect(page, "#tally").to_have_text("6 words")
    expect(ada, "#error").to_have_text("")
    say(grace, "back")
    expect(grace, "#recovery").to_have_text("")
    expect(ada, ".message .text").to_have_text(["anybody?", "by way of a view", "back"])
    ada.reload()
    is_live(ada)
    expect(ada, ".message .text").to_have_text(["anybody?", "by way of a view", "back"])
    expect(ada, "#recovery").to_have_text("")


def test_words_wait_for_the_server(open_page: OpenPage, site: Site) -> None:
    """What is written while there is no connection waits in the page, over a reload too, and is sent once."""
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    site.kill(site.ports[0])
    expect(ada, "#state").to_have_text("Connection lost")
    say(ada, "one")
    ada.fill("#message", "two")
    ada.click("#send-view")
    expect(ada, "#message").to_have_value("")
    expect(ada, ".message.waiting .fate").to_have_text(["Not sent yet"] * 2)
    expect(ada, "#outage").to_contain_text("What you write waits here")
    site.start(site.ports[0])
    ada.reload()
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["one", "two"])
        expect(page, ".message.waiting").to_have_count(0)
    ada.reload()
    is_live(ada)
    say(ada, "three")
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["one", "two", "three"])


def test_answer_that_is_lost_stores_nothing_twice(open_page: OpenPage) -> None:
    """A message whose answer the page never saw is sent again and stored once."""
    wire = Wire()
    ada, grace = open_page(0, "Ada", wire=wire), open_page(1, "Grace")
    is_live(ada)
    is_live(grace)
    wire.loses = ("stored", "chat.message", "history")
    say(ada, "once")
    expect(grace, ".message .text").to_have_text(["once"])
    expect(ada, ".message.waiting .text").to_have_text(["once"])
    wire.loses = ()
    ada.reload()
    is_live(ada)
    say(ada, "more")
    for page in (ada, grace):
        expect(page, ".message .text").to_have_text(["once", "more"])
        expect(page, ".message.waiting").to_have_count(0)


def test_missed_message_comes_with_the_next_roll_call(open_page: OpenPage, site: Site) -> None:
    """A page that the layer brought nothing finds out what it lacks without reconnecting."""
    wire = Wire()
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace", wire=wire)
    is_live(ada)
    is_live(grace)
    wire.loses = ("chat.message",)
    say(ada, "unheard")
    expect(ada, ".message .fate").to_have_text([""])
    expect(grace, ".message .text").to_have_text(["unheard"])


def test_back_and_forward(open_page: OpenPage, site: Site) -> None:
    """
    Who leaves a room is gone, and who comes back with the browser's buttons is there once.

    The browser keeps the page meanwhile, and shows it as it was.
    """
    ada, grace = open_page(0, "Ada"), open_page(1, "Grace")
    is_live(ada)
    expect(grace, "#here .who").to_have_text(["Grace", "Ada"])
    ada.evaluate(
        "addEventListener('pageshow', (event) => { document.title = `persisted: ${event.persisted}` })"
    )
    ada.click(".back")
    for _ in range(2):
        expect(grace, "#here .who").to_have_text(["Grace"])
        ada.go_back(wait_until="commit")
        is_live(ada)
        playwright.expect(ada).to_have_title("persisted: true")
        for page in (ada, grace):
            expect(page, "#here .who").to_have_count(2)
        say(grace, "welcome back")
        expect(ada, ".message .text").to_contain_text(["welcome back"])
        ada.go_forward(wait_until="commit")
    expect(grace, "#here .who").to_have_text(["Grace"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_desktop_fit(open_page: OpenPage, scheme: str) -> None:
    """Nothing is wider than a phone or a desktop, with long words and names and while disconnected too."""
    for size in ({"width": 390, "height": 844}, {"width": 1280, "height": 800}):
        wire = Wire()
        path = f"/chat/{'long-name-' * 5}/"
        page = open_page(0, "W" * 30, path, wire, viewport=size, color_scheme=scheme)
        is_live(page)
        say(page, "m" * 500)
        expect(page, ".message").not_to_have_count(0)
        for is_connected in (True, False):
            if not is_connected:
                wire.cut()
                expect(page, "#state").to_have_text("Connection lost")
                page.evaluate("document.getElementById('recovery').textContent = 'Loaded again. '.repeat(9)")
            width, height = page.evaluate("[document.body.scrollWidth, document.body.scrollHeight]")
            assert (width, height) == (size["width"], size["height"])
        page.goto("/".join(page.url.split("/")[:3]))
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_targets_are_large_enough_for_a_finger(open_page: OpenPage) -> None:
    """Whatever can be touched is 44 pixels high and wide, on a phone and on a desktop."""
    for size in ({"width": 390, "height": 844}, {"width": 1280, "height": 800}):
        wire = Wire()
        page = open_page(0, "Ada", "/", wire, viewport=size, has_touch=True)
        found = targets(page)
        page.goto(f"{page.url}chat/lobby/")
        is_live(page)
        say(page, "hello")
        wire.cut()
        # Both are there for a moment only.
        found |= targets(
            page, "for (const id of ['retry', 'newest']) document.getElementById(id).hidden = false"
        )
        assert {"retry", "newest", "send", "name", "send-view", "message", "room"} <= found.keys()
        for name, (width, height) in found.items():
            assert width >= 44 and height >= 44, name


def test_keyboard_alone(open_page: OpenPage) -> None:
    """Without a mouse: the field has the focus, Enter sends, Shift+Enter makes a line, Tab finds the buttons."""
    ada = open_page(0, "Ada")
    is_live(ada)
    ada.keyboard.type("one")
    ada.keyboard.press("Shift+Enter")
    ada.keyboard.type("two")
    ada.keyboard.press("Enter")
    expect(ada, ".message .text").to_have_text(["one\ntwo"])
    reached = []
    for _ in range(3):
        ada.keyboard.press("Tab")
        reached.append(ada.evaluate("document.activeElement.id"))
    assert reached == ["send", "name", "send-view"]
