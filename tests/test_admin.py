"""The page of the channel layer in Django's admin: who may see it, what it shows, and what it leaves alone."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.template import Context, Engine

import channels_asyncq
from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.admin import looks
from channels_asyncq.admin.looks import look_at
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.identity import identity
from channels_asyncq.testing import EmbeddedServer
from tests.admin_pages import PATH, SERVERS, AdminSite, Visitor, admin_site, crowd, texts
from tests.contract import DEADLINE, MakeLayer

OWN_PATH = PATH.replace("/admin/", "/own/")

processes = pytest.mark.processes
posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals and no forks")


@pytest.fixture(scope="module")
def site(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    with admin_site(tmp_path_factory.mktemp("admin"), redis_server) as site:
        yield site


# The app


_PROJECT = """
import json
import django
from io import StringIO
django.setup()
from django.core.management import call_command
from django.db import connection
call_command("check", fail_level="WARNING")
call_command("makemigrations", check_changes=True)
call_command("migrate", check_unapplied=True, run_syncdb=True)
assert not [name for name in connection.introspection.table_names() if "asyncq" in name]
dump = StringIO()
call_command("dumpdata", use_base_manager=True, stdout=dump)
models = {row["model"] for row in json.loads(dump.getvalue())}
assert "auth.user" in models and not any("asyncq" in model for model in models)
"""


@processes
def test_project_with_the_app(site: AdminSite) -> None:
    """It has no migration and no table, no system check minds it, and a dump of all models works."""
    with site.program("-c", _PROJECT) as program:
        assert program.end() == 0, program.output


@processes
def test_who_may_see_the_page(site: AdminSite) -> None:
    """Staff with the permission see it, and find it in the index of both sites. Others do not."""
    for name in ("viewer", "root"):
        visitor = Visitor(site, name)
        for path in (PATH, OWN_PATH):
            status, page = visitor.get(path)
            assert status == 200 and ">Processes</caption>" in page
            assert f'href="{path}"' in visitor.get(path.partition("channels")[0])[1]
    clerk = Visitor(site, "clerk")
    for path in (PATH, OWN_PATH, f"{PATH}?figures", f"{PATH}?layer=another"):
        assert clerk.get(path)[0] == 403
    assert PATH not in clerk.get("/admin/")[1]
    for path in (PATH, f"{PATH}?figures"):
        status, page = Visitor(site, None).get(path)
        assert 'name="password"' in page and "asyncq-processes" not in page


@processes
def test_page_is_read_only(site: AdminSite) -> None:
    """Nobody can add, change or delete, not even a superuser; and nothing but a read is answered."""
    root = Visitor(site, "root")
    for end in ("add/", "default/", "default/change/", "default/delete/", "default/history/"):
        assert root.get(PATH + end)[0] == 404
    assert root.post(PATH, action="delete_selected")[0] == 405
    assert f'href="{PATH}add/"' not in root.get("/admin/")[1]


@processes
@posix
def test_choice_of_a_layer(site: AdminSite) -> None:
    """Layers of this package can be chosen, each has its own processes; others are unknown."""
    viewer = Visitor(site, "viewer")
    with crowd(site, 2):
        status, page = viewer.get(f"{PATH}?layer=default")
        assert status == 200 and ["lobby", "2", "1"] in [row[:3] for row in texts(page, "groups")]
        for alias in ("default", "another", "in%20memory"):
            assert f'href="?layer={alias}"' in page
        assert "of Channels" not in page and "memory://" not in page
        status, page = viewer.get(f"{PATH}?layer=another")
        assert status == 200 and texts(page, "groups") == [["No group has a member."]]
    for alias in ("of%20Channels", "nothing", "%3Cscript%3E"):
        assert viewer.get(f"{PATH}?layer={alias}")[0] == 404


@processes
def test_layer_in_memory(site: AdminSite) -> None:
    """On `memory://` the page says that it sees its own process alone."""
    status, page = Visitor(site, "viewer").get(f"{PATH}?layer=in%20memory")
    assert status == 200 and "no other process uses it" in page
    [row] = texts(page, "processes")
    assert row[0].endswith(f":{site.server.process.pid}:daphne") and row[-1] == "memory://"


# What it shows


@processes
@posix
@pytest.mark.parametrize("kind", SERVERS)
def test_figures(kind: str, own_redis_server: EmbeddedServer, tmp_path: Path) -> None:
    """
    Under ASGI and WSGI servers: all processes with their figures, the groups, the channel that is full and why
    messages were dropped. A stopped process is named; without the message server the page says why, and works
    again when it is back.
    """
    with (
        admin_site(tmp_path, own_redis_server, kind) as site,
        crowd(site, 4) as first,
        crowd(site, 3) as second,
    ):
        viewer = Visitor(site, "viewer")
        status, page = viewer.get()
        assert status == 200
        names = {row[0].rpartition(":")[2]: row for row in texts(page, "processes")}
        assert set(names) == {kind, "admin_crowd"}
        assert [row[0].split(":")[1] for row in texts(page, "processes")].count(str(first.process.pid)) == 1
        members = {row[0]: row[1:3] for row in texts(page, "groups")}
        assert members == {"lobby": ["7", "2"], "slow.readers": ["2", "2"]}
        channels = texts(page, "channels")
        assert [row[1] for row in channels] == ["3 of 3", "3 of 3"]
        assert {row[3] for row in channels} == {"receive()"}
        assert all(row[0].startswith("slow.") and row[4].endswith(":admin_crowd") for row in channels)
        [dropped] = {row[-3].partition(" ")[0] for row in texts(page, "processes") if "crowd" in row[0]}
        assert dropped == "overflow"

        second.process.send_signal(signal.SIGSTOP)
        try:
            page = eventually_has(viewer, "(no answer)")
            assert f":{second.process.pid}:admin_crowd (no answer)" in page
            assert len(texts(page, "processes")) == 2
        finally:
            second.process.send_signal(signal.SIGCONT)
        assert "(no answer)" not in eventually_has(viewer, f":{second.process.pid}:admin_crowd</th>")

        own_redis_server.kill()
        page = eventually_has(viewer, "The processes cannot be reached")
        assert texts(page, "processes") == []
        own_redis_server.restart()
        page = eventually_has(viewer, ">Processes</caption>")
        assert "cannot be reached" not in page


def eventually_has(visitor: Visitor, text: str) -> str:
    """Load the page until it has this text."""
    for _ in range(60):
        status, page = visitor.get(f"{PATH}?figures")
        assert status == 200
        if text in page:
            return page
        threading.Event().wait(0.5)
    raise AssertionError(f"no {text!r} in\n{page}")


def test_everything_is_escaped() -> None:
    """Names and reasons come from other processes and from servers."""
    bad = "<script>&\"'"
    links = [{"address": bad, "state": bad, "reason": bad, "reconnects": 1, "ago": bad}]
    counts = {"channels": bad, "groups": bad, "queued": bad, "per_second": 0.0}
    figures = {**counts, "process": bad, "up": bad, "links": links, "dropped": {bad: 1}, "told": {bad: 1}}
    look = SimpleNamespace(
        processes=[figures, figures],
        total=figures,
        missing=[SimpleNamespace(process=bad, reason=bad), SimpleNamespace(session=bad, reason=bad)],
        groups=[{"group": bad, "members": bad, "processes": bad, "per_second": None}],
        has_all_groups=False,
        channels=[
            {"channel": bad, "waiting": 1, "capacity": 1, "oldest": 1.0, "reader": bad, "process": bad}
        ],
        waiting=2,
    )
    folder = Path(channels_asyncq.__file__).parent / "admin" / "templates"
    template = Engine(dirs=[str(folder)]).get_template("channels_asyncq/figures.html")
    page = template.render(Context({"alias": bad, "is_memory": True, "error": None, "look": look}))
    page += template.render(Context({"alias": bad, "error": bad}))
    assert page.count("&lt;script&gt;&amp;&quot;&#x27;") > 30
    assert "<script" not in page and "style=" not in page


# One look for all who look


async def test_look_is_shared(make_layer: MakeLayer) -> None:
    """Those who look at the same time, or within a second, get the same look; later ones get another."""
    layer = await make_layer()
    channel = await layer.new_channel()
    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()

        async def look() -> looks.Look:
            return await loop.run_in_executor(threads, look_at, layer)

        first, *others = await asyncio.gather(*(look() for _ in range(8)))
        assert all(other is first for other in others)
        assert [each["process"] for each in first.processes] == [identity()] and not first.groups
        await layer.group_add("here", channel)

        async def is_seen() -> bool:
            return bool((await look()).groups)

        await until(is_seen)


async def test_look_that_failed_is_not_shared(own_redis_server: EmbeddedServer) -> None:
    """An error is for those who wait for it; who comes later asks again."""
    layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url])
    try:
        assert (await asyncio.to_thread(look_at, layer)).processes
        own_redis_server.kill()

        async def fails() -> bool:
            try:
                await asyncio.to_thread(look_at, layer)
            except LayerUnavailable:
                return True
            return False

        await until(fails)
        own_redis_server.restart()

        async def works() -> bool:
            return not await fails()

        await until(works)
    finally:
        await layer.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


_FORKED = """
import os, signal, sys, threading
import django
django.setup()
from channels_asyncq import get_layer
from channels_asyncq.admin import looks
layer = get_layer("in memory")
looking = threading.Thread(target=looks.look_at, args=[layer])
looking.start()
while not looks._looks:
    pass
assert not looks._looks[layer].done()
child = os.fork()
if not child:
    signal.alarm(20)
    [figures] = looks.look_at(layer).processes
    os._exit(0 if f":{os.getpid()}:" in figures["process"] else 1)
looking.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@processes
@posix
def test_fork_during_a_look(site: AdminSite) -> None:
    """A child that is forked while its parent looks does not wait for the look of its parent."""
    with site.program("-c", _FORKED) as program:
        assert program.end() == 0, program.output
