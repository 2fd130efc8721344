"""The cluster of the tests: every change that it can make, and the way back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from channels_asyncq.testing import EmbeddedServerError, server_binaries
from tests import clusters
from tests.cluster_fixtures import SLOT, cluster, source, started, target
from tests.cluster_nodes import SLOTS, Entry, Node, version_of, wait_for
from tests.clusters import Cluster

__all__ = ["cluster", "source", "started", "target"]

#: The hash tag of the slot, and how many keys the tests write there: more than one batch.
TAG = "0"
KEYS = 250

STEPS = ["importing", "migrating", "batch", "batch", "batch", "keys", "target", "source", "others"]


class Stop(Exception):
    """What a test raises to leave a move off."""


def fill(node: Node) -> None:
    """Write the keys."""
    for number in range(KEYS):
        node.command("SET", f"{{{TAG}}}{number}", number)


def count(node: Node) -> int:
    """Return how many keys a node has in the slot."""
    return int(node.command("CLUSTER", "COUNTKEYSINSLOT", SLOT))


def pids(cluster: Cluster) -> list[int]:
    """Return the process ids: another one tells of a new start."""
    return [node.pid for node in cluster.nodes]


def stop_at(step: str) -> Callable[[str], None]:
    """Return an `on_step` that ends the move after a step."""

    def on_step(name: str) -> None:
        if name == step:
            raise Stop

    return on_step


class TestStart:
    """What there is when it has started."""

    def test_nodes_stand_where_they_should(self, cluster: Cluster) -> None:
        """Three primaries share all slots, and each is followed by the replica at the same place of the list."""
        assert cluster.primaries() == cluster.nodes[:3]
        assert [node.role for node in cluster.nodes] == ["master"] * 3 + ["slave"] * 3
        assert [cluster.replicas_of(node) for node in cluster.nodes[:3]] == [[n] for n in cluster.nodes[3:]]
        assert [cluster.node_of(slot) for slot in (0, 5460, 5461, 10922, SLOTS - 1)] == [
            cluster.nodes[n] for n in (0, 0, 1, 2, 2)
        ]

    def test_nodes_are_what_the_servers_say(self, cluster: Cluster) -> None:
        """Ids and addresses are those by which the servers know each other, and those of the URL."""
        seen = cluster.nodes[-1].view()
        assert {node.id: node.address for node in cluster.nodes} == {e.id: e.address for e in seen.values()}
        assert [node.info("server")["tcp_port"] for node in cluster.nodes] == [
            str(node.port) for node in cluster.nodes
        ]
        addresses = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[:3])
        assert cluster.url == f"redis+cluster://{addresses}"

    def test_spublish_reaches_the_replica(self, cluster: Cluster, source: Node) -> None:
        """The servers know each other's shards: without, some of them abort at the first SPUBLISH."""
        (replica,) = cluster.replicas_of(source)
        with replica.connect() as client:
            assert client.command("SSUBSCRIBE", TAG) == [b"ssubscribe", TAG.encode(), 1]
            source.command("SPUBLISH", TAG, "hello")
            assert client.read() == [b"smessage", TAG.encode(), b"hello"]

    def test_errors_keep_their_code(self, source: Node, target: Node) -> None:
        """An error of the server is told as it is, for tests to read."""
        with pytest.raises(EmbeddedServerError, match=f"^MOVED {SLOT} {source.address}$"):
            target.command("GET", TAG)


