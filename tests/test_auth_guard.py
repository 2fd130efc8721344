"""A WebSocket whose session ends while it connects, or without a signal."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.auth import guard, names, sessions, user_group
from channels_asyncq.events import Faults
from channels_asyncq.messages.closing import CLOSE
from tests.consumers import Message, layer
from tests.contract import DEADLINE, eventually
from tests.sign_in import (
    ENDED,
    SIGNED_OUT,
    Begin,
    Kept,
    Rechecks,
    Room,
    begin,
    in_thread,
    is_here,
    log,
    no_guards,
    quick_passwords,
    session_store,
    sign_in,
    sign_out,
    user,
)

__all__ = ["begin", "layer", "log", "no_guards", "quick_passwords", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


# Who connects meanwhile


async def test_connects_while_it_signs_out(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends between handshake and join is noticed after the join: connect() is not called."""
    key = await in_thread(sign_in)(user)
    real = layer.group_add

    async def group_add(group: str, channel: str) -> None:
        if group.startswith("session."):
            await in_thread(sign_out)(key, user)
        await real(group, channel)

    monkeypatch.setattr(layer, "group_add", group_add)
    talk = begin(key)
    talk.say("websocket.connect")
    assert await talk.hears() == ENDED
    await talk.leaves(1006)
    assert log == []


