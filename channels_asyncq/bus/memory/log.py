"""The logs of a namespace, as one session asks about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...clock import monotonic
from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...names import Topic, Topics
from ...settings.options import Options
from ..base import RATE_SECONDS, ReplayCounts
from .broker import Broker
from .subscriber import MemorySubscriber


class MemoryLog:
    """
    What one session may read of its broker's logs: everything that it has taken out of its mailbox.

    What waits in the mailbox is in the logs too. It comes by itself, so no answer has it.
    """

    def __init__(self, broker: Broker, options: Options, subscriber: MemorySubscriber) -> None:
        self._broker = broker
        self._recovery = options.recovery
        self._subscriber = subscriber
        # The epoch of the last question, and how many envelopes were in the mailbox before: some are in no log.
        self._epoch = ""
        self._put_before = 0

    def covers(self, group: str) -> bool:
        return self._recovery is not None and self._recovery.is_logged(group)

    async def ends(self, partitions: Collection[int]) -> dict[int, Place]:
        """Return the ends, as `Log` says. From the first call on, the broker keeps logs."""
        if self._recovery is None:
            return {}
        return dict.fromkeys(partitions, self._broker.end(self._recovery))

    def here(self, partition: int) -> Place | None:
        return None if self._recovery is None else self._broker.delivered(self._subscriber)

    def epoch_at(self, partition: int, position: int) -> str:
        return self._broker.epoch_at(position)

    def has(self, topic: Topic, place: Place, *, has_read: bool) -> bool:
        """
        Tell whether nothing waits in the mailbox that would come twice, or be missed, after `since()`.

        Raises:
            NotReplayed: messages behind the place are not in the log.
        """
        until = self._broker.require(topic, place, self._subscriber)
        mailbox = self._subscriber.mailbox
        if self._epoch != place.epoch:
            self._epoch, self._put_before = place.epoch, mailbox.put_so_far
        if mailbox.is_empty:
            return True
        if mailbox.taken < self._put_before or self._subscriber.drops(topic.name):
            return False
        # A message up to the place was sent before the channel came, and must not reach it now. One that found no
        # place in the mailbox is behind everything that waits there.
        return until >= max(place.position, self._subscriber.overran)

    def since(self, topic: Topic, place: Place) -> list[Envelope]:
        return self._broker.since(topic, place, self._subscriber)

    async def read(self, places: Mapping[int, Place]) -> None:
        """Return when everything that waits in the mailbox now is taken. Cancelling is safe."""
        await self._subscriber.mailbox.drained()

    async def rates(self) -> dict[str, float]:
        return {
            Topics.group_named(topic): count / RATE_SECONDS
            for topic, count in self._broker.logged_since(monotonic() - RATE_SECONDS).items()
        }

    def forget(self) -> None:
        """Do nothing: the flush has dropped the logs, which the broker has."""

    def is_fed(self, topic: Topic) -> bool:
        """Return False: the broker has the logs, whether the topic is subscribed or not."""
        return False

    @property
    def counts(self) -> ReplayCounts:
        return self._broker.replay_counts(self._subscriber)
