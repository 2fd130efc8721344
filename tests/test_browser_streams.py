"""Event streams in headless Chromium: an EventSource whose server is killed, and one behind GZipMiddleware."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import block
from tests.example import HOST, Program, free_port
from tests.npm import global_packages
from tests.processes.handles import ROOT
from tests.test_browser import browser, pytestmark

__all__ = ["browser", "pytestmark"]

Page = Any

COLLECT = """(path) => {
    window.seen = [];
    window.opened = window.resets = 0;
    const events = new EventSource(path);
    events.addEventListener("open", () => opened++);
    events.addEventListener("test.message", (event) => seen.push(JSON.parse(event.data).n));
    events.addEventListener("reset", () => resets++);
}"""


class StreamSite:
    """The site with event streams under uvicorn, and a layer to send from."""

    def __init__(
        self, server: EmbeddedServer, prefix: str, middleware: list[str], **environment: str
    ) -> None:
        config: dict[str, Any] = {"hosts": [server.url], "prefix": prefix}
        self.layer = AsyncQueueChannelLayer(**config)
        self.port = free_port()
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tests.processes.stream_settings",
            "TEST_LAYER_CONFIG": json.dumps(config),
            "TEST_MIDDLEWARE": json.dumps(middleware),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.start()

    def start(self) -> None:
        address = ["--host", HOST, "--port", str(self.port)]
        command = ["-m", "uvicorn", *address, "tests.processes.streams:application"]
        self.uvicorn = Program(*command, environment=self.environment).__enter__()
        self.uvicorn.wait_for("Uvicorn running on")

    def kill(self) -> None:
        self.uvicorn.process.kill()
        self.uvicorn.end()
        self.uvicorn.__exit__(None, None, None)

    def position(self, group: str = "room") -> str:
        with ThreadPoolExecutor(1) as pool:  # playwright's event loop runs in this thread
            return pool.submit(sync.position, group, layer=self.layer).result()

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self.send("room", {"type": "test.message", "n": number})

    def send(self, group: str, message: dict[str, Any]) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sync.group_send, group, message, self.layer).result()

    def stop(self) -> None:
        self.uvicorn.__exit__(None, None, None)
        self.layer.close_from_thread()


@pytest.fixture
def site(request: pytest.FixtureRequest, redis_server: EmbeddedServer, prefix: str) -> Iterator[StreamSite]:
    site = StreamSite(redis_server, prefix, getattr(request, "param", []))
    yield site
    site.stop()


@pytest.fixture
def page(browser: Any, site: StreamSite) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto(f"http://{HOST}:{site.port}/page/")
    position = site.position()
    site.say(-1)
    page.evaluate(COLLECT, f"/stream/room/?since={position}")
    yield page
    context.close()


def test_killed_server(page: Page, site: StreamSite) -> None:
    """An EventSource whose server is killed, twice, sees every message once and in order."""
    page.wait_for_function("seen.length == 1")
    sent = [-1]
    for first in (0, 20):
        before, meanwhile = range(first, first + 10), range(first + 10, first + 20)
        site.say(*before)
        sent += [*before, *meanwhile]
        page.wait_for_function(f"seen.length == {len(sent) - len(meanwhile)}")
        site.kill()
        site.say(*meanwhile)
        site.start()
        page.wait_for_function(f"seen.length >= {len(sent)}")
    site.say(40)
    page.wait_for_function("seen.at(-1) == 40")
    assert page.evaluate("seen") == [*sent, 40]
    assert page.evaluate("[opened, resets]") == [3, 0]


@pytest.mark.parametrize("site", [["django.middleware.gzip.GZipMiddleware"]], indirect=True)
def test_gzip_middleware(page: Page, site: StreamSite) -> None:
    """Every event arrives while the stream is open, whatever GZipMiddleware does to other responses."""
    for number in range(6):
        site.say(number)
        page.wait_for_function(f"seen.at(-1) == {number}")
    assert page.evaluate("seen") == [-1, *range(6)]


DOCUMENTED = "docs/event-streams.md"
VENDOR = ROOT / "example_project" / "orders" / "static" / "orders" / "vendor"
REST = """
from pathlib import Path

