"""WebSockets with `AuthGroups`: they end with the session of their user, however it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.auth import logout as channels_logout
from channels.generic.websocket import AsyncWebsocketConsumer as ChannelsConsumer
from channels.layers import InMemoryChannelLayer
from django.contrib.auth import alogout
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, transaction
from django.db.models.signals import post_delete, post_save, pre_save
from django.test import override_settings
from django.test.utils import isolate_apps

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.auth import disconnect_user, guard, names, receivers, sessions, user_group
from channels_asyncq.consumers import AsyncConsumer
from channels_asyncq.events import Faults
from channels_asyncq.generic.websocket import (
    AsyncWebsocketConsumer,
    AuthGroups,
    JsonWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from channels_asyncq.messages.closing import CLOSE
from tests.consumers import Message, Talk, installed, make
from tests.contract import DEADLINE, eventually
from tests.sign_in import (
    comes,
    handshake,
    in_thread,
    new_user,
    quick_passwords,
    request_with,
    session_store,
    sign_in,
    sign_out,
)

__all__ = ["quick_passwords"]

pytestmark = pytest.mark.django_db(transaction=True)

SIGNED_OUT = {"type": CLOSE, "code": 4401, "reason": "signed out"}
CHANGED = {"type": CLOSE, "code": 3000, "reason": "the password has changed"}
ENDED = {"type": CLOSE, "code": 3000, "reason": "the session has ended"}


class Room(AuthGroups, AsyncWebsocketConsumer):
    """Answers, so that a test knows that it is still there."""

    log: list[str]

    async def connect(self) -> None:
        self.log.append("connect")
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "log me out":
            await channels_logout(self.scope)
        else:
            await self.send(text_data="here")


@pytest.fixture(autouse=True)
def log() -> list[str]:
    Room.log = []
    return Room.log


@pytest.fixture
async def layer(prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    async with installed(make("asyncq.memory", "", prefix)) as layer:
        yield layer


@pytest.fixture
async def user(layer: AsyncQueueChannelLayer) -> Any:
    return await in_thread(new_user)("ada")


Begin = Callable[..., Talk]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    begun: list[Talk] = []

    def begin(key: str | None, consumer: Any = Room) -> Talk:
        begun.append(comes(consumer, key))
        return begun[-1]

    yield begin
    for talk in begun:
        await talk.stop()


async def is_here(talk: Talk) -> None:
    """Nothing has closed it: it answers."""
    talk.say("websocket.receive", text="?")
    assert (await talk.hears())["text"] == "here"


# Signing out


async def test_sign_out(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """All connections of the session are closed; those of another device, of another user and of nobody stay."""
    other = await in_thread(new_user)("bob")
    key = await in_thread(sign_in)(user)
    tabs = [begin(key), begin(key)]
    others = [begin(await in_thread(sign_in)(user)), begin(await in_thread(sign_in)(other)), begin(None)]
    for talk in (*tabs, *others):
        await talk.accepted()
    await in_thread(sign_out)(key, user)
    for talk in tabs:
        assert await talk.hears() == SIGNED_OUT
        await talk.leaves(4401)
    for talk in others:
        await is_here(talk)


async def test_async_sign_out(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """`alogout()` of an async view closes them too."""
    key = await in_thread(sign_in)(user)
    talk = begin(key)
    await talk.accepted()
    await alogout(request_with(key, user))
    assert await talk.hears() == SIGNED_OUT


async def test_sign_out_by_a_socket(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """`channels.auth.logout()` does not say which session it ends: that of the consumer that calls it."""
    key = await in_thread(sign_in)(user)
    tabs = [begin(key), begin(key)]
    for talk in tabs:
        await talk.accepted()
    tabs[0].say("websocket.receive", text="log me out")
    for talk in tabs:
        assert await talk.hears() == SIGNED_OUT
    assert not await in_thread(session_store().exists)(key)


async def test_sign_out_of_nobody(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """Signing out without having signed in, or without a session, is nobody's end."""
    talk = begin(await in_thread(sign_in)(user))
    await talk.accepted()

    def nobody() -> None:
        store = session_store()
        store["basket"] = 1
        store.save()
        sign_out(store.session_key, AnonymousUser())
        receivers.on_logged_out(None, request=None)
        receivers.on_logged_out(None, request=object())

    await in_thread(nobody)()
    await is_here(talk)


