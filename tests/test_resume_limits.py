"""How often one client may come back with a position."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncRequestFactory

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.consumers import resumable
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
from channels_asyncq.http import EventStream, resumes
from channels_asyncq.rates import ClientMeters
from tests.consumers import Message, begin, hears, layer

__all__ = ["begin", "layer"]


class Follower(ResumableWebsocketConsumer):
    """Follows one group."""

    resume_rate: str | None = "1/h"
    resume_burst: int | None = 2

    def resumable_groups(self) -> list[str]:
        return ["room"]


class User:
    def __init__(self, pk: int, is_authenticated: bool) -> None:
        self.pk = pk
        self.is_authenticated = is_authenticated


def visitor(since: str | None, **scope: Any) -> Message:
    query = f"since={since}".encode() if since is not None else b""
    return {"type": "websocket", "query_string": query, "client": ["192.0.2.1", 1], **scope}


@pytest.fixture(autouse=True)
def no_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has come back yet."""
    monkeypatch.setattr(resumable, "_resumes", ClientMeters())
    monkeypatch.setattr(resumes, "_resumes", ClientMeters())


async def comes(begin: Any, scope: Message, consumer: Any = Follower) -> Message:
    """What a client is told first; it then leaves."""
    talk = begin(consumer, scope)
    await talk.accepted()
    frame: Message = json.loads(await hears(talk))
    if frame["type"] == "retry":
        assert await talk.hears() == {"type": "websocket.close", "code": 1012}
    await talk.leaves()
    return frame


async def test_resumes(layer: AsyncQueueChannelLayer, begin: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Who comes back too often is told when to come again, costs no resume, and loses nothing by it."""
    position = await layer.position("room")
    with caplog.at_level(logging.WARNING, "channels_asyncq"):
        for _ in range(2):
            assert (await comes(begin, visitor(position)))["recovered"] is True
        resumed = layer.statistics().resumes
        retry = await comes(begin, visitor(position))
        assert retry["type"] == "retry" and 3_590_000 < retry["ms"] < 3_610_000
        # Without a position there is nothing to resume, and others are others.
        assert (await comes(begin, visitor(None)))["recovered"] is True
        assert (await comes(begin, visitor(position, client=["192.0.2.2", 1])))["recovered"] is True
    assert layer.statistics().resumes == resumed + 1
    assert layer.statistics().limited == {"resume_rate": 1}
    (line,) = [record for record in caplog.records if getattr(record, "code", "") == "client.limited"]
    assert "a client of Follower exceeds resume_rate: it is to come back later" in line.getMessage()


async def test_resumes_of_users(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A user counts wherever it comes from; those that are not logged in count by address."""
    position = await layer.position("room")

    async def is_served(host: str, user: User) -> bool:
        scope = visitor(position, client=[host, 1], user=user)
        once = type("Once", (Follower,), {"resume_burst": 1})
        frame: dict[str, str] = await comes(begin, scope, once)
        return frame["type"] == "resumed"

    assert await is_served("192.0.2.1", User(1, True))
    assert not await is_served("192.0.2.2", User(1, True))
    assert await is_served("192.0.2.1", User(2, True))
    assert await is_served("192.0.2.1", User(0, False))
    assert not await is_served("192.0.2.1", User(0, False))
    assert await is_served("2001:db8::1", User(0, False))
    assert not await is_served("2001:db8::2", User(0, False))


async def test_resumes_by_a_key_of_the_site(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """`resume_key()` says what one client is. Without one, a client without an address is an error."""
    position = await layer.position("room")

    class Tenant(Follower):
        resume_burst = 1

        def resume_key(self) -> str:
            return "one for all"

    assert (await comes(begin, visitor(position), Tenant))["type"] == "resumed"
    assert (await comes(begin, visitor(position, client=["192.0.2.9", 1]), Tenant))["type"] == "retry"
    talk = begin(Follower, visitor(position, client=None))
    await talk.accepted()
    with pytest.raises(ImproperlyConfigured, match=r"resume_rate of Follower needs .*resume_key\(\)"):
        await talk.hears()


def stream(
    layer: AsyncQueueChannelLayer, since: str | None, host: str = "192.0.2.1", **options: Any
) -> EventStream:
    request = AsyncRequestFactory().get("/", headers={"Last-Event-ID": since} if since else {})
    request.META["REMOTE_ADDR"] = host
    return EventStream(request, ["room"], layer=layer, retry=(1, 3), **options)


async def is_followed(response: EventStream) -> bool:
    """Whether a stream goes on after its first chunk, which is `retry:` in any case."""
    chunks = aiter(response)
    first = await anext(chunks)
    assert first.startswith(b"retry: ")
    follows = await anext(chunks, None) is not None
    if not follows:
        assert 3_590_000 < int(first[7:]) < 3_610_000
    await chunks.aclose()  # type: ignore[attr-defined]
    return follows


async def test_resumes_of_streams(layer: AsyncQueueChannelLayer) -> None:
    """A stream that comes back too often gets `retry:` and its end; one without a position is no resume."""
    position = await layer.position("room")
    limit: dict[str, Any] = {"resume_rate": "1/h", "resume_burst": 2}
    assert await is_followed(stream(layer, position, **limit))
    assert await is_followed(stream(layer, position, **limit))
    assert not await is_followed(stream(layer, position, **limit))
    assert await is_followed(stream(layer, None, **limit))
    assert await is_followed(stream(layer, position))
    assert await is_followed(stream(layer, position, host="192.0.2.2", **limit))
    for served in (True, True, False):
        assert await is_followed(stream(layer, position, resume_key="user 1", **limit)) is served
    assert layer.statistics().limited == {"resume_rate": 2}


async def test_head_request_is_no_resume(layer: AsyncQueueChannelLayer) -> None:
    """A HEAD request of a page that comes back counts nothing."""
    position = await layer.position("room")
    request = AsyncRequestFactory().head("/", headers={"Last-Event-ID": position})
    for _ in range(3):
        EventStream(request, ["room"], layer=layer, resume_rate="1/h")
    assert await is_followed(stream(layer, position, host="127.0.0.1", resume_rate="1/h"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resume_rate": "5"}, ValueError, "resume_rate of EventStream is '5'"),
        ({"resume_rate": "5/s", "resume_burst": 0}, ValueError, "resume_burst of EventStream is 0"),
        ({"resume_burst": 5}, ValueError, "resume_burst of EventStream is 5 and has no effect"),
        ({"resume_key": "a"}, ValueError, "resume_key of EventStream is 'a' and has no effect"),
        (
            {"resume_rate": "5/s", "resume_key": 7},
            TypeError,
            "resume_key of EventStream is 7, and must be a str",
        ),
        ({"max_groups": 0}, ValueError, "max_groups of EventStream is 0: give a number of groups"),
    ],
)
async def test_stream_with_a_limit_that_is_wrong(
    layer: AsyncQueueChannelLayer, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        stream(layer, None, **options)
    assert str(raised.value).startswith(words)


async def test_stream_without_an_address(layer: AsyncQueueChannelLayer) -> None:
    """A server that knows no address needs a key."""
    position = await layer.position("room")
    with pytest.raises(ImproperlyConfigured, match="resume_rate of EventStream needs the address"):
        stream(layer, position, host="", resume_rate="5/s")
