"""`AuthGroups`: the consumers that can have it, the users that it concerns, and the names of the groups."""

from __future__ import annotations

from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer as ChannelsConsumer
from channels.layers import InMemoryChannelLayer
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer, TooManyGroups
from channels_asyncq.auth import disconnect_user, names
from channels_asyncq.consumers import AsyncConsumer
from channels_asyncq.generic.websocket import (
    AsyncWebsocketConsumer,
    AuthGroups,
    JsonWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from tests.consumers import Talk, installed, layer
from tests.sign_in import (
    SIGNED_OUT,
    Begin,
    Kept,
    Rechecks,
    Room,
    begin,
    deactivate,
    handshake,
    in_thread,
    is_here,
    log,
    new_user,
    no_guards,
    quick_passwords,
    session_store,
    sign_in,
    sign_out,
    user,
)

__all__ = ["begin", "layer", "log", "no_guards", "quick_passwords", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


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
    talk = Talk(AuthMiddlewareStack(Resumes.as_asgi()), scope)
    await talk.accepted()
    assert "resumed" in (await talk.hears())["text"]
    await in_thread(sign_out)(key, user)
    assert await talk.hears() == SIGNED_OUT
    await talk.leaves()


def comes_by_session(consumer: Any) -> Any:
    from channels.auth import AuthMiddlewareStack

    return AuthMiddlewareStack(consumer.as_asgi())


async def test_limit_of_groups(layer: AsyncQueueChannelLayer, user: Any, begin: Begin) -> None:
    """Its two groups do not count: a connection with a user may join as many groups as one without."""

    class Few(Room):
        max_groups = 1

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            try:
                await self.channel_layer.group_add(text_data or "", self.channel_name)
            except TooManyGroups as error:
                await self.send(text_data=f"too many: {error.most}")
            else:
                await self.send(text_data="joined")

    key = await in_thread(sign_in)(user)
    for known in (key, None):
        talk = begin(known, Few)
        await talk.accepted()
        for group, answer in (("a", "joined"), ("b", "too many: 1"), ("a", "joined")):
            talk.say("websocket.receive", text=group)
            assert (await talk.hears())["text"] == answer


async def test_app_is_missing(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """Without the app nobody would tell, so connecting raises, and the error names the remedy."""
    with override_settings(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"]):
        talk = begin(None)
        talk.say("websocket.connect")
        with pytest.raises(ImproperlyConfigured, match=r'"channels_asyncq\.auth" to INSTALLED_APPS'):
            await talk.ends()


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
