"""A site whose admin has the page of the channel layer, served by real processes, and its users."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import channels_asyncq
from channels_asyncq.testing import EmbeddedServer
from tests.example import HOST, Program, free_port

PATH = "/admin/channels_asyncq_admin/layer/"
PASSWORD = "only for tests"

#: What each server needs to serve the site; `{}` is the port.
SERVERS = {
    "daphne": f"-m daphne -b {HOST} -p {{}} tests.processes.admin_site:asgi",
    "uvicorn": f"-m uvicorn --host {HOST} --port {{}} tests.processes.admin_site:asgi",
    "gunicorn": f"-m gunicorn --bind {HOST}:{{}} --threads 4 tests.processes.admin_site:wsgi",
}

_SET_UP = f"""
import django
django.setup()
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
call_command("migrate", verbosity=0)
for name in ("viewer", "clerk"):
    User.objects.create_user(name, password={PASSWORD!r}, is_staff=True)
viewing = Permission.objects.get(codename="view_layer", content_type__app_label="channels_asyncq_admin")
User.objects.get(username="viewer").user_permissions.add(viewing)
User.objects.create_superuser("root", password={PASSWORD!r})
"""


class AdminSite:
    """
    One server with the site, and a crowd: a process with groups and a full channel.

    The users are `viewer`, who may see the page, `clerk`, who may not, and the superuser `root`.
    """

    def __init__(self, folder: Path, server: EmbeddedServer | None, kind: str = "daphne") -> None:
        self.kind = kind
        self.port = free_port()
        roots = (Path(channels_asyncq.__file__).parents[1], Path(__file__).parents[1])
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tests.processes.admin_settings",
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            "ADMIN_DATABASE": str(folder / "admin.sqlite3"),
            "REDIS_URL": server.url if server is not None else "memory://",
        }
        with self.program("-c", _SET_UP) as program:
            assert program.end() == 0, program.output
        self.start()

    def program(self, *arguments: str) -> Program:
        return Program(*arguments, environment=self.environment)

    def start(self) -> None:
        self.server = self.program(*SERVERS[self.kind].format(self.port).split()).__enter__()
        self.server.wait_for("(?i)listening|running on")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.server.process.poll() is None:
            self.server.process.send_signal(how)
        self.server.__exit__(None, None, None)

    def address(self, path: str = PATH) -> str:
        return f"http://{HOST}:{self.port}{path}"


@contextmanager
def admin_site(folder: Path, server: EmbeddedServer | None, kind: str = "daphne") -> Iterator[AdminSite]:
    """The site, running until the block ends."""
    site = AdminSite(folder, server, kind)
    try:
        yield site
    finally:
        site.stop()


@contextmanager
def crowd(site: AdminSite, members: int) -> Iterator[Program]:
    """A further process, with this many members of the group `lobby` and a full channel in `slow.readers`."""
    with site.program("-m", "tests.processes.admin_crowd", str(members)) as program:
        program.wait_for(f"members: {members}")
        yield program


class Visitor:
    """Somebody with cookies, signed in by the form of the admin."""

    def __init__(self, site: AdminSite, name: str | None) -> None:
        self._site = site
        self._cookies = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self._cookies), ProxyHandler({}))
        if name is not None:
            self.get("/admin/login/")
            assert self.post("/admin/login/?next=/admin/", username=name, password=PASSWORD)[0] == 200

    def get(self, path: str = PATH) -> tuple[int, str]:
        """Return status and text, behind all redirects."""
        return self._open(Request(self._site.address(path)))

    def post(self, path: str, **values: str) -> tuple[int, str]:
        """Like `get()`, with values of a form."""
        [token] = [cookie.value for cookie in self._cookies if cookie.name == "csrftoken"]
        data = urlencode({"csrfmiddlewaretoken": token, **values}).encode()
        return self._open(Request(self._site.address(path), data))

    def _open(self, request: Request) -> tuple[int, str]:
        try:
            with self._opener.open(request, timeout=30) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()


def texts(page: str, part: str) -> list[list[str]]:
    """Return the texts of the cells in the body of a table, row by row."""
    table = page.partition(f'id="asyncq-{part}"')[2].partition("</table>")[0]
    body = table.partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [
            " ".join(re.sub(r"<[^>]*>", " ", cell).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
        ]
        for row in body.split("<tr>")[1:]
    ]
