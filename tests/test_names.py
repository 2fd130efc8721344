"""Names to partitions, hosts and what Redis sees."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.names import Topic, Topics, new_session_id, owner_of
from channels_asyncq.slots import slot_of

NODE = "0123456789abcdef"

names = st.text("abcXYZ019-_.", min_size=1, max_size=40)


def test_new_session_id() -> None:
    """A session is 16 hexadecimal digits, and no two are the same."""
    session_ids = {new_session_id() for _ in range(1000)}
    assert len(session_ids) == 1000
    assert all(
        len(session_id) == 16 and not session_id.strip("0123456789abcdef") for session_id in session_ids
    )


@pytest.mark.parametrize(
    ("channel", "session_id"),
    [
        (f"specific.{NODE}!1.x", NODE),
        (f"a.b.c.{NODE}!", NODE),
        (f"{NODE}!x", NODE),
        (f".{NODE}!x", NODE),
        ("jobs", None),
        (NODE, None),
        ("jobs!x", ""),
        (f"specific.{NODE[:-1]}!x", ""),
        (f"specific.{NODE}0!x", ""),
        (f"specific.{NODE.upper()}!x", ""),
        (f"specific.{NODE}.more!x", ""),
        (f"specific!{NODE}", ""),
        ("!", ""),
    ],
)
def test_owner_of(channel: str, session_id: str | None) -> None:
    """`<prefix>.<session>!<local>` has an owner, another name with a `!` has none, the rest any process reads."""
    assert owner_of(channel) == session_id


def test_the_names_that_redis_sees() -> None:
    """The names of the design, with the database number in each."""
    names = Topics("asgi", 16, [3], NODE)
    chat, jobs = names.partition("chat"), names.partition("jobs")
    assert names.group("chat").topic == Topic(chat, b"asgi:3:group:chat")
    assert names.group("chat").log == names.log(chat) == b"asgi:3:log:%d" % chat
    assert names.group("chat").members == b"asgi:3:members:chat"
    assert names.history("chat") == b"asgi:3:history:chat"
    # Wake-ups are in no log; the pushes have the numbers of the partition.
    assert names.queue("jobs").topic == Topic(jobs, b"asgi:3:queue:jobs", is_logged=False)
    assert names.queue("jobs").seen == b"asgi:3:seen:%d:0123456789abcdef" % jobs
    assert names.queue("jobs").taken == b"asgi:3:taken:0123456789abcdef:jobs"
    assert names.queue("jobs").waiting == b"asgi:3:waiting:jobs"
    session_id = names.partition("ab" * 8)
    assert names.inbox("ab" * 8) == Topic(session_id, b"asgi:3:inbox:abababababababab")
    assert names.everybody == Topic(0, b"asgi:3:all")
    assert names.fence(0, 0) == b"asgi:3:fence:0123456789abcdef:0"
    assert names.mark(chat) == b"asgi:3:mark:%d" % chat
    assert names.layouts(0) == b"asgi:3:layouts"
    keys = names.lease_keys(0, b"{}")
    assert keys == (b"asgi:3:layouts", b"asgi:3:layouts:44136fa355b3678a", b"asgi:3:layouts:past")
    kinds = (b"queue", b"taken", b"members", b"epoch", b"history")
    assert names.stored(0) == [b"asgi:3:%b:*" % kind for kind in kinds]


@given(name=names)
def test_namespaces_never_meet(name: str) -> None:
    """Another prefix or another database gives another name to everything."""
    spaces = [Topics(prefix, 16, [db], NODE) for prefix in ("a", "b") for db in (0, 1)]
    every: list[bytes] = []
    for space in spaces:
        every += [space.group(name).topic.name, space.group(name).members, space.history(name)]
        every += [space.queue(name).topic.name, space.queue(name).taken]
        every += [space.inbox(name).name, space.everybody.name, *space.lease_keys(0, b"{}")]
    assert len(set(every)) == len(every)


@given(name=names, group=names)
@pytest.mark.parametrize(
    "kind",
    [
        *("group", "members", "inbox", "queue", "taken", f"taken:{NODE}", "seen", "seen:1", "waiting"),
        *("log", "epoch", "history", "fence", "all"),
    ],
)
def test_a_namespace_within_another(kind: str, name: str, group: str) -> None:
    """A prefix that begins with another one and with what follows that in its keys shares no name with it."""
    outer, inner = Topics("asgi", 16, [0], NODE), Topics(f"asgi:0:{kind}", 16, [0], NODE)
    every, stored = [], []
    for space in (outer, inner):
        queue, members = space.queue(name), space.group(group)
        epoch = space.epoch(members.topic.partition)
        stored.append([queue.topic.name, queue.taken, members.members, epoch, space.history(group)])
        every += [*stored[-1], queue.seen, queue.waiting, members.topic.name, members.log]
        every += space.lease_keys(0, b"{}")
        every += [space.inbox(NODE).name, space.everybody.name, space.fence(0, 0)]
    assert len(set(every)) == len(every)
    for space, own in zip((outer, inner), stored, strict=True):
        assert [key for key in every if space.is_stored(0, key)] == own


@given(name=names, partitions=st.integers(1, 64), hosts=st.integers(1, 5))
def test_a_name_has_one_partition_and_one_host(name: str, partitions: int, hosts: int) -> None:
    """The slice is below `partitions`; it decides the host, for everything of that name, in every process."""
    partitions = max(partitions, hosts)
    space = Topics("asgi", partitions, list(range(hosts)), NODE)
    other = Topics("asgi", partitions, list(range(hosts)), new_session_id())
    assert 0 <= space.partition(name) < partitions
    partition, root = space.partition(name), b"asgi:%d:" % (space.partition(name) % hosts)
    for topic in (space.group(name).topic, space.queue(name).topic, space.inbox(name)):
        assert topic.partition == partition and topic.name.startswith(root)
    queue, group = space.queue(name), space.group(name)
    keys = (group.members, group.log, queue.taken, queue.seen, queue.waiting, space.mark(partition))
    assert all(key.startswith(root) for key in keys)
    assert other.group(name) == space.group(name)
    assert other.queue(name).topic == space.queue(name).topic
    assert other.queue(name).taken != space.queue(name).taken


def test_partitions_are_used_evenly() -> None:
    """No slice gets more than twice, or less than half, of its share of many names."""
    space = Topics("asgi", 16, [0], NODE)
    counts = [0] * 16
    for number in range(16_000):
        counts[space.partition(f"room.{number}")] += 1
    assert min(counts) > 500 and max(counts) < 2000


def test_the_hash_is_that_of_every_process() -> None:
    """A process with another seed for hashes finds the same slice."""
    code = "from channels_asyncq.names import Topics; print(Topics('p', 64, [0], 'n').partition('room'))"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {f"{Topics('p', 64, [0], NODE).partition('room')}\n"}


@given(name=names)
def test_nodes_of_one_host_have_fences_of_their_own(name: str) -> None:
    """A session that uses two nodes of one host hears the fences of each apart, on topics of no partition."""
    space = Topics("asgi", 16, [0, 1], NODE)
    every = [space.fence(host, node) for host in (0, 1) for node in (0, 1)]
    assert len({*every, space.group(name).topic.name, space.inbox(name).name}) == 6


@given(name=names, other=st.integers(0, 15))
def test_the_group_of_a_topic(name: str, other: int) -> None:
    """A group is found again from its topic; what is no group's topic is not taken for one."""
    space = Topics("my.site", 16, [7, 8, 9], NODE)
    topic = space.group(name).topic
    assert space.group_named(topic.name) == name
    assert space.is_group(topic.partition, topic.name)
    assert not space.is_group(other, space.queue(name).topic.name)
    assert not space.is_group(other, space.inbox(name).name)
    assert not space.is_group(other, space.everybody.name)
    if other % 3 != topic.partition % 3:
        assert not space.is_group(other, topic.name)  # it is in the database of another host


