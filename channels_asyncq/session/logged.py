"""The messages of a group or channel in its log, for people who look for one."""

from __future__ import annotations

from dataclasses import dataclass

from ..bus.base import Log
from ..messages.codecs import Codec
from ..messages.envelopes import HEADER_ONLY, Envelope
from ..names import Topics, owner_of

_LOW = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """
    A message in a log.

    `id` is that of its entry, with a number behind `/` where others follow in the entry. `at` is the time at
    which the server got it, in s since 1970. `sender` is the session that sent it, and `number` its number there,
    which it shares with messages to other targets. `size` is in bytes, encoded. `size` and `type` are None if the
    log has only its header, or if it cannot be read.
    """

    id: str
    at: float
    sender: str
    number: int
    target: str
    excluded: tuple[str, ...]
    size: int | None
    type: str | None


class LoggedMessages:
    """Looks into the logs for one session."""

    def __init__(self, log: Log, topics: Topics, codec: Codec) -> None:
        self._log = log
        self._topics = topics
        self._codec = codec

    async def latest(self, target: str, limit: int) -> list[LoggedMessage]:
        """Return the last messages to a group or to a specific channel, oldest first."""
        owner = owner_of(target)
        topic = self._topics.group(target).topic if owner is None else self._topics.inbox(owner)
        return [_logged(each, self._codec) for each in await self._log.latest(topic, target, limit)]


def _logged(envelope: Envelope, codec: Codec) -> LoggedMessage:
    position = envelope.position
    entry = f"{position >> 64}-{position & _LOW}"
    has_body = not envelope.flags & HEADER_ONLY
    return LoggedMessage(
        id=f"{entry}/{envelope.nth}" if envelope.nth else entry,
        at=(position >> 64) / 1000,
        sender=envelope.session_id.hex(),
        number=envelope.seq,
        target=envelope.target,
        # The context of a trace is among them, and no channel.
        excluded=tuple(name for name in envelope.excluded if "=" not in name),
        size=len(envelope.payload) if has_body else None,
        type=type_of(envelope.payload, codec) if has_body else None,
    )


def type_of(payload: bytes, codec: Codec) -> str | None:
    """Return the type of an encoded message."""
    kind = codec.decode_own(payload).get("type")
    return None if kind is None else str(kind)
