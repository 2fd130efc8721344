"""Hash slots of a Redis Cluster: those of the server, and partitions spread evenly over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.names import Topics
from channels_asyncq.slots import SLOTS, share_of, slot_of, tags
from channels_asyncq.testing import EmbeddedServer

#: From nodes and partitions to the least and the most partitions of a node.
EVENNESS = {
    16: {3: (5, 6), 5: (2, 4), 6: (2, 3), 7: (2, 3), 12: (1, 2), 16: (1, 1)},
    64: {3: (21, 22), 5: (12, 13), 6: (10, 11), 7: (8, 10), 12: (5, 6), 16: (4, 4)},
    256: {3: (85, 86), 5: (50, 52), 6: (42, 43), 7: (36, 37), 12: (21, 22), 16: (16, 16)},
}

braced = st.text("{}ab1:", max_size=12).map(str.encode)


@pytest.fixture(scope="module")
def cluster_node() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False, cluster_enabled="yes") as server:
        yield server


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        (b"123456789", b"123456789"),
        (b"", b""),
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
        (b"}{a}", b"a"),
    ],
)
def test_the_part_that_is_hashed(name: bytes, hashed: bytes) -> None:
    """The examples of the Redis Cluster Specification: the slot of a name is that of its tag alone."""
    assert slot_of(name) == _crc16(hashed) % SLOTS


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc


def test_check_value() -> None:
    """The check value of CRC16 in the Redis Cluster Specification."""
    assert slot_of(b"123456789") == 0x31C3


@given(name=st.one_of(braced, st.binary(max_size=40)), tag=st.binary(min_size=1, max_size=20))
def test_names_with_one_tag_share_a_slot(name: bytes, tag: bytes) -> None:
    """What is before and behind the tag does not count."""
    tag = tag.replace(b"}", b"") or b"x"
    before, behind = name.replace(b"{", b""), name
    assert slot_of(before + b"{" + tag + b"}" + behind) == slot_of(b"{" + tag + b"}")
    assert 0 <= slot_of(name) < SLOTS


def test_the_server_finds_the_same_slots(cluster_node: EmbeddedServer) -> None:
    """A server names the same slot for names with braces of every kind, and for the names of a namespace."""
    topics = Topics("my:site", 64, [0], "0123456789abcdef", is_cluster=True)
    queue, group = topics.queue("jobs"), topics.group("chat")
    names = [b"{}", b"{a}", b"a{}{b}", b"{{a}}", b"a{b", b"a}b{c}d", b"}{", b"\xff{\x00}\x01", b"", b"{}a"]
    names += [queue.topic.name, queue.taken, group.topic.name, topics.everybody.name, topics.fence_of(63, 1)]
    slots = [cluster_node.command("CLUSTER", "KEYSLOT", name) for name in names]
    assert slots == [slot_of(name) for name in names]
    assert [topics.slot(p) for p in (0, 63)] == [
        cluster_node.command("CLUSTER", "KEYSLOT", topics.log(p)) for p in (0, 63)
    ]


@pytest.mark.parametrize("partitions", [1, 2, 3, 16, 64, 100, 4096])
def test_each_partition_has_a_slot_in_its_share(partitions: int) -> None:
    """Shares are equal ranges of slots; a tag is the smallest number whose slot is in the share."""
    found = tags(partitions)
    assert [share_of(slot_of(tag), partitions) for tag in found] == list(range(partitions))
    smallest: dict[int, bytes] = {}
    for number in range(max(map(int, found)) + 1):
        smallest.setdefault(share_of(slot_of(b"%d" % number), partitions), b"%d" % number)
    assert found == [smallest[partition] for partition in range(partitions)]


def test_tags_never_change() -> None:
    """All releases find the same tags: other ones would be other names on the server."""
    assert b" ".join(tags(16)) == b"10 3 61 43 11 2 60 42 12 1 63 41 13 0 62 40"


@pytest.mark.parametrize(
    ("partitions", "nodes", "least", "most"),
    [(partitions, nodes, *bounds) for partitions, row in EVENNESS.items() for nodes, bounds in row.items()],
)
def test_partitions_are_spread_evenly(partitions: int, nodes: int, least: int, most: int) -> None:
    """With the ranges of slots that `redis-cli --cluster create` gives to nodes."""
    owners = _owners(nodes)
    counts = Counter(owners[slot_of(tag)] for tag in tags(partitions))
    assert len(counts) == nodes
    assert (min(counts.values()), max(counts.values())) == (least, most)


@pytest.mark.parametrize(
    ("partitions", "counts"), [(16, [4, 4, 4, 4]), (64, [16, 16, 16, 16]), (256, [64, 65, 64, 63])]
)
def test_partitions_stay_even_with_another_node(partitions: int, counts: list[int]) -> None:
    """After `redis-cli --cluster rebalance`, which gives a fourth node the lowest slots of the other three."""
    owners = _owners(3)
    for node in range(3):
        slots = [slot for slot in range(SLOTS) if owners[slot] == node]
        for slot in slots[: len(slots) - SLOTS // 4]:
            owners[slot] = 3
    found = Counter(owners[slot_of(tag)] for tag in tags(partitions))
    assert [found[node] for node in range(4)] == counts


def _owners(nodes: int) -> list[int]:
    owners: list[int] = []
    for node in range(nodes):
        end = SLOTS if node == nodes - 1 else round((node + 1) * SLOTS / nodes - 1) + 1
        owners += [node] * (end - len(owners))
    return owners
