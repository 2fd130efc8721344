"""What ends the connections of a user, or also the sessions: calls of a site."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings
from django.utils.functional import SimpleLazyObject

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.auth import (
    adisconnect_user,
    alogout_everywhere,
    disconnect_user,
    logout_everywhere,
    user_group,
)
from channels_asyncq.messages.closing import CLOSE
from tests.consumers import installed, layer
from tests.contract import assert_nothing_waits, receive
from tests.sign_in import SIGNED_OUT, in_thread, new_user, quick_passwords, session_store, sign_in, user

__all__ = ["layer", "quick_passwords", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def channel(layer: AsyncQueueChannelLayer, user: Any) -> str:
    """A connection of the user's."""
    channel = await layer.new_channel()
    await layer.group_add(user_group(user), channel)
    return channel


# Connections


async def test_disconnect_user(layer: AsyncQueueChannelLayer, user: Any, channel: str) -> None:
    """The user's connections are told, those of others not; `request.user` of a view is as good as the user."""
    other = await in_thread(new_user)("bob")
    await in_thread(disconnect_user)(other)
    await assert_nothing_waits(layer, channel)
    await in_thread(disconnect_user)(user)
    assert await receive(layer, channel) == SIGNED_OUT
    await in_thread(disconnect_user)(SimpleLazyObject(lambda: user), 4403, "banned")
    assert await receive(layer, channel) == {"type": CLOSE, "code": 4403, "reason": "banned"}
    await adisconnect_user(user, 1012, "")
    assert await receive(layer, channel) == {"type": CLOSE, "code": 1012, "reason": ""}


@pytest.mark.parametrize("commits", [True, False])
async def test_disconnect_user_in_a_transaction(
    layer: AsyncQueueChannelLayer, user: Any, channel: str, commits: bool
) -> None:
    """They are told after the commit, or never: else they would come back before the ban is there."""
    told: list[int] = []

    def ban() -> None:
        with transaction.atomic():
            disconnect_user(user)
            told.append(layer.statistics().delivered)
            transaction.set_rollback(not commits)

    await in_thread(ban)()
    assert told == [0]
    if commits:
        assert await receive(layer, channel) == SIGNED_OUT
    else:
        await assert_nothing_waits(layer, channel)


async def test_all_layers(prefix: str, user: Any) -> None:
    """A consumer may use any layer of CHANNEL_LAYERS; those of other packages are passed over."""
    from channels.layers import channel_layers

    backend = "channels_asyncq.AsyncQueueChannelLayer"
    config = {"hosts": ["memory://"]}
    layers = {
        "default": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
        "one": {"BACKEND": backend, "CONFIG": {**config, "prefix": f"{prefix}a"}},
        "two": {"BACKEND": backend, "CONFIG": {**config, "prefix": f"{prefix}b"}},
    }
    with override_settings(CHANNEL_LAYERS=layers):
        found: list[Any] = [channel_layers[alias] for alias in ("one", "two")]
        channels = []
        for layer in found:
            channels.append(await layer.new_channel())
            await layer.group_add(user_group(user), channels[-1])
        await in_thread(disconnect_user)(user)
        for layer, channel in zip(found, channels, strict=True):
            assert await receive(layer, channel) == SIGNED_OUT
            await layer.close()


@pytest.mark.parametrize("is_async", [True, False])
async def test_one_layer_is_away(prefix: str, user: Any, is_async: bool) -> None:
    """The connections of the other layers are closed all the same; who asks is told that one failed."""
    from channels.layers import channel_layers

    backend = "channels_asyncq.AsyncQueueChannelLayer"
    layers = {
        "default": {"BACKEND": backend, "CONFIG": {"hosts": ["redis://127.0.0.1:1"], "send_timeout": 0.1}},
        "other": {"BACKEND": backend, "CONFIG": {"hosts": ["memory://"], "prefix": prefix}},
    }
    with override_settings(CHANNEL_LAYERS=layers):
        layer: Any = channel_layers["other"]
        channel = await layer.new_channel()
        await layer.group_add(user_group(user), channel)
        with pytest.raises(LayerUnavailable):
            await (adisconnect_user(user) if is_async else in_thread(disconnect_user)(user))
        assert await receive(layer, channel) == SIGNED_OUT
        backends: dict[str, Any] = channel_layers.backends
        for each in backends.values():
            await each.close()


