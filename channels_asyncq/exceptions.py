"""
The errors of the layer, in one tree under `ChannelLayerError`.

`ChannelFull` and `MessageTooLarge` are those of `channels.exceptions`: code that catches them was written for
Channels.
"""

from __future__ import annotations

from channels.exceptions import ChannelFull

__all__ = [
    "ChannelClosed",
    "ChannelLayerError",
    "DeliveryUnknown",
    "LayerClosed",
    "LayerUnavailable",
    "MessagesLost",
    "StillFull",
    "TooManyGroups",
]


class ChannelLayerError(Exception):
    """The base of the errors that this layer defines."""


class ChannelClosed(ChannelLayerError):
    """
    The channel was closed: nothing can be sent to it or received from it any more.

    Attributes:
        channel: the full name of the channel.
    """

    def __init__(self, channel: str, message: str | None = None) -> None:
        # All arguments are passed to Exception, so that the error can be pickled and copied.
        super().__init__(channel, message)
        self.channel = channel
        self._message = message or f"Channel {channel!r} is closed."

    def __str__(self) -> str:
        return self._message


class LayerClosed(ChannelClosed):
    """
    The whole layer was closed with `close()`, and with it every channel.

    Attributes:
        channel: the name in the call, `""` where the call names no channel.
    """

    def __init__(self, channel: str = "", message: str | None = None) -> None:
        where = f"; channel {channel!r} cannot be used any more" if channel else ""
        super().__init__(channel, message or f"The channel layer is closed{where}.")


class LayerUnavailable(ChannelLayerError, ConnectionError):
    """
    The server cannot be reached, or refuses to serve now. Also a builtin `ConnectionError`.

    Attributes:
        address: where the server was expected, without credentials.
        reason: what went wrong; the server's own words if it answered.
    """

    def __init__(self, address: str, reason: str, is_refusal: bool = False) -> None:
        # One argument: two would become errno and strerror of the OSError.
        super().__init__(
            f"{address} refused: {reason}" if is_refusal else f"No connection to {address}: {reason}"
        )
        self.address = address
        self.reason = reason
        self._is_refusal = is_refusal

    def __reduce__(self) -> tuple[type[LayerUnavailable], tuple[str, str, bool]]:
        return type(self), (self.address, self.reason, self._is_refusal)


class DeliveryUnknown(ChannelLayerError):
    """The message was written to the server, and no answer came: it may or may not have been delivered."""


class MessagesLost(ChannelLayerError):
    """
    Messages to these groups were missed, and cannot be had any more. Load the data anew, and go on.

    Attributes:
        reason: as in a loss notice, or the reason for which a position was refused.
        groups: the names of the groups.
    """

    def __init__(self, reason: str, groups: tuple[str, ...]) -> None:
        super().__init__(reason, groups)
        self.reason = reason
        self.groups = groups

    def __str__(self) -> str:
        return f"messages to {', '.join(self.groups)} were missed: {self.reason}"


class StillFull(ChannelFull, TimeoutError):
    """`send_wait()` waited for its timeout and found no place. A `ChannelFull`, and a builtin `TimeoutError`."""


class TooManyGroups(ChannelLayerError):
    """
    The channel of a consumer is in as many groups as `max_groups` of the consumer allows. It has joined none.

    Attributes:
        channel: the full name of the channel.
        most: how many groups it may be in.
        setting: what sets the limit, such as "max_groups of RoomConsumer".
    """

    def __init__(self, channel: str, most: int, setting: str) -> None:
        super().__init__(channel, most, setting)
        self.channel = channel
        self.most = most
        self.setting = setting

    def __str__(self) -> str:
        return (
            f"channel {self.channel!r} cannot join another group: {self.setting} allows {self.most}. Leave some "
            "groups first, have one group for what many have in common, or set a higher max_groups"
        )
