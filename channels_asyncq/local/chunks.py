"""Long lists in chunks, between which a job may end its slice (see `Slices`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

# Channels that are served between two checks of the clock.
MANY = 256
# Likewise, where serving a channel costs ten times as much.
SOME = 64


def chunks(items: list[T], size: int = MANY) -> Iterator[list[T]]:
    """Yield the items in lists of at most `size`."""
    for at in range(0, len(items), size):
        yield items[at : at + size]