# In a Redis Cluster


def cluster(partitions: int = 64, prefix: str = "asgi") -> Topics:
    return Topics(prefix, partitions, [0], NODE, is_cluster=True)


def test_the_names_in_a_cluster() -> None:
    """Each name has the tag of its partition; those of the whole cluster have the tag of partition 0."""
    names = cluster(16)
    assert names.is_cluster and not Topics("asgi", 16, [0], NODE).is_cluster
    assert [names.root(p) for p in (0, 1, 15)] == [b"asgi:0:{10}:", b"asgi:0:{3}:", b"asgi:0:{40}:"]
    partition = names.partition("chat")
    root = names.root(partition)
    assert names.group("chat").topic == Topic(partition, root + b"group:chat")
    assert names.group("chat").members == root + b"members:chat"
    assert names.history("chat") == root + b"history:chat"
    assert names.log(partition) == root + b"log:%d" % partition
    assert names.everybody == Topic(0, b"asgi:0:{10}:all")
    assert names.layouts(0) == b"asgi:0:{10}:layouts"
    assert names.fence(0, 2) == names.fence_of(0, 2) == b"asgi:0:{10}:fence:0123456789abcdef:2"
    assert names.fence_of(15, 2) == b"asgi:0:{40}:fence:0123456789abcdef:2"
    kinds = (b"queue", b"taken", b"members", b"epoch", b"history")
    assert names.stored(0) == [b"asgi:0:{*}:%b:*" % kind for kind in kinds]


