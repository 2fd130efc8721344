"""Slots that move between nodes of a real cluster: nothing is lost, doubled, out of order, raised or reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from channels_asyncq import LayerUnavailable
from tests.cluster_moves import Step
from tests.cluster_nodes import Node
from tests.cluster_sessions import (
    Company,
    Moving,
    home_of,
    is_at,
    partition_of,
    redis_bus_of,
    router_of,
    slot_of_group,
    slot_of_inbox,
    slot_of_queue,
)
from tests.clusters import Cluster
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    note,
    receive,
    receive_many,
    steps,
)
from tests.sessions import shorten_send_timeout

GROUPS = [f"room-{number}" for number in range(4)]
STEPS: list[Step] = ["importing", "migrating", "batch", "keys", "target", "source", "others"]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged about a planned move: no lost connection, no refused command, no loss."""
    yield
    records = [each for each in caplog.get_records("call") if each.name.startswith("channels_asyncq")]
    assert [each.getMessage() for each in records if each.levelno >= logging.WARNING] == []


def other_than(cluster: Cluster, node: Node) -> Node:
    """Another primary."""
    return next(each for each in cluster.primaries() if each is not node)


@pytest.fixture(params=["classic", "atomic"])
def kind(request: pytest.FixtureRequest, redis_cluster: Cluster) -> str:
    """How slots are moved."""
    if request.param == "atomic" and not redis_cluster.has_atomic:
        pytest.skip("this server cannot move slots by itself")
    return str(request.param)


async def move(cluster: Cluster, slot: int, to: Node, kind: str = "classic") -> None:
    """Move a slot without blocking the loop."""
    mover = cluster.migrate_classic if kind == "classic" else cluster.migrate_atomic
    await asyncio.to_thread(mover, slot, to)


async def test_moves_under_load(redis_cluster: Cluster, company: Company, kind: str) -> None:
    """While slots move between nodes, everything arrives once and in order, each job is taken once, all quiet."""
    await company.join(*GROUPS)
    company.work("jobs")
    layer = company.layers[0]
    slots = sorted({slot_of_group(layer, group) for group in GROUPS})
    async with company.at_work("jobs"):
        for slot in slots:
            home = redis_cluster.node_of(slot)
            away = other_than(redis_cluster, home)
            await move(redis_cluster, slot, away, kind)
            await is_at(company.layers, slot, away)
            await move(redis_cluster, slot, home, kind)
            await is_at(company.layers, slot, home)
    await company.settle()
    company.assert_intact()


@pytest.mark.parametrize("step", STEPS)
async def test_move_stopped_at_a_step(redis_cluster: Cluster, company: Company, step: Step) -> None:
    """Wherever a move stops for a while, sends are executed or wait, in order, and go on after it."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    company.send_to_all(20)
    moving = Moving(redis_cluster, slot, away)
    await moving.until(step)
    waiting = company.send_to_all(20)
    if step in ("migrating", "batch", "keys"):
        # The group has no normal members: half of its keys are missing.
        for layer in company.layers:
            partition = partition_of(layer, slot)
            await eventually(lambda partition=partition: partition.sender.is_paused, "the pause")  # type: ignore[misc]
        assert not all(task.done() for task in waiting)
    company.send_to_all(20)
    await moving.finish()
    await is_at(company.layers, slot, away)
    await company.settle()
    company.assert_intact()


async def test_open_slot_for_longer_than_send_timeout(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """A slot that an operator leaves open stops its groups: the error says so. When it is closed, they work."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    shorten_send_timeout(redis_bus_of(layer), 0.5)
    slot = slot_of_group(layer, "room")
    moving = Moving(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)))
    await moving.until("migrating")
    for _ in range(2):
        with pytest.raises(LayerUnavailable, match=f"slot {slot} is migrating"):
            await layer.group_send("room", note(1))
    await asyncio.to_thread(redis_cluster.close_slot, slot)
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await layer.group_send("room", note(2))
                break
            except LayerUnavailable:
                await steps(10)
    assert await receive(layer, channel) == note(2)


