"""What a channel missed, and the loss notices that tell its reader."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..messages.envelopes import NOTICE, Envelope
from .counters import Counters


class Loss:
    """
    One reason for which a channel missed messages, until its reader has caught up.

    state   | notice | groups                  | what ends it
    --------|--------|-------------------------|-----------------------------------------------------------
    silent  | None   | None                    | `on_loss` is not set; the reader has caught up
    waiting | there  | of all that was missed  | the reader takes the notice: read
    read    | None   | None                    | a message is missed: missed; the reader has caught up
    missed  | None   | of what was missed then | the reader has caught up, and gets another notice
    """

    __slots__ = ("_is_silent", "groups", "notice")

    def __init__(self, groups: list[str], notice: Envelope | None) -> None:
        self._is_silent = notice is None
        self.notice = notice
        self.groups: dict[str, None] | None = None if notice is None else dict.fromkeys(groups)

    def add(self, groups: list[str]) -> None:
        """Note that a message to these groups was missed too."""
        if self._is_silent:
            return
        if self.groups is None:
            self.groups = {}
        self.groups.update(dict.fromkeys(groups))

    def read(self) -> None:
        """Enter the groups into the notice, which the reader takes now."""
        if self.notice is not None and self.notice.message is not None and self.groups is not None:
            self.notice.message["groups"] = list(self.groups)
        self.notice = self.groups = None


class Losses(dict[str, Loss]):
    """
    The losses of one channel, by reason.

    Args:
        on_loss: the message type of loss notices; None for no notices.
    """

    def __init__(self, on_loss: str | None, counters: Counters) -> None:
        super().__init__()
        self._on_loss = on_loss
        self._counters = counters

    def note(self, reason: str, targets: Iterable[str]) -> Envelope | None:
        """Note that messages to these targets were lost; return the notice that is to be put into the buffer."""
        groups = [target for target in targets if target and "!" not in target]  # the others are channels
        loss = self.get(reason)
        if loss is not None:
            loss.add(groups)
            return None
        self._counters.told[reason] += 1
        notice = None if self._on_loss is None else make_notice(self._on_loss, reason)
        self[reason] = Loss(groups, notice)
        return notice

    @property
    def waiting(self) -> int:
        """How many loss notices wait in the buffer."""
        return sum(loss.notice is not None for loss in self.values())

    def read(self, notice: Envelope) -> None:
        """Note that the reader takes this notice now."""
        for loss in self.values():
            if loss.notice is notice:
                loss.read()

    def end_read_ones(self) -> list[tuple[str, list[str]]]:
        """
        Remove the losses without a waiting notice: the reader has caught up with them.

        Returns reason and groups of those that need another notice.
        """
        ended = [(reason, loss) for reason, loss in self.items() if loss.notice is None]
        for reason, _ in ended:
            del self[reason]
        return [(reason, list(loss.groups)) for reason, loss in ended if loss.groups is not None]


def make_notice(message_type: str, reason: str) -> Envelope:
    """Return a loss notice. Its groups are entered when it is read."""
    notice = Envelope(b"", "", flags=NOTICE, expires_at=math.inf)
    notice.message = {"type": message_type, "reason": reason, "groups": []}
    return notice