def stream(message):
    return f'<turbo-stream action="append" target="orders"><template>{message["id"]} </template></turbo-stream>'

async def turbo(request):
    return EventStream(request, ["orders"], render=stream)

from channels_asyncq.http import EventStream
from django.http import HttpResponse
from django.urls import path

async def page(request, name):
    return HttpResponse(Path(__file__).with_name(f"{name}.html").read_text())

async def events(request, shop):
    return EventStream(request, [f"orders.{shop}"])

urlpatterns = [
    path("documented/<name>/", page),
    path("orders/<slug:shop>/events/", events),
    path("orders/events/", rows),
    path("turbo/events/", turbo),
]
"""


@pytest.fixture
def documented(redis_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[StreamSite]:
    """A site with the view of the page that renders rows, and one for Turbo."""
    if not (ROOT / DOCUMENTED).is_file():
        pytest.skip("only the package is here, without its pages")
    view = block(DOCUMENTED, "python", having="async def rows(")
    (tmp_path / "documented_urls.py").write_text(f"{view}\n{REST}")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    site = StreamSite(redis_server, prefix, [], TEST_URLS="documented_urls", PYTHONPATH=path)
    yield site
    site.stop()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    context.set_default_timeout(60_000)
    context.add_init_script("window.shown = []; window.show = (data) => shown.push(data)")
    yield context
    context.close()


def test_documented_script(context: Any, documented: StreamSite, tmp_path: Path) -> None:
    """It shows an event, and loads the page again at a reset."""
    html = block(DOCUMENTED, "html", having="<script")
    page = documented_page(context, documented, tmp_path, html, "orders.berlin")
    documented.send("orders.berlin", {"type": "order.paid", "id": 7})
    page.wait_for_function("shown.length === 1")
    assert page.evaluate("shown") == [{"type": "order.paid", "id": 7}]
    with page.expect_navigation():
        documented.send("orders.berlin", {"type": "reset"})


def test_documented_htmx(context: Any, documented: StreamSite, tmp_path: Path) -> None:
    """The rows of the view come into the table of the page, the newest first."""
    html = "".join(f"<script>{file.read_text()}</script>" for file in sorted(VENDOR.glob("htmx-*.js")))
    html += block(DOCUMENTED, "html", having="hx-ext")
    page = documented_page(context, documented, tmp_path, html, "orders")
    for number in (7, 8):
        documented.send("orders", {"type": "order.other", "id": 0})
        documented.send("orders", {"type": "order.paid", "id": number})
    page.wait_for_selector("tbody tr + tr")
    rows = page.eval_on_selector_all("tbody tr", "rows => rows.map((row) => row.id + row.innerText)")
    assert rows == ["order-8paid", "order-7paid"]


def test_documented_turbo(context: Any, documented: StreamSite, tmp_path: Path) -> None:
    """What a view renders for Turbo is appended to the element that it names."""
    turbo = global_packages("@hotwired/turbo") / "@hotwired/turbo/dist/turbo.es2017-umd.js"
    html = f'<script>{turbo.read_text()}</script><p id="orders"></p>'
    html += block(DOCUMENTED, "html", having="<turbo-stream-source").replace("/orders/", "/turbo/")
    page = documented_page(context, documented, tmp_path, html, "orders")
    for number in (7, 8):
        documented.send("orders", {"type": "message", "id": number})
    page.wait_for_function("document.getElementById('orders').textContent === '7 8 '")


def documented_page(context: Any, site: StreamSite, folder: Path, html: str, group: str) -> Page:
    """A page of the site with this HTML, in which a template would put a position."""
    text = html.replace("{{ position }}", site.position(group))
    assert text != html
    (folder / f"{group}.html").write_text(f"<!doctype html>{text}")
    page = context.new_page()
    page.goto(f"http://{HOST}:{site.port}/documented/{group}/")
    return page