@pytest.mark.parametrize("commits", [True, False])
async def test_sign_out_in_a_transaction(
    layer: AsyncQueueChannelLayer,
    user: Any,
    begin: Begin,
    commits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are closed after the commit, and stay if it is rolled back: the session is still there then."""
    key = await in_thread(sign_in)(user)
    talk = begin(key)
    await talk.accepted()
    told: list[bool] = []
    real = layer.prepare_group_send

    def in_transaction() -> None:
        def spy(*arguments: Any) -> Any:
            told.append(transaction.get_connection().in_atomic_block)
            return real(*arguments)

        monkeypatch.setattr(layer, "prepare_group_send", spy)
        with transaction.atomic():
            sign_out(key, user)
            assert told == []
            transaction.set_rollback(not commits)

    await in_thread(in_transaction)()
    if commits:
        assert told == [False]
        assert await talk.hears() == SIGNED_OUT
    else:
        assert told == []
        assert await in_thread(session_store().exists)(key)
        await is_here(talk)


@pytest.mark.parametrize("engine", ["cache", "cached_db", "file"])
async def test_other_engines(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, engine: str, tmp_path: Any
) -> None:
    """Sessions may be kept elsewhere on the server."""
    with override_settings(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}", SESSION_FILE_PATH=str(tmp_path)
    ):
        key = await in_thread(sign_in)(user)
        talk = begin(key)
        await talk.accepted()
        await in_thread(sign_out)(key, user)
        assert await talk.hears() == SIGNED_OUT


async def test_sessions_in_cookies(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """They cannot be ended, so they are refused; signing out works as before."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"):
        key = await in_thread(sign_in)(user)
        talk = begin(key)
        talk.say("websocket.connect")
        with pytest.raises(ImproperlyConfigured, match=r"signed_cookies.*cached_db"):
            await talk.ends()
        await in_thread(sign_out)(key, user)


