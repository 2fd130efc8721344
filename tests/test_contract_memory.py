"""The contract on `memory://`."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.clock import Clock
from tests.contract import LetTimePass, MakeLayer
from tests.contract.channels import Channels as TestChannels
from tests.contract.closing import Closing as TestClosing
from tests.contract.flush import Flush as TestFlush
from tests.contract.groups import Groups as TestGroups
from tests.contract.messages import Messages as TestMessages
from tests.contract.names import Names as TestNames
from tests.contract.statistics import Idle as TestIdle
from tests.contract.statistics import Statistics as TestStatistics
from tests.contract.waiting import Waiting as TestWaiting


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
