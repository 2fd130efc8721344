"""Notices to a session's channels: of lost messages, and of an outage of the connections."""

from __future__ import annotations

import logging
from collections.abc import Collection

from ..events import LOSS, record
from ..local.hub import Hub
from ..messages.codecs import Codec
from ..names import Topics, owner_of
from ..settings.options import Options
from .readers import QueueReaders
from .routes import Routes
from .sending import local_envelope

# The event code of each reason, and its explanation.
REASONS = {
    "trimmed": (
        "loss.trimmed",
        "the log does not reach back to it; raise recovery's `seconds` or `messages`",
    ),
    "too_far": (
        "loss.too_far",
        "there was more to read than recovery's `catch_up_messages` or `catch_up_seconds` allow",
    ),
    "expired": ("loss.expired", "that, or a standstill of this process, lasted longer than `expiry`"),
    "too_large": ("loss.too_large", "what is larger than recovery's `message_bytes` is not kept"),
    "server_changed": (
        "loss.server_changed",
        "the server was restarted or replaced, or may not be asked which it is (INFO), and the end of its log "
        "cannot be vouched for",
    ),
    "not_logged": (
        "loss.not_logged",
        "the server refused to write for a while, or another process has no logs (`recovery`), or logged what "
        "this one does not read",
    ),
}


class Notices:
    """Puts notices into the channels concerned, by way of the hub."""

    def __init__(
        self,
        options: Options,
        topics: Topics,
        inbox: bytes,
        codec: Codec,
        hub: Hub,
        routes: Routes,
        readers: QueueReaders,
    ) -> None:
        self._options = options
        self._topics = topics
        self._inbox = inbox
        self._codec = codec
        self._hub = hub
        self._routes = routes
        self._readers = readers

    # Loss notices

    def notify_of_loss(self, reason: str, topics: set[bytes]) -> None:
        """Notify the channels that may have missed messages of these topics, and log their number."""
        self._notify(reason, topics)

    def notify_of_forgotten(self, topics: set[bytes]) -> None:
        """Notify the channels whose topics lost their logs. The bus has logged that, with the likely cause."""
        self._notify("server_forgot", topics)

    def _notify(self, reason: str, topics: set[bytes]) -> None:
        group_named, groups = self._topics.group_named, self._hub.groups.by_topic
        self._hub.notify_loss(
            reason,
            ((topic, group_named(topic)) for topic in topics if topic in groups),
            # Messages to our channels come to the inbox; which channels they were for is unknown.
            everybody=self._inbox in topics,
        )

    def on_notified(self, reason: str, channels: int, groups: int) -> None:
        """
        Log how many channels were notified.

        The bus has logged that the server forgot something. Messages without a place ("overflow") were counted.
        """
        if channels and reason in REASONS:
            code, explanation = REASONS[reason]
            record(
                LOSS,
                logging.WARNING,
                code,
                "%(channels)d channels may have missed messages while the connection was lost: %(reason)s "
                "(%(groups)d groups)",
                channels=channels,
                reason=explanation,
                groups=groups,
            )

    def count_forgotten_queues(self, partitions: Collection[int]) -> int:
        """
        Count the normal channels of these partitions that are used here: the server may have lost their messages.

        How many messages waited in them is unknown.
        """
        channels = self._readers.channels()
        channels.update(channel for channel in self._routes.channels if owner_of(channel) is None)
        count = sum(self._topics.partition(channel) in partitions for channel in channels)
        if count:
            self._hub.counters.dropped["server_forgot"] += count
        return count

    # Outages

    def notify_of_disconnect(self) -> None:
        if self._options.on_disconnect is not None:
            self._broadcast(self._options.on_disconnect)

    def notify_of_reconnect(self) -> None:
        if self._options.on_reconnect is not None:
            self._broadcast(self._options.on_reconnect)

    def _broadcast(self, kind: str) -> None:
        payload = self._codec.encode({"type": kind})
        self._hub.broadcast(local_envelope(payload, "", self._options.expiry))
