"""The rules of the specification on Channels' own layer: what they ask is the specification's, not ours."""

from types import SimpleNamespace

import pytest
from channels.layers import InMemoryChannelLayer

from tests.clock import Clock
from tests.contract import LetTimePass, MakeSpecifiedLayer, channels, flush, groups, messages, names


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


class TestNames(names.SpecifiedNames): ...


class TestMessages(messages.SpecifiedMessages): ...


class TestChannels(channels.SpecifiedChannels): ...


class TestGroups(groups.SpecifiedGroups): ...


class TestFlush(flush.SpecifiedFlush): ...
