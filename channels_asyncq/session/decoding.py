"""From an envelope to a message that belongs to its receiver alone."""

from __future__ import annotations

from typing import Any

from ..messages.codecs import Codec
from ..messages.envelopes import EXTERNAL, Envelope
from ..messages.external import ExternalMessage

_UNCHANGEABLE = frozenset({str, bytes, int, float, bool, type(None)})


class Decoder:
    """Gives each receiver of an envelope a dict of its own."""

    __slots__ = ("codec",)

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def message_of(self, envelope: Envelope) -> dict[str, Any]:
        """
        Return the message in an envelope, as a dict that no other receiver has.

        The first receiver gets the dict that was decoded on arrival. The others decode the bytes again, or copy
        the dict where that is as good.
        """
        message = envelope.message
        if message is None:
            message = self.codec.decode_own(envelope.payload)
            if envelope.flags & EXTERNAL:
                message = ExternalMessage(message)
        elif envelope.is_flat:
            return message.copy()
        if envelope.is_flat is None and "!" not in envelope.target:
            # A group's message. If no value can be changed, members cannot tell a copy from a decoded dict.
            envelope.is_flat = _UNCHANGEABLE.issuperset(map(type, message.values()))
            if envelope.is_flat:
                envelope.message = message
                return message.copy()
        envelope.message = None
        return message
