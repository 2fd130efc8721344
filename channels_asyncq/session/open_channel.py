"""A channel that is read without a call of `receive()`."""

from __future__ import annotations

import asyncio
from typing import Any

from ..local.buffers import ChannelBuffer
from ..messages.envelopes import Envelope
from .decoding import Decoder
from .session import Session


class OpenChannel:
    """
    A channel for one reader that waits for other things as well: it takes a message, or leaves a future.

    It belongs to the loop on which `open_channel()` made it, and stays until it is closed, however rarely it is
    read.
    """

    __slots__ = ("_buffer", "_decoder", "_layer", "_session", "name")

    def __init__(self, layer: object, session: Session, decoder: Decoder, buffer: ChannelBuffer) -> None:
        self._layer = layer  # held: sessions end with it
        self._session = session
        self._decoder = decoder
        self._buffer = buffer
        self.name = buffer.channel
        buffer.is_kept = True

    def empty(self) -> bool:
        """Whether nothing waits; False may still mean that the waiting messages have expired."""
        return self._buffer.empty()

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Have a future completed when a message comes or the channel closes. Look with `take()` first."""
        if self._session.connections.is_resting:
            self._session.connections.wake()
        self._buffer.wake(waiter)

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        """Take a future back that was given to `wake()`."""
        self._buffer.stop_waking(waiter)

    def take(self) -> dict[str, Any] | None:
        """
        Return the next message, a dict of the caller's own, or None if none waits.

        Raises:
            ChannelClosed: the channel or the layer is closed, and nothing is left in it.
        """
        envelope = self._buffer.take()
        if envelope is not None:
            if envelope.is_flat and envelope.message is not None:
                return envelope.message.copy()
            return self._decoder.message_of(envelope)
        if self._buffer.closed is not None:
            raise self._buffer.closed(self.name)
        return None

    def take_envelope(self) -> Envelope | None:
        """Return the next message as `take()` does, in its envelope."""
        envelope = self._buffer.take()
        if envelope is None and self._buffer.closed is not None:
            raise self._buffer.closed(self.name)
        return envelope

    def message_of(self, envelope: Envelope) -> dict[str, Any]:
        """Return the message in an envelope of `take_envelope()`, a dict of the caller's own."""
        return self._decoder.message_of(envelope)

    async def wait(self) -> None:
        """Return when a message has come or the channel is closed. Cancelling is safe."""
        if not self._buffer.empty() or self._buffer.closed is not None:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wake(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._buffer.stop_waking(waiter)
            raise

    def tell_losses(self, message_type: str) -> None:
        """Put loss notices of this type into the channel, if the setting `on_loss` names none."""
        self._buffer.tell_losses(message_type)

    def read_by(self, reader: type) -> None:
        """Say which class reads it, for those who look into the process."""
        self._buffer.reader = reader

    def obey_close(self) -> None:
        """Have the channel closed if a `websocket.close` message finds no place: its reader would end at it."""
        self._buffer.close_codec = self._decoder.codec

    def close(self) -> None:
        """Close the channel; messages that still wait are dropped and counted. Closing twice is fine."""
        if not self._session.lifetime.is_closed:
            self._session.hub.channels.discard(self._buffer)
