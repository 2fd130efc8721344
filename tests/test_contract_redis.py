"""The contract on a real Valkey or Redis."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.contract import MakeLayer


@pytest.fixture
async def make_layer(redis_url: str, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_url], prefix=prefix) as make_layer:
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


class TestSharedChannels(contract.SharedChannels):
    pass


class TestSharedGroups(contract.SharedGroups):
    pass


class TestSharedEncryption(contract.SharedEncryption):
    pass