@given(name=names, partitions=st.integers(1, 200))
def test_a_partition_is_one_slot(name: str, partitions: int) -> None:
    """A script may use any names of a partition: they are all in its slot. No other partition has that slot."""
    space = cluster(partitions)
    queue, group, inbox = space.queue(name), space.group(name), space.inbox(name)
    partition = space.partition(name)
    every = [*queue[1:], queue.topic.name, group.topic.name, group.members, group.log, inbox.name]
    every += [space.epoch(partition), space.mark(partition), space.fence_of(partition, 3)]
    assert {slot_of(each) for each in every} == {space.slot(partition)}
    first = [space.everybody.name, *space.lease_keys(0, b"{}"), space.fence(0, 3)]
    assert {slot_of(each) for each in first} == {space.slot(0)}
    assert len({space.slot(p) for p in range(partitions)}) == partitions


@given(name=names, other=st.integers(0, 63))
def test_the_group_of_a_topic_in_a_cluster(name: str, other: int) -> None:
    """A group is found again from its topic, in its own partition only."""
    space = cluster()
    topic = space.group(name).topic
    assert space.group_named(topic.name) == name
    assert space.is_group(other, topic.name) == (other == topic.partition)
    assert not space.is_group(topic.partition, space.queue(name).topic.name)


@given(name=names)
def test_what_a_flush_deletes_in_a_cluster(name: str) -> None:
    """Queues, claims, memberships and epochs under the tags of the own partitions, and nothing else."""
    space = cluster()
    queue, group = space.queue(name), space.group(name)
    partition = space.partition(name)
    for key in (queue.topic.name, queue.taken, group.members, space.epoch(partition)):
        assert space.is_stored(0, key)
        # A wider tag of another layer, which the glob patterns match too.
        assert not space.is_stored(0, key.replace(space.root(partition), b"asgi:0:{x}:{10}:"))
        assert not space.is_stored(0, key.replace(space.root(partition), b"asgi:0:{99999}:"))
        assert not space.is_stored(0, key.replace(space.root(partition), b"asgi:0:"))
        assert not cluster(prefix="asgi:0").is_stored(0, key)
    others = [queue.seen, queue.waiting, group.topic.name, group.log, space.mark(partition)]
    assert not any(
        space.is_stored(0, key) for key in (*others, *space.lease_keys(0, b"{}"), b"", b"{", b"}:")
    )


@given(name=names)
def test_a_cluster_shares_no_name_with_plain_hosts(name: str) -> None:
    """Whatever their prefixes are: no name or prefix has a brace in it."""
    every: list[bytes] = []
    for space in (cluster(), cluster(prefix="asgi:0"), Topics("asgi", 64, [0], NODE)):
        every += [space.group(name).topic.name, space.group(name).members, space.queue(name).topic.name]
        every += [space.inbox(name).name, space.everybody.name, *space.lease_keys(0, b"{}")]
    assert len(set(every)) == len(every)
