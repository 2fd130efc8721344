# mypy: disable-error-code="misc, no-redef, untyped-decorator"
"""djangochannelsrestframework on top of our consumers, where it is installed."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from chat.models import Message
from django.db import connections

from channels_asyncq.generic.websocket import AsyncJsonWebsocketConsumer
from tests.consumers import installed, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


@pytest.fixture(params=["channels", "ours"])
def consumer(request: pytest.FixtureRequest) -> Any:
    """Messages of the chat as an API that can be listed, created and observed."""
    pytest.importorskip("djangochannelsrestframework")
    from djangochannelsrestframework import mixins
    from djangochannelsrestframework.decorators import action
    from djangochannelsrestframework.generics import GenericAsyncAPIConsumer
    from djangochannelsrestframework.observer import model_observer
    from rest_framework import serializers

    class Serializer(serializers.ModelSerializer[Message]):
        class Meta:
            model = Message
            fields = ("id", "room", "author", "text")

    bases: tuple[Any, ...] = (mixins.ListModelMixin, mixins.CreateModelMixin, GenericAsyncAPIConsumer)
    if request.param == "ours":
        bases = (*bases, AsyncJsonWebsocketConsumer)

    class Messages(*bases):
        queryset = Message.objects.all()
        serializer_class = Serializer
        permission_classes = ()

        @model_observer(Message)
        async def changed(
            self, message: Any, observer: Any = None, subscribing_request_ids: Any = (), **_: Any
        ) -> None:
            await self.send_json({"changed": message, "for": list(subscribing_request_ids)})

        @changed.serializer
        def changed(self, instance: Message, action: Any, **_: Any) -> Any:
            return {"id": instance.pk, "action": action.value}

        @action()
        async def observe(self, request_id: Any, **_: Any) -> Any:
            await self.changed.subscribe(request_id=request_id)
            return {}, 200

    return Messages


@pytest.fixture
async def layer(prefix: str) -> AsyncGenerator[None, None]:
    async with installed(make("asyncq.memory", "", prefix)):
        yield
        await sync_to_async(connections.close_all)()


async def test_api(consumer: Any, layer: None) -> None:
    """List, create, refuse what is unknown, and be told of what others create."""
    one, two = (WebsocketCommunicator(consumer.as_asgi(), "/") for _ in range(2))
    for socket in (one, two):
        assert (await socket.connect(5))[0]
    await one.send_json_to({"action": "observe", "request_id": 7})
    assert (await one.receive_json_from(5))["response_status"] == 200
    await two.send_json_to(
        {"action": "create", "request_id": 1, "data": {"room": "r", "author": "a", "text": "t"}}
    )
    created = await two.receive_json_from(5)
    assert (created["response_status"], created["data"]["text"]) == (201, "t")
    assert await one.receive_json_from(5) == {
        "changed": {"id": created["data"]["id"], "action": "create"},
        "for": [7],
    }
    await two.send_json_to({"action": "list", "request_id": 2})
    assert [entry["text"] for entry in (await two.receive_json_from(5))["data"]] == ["t"]
    await two.send_json_to({"action": "nothing", "request_id": 3})
    assert (await two.receive_json_from(5))["response_status"] == 405
    for socket in (one, two):
        await socket.disconnect()
    assert not [task for task in asyncio.all_tasks() if "consumer" in repr(task.get_coro())]
