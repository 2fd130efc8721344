"""The rules of the specification on Channels' own layer: what they ask is the specification's, not ours."""

import pytest
from channels.layers import InMemoryChannelLayer

from tests import contract
from tests.contract import MakeSpecifiedLayer


@pytest.fixture
def make_layer() -> MakeSpecifiedLayer:
    """Layers of Channels; they keep everything to themselves and need no closing."""

    async def make_layer(**config: object) -> InMemoryChannelLayer:
        return InMemoryChannelLayer(**config)  # type: ignore[arg-type]

    return make_layer


class TestNames(contract.SpecifiedNames):
    pass


class TestMessages(contract.SpecifiedMessages):
    pass


class TestChannels(contract.SpecifiedChannels):
    pass


class TestGroups(contract.SpecifiedGroups):
    pass


class TestFlush(contract.SpecifiedFlush):
    pass
