"""Consumers keep the database as clean as Channels' do, with fewer trips to its thread."""

import asyncio
import contextlib
import copy
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from channels import db
from django.db import connections
from freezegun import freeze_time

from channels_asyncq.consumers import database
from tests.consumers import KINDS, OURS, Kind, Message, installed, make, talks
from tests.handlers import Steps

ALIAS = "hygiene"


class Database:
    """A database under an alias of its own, as a consumer's handler sees it from the database's thread."""

    def __init__(self, settings: Message) -> None:
        self._settings = settings
        #: For each query: whether the connection was open already, and whether it counted as healthy.
        self.seen: list[tuple[bool, bool]] = []
        self.threads: list[int] = []
        self.also: Callable[[Any], None] | None = None

    def configure(self, **settings: Any) -> None:
        known: Any = connections.settings
        known[ALIAS] = {**copy.deepcopy(known["default"]), **self._settings, **settings}

    def _query(self) -> None:
        connection: Any = connections[ALIAS]
        self.seen.append((connection.connection is not None, connection.health_check_done))
        self.threads.append(threading.get_ident())
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        if self.also is not None:
            self.also(connection)

    async def query(self) -> None:
        await sync_to_async(self._query)()

    @property
    def were_open(self) -> list[bool]:
        return [was_open for was_open, _ in self.seen]

    async def is_open(self) -> bool:
        return await sync_to_async(lambda: connections[ALIAS].connection is not None)()


def _end() -> None:
    with contextlib.suppress(AttributeError):
        connections[ALIAS].close()
        del connections[ALIAS]


