"""
What the servers of a Redis Cluster do, as far as this package depends on it.

No code of the package runs here. A server that fails one of these breaks the code that relies on it.
"""

from __future__ import annotations

from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServerError
from tests.cluster_fixtures import SLOT, cluster, source, started, target
from tests.cluster_nodes import Node, wait_for
from tests.clusters import Cluster

__all__ = ["cluster", "source", "started", "target"]

#: Two keys and a channel of one slot.
LOG, MEMBERS, CHANNEL = "{0}log", "{0}members", "{0}channel"

#: A channel of another slot, and of another node.
FOREIGN = "{1}channel"

#: Append to the log and publish, as the scripts of the package do; the channel is no key.
SEND = "redis.call('XADD', KEYS[1], '*', 'm', ARGV[2]); return redis.call('SPUBLISH', ARGV[1], ARGV[2])"


def send(node: Node, text: str, *keys: str, channel: str = CHANNEL) -> int:
    """Run the script with these keys, by default the log alone; return how many clients of the node got it."""
    keys = keys or (LOG,)
    return int(node.command("EVAL", SEND, len(keys), *keys, channel, text))


def refusal(node: Node, *keys: str) -> str:
    """Return the code of the error with which a node refuses the script."""
    with pytest.raises(EmbeddedServerError) as raised:
        send(node, "refused", *keys)
    return str(raised.value).split()[0]


def message(text: str) -> list[bytes]:
    """Return the push of a message."""
    return [b"smessage", CHANNEL.encode(), text.encode()]


ENDED: list[Any] = [b"sunsubscribe", CHANNEL.encode(), 0]


class TestScripts:
    """A script writes the log and publishes, in one step."""

    def test_spublish(self, source: Node) -> None:
        """SPUBLISH works within a script, and its channel need not be declared."""
        with source.connect() as client:
            client.command("SSUBSCRIBE", CHANNEL)
            assert send(source, "one") == 1
            assert client.read() == message("one")
        assert source.command("XLEN", LOG) == 1

    def test_foreign_channel_leaves_the_log_written(self, source: Node) -> None:
        """A channel of another node is refused only when the log is written: all names of a send share a slot."""
        with pytest.raises(EmbeddedServerError):
            send(source, "one", channel=FOREIGN)
        assert source.command("XLEN", LOG) == 1

    def test_several_slots_are_refused(self, source: Node) -> None:
        """The channels of one SSUBSCRIBE have one slot."""
        with pytest.raises(EmbeddedServerError, match=r"^CROSSSLOT"):
            source.command("SSUBSCRIBE", CHANNEL, FOREIGN)


class TestMoves:
    """A slot moves under its subscribers."""

    def test_sunsubscribe_comes_last(self, cluster: Cluster, source: Node, target: Node) -> None:
        """The server ends the subscription unasked, after every message that it published before."""
        with source.connect() as client:
            client.command("SSUBSCRIBE", CHANNEL)
            texts = [str(number) for number in range(200)]
            for text in texts:
                send(source, text)
            cluster.migrate_classic(SLOT, target)
            assert [client.read() for _ in texts] == [message(text) for text in texts]
            assert client.read() == ENDED
            # With its last channel the client has left the mode in which a PING is answered by a list.
            assert client.command("PING", "token") == b"token"

    def test_sunsubscribe_of_an_atomic_move(self, cluster: Cluster, source: Node, target: Node) -> None:
        """It comes likewise when the servers move the slot themselves, and the log goes along as it is."""
        if not cluster.has_atomic:
            pytest.skip("this server moves no slots by itself")
        with source.connect() as client:
            client.command("SSUBSCRIBE", CHANNEL)
            send(source, "one")
            before = source.command("XINFO", "STREAM", LOG)
            cluster.migrate_atomic(SLOT, target)
            assert [client.read(), client.read()] == [message("one"), ENDED]
        after = target.command("XINFO", "STREAM", LOG)
        assert after[after.index(b"last-generated-id") + 1] == before[before.index(b"last-generated-id") + 1]

    def test_answers_of_an_open_slot(self, cluster: Cluster, source: Node, target: Node) -> None:
        """While a slot is open its owner answers by what it has: done, TRYAGAIN or ASK, and MOVED in the end."""
        send(source, "one")
        with source.connect() as client:
            client.command("SSUBSCRIBE", CHANNEL)
            steps = cluster.classic_steps(SLOT, target)
            assert [next(steps), next(steps)] == ["importing", "migrating"]
            assert send(source, "two") == 1
            assert refusal(source, LOG, MEMBERS) == "TRYAGAIN"
            assert refusal(source, MEMBERS) == "ASK"
            assert [next(steps), next(steps)] == ["batch", "keys"]
            assert refusal(source) == "ASK"
            assert refusal(source, LOG, MEMBERS) == "ASK"
            # SPUBLISH itself is served all along: it has no key.
            assert source.command("SPUBLISH", CHANNEL, "three") == 1
            with target.connect() as other:
                # Who follows ASK reaches no subscriber: they are all at the source.
                other.command("ASKING")
                assert other.command("EVAL", SEND, 1, LOG, CHANNEL, "unheard") == 0
            assert [*steps] == ["target", "source", "others"]
            assert refusal(source) == "MOVED"
            assert [client.read() for _ in range(3)] == [message("two"), message("three"), ENDED]

    def test_log_keeps_its_ids(self, cluster: Cluster, source: Node, target: Node) -> None:
        """Entries and last id arrive unchanged, and new ids are above them."""
        for text in ("one", "two"):
            send(source, text)
        entries = source.command("XRANGE", LOG, "-", "+")
        replids = [node.info("replication")["master_replid"] for node in (source, target)]
        cluster.migrate_classic(SLOT, target)
        assert target.command("XRANGE", LOG, "-", "+") == entries
        send(target, "three")
        assert target.command("XRANGE", LOG, "-", "+")[:2] == entries
        assert [node.info("replication")["master_replid"] for node in (source, target)] == replids


