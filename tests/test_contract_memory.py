"""The contract on `memory://`."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.clock import Clock
from tests.contract import (
    LetTimePass,
    MakeLayer,
    channels,
    closing,
    flush,
    groups,
    messages,
    names,
    statistics,
    waiting,
)


@pytest.fixture
async def make_layer(prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> LetTimePass:
    clock = Clock()
    clock.put_into(monkeypatch, ["buffers", "bus.memory", "hub", "session"])

    async def let_time_pass(seconds: float) -> None:
        clock.turn(seconds)

    return let_time_pass


class TestNames(names.Names): ...


class TestMessages(messages.Messages): ...


class TestChannels(channels.Channels): ...


class TestGroups(groups.Groups): ...


class TestFlush(flush.Flush): ...


class TestClosing(closing.Closing): ...


class TestWaiting(waiting.Waiting): ...


class TestStatistics(statistics.Statistics): ...


class TestIdle(statistics.Idle): ...
