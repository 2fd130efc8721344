"""
Groups that are followed by one reader: what was missed, then what comes, and the position behind each message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bus.base import IN_HISTORIES
from ..messages.envelopes import NOTICE, Envelope
from ..messages.positions import Place, Position, order_of
from .decoding import Decoder
from .resuming import Resumer, Resumption, with_channel

if TYPE_CHECKING:
    from .open_channel import OpenChannel

# Losses of the channel, or of the process: the log has what they have lost.
_IN_THE_LOG = frozenset({"overflow", "expired", "too_far"})
_LOSS_TYPE = "asyncq.loss"


@dataclass(frozen=True, slots=True)
class Reset:
    """Messages of these groups were missed for good, for this reason. The reader loads its data anew."""

    reason: str
    groups: tuple[str, ...]


class Follower:
    """
    One channel that is in groups for one reader, from a position on.

    A reader that is slower than its channel holds misses messages there. They are read from the log then, from
    the place behind the last message that was taken.

    state   | `_missed` | `_loss` | event: next state
    --------|-----------|---------|---------------------------------------------------------------------------
    behind  | some      | None    | the last of them is taken: live
    live    | none      | None    | a loss notice is taken: mending
    mending | none      | there   | the log or a history has what was lost: behind, live; else live, with a
            |           |         | `Reset`
    """

    def __init__(
        self, channel: OpenChannel, resumer: Resumer, decoder: Decoder, groups: Sequence[str]
    ) -> None:
        self.channel = channel
        self._resumer = resumer
        self._decoder = decoder
        self.follow(groups)
        self._places: dict[int, Place] = {}
        self._former: tuple[str, ...] = ()
        self._missed: deque[Envelope] = deque()
        # Behind the last of the missed messages.
        self._places_then: dict[int, Place] = {}
        self._loss: tuple[str, tuple[str, ...]] | None = None
        self.recovered = True
        self.reason = ""
        channel.tell_losses(_LOSS_TYPE)

    def follow(self, groups: Sequence[str]) -> None:
        """Set the groups, before `begin()`."""
        resumer = self._resumer
        self.groups = tuple(dict.fromkeys(groups))
        # The partition of each group that is in a log.
        self._partitions = {
            group: resumer.topic(group).partition for group in self.groups if resumer.log.covers(group)
        }

    async def begin(self, since: str | None) -> None:
        """Join the groups: with what was missed since a position, if there is one. Raises as `resume()`."""
        resumer, name = self._resumer, self.channel.name
        if since is None or not self.groups:  # no groups miss nothing
            self._go_on(await resumer.join(self.groups, name))
        else:
            self._go_on(await resumer.resume(self.groups, name, since))

    def _go_on(self, resumption: Resumption) -> None:
        self.recovered, self.reason = resumption.recovered, resumption.reason
        self._former = resumption.former
        if resumption.envelopes:
            first = resumption.envelopes
            self._missed.extend(first)
            self._places = dict(resumption.since)
            self._places_then = resumption.places
        else:
            self._places = resumption.places

    # Positions

    @property
    def position(self) -> str:
        """The position behind the last message that was taken."""
        return str(Position(self._places))

    @property
    def position_with_channel(self) -> str:
        """The same, with the names of the channels of this reader: messages that exclude them are not for it."""
        return str(Position(self._places, with_channel(self._former, self.channel.name)))

    @property
    def is_behind(self) -> bool:
        """Whether messages that were missed have not been taken yet."""
        return bool(self._missed)

    def catch_up(self) -> None:
        """Move the position to the present if everything was taken, so that quiet groups keep a fresh one."""
        if (
            self._missed
            or self._loss is not None
            or not self.channel.empty()
            or not self._resumer.is_settled()
        ):
            return
        for partition in self._places:
            here = self._resumer.log.here(partition)
            if here is not None and here.order > self._places[partition].order:
                self._places[partition] = here

    def _pass(self, envelope: Envelope) -> None:
        """Move the position behind a message."""
        partition = self._partitions.get(envelope.target)
        position = envelope.position
        if not position or partition is None:
            return
        place = self._places.get(partition)
        if place is None:
            epoch = self._resumer.log.epoch_at(partition, position)
        elif position <= place.position and order_of(envelope) <= place.order:
            return
        elif self._missed:
            epoch = place.epoch  # the log was read in this epoch
        else:
            epoch = self._resumer.log.epoch_at(partition, position) or place.epoch
        if epoch:
            self._places[partition] = Place(epoch, position, envelope.nth)

    # Messages

    def take(self) -> Envelope | None:
        """
        Return the next message, None if there is none now. With `has_lost` await `mend()` first.

        Raises:
            ChannelClosed: the channel or the layer is closed, and nothing is left in it.
        """
        if self._missed:
            envelope = self._missed.popleft()
            self._pass(envelope)
            if not self._missed:
                self._places = self._places_then
            return envelope
        if self._loss is not None:
            return None
        taken = self.channel.take_envelope()
        if taken is None:
            return None
        if taken.flags & NOTICE:
            notice = taken.message or {}
            if notice["groups"]:
                self._loss = notice["reason"], tuple(notice["groups"])
                return None
            return self.take()  # a message to the channel itself was lost, and none to the groups
        self._pass(taken)
        return taken

    @property
    def has_lost(self) -> bool:
        """Whether messages were lost on the way to the channel."""
        return self._loss is not None

    async def mend(self) -> Reset | None:
        """
        Get from the logs and histories what was lost. Returns a `Reset` if they do not have it.

        Cancelling is safe: the next call tries again. Raises as `resume()`.
        """
        assert self._loss is not None
        reason, groups = self._loss
        if self._places and self._can_be_had(reason, groups):
            resumption = await self._resumer.resume(self.groups, self.channel.name, self.position_with_former)
            self._loss = None
            self._go_on(resumption)
            return None if resumption.recovered else Reset(resumption.reason, self.groups)
        places = await self._resumer.log.ends(set(self._partitions.values()))
        self._loss = None
        self._places = places
        return Reset(reason, groups)

    def _can_be_had(self, reason: str, groups: Sequence[str]) -> bool:
        """Tell whether logs or histories may have what these groups lost for this reason."""
        if reason in IN_HISTORIES:
            return all(map(self._resumer.histories.covers, groups))
        return reason in _IN_THE_LOG and all(map(self._partitions.__contains__, groups))

    @property
    def position_with_former(self) -> str:
        return str(Position(self._places, self._former))

    async def next(self) -> Envelope | Reset:
        """
        Return the next message, or a `Reset` where messages are missing. Cancelling loses nothing.

        Raises:
            ChannelClosed: the channel or the layer is closed, and nothing is left in it.
            LayerUnavailable: messages were lost, and the server cannot be reached to get them.
        """
        while True:
            envelope = self.take()
            if envelope is not None:
                return envelope
            if self._loss is not None:
                reset = await self.mend()
                if reset is not None:
                    return reset
            else:
                await self.channel.wait()

    def message_of(self, envelope: Envelope) -> dict[str, Any]:
        """Return the message in an envelope, a dict of the caller's own."""
        return self._decoder.message_of(envelope)
