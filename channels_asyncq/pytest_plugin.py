"""
Fixtures for tests of code that sends messages; pytest finds them by itself.

`asyncq_layer` and `asyncq_redis_layer` give a test its own layer in place of CHANNEL_LAYERS["default"];
`asyncq_listen("room.7")` returns the messages of a group or a channel. They work in sync and async tests. Only
this module is imported before a test uses one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from .layer import AsyncQueueChannelLayer
    from .testing import EmbeddedServer

__all__ = ["Listener", "asyncq_layer", "asyncq_listen", "asyncq_redis_layer", "asyncq_redis_server"]

T = TypeVar("T")

_numbers = itertools.count(1)
_digits = os.urandom(4).hex()
# A marker has this much time to arrive: far longer than it ever takes.
_MARKER_SECONDS = 20.0
_MARKER = "channels_asyncq.marker"
# Stands for a message when not even the marker came.
_UNHEARD: dict[str, Any] = {}


class Listener:
    """
    A member of a group, or the reader of a normal channel, for as long as the test lasts.

    It lives on the relay's thread, so it works alike in a sync test and in an async test on any loop. Await the
    methods that begin with `a`; the others block.
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
        return self._expected(_block(self._next(timeout)), timeout)

    async def aget(self, timeout: float = 1.0) -> dict[str, Any]:  # noqa: ASYNC109  (as get())
        """Return the next message; fail the test if none comes within `timeout` seconds."""
        __tracebackhide__ = True
        return self._expected(await _elsewhere(self._next(timeout)), timeout)

    def assert_nothing(self, within: float = 0.0) -> None:
        """
        Fail the test if a message came that `get()` has not returned.

        Every message that was sent before this call is seen, without waiting for time to pass. For messages that
        may be sent later, it waits `within` seconds.
        """
        __tracebackhide__ = True
        self._refuse(_block(self._unread(within)))

    async def aassert_nothing(self, within: float = 0.0) -> None:
        """Fail the test if a message came that `aget()` has not returned; `within` as in `assert_nothing()`."""
        __tracebackhide__ = True
        self._refuse(await _elsewhere(self._unread(within)))

    # Called in the test's own frames: pytest then shows the line of the test, and this text.

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

    # On the relay's loop

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
                    pass  # the marker of an assert_nothing() that failed
                return message
        except TimeoutError:
            return None

    async def _unread(self, within: float) -> dict[str, Any] | None:
        """Return a message that has come, or comes within that time; None if there is none."""
        from channels.exceptions import ChannelFull

        if within and (message := await self._next(within)) is not None:
            return message
        # The marker takes the same path as messages: those that were sent before it arrive before it.
        marker = {"type": _MARKER, "number": next(_numbers)}
        try:
            if self._is_group:
                await self._layer.group_send(self._markers, marker)
            else:
                await self._layer.send(self._channel, marker)
        except ChannelFull:
            pass  # full of messages, which are found below
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


def _block(work: Coroutine[Any, Any, T]) -> T:
    __tracebackhide__ = True
    if _has_running_loop():
        work.close()
        raise RuntimeError(
            "an event loop runs here: await aget() and aassert_nothing(), which do not block it"
        )
    # Outside of an `except` block: pytest would show the handled error as well.
    return _relay_wait(work)


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _elsewhere(work: Coroutine[Any, Any, T]) -> T:
    from .process.relay import relay

    __tracebackhide__ = True
    return await relay().run(work)


@contextmanager
def _installed(url: str, prefix: str) -> Generator[AsyncQueueChannelLayer]:
    """Yield a layer that is CHANNEL_LAYERS["default"] until the end, and then close it on every loop."""
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
    # Containers that share a server may have equal process ids; forked processes have equal digits.
    return f"test{_digits}x{os.getpid()}x{next(_numbers)}"


@pytest.fixture
def asyncq_layer() -> Iterator[AsyncQueueChannelLayer]:
    """A layer for this test alone, `memory://`: no server, the same rules."""
    with _installed("memory://", _own_prefix()) as layer:
        yield layer


@pytest.fixture(scope="session")
def asyncq_redis_server() -> Iterator[EmbeddedServer]:
    """The server of `asyncq_redis_layer`: the one of REDIS_URL, else one that is started for the whole run."""
    from .testing import EmbeddedServer

    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def asyncq_redis_layer(asyncq_redis_server: EmbeddedServer) -> Iterator[AsyncQueueChannelLayer]:
    """A layer for this test alone on a real server, with a unique prefix."""
    with _installed(asyncq_redis_server.url, _own_prefix()) as layer:
        yield layer


@pytest.fixture
def asyncq_listen() -> Iterator[Callable[..., Listener]]:
    """
    A function: `asyncq_listen("room.7")` joins a group, `asyncq_listen(channel="jobs")` reads a normal channel.

    Both return a `Listener`, which gets the messages that are sent from then on. It listens to
    CHANNEL_LAYERS["default"], which is the layer of the other fixtures if the test uses one, or to another alias,
    `layer`.
    """
    listeners: list[Listener] = []

    def listen(group: str | None = None, *, channel: str | None = None, layer: str = "default") -> Listener:
        from . import get_layer

        if (group is None) == (channel is None):
            raise TypeError("asyncq_listen() takes a group, or channel=")
        listener = Listener(get_layer(layer), group or channel or "", group is not None)
        # This blocks a running loop too, and may: the relay needs no other loop for it.
        _relay_wait(listener._start())
        listeners.append(listener)
        return listener

    yield listen
    for listener in listeners:
        if not listener._layer.is_closed:
            _relay_wait(listener._stop())


def _relay_wait(work: Coroutine[Any, Any, T]) -> T:
    from .process.relay import relay

    __tracebackhide__ = True
    return relay().wait(work)
