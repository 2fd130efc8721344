"""The hash slots of a Redis Cluster: the slot of a name, and a tag for each partition."""

from __future__ import annotations

import binascii

SLOTS = 16384


def slot_of(name: bytes) -> int:
    """
    Return the slot of a key or a channel: CRC16 of its hash tag, or of the whole name if it has none.

    Source: Redis Cluster Specification, *Hash tags*. The tag is what is between the first `{` and the first `}`
    after it, unless that is empty.
    """
    _, _, rest = name.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if tag and closing else name, 0) % SLOTS


def share_of(slot: int, partitions: int) -> int:
    """Return the partition in whose share of the slots a slot is: the shares are equal ranges, in order."""
    return slot * partitions // SLOTS


def tags(partitions: int) -> list[bytes]:
    """
    Return a hash tag for each partition: the smallest decimal number whose slot is in the partition's share.

    So partitions are spread evenly over nodes that have ranges of slots. (With its own number as the tag of each
    partition, some of 16 nodes would have none of 16 partitions.)
    """
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < partitions:
        tag = b"%d" % number
        found.setdefault(share_of(slot_of(tag), partitions), tag)
        number += 1
    return [found[partition] for partition in range(partitions)]