@contextlib.asynccontextmanager
async def own_thread() -> AsyncGenerator[None, None]:
    """A thread for this block's database code alone, as of a request."""
    async with ThreadSensitiveContext():
        try:
            yield
        finally:
            await sync_to_async(_end)()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Message]:
    """Django's settings of a PostgreSQL server of this run; skips where there is none."""
    pytest.importorskip("psycopg_pool")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    where = shutil.which("postgres") or (str(found[-1]) if found else None)
    if where is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    user: list[str | Path] = []
    if os.getuid() == 0:
        # Not on the PATH of every root: that of `su` may be a user's.
        user = [shutil.which("runuser") or "/usr/sbin/runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = Path(where).parent
    quiet: Any = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    data = str(folder / "data")
    subprocess.run([*user, programs / "initdb", "-D", data, "-A", "trust", "-U", "test", "-N"], **quiet)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control: list[str | Path] = [*user, programs / "pg_ctl", "-D", data, "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "test",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "OPTIONS": {},
        }
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.slow),
        pytest.param("pool", marks=pytest.mark.slow),
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[Database]:
    """A real database; pytest-django guards only those that Django's test runner has made."""
    settings: Message = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "database.sqlite3"),
        "OPTIONS": {},
    }
    if request.param != "sqlite":
        settings = dict(request.getfixturevalue("postgresql"))
    if request.param == "pool":
        settings["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 2}}
    site = Database(settings)
    site.configure()
    with django_db_blocker.unblock():
        yield site
    if request.param == "pool":
        wrapper: Any = connections.create_connection(ALIAS)
        wrapper.close_pool()
    del connections.settings[ALIAS]


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def queries(kind: Kind, site: Database) -> Any:
    class Queries(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield site.query()
            yield self.send(text_data="done")

    return Queries


async def _three_queries(kind: Kind, site: Database, prefix: str) -> bool:
    """Query in three handlers; return whether the connection is open after the consumer's end."""
    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        talk = begin(queries(kind, site))
        await talk.accepted()
        for _ in range(3):
            talk.say("websocket.receive", text="x")
            await talk.hears()
        await talk.leaves()
        return await site.is_open()


@pytest.mark.parametrize(
    ("max_age", "were_open"), [(0, [False] * 3), (600, [False, True, True]), (None, [False, True, True])]
)
async def test_conn_max_age(
    kind: Kind, site: Database, prefix: str, max_age: int | None, were_open: list[bool]
) -> None:
    """CONN_MAX_AGE of 0, a while, and for ever: a handler finds the connection as under Channels, and so does
    the end of the consumer."""
    if site._settings["OPTIONS"].get("pool") and max_age != 0:
        pytest.skip("Django allows no pool of persistent connections")
    site.configure(CONN_MAX_AGE=max_age)
    is_open = await _three_queries(kind, site, prefix)
    assert site.were_open == were_open
    assert is_open is (max_age != 0)


def _break(connection: Any) -> None:
    connection.connection.close()
    connection.errors_occurred = True


def _age(connection: Any) -> None:
    connection.close_at = 0.0


def _leave_autocommit_off(connection: Any) -> None:
    connection.set_autocommit(False)


@pytest.mark.parametrize("damage", [_break, _age, _leave_autocommit_off])
async def test_damaged_connection(kind: Kind, site: Database, prefix: str, damage: Any) -> None:
    """A connection that is broken, too old or in a strange state is not what the next handler finds."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("is never kept")
    if damage is _break and "sqlite" in site._settings["ENGINE"]:
        pytest.skip("SQLite's connections always count as usable")
    site.configure(CONN_MAX_AGE=600)
    site.also = damage
    await _three_queries(kind, site, prefix)
    assert site.were_open == [False] * 3


async def test_frozen_clock(kind: Kind, site: Database, prefix: str) -> None:
    """A connection grows old by Django's clock, also where a test turns that by hand."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("Django allows no pool of persistent connections")
    site.configure(CONN_MAX_AGE=600)
    with freeze_time("2100-01-01", real_asyncio=True) as frozen:

        def grow_old(connection: Any) -> None:
            frozen.tick(601)

        site.also = grow_old
        await _three_queries(kind, site, prefix)
    assert site.were_open == [False] * 3


async def test_health_checks(kind: Kind, site: Database, prefix: str) -> None:
    """With CONN_HEALTH_CHECKS each handler's first query asks anew whether the connection lives."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("is never kept")
    site.configure(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True)
    await _three_queries(kind, site, prefix)
    assert site.seen == [(False, False), (True, False), (True, False)]


async def test_two_contexts(kind: Kind, site: Database, prefix: str) -> None:
    """Consumers of two ThreadSensitiveContexts have two threads, and each keeps its own connection clean."""
    site.configure(CONN_MAX_AGE=0)
    turn = [asyncio.Event() for _ in range(3)]

    async def one() -> None:
        async with own_thread(), talks() as begin:
            talk = begin(queries(kind, site))
            await talk.accepted()
            talk.say("websocket.receive", text="x")
            await talk.hears()
            turn[0].set()
            await turn[1].wait()
            # The other one's handlers have not touched ours. (A sync consumer has cleaned it behind its handler.)
            assert await site.is_open() is not kind.is_sync
            talk.say("websocket.receive", text="x")
            await talk.hears()
            await talk.leaves()
            assert not await site.is_open()

    async def other() -> None:
        async with own_thread(), talks() as begin:
            talk = begin(queries(kind, site))
            await talk.accepted()
            await turn[0].wait()
            for _ in range(2):
                talk.say("websocket.receive", text="x")
                await talk.hears()
            await talk.leaves()
            assert not await site.is_open()
            turn[1].set()

    async with installed(make("asyncq.memory", "", prefix)):
        # Tasks: the context of a ThreadSensitiveContext is the task's.
        await asyncio.gather(asyncio.create_task(one()), asyncio.create_task(other()))
    assert len(set(site.threads)) == 2
    assert site.were_open == [False] * 4


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads in which close_old_connections() was called, one entry for each time."""
    trips: list[int] = []
    original = db.close_old_connections  # type: ignore[attr-defined]

    def counted(**kwargs: Any) -> None:
        trips.append(threading.get_ident())
        original(**kwargs)

    monkeypatch.setattr(db, "close_old_connections", counted)
    return trips


@pytest.mark.parametrize(
    ("max_age", "does_query", "expected"),
    [(600, False, 2), (600, True, 3), (None, True, 3), (0, True, 12), (0, False, 2)],
)
async def test_trips(
    site: Database,
    prefix: str,
    trips: list[int],
    max_age: int | None,
    does_query: bool,
    expected: int,
) -> None:
    """
    We go to the database's thread before the first handler, at the end, and in between only when something is
    due there: Channels goes twelve times here.
    """
    if site._settings["OPTIONS"].get("pool") and max_age != 0:
        pytest.skip("Django allows no pool of persistent connections")
    site.configure(CONN_MAX_AGE=max_age, CONN_HEALTH_CHECKS=False)

    class Sometimes(OURS.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            if does_query:
                yield site.query()
            yield self.send(text_data="done")

    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        talk = begin(Sometimes)
        await talk.accepted()
        for _ in range(10):
            talk.say("websocket.receive", text="x")
            await talk.hears()
        # Those of the last handler may be due as well: the end has two of them in Channels' consumers too.
        await talk.leaves()
    assert expected - 1 <= len(trips) <= expected + 1, trips
    assert len(set(trips)) == 1


async def test_next_consumer_makes_no_trip(site: Database, prefix: str, trips: list[int]) -> None:
    """In a thread that another consumer has visited, a new one goes there only if something is due."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("is never kept")
    site.configure(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=False)
    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        await begin(queries(OURS, site)).accepted()
        assert len(trips) == 1
        await site.query()
        await begin(queries(OURS, site)).accepted()
        assert len(trips) == 1
        await sync_to_async(lambda: _age(connections[ALIAS]))()
        await begin(queries(OURS, site)).accepted()
        assert len(trips) == 2
        assert not await site.is_open()
    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        await begin(queries(OURS, site)).accepted()
        assert len(trips) == 3  # another thread


async def test_connection_opened_before(site: Database, prefix: str) -> None:
    """A connection that was opened in the thread before anybody looked is found by the first trip."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("is never kept")
    site.configure(CONN_MAX_AGE=600)
    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        await site.query()
        await sync_to_async(lambda: database._opened.pop(threading.get_ident()))()
        talk = begin(queries(OURS, site))
        await talk.accepted()
        await sync_to_async(lambda: _age(connections[ALIAS]))()
        talk.say("websocket.receive", text="x")
        await talk.hears()
        assert site.were_open == [False, False]
        await talk.leaves()


async def test_backend_of_its_own_mind(site: Database, prefix: str, trips: list[int]) -> None:
    """Of a backend that overrides close_if_unusable_or_obsolete() we know nothing, and always go."""
    if site._settings["OPTIONS"].get("pool"):
        pytest.skip("is never kept")
    site.configure(CONN_MAX_AGE=600)

    async with installed(make("asyncq.memory", "", prefix)), own_thread(), talks() as begin:
        await site.query()

        def change_class() -> None:
            connection: Any = connections[ALIAS]

            class Own(type(connection)):  # type: ignore[misc]
                def close_if_unusable_or_obsolete(self) -> None:
                    super().close_if_unusable_or_obsolete()

            connection.__class__ = Own

        await sync_to_async(change_class)()
        talk = begin(queries(OURS, site))
        await talk.accepted()
        before = len(trips)
        for _ in range(5):
            talk.say("websocket.receive", text="x")
            await talk.hears()
        assert len(trips) - before >= 4
        await talk.leaves()