class TestMoves:
    """A slot moves, with what it holds."""

    def test_classic_both_ways(self, cluster: Cluster, source: Node, target: Node) -> None:
        """Moved step by step, all keys arrive, there and back."""
        fill(source)
        for here, there in ((source, target), (target, source)):
            steps: list[str] = []
            cluster.migrate_classic(SLOT, there, steps.append)
            assert steps == STEPS
            assert cluster.node_of(SLOT) is there
            assert (count(here), count(there)) == (0, KEYS)
        cluster.wait_until_ok()

    def test_atomic_both_ways(self, cluster: Cluster, source: Node, target: Node) -> None:
        """Moved by the servers, all keys arrive, there and back; a server that cannot says so."""
        fill(source)
        if not cluster.has_atomic:
            with pytest.raises(EmbeddedServerError, match=r"(?i)unknown subcommand"):
                cluster.migrate_atomic(SLOT, target)
            return
        for there in (target, source):
            cluster.migrate_atomic(SLOT, there)
            assert cluster.node_of(SLOT) is there
            assert count(there) == KEYS
            cluster.wait_until_ok()

    @pytest.mark.parametrize("step", [*dict.fromkeys(STEPS[:-1])])
    def test_left_off_and_gone_on_with(self, cluster: Cluster, source: Node, target: Node, step: str) -> None:
        """A move can be left off after each step, and goes on from there."""
        fill(source)
        with pytest.raises(Stop):
            cluster.migrate_classic(SLOT, target, stop_at(step))
        cluster.migrate_classic(SLOT, target)
        assert cluster.node_of(SLOT) is target
        assert (count(source), count(target)) == (0, KEYS)
        cluster.wait_until_ok()

    def test_given_up(self, cluster: Cluster, source: Node, target: Node) -> None:
        """An open slot is closed where it is."""
        steps = cluster.classic_steps(SLOT, target)
        assert [next(steps), next(steps)] == ["importing", "migrating"]
        assert source.me().open_slots == target.me().open_slots == {SLOT}
        with pytest.raises(EmbeddedServerError, match=r"^ASK"):
            source.command("GET", TAG)
        cluster.close_slot(SLOT)
        assert source.me().open_slots == target.me().open_slots == set()
        assert source.command("GET", TAG) is None