async def test_nothing_is_sent_to_the_target_before_it_has_the_slot(
    redis_cluster: Cluster, company: Company
) -> None:
    """While keys are at the target and the slot is not, no command follows them: subscribers would be deaf."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    for node in redis_cluster.nodes:
        await asyncio.to_thread(node.command, "CONFIG", "RESETSTAT")
    moving = Moving(redis_cluster, slot, away)
    await moving.until("keys")
    company.send_to_all(20)
    redirects = router_of(company.layers[0]).redirects_for(partition_of(company.layers[0], slot).number)
    await eventually(lambda: redirects._refusals > 5, "five refusals")
    assert await asyncio.to_thread(away.command, "CLUSTER", "COUNTKEYSINSLOT", slot) > 0
    rejected = [
        await asyncio.to_thread(rejected_by, node) for node in redis_cluster.primaries() if node is away
    ]
    assert rejected == [0]
    await moving.finish()
    await company.settle()
    company.assert_intact()
    for node in redis_cluster.nodes:
        # MIGRATE restores keys without it.
        assert "cmdstat_asking" not in await asyncio.to_thread(node.info, "commandstats")


def rejected_by(node: Node) -> int:
    """How many scripts a node refused to run."""
    words = node.info("commandstats").get("cmdstat_evalsha", "rejected_calls=0")
    return int(dict(pair.split("=") for pair in words.split(","))["rejected_calls"])


async def test_concurrent_sends_keep_their_order(redis_cluster: Cluster, company: Company) -> None:
    """Sends that are refused in the middle come before all later ones, however many are under way."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    for to in (away, home) * 3:
        moving = Moving(redis_cluster, slot, to)
        await moving.until("keys")
        for number in (0, 1):
            company.send(number, "room", 500)
        finishing = asyncio.create_task(moving.finish())
        while not finishing.done():
            for number in (0, 1):
                company.send(number, "room", 10)
            await asyncio.sleep(0)
        await finishing
        await is_at(company.layers, slot, to)
    await company.settle()
    company.assert_intact()


async def test_pops_and_what_is_given_back(redis_cluster: Cluster, company: Company, kind: str) -> None:
    """A job whose reader has given up while the slot moved goes to another one: each is done exactly once."""
    await company.join("room")
    company.work("jobs", is_impatient=True)
    slot = slot_of_queue(company.layers[0], "jobs")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    async with company.at_work("jobs"):
        for to in (away, home) * 2:
            await move(redis_cluster, slot, to, kind)
    await company.settle()
    company.assert_intact()


async def test_membership_requests_while_inboxes_move(
    redis_cluster: Cluster, company: Company, kind: str
) -> None:
    """A session adds the channels of another one to groups, and removes them, while the inboxes of both move."""
    first, second = company.layers
    await company.join()
    channel = await second.new_channel()
    slots = sorted({slot_of_inbox(layer) for layer in company.layers})

    async def ask() -> int:
        count = 0
        while not moves.done():
            group = f"brief-{count % 40}"
            await first.group_add(group, channel)
            await first.group_send(group, note(count))
            assert await receive(second, channel) == note(count)
            await first.group_discard(group, channel)
            count += 1
        return count

    async def move_inboxes() -> None:
        for slot in slots:
            home = redis_cluster.node_of(slot)
            for to in (other_than(redis_cluster, home), home):
                await move(redis_cluster, slot, to, kind)

    moves = asyncio.create_task(move_inboxes())
    assert await ask()
    await moves
    assert not sum(first.statistics().dropped.values())
    company.assert_intact()


@pytest.mark.parametrize("keys", [None, ["secret"]], ids=["open", "sealed"])
async def test_exclude_and_seals(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, keys: list[str] | None
) -> None:
    """Over moves a sealed message can be opened, and a channel that it excludes does not get it."""
    layers = [await make_on_cluster(symmetric_encryption_keys=keys) for _ in range(2)]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("room", channel)
    slot = slot_of_group(layers[0], "room")
    moving = Moving(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)))
    sends: list[asyncio.Task[None]] = []
    for step in STEPS:
        await moving.until(step)
        sends += [
            asyncio.create_task(layers[0].group_send("room", note(n), exclude=[channels[n % 2]]))
            for n in range(len(sends), len(sends) + 10)
        ]
    await asyncio.gather(*sends)
    await layers[0].group_send("room", MARKER)
    for number, (layer, channel) in enumerate(zip(layers, channels, strict=True)):
        expected = [note(n) for n in range(len(sends)) if n % 2 != number]
        assert await receive_many(layer, channel, len(expected) + 1) == [*expected, MARKER]


