"""The rules of the specification on Channels' own layer: what they ask is the specification's, not ours."""

import pytest
from channels.layers import InMemoryChannelLayer

from tests.contract import MakeSpecifiedLayer, channels, flush, groups, messages, names


@pytest.fixture
def make_layer() -> MakeSpecifiedLayer:
    """Layers of Channels; they keep everything to themselves and need no closing."""

    async def make_layer(**config: object) -> InMemoryChannelLayer:
        return InMemoryChannelLayer(**config)  # type: ignore[arg-type]

    return make_layer


class TestNames(names.SpecifiedNames): ...


class TestMessages(messages.SpecifiedMessages): ...


class TestChannels(channels.SpecifiedChannels): ...


class TestGroups(groups.SpecifiedGroups): ...


class TestFlush(flush.SpecifiedFlush): ...
