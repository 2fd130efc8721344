"""docs/resume.md: its examples run on both buses, and its table has the reasons that there are."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from channels.testing import WebsocketCommunicator
from django.db import connections
from django.http import HttpResponse
from django.test import RequestFactory

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.messages.positions import MOST_CHANNELS, MOST_CHARACTERS
from channels_asyncq.session.lingering import LINGER
from channels_asyncq.settings.keys import Recovery
from tests.code_blocks import block
from tests.consumers import Message, installed
from tests.contract import DEADLINE, eventually
from tests.test_docs import DOCS, PACKAGE, code_in, rows

PAGE = DOCS / "resume.md"
EXAMPLES = "docs/resume.md"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


class Order:
    """A row of the database of the examples."""

    saved: ClassVar[list[Any]] = []

    def __init__(self, pk: int) -> None:
        self.pk, self.state = pk, "new"

    def save(self) -> None:
        self.saved.append((self.pk, self.state))


class Joined:
    """The memberships of the examples: everybody joined now."""

    @staticmethod
    async def aget(user: Any) -> SimpleNamespace:
        return SimpleNamespace(joined_at=datetime.now(UTC) + timedelta(seconds=user))


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `shop` of the examples."""
    models = ModuleType("shop.models")
    orders = type("Order", (), {"objects": SimpleNamespace(all=lambda: list(Order.saved))})
    vars(models).update(Order=orders, Membership=SimpleNamespace(objects=Joined))
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", models)
    monkeypatch.setattr(Order, "saved", [])


@pytest.fixture(params=["memory", pytest.param("redis", marks=[pytest.mark.server])])
async def layer(request: pytest.FixtureRequest, prefix: str) -> AsyncGenerator[AsyncQueueChannelLayer, None]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    async with installed(AsyncQueueChannelLayer(hosts=[url], prefix=prefix)) as layer:
        yield layer


def example(text: str) -> SimpleNamespace:
    """The names of an example."""
    names: dict[str, Any] = {}
    exec(compile(text, EXAMPLES, "exec"), names)
    return SimpleNamespace(**names)


def consumers() -> SimpleNamespace:
    return example(block(EXAMPLES, "python", having="# consumers.py\n"))


class Page:
    """A page that is connected to a consumer."""

    def __init__(self, consumer: Any, since: str, user: Any = None) -> None:
        path = f"/ws/?since={since}" if since else "/ws/"
        self._socket = WebsocketCommunicator(consumer.as_asgi(), path)
        self._socket.scope.update(user=user)  # type: ignore[call-arg]

    async def __aenter__(self) -> "Page":
        connected, _ = await self._socket.connect(timeout=DEADLINE)
        assert connected
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.disconnect(timeout=DEADLINE)

    async def frame(self) -> Any:
        return json.loads(await self._socket.receive_from(timeout=DEADLINE))

    async def send(self, content: Any) -> None:
        await self._socket.send_json_to(content)

    async def close_code(self) -> int:
        message = await self._socket.receive_output(timeout=DEADLINE)
        assert message["type"] == "websocket.close"
        return int(message["code"])


async def in_thread(function: Callable[..., object], *arguments: object) -> None:
    """Call a function as a server calls a view: in a thread, whose database connections are closed after it."""

    def call() -> None:
        try:
            function(*arguments)
        finally:
            connections.close_all()

    await asyncio.to_thread(call)


def user(pk: int, *, is_authenticated: bool = True) -> SimpleNamespace:
    return SimpleNamespace(pk=pk, is_authenticated=is_authenticated)


# A page and its connection


