"""The routes that a session keeps."""

from __future__ import annotations

import pytest

from channels_asyncq.session import routes
from tests.contract import MakeLayer, note, receive
from tests.sessions import session_of


async def test_the_number_of_routes_is_bounded(
    make_memory: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of routes to channels is bounded, and sends go on when a route is forgotten."""
    monkeypatch.setattr(routes, "_MAX_ROUTES", 3)
    here, there = await make_memory(), await make_memory()
    channels = [await there.new_channel() for _ in range(5)]
    await here.new_channel()
    ours = session_of(here)
    for n in range(3):
        for channel in channels:
            await here.send(channel, note(n))
            assert 0 < len(ours.routes.channels) <= 3
    for channel in channels:
        assert [await receive(there, channel) for _ in range(3)] == [note(0), note(1), note(2)]
    await here.close()
    assert not ours.routes.channels
