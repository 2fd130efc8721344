"""WebSockets are closed when their user signs out, is changed, or is deleted: after the commit, or at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import alogout
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, models, transaction
from django.db.models.signals import post_delete, post_save, pre_save
from django.test import override_settings
from django.test.utils import isolate_apps

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.auth import logout_everywhere, receivers
from tests.consumers import installed, layer
from tests.contract import eventually
from tests.sign_in import (
    CHANGED,
    SIGNED_OUT,
    Begin,
    begin,
    deactivate,
    in_thread,
    is_here,
    log,
    new_user,
    no_guards,
    quick_passwords,
    request_with,
    session_store,
    set_password,
    sign_in,
    sign_out,
    user,
)

__all__ = ["begin", "layer", "log", "no_guards", "quick_passwords", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


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


@pytest.mark.parametrize("end", [sign_out, lambda key, user: logout_everywhere(user)])
async def test_session_that_is_read_before_the_commit(
    layer: AsyncQueueChannelLayer, user: Any, begin: Begin, end: Callable[[str, Any], object]
) -> None:
    """A socket that connects meanwhile finds the session, and puts it into the cache: it ends all the same."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cached_db"):
        key = await in_thread(sign_in)(user)

        def in_transaction() -> None:
            read = session_store(key)
            content = read.load()
            with transaction.atomic():
                end(key, user)
                # What another process does that reads the row, which is there until the commit.
                caches["default"].set(read.cache_key, content)

        await in_thread(in_transaction)()
        assert not await in_thread(session_store().exists)(key)


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


# Changes of the user


def set_password_only(user: Any) -> None:
    user.set_password("another secret")
    user.save(update_fields=["password"])


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


def test_relations_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relation that is saved alone is not followed, which would be a query, or an error if it leads nowhere."""
    told: list[str] = []
    monkeypatch.setattr(receivers, "tell_in_time", lambda group, close, using: told.append(group))
    with isolate_apps("chat"):

        class Employee(User):
            boss: Any = models.ForeignKey(User, models.DO_NOTHING, related_name="+", db_constraint=False)

            class Meta:
                app_label = "chat"

        with connection.schema_editor() as editor:
            editor.create_model(Employee)
        try:
            employee: Any = Employee(username="ada", boss_id=7)
            employee.save()
            for name in ("boss", "boss_id"):
                receivers.on_saving(Employee, employee, False, "default", {name})
                receivers.on_saved(Employee, employee, "default")
            employee.is_active = False
            receivers.on_saving(Employee, employee, False, "default", {"boss", "is_active"})
            receivers.on_saved(Employee, employee, "default")
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(Employee)
    assert told == [f"user.{employee.pk}"]


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
