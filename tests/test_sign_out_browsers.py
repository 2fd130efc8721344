"""Three browsers on two servers: which connections end when a user signs out, and which stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.testing import EmbeddedServer
from tests.browsers import Page
from tests.example import HOST, Program, free_port
from tests.test_resume_browser import ROOT, browser, pytestmark

__all__ = ["browser", "pytestmark"]

SITE = "tests.processes.sign_out_site"
#: Daphne ends a handshake after five seconds, which a machine with other work may take.
DAPHNE = ("--websocket_connect_timeout", "60")
#: Seconds within which a connection has to end: it takes less than 0.1 s where the machine has time for it (`-s`
#: shows it). Its session is looked at again after 300 s only.
SOON = 30.0


class Sites:
    """The site under uvicorn and under Daphne, on one database and one message server."""

    def __init__(self, folder: Path, server: EmbeddedServer, prefix: str) -> None:
        config: dict[str, Any] = {"hosts": [server.url], "prefix": prefix}
        self.layer = AsyncQueueChannelLayer(**config)
        environment = {
            "PYTHONPATH": str(ROOT),
            "TEST_DATABASE": str(folder / "site.sqlite3"),
            "TEST_LAYER_CONFIG": json.dumps(config),
        }
        subprocess.run([sys.executable, "-m", SITE], env=os.environ | environment, check=True, timeout=60)
        self.ports = {"uvicorn": free_port(), "daphne": free_port()}
        port = {kind: str(number) for kind, number in self.ports.items()}
        commands = (
            ["-m", "uvicorn", "--host", HOST, "--port", port["uvicorn"], f"{SITE}:application"],
            ["-m", "daphne", *DAPHNE, "-b", HOST, "-p", port["daphne"], f"{SITE}:application"],
        )
        self.programs = [Program(*command, environment=environment).__enter__() for command in commands]
        for program in self.programs:
            program.wait_for("Listening on TCP address|Uvicorn running on")

    def url(self, kind: str, path: str = "") -> str:
        return f"http://{HOST}:{self.ports[kind]}/{path}"

    def say(self, text: str) -> None:
        with ThreadPoolExecutor(1) as pool:  # playwright's event loop runs in this thread
            pool.submit(sync.group_send, "news", {"type": "site.said", "text": text}, self.layer).result()

    def stop(self) -> None:
        for program in self.programs:
            program.__exit__(None, None, None)
            assert "Traceback" not in program.output, program.output
        self.layer.close_from_thread()


@pytest.fixture
def sites(tmp_path: Path, redis_server: EmbeddedServer, prefix: str) -> Iterator[Sites]:
    sites = Sites(tmp_path, redis_server, prefix)
    yield sites
    sites.stop()


class Visitor:
    """A browser of its own, with a page that has a WebSocket and an EventSource open."""

    def __init__(self, browser: Any, sites: Sites, kind: str, name: str) -> None:
        self.sites = sites
        self.context = browser.new_context()
        self.context.set_default_timeout(30_000)
        self.asks(kind, f"sign-in/{name}/")
        self.page: Page = self.context.new_page()
        self.url = sites.url(kind)
        self.visits()

    def visits(self) -> None:
        """Load the page anew, and wait until its connections are open."""
        self.page.goto(self.url)
        for what in ("socket open", "stream open"):
            self.waits_for(what)

    def asks(self, kind: str, path: str) -> float:
        """Fetch an address with this browser's cookies; return when it was asked for, in s since 1970."""
        began = time.time()
        answer = self.context.request.get(self.sites.url(kind, path))
        assert answer.status == 200
        return began

    def told(self, what: str) -> list[dict[str, Any]]:
        return [each for each in self.page.evaluate("told") if each["what"] == what]

    def waits_for(self, what: str, count: int = 1) -> dict[str, Any]:
        """Return the note of a kind with this number, from 1, when it is there."""
        self.page.wait_for_function(
            "([what, count]) => window.told?.filter((each) => each.what === what).length >= count",
            arg=[what, count],
        )
        return self.told(what)[count - 1]

    def hears(self, text: str, count: int) -> None:
        """Both connections, which are the first ones, get a text as the message with this number, from 1."""
        for what in ("socket message", "stream message"):
            assert self.waits_for(what, count)["data"]["text"] == text
        assert not self.told("socket closed") and not self.told("stream closed")

    def is_thrown_out(self, kind: str, code: int, began: float | None, count: int = 1) -> dict[str, Any]:
        """Return the note of the end with this number, from 1: it has this code, and came soon after a time."""
        found = self.waits_for(f"{kind} closed", count)
        assert found["code"] == code
        if began is not None:
            seconds = float(found["at"]) / 1000 - began
            print(f"\n{kind} closed with {code} after {seconds:.2f} s")
            assert seconds < SOON
        return found


def test_three_browsers(browser: Any, sites: Sites) -> None:
    """What ends, ends soon; what is taken back, or is another's, stays; who may, comes back."""
    ada = Visitor(browser, sites, "uvicorn", "ada")
    bob = Visitor(browser, sites, "daphne", "bob")
    bob_elsewhere = Visitor(browser, sites, "uvicorn", "bob")
    everybody = (ada, bob, bob_elsewhere)

    # In transactions that are rolled back.
    for visitor, kind in ((ada, "daphne"), (bob, "uvicorn"), (bob_elsewhere, "daphne")):
        visitor.asks(kind, "rolled-back/")
    sites.say("everybody is here")
    for visitor in everybody:
        visitor.hears("everybody is here", 1)

    # By HTTP at the other server.
    began = ada.asks("daphne", "sign-out/")
    assert ada.is_thrown_out("socket", 4401, began)["delay"] is None
    assert ada.is_thrown_out("stream", 4401, began)["final"] is True
    ada.waits_for("stream gave up")
    sites.say("without ada")
    for visitor in (bob, bob_elsewhere):
        visitor.hears("without ada", 2)

    # By another password.
    began = bob.asks("uvicorn", "password/")
    for visitor in (bob, bob_elsewhere):
        for kind in ("socket", "stream"):
            visitor.is_thrown_out(kind, 3000, began)
    # The browser in which it was changed comes back, and misses nothing.
    sites.say("bob is back")
    bob.waits_for("socket open", 2)
    bob.waits_for("stream open", 2)
    assert [each["recovered"] for each in bob.told("socket open")] == [True, True]
    for what in ("socket message", "stream message"):
        last = bob.waits_for(what, 3)
        assert last["data"]["text"] == "bob is back"
    # The other one finds that it has to sign in.
    bob_elsewhere.is_thrown_out("socket", 4401, None, 2)
    bob_elsewhere.waits_for("stream gave up")
    assert len(bob_elsewhere.told("stream message")) == 2

    # Kicked, by final code. The session stays: the view would admit the stream, and a new page has one again.
    bob.visits()
    began = bob.asks("uvicorn", "kick/")
    assert bob.is_thrown_out("socket", 4403, began)["delay"] is None
    assert bob.is_thrown_out("stream", 4403, began)["final"] is True
    bob.waits_for("stream gave up")
    bob.visits()

    # Everywhere.
    began = bob.asks("daphne", "everywhere/")
    for kind in ("socket", "stream"):
        bob.is_thrown_out(kind, 4401, began)
    bob.waits_for("stream gave up")
    for visitor in everybody:
        visitor.context.close()