async def test_normal_channels_in_groups(redis_cluster: Cluster, company: Company, kind: str) -> None:
    """The memberships of normal channels move with the group, and each message becomes a job once."""
    layer = company.layers[0]
    await company.join("room")
    await layer.group_add("crowd", "jobs")
    company.work("jobs")
    slot = slot_of_group(layer, "crowd")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)

    async def send() -> None:
        while not moves.done():
            company.pushed += 1
            await layer.group_send("crowd", {"type": "job", "n": company.pushed})

    async def move_group() -> None:
        for to in (away, home):
            await move(redis_cluster, slot, to, kind)

    moves = asyncio.create_task(move_group())
    await send()
    await moves
    await company.settle()
    company.assert_intact()


async def test_flush_over_all_nodes(redis_cluster: Cluster, make_on_cluster: MakeLayer, kind: str) -> None:
    """flush() drops the messages and memberships of all slots, also of one that moves meanwhile."""
    layer = await make_on_cluster()
    await layer.new_channel()
    queues = [f"jobs-{number}" for number in range(40)]
    for queue in queues:
        await layer.send(queue, note(1))
        await layer.group_add("crowd", queue)
    slot = slot_of_queue(layer, queues[0])
    await move(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)), kind)
    await layer.flush()
    for queue in queues:
        await assert_nothing_waits(layer, queue)
    await layer.group_send("crowd", note(2))
    for queue in queues:
        await assert_nothing_waits(layer, queue)


async def test_jobs_in_an_open_slot(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """A script whose keys are there does everything: it does not fail half way, at a key that it has emptied."""
    layer = await make_on_cluster()
    await layer.group_add("room", await layer.new_channel())
    await layer.send("jobs", note(1))
    await layer.send("jobs", note(2))
    queues = redis_bus_of(layer).queues

    async def pop(number: int) -> int:
        item = queues.pop("jobs", number)
        assert item is not None
        envelope = await item
        assert envelope is not None
        assert envelope.message is not None
        return int(envelope.message["n"])

    assert await pop(1) == 1
    slot = slot_of_queue(layer, "jobs")
    moving = Moving(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)))
    await moving.until("migrating")
    assert await pop(2) == 2
    given_back = queues.give_back("jobs", 2)
    # The list is gone, so the server answers TRYAGAIN, and the command is held.
    await moving.finish()
    assert given_back is not None
    await given_back
    assert await pop(3) == 2


@pytest.mark.parametrize("step", ["keys", "target", "source"])
async def test_last_word_on_a_topic_wins(redis_cluster: Cluster, company: Company, step: Step) -> None:
    """
    A group is left, and joined again, while its slot moves: the SUNSUBSCRIBE may be refused, or cross an end that
    the server tells. What is sent after the last joining is received, what is sent after the last leaving is not.
    """
    first, second = company.layers
    await company.join("room")
    slot = slot_of_group(first, "room")
    group = next(name for name in (f"other-{n}" for n in range(1000)) if slot_of_group(first, name) == slot)
    channel = await first.new_channel()
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    for to in (away, home):
        moving = Moving(redis_cluster, slot, to)
        await moving.until(step)
        for _ in range(3):
            joining = asyncio.create_task(first.group_add(group, channel))
            await steps(3)
            leaving = asyncio.create_task(first.group_discard(group, channel))
            await steps(1)
        await moving.finish()
        await asyncio.gather(joining, leaving)
        # What is read from the log to catch up may be from before a joining.
        await is_at(company.layers, slot, to)
        await first.group_discard(group, channel)
        await second.group_send(group, note(1))
        await first.group_add(group, channel)
        await second.group_send(group, note(2))
        assert await receive(first, channel) == note(2)
        await first.group_discard(group, channel)
        await asyncio.to_thread(redis_cluster.wait_until_ok)
    company.send_to_all(5)
    await company.settle()
    company.assert_intact()


async def test_unsubscription_behind_a_move(redis_cluster: Cluster, company: Company) -> None:
    """A slot moves before the session reads of it, and then it unsubscribes: replies keep their order."""
    first = company.layers[0]
    await company.join("room")
    slot = slot_of_group(first, "room")
    groups = [name for name in (f"other-{n}" for n in range(1000)) if slot_of_group(first, name) == slot][:5]
    channel = await first.new_channel()
    for group in groups:
        await first.group_add(group, channel)
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    wire = home_of(first, slot).pushes.wire
    assert wire is not None
    # The loop is blocked meanwhile: it reads nothing.
    redis_cluster.migrate_classic(slot, away)
    for group in groups:
        await first.group_discard(group, channel)
    await is_at(company.layers, slot, away)
    assert not wire.is_lost
    company.send_to_all(5)
    await company.settle()
    company.assert_intact()
