"""Memberships of normal channels: what is renewed when the server forgot, and what failures leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq.bus.base import Members
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.names import Topics
from channels_asyncq.session import memberships
from channels_asyncq.session.memberships import Memberships
from channels_asyncq.settings.options import Options
from tests.clock import Clock
from tests.contract import eventually, started, steps

EVERYWHERE = range(16)
REFUSED = LayerUnavailable("redis://host", "OOM", is_refusal=True)


class Server:
    """The bus, as far as it is asked: who is a member, in the order in which they were added."""

    def __init__(self) -> None:
        self.joined: dict[tuple[str, str], float | None] = {}
        self.added = 0
        self.error: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def add(self, group: str, channel: str, seconds: float | None = None) -> None:
        self.added += 1
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        self.joined[group, channel] = seconds

    async def discard(self, group: str, channel: str) -> None:
        self.joined.pop((group, channel), None)

    def forget(self) -> None:
        self.joined.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["session.memberships"])
    return clock


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def here(server: Server) -> AsyncIterator[Memberships]:
    here = Memberships(
        cast(Members, server), Topics("asgi", 16, [0], "0" * 16), Options.from_config({"group_expiry": 100})
    )
    yield here
    here.close()


async def test_renewed_for_the_rest_of_their_time(server: Server, here: Memberships, clock: Clock) -> None:
    """Those that have not lapsed, of the partitions that were forgotten."""
    await here.add("old", "jobs")
    clock.turn(60.0)
    await here.add("new", "jobs")
    server.forget()
    here.renew(EVERYWHERE)
    await eventually(lambda: len(server.joined) == 2, "both")
    assert server.joined == {("old", "jobs"): 40.0, ("new", "jobs"): 100.0}
    clock.turn(50.0)
    server.forget()
    here.renew(EVERYWHERE)
    await eventually(lambda: server.joined, "the other")
    assert server.joined == {("new", "jobs"): 50.0}
    server.forget()
    here.renew(())
    await steps(5)
    assert server.joined == {}


async def test_ended_ones_are_not_renewed(server: Server, here: Memberships) -> None:
    """Discarded before, or while the renewal is under way, or with all others."""
    for group in ("a", "b", "c"):
        await here.add(group, "jobs")
    await here.discard("a", "jobs")
    server.forget()
    server.goes_on.clear()
    here.renew(EVERYWHERE)
    await steps(3)
    await here.discard("c", "jobs")
    server.goes_on.set()
    await eventually(lambda: server.joined, "the one")
    await steps(5)
    assert set(server.joined) == {("b", "jobs")}
    here.clear()
    server.forget()
    here.renew(EVERYWHERE)
    await steps(5)
    assert server.joined == {}


@pytest.mark.parametrize("error", [REFUSED, ImproperlyConfigured("others have partitions: 8")])
async def test_refused_renewal_is_repeated(
    server: Server, here: Memberships, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """More and more seldom, until it succeeds; several at once are one."""
    monkeypatch.setattr(memberships, "_FIRST_PAUSE", 0.001)
    await here.add("room", "jobs")
    server.forget()
    server.error = error
    for _ in range(3):
        here.renew(EVERYWHERE)
    await eventually(lambda: server.added >= 4, "some attempts")
    server.error = None
    await eventually(lambda: server.joined, "the renewal")
    before = server.added
    await steps(10)
    assert server.added == before


async def test_refused_add_is_none(server: Server, here: Memberships) -> None:
    """What the server refused is not renewed; what was there before, for its own time."""
    server.error = REFUSED
    with pytest.raises(LayerUnavailable):
        await here.add("room", "jobs")
    server.error = None
    here.renew(EVERYWHERE)
    await steps(5)
    assert server.joined == {}
    await here.add("room", "jobs")
    server.error = REFUSED
    with pytest.raises(LayerUnavailable):
        await here.add("room", "jobs")
    server.error = None
    server.forget()
    here.renew(EVERYWHERE)
    await eventually(lambda: server.joined, "the one that was there")


async def test_cancelled_add(server: Server, here: Memberships) -> None:
    """It leaves nothing to renew."""
    server.goes_on.clear()
    adding = await started(here.add("room", "jobs"))
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    server.goes_on.set()
    here.renew(EVERYWHERE)
    await steps(5)
    assert server.joined == {}


async def test_add_and_discard_at_once(server: Server, here: Memberships) -> None:
    """The discard that came last counts, however the add ends."""
    server.goes_on.clear()
    server.error = REFUSED
    adding = await started(here.add("room", "jobs"))
    await here.discard("room", "jobs")
    server.goes_on.set()
    with pytest.raises(LayerUnavailable):
        await adding
    server.error = None
    here.renew(EVERYWHERE)
    await steps(5)
    assert server.joined == {}


async def test_bounded(server: Server, here: Memberships, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are kept; one that is added again is among the last."""
    monkeypatch.setattr(memberships, "_MAX_REMEMBERED", 3)
    for group in ("a", "b", "a", "c", "d"):
        await here.add(group, "jobs")
    server.forget()
    here.renew(EVERYWHERE)
    await eventually(lambda: len(server.joined) == 3, "the last")
    await steps(5)
    assert {group for group, _ in server.joined} == {"a", "c", "d"}


async def test_close_ends_the_renewal(server: Server, here: Memberships) -> None:
    """No task is left."""
    await here.add("room", "jobs")
    server.goes_on.clear()
    here.renew(EVERYWHERE)
    await steps(3)
    here.close()
    await steps(3)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_forgotten_after_close(server: Server, here: Memberships) -> None:
    """A fence that arrives while the connections are closed begins no renewal: it would be refused for ever."""
    await here.add("room", "jobs")
    here.close()
    before = len(asyncio.all_tasks())
    here.renew(EVERYWHERE)
    assert len(asyncio.all_tasks()) == before
