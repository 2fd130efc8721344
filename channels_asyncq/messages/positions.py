"""Positions: places in the logs of partitions, as a text that a browser keeps and sends back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from .envelopes import Envelope

_VERSION = "1"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LOW = (1 << 64) - 1
#: The most characters of a position. (A stream over 16 partitions has about 230.)
MOST_CHARACTERS = 4096
#: The most former channels in a position.
MOST_CHANNELS = 4
_MOST_PARTITION = 1 << 16
_MOST_NTH = 1 << 16
_EPOCH = re.compile(r"[0-9a-f]{8}")
_NUMBER = re.compile(r"[0-9a-z]{1,14}")
_CHANNEL = re.compile(r"[a-zA-Z0-9\-_.]+![a-zA-Z0-9\-_.]*")


class BadPosition(ValueError):
    """A text that is no position; the text of the error says why."""


class Place(NamedTuple):
    """
    A place in the log of one partition: behind the entry at `position`, or behind its first `nth` messages.

    `epoch` names the history of the log: a server that lost a part of a log begins another one. Places of two
    epochs are not comparable. `nth` is 0 for a whole entry.
    """

    epoch: str
    position: int
    nth: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Sorts as the places of one epoch follow each other."""
        return self.position, self.nth or _MOST_NTH

    def is_before(self, envelope: Envelope) -> bool:
        """Tell whether a logged message of the partition is behind this place."""
        return self.order < order_of(envelope)


def order_of(envelope: Envelope) -> tuple[int, int]:
    """Return a key that sorts logged messages of one partition as they were logged."""
    return envelope.position, envelope.nth or _MOST_NTH


class Position(NamedTuple):
    """
    A place in each of some partitions, and former channels of the reader: what excludes those is not for it.

    As a text: `1~<epoch>~<place>~...[~<epoch>~<place>~...][~~<channel>...]`. A place is
    `<partition>.<ms>.<seq>[.<nth>]` in base 36. A channel has a `~` in place of its `!`. All characters are
    unreserved in URLs (RFC 3986). It is not signed: it names places and grants nothing but the time for which a
    log is kept.
    """

    places: Mapping[int, Place]
    channels: tuple[str, ...] = ()

    def __str__(self) -> str:
        places = list(self.places.items())
        if len(places) == 1 and not self.channels:
            # As a rule; each message of a stream needs one.
            [(partition, place)] = places
            return f"{_VERSION}~{place.epoch}~{_place_text(partition, place.position, place.nth)}"
        parts = [_VERSION]
        epoch = ""
        places.sort(key=_epoch_and_partition)
        for partition, place in places:
            if place.epoch != epoch:
                epoch = place.epoch
                parts.append(epoch)
            parts.append(_place_text(partition, place.position, place.nth))
        if self.channels:
            parts.append("")
            parts += (channel.replace("!", "~") for channel in self.channels[-MOST_CHANNELS:])
        return "~".join(parts)

    @classmethod
    def parse(cls, text: str) -> Position:
        """
        Return the position that a text stands for.

        Raises:
            BadPosition: it stands for none.
        """
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS or not text.isascii():
            raise BadPosition(f"a position is ASCII text of at most {MOST_CHARACTERS} characters")
        head, has_channels, tail = text.partition("~~")
        version, *parts = head.split("~")
        if version != _VERSION:
            raise BadPosition(f"a position begins with {_VERSION}~, and this one with {version[:8]!r}")
        epoch = ""
        places: dict[int, Place] = {}
        for part in parts:
            if _EPOCH.fullmatch(part):
                epoch = part
                continue
            partition, place = _parse_place(part, epoch)
            places[partition] = place
        return cls(places, _parse_channels(tail) if has_channels else ())


def _epoch_and_partition(item: tuple[int, Place]) -> tuple[str, int]:
    return item[1].epoch, item[0]


# All readers of a group need the text of a place at the same time.
@lru_cache(1024)
def _place_text(partition: int, position: int, nth: int) -> str:
    numbers = [partition, position >> 64, position & _LOW]
    if nth:
        numbers.append(nth)
    return ".".join(map(_base36, numbers))


def _base36(number: int) -> str:
    digits = _DIGITS[number % 36]
    while number >= 36:
        number //= 36
        digits = _DIGITS[number % 36] + digits
    return digits


def _parse_place(text: str, epoch: str) -> tuple[int, Place]:
    numbers = text.split(".")
    if not epoch or not 3 <= len(numbers) <= 4 or not all(map(_NUMBER.fullmatch, numbers)):
        raise BadPosition(f"{text[:60]!r} is no place in a log")
    partition, milliseconds, sequence, *nth = (int(number, 36) for number in numbers)
    place = Place(epoch, milliseconds << 64 | sequence, nth[0] if nth else 0)
    if partition >= _MOST_PARTITION or max(milliseconds, sequence) > _LOW or place.nth >= _MOST_NTH:
        raise BadPosition(f"{text[:60]!r} is beyond every log")
    return partition, place


def _parse_channels(text: str) -> tuple[str, ...]:
    names = text.split("~")
    channels = tuple(f"{head}!{local}" for head, local in zip(names[::2], names[1::2], strict=False))
    if len(names) % 2 or len(channels) > MOST_CHANNELS or not all(map(_CHANNEL.fullmatch, channels)):
        raise BadPosition(f"{text[:60]!r} is no list of channels")
    return channels