@pytest.mark.django_db(transaction=True)
async def test_what_is_sent_after_the_view_comes_over_the_websocket(
    layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view, the sender and the consumer of the page go together: nothing is missing between them."""
    contexts: list[Any] = []

    def render(request: Any, template: str, context: Any) -> HttpResponse:
        contexts.append(context)
        return HttpResponse()

    monkeypatch.setattr("django.shortcuts.render", render)
    views = example(block(EXAMPLES, "python", having="# views.py\n"))
    orders = example(block(EXAMPLES, "python", having="# orders.py\n"))
    await in_thread(orders.change, Order(1), "paid")
    await in_thread(views.orders, RequestFactory().get("/orders/"))
    (context,) = contexts
    assert context["orders"] == [(1, "paid")]
    await in_thread(orders.change, Order(2), "sent")
    await layer.group_send("user.7", {"type": "greeting"})

    since = await layer.position("orders", "user.7")
    async with Page(consumers().Orders, context["position"], user(7)) as page:
        frame = await page.frame()
        assert frame["type"] == "resumed"
        # The view names one group, and this page follows two: they may be in one partition by chance.
        assert frame["reason"] in ("", "unknown_position")
    await in_thread(orders.change, Order(3), "sent")
    async with Page(consumers().Orders, since, user(7)) as page:
        frame = await page.frame()
        assert frame["m"] == {"type": "order.changed", "id": 3, "state": "sent"}
        assert (await page.frame())["recovered"]
        await page.send({"ping": 1})
        assert await page.frame() == {"pong": 1}


async def test_a_page_without_a_position_is_told_to_load(layer: AsyncQueueChannelLayer) -> None:
    """What a view renders while the server is away, as the page says."""
    assert '`"none"`' in PAGE.read_text()
    orders = consumers().Orders
    for since, recovered in (("none", False), ("", True)):
        async with Page(orders, since, user(7)) as page:
            assert (await page.frame())["recovered"] is recovered


async def test_a_client_that_may_not_read_joins_nothing(layer: AsyncQueueChannelLayer) -> None:
    """After `close()` in `connect()` the groups are not joined."""
    async with Page(consumers().Orders, "", user(7, is_authenticated=False)) as page:
        assert await page.close_code() == 4401
        assert not layer.groups


async def test_messages_without_a_handler_reach_the_client(layer: AsyncQueueChannelLayer) -> None:
    """All of them, `websocket.send` too: the page says that a handler keeps one back."""
    async with Page(consumers().Orders, "", user(7)) as page:
        assert (await page.frame())["recovered"]
        for message in ({"type": "some.thing"}, {"type": "websocket.send", "text": "frame"}):
            await layer.group_send("orders", message)
            assert (await page.frame())["m"] == message


async def test_messages_from_before_a_user_joined_are_not_sent(layer: AsyncQueueChannelLayer) -> None:
    """`not_before` of the page: the position says more than the user may read."""
    since = await layer.position("room.7")
    await layer.group_send("room.7", {"type": "room.old"})
    room = example(block(EXAMPLES, "python", having="# rooms.py\n")).Room
    async with Page(room, since, user=60) as page:
        assert (await page.frame())["recovered"]
    async with Page(room, since, user=-60) as page:
        assert (await page.frame())["m"] == {"type": "room.old"}


async def test_the_limit_of_a_tenant(layer: AsyncQueueChannelLayer, prefix: str) -> None:
    """All users of a tenant count as one client; others come back meanwhile."""
    shop: Any = example(block(EXAMPLES, "python", having="# shops.py\n")).Shop
    since = await layer.position("shop")

    class Shop(shop):  # type: ignore[misc]
        resume_rate = "1/h"  # nobody else may come while this test runs

    def comes_back(tenant: int, consumer: Any = Shop) -> Page:
        return Page(consumer, since, SimpleNamespace(tenant_id=f"{prefix} {tenant}"))

    async with comes_back(0, shop) as page:
        assert (await page.frame())["recovered"]
    for _ in range(shop.resume_burst):
        async with comes_back(1) as page:
            assert (await page.frame())["recovered"]
    async with comes_back(1) as page:
        assert (await page.frame())["type"] == "retry"
        assert await page.close_code() == 1012
    async with comes_back(2) as page:
        assert (await page.frame())["recovered"]


# Other readers


class Copy:
    """What a mirror keeps."""

    def __init__(self) -> None:
        self.loads = 0
        self.messages: list[Message] = []
        self.position = ""
        self.loaded = asyncio.Event()

    async def load(self) -> None:
        self.loads += 1
        self.loaded.set()

    async def write(self, message: Message, position: str) -> None:
        self.messages.append(message)
        self.position = position


async def test_a_mirror_goes_on_where_it_was(layer: AsyncQueueChannelLayer) -> None:
    """It loads once. Another one that begins from its position gets what was sent meanwhile."""
    mirror = example(block(EXAMPLES, "python", having="# mirror.py\n")).mirror
    first = Copy()
    task = asyncio.create_task(mirror(first.load, first.write))
    await asyncio.wait_for(first.loaded.wait(), DEADLINE)
    await layer.group_send("orders", {"type": "order.changed", "id": 1})
    await eventually(lambda: first.position != "")
    task.cancel()
    await asyncio.wait([task])
    await layer.group_send("orders", {"type": "order.changed", "id": 2})

    second = Copy()
    task = asyncio.create_task(mirror(second.load, second.write, first.position))
    await eventually(lambda: len(second.messages) == 1)
    assert second.messages == [{"type": "order.changed", "id": 2}] and not second.loads
    await layer.close()
    await asyncio.wait_for(task, DEADLINE)


async def test_a_mirror_loads_again_after_a_refusal(layer: AsyncQueueChannelLayer) -> None:
    """What a server that has lost its keys had is not known."""
    copy = Copy()
    task = asyncio.create_task(
        example(block(EXAMPLES, "python", having="# mirror.py\n")).mirror(
            copy.load, copy.write, "1~00000000~0.1.0"
        )
    )
    await asyncio.wait_for(copy.loaded.wait(), DEADLINE)
    task.cancel()
    await asyncio.wait([task])
    assert sum(layer.statistics().refused.values()) == copy.loads == 1


async def test_group_resume_closes_the_gap_of_a_page(layer: AsyncQueueChannelLayer) -> None:
    """The consumer of the page sends what was missed, and what comes."""
    news = example(block(EXAMPLES, "python", having="# news.py\n")).News
    since = await layer.position("news")
    await layer.group_send("news", {"type": "news.item", "text": "missed"})
    async with Page(news, since) as page:
        assert await page.frame() == {"text": "missed"}
        await layer.group_send("news", {"type": "news.item", "text": "live"})
        assert await page.frame() == {"text": "live"}
    async with Page(news, "") as page:
        assert await page.frame() == {"reload": True, "reason": "bad_token"}


# Figures and tables


def reasons_in_the_code() -> set[str]:
    """Every reason with which a resume is refused, and those of messages that a log does not have."""
    found = set()
    for module in PACKAGE.rglob("*.py"):
        text = module.read_text()
        found |= set(re.findall(r'(?:NotReplayed\(|_refuse\(\w+, |add\(topic, position, )"(\w+)"', text))
        found |= set(re.findall(r'_start_over\([^()]*, "(\w+)"', text))
    return found


def test_every_reason_is_documented() -> None:
    """The table has each reason, and no other."""
    documented = {code_in(row[0])[0] for row in rows(PAGE, "reason", "what happened", "what to do")}
    assert documented == reasons_in_the_code() and len(documented) == 9


def test_figures() -> None:
    """The limits of the page are those of the code."""
    limits = {code_in(row[0])[0]: row[1].replace(",", "") for row in rows(PAGE, "limit", "default")}
    recovery = Recovery()
    assert limits == {
        "seconds": f"{recovery.seconds:g}",
        "messages": str(recovery.messages),
        "resume_messages": str(recovery.resume_messages),
        "message_bytes": f"{recovery.message_bytes // 1024} KiB",
    }
    text = " ".join(PAGE.read_text().split())
    assert f"than {MOST_CHARACTERS:,} characters" in text
    assert MOST_CHANNELS == 4 and "up to four names of former channels" in text
    assert LINGER == 10 and "stay subscribed for ten seconds" in text