class TestChanges:
    """Roles and nodes change."""

    def test_failover_and_back(self, cluster: Cluster, source: Node) -> None:
        """The replica takes the slots over with the keys, and gives them back."""
        fill(source)
        (replica,) = cluster.replicas_of(source)
        for old, new in ((source, replica), (replica, source)):
            cluster.failover(new)
            assert cluster.node_of(SLOT) is new
            cluster.wait_until_ok()
            assert (new.role, old.role) == ("master", "slave")
            assert cluster.replicas_of(new) == [old]
            assert count(new) == KEYS

    @pytest.mark.slow
    def test_second_failover_to_the_same_node(self, cluster: Cluster, source: Node) -> None:
        """Redis 7.0 must have forgotten its votes of the first one: otherwise the others undo the second."""
        (replica,) = cluster.replicas_of(source)
        for new in (replica, source, replica):
            cluster.failover(new)
            cluster.wait_until_ok()
            assert cluster.node_of(SLOT) is new

    @pytest.mark.slow
    def test_failover_without_votes(self, cluster: Cluster, source: Node) -> None:
        """What the others did not vote for in time is asked for again."""
        (replica,) = cluster.replicas_of(source)
        others = [node for node in cluster.primaries() if node is not source]
        for node in others:
            node.freeze()

        def thaw() -> None:
            wait_for(lambda: "Manual failover timed out" in replica.log, "the server has given up")
            for node in others:
                node.thaw()

        with ThreadPoolExecutor(1) as pool:
            thawing = pool.submit(thaw)
            cluster.failover(replica)
            thawing.result()
        assert cluster.node_of(SLOT) is replica

    def test_waiting_in_vain(self, cluster: Cluster, source: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error has the last lines of each server's log."""
        monkeypatch.setattr(clusters, "LIMIT", 0.0)
        with pytest.raises(TimeoutError) as raised:
            cluster.wait_for_promotion(cluster.replicas_of(source)[0])
        for node, note in zip(cluster.nodes, raised.value.__notes__, strict=True):
            address, *lines = note.splitlines()
            assert address == f"{node.address}:"
            assert lines and set(lines) <= set(node.log.splitlines())

    @pytest.mark.slow
    def test_kill_and_promotion(self, cluster: Cluster, source: Node) -> None:
        """A replica takes the place of a dead primary, which comes back as its replica under its id."""
        (replica,) = cluster.replicas_of(source)
        identity = (source.id, source.port)
        source.kill()
        assert source not in cluster.living()
        with pytest.raises(OSError, match=r"refused|No such file"):
            source.command("PING")
        cluster.wait_for_promotion(replica)
        cluster.wait_until_ok()
        assert cluster.node_of(SLOT) is replica
        source.restart()
        cluster.wait_until_ok()
        assert (source.id, source.port) == identity
        assert cluster.replicas_of(replica) == [source]

    @pytest.mark.slow
    def test_freeze_and_thaw(self, cluster: Cluster, source: Node) -> None:
        """A frozen primary answers nobody, is replaced, and learns of it when it goes on."""
        (replica,) = cluster.replicas_of(source)
        source.freeze()
        assert source not in cluster.living()
        with pytest.raises(TimeoutError):
            source.command("PING", timeout=0.1)
        cluster.wait_for_promotion(replica)
        source.thaw()
        wait_for(lambda: source.role == "slave", "the old primary follows")
        cluster.wait_until_ok()
        assert cluster.replicas_of(replica) == [source]

    @pytest.mark.slow
    def test_forced_failover(self, cluster: Cluster, source: Node) -> None:
        """A replica is made primary while the primary is frozen."""
        (replica,) = cluster.replicas_of(source)
        source.freeze()
        cluster.failover(replica, force=True)
        assert cluster.node_of(SLOT) is replica

    def test_node_joins_and_is_forgotten(self, cluster: Cluster, source: Node) -> None:
        """A new node takes a slot; it is forgotten once it has none."""
        fill(source)
        node = cluster.add_node()
        assert cluster.nodes[-1] is node
        assert node in cluster.primaries()
        cluster.migrate_classic(SLOT, node)
        assert count(node) == KEYS
        with pytest.raises(ValueError, match=f"{node.address} has slots .*{SLOT}"):
            cluster.forget(node)
        cluster.migrate_classic(SLOT, source)
        name = node.id
        cluster.forget(node)
        assert not node.is_running
        assert not any(name in other.view() for other in cluster.nodes)
        cluster.wait_until_ok()

    @pytest.mark.slow
    def test_slot_of_a_dead_node(self, cluster: Cluster, source: Node) -> None:
        """A slot whose nodes are all dead belongs to no living one."""
        for node in (*cluster.replicas_of(source), source):
            node.kill()
        with pytest.raises(LookupError, match=f"slot {SLOT}"):
            cluster.node_of(SLOT)
        # At once, not only when the others have noticed.
        assert not cluster.is_ok()


class TestRestore:
    """`restore()` undoes whatever a test did."""

    def test_nothing(self, cluster: Cluster) -> None:
        """Where nothing has changed, no node starts again."""
        before = pids(cluster)
        cluster.restore()
        assert pids(cluster) == before

    def test_slots_keys_settings_and_users(self, cluster: Cluster, source: Node, target: Node) -> None:
        """What can be put back while the servers run is put back so."""
        before = pids(cluster)
        fill(source)
        cluster.migrate_classic(SLOT, target)
        with pytest.raises(Stop):
            cluster.migrate_classic(SLOT - 1, target, stop_at("migrating"))
        source.command("CONFIG", "SET", "maxmemory", "50mb", "timeout", 7)
        source.command("ACL", "SETUSER", "guest", "on", "nopass", "+ping")
        source.command("ACL", "SETUSER", "default", "-flushall")
        cluster.restore()
        assert pids(cluster) == before
        assert cluster.node_of(SLOT) is source
        assert not any(node.me().open_slots for node in cluster.nodes)
        assert [node.command("DBSIZE") for node in cluster.nodes] == [0] * 6
        assert (source.settings[b"maxmemory"], source.settings[b"timeout"]) == (b"0", b"0")
        assert list(source.users) == ["default"]
        assert "-flushall" not in source.users["default"]

    def test_slot_moved_by_the_servers(self, cluster: Cluster, source: Node, target: Node) -> None:
        """A slot that the servers moved comes back as well."""
        if not cluster.has_atomic:
            pytest.skip("this server moves no slots by itself")
        before = pids(cluster)
        cluster.migrate_atomic(SLOT, target)
        cluster.restore()
        assert pids(cluster) == before
        assert cluster.node_of(SLOT) is source

    def test_roles(self, cluster: Cluster, source: Node) -> None:
        """A failover is undone by a failover."""
        before = pids(cluster)
        cluster.failover(cluster.replicas_of(source)[0])
        cluster.restore()
        assert pids(cluster) == before
        assert cluster.primaries() == cluster.nodes[:3]

    def test_added_node(self, cluster: Cluster, source: Node) -> None:
        """A node that was added gives its slots back and goes."""
        before = pids(cluster)
        node = cluster.add_node()
        cluster.migrate_classic(SLOT, node)
        cluster.restore()
        assert pids(cluster) == before
        assert not node.is_running
        assert cluster.node_of(SLOT) is source

    @pytest.mark.slow
    def test_dead_frozen_and_forgotten_nodes(self, cluster: Cluster, source: Node, target: Node) -> None:
        """After the worst, all nodes start again at their addresses and under their ids."""
        url, identities = cluster.url, [(node.id, node.port) for node in cluster.nodes]
        fill(source)
        cluster.forget(cluster.replicas_of(source)[0])
        source.kill()
        target.freeze()
        cluster.restore()
        assert cluster.url == url
        assert [(node.id, node.port) for node in cluster.nodes] == identities
        assert cluster.primaries() == cluster.nodes[:3]
        assert [node.command("DBSIZE") for node in cluster.nodes] == [0] * 6
        # Put back once more while all live: the new start is what counts as the beginning.
        before = pids(cluster)
        cluster.migrate_classic(SLOT, target)
        cluster.restore()
        assert pids(cluster) == before

    def test_stopped(self) -> None:
        """A cluster that does not run cannot be put back."""
        with pytest.raises(EmbeddedServerError, match="not running"):
            Cluster().restore()


@pytest.mark.slow
class TestOptions:
    """What a cluster is started with."""

    @pytest.mark.parametrize("binary", server_binaries(), ids=os.path.basename)
    def test_reach_the_servers(self, binary: str) -> None:
        """Arguments and options are settings of each server; a hostname can be announced."""
        with Cluster(
            2,
            0,
            binary,
            node_timeout=1500,
            full_coverage=False,
            cluster_announce_hostname="localhost",
            cluster_preferred_endpoint_type="hostname",
        ) as cluster:
            assert [node.settings[b"cluster-node-timeout"] for node in cluster.nodes] == [b"1500"] * 2
            assert cluster.nodes[0].settings[b"cluster-require-full-coverage"] == b"no"
            first, second = cluster.nodes
            with pytest.raises(EmbeddedServerError, match=f"^MOVED {SLOT} localhost:{second.port}$"):
                first.command("GET", TAG)

    def test_password(self) -> None:
        """With a password slots move too."""
        with Cluster(2, 0, requirepass="secret", masterauth="secret") as cluster:
            source, target = cluster.nodes[1], cluster.nodes[0]
            fill(source)
            cluster.migrate_classic(SLOT, target)
            assert count(target) == KEYS

    def test_taken_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If another process takes a port before a node does, the cluster starts on other ports."""
        choose, used = clusters._free_ports, clusters._free_ports(2)
        offers = [used]
        monkeypatch.setattr(clusters, "_free_ports", lambda n: offers.pop() if offers else choose(n))
        with Cluster(1, 0) as first:
            assert first.nodes[0].port == used[0]
            offers.append([choose(1)[0], used[1]])
            with Cluster(1, 0) as second:
                assert not offers
                assert second.nodes[0].port not in used

    def test_servers_end_with_the_process(self) -> None:
        """Nothing is left behind when the process of the tests is killed."""
        code = (
            "from tests.clusters import Cluster; c = Cluster(1, 1).start(); "
            "print(*[n.pid for n in c.nodes], *[n._folder for n in c.nodes], flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            *_, one, other = words = process.stdout.readline().split()
            process.kill()
        wait_for(lambda: not any(map(_is_running, map(int, words[:2]))), "the servers have ended")
        wait_for(lambda: not (os.path.exists(one) or os.path.exists(other)), "their folders are gone")


def test_version() -> None:
    """A server is told by what it says, not by the name of its file."""
    for binary in server_binaries():
        name, version = version_of(binary)
        assert name in ("redis", "valkey")
        assert version >= (6,)


def test_entry() -> None:
    """A line of CLUSTER NODES is read with its open slots and with what newer servers append."""
    entry = Entry.parse(
        "abc 127.0.0.1:7000@7100,host,tls-port=0,shard-id=9 myself,master - 0 0 3 connected 0-5 7 [6->-def]"
    )
    assert (entry.id, entry.address, entry.epoch) == ("abc", "127.0.0.1:7000", 3)
    assert entry.place == (None, ("0-5", "7"))
    assert entry.open_slots == {6}
    assert [slot for slot in range(10) if entry.has_slot(slot)] == [0, 1, 2, 3, 4, 5, 7]
    assert entry.is_well
    assert not Entry.parse("abc 127.0.0.1:7000@7100 slave,fail? def 0 0 3 connected").is_well
    assert not Entry.parse("abc 127.0.0.1:7000@7100 slave def 0 0 3 disconnected").is_well


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
