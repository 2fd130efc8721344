"""The pages `live/` and `ready/`: what a process knows of its connections, and no round trip."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from channels.layers import channel_layers
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path, reverse

from channels_asyncq import AsyncQueueChannelLayer, LayerClosed, LayerUnavailable
from channels_asyncq.process import relay
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.contract import DEADLINE, POLL, MakeLayer, eventually, note
from tests.resp_server import RespServer

urlpatterns = [path("health/", include("channels_asyncq.urls"))]

SEND_TIMEOUT = 1.0
READY: tuple[int, dict[str, Any]] = (200, {"ready": True, "reasons": []})


@pytest.fixture(autouse=True)
def pages(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pages of a site whose layer is on `memory://`."""
    layer = AsyncQueueChannelLayer(hosts=["memory://"], prefix=prefix)
    monkeypatch.setattr(channel_layers, "backends", {"default": layer})
    with override_settings(ROOT_URLCONF=__name__):
        yield
    layer.close_from_thread()


@pytest.fixture
async def make_layer(
    server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeLayer]:
    """Make the layer of the alias "default", behind a proxy."""
    async with contract.layers(hosts=[server.url], prefix=prefix, send_timeout=SEND_TIMEOUT) as make:

        async def make_layer(**config: Any) -> AsyncQueueChannelLayer:
            layer = await make(**config)
            monkeypatch.setattr(channel_layers, "backends", {"default": layer})
            return layer

        yield make_layer


def told(response: HttpResponseBase) -> tuple[int, dict[str, Any]]:
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    return response.status_code, json.loads(b"".join(response))


async def ready() -> tuple[int, dict[str, Any]]:
    """What the page says, under ASGI."""
    return told(await AsyncClient().get("/health/ready/"))


async def reason() -> str:
    """The one reason why the process is not ready; empty if it is."""
    status, answer = await ready()
    if status == 200:
        assert answer == READY[1]
        return ""
    assert status == 503 and answer["ready"] is False
    [found] = answer["reasons"]
    assert found["layer"] == "default"
    text: str = found["reason"]
    return text


async def becomes(expected: str) -> None:
    """Return when the reason has these words; "" for a process that is ready."""
    async with asyncio.timeout(DEADLINE):
        while True:
            said = await reason()
            if said == expected or (expected and expected in said):
                return
            await asyncio.sleep(POLL)


def test_names() -> None:
    assert reverse("channels_asyncq:live") == "/health/live/"
    assert reverse("channels_asyncq:ready") == "/health/ready/"


async def test_live(make_layer: MakeLayer, server: RespServer) -> None:
    """A process that answers lives, in an outage too; HEAD is answered, POST is refused."""
    await make_layer()
    await server.stop()
    assert told(await AsyncClient().get("/health/live/")) == (200, {"live": True})
    assert (await AsyncClient().head("/health/live/")).status_code == 200
    assert (await AsyncClient().post("/health/live/")).status_code == 405
    assert (await AsyncClient().post("/health/ready/")).status_code == 405


async def test_memory() -> None:
    """A process without a server is ready at its first request."""
    assert await ready() == READY


async def test_never_used(make_layer: MakeLayer) -> None:
    """A process that has not used the layer connects by the first question, and then is ready for good."""
    layer = await make_layer()
    assert await reason() == "not connected yet"
    await becomes("")
    assert len(layer.statistics().links) == 1


