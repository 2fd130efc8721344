"""The record in which a message travels inside the process."""

from __future__ import annotations

from typing import Any

from ..names import SESSION_ID_BYTES

# The flags of an envelope. On the wire they are a byte of the batch's header.
ENCRYPTED = 1
CONTROL = 2
# A loss notice; never on the wire.
NOTICE = 4
# JSON from another program; never on the wire.
EXTERNAL = 8
# The header of a message that is too large for the log; only in logs.
HEADER_ONLY = 16
# Taken from a normal channel; never on the wire.
FROM_QUEUE = 32


class Envelope:
    """
    One message under way or waiting: the encoded message, its target and its sender.

    The same object waits in the buffers of all members of a group in one event loop: it does not change there.
    `expires_at` is a time of `clock.monotonic()`; `excluded` holds full channel names. `position` is the entry of
    the log that has the message, 0 for none, and `nth` its place among the messages of the entry: from 1, and 0
    for the last one. `message` is the decoded payload: the check at arrival has decoded it, or a receiver.
    `Decoder.message_of()` gives this dict to the first receiver, and to each other one a dict of its own.
    """

    __slots__ = (
        "excluded",
        "expires_at",
        "flags",
        "holders",
        "is_flat",
        "message",
        "nth",
        "payload",
        "position",
        "seq",
        "session_id",
        "target",
    )

    def __init__(
        self,
        payload: bytes,
        target: str,
        session_id: bytes = bytes(SESSION_ID_BYTES),
        seq: int = 0,
        flags: int = 0,
        excluded: tuple[str, ...] = (),
        expires_at: float = 0.0,
    ) -> None:
        self.payload = payload
        self.target = target
        self.session_id = session_id
        self.seq = seq
        self.flags = flags
        self.excluded = excluded
        self.expires_at = expires_at
        self.position = self.nth = 0
        self.message: dict[str, Any] | None = None
        # Whether a copy of `message` equals decoding again; None: not known yet.
        self.is_flat: bool | None = None
        self.holders = 0  # the buffers it waits in; counted only where `max_buffered_bytes` is set

    def copy(self) -> Envelope:
        """
        Return an envelope of the same message for another event loop.

        Each loop counts its own buffers, and decodes the message for its own receivers.
        """
        envelope = Envelope(
            self.payload, self.target, self.session_id, self.seq, self.flags, self.excluded, self.expires_at
        )
        envelope.position, envelope.nth = self.position, self.nth
        return envelope

    def __repr__(self) -> str:
        return f"<Envelope {self.session_id.hex()}/{self.seq} to {self.target!r}, {len(self.payload)} bytes>"
