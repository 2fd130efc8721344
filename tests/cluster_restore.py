"""How a cluster comes back to what it was before a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from channels_asyncq.testing import EmbeddedServerError
from tests.cluster_nodes import Node, slot_numbers, wait_for

if TYPE_CHECKING:
    from tests.clusters import Cluster

#: With more slots than this in other places, a new start is the shorter way.
MOST_SLOTS: Final = 500

#: What CONFIG GET tells without being a setting: it changes with the role, and with a new start.
NO_SETTINGS: Final = {b"replicaof", b"slaveof", b"dir", b"unixsocket"}

Place = tuple[str | None, tuple[str, ...]]


class FirstState:
    """A cluster as it was when it had started: its nodes, their places and their settings."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes = list(cluster.nodes)
        self._places: dict[str, Place] = {node.id: node.me().place for node in self._nodes}
        self._settings = {node.id: node.settings for node in self._nodes}
        self._users = {node.id: node.users for node in self._nodes}

    def put_back(self) -> None:
        """Make the cluster what it was: by the smallest changes that do, or else by a new start."""
        for node in self._cluster.nodes:
            node.thaw()
        if self._is_complete():
            for node in self._nodes:
                self._put_settings_back(node)
            if self._mend():
                return
        self._cluster.start_anew(self._nodes)

    def _is_complete(self) -> bool:
        """Whether all first nodes live, and all nodes see each other well."""
        now = self._cluster.nodes
        if not all(node.is_living for node in now) or not set(self._nodes).issubset(now):
            return False
        ids = {node.id for node in now}
        views = [node.view() for node in now]
        return all(view.keys() == ids and all(entry.is_well for entry in view.values()) for view in views)

    def _mend(self) -> bool:
        """Remove the keys, and put roles, slots and nodes back; False if that did not succeed in time."""
        try:
            for node in self._cluster.primaries():
                _remove_keys(node)
            if not self._is_now():
                # A node that has yet to hear of a failover still calls itself what it was.
                self._cluster.wait_until_ok()
                self._close_slots()
                self._put_roles_back()
                self._put_slots_back()
                self._forget_others()
                wait_for(self._is_now, "the cluster is as at first")
        except (EmbeddedServerError, OSError):
            return False
        return True

    def _is_now(self) -> bool:
        """Whether nodes, roles and slots are as at first, in the view of each node."""
        if self._cluster.nodes != self._nodes or not self._cluster.is_ok():
            return False
        for node in self._nodes:
            view = node.view()
            if (
                view[node.id].open_slots
                or {name: entry.place for name, entry in view.items()} != self._places
            ):
                return False
        return True

    def _put_settings_back(self, node: Node) -> None:
        first = self._settings[node.id]
        for name, value in node.settings.items():
            if name not in NO_SETTINGS and first[name] != value:
                node.command("CONFIG", "SET", name, first[name])
        users = self._users[node.id]
        for user, rules in node.users.items():
            if user not in users:
                node.command("ACL", "DELUSER", user)
            elif rules != users[user]:
                node.command("ACL", "SETUSER", user, "reset", *users[user])

    def _close_slots(self) -> None:
        for node in self._cluster.primaries():
            for slot in node.me().open_slots:
                node.command("CLUSTER", "SETSLOT", slot, "STABLE")

    def _put_roles_back(self) -> None:
        for node in self._nodes:
            now, first = node.me().primary, self._places[node.id][0]
            if now is None or now == first:
                continue
            if first is not None:
                node.command("CLUSTER", "REPLICATE", first)
            elif self._places.get(now, (None, ()))[0] == node.id:
                self._cluster.failover(node)
            else:
                raise EmbeddedServerError(f"{node.address} follows a node that is no replica of its own.")

    def _put_slots_back(self) -> None:
        moved = [
            (slot, home)
            for home in self._nodes
            for slot in slot_numbers(self._places[home.id][1]) - home.me().numbers()
        ]
        if len(moved) > MOST_SLOTS:
            raise EmbeddedServerError(f"{len(moved)} slots are elsewhere.")
        for slot, home in moved:
            self._cluster.migrate_classic(slot, home)

    def _forget_others(self) -> None:
        for node in [node for node in self._cluster.nodes if node not in self._nodes]:
            self._cluster.forget(node)


def _remove_keys(node: Node) -> None:
    if node.command("DBSIZE"):
        node.command("FLUSHALL")
