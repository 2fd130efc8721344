"""A client of a consumer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from channels.testing import WebsocketCommunicator


class Client(WebsocketCommunicator):
    async def receive_many_json_from(self) -> list[Any]:
        """What has come, until nothing comes for a second."""
        messages = []
        while not await self.receive_nothing(timeout=1.0):
            messages.append(await self.receive_json_from())
        return messages


@asynccontextmanager
async def connected_communicator(consumer: Any, path: str = "/") -> AsyncGenerator[Client, None]:
    """A connected client, which leaves at the end."""
    communicator = Client(consumer, path)
    connected, _ = await communicator.connect()
    assert connected
    yield communicator
    await communicator.disconnect()
