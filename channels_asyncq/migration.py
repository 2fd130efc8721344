"""A layer over two others, for a site that changes its layer process by process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .exceptions import ChannelLayerError
from .tasks import all_of

__all__ = ["Both"]

Side = Literal["old", "new"]
SIDES: tuple[Side, Side] = ("old", "new")
# In the names of specific channels, which either layer makes with a prefix of the caller's choice.
_VIA = re.compile(r"\.via-(old|new)")


class Both(BaseChannelLayer):
    """
    Two channel layers at once: it joins groups in both, receives from both, and sends to one of them.

    For the time in which processes with the one and processes with the other are there: see the page about
    migrating. It has what the specification has, and nothing beyond it. One object serves any number of event
    loops, as far as the two layers do.

    A specific channel has a channel in each layer. Its name is that of the layer to which this process sends, and
    says which one that is, so processes with that layer alone can send to it as well.

    Capacities and expiries are those of the two layers, each for what it carries.

    Args:
        old: the `BACKEND` and `CONFIG` of the one layer, as in CHANNEL_LAYERS.
        new: those of the other one.
        send: which of them messages are sent to, "old" or "new".

    Raises:
        ImproperlyConfigured: an argument is wrong. Or what the layers raise.
    """

    extensions = ["groups", "flush"]  # noqa: RUF012  (the specification asks for a list)

    def __init__(self, *, old: Mapping[str, Any], new: Mapping[str, Any], send: str) -> None:
        if send not in SIDES:
            raise ImproperlyConfigured(f'send must be "old" or "new", not {send!r}')
        self.layers: dict[Side, BaseChannelLayer] = {"old": _made("old", old), "new": _made("new", new)}
        #: The layer that messages are sent to, and its name.
        self.side: Side = "old" if send == "old" else "new"
        self._sender = self.layers[self.side]
        super().__init__()
        self._channels: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Channel]] = (
            WeakKeyDictionary()
        )

    def _channel(self, name: str) -> _Channel:
        """Return a channel of this loop, or one that has this name in both layers."""
        channels = self._channels.setdefault(asyncio.get_running_loop(), {})
        channel = channels.get(name)
        if channel is None:
            if self._is_specific(name):
                raise ChannelLayerError(
                    f"{name!r} is a channel of another process or event loop, which is known in one of the two "
                    "layers only. Join groups and receive where new_channel() was called, while the site migrates"
                )
            names = dict.fromkeys(self.layers.values(), name)
            channel = channels[name] = _Channel(names, is_specific=False)
        return channel

    @staticmethod
    def _is_specific(name: str) -> bool:
        return "!" in name or _VIA.search(name) is not None

    def _layer_of(self, name: str) -> BaseChannelLayer:
        """Return the layer through which a channel is reached."""
        found = _VIA.search(name)
        # Other names are of processes with one layer, that to which this process sends.
        return self.layers[found[1]] if found else self._sender  # type: ignore[index]

    # The specification

    async def new_channel(self, prefix: str = "specific.") -> str:
        """
        Return the name of a new channel, which has a channel in each layer.

        It ends with the task that called this, as that of a consumer.
        """
        head = prefix.rstrip(".")
        names = await all_of(
            self.layers[side].new_channel(f"{head}.via-{side}")  # type: ignore[call-arg]
            for side in SIDES
        )
        channel = _Channel(dict(zip(self.layers.values(), names, strict=True)), is_specific=True)
        name = channel.names[self._sender]
        channels = self._channels.setdefault(asyncio.get_running_loop(), {})
        channels[name] = channel

        channel.end_with_task(lambda: channels.pop(name, None))
        return name

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to a specific channel through the layer in its name, to others through that of `send`."""
        await self._layer_of(channel).send(channel, message)

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Return the next message of a channel, from whichever layer has one. Cancelling loses no message.

        Raises:
            ChannelLayerError: it is a specific channel of another process or loop.
        """
        return await self._channel(channel).receive()

    async def group_add(self, group: str, channel: str) -> None:
        """
        Make a channel a member of a group in both layers. If one of them fails, it is a member in neither.

        Raises:
            ChannelLayerError: it is a specific channel of another process or loop.
        """
        names = self._channel(channel).names
        try:
            await all_of(layer.group_add(group, name) for layer, name in names.items())
        except BaseException:
            leaving = (layer.group_discard(group, name) for layer, name in names.items())
            await asyncio.gather(*leaving, return_exceptions=True)
            raise

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership in both layers."""
        found = self._channels.get(asyncio.get_running_loop(), {}).get(channel)
        if found is None and self._is_specific(channel):
            await self._layer_of(channel).group_discard(group, channel)
            return
        names = self._channel(channel).names
        await all_of(layer.group_discard(group, name) for layer, name in names.items())

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to all members of a group, through the layer of `send`: all of them are in it."""
        await self._sender.group_send(group, message)

    async def flush(self) -> None:
        """Empty both layers."""
        await all_of(layer.flush() for layer in self.layers.values())


class _Channel:
    """
    One channel on one event loop, under its name in each layer.

    Both layers are waited for at once. The wait for one goes on while a message of the other is handled: some
    layers take a cancellation for the end of the channel, and channels_redis loses a job by it.
    """

    def __init__(self, names: Mapping[BaseChannelLayer, str], *, is_specific: bool) -> None:
        self.names = names
        self._is_specific = is_specific
        self._waits: dict[BaseChannelLayer, asyncio.Task[dict[str, Any]]] = {}
        self._receivers = 0
        self._resting: asyncio.Task[None] | None = None
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()

    async def receive(self) -> dict[str, Any]:
        while self._resting is not None:
            await asyncio.shield(self._resting)
        if not self._is_specific:
            self.end_with_task()
        self._receivers += 1
        try:
            while True:
                for layer, name in self.names.items():
                    if layer not in self._waits:
                        self._waits[layer] = asyncio.create_task(layer.receive(name))
                await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
                for layer, wait in self._waits.items():
                    if wait.done():
                        del self._waits[layer]
                        return wait.result()
        except asyncio.CancelledError:
            if self._receivers == 1 and self._waits:
                await asyncio.shield(self._begin_rest())
            raise
        finally:
            self._receivers -= 1

    def end_with_task(self, forget: Callable[[], object] | None = None) -> None:
        """Stop waiting when the running task has ended, unless another one receives. Then call `forget`."""
        task = asyncio.current_task()
        assert task is not None
        if task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(lambda _: self._task_ended(forget))

    def _task_ended(self, forget: Callable[[], object] | None) -> None:
        if not self._receivers and self._waits:
            self._begin_rest()
        if forget is not None:
            forget()

    def _begin_rest(self) -> asyncio.Task[None]:
        if self._resting is None:
            self._resting = asyncio.create_task(self._rest())
        return self._resting

    async def _rest(self) -> None:
        """
        Cancel what waits. A message that has come all the same stays for the next `receive()`.

        One of a normal channel goes back, if that is possible: another process may be the next that receives.
        """
        try:
            for wait in self._waits.values():
                wait.cancel()
            await asyncio.wait(self._waits.values())
            for layer, wait in list(self._waits.items()):
                has_message = not wait.cancelled() and wait.exception() is None
                if has_message:
                    if self._is_specific:
                        continue
                    try:
                        await layer.send(self.names[layer], wait.result())
                    except Exception:
                        continue  # it stays
                del self._waits[layer]
        finally:
            self._resting = None


def _made(side: Side, config: Mapping[str, Any]) -> BaseChannelLayer:
    """Make a layer as Channels does."""
    if not isinstance(config, Mapping) or "BACKEND" not in config or set(config) - {"BACKEND", "CONFIG"}:
        raise ImproperlyConfigured(
            f"{side} must be a dict with BACKEND and CONFIG, as those in CHANNEL_LAYERS, not {config!r}"
        )
    try:
        backend = import_string(config["BACKEND"])
    except ImportError as exc:
        raise ImproperlyConfigured(f"{side}: cannot import BACKEND {config['BACKEND']!r}: {exc}") from exc
    layer: BaseChannelLayer = backend(**config.get("CONFIG", {}))
    if "groups" not in getattr(layer, "extensions", ()):
        raise ImproperlyConfigured(f"{side}: {config['BACKEND']} has no groups")
    return layer
