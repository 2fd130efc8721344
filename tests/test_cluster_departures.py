"""What a session knows of a partition that has moved: whether it is whole, and which servers had it before."""

from __future__ import annotations

from typing import Any, cast

import pytest

from channels_asyncq.bus.redis.cluster import departures
from channels_asyncq.bus.redis.cluster.departures import Departure, Lineage, Witnesses, lineage_of
from channels_asyncq.bus.redis.cluster.node import ClusterNode
from channels_asyncq.bus.redis.cluster.replication import Replication

A, B, C = (letter * 40 for letter in (b"a", b"b", b"c"))
NONE = b"0" * 40


PROCESS = b"p" * 40


def info(
    role: str,
    history: bytes,
    before: bytes = NONE,
    errors: dict[str, int] | None = None,
    process: bytes = PROCESS,
) -> bytes:
    """INFO server replication errorstats."""
    lines = [
        "# Server",
        f"run_id:{process.decode()}",
        "",
        "# Replication",
        f"role:{role}",
        "master_link_status:up",
        f"master_replid:{history.decode()}",
        f"master_replid2:{before.decode()}",
        "",
    ]
    if errors is not None:
        lines += ["# Errorstats", *(f"errorstat_{name}:count={count}" for name, count in errors.items())]
    return "\r\n".join(lines).encode()


class Nodes:
    """The nodes of a session, with the histories and refusals that they had by their last fences."""

    def __init__(self, **refusals: bytes) -> None:
        self.nodes_by_place = {
            name: self.node(name.encode() * 40, refusals=count) for name, count in refusals.items()
        }

    def node(self, history: bytes, told: bytes = b"", refusals: bytes | None = None) -> ClusterNode:
        return cast(ClusterNode, _Node(self, history, told, refusals))


class _Node:
    def __init__(self, router: Nodes, history: bytes, told: bytes, refusals: bytes | None) -> None:
        self.router = router
        self.subscriber = type("Subscriber", (), {"run_id": history})()
        self.refusals_by_fence = refusals
        self.process = PROCESS
        self.questions = 0
        self._told = told

    async def testimony(self) -> Replication | None:
        self.questions += 1
        return Replication.of(self._told) if self._told else None


@pytest.mark.parametrize(
    ("errors", "refusals"),
    [
        (None, b"-"),
        ({}, b"0"),
        ({"MOVED": 7, "ERR": 2}, b"0"),
        ({"OOM": 3, "NOREPLICAS": 1, "MISCONF": 2, "MOVED": 7}, b"6"),
    ],
)
def test_the_refusals_of_a_node(errors: dict[str, int] | None, refusals: bytes) -> None:
    """As `epoch.lua` counts them; none where the user may not ask."""
    assert Replication.of(info("master", A, errors=errors)).refusals == refusals


async def departure(nodes: Nodes, told: bytes, history: bytes = b"") -> Departure:
    found = Departure(nodes.node(history, told), history, is_known_there=True)
    assert await found.is_complete(Witnesses())
    return found


async def is_whole(node: ClusterNode, history: bytes, *, is_known_there: bool = True) -> bool:
    return await Departure(node, history, is_known_there=is_known_there).is_complete(Witnesses())


async def test_a_slot_that_has_moved() -> None:
    """The last home is a primary still, with the history of before."""
    nodes = Nodes(a=b"0", b=b"4")
    found = await departure(nodes, info("master", A, errors={"OOM": 2}), A)
    assert lineage_of((found,), B) == Lineage(B, b"4", ((A, b"2"),))


async def test_a_planned_failover() -> None:
    """The history of the last home goes on at the next, which was not in use before."""
    nodes = Nodes(a=b"0")
    found = await departure(nodes, info("slave", B, A, errors={}), A)
    assert lineage_of((found,), B) == Lineage(B, b"0", ((A, b"0"),))


async def test_a_failover_that_was_not_planned() -> None:
    """The last home does not answer, or its history does not go on."""
    nodes = Nodes(a=b"0")
    assert not await is_whole(nodes.node(A), A)
    full_resync = info("slave", B, errors={})
    assert not await is_whole(nodes.node(A, full_resync), A)
    # The partition was not read there, and the history of that time is not known.
    assert not await is_whole(nodes.node(A, full_resync), b"")


async def test_a_last_home_that_was_started_again() -> None:
    """It may have lost what it had, and may follow the next home all the same."""
    nodes = Nodes(a=b"0")
    assert not await is_whole(nodes.node(A, info("slave", B, A, errors={}, process=b"q" * 40)), A)


async def test_a_silent_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a failover that its last home has not told, only the last home knows whether it was planned."""
    nodes = Nodes(a=b"0")
    assert await is_whole(nodes.node(A, info("slave", B, A, errors={})), A, is_known_there=False)
    # It does not know of the failover, and may be cut off from the others.
    monkeypatch.setattr(departures, "_LONGEST", 0.1)
    node = nodes.node(A, info("master", A, errors={}))
    assert not await is_whole(node, A, is_known_there=False)
    assert cast(_Node, node).questions > 1


async def test_a_node_is_asked_once_for_all() -> None:
    """It is not waited for again if it does not answer."""
    nodes = Nodes(a=b"0")
    node = nodes.node(A)
    witnesses = Witnesses()
    for _ in range(3):
        assert not await Departure(node, A, is_known_there=True).is_complete(witnesses)
    assert cast(_Node, node).questions == 1


@pytest.mark.parametrize(
    ("refusals", "formers"),
    [(b"1", ((B, b"1"), (A, b"0"))), (b"2", ((B, b"2"),))],
    ids=["wrote", "refused meanwhile"],
)
async def test_two_moves(refusals: bytes, formers: tuple[Any, ...]) -> None:
    """The record may name either home; the first one only if the second has written everything."""
    nodes = Nodes(a=b"0", b=b"1", c=b"0")
    first = await departure(nodes, info("master", A, errors={}), A)
    second = await departure(nodes, info("master", B, errors={"OOM": int(refusals)}))
    assert lineage_of((first, second), C) == Lineage(C, b"0", formers)
