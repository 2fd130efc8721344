"""The contract on a real Valkey or Redis."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.contract import (
    LetTimePass,
    MakeLayer,
    channels,
    closing,
    encryption,
    flush,
    groups,
    messages,
    names,
    shared_channels,
    shared_groups,
    statistics,
    waiting,
)


@pytest.fixture
async def make_layer(redis_url: str, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_url], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
def let_time_pass() -> LetTimePass:
    # What waits on the server expires by the server's clock.
    return contract.time_passes


class TestNames(names.Names): ...


class TestMessages(messages.Messages): ...


class TestChannels(channels.Channels): ...


class TestGroups(groups.Groups): ...


class TestFlush(flush.Flush): ...


class TestClosing(closing.Closing): ...


class TestWaiting(waiting.Waiting): ...


class TestStatistics(statistics.Statistics): ...


class TestIdle(statistics.Idle): ...


class TestSharedChannels(shared_channels.SharedChannels): ...


class TestSharedGroups(shared_groups.SharedGroups): ...


class TestSharedEncryption(encryption.SharedEncryption): ...
