"""
Fixtures for those who test what sends: pytest finds them by itself.

`asyncq_layer` and `asyncq_redis_layer` give a test a layer of its own in place of CHANNEL_LAYERS["default"];
`asyncq_listen("room.7")` tells what a group or a channel gets. For sync and async tests alike. Nothing but
this module is imported before a test uses one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from .layer import AsyncQueueChannelLayer
    from .testing import EmbeddedServer

__all__ = ["Listener", "asyncq_layer", "asyncq_listen", "asyncq_redis_layer", "asyncq_redis_server"]

T = TypeVar("T")

_numbers = itertools.count(1)
_digits = os.urandom(4).hex()
# How long a marker may take that was sent on purpose: far longer than it ever does.
_MARKER_SECONDS = 20.0
_MARKER = "channels_asyncq.marker"
# In place of a message: not even the marker came.
_UNHEARD: dict[str, Any] = {}


class Listener:
    """
    A member of a group, or the reader of a normal channel, for as long as the test lasts.

    It lives on a thread of its own: a sync test, and an async one on whatever loop, sees the same. The methods
    that begin with `a` are to be awaited, the others block.
    """

    def __init__(self, layer: AsyncQueueChannelLayer, name: str, is_group: bool) -> None:
        self._layer = layer
        self._name = name
        self._is_group = is_group
        self._channel = "" if is_group else name
        self._markers = f"channels_asyncq.markers.{os.getpid()}.{next(_numbers)}"

    def get(self, timeout: float = 1.0) -> dict[str, Any]:
        """Return the next message; fail the test if none comes within `timeout` seconds."""
        __tracebackhide__ = True
        return self._expected(_block(partial(self._next, timeout)), timeout)

    async def aget(self, timeout: float = 1.0) -> dict[str, Any]:  # noqa: ASYNC109  (as get())
        """Return the next message; fail the test if none comes within `timeout` seconds."""
        __tracebackhide__ = True
        return self._expected(await _elsewhere(partial(self._next, timeout)), timeout)

    def assert_nothing(self, within: float = 0.0) -> None:
        """
        Fail the test if a message came that `get()` has not returned.

        What anybody has sent before this call is seen, without waiting for time to pass; `within` waits so many
        seconds for what may be sent later.
        """
        __tracebackhide__ = True
        self._refuse(_block(partial(self._unread, within)))

    async def aassert_nothing(self, within: float = 0.0) -> None:
        """Fail the test if a message came that `aget()` has not returned; `within` as in `assert_nothing()`."""
        __tracebackhide__ = True
        self._refuse(await _elsewhere(partial(self._unread, within)))

    # In the test's own frames: what pytest shows of a failure is the line of the test, and this text.

    def _expected(self, message: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        __tracebackhide__ = True
        if message is None:
            pytest.fail(f"No message came to {self} within {timeout:g} s.")
        return message

    def _refuse(self, message: dict[str, Any] | None) -> None:
        __tracebackhide__ = True
        if message is _UNHEARD:
            pytest.fail(
                f"The listener to {self} heard nothing of its own for {_MARKER_SECONDS:g} s. If the layer was "
                "flushed, it is a member no more: call asyncq_listen() again."
            )
        if message is not None:
            pytest.fail(f"A message came to {self}: {message!r}")

    # On the relay's loop.

    async def _start(self) -> None:
        if self._is_group:
            self._channel = await self._layer.new_channel("listener")
            await self._layer.group_add(self._name, self._channel)
            await self._layer.group_add(self._markers, self._channel)

    async def _stop(self) -> None:
        await self._layer.close_channel(self._channel)

    async def _next(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """Return the next message, or None if none comes in that time."""
        try:
            async with asyncio.timeout(timeout):
                while (message := await self._layer.receive(self._channel)).get("type") == _MARKER:
                    pass  # of an assert_nothing() that failed
                return message
        except TimeoutError:
            return None

    async def _unread(self, within: float) -> dict[str, Any] | None:
        """Return a message that has come, or comes within that time; None if there is none."""
        from channels.exceptions import ChannelFull

        if within and (message := await self._next(within)) is not None:
            return message
        # By the way that messages take: what was sent before it arrives before it.
        marker = {"type": _MARKER, "number": next(_numbers)}
        try:
            if self._is_group:
                await self._layer.group_send(self._markers, marker)
            else:
                await self._layer.send(self._channel, marker)
        except ChannelFull:
            pass  # of what came
        try:
            async with asyncio.timeout(_MARKER_SECONDS):
                while (message := await self._layer.receive(self._channel)).get("type") == _MARKER:
                    if message == marker:
                        return None
                return message
        except TimeoutError:
            return _UNHEARD

    def __str__(self) -> str:
        return f"{'group' if self._is_group else 'channel'} {self._name!r}"


def _block(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    __tracebackhide__ = True
    if _has_running_loop():
        raise RuntimeError(
            "an event loop runs here: await aget() and aassert_nothing(), which do not block it"
        )
    # Not in an `except` block: pytest would show its error as well.
    return _relay_wait(make)


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _elsewhere(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    from .process.relay import relay

    __tracebackhide__ = True
    return await relay().run(make)


@contextmanager
def _installed(url: str, prefix: str) -> Generator[AsyncQueueChannelLayer]:
    """Give out a layer that is CHANNEL_LAYERS["default"] meanwhile, and close it on every loop."""
    from channels.layers import channel_layers

    from .layer import AsyncQueueChannelLayer

    layer = AsyncQueueChannelLayer(hosts=[url], prefix=prefix)
    before = channel_layers.backends.get("default")
    channel_layers.backends["default"] = layer
    try:
        yield layer
    finally:
        if channel_layers.backends.get("default") is layer:
            del channel_layers.backends["default"]
            if before is not None:
                channel_layers.backends["default"] = before
        layer.close_from_thread()


def _own_prefix() -> str:
    # Containers that share a server have equal process ids; and forked processes equal digits.
    return f"test{_digits}x{os.getpid()}x{next(_numbers)}"


@pytest.fixture
def asyncq_layer() -> Iterator[AsyncQueueChannelLayer]:
    """A layer of this test's own in this process, `memory://`: no server, the same rules."""
    with _installed("memory://", _own_prefix()) as layer:
        yield layer


