"""Event streams with `auth=True`: they end with the session of their request."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.auth import adisconnect_user, user_group
from channels_asyncq.auth.names import session_group
from channels_asyncq.http import EventStream
from channels_asyncq.messages.closing import CLOSE
from channels_asyncq.session.following import Follower
from tests.consumers import installed
from tests.contract import MakeLayer
from tests.sign_in import (
    in_thread,
    quick_passwords,
    request_with,
    session_store,
    set_password,
    sign_in,
    sign_out,
    user,
)
from tests.sse import Client, Event
from tests.test_event_stream import make_any, message, numbers, request

__all__ = ["make_any", "quick_passwords", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def layer(make_any: MakeLayer) -> Any:
    async with installed(await make_any()) as layer:
        yield layer


def opened(key: str | None, **options: Any) -> Client:
    return Client(aiter(EventStream(request_with(key), ["room"], auth=True, **options)))


async def live(key: str | None, **options: Any) -> Client:
    client = opened(key, **options)
    await client.here()
    return client


async def closing_of(client: Client) -> Any:
    (closing,) = await client.end()
    assert isinstance(closing, Event) and closing.type == CLOSE
    return closing.json


async def test_sign_out(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """The streams of the session end, for good; those of another device and of nobody go on."""
    key = await in_thread(sign_in)(user)
    tabs = [await live(key), await live(key)]
    others = [await live(await in_thread(sign_in)(user)), await live(None)]
    await in_thread(sign_out)(key, user)
    for client in tabs:
        assert await closing_of(client) == {"code": 4401, "reason": "signed out", "final": True}
        answer = EventStream(request(**{"Last-Event-ID": client.last_id}), ["room"])
        assert answer.status_code == 204
    await layer.group_send("room", message(1))
    for client in others:
        assert numbers([await client.event()]) == [1]
        await client.leave()


async def test_password(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """They end and come back: the view decides, and the browser in which it was changed misses nothing."""
    client = await live(await in_thread(sign_in)(user))
    await in_thread(set_password)(user)
    await layer.group_send("room", message(1))
    closing = await closing_of(client)
    assert (closing["code"], closing["final"]) == (3000, False)
    again = await in_thread(sign_in)(user)
    async with opened(again, since=client.last_id) as back:
        assert numbers(await back.here()) == [1]


async def test_signs_out_while_it_begins(
    layer: AsyncQueueChannelLayer, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends between the view and the join is noticed after the join: nothing is sent."""
    key = await in_thread(sign_in)(user)
    asked = request_with(key)
    await in_thread(asked.session.get)("_")  # as the view has read it
    real = layer.group_add

    async def group_add(group: str, channel: str) -> None:
        if group == session_group(key):
            await in_thread(sign_out)(key, user)
        await real(group, channel)

    monkeypatch.setattr(layer, "group_add", group_add)
    client = Client(aiter(EventStream(asked, ["room"], auth=True)))
    assert await client.end() == []
    assert client.parser.retry is not None
    assert not layer.groups


async def test_disconnected_while_it_resumes(
    layer: AsyncQueueChannelLayer, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that also follows its user's group is closed by what comes while its log is read."""
    key = await in_thread(sign_in)(user)
    groups = [user_group(user)]
    since = await layer.position(*groups)
    real = Follower.begin

    async def begin(self: Follower, since: str | None) -> None:
        await adisconnect_user(user)
        await real(self, since)

    monkeypatch.setattr(Follower, "begin", begin)
    stream = EventStream(request_with(key), groups, since=since, auth=True)
    client = Client(aiter(stream))
    await client.here()
    assert (await closing_of(client))["code"] == 4401


async def test_recheck(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """A session that ended without a signal is noticed by the next look."""
    key = await in_thread(sign_in)(user)
    client = await live(key, recheck=0.05)
    await in_thread(session_store().delete)(key)
    assert (await closing_of(client))["code"] == 3000


async def test_messages_to_the_user_are_no_events(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """The stream is in the user's group for its end only; who wants more names the group."""
    key = await in_thread(sign_in)(user)
    async with await live(key) as client:
        await layer.group_send(user_group(user), message(1))
        await layer.group_send("room", message(2))
        assert numbers([await client.event()]) == [2]


async def test_positions_do_without_them(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """A position has the groups of the stream alone, so a page resumes in another session of the user's."""
    async with await live(await in_thread(sign_in)(user)) as client:
        pass
    await layer.group_send("room", message(1))
    async with opened(await in_thread(sign_in)(user), since=client.last_id) as back:
        assert numbers(await back.here()) == [1]


async def test_nothing_is_left(layer: AsyncQueueChannelLayer, user: Any) -> None:
    """When the client leaves, the groups are left; Django's thread for the request was let go before."""
    key = await in_thread(sign_in)(user)
    async with ThreadSensitiveContext() as context, await live(key) as client:
        assert set(layer.groups) == {"room", user_group(user), session_group(key)}
        assert context not in SyncToAsync.context_to_thread_executor
        await layer.group_send("room", message(1))
        assert numbers([await client.event()]) == [1]
    assert not layer.groups and not layer.channels


async def test_without_the_app(layer: AsyncQueueChannelLayer) -> None:
    """The error names the remedy; a stream without `auth` needs no app."""
    with override_settings(INSTALLED_APPS=["channels_asyncq"]):
        assert EventStream(request_with(None), ["room"]).status_code == 200
        with pytest.raises(ImproperlyConfigured, match=r'"channels_asyncq\.auth" to INSTALLED_APPS'):
            opened(None)


async def test_without_sessions(layer: AsyncQueueChannelLayer) -> None:
    """A request without a session is an error that names the middleware."""
    with pytest.raises(ImproperlyConfigured, match="SessionMiddleware"):
        EventStream(request(), ["room"], auth=True)


@pytest.mark.parametrize("recheck", ["60", 0, True])
async def test_wrong_recheck(layer: AsyncQueueChannelLayer, recheck: Any) -> None:
    """An impossible time is an error that names it."""
    with pytest.raises((TypeError, ValueError), match=f"recheck of EventStream .*not {recheck!r}"):
        opened(None, recheck=recheck)
