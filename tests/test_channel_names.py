"""The names of specific channels, as a session makes them."""

from __future__ import annotations

import pytest

from tests import contract
from tests.contract import (
    MakeLayer,
    note,
    receive,
)


class TestNames:
    async def test_a_prefix_is_no_channel(self, make_memory: MakeLayer) -> None:
        """The part up to `!` can be received from; sent to or added, it would hide the channels behind it."""
        layer = await make_memory()
        channel = await layer.new_channel()
        prefix = channel[: channel.index("!") + 1]
        for call in contract.calls(
            lambda: layer.send(prefix, note(1)),
            lambda: layer.group_add("room", prefix),
            lambda: layer.send_wait(prefix, note(1)),
        ):
            with pytest.raises(TypeError, match="!"):
                await call()
        await layer.send(channel, note(2))
        assert await receive(layer, prefix) == note(2)

    @pytest.mark.parametrize("start", [5, None, b"x", "a!", "a!b", "white space", "x" * 60])
    async def test_bad_prefixes(self, make_memory: MakeLayer, start: object) -> None:
        """new_channel() refuses what makes no specific channel."""
        layer = await make_memory()
        with pytest.raises(TypeError):
            await layer.new_channel(start)  # type: ignore[arg-type]