class TestReplicas:
    """A replica, and how a primary becomes one."""

    def test_replica_takes_subscriptions(self, cluster: Cluster, source: Node) -> None:
        """A replica confirms SSUBSCRIBE and delivers, but lets no log be read: that tells it from a primary."""
        (replica,) = cluster.replicas_of(source)
        with replica.connect() as client:
            assert client.command("SSUBSCRIBE", CHANNEL) == [b"ssubscribe", CHANNEL.encode(), 1]
            send(source, "one")
            assert client.read() == message("one")
        assert refusal(replica) == "MOVED"

    def test_planned_failover(self, cluster: Cluster, source: Node) -> None:
        """The old primary ends subscriptions, and says that it follows its own history: nothing was lost."""
        (replica,) = cluster.replicas_of(source)
        old = source.info("replication")["master_replid"]
        with source.connect() as client:
            client.command("SSUBSCRIBE", CHANNEL)
            send(source, "one")
            cluster.failover(replica)
            assert [client.read(), client.read()] == [message("one"), ENDED]
        cluster.wait_until_ok()
        for node, role in ((source, "slave"), (replica, "master")):
            found = node.info("replication")
            assert (found["role"], found["master_replid2"]) == (role, old)
            assert found["master_replid"] != old
        assert refusal(source) == "MOVED"

    @pytest.mark.slow
    def test_frozen_primary_is_no_planned_failover(self, cluster: Cluster, source: Node) -> None:
        """A primary that executed what the new one lacks comes back without its own history."""
        (replica,) = cluster.replicas_of(source)
        old = source.info("replication")["master_replid"]
        # The replica never gets this: its own process stands still, and its connection ends.
        replica.freeze()
        source.command("CLIENT", "KILL", "TYPE", "replica")
        send(source, "lost")
        source.freeze()
        replica.thaw()
        cluster.wait_for_promotion(replica)
        source.thaw()
        wait_for(lambda: source.role == "slave", "the old primary follows")
        cluster.wait_until_ok()
        assert source.info("replication")["master_replid2"] == "0" * 40
        assert replica.info("replication")["master_replid2"] == old
        assert replica.command("EXISTS", LOG) == 0

    @pytest.mark.slow
    def test_killed_primary(self, cluster: Cluster, source: Node) -> None:
        """The promoted replica has a new history, and no script is known to it."""
        (replica,) = cluster.replicas_of(source)
        old = source.info("replication")["master_replid"]
        digest = source.command("SCRIPT", "LOAD", SEND)
        source.kill()
        cluster.wait_for_promotion(replica)
        cluster.wait_until_ok()
        found = replica.info("replication")
        assert found["master_replid"] != old
        assert found["master_replid2"] == old
        with pytest.raises(EmbeddedServerError, match=r"^NOSCRIPT"):
            replica.command("EVALSHA", digest, 1, LOG, CHANNEL, "one")
        source.restart()
        cluster.wait_until_ok()
        assert source.info("replication")["master_replid2"] == "0" * 40
