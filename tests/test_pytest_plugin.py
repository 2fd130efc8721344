"""The fixtures for those who test what sends, used as they would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, get_layer, pytest_plugin, sync
from channels_asyncq.pytest_plugin import Listener

Listen = Callable[..., Listener]
MESSAGE = {"type": "chat.message", "text": "hello"}


def test_sync_code(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A listener gets what a sync test sends to its group, and nothing else."""
    assert get_layer() is asyncq_layer
    room = asyncq_listen("room")
    room.assert_nothing()
    async_to_sync(asyncq_layer.group_send)("room", MESSAGE)
    assert room.get() == MESSAGE
    room.assert_nothing()
    assert "room" in str(room)


async def test_async_code(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """The same in an async test."""
    room = asyncq_listen("room")
    await asyncq_layer.group_send("room", MESSAGE)
    assert await room.aget() == MESSAGE
    await room.aassert_nothing()


def test_normal_channel(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A listener can read a normal channel too."""
    jobs = asyncq_listen(channel="jobs")
    async_to_sync(asyncq_layer.send)("jobs", MESSAGE)
    assert jobs.get() == MESSAGE
    jobs.assert_nothing()


def test_failures(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """A message that does not come fails the test, and so does one that should not have."""
    room = asyncq_listen("room")
    with pytest.raises(pytest.fail.Exception, match="No message came to group 'room'") as failure:
        room.get(timeout=0.01)
    assert shown(failure) == ["test_failures"]
    for text in ("hello", "there"):
        async_to_sync(asyncq_layer.group_send)("room", {**MESSAGE, "text": text})
    with pytest.raises(pytest.fail.Exception, match=r"A message came to group 'room': .*hello") as failure:
        room.assert_nothing()
    assert shown(failure) == ["test_failures"]
    with pytest.raises(pytest.fail.Exception, match="there"):
        room.assert_nothing(within=20)
    with pytest.raises(pytest.fail.Exception, match="No message came"):
        room.get(timeout=0.01)


async def test_failures_of_async_code(asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """The same, awaited."""
    jobs = asyncq_listen(channel="jobs")
    with pytest.raises(pytest.fail.Exception, match="No message came to channel 'jobs'") as failure:
        await jobs.aget(timeout=0.01)
    assert shown(failure) == ["test_failures_of_async_code"]
    await asyncq_layer.send("jobs", MESSAGE)
    with pytest.raises(pytest.fail.Exception, match=r"A message came to channel 'jobs': .*hello") as failure:
        await jobs.aassert_nothing()
    assert shown(failure) == ["test_failures_of_async_code"]


def shown(failure: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """The functions that pytest shows of a failure; there is no error but itself."""
    assert failure.value.__context__ is failure.value.__cause__ is None
    return [entry.name for entry in failure.traceback.filter(failure)]


@pytest.mark.parametrize("kind", ["group", "channel"])
def test_more_than_the_channel_holds(
    asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen, kind: str
) -> None:
    """assert_nothing() tells of the first message, also where so many came that there is no place for another."""
    listener = asyncq_listen(**{kind: "room"})
    send = sync.group_send if kind == "group" else sync.send
    for n in range(100):
        send("room", {**MESSAGE, "n": n})
    with pytest.raises(pytest.fail.Exception, match="'n': 0"):
        listener.assert_nothing()
    assert listener.get()["n"] == 1


def test_flushed(
    asyncq_layer: AsyncQueueChannelLayer, asyncq_listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that flush() has put out of its group does not assure that nothing came."""
    monkeypatch.setattr(pytest_plugin, "_MARKER_SECONDS", 0.05)
    room = asyncq_listen("room")
    async_to_sync(asyncq_layer.flush)()
    with pytest.raises(pytest.fail.Exception, match=r"flushed.*call asyncq_listen\(\) again"):
        room.assert_nothing()


def test_on_a_server(asyncq_redis_layer: AsyncQueueChannelLayer, asyncq_listen: Listen) -> None:
    """The layer on a real server behaves alike."""
    room = asyncq_listen("room")
    async_to_sync(asyncq_redis_layer.group_send)("room", MESSAGE)
    assert room.get(timeout=20) == MESSAGE
