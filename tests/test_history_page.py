"""docs/history.md: its views work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import django.shortcuts
import pytest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory

from channels_asyncq import AsyncQueueChannelLayer, History
from tests.code_blocks import block
from tests.consumers import installed
from tests.contract import note, notes
from tests.contract.resume import resumed
from tests.test_docs import DOCS, code_in, rows

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")
PAGE = "docs/history.md"


def run(text: str) -> SimpleNamespace:
    """The names of an example."""
    names: dict[str, Any] = {}
    exec(compile(text, PAGE, "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
async def layer(prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    """The layer of the settings on the page, without their server."""
    config = run(block(PAGE, "python", having="CHANNEL_LAYERS")).CHANNEL_LAYERS["default"]["CONFIG"]
    config |= {"hosts": ["memory://"], "prefix": prefix}
    async with installed(AsyncQueueChannelLayer(**config)) as layer:
        yield layer


async def test_views(layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has the last messages and a position to resume from, the other one those before."""

    def render(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        assert template == "room.html"
        return JsonResponse(context)

    monkeypatch.setattr(django.shortcuts, "render", render)
    views = run(block(PAGE, "python", having="def older"))
    for n in range(70):
        await layer.group_send("chat.7", note(n))

    async def get(view: Any, query: str = "") -> Any:
        response: HttpResponse = await asyncio.to_thread(view, RequestFactory().get(f"/{query}"), 7)
        return json.loads(response.content) if response.status_code == 200 else response.status_code

    page = await get(views.room)
    assert page["messages"] == notes(70)[20:]
    await layer.group_send("chat.7", note(70))
    _, replay = await resumed(layer, "chat.7", page["position"])
    assert replay.messages == [note(70)]
    assert await get(views.older, f"?before={page['before']}") == {"messages": notes(20), "before": None}
    assert await get(views.older, "?before=garbage") == 400


def test_the_result() -> None:
    """The table of the result has all of its attributes."""
    found = [name for row in rows(DOCS / "history.md", "of the result") for name in code_in(row[0])]
    assert sorted(found) == sorted(History.__slots__)
