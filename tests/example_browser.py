"""The example in headless Chromium: its servers, its pages and the wires between them."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.browsers import CHROMIUM, Browser, Page, playwright
from tests.example import HOST, Program, free_port

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="kill -9 wants POSIX"),
    pytest.mark.timeout(120),
]

OpenPage = Callable[..., Page]


class Site:
    """Two Daphne processes and a worker on one message server and one database."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.server = server
        self.ports = free_port(), free_port()
        self.environment = {"REDIS_URL": server.url, "CHAT_DATABASE": str(folder / "chat.sqlite3")}
        with Program("manage.py", "migrate", environment=self.environment) as migrate:
            assert migrate.end() == 0
        self.daphnes: dict[int, Program] = {}
        for port in self.ports:
            self.start(port)
        self.worker = Program(
            "manage.py", "runworker", "wordcount", "tokens", environment=self.environment
        ).__enter__()

    def start(self, port: int) -> None:
        command = ["-m", "daphne", "-b", HOST, "-p", str(port), "chat_site.asgi:application"]
        self.daphnes[port] = Program(*command, environment=self.environment).__enter__()
        self.daphnes[port].wait_for("Listening on TCP address")

    def kill(self, port: int) -> None:
        daphne = self.daphnes.pop(port)
        daphne.stop(signal.SIGKILL)
        daphne.__exit__(None, None, None)

    def stop(self) -> None:
        for program in (*self.daphnes.values(), self.worker):
            program.__exit__(None, None, None)


class Wire:
    """The WebSockets between a page and its server: they can be cut, and frames can be lost on them."""

    def __init__(self) -> None:
        self.loses: tuple[str, ...] = ()  # types of frames
        self.is_cut = False
        self.frames: list[str] = []
        self._open: list[Any] = []

    def take(self, page: Page) -> None:
        page.route_web_socket(re.compile("/ws/"), self._connect)

    def _connect(self, browser: Any) -> None:
        if self.is_cut:
            browser.close(code=4500)
            return
        server = browser.connect_to_server()
        self._open.append(browser)

        def pass_on(frame: str) -> None:
            if not any(f'"type": "{kind}"' in frame for kind in self.loses):
                self.frames.append(frame)
                browser.send(frame)

        server.on_message(pass_on)

    def cut(self) -> None:
        self.is_cut = True
        for browser in self._open:
            browser.close(code=4500)
        self._open.clear()

    def mend(self) -> None:
        self.is_cut = False


@contextmanager
def started(folder: Path, server: EmbeddedServer) -> Iterator[Site]:
    """The example, running until the block ends."""
    site = Site(folder, server)
    try:
        yield site
    finally:
        site.stop()


def violations(line: str) -> list[str]:
    return [line] if "Content Security Policy" in line else []


@contextmanager
def people(browser: Browser, site: Site) -> Iterator[OpenPage]:
    """Yield a function that opens a page of a server, as a person of their own: no cookies or names in common."""
    contexts = []
    problems: list[str] = []

    def opened(
        server: int, name: str, path: str = "/chat/lobby/", wire: Wire | None = None, **options: Any
    ) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: problems.extend([] if HOST in request.url else [request.url]))
        page.on("console", lambda line: problems.extend(violations(line.text)))
        if wire is not None:
            wire.take(page)
        page.add_init_script(f"localStorage.getItem('name') ?? localStorage.setItem('name', {name!r})")
        page.goto(f"http://{HOST}:{site.ports[server]}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


playwright.expect.set_options(timeout=20_000)


def expect(page: Page, selector: str) -> Any:
    return playwright.expect(page.locator(selector))


def is_live(page: Page) -> None:
    """Wait until the page says that it is connected."""
    expect(page, "#state").to_have_text("Live", timeout=20_000)


def targets(page: Page, before: str = "") -> dict[str, tuple[float, float]]:
    """What a finger is to meet on a page, and its size, after a script that runs in the same turn."""
    found: dict[str, tuple[float, float]] = page.evaluate(
        before
        + """;
        Object.fromEntries([...document.querySelectorAll("a, button, input:not([type=hidden]), textarea")]
            .map((one) => [one, one.getBoundingClientRect()])
            .map(([one, { width, height }]) => [one.id || one.className || one.textContent, [width, height]]))"""
    )
    return found
