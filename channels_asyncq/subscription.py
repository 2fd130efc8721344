"""What a channel gets that comes back, and groups as an async iterator."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .exceptions import ChannelClosed, MessagesLost
from .session.following import Follower, Reset

if TYPE_CHECKING:
    from .layer import AsyncQueueChannelLayer


@dataclass(frozen=True, slots=True)
class Replay:
    """
    The result of `group_resume()`.

    With `recovered`, `messages` has what was sent to the group since the position, in order, and the channel gets
    what follows: together they are complete. Without, it is empty: load the data anew. `reason` tells why, "" for
    none: the page on resuming has the reasons. `position` is behind all of that, and has the channel's name for
    `exclude`.
    """

    recovered: bool
    reason: str
    messages: list[dict[str, Any]]
    position: str


class Subscription:
    """
    The messages of some groups, for one reader on one event loop: made by `AsyncQueueChannelLayer.subscribe()`.

        async with layer.subscribe("orders", since=position) as subscription:
            async for message in subscription:
                ...

    Entering it joins the groups and sets `recovered` and `reason`, as in `Replay`. Leaving it leaves no channel
    behind. Iterating ends when the layer is closed, and may be cancelled: no message is lost.

    Raises:
        MessagesLost: while iterating: messages were missed that no log has. Iterating may go on after it.
        LayerUnavailable: when entering, or while iterating after a loss: the server cannot be reached.
    """

    def __init__(self, layer: AsyncQueueChannelLayer, groups: tuple[str, ...], since: str | None) -> None:
        self._layer = layer
        self.groups = groups
        self._since = since
        self._follower: Follower | None = None

    async def __aenter__(self) -> Subscription:
        if self._follower is not None:
            raise RuntimeError("a subscription is entered once; call subscribe() again")
        self._follower = follower = await self._layer.open_follower(self.groups)
        follower.channel.read_by(type(self))
        try:
            await follower.begin(self._since)
        except BaseException:
            follower.channel.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered().channel.close()

    def _entered(self) -> Follower:
        if self._follower is None:
            raise RuntimeError("use `async with layer.subscribe(...) as subscription`")
        return self._follower

    @property
    def channel(self) -> str:
        """The name of its channel: a sender that lists it in `exclude` does not send to this subscription."""
        return self._entered().channel.name

    @property
    def recovered(self) -> bool:
        """Whether everything since the position comes; True without a position."""
        return self._entered().recovered

    @property
    def reason(self) -> str:
        """Why not, "" for none."""
        return self._entered().reason

    @property
    def position(self) -> str:
        """
        The position behind the last message that was yielded, with the name of the channel for `exclude`.

        If everything was yielded, it is the present one, so that it does not grow old in quiet groups.
        """
        follower = self._entered()
        follower.catch_up()
        return follower.position_with_channel

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> dict[str, Any]:
        follower = self._entered()
        while True:
            try:
                item = await follower.next()
            except ChannelClosed:
                raise StopAsyncIteration from None
            if isinstance(item, Reset):
                raise MessagesLost(item.reason, item.groups)
            # The layer's own notices (`on_disconnect`) come to the channel, and not to a group.
            if item.target in follower.groups:
                return follower.message_of(item)