@pytest.fixture(scope="session")
def asyncq_redis_server() -> Iterator[EmbeddedServer]:
    """The server of `asyncq_redis_layer`: that of REDIS_URL, else one that is started for the whole run."""
    from .testing import EmbeddedServer

    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def asyncq_redis_layer(asyncq_redis_server: EmbeddedServer) -> Iterator[AsyncQueueChannelLayer]:
    """A layer of this test's own on a real server, with a prefix nobody else has."""
    with _installed(asyncq_redis_server.url, _own_prefix()) as layer:
        yield layer


@pytest.fixture
def asyncq_listen() -> Iterator[Callable[..., Listener]]:
    """
    A function: `asyncq_listen("room.7")` joins a group, `asyncq_listen(channel="jobs")` reads a normal channel.

    Both return a `Listener` that hears what is sent from then on. They listen to CHANNEL_LAYERS["default"], which
    is the layer of the other fixtures where a test uses one, or to `layer`, another alias.
    """
    listeners: list[Listener] = []

    def listen(group: str | None = None, *, channel: str | None = None, layer: str = "default") -> Listener:
        from . import get_layer

        if (group is None) == (channel is None):
            raise TypeError("asyncq_listen() takes a group, or channel=")
        listener = Listener(get_layer(layer), group or channel or "", group is not None)
        # Blocks, on a running loop too: the relay needs no other loop for this.
        _relay_wait(listener._start)
        listeners.append(listener)
        return listener

    yield listen
    for listener in listeners:
        if not listener._layer.is_closed:
            _relay_wait(listener._stop)


def _relay_wait(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    from .process.relay import relay

    __tracebackhide__ = True
    return relay().wait(make)
