"""The history that a node of a cluster has, as INFO replication tells it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..watch import refusals_in

_NO_HISTORY = b"0" * 40


@dataclass(frozen=True, slots=True)
class Replication:
    """
    `history` is `master_replid`. `before` is `master_replid2`: the history that this one goes on from.

    A replica that was a primary before has the history of its own time as `before` if it had nothing that the new
    primary does not have: then the failover was planned.

    `refusals` is how often the node has refused to write, in digits; `-` if it does not tell. `process` is its
    run_id, which a restart changes; empty if it was not asked for.
    """

    is_primary: bool
    is_linked: bool
    history: bytes
    before: bytes
    refusals: bytes = b"-"
    process: bytes = b""

    @classmethod
    def of(cls, info: bytes) -> Replication:
        """Return what INFO replication says, and INFO errorstats and server if those were asked for too."""
        before = _field(info, b"master_replid2")
        refusals = refusals_in(info[max(0, info.find(b"# Errorstats")) :])
        return cls(
            _field(info, b"role") == b"master",
            _field(info, b"master_link_status") == b"up",
            _field(info, b"master_replid"),
            b"" if before == _NO_HISTORY else before,
            b"-" if refusals is None else b"%d" % refusals,
            _field(info, b"run_id"),
        )

    @property
    def history_as_primary(self) -> bytes:
        """The history of its time as a primary; empty if it has none."""
        return self.history if self.is_primary else self.before

    def has_all_of(self, history: bytes) -> bool | None:
        """
        Tell whether everything in a history is at the next primary too; None if that is not decided yet.

        To be asked of the last primary: if it is a primary still, with this history, a slot was moved. An empty
        history stands for that which the node has now, if it is a primary. Of a replica with an unknown history
        the answer is no.
        """
        if self.is_primary:
            return not history or self.history == history
        return (bool(history) and self.before == history) if self.is_linked else None


def _field(info: bytes, name: bytes) -> bytes:
    found = re.search(rb"^%b:(\S*)" % name, info, re.MULTILINE)
    return found[1] if found else b""
