"""docs/notifications.md: the app of the page, served for real, with two browsers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import files
from tests.example import free_port
from tests.page_sites import DOCS, PageSite, python
from tests.test_resume_browser import browser
from tests.test_resume_browser import pytestmark as marks_of_browsers

__all__ = ["browser"]

pytestmark = [
    *marks_of_browsers,
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
]

URLS = """\
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpResponse
from django.urls import include, path

from notes import views
from notes.models import Order


def sign_in(request, name):
    login(request, User.objects.get_or_create(username=name)[0])
    return HttpResponse()


def sign_out(request):
    logout(request)
    return HttpResponse()


def ship(request, name, is_kept):
    with transaction.atomic():
        order = Order.objects.create(buyer=User.objects.get(username=name))
        order.is_sent = True
        order.save(update_fields=["is_sent"])
        order.save()  # of this nobody is told
        transaction.set_rollback(not is_kept)
    return HttpResponse()


def by_socket(request):
    page = views.unread(request)
    page.content = page.content.replace(b"notes/events.js", b"notes/socket.js")
    return page


urlpatterns = [
    path("sign-in/<name>/", sign_in),
    path("sign-out/", sign_out),
    path("ship/<name>/<int:is_kept>/", ship),
    path("by-socket/", by_socket),
    path("notes/", include("notes.urls")),
]
"""

REPORT = """
from django.contrib.auth.models import User
from notes.tasks import report
report.apply(args=[User.objects.get(username="ada").pk]).get()
"""


@pytest.fixture
def site(tmp_path: Path, redis_server: EmbeddedServer, prefix: str) -> Iterator[PageSite]:
    pytest.importorskip("celery")
    config = json.dumps({"hosts": [redis_server.url], "prefix": prefix})
    site = PageSite(tmp_path, files("docs/notifications.md"), URLS, config)
    site.start()
    yield site
    site.stop()


class Visitor:
    """A browser of a user, with a tab that listens to a stream and one that has a WebSocket."""

    def __init__(self, browser: Any, site: PageSite, name: str) -> None:
        self.site = site
        self.context = browser.new_context()
        self.context.set_default_timeout(30_000)
        self.asks(f"sign-in/{name}/")
        self.tabs = [self.context.new_page() for _ in range(2)]
        for tab, path in zip(self.tabs, ("notes/", "by-socket/"), strict=True):
            tab.goto(site.url(path))
        self.says("Live")

    def asks(self, path: str) -> None:
        assert self.context.request.get(self.site.url(path)).status == 200

    def says(self, state: str) -> None:
        """Wait until all tabs are in this state."""
        for tab in self.tabs:
            tab.wait_for_function(
                "(state) => document.getElementById('state').textContent === state", arg=state
            )

    def sees(self, *notes: str) -> None:
        """Wait until all tabs show these notifications, the newest first, and each once."""
        for tab in self.tabs:
            tab.wait_for_function(
                "(notes) => JSON.stringify([...document.querySelectorAll('li')].map((li) => li.textContent))"
                " === JSON.stringify(notes)",
                arg=list(notes),
            )


def test_every_block_is_a_file_of_the_site() -> None:
    """The page has the whole app."""
    site = files("docs/notifications.md")
    assert len(site) == 14
    assert {"settings.py", "asgi.py", "notes/tasks.py", "notes/consumers.py"} < set(site)


OUTAGE = """
from django.contrib.auth.models import User
from django.test import Client
from notes.models import Notification
from notes.notify import notify
ada = User.objects.create(username="ada")
notify(ada, "It is stored")
client = Client(headers={"host": "127.0.0.1"})
client.force_login(ada)
page = client.get("/notes/")
print(page.status_code, page.content.decode())
"""


def test_without_the_message_server(tmp_path: Path) -> None:
    """The notification is stored, and the page is shown. It has a position that makes it load again later."""
    config = {"hosts": [f"redis://127.0.0.1:{free_port()}/0"], "send_timeout": 0.2}
    site = PageSite(tmp_path, files("docs/notifications.md"), URLS, json.dumps(config))
    said = site.run(*python(OUTAGE))
    assert said.startswith("200 ") and 'data-since="none"' in said and "It is stored" in said


def test_from_the_first_notification_to_signing_out(browser: Any, site: PageSite) -> None:
    """
    Every tab of the user gets what is committed, once, from a signal and from another process, and nobody else
    does; so do tabs that were away; what is read goes from all of them; and signing out ends them all.
    """
    ada, bob = (Visitor(browser, site, name) for name in ("ada", "bob"))
    ada.asks("ship/ada/0/")  # is rolled back
    ada.asks("ship/ada/1/")
    ada.sees("Order 1 is on its way")
    site.run(*python(REPORT))
    both = ["Your report is ready", "Order 1 is on its way"]
    ada.sees(*both)
    bob.sees()

    # While the server is away, another process sends.
    site.stop()
    ada.says("Connecting")
    site.run(*python(REPORT))
    site.start()
    ada.says("Live")
    ada.sees("Your report is ready", *both)

    ada.tabs[0].click("#note-2")
    ada.sees("Your report is ready", "Order 1 is on its way")
    # A page that is loaded has what is unread.
    for tab in ada.tabs:
        tab.reload()
    ada.says("Live")
    ada.sees("Your report is ready", "Order 1 is on its way")

    ada.asks("sign-out/")
    ada.says("Signed out")
    bob.asks("ship/bob/1/")
    bob.sees("Order 2 is on its way")
    for visitor in (ada, bob):
        visitor.context.close()
