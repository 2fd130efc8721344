"""From the bytes of a push, an entry of a log or an item of a queue to envelopes: decrypted and decoded."""

from __future__ import annotations

from typing import Protocol

from ...clock import monotonic
from ...messages.codecs import BadPayload, Codec, decode_json
from ...messages.envelopes import EXTERNAL, HEADER_ONLY, Envelope
from ...messages.external import ExternalMessage
from ...messages.framing import BadEnvelope, Expired, Formats
from ...messages.sealing import ANY_AGE, CLOCK_ALLOWANCE, LOG, QUEUE, TOPIC, Seal, place
from ...names import Topics
from ...settings.keys import Keeping
from ...settings.options import Options
from ..base import Receiver


class LateArrivals(Protocol):
    """Notes envelopes that arrived after their expiry. Implemented by `bus.redis.recovery.LogReader`."""

    def note_expired(
        self, partition: int, topic: bytes, envelopes: list[Envelope], *, is_logged: bool
    ) -> None:
        """Note that these envelopes arrived on a topic too late to be delivered."""


class Opener:
    """Decrypts and decodes the envelopes that arrive. It holds no state of a connection or a partition."""

    def __init__(
        self,
        options: Options,
        topics: Topics,
        receiver: Receiver,
        codec: Codec,
        formats: Formats,
        seal: Seal | None,
    ) -> None:
        self._options = options
        self._topics = topics
        self._receiver = receiver
        self._codec = codec
        self._unpack = formats.unpack
        self._seal = seal
        #: Counts what was dropped because it could not be read.
        self.dropped = 0

    def open_all(
        self,
        partition: int,
        topic: bytes,
        data: bytes,
        late: LateArrivals,
        *,
        is_logged: bool,
        position: int = 0,
    ) -> list[Envelope]:
        """
        Return the envelopes in the bytes that arrived on a topic, or are in its log.

        Bytes that are not an envelope, or were sealed with an unknown key, are left out and reported to the
        receiver.

        Args:
            position: the entry of the log with the last batch in the bytes. The entries of the others have the
                ids before it.
        """
        try:
            if data.startswith(b"{"):
                return [self._open_external(partition, topic, data)]
            sealed_for = b"" if self._seal is None else place(LOG if is_logged else TOPIC, topic)
            envelopes = self._unpack[data[:1]](data, self._seal, sealed_for)
        except (BadEnvelope, BadPayload) as exc:
            self._drop(topic, exc)
            if isinstance(exc, Expired):
                expired = self._unpack[data[:1]](data, self._seal, sealed_for, max_age=ANY_AGE)
                late.note_expired(partition, topic, expired, is_logged=is_logged)
            return []
        expires_at = monotonic() + self._options.expiry
        readable = []
        if position:
            # From the last message on; each that is the last of its batch is in the entry before.
            position += 1
            for envelope in reversed(envelopes):
                if not envelope.nth:
                    position -= 1
                envelope.position = position
        for envelope in envelopes:
            envelope.expires_at = expires_at
            try:
                self._open(envelope)
            except (BadEnvelope, BadPayload) as exc:
                self._drop(topic, exc)
            else:
                readable.append(envelope)
        return readable

    def _drop(self, topic: bytes, exc: BadEnvelope | BadPayload) -> None:
        self.dropped += 1
        self._receiver.on_unreadable(topic, str(exc))

    def open_entry(
        self, topic: bytes, data: bytes, position: int, *, keeping: Keeping | None = None
    ) -> list[Envelope]:
        """
        Return the envelopes in an entry of a log, or with `keeping` of a history, for a channel that comes back.

        The limit of their age is that of the log, or of what keeps longer.

        Raises:
            BadEnvelope, BadPayload: one of them cannot be read.
        """
        recovery, options = self._options.recovery, self._options
        kept = recovery.seconds if recovery is not None else 0.0
        if keeping is not None:
            kept = max(kept, keeping.seconds)
        max_age = 1000 * (kept + options.expiry + options.send_timeout + CLOCK_ALLOWANCE)
        sealed_for = b"" if self._seal is None else place(LOG, topic)
        envelopes = self._unpack[data[:1]](data, self._seal, sealed_for, max_age=max_age)
        for envelope in envelopes:
            envelope.position = position
            self._open(envelope)
        return envelopes

    def unpack_headers(self, topic: bytes, data: bytes, *, max_age: float | None = None) -> list[Envelope]:
        """
        Return the envelopes in an entry of a log. Only their senders and numbers are meaningful.

        Raises:
            BadEnvelope: there are none, or they were sealed with an unknown key.
        """
        return self._unpack[data[:1]](data, self._seal, place(LOG, topic), max_age=max_age)

    def open_item(self, queue: bytes, data: bytes) -> Envelope:
        """
        Return the one envelope in the bytes of an item of this list.

        Raises:
            BadEnvelope, BadPayload: the bytes are not an envelope, or were sealed with an unknown key.
        """
        envelope, *others = self._unpack[data[:1]](data, self._seal, place(QUEUE, queue))
        if others:
            raise BadEnvelope("several messages in one item of a normal channel")
        self._open(envelope)
        envelope.expires_at = monotonic() + self._options.expiry
        return envelope

    def _open(self, envelope: Envelope) -> None:
        if envelope.flags & HEADER_ONLY:
            raise BadEnvelope("the header of a message whose body no log holds")
        envelope.message = self._codec.decode(envelope.payload)

    def _open_external(self, partition: int, topic: bytes, data: bytes) -> Envelope:
        if not self._topics.is_group(partition, topic):
            raise BadEnvelope("JSON from outside is read on the topics of groups only")
        if self._seal is not None:
            raise BadEnvelope("JSON from outside is refused: symmetric_encryption_keys are set")
        options = self._options
        if len(data) > options.max_message_size:
            raise BadEnvelope(f"JSON of {len(data)} bytes; max_message_size is {options.max_message_size}")
        if options.external is None:
            raise BadEnvelope("JSON from outside is refused: `external` is None")
        message, group = ExternalMessage(decode_json(data)), self._topics.group_named(topic)
        if (refusal := options.external.refusal(message, group, options.notices)) is not None:
            raise BadEnvelope(refusal)
        try:
            payload = self._codec.encode(message)
        except TypeError as exc:
            raise BadEnvelope(f"JSON that cannot travel: {exc}") from None
        self._receiver.on_external()
        envelope = Envelope(payload, group, flags=EXTERNAL, expires_at=monotonic() + options.expiry)
        envelope.message = message
        return envelope
