"""The contract on `memory://`."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.clock import Clock
from tests.contract import LetTimePass, MakeLayer, note, receive
from tests.contract.channels import Channels as TestChannels
from tests.contract.closing import Closing as TestClosing
from tests.contract.flush import Flush as TestFlush
from tests.contract.groups import Groups as TestGroups
from tests.contract.messages import Messages as TestMessages
from tests.contract.names import Names as TestNames
from tests.contract.operating import Operating as TestOperating
from tests.contract.statistics import Idle as TestIdle
from tests.contract.statistics import Statistics as TestStatistics
from tests.contract.surveys import Surveys as TestSurveys
from tests.contract.waiting import Waiting as TestWaiting


@pytest.fixture
async def make_layer(prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> LetTimePass:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "bus.memory", "session.sending", "session.views"])

    async def let_time_pass(seconds: float) -> None:
        clock.turn(seconds)

    return let_time_pass


async def test_normal_channels_of_this_process(make_layer: MakeLayer, let_time_pass: LetTimePass) -> None:
    """The process is the server here, so `layer.channels` and `layer.groups` show normal channels too."""
    layer = await make_layer(group_expiry=100)
    await layer.send("jobs", note(1))
    await layer.send("jobs", note(2))
    await layer.group_add("room", "jobs")
    assert layer.channels["jobs"].qsize() == 2 and layer.groups["room"].keys() == {"jobs"}
    await receive(layer, "jobs")
    assert layer.channels["jobs"].qsize() == 1
    await receive(layer, "jobs")
    assert "jobs" not in layer.channels
    await let_time_pass(101)
    assert layer.groups == {}
