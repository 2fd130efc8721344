"""The rules of the specification on Channels' own layer: what they ask is the specification's, not ours."""

from types import SimpleNamespace

import pytest
from channels.layers import InMemoryChannelLayer

from tests.clock import Clock
from tests.contract import LetTimePass, MakeSpecifiedLayer
from tests.contract.channels import SpecifiedChannels as TestChannels
from tests.contract.flush import SpecifiedFlush as TestFlush
from tests.contract.groups import SpecifiedGroups as TestGroups
from tests.contract.messages import SpecifiedMessages as TestMessages
from tests.contract.names import SpecifiedNames as TestNames


@pytest.fixture
def make_layer() -> MakeSpecifiedLayer:
    """Layers of Channels; they keep everything to themselves and need no closing."""

    async def make_layer(**config: object) -> InMemoryChannelLayer:
        return InMemoryChannelLayer(**config)  # type: ignore[arg-type]

    return make_layer


@pytest.fixture
def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> LetTimePass:
    clock = Clock()
    monkeypatch.setattr("channels.layers.time", SimpleNamespace(time=clock))

    async def let_time_pass(seconds: float) -> None:
        clock.turn(seconds)

    return let_time_pass