def test_never_used_under_wsgi(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of an async view under WSGI ends with it: the connections are those of the relay."""
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)
    monkeypatch.setattr(channel_layers, "backends", {"default": layer})
    client = Client()
    status, answer = told(client.get("/health/ready/"))
    assert status == 503 and answer["reasons"][0]["reason"] == "not connected yet"
    relay.relay().wait(_up(layer))
    assert told(client.get("/health/ready/")) == READY
    layer.close_from_thread()


async def _up(layer: AsyncQueueChannelLayer) -> None:
    await eventually(lambda: layer.statistics().connected, "the connections of the relay")


async def test_refused_from_the_start(
    make_layer: MakeLayer, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose server is not there says why, and not in Django's log; it is ready once the server is."""
    await server.stop()
    await make_layer()
    await becomes("Nobody listens there")
    assert not [line for line in caplog.records if line.name == "django.request"]
    await server.start()
    await becomes("")


async def test_outage(make_layer: MakeLayer, server: RespServer) -> None:
    """While sends wait for the server, the process is ready; when they fail, it is not; then it is again."""
    layer = await make_layer(send_timeout=4.0)
    await layer.new_channel()
    await becomes("")
    await server.stop()
    await eventually(lambda: not layer.statistics().connected, "the loss")
    assert await ready() == READY
    with pytest.raises(LayerUnavailable) as caught:
        await layer.group_send("room", note(1))
    await becomes("Nobody listens there")
    assert caught.value.reason
    await server.start()
    await becomes("")
    await layer.group_send("room", note(2))


async def test_no_round_trip(make_layer: MakeLayer, server: RespServer) -> None:
    """A question sends no command, and is answered although the server says nothing."""
    layer = await make_layer(send_timeout=60.0)
    await layer.new_channel()
    await becomes("")
    server.always("*", resp_server.silence(executes=False))
    before = len(server.commands)
    assert await ready() == READY
    assert len(server.commands) == before
    server.restore()
    server.cut()


async def test_refused_password(make_layer: MakeLayer, server: RespServer) -> None:
    """The reason is that of the server, without the secret."""
    server.always("AUTH", resp_server.error("WRONGPASS invalid username-password pair or user is disabled."))
    await make_layer(hosts=[server.url.replace("//", "//:wr0ng@")])
    await becomes("password")
    assert "wr0ng" not in repr(await ready())


async def test_another_layout(make_layer: MakeLayer) -> None:
    """A process whose settings differ from those of the others is not ready."""
    other = await make_layer(partitions=3)
    await other.new_channel()
    await make_layer()
    await becomes("partitions: 3")


async def test_closed(make_layer: MakeLayer) -> None:
    """A layer that was closed sends nothing any more."""
    layer = await make_layer()
    await layer.close()
    assert "closed" in await reason()
    with pytest.raises(LayerClosed):
        await layer.faults()


async def test_resting(make_layer: MakeLayer) -> None:
    """Connections that were closed until they are needed are no fault."""
    layer = await make_layer()
    await layer.send("jobs", note(1))
    await layer.new_channel()
    await becomes("")
    await layer.close_pools()
    assert await ready() == READY


async def test_cancelled(make_layer: MakeLayer) -> None:
    """Cancelling leaves nothing behind: the next question is answered."""
    layer = await make_layer()
    task = asyncio.create_task(layer.faults())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await becomes("")


async def test_full_server(own_redis_server: EmbeddedServer, prefix: str, make_layer: MakeLayer) -> None:
    """A server that refuses to write is known by the next checkpoint, with what fails; and its end, too."""
    layer = await make_layer(hosts=[own_redis_server.url])
    await layer.new_channel()
    await becomes("")
    own_redis_server.command("CONFIG", "SET", "maxmemory", "1")
    await becomes("OOM")
    assert "jobs and memberships of normal channels fail" in await reason()
    own_redis_server.command("CONFIG", "SET", "maxmemory", "0")
    await becomes("")


async def test_one_of_several_layers(
    make_layer: MakeLayer, server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer of this package counts, also one that cannot be made; layers of others do not."""
    layer = await make_layer()
    await becomes("")
    monkeypatch.setattr(channel_layers, "backends", {"default": layer})
    configs = {
        "default": {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer"},
        "memory": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
        "typo": {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": {"host": [server.url]}},
    }
    with override_settings(CHANNEL_LAYERS=configs):
        monkeypatch.setattr(channel_layers, "backends", {"default": layer})
        status, answer = await ready()
    assert status == 503
    assert [(each["layer"], "'hosts'" in each["reason"]) for each in answer["reasons"]] == [("typo", True)]


async def test_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clients leave gets no new ones."""
    monkeypatch.setattr("channels_asyncq.probes.is_ready", lambda: False)
    status, answer = await ready()
    assert status == 503
    assert answer["reasons"] == [{"reason": "the process is told to stop, and its clients leave"}]
