"""The contract on `memory://`."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.contract import MakeLayer


@pytest.fixture
async def make_layer(prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield make_layer


class TestNames(contract.Names):
    pass


class TestMessages(contract.Messages):
    pass


class TestChannels(contract.Channels):
    pass


class TestGroups(contract.Groups):
    pass


class TestFlush(contract.Flush):
    pass


class TestClosing(contract.Closing):
    pass


class TestWaiting(contract.Waiting):
    pass


class TestStatistics(contract.Statistics):
    pass


class TestIdle(contract.Idle):
    pass
