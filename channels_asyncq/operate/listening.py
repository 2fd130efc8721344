"""The messages of groups as they come, with the time and the sender of each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from ..clock import time_ns
from ..layer import AsyncQueueChannelLayer
from ..messages.envelopes import EXTERNAL, NOTICE, Envelope

__all__ = ["Heard", "listen"]

# The type of the notices of losses, unless the site has one.
_LOST = "asyncq.lost"


@dataclass(frozen=True, slots=True)
class Heard:
    """
    One message to a group. A notice of a loss has no group, and the reason in its message.

    `at` is when the server logged it, in seconds since 1970; without a log, when it arrived. `session` is that of
    the sender, and empty for another program.
    """

    group: str
    at: float
    session: str
    message: dict[str, Any]


async def listen(layer: AsyncQueueChannelLayer, groups: Sequence[str]) -> AsyncGenerator[Heard]:
    """
    Join groups, and yield what is sent to them from now on. Closing the generator leaves them.

    Raises:
        ImproperlyConfigured: the processes of the site have settings that are not ours, such as encryption keys.
        LayerUnavailable: the server cannot be reached.
    """
    channel = await layer.open_channel("asyncq-listen")
    channel.tell_losses(_LOST)
    try:
        for group in groups:
            await layer.group_add(group, channel.name)
        while True:
            await channel.wait()
            envelope = channel.take_envelope()
            if envelope is not None:
                yield _heard(envelope, channel.message_of(envelope))
    finally:
        channel.close()


def _heard(envelope: Envelope, message: dict[str, Any]) -> Heard:
    at = (envelope.position >> 64) / 1000 if envelope.position else time_ns() / 1e9
    if envelope.flags & NOTICE:
        return Heard("", at, "", message)
    session = "" if envelope.flags & EXTERNAL else envelope.session_id.hex()
    return Heard(envelope.target, at, session, message)