@pytest.mark.parametrize(("code", "reason"), [(999, ""), (True, ""), (4401, 7), (4401, "x" * 124)])
async def test_wrong_code(user: Any, channel: str, code: Any, reason: Any) -> None:
    """What no server could send is an error of the caller's, not of the consumers."""
    with pytest.raises((TypeError, ValueError), match=CLOSE):
        await in_thread(disconnect_user)(user, code, reason)
    with pytest.raises((TypeError, ValueError), match=CLOSE):
        await adisconnect_user(user, code, reason)


async def test_on_the_event_loop(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """The sync calls would block it; the error names the async one."""
    with pytest.raises(RuntimeError, match=r"await adisconnect_user\(\.\.\.\)"):
        disconnect_user(user)
    with pytest.raises(RuntimeError, match=r"await alogout_everywhere\(\.\.\.\)"):
        logout_everywhere(user)


async def test_without_the_server(user: Any) -> None:
    """Who asks for it is told that it failed."""
    async with installed(AsyncQueueChannelLayer(hosts=["redis://127.0.0.1:1"], send_timeout=0.1)):
        with pytest.raises(LayerUnavailable):
            await in_thread(disconnect_user)(user)
        with pytest.raises(LayerUnavailable):
            await adisconnect_user(user)


async def test_nobody(layer: AsyncQueueChannelLayer) -> None:
    """Somebody who has not signed in has no group."""
    with pytest.raises(TypeError, match="AnonymousUser"):
        user_group(AnonymousUser())
    with pytest.raises(TypeError, match="None"):
        await adisconnect_user(None)
    for nobody in (AnonymousUser(), User()):
        with pytest.raises(TypeError, match="has no primary key"):
            await alogout_everywhere(nobody)


# Sessions


@pytest.mark.parametrize("engine", ["db", "cached_db"])
@pytest.mark.parametrize("form", ["sync", "async"])
async def test_logout_everywhere(
    layer: AsyncQueueChannelLayer, user: Any, channel: str, engine: str, form: str
) -> None:
    """All sessions of the user are gone, also from the cache, and those of others not. Connections are told."""
    await in_thread(cache.clear)()
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"):
        other = await in_thread(new_user)("bob")
        theirs = await in_thread(sign_in)(other)
        keys = [await in_thread(sign_in)(user) for _ in range(3)]
        act = alogout_everywhere if form == "async" else in_thread(logout_everywhere)
        assert await act(user) == 3
        assert await receive(layer, channel) == SIGNED_OUT

        def left() -> list[bool]:
            return [bool(session_store(key).load()) for key in (*keys, theirs)]

        assert await in_thread(left)() == [False, False, False, True]
        assert await act(user) == 0


async def test_logout_everywhere_rolled_back(layer: AsyncQueueChannelLayer, user: Any, channel: str) -> None:
    """Sessions and connections stay."""
    key = await in_thread(sign_in)(user)

    def act() -> None:
        with transaction.atomic():
            assert logout_everywhere(user) == 1
            transaction.set_rollback(True)

    await in_thread(act)()
    assert await in_thread(session_store().exists)(key)
    await assert_nothing_waits(layer, channel)


async def test_logout_everywhere_without_a_database(user: Any, channel: str) -> None:
    """Sessions in a cache cannot be listed: the error says what can be done."""
    with (
        override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"),
        pytest.raises(ImproperlyConfigured, match=r"backends\.cache'.*cached_db.*password"),
    ):
        await alogout_everywhere(user)