async def test_sign_out_on_the_event_loop(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """With sessions in a cache, an async view may call logout(): nothing blocks, and the sockets are closed."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        key = await in_thread(sign_in)(user)
        talk = begin(key)
        await talk.accepted()
        sign_out(key, user)
        assert await talk.hears() == SIGNED_OUT


async def test_without_the_server(
    redis_url: str, user: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user can sign out, and change the password, while the server of the layer is away; a line says so."""
    async with installed(AsyncQueueChannelLayer(hosts=["redis://127.0.0.1:1"], send_timeout=0.1)):
        key = await in_thread(sign_in)(user)
        await in_thread(sign_out)(key, user)
        await in_thread(set_password)(user)
    lines = [line for line in caplog.records if getattr(line, "code", "") == "session.untold"]
    assert len(lines) == 2 and "LayerUnavailable" in caplog.text
    assert not await in_thread(session_store().exists)(key)


async def test_without_the_server_on_the_event_loop(user: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The same where the message is sent by the running event loop."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        async with installed(AsyncQueueChannelLayer(hosts=["redis://127.0.0.1:1"], send_timeout=0.1)):
            key = await in_thread(sign_in)(user)
            sign_out(key, user)
            await eventually(lambda: "session.untold" in caplog.text, "the log line")


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


# Changes of the user


def set_password(user: Any) -> None:
    user.set_password("another secret")
    user.save()


def set_password_only(user: Any) -> None:
    user.set_password("another secret")
    user.save(update_fields=["password"])


def deactivate(user: Any) -> None:
    user.is_active = False
    user.save()


@pytest.mark.parametrize("change", [set_password, set_password_only, deactivate])
async def test_changes_that_end_sessions(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, change: Callable[[Any], None]
) -> None:
    """All connections of the user are closed, and others not. The code lets the browser that did it come back."""
    other = begin(await in_thread(sign_in)(await in_thread(new_user)("bob")))
    devices = [begin(await in_thread(sign_in)(user)) for _ in range(2)]
    for talk in (other, *devices):
        await talk.accepted()
    await in_thread(change)(user)
    for talk in devices:
        assert await talk.hears() == CHANGED
    await is_here(other)


def test_proxies_of_the_user_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site may save its users by a proxy, or by a model that inherits from theirs."""
    told: list[str] = []
    monkeypatch.setattr(receivers, "tell_in_time", lambda group, close, using: told.append(group))
    with isolate_apps("chat") as registry:

        class Person(User):
            class Meta:
                proxy = True
                app_label = "chat"

        monkeypatch.setattr(receivers, "apps", registry)
        receivers.connect()
        try:
            set_password(Person.objects.get(pk=new_user("ada").pk))
        finally:
            for signal in (pre_save, post_save, post_delete):
                assert signal.disconnect(sender=Person, dispatch_uid="channels_asyncq.auth")
    assert told == [f"user.{User.objects.get().pk}"]


async def test_deleted_user(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """A user who is deleted is signed out."""
    talk = begin(await in_thread(sign_in)(user))
    await talk.accepted()
    await in_thread(User.objects.filter(pk=user.pk).delete)()
    assert await talk.hears() == SIGNED_OUT


def rename(user: Any) -> None:
    user.first_name = "Augusta"
    user.save()


def rename_only(user: Any) -> None:
    user.set_password("not saved")
    user.first_name = "Augusta"
    user.save(update_fields=["first_name"])


def note_the_login(user: Any) -> None:
    user.save(update_fields=["last_login"])


def create(user: Any) -> None:
    new_user("carol")
    User(pk=99, username="dan").save()


@pytest.mark.parametrize("change", [rename, rename_only, note_the_login, create])
async def test_changes_that_do_not(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, change: Callable[[Any], None]
) -> None:
    """What does not concern the session closes nothing."""
    talk = begin(await in_thread(sign_in)(user))
    await talk.accepted()
    await in_thread(change)(user)
    await is_here(talk)


async def test_a_login_costs_no_query(
    layer: AsyncQueueChannelLayer, user: Any, django_assert_num_queries: Any
) -> None:
    """Each login saves the user: nothing is compared then."""

    def login() -> None:
        with django_assert_num_queries(1):
            user.save(update_fields=["last_login"])

    await in_thread(login)()


async def test_a_failed_save_closes_nothing(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """Neither the save that fails, nor the next one, which changes something else."""
    await in_thread(new_user)("bob")
    talk = begin(await in_thread(sign_in)(user))
    await talk.accepted()

    def fails() -> None:
        user.username = "bob"
        user.set_password("x")
        with pytest.raises(Exception, match="UNIQUE"):
            user.save()
        user.refresh_from_db()
        rename(user)

    await in_thread(fails)()
    await is_here(talk)


@pytest.mark.parametrize("commits", [True, False])
async def test_password_in_a_transaction(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, commits: bool
) -> None:
    """They are closed after the commit, and stay if it is rolled back."""
    talk = begin(await in_thread(sign_in)(user))
    await talk.accepted()

    def in_transaction() -> None:
        with transaction.atomic():
            set_password(user)
            transaction.set_rollback(not commits)

    await in_thread(in_transaction)()
    if commits:
        assert await talk.hears() == CHANGED
    else:
        await is_here(talk)


# Looking again


class Rechecks(Room):
    recheck = 0.05


class Kept(Room):
    """Its guards, for the test to look at."""

    guards: list[Any]

    async def connect(self) -> None:
        self.guards.append(self._guard)
        await super().connect()


@pytest.fixture(autouse=True)
def _no_guards() -> None:
    Kept.guards = []


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
    """A quiet connection stays in its groups for longer than `group_expiry`; an outage stops no look."""
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


# Without a session


async def test_user_who_may_not_sign_in(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """The session of a user who is not active any more is still there: Django takes its owner for anonymous."""
    key = await in_thread(sign_in)(user)
    await in_thread(deactivate)(user)
    talk = begin(key, Rechecks)
    await talk.accepted()
    assert not layer.groups
    await is_here(talk)


async def test_user_by_a_token(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """A user who came without a session, or beside one, is in the user's group and can be disconnected."""
    other = await in_thread(new_user)("bob")
    key = await in_thread(sign_in)(other)
    scopes = [
        {"type": "websocket", "user": user},
        {"type": "websocket", "user": user, "session": session_store()},
        {"type": "websocket", "user": user, "session": session_store(key)},
    ]
    talks = [Talk(Room.as_asgi(), scope) for scope in scopes]
    for talk in talks:
        await talk.accepted()
    await in_thread(sign_out)(key, other)
    for talk in talks:
        await is_here(talk)
    await in_thread(disconnect_user)(user)
    for talk in talks:
        assert await talk.hears() == SIGNED_OUT
        await talk.stop()


# Wiring


async def test_resumable_consumer(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """It works on the consumer whose clients come back."""

    class Resumes(AuthGroups, ResumableWebsocketConsumer):
        def resumable_groups(self) -> list[str]:
            return ["room"]

    key = await in_thread(sign_in)(user)
    scope = {**handshake(key), "query_string": b""}
    talk = Talk(comes_by_session(Resumes), scope)
    await talk.accepted()
    assert "resumed" in (await talk.hears())["text"]
    await in_thread(sign_out)(key, user)
    assert await talk.hears() == SIGNED_OUT
    await talk.leaves()


def comes_by_session(consumer: Any) -> Any:
    from channels.auth import AuthMiddlewareStack

    return AuthMiddlewareStack(consumer.as_asgi())


async def test_app_is_missing(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """Without the app nobody would tell, so connecting raises, and the error names the remedy."""
    key = await in_thread(sign_in)(user)
    with override_settings(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"]):
        talk = begin(None)
        talk.say("websocket.connect")
        with pytest.raises(ImproperlyConfigured, match=r'"channels_asyncq\.auth" to INSTALLED_APPS'):
            await talk.ends()
    assert key


async def test_another_layer(begin: Begin) -> None:
    """With the layer of another package nothing would be told, so connecting raises."""
    async with installed(InMemoryChannelLayer()):
        talk = begin(None)
        talk.say("websocket.connect")
        with pytest.raises(ImproperlyConfigured, match="needs a channel layer of channels_asyncq"):
            await talk.ends()


@pytest.mark.parametrize("value", ["60", True, 0, -1, float("nan"), float("inf")])
async def test_wrong_recheck(layer: AsyncQueueChannelLayer, begin: Begin, value: Any) -> None:
    """An impossible time is an error that names it."""

    class Wrong(Room):
        recheck = value

    talk = begin(None, Wrong)
    talk.say("websocket.connect")
    with pytest.raises((TypeError, ValueError), match=f"recheck of Wrong must be .*not {value!r}"):
        await talk.ends()


async def test_no_recheck(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """With None there is no timer; signing out closes all the same."""

    class Never(Kept):
        recheck = None

    key = await in_thread(sign_in)(user)
    talk = begin(key, Never)
    await talk.accepted()
    assert Kept.guards[0]._timer is None
    await in_thread(sign_out)(key, user)
    assert await talk.hears() == SIGNED_OUT


def test_order_of_the_bases() -> None:
    """Behind the consumer the mixin would never be asked; sync consumers, or Channels' own, cannot have it."""
    with pytest.raises(TypeError, match=r"must come first: class Late\(AuthGroups, \.\.\.\)"):

        class Late(AsyncWebsocketConsumer, AuthGroups):
            pass

    with pytest.raises(TypeError, match=r"must come first"):

        class Mixed(ChannelsConsumer, AuthGroups, AsyncConsumer):
            pass

    for base in (ChannelsConsumer, JsonWebsocketConsumer):
        with pytest.raises(TypeError, match=r"needs an async consumer of channels_asyncq\.generic"):
            type("Other", (AuthGroups, base), {})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("42", "user.42"),
        ("0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", "user.0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"),
        ("ada@example.com", "userhash."),
        ("x" * 81, "userhash."),
        ("ü", "userhash."),
        ("", "userhash."),
    ],
)
def test_group_of_key(key: str, name: str, layer: AsyncQueueChannelLayer) -> None:
    """Every primary key has a group of its own, whose name is a valid one."""
    group = names.group_of_key(key)
    assert group.startswith(name)
    layer.require_valid_group_name(group)


def test_session_group(layer: AsyncQueueChannelLayer) -> None:
    """A session's key opens its account, so it is not in the name of the group."""
    group = names.session_group("a" * 32)
    assert "aaaa" not in group
    layer.require_valid_group_name(group)
