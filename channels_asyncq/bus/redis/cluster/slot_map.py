"""The primaries of the slots of a cluster, as one of its nodes sees them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

#: Host and port of a node.
Address = tuple[str, int]
#: As redis-py's `address_remap`: from the address that a node announces to the one that is reachable from here.
Remap = Callable[[Address], Address]

SLOTS = 16384


class SlotMap:
    """The answer to CLUSTER SLOTS."""

    def __init__(self, ranges: Iterable[tuple[int, int, Address]], replicas: Iterable[Address] = ()) -> None:
        """
        Args:
            ranges: first slot, last slot, and the address of their primary.
            replicas: the addresses of replicas.
        """
        #: First slot, last slot, and the address of their primary, in order.
        self.ranges = sorted(ranges)
        self._starts = [start for start, _, _ in self.ranges]
        #: The addresses of all nodes, primaries first.
        self.nodes = dict.fromkeys([*(place for _, _, place in self.ranges), *replicas])

    @classmethod
    def from_reply(cls, reply: Any, asked: Address, remap: Remap | None = None) -> SlotMap:
        """
        Return the map in a reply.

        Args:
            asked: the node that answered. A node that does not know its own address leaves it out.

        Raises:
            ValueError: it is no reply to CLUSTER SLOTS.
        """
        try:
            found = [
                (start, end, address_in(node[0], node[1], asked, remap)) for start, end, node, *_ in reply
            ]
            replicas = [
                address_in(node[0], node[1], asked, remap)
                for _, _, _, *others in reply
                for node in others
                if node[0] not in (None, b"", b"?")
            ]
        except (TypeError, ValueError, IndexError) as exc:
            raise ValueError(f"the answer to CLUSTER SLOTS is {reply!r}") from exc
        return cls(found, replicas)

    @property
    def is_whole(self) -> bool:
        """Whether each slot has a primary."""
        return sum(end - start + 1 for start, end, _ in self.ranges) == SLOTS

    def address_of(self, slot: int) -> Address | None:
        """Return the address of the primary of a slot, None if it has none."""
        place = bisect_right(self._starts, slot) - 1
        if place < 0:
            return None
        _, end, address = self.ranges[place]
        return address if slot <= end else None

    def gap_around(self, slot: int) -> str:
        """Return the range of slots without a primary around one of them, for a message: `0-5460`."""
        first = max((end + 1 for _, end, _ in self.ranges if end < slot), default=0)
        last = min((start - 1 for start, _, _ in self.ranges if start > slot), default=SLOTS - 1)
        return f"{first}-{last}"


def not_a_cluster(address: str, error: Exception) -> str:
    """Return which URL to use if a server without a cluster has refused to tell its slots; else nothing."""
    if "cluster support disabled" not in str(error):
        return ""
    return f"it is no node of a Redis Cluster: use {address.removesuffix('/0')} in `hosts`"


def address_in(host: Any, port: Any, asked: Address, remap: Remap | None) -> Address:
    """Return an address of a reply, where no host or an unknown one (`?`) stands for the node that was asked."""
    name = host.decode() if isinstance(host, bytes) else host
    address = (name if name and name != "?" else asked[0], int(port))
    return address if remap is None else remap(address)