async def test_connects_without_the_server(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that would not be told of its end is refused, without an error in the server's log."""

    async def group_add(group: str, channel: str) -> None:
        raise LayerUnavailable("redis://here", "away")

    monkeypatch.setattr(layer, "group_add", group_add)
    talk = begin(await in_thread(sign_in)(user))
    talk.say("websocket.connect")
    assert await talk.hears() == {"type": CLOSE, "code": 1013}
    await talk.leaves(1006)
    assert log == []


async def test_signs_out_while_connect_runs(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, log: list[str]
) -> None:
    """A session that ends after the look closes the connection as soon as connect() has returned."""
    key = await in_thread(sign_in)(user)

    class Slow(Room):
        async def connect(self) -> None:
            await in_thread(sign_out)(key, user)
            await super().connect()

    talk = begin(key, Slow)
    await talk.accepted()
    assert await talk.hears() == SIGNED_OUT


async def test_session_is_gone_before_the_message(
    layer: AsyncQueueChannelLayer, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django deletes a session after its signal. A socket that looks once the message was sent finds it gone."""
    key = await in_thread(sign_in)(user)
    claim = sessions.Claim(type(session_store()), key, str(user.pk))
    held: list[bool] = []

    def in_order() -> None:
        real = layer.prepare_group_send

        def spy(*arguments: Any) -> Any:
            held.append(sessions.holds(claim))
            return real(*arguments)

        monkeypatch.setattr(layer, "prepare_group_send", spy)
        assert sessions.holds(claim)
        sign_out(key, user)

    await in_thread(in_order)()
    assert held == [False]


# Looking again


async def test_recheck(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """A session that ended without a signal is noticed by the next look: deleted, expired, another password."""

    def new_password() -> None:
        User.objects.filter(pk=user.pk).update(password="x")

    keys = [await in_thread(sign_in)(user) for _ in range(2)]
    talks = [begin(key, Rechecks) for key in keys]
    for talk in talks:
        await talk.accepted()
    await in_thread(session_store().delete)(keys[0])
    assert await talks[0].hears() == ENDED
    await is_here(talks[1])
    await in_thread(new_password)()
    assert await talks[1].hears() == ENDED


async def test_recheck_of_a_session_that_holds(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again and again, and nothing is written: no new key, though SECRET_KEY has changed."""
    looks: list[bool] = []

    def holds(claim: sessions.Claim) -> bool:
        looks.append(sessions.holds(claim))
        return looks[-1]

    monkeypatch.setattr(guard, "holds", holds)
    key = await in_thread(sign_in)(user)
    talk = begin(key, Rechecks)
    await talk.accepted()
    with override_settings(SECRET_KEY="a new one", SECRET_KEY_FALLBACKS=["only for tests"]):
        await eventually(lambda: len(looks) > 3, "three looks")
        assert all(looks)
        assert await in_thread(session_store().exists)(key)
    await is_here(talk)
    await talk.leaves()


async def test_memberships_are_renewed(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection joins its groups anew at each look, should it have lost them; an outage stops no look."""
    joined: list[str] = []
    real = layer.group_add

    async def group_add(group: str, channel: str) -> None:
        joined.append(group)
        if len(joined) in (5, 6):
            raise LayerUnavailable("redis://here", "away")
        await real(group, channel)

    monkeypatch.setattr(layer, "group_add", group_add)
    key = await in_thread(sign_in)(user)
    talk = begin(key, Rechecks)
    await talk.accepted()
    await eventually(lambda: len(joined) > 9, "three looks")
    assert set(joined) == set(layer.groups) == {user_group(user), names.session_group(key)}
    await is_here(talk)


async def test_database_is_away(
    layer: AsyncQueueChannelLayer,
    user: Any,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where nobody can tell, the connection stays until the next look; the fault is logged once."""
    monkeypatch.setattr(guard, "_faults", Faults())
    talk = begin(key := await in_thread(sign_in)(user), Rechecks)
    await talk.accepted()
    looks: list[int] = []

    def away(claim: Any) -> bool:
        looks.append(1)
        raise OperationalError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(guard, "holds", away)
        await eventually(lambda: len(looks) > 2, "two looks")
    lines = [line for line in caplog.records if getattr(line, "code", "") == "session.unknown"]
    assert len(lines) == 1 and "the database is away" in caplog.text
    await in_thread(session_store().delete)(key)
    assert await talk.hears() == ENDED


async def test_full_channel(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """A consumer whose channel is full is closed all the same."""
    enters, goes_on = asyncio.Event(), asyncio.Event()

    class Busy(Kept, Rechecks):
        async def room_wait(self, event: Message) -> None:
            enters.set()
            await goes_on.wait()

    layer.capacity = 1
    key = await in_thread(sign_in)(user)
    talk = begin(key, Busy)
    await talk.accepted()
    (channel,) = layer.channels
    await layer.send(channel, {"type": "room.wait"})
    await enters.wait()
    await layer.send(channel, {"type": "websocket.send", "text": "1"})
    await in_thread(session_store().delete)(key)
    await eventually(lambda: Kept.guards[0]._timer is Kept.guards[0]._checking is None, "the last look")
    goes_on.set()
    assert (await talk.hears())["text"] == "1"
    assert (await talk.hears())["code"] == 1013


async def test_signed_out_while_its_client_does_not_read(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin
) -> None:
    """The message that closes it waits for as long as its consumer is busy, beyond the expiry."""
    enters, goes_on = asyncio.Event(), asyncio.Event()

    class Busy(Room):
        recheck = None

        async def room_wait(self, event: Message) -> None:
            enters.set()
            await goes_on.wait()

    layer.expiry = 0.05
    key = await in_thread(sign_in)(user)
    talk = begin(key, Busy)
    await talk.accepted()
    (channel,) = layer.channels
    await layer.send(channel, {"type": "room.wait"})
    await enters.wait()
    await layer.send(channel, {"type": "websocket.send", "text": "1"})
    await in_thread(sign_out)(key, user)
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, passed.set)
    await passed.wait()
    goes_on.set()
    assert await talk.hears() == SIGNED_OUT
    assert layer.statistics().dropped == {"expired": 1}


async def test_closed_while_it_is_looked_at(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that finds the channel closed has nothing to do any more."""

    class Busy(Kept, Rechecks):
        pass

    key = await in_thread(sign_in)(user)
    talk = begin(key, Busy)
    await talk.accepted()
    (channel,) = layer.channels
    await layer.close_channel(channel)
    await in_thread(session_store().delete)(key)
    assert (await talk.hears())["code"] == 1013
    await eventually(lambda: Kept.guards[0]._timer is Kept.guards[0]._checking is None, "the last look")
    await talk.leaves()


async def test_nothing_is_left(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """However a connection ends, nothing looks at its session any more, and its groups are gone."""

    class Fails(Kept, Rechecks):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            raise ZeroDivisionError

    key = await in_thread(sign_in)(user)
    leaves, fails, stops = talks = [begin(key, Fails) for _ in range(3)]
    for talk in talks:
        await talk.accepted()
    assert set(layer.groups) == {user_group(user), names.session_group(key)}
    assert len(Kept.guards) == 3
    await leaves.leaves()
    fails.say("websocket.receive", text="fail")
    with pytest.raises(ZeroDivisionError):
        await fails.ends()
    await stops.stop()
    for each in Kept.guards:
        assert each._timer is None and each._checking is None
    assert not layer.groups


async def test_leaves_while_it_is_looked_at(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that is under way ends with the connection, and closes nothing afterwards."""
    looks, goes_on = threading.Event(), threading.Event()

    class Busy(Kept, Rechecks):
        pass

    talk = begin(await in_thread(sign_in)(user), Busy)
    await talk.accepted()

    def holds(claim: Any) -> bool:
        looks.set()
        goes_on.wait(DEADLINE)
        return False

    monkeypatch.setattr(guard, "holds", holds)
    await asyncio.to_thread(looks.wait, DEADLINE)
    checking = Kept.guards[0]._checking
    talk.say("websocket.receive", text="?")
    assert (await talk.hears())["text"] == "here"
    talk.task.cancel()
    await asyncio.wait([talk.task, checking])
    goes_on.set()
    assert checking.cancelled()
    assert Kept.guards[0]._timer is None and Kept.guards[0]._checking is None
    assert talk.sent.empty()
