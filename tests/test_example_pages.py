"""The pages with server-sent events, within one process: what they send, and what they refuse."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient, Client

from channels_asyncq import get_layer
from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE
from tests.test_example_chat import layers

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def a_layer_of_its_own(settings: Any, prefix: str) -> None:
    settings.CHANNEL_LAYERS = layers(prefix)


@pytest.fixture
async def web() -> AsyncIterator[AsyncClient]:
    """A client for tests on an event loop, which leaves no connection behind."""
    yield AsyncClient()
    await get_layer().close()
    await sync_to_async(connections.close_all)()


class Events:
    """A client of an event stream."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._text = ""

    async def event(self, kind: str) -> dict[str, str]:
        """Return the id and the data of the next event of this type, leaving out what comes before it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                block, found, self._text = self._text.partition("\n\n")
                if not found:
                    self._text = block + (await anext(self._chunks)).decode()
                    continue
                fields: dict[str, str] = {}
                for line in block.splitlines():
                    name, _, value = line.partition(": ")
                    fields[name] = f"{fields[name]}\n{value}" if name in fields else value
                if fields.get("event") == kind:
                    return fields


@asynccontextmanager
async def stream(web: AsyncClient, path: str, **headers: str) -> AsyncIterator[Events]:
    response: Any = await web.get(path, headers=headers)
    assert response.status_code == 200
    chunks = aiter(response)
    yield Events(chunks)
    await chunks.aclose()
    response.close()


async def position_of_page(web: AsyncClient) -> str:
    page = (await web.get("/orders/")).content.decode()
    found = re.search(r"/orders/events/\?since=([^\"]+)", page)
    assert found is not None
    return found[1]


# Orders


async def test_changes_come_as_rows(web: AsyncClient) -> None:
    """A new order is a row, and a changed one replaces its row; both come since the position of the page."""
    since = await position_of_page(web)
    for button in ("receive", "advance"):
        pressed = await web.post(f"/orders/{button}/", headers={"HX-Request": "true"})
        assert pressed.status_code == 204
    async with stream(web, f"/orders/events/?since={since}") as events:
        new, changed = await events.event("order.new"), await events.event("order.changed")
    assert re.search(r'<tr id="order-\d+">', new["data"])
    assert re.search(r'<tr id="order-\d+" hx-swap-oob="true">', changed["data"])
    assert "Received" in new["data"]
    assert "Packed" in changed["data"]
    async with stream(web, "/orders/events/", **{"Last-Event-ID": new["id"]}) as events:
        assert (await events.event("order.changed"))["data"] == changed["data"]


async def test_stale_position_is_told(web: AsyncClient) -> None:
    """A page without a position, or with one of another log, is told to load the table."""
    async with stream(web, "/orders/events/?since=none") as events:
        assert "reason" in (await events.event("reset"))["data"]


def test_markup_in_an_order_stays_text() -> None:
    """What an order is called is escaped in its row."""
    from orders.views import row

    message = {"id": 1, "what": "<b>", "state": "Sent", "changed_at": "2026-01-01T10:11:12"}
    assert "&lt;b&gt;" in row(message | {"type": "order.new"})
    assert ">10:11:12<" in row(message | {"type": "order.new"})


def test_oldest_order_advances_until_it_is_delivered(client: Client) -> None:
    """The oldest order goes through all states, then the next one; each press leads to the table."""
    from orders.models import Order

    for _ in range(2):
        assert client.post("/orders/receive/")["Location"] == "/orders/"
    states = []
    for _ in range(7):
        client.post("/orders/advance/")
        states.append(tuple(Order.objects.order_by("id").values_list("state", flat=True)))
    assert [first for first, _ in states[:3]] == ["packed", "sent", "delivered"]
    assert [second for _, second in states[2:6]] == ["received", "packed", "sent", "delivered"]
    assert states[6] == states[5]


def test_table_in_an_outage(
    client: Client, settings: Any, prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """Without the message server the table is served, and orders are stored."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=0.2)
    own_redis_server.kill()
    assert client.post("/orders/receive/").status_code == 302
    page = client.get("/orders/")
    assert b"since=none" in page.content
    assert b"Received" in page.content


# Words


async def test_words_come_from_the_first_on(web: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page gets the whole text, also one that comes when it is written; then the text is stored."""
    from tokens import worker
    from tokens.models import Answer

    monkeypatch.setattr(worker, "PACE", 0)
    page = (await web.post("/tokens/ask/", {"question": " Why? "}))["Location"]
    assert b'aria-busy="true"' in (await web.get(page)).content
    writer = worker.TokenWriter()
    writer.channel_layer = get_layer()
    job = await get_layer().receive("tokens")
    await writer.tokens_answer(job)
    await asyncio.gather(*writer.writing)
    async with stream(web, f"{page}events/") as events:
        text = ""
        for _ in worker.pieces():
            text += (await events.event("answer.words"))["data"].partition('"text":"')[2].removesuffix('"}')
        whole = await events.event("answer.whole")
    assert text.replace("\\n", "\n") == worker.TEXT
    assert f'"at":{len(worker.TEXT)}' in whole["data"]
    answer = await Answer.objects.aget()
    assert (answer.question, answer.text, answer.is_whole) == ("Why?", worker.TEXT, True)
    assert (await web.get(f"{page}whole/")).json() == {"is_whole": True, "text": worker.TEXT}
    assert b"aria-busy" not in (await web.get(page)).content
    await writer.tokens_answer(job)  # a job that comes twice
    assert not writer.writing


@pytest.mark.parametrize("question", ["", "  ", "x" * 201, "a\0b"])
def test_bad_question_is_refused(client: Client, question: str) -> None:
    """A question that is empty, too long, or cannot be stored is a 400, and no answer is made."""
    from tokens.models import Answer

    response = client.post("/tokens/ask/", {"question": question})
    assert response.status_code == 400
    assert b"1 to 200 characters" in response.content
    assert not Answer.objects.exists()


def test_question_in_an_outage(
    client: Client, settings: Any, prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """A question that no worker will get is a 503, and the page says so."""
    from tokens.models import Answer

    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=0.2)
    own_redis_server.kill()
    response = client.post("/tokens/ask/", {"question": "Why?"})
    assert response.status_code == 503
    assert b"cannot be reached" in response.content
    assert not Answer.objects.exists()


def test_pages_load_nothing_from_elsewhere(client: Client) -> None:
    """The pages need no other host, and forms have the CSRF token."""
    for path in ("/orders/", "/tokens/"):
        page = client.get(path).content.decode()
        assert "csrfmiddlewaretoken" in page
        assert "://" not in page
    assert client.get("/tokens/1/").status_code == 404
