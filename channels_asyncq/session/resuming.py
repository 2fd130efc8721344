"""Joins groups with what was missed since a position, for channels that come back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..bus.base import IN_HISTORIES, Bus, NotReplayed
from ..clock import monotonic
from ..exceptions import ChannelLayerError, LayerUnavailable
from ..local.hub import Hub
from ..messages.envelopes import Envelope
from ..messages.positions import MOST_CHANNELS, MOST_CHARACTERS, BadPosition, Place, Position, order_of
from ..names import Topic, Topics
from ..settings.options import Options
from ..slices import Slices, Turnstile
from ..tasks import all_of
from .groups import SessionGroups
from .lifetime import Lifetime
from .lingering import LingeringTopics
from .routes import Routes


@dataclass(slots=True)
class Resumption:
    """
    How a channel has joined its groups.

    With `recovered`, `envelopes` has what was missed, in order, and what comes to the channel follows it.
    Without, it is empty, and `reason` tells why. `places` are behind all of that.
    """

    recovered: bool
    reason: str
    places: dict[int, Place]
    envelopes: list[Envelope] = field(default_factory=list)
    #: The places before all of that.
    since: dict[int, Place] = field(default_factory=dict)
    #: Channels of earlier connections: a message that excludes one of them is not for this channel.
    former: tuple[str, ...] = ()


@dataclass(slots=True)
class ResumeCounts:
    """How many resumes there were, and how many were refused, by reason."""

    resumes: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class _Refused(NotReplayed):
    """The log of a topic does not have what is behind a place; else as `NotReplayed`."""

    def __init__(self, topic: Topic, refusal: NotReplayed) -> None:
        super().__init__(refusal.reason, refusal.position, refusal.found)
        self.topic = topic
        self.group = Topics.group_named(topic.name)


class Resumer:
    """The positions and resumes of one session."""

    def __init__(
        self,
        options: Options,
        hub: Hub,
        slices: Slices,
        lifetime: Lifetime,
        bus: Bus,
        routes: Routes,
        groups: SessionGroups,
        lingering: LingeringTopics,
    ) -> None:
        self._options = options
        self._hub = hub
        self._slices = slices
        self._lifetime = lifetime
        self._pubsub = bus.pubsub
        self.log = bus.log
        self.histories = bus.histories
        self._routes = routes
        self._groups = groups
        self._lingering = lingering
        self._turnstile = Turnstile(asyncio.get_running_loop())
        self.counts = ResumeCounts()

    # Positions

    async def position(self, groups: Collection[str], channel: str | None) -> str:
        """Return the present position of these groups, with the names of a channel of this session."""
        places = await self.log.ends(self.partitions(groups))
        channels: tuple[str, ...] = ()
        if channel is not None:
            buffer = self._hub.channels.buffers.get(channel)
            channels = with_channel(buffer.former if buffer is not None else (), channel)
        text = str(Position(places, channels))
        if len(text) > MOST_CHARACTERS:
            raise ValueError(
                f"a position of these groups has {len(text)} characters, because they are in {len(places)} "
                f"partitions, and {MOST_CHARACTERS} are allowed: take several positions, of fewer groups each"
            )
        return text

    def partitions(self, groups: Iterable[str]) -> set[int]:
        """Return the partitions whose logs keep messages of these groups."""
        return {self.topic(group).partition for group in groups if self.log.covers(group)}

    def topic(self, group: str) -> Topic:
        return self._routes.to_group(group).topic

    def is_settled(self) -> bool:
        """Tell whether everything that was taken from the bus is in the channels."""
        return not self._slices.is_busy

    async def places_now(self, groups: Iterable[str]) -> dict[int, Place]:
        """Return a place before what is delivered from now on: without a command, if the session knows one."""
        places = {partition: self.log.here(partition) for partition in self.partitions(groups)}
        if unknown := [partition for partition, place in places.items() if place is None]:
            places |= await self.log.ends(unknown)
        return {partition: place for partition, place in places.items() if place is not None}

    # Joining

    async def join(self, groups: Sequence[str], channel: str) -> Resumption:
        """
        Join without a position: the channel gets what is sent from now on. Cancelling leaves no half member.

        Raises:
            TooManyGroups: the channel may not be in all of these groups.
        """
        self._require_room(groups, channel)
        places = await self.places_now(groups)
        await self._join_all(groups, channel)
        return Resumption(True, "", places)

    async def _join_all(self, groups: Sequence[str], channel: str) -> None:
        new = [group for group in groups if not self._is_member(group, channel)]
        try:
            answers = [self._groups.add(group, channel) for group in groups]
            await all_of(answer for answer in answers if answer is not None)
        except BaseException:
            self._leave(new, channel)
            raise

    def _require_room(self, groups: Iterable[str], channel: str) -> None:
        """Refuse groups of which some could be joined and some not."""
        buffer = self._hub.channels.buffers.get(channel)
        if buffer is not None and buffer.group_limit is not None:
            topics = {self.topic(group).name for group in groups}
            self._hub.require_room_in(buffer, buffer.group_limit, topics)

    def _leave(self, groups: Iterable[str], channel: str) -> None:
        if channel in self._hub.channels.buffers:
            for group in groups:
                self._groups.discard(group, channel)

    def _is_member(self, group: str, channel: str) -> bool:
        present = self._hub.groups.by_topic.get(self.topic(group).name)
        return present is not None and channel in present.members

    async def resume(self, groups: Sequence[str], channel: str, since: str) -> Resumption:
        """
        Join groups with what was missed since a position: all of it, or nothing.

        What was missed is in the result, and nothing of it comes to the channel again. Cancelling leaves no half
        member.

        Raises:
            LayerUnavailable: the server cannot be reached.
            ChannelClosed: the channel was closed.
            TooManyGroups: the channel may not be in all of these groups.
        """
        self._require_room(groups, channel)
        self.counts.resumes += 1
        await self._turnstile.pass_through()
        try:
            position = Position.parse(since)
            wanted = self._wanted(groups, position)
        except BadPosition:
            return await self._start_over(groups, channel, "bad_token")
        except NotReplayed as exc:
            return await self._start_over(groups, channel, exc.reason, position.channels)
        unlogged = [group for group in groups if not self.log.covers(group)]
        # The others are joined in the last step, or by _start_over(), which leaves them itself.
        new = [group for group in unlogged if not self._is_member(group, channel)]
        for topic in wanted:
            self._lingering.hold(topic)
        try:
            await self._join_all(unlogged, channel)
            await self._confirmed(wanted)
            try:
                return await self._replay(groups, channel, wanted, position.channels)
            except NotReplayed as exc:
                return await self._start_over(groups, channel, exc.reason, position.channels)
        except BaseException:
            self._leave(new, channel)
            raise
        finally:
            for topic in wanted:
                self._lingering.release(topic)

    def _wanted(self, groups: Sequence[str], position: Position) -> dict[Topic, Place]:
        """Return the place of each group that is in a log."""
        wanted: dict[Topic, Place] = {}
        for group in groups:
            if self.log.covers(group):
                topic = self.topic(group)
                place = position.places.get(topic.partition)
                if place is None:
                    raise NotReplayed("unknown_position")
                wanted[topic] = place
        if not wanted:
            raise NotReplayed("not_logged")
        return wanted

    async def _start_over(
        self, groups: Sequence[str], channel: str, reason: str, former: tuple[str, ...] = ()
    ) -> Resumption:
        """Join without what was missed. The places are from before the join, so that none is left out."""
        self.counts.refused[reason] = self.counts.refused.get(reason, 0) + 1
        places = await self.log.ends(self.partitions(groups))
        await self._join_all(groups, channel)
        self._note_former(channel, former)
        return Resumption(False, reason, places, former=former)

    async def _confirmed(self, topics: Iterable[Topic]) -> None:
        """Return when the server has confirmed the topics."""
        missing = [topic for topic in topics if not self._pubsub.is_confirmed(topic)]
        await all_of(self._pubsub.confirmed(topic) for topic in missing)

    async def _replay(
        self, groups: Sequence[str], channel: str, wanted: Mapping[Topic, Place], former: tuple[str, ...]
    ) -> Resumption:
        """
        Return what was missed, and have joined the groups. The logs have it, or the history of a group.

        Raises:
            NotReplayed: the messages cannot be had.
            LayerUnavailable: the server cannot be reached.
        """
        began = monotonic()
        # What is there already, and the places behind that: from these on the logs have the rest.
        kept: list[Envelope] = []
        ahead = dict(wanted)
        while True:
            try:
                await self._reach(ahead)
                return self._splice(groups, channel, wanted, ahead, kept, former)
            except _Refused as exc:
                is_late = monotonic() - began > 2 * self._options.send_timeout
                if is_late or exc.reason not in IN_HISTORIES or not self.histories.covers(exc.group):
                    raise
                refused = exc
            kept += refused.found
            found, ahead[refused.topic] = await self._from_history(refused, ahead[refused.topic])
            kept += found

    async def _from_history(self, refused: _Refused, place: Place) -> tuple[list[Envelope], Place]:
        """
        Return what the log of a group does not have, and the place behind it.

        Raises:
            NotReplayed: the group's history does not have it either.
        """
        if refused.position:
            # A message that is too large is alone in its entry.
            place = Place(place.epoch, refused.position - 1)
        try:
            found, end = await self.histories.since(refused.group, place)
        except NotReplayed as exc:
            raise (refused if exc.reason == "trimmed" else exc) from None
        if refused.position and (not found or found[0].position != refused.position):
            raise refused
        return found, end

    async def _reach(self, wanted: Mapping[Topic, Place]) -> None:
        """
        Return when `Log.since()` has an answer for each topic: in this turn of the event loop.

        Raises:
            NotReplayed: no read will bring the messages.
            LayerUnavailable: the server cannot be reached.
        """
        began = monotonic()
        has_read: set[int] = set()
        while True:
            # A crowd waits for one read.
            await self._turnstile.pass_through()
            if not (due := self._due(wanted, has_read)):
                return
            if monotonic() - began > 2 * self._options.send_timeout:
                raise LayerUnavailable(
                    "the server", "its logs cannot be read: connections are lost all the time"
                )
            try:
                await self.log.read(due)
            except ChannelLayerError:
                raise
            except ConnectionError:
                await self._confirmed(wanted)
            else:
                has_read.update(due)

    def _due(self, wanted: Mapping[Topic, Place], has_read: set[int]) -> dict[int, Place]:
        """Return the partitions that have to be read, and from where."""
        due: dict[int, Place] = {}
        for topic, place in wanted.items():
            partition = topic.partition
            if not self._has(topic, place, has_read=partition in has_read):
                due[partition] = min(place, due.get(partition, place), key=_order)
        return due

    def _has(self, topic: Topic, place: Place, *, has_read: bool) -> bool:
        """Return what `Log.has()` does. A refusal names the topic."""
        try:
            return self.log.has(topic, place, has_read=has_read)
        except NotReplayed as exc:
            raise _Refused(topic, exc) from None

    def _since(self, topic: Topic, place: Place) -> list[Envelope]:
        """Return what `Log.since()` does. A refusal names the topic."""
        try:
            return self.log.since(topic, place)
        except NotReplayed as exc:
            raise _Refused(topic, exc) from None

    # In one step

    def _splice(
        self,
        groups: Sequence[str],
        channel: str,
        wanted: Mapping[Topic, Place],
        ahead: Mapping[Topic, Place],
        kept: list[Envelope],
        former: tuple[str, ...],
    ) -> Resumption:
        """
        Join, and take out what was missed: what is delivered after this step follows it.

        Args:
            ahead: the places from which on the logs are used.
            kept: the messages between the places in `wanted` and these.

        Raises:
            NotReplayed: a message cannot be replayed, or there are too many.
            LayerClosed: the session has ended meanwhile.
        """
        self._lifetime.require_open(channel)
        envelopes = list(kept)
        places: dict[int, Place] = {}
        for topic, place in ahead.items():
            found = self._since(topic, place)
            envelopes += found
            here = self.log.here(topic.partition)
            ends = [places.get(topic.partition, place)]
            if found:
                ends.append(Place(place.epoch, found[-1].position, found[-1].nth))
            if here is not None and here.epoch == place.epoch:
                ends.append(here)
            places[topic.partition] = max(ends, key=_order)
        # The channel itself too: it may have been a member, and have lost messages by overflow.
        names = frozenset((*former, channel))
        envelopes = [each for each in envelopes if names.isdisjoint(each.excluded)]
        recovery = self._options.recovery
        if recovery is not None and len(envelopes) > recovery.resume_messages:
            raise NotReplayed("too_many")
        if len(wanted) > 1:
            envelopes.sort(key=order_of)
        for topic in wanted:
            # Another membership, where the channel has one: a delivery that is under way is in `envelopes`.
            self._hub.groups.leave(topic.name, channel)
            self._hub.join(topic.name, channel).is_confirmed = True
        self._hub.channels.open(channel).drop_logged(groups)
        self._note_former(channel, former)
        since = {topic.partition: place for topic, place in wanted.items()}
        return Resumption(True, "", places, envelopes, since, former)

    def _note_former(self, channel: str, former: tuple[str, ...]) -> None:
        buffer = self._hub.channels.buffers.get(channel)
        if buffer is not None and former:
            buffer.former = former


def with_channel(former: tuple[str, ...], channel: str) -> tuple[str, ...]:
    """Return the channels of a reader for a position, the present one last."""
    return (*(name for name in former if name != channel), channel)[-MOST_CHANNELS:]


def _order(place: Place) -> tuple[int, int]:
    return place.order
