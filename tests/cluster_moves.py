"""How a slot moves from one node to another, step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, Literal

from channels_asyncq.testing import HOST, EmbeddedServerError
from tests.cluster_nodes import Node, wait_for

#: How long a migration of the server's own may take, in seconds.
MIGRATION_TIMEOUT: Final = 20.0

#: How long MIGRATE waits for the target, in milliseconds.
MIGRATE_TIMEOUT: Final = 5000

Step = Literal["importing", "migrating", "batch", "keys", "target", "source", "others"]


def classic_steps(
    slot: int, source: Node, target: Node, others: Collection[Node], batch: int = 100
) -> Iterator[Step]:
    """
    Move a slot with its keys as `valkey-cli --cluster reshard` does, and name each step when it is done.

    | step | what was done |
    |---|---|
    | importing, migrating | SETSLOT IMPORTING at the target, SETSLOT MIGRATING at the source: the slot is open |
    | batch | `batch` keys were moved, or as many as there were |
    | keys | no key is left at the source |
    | target, source, others | SETSLOT NODE was executed there; `others` are the other primaries |

    Left off in the middle, the slot stays open. To go on, begin again; to give up, SETSLOT STABLE at both.
    """
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    yield "importing"
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    yield "migrating"
    while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, batch):
        move_keys(keys, source, target)
        yield "batch"
    yield "keys"
    target.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    yield "target"
    _set_owner(source, slot, target)
    yield "source"
    yield from tell(slot, target, others)


def tell(slot: int, owner: Node, others: Collection[Node]) -> Iterator[Step]:
    """Tell the other primaries that a node has the slot: the last step."""
    for node in others:
        _set_owner(node, slot, owner)
    yield "others"


def _set_owner(node: Node, slot: int, owner: Node) -> None:
    try:
        node.command("CLUSTER", "SETSLOT", slot, "NODE", owner.id)
    except EmbeddedServerError as error:
        # It has heard of the move already. If that was its last slot, it now follows the new owner.
        if "only with masters" not in str(error):
            raise


def move_keys(keys: Collection[bytes], source: Node, target: Node) -> None:
    """Move keys of an open slot, in one command. A key that is gone meanwhile is no error."""
    authentication = ("AUTH", target._password) if target._password else ()
    words: list[str | bytes | int] = ["MIGRATE", HOST, target.port, "", 0, MIGRATE_TIMEOUT]
    words += [*authentication, "KEYS", *keys]
    source.command(*words, timeout=MIGRATE_TIMEOUT / 1000 + 5)


def has_atomic(node: Node) -> bool:
    """Whether the server can move a slot by itself (CLUSTER MIGRATESLOTS, Valkey 9)."""
    return bool(node.command("COMMAND", "INFO", "cluster|migrateslots")[0])


def migrate_atomic(slot: int, source: Node, target: Node) -> None:
    """
    Have the servers move a slot by themselves, and return when the source says that it is done.

    Raises:
        EmbeddedServerError: the migration failed, or the server cannot do it.
        TimeoutError: it was not done after 20 seconds.
    """
    source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)

    def is_done() -> bool:
        job = _newest_migration(source)
        if job[b"state"] in (b"failed", b"cancelled"):
            raise EmbeddedServerError(
                f"The migration of slot {slot} ended as {job[b'state'].decode()}: "
                f"{job.get(b'message', b'').decode()}"
            )
        return bool(job[b"state"] == b"success")

    wait_for(is_done, f"slot {slot} has moved to {target.address}", MIGRATION_TIMEOUT)


def _newest_migration(source: Node) -> dict[bytes, Any]:
    words = source.command("CLUSTER", "GETSLOTMIGRATIONS")[0]
    return dict(zip(words[::2], words[1::2], strict=True))
