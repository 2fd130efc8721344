"""The findings of fences about a server: whether it writes, and whether it lost data. No I/O but log lines."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...events import CONNECTION, LOSS, Throttle, record
from ...settings.keys import Recovery

if TYPE_CHECKING:
    from .partition import Partition

#: Errors of a server that answers and publishes, but refuses to write.
UNWRITABLE = ("OOM", "MISCONF", "NOREPLICAS")

# In INFO: how often the server refused to write, and how often everything was deleted.
_REFUSALS = re.compile(rb"^errorstat_(?:%b):count=(\d+)" % "|".join(UNWRITABLE).encode(), re.MULTILINE)
_FLUSHES = re.compile(rb"^cmdstat_flush(?:db|all):calls=(\d+)", re.MULTILINE)
# The expiry of a mark, in ms, is the sum of a time and a duration that the server takes at two moments. This much
# may pass between them.
_TOLERANCE = 1000

_JOBS_FAIL = "Jobs and memberships of normal channels fail meanwhile"
_ALL_FAILS = "Sends, jobs and memberships of normal channels fail meanwhile"
_LOGS_FAIL = "Messages are sent without a log meanwhile; jobs and memberships of normal channels fail"

# The hosts for which this process has logged that they may evict keys, and that they did.
_evicting: set[str] = set()
_evicted: set[str] = set()


@dataclass(frozen=True, slots=True)
class Findings:
    """
    The changes at a server since the last fence.

    `forgotten`: the partitions whose marks had gone, and were set anew by this fence or another session's.
    `has_evicted`: the server has evicted keys, ours or not. `is_first`: there was no fence before.
    """

    forgotten: frozenset[int]
    has_evicted: bool
    is_first: bool

    def __bool__(self) -> bool:
        return bool(self.forgotten) or self.has_evicted or self.is_first


class Watch:
    """
    The state of one server, as the last fence found it. The mark of a partition is kept in the partition.

    A mark is a key that no session changes, deletes or reads: when it has gone, all keys of its partition may
    have gone. Its expiry distinguishes it from the next mark.
    """

    def __init__(self, address: str, recovery: Recovery | None) -> None:
        self._address = address
        self._throttle = Throttle()
        self._had_fence = self._has_marks = False
        self._refusal = ""  # why it refuses to write
        self._refusals: int | None = None
        self._evictions: int | None = None
        self._may_skip_logs = recovery is not None and not recovery.required
        #: The consequence while the server refuses to write.
        self.consequence = (
            _JOBS_FAIL if recovery is None else _LOGS_FAIL if self._may_skip_logs else _ALL_FAILS
        )

    def note_fence(
        self, partitions: Sequence[Partition | None], now: int, marks: bytes, refusal: bytes, counts: bytes
    ) -> Findings:
        """
        Process the lines of a fence about the server. The same lines again leave nothing to find.

        `partitions` are those of the marks, in their order; None for one that has moved since the fence was sent.
        `now` is the time of the server, in ms.
        """
        self._had_fence = True
        refusals, _, evictions = counts.partition(b" ")
        self._note_refusals(refusal.decode(errors="replace"), _number(refusals))
        before, self._evictions = self._evictions, _number(evictions)
        has_evicted = before is not None and self._evictions is not None and self._evictions > before
        is_first = not self._has_marks
        forgotten = frozenset(_forgotten(partitions, now, marks))
        self._has_marks = not is_first or any(
            each is not None and each.mark is not None for each in partitions
        )
        return Findings(forgotten, has_evicted, is_first)

    # Refusals

    def explain(self, refusal: str) -> str:
        """Return the words with which the server refuses to write, and the consequence."""
        return f"{refusal.removesuffix('.')}. {self.consequence}"

    @property
    def fault(self) -> str:
        """Why the server refuses to write, and what fails; empty if it writes."""
        return self.explain(self._refusal) if self._refusal else ""

    @property
    def refusals(self) -> bytes | None:
        """How often the server had refused to write by the last fence, in digits; None before the first fence."""
        if not self._had_fence:
            return None
        return b"-" if self._refusals is None else b"%d" % self._refusals

    def has_refused(self, counts: bytes) -> bool:
        """
        Tell by INFO errorstats whether the server refused to write since the last fence, or may have.

        Before the first fence the answer is no: all partitions that are read there have come from another node.
        """
        return self._had_fence and refusals_in(counts) != self._refusals

    def _note_refusals(self, refusal: str, refusals: int | None) -> None:
        """Log that the server refuses to write, refused between two fences, or writes again."""
        before, self._refusal = self._refusal, refusal
        refusals_before, self._refusals = self._refusals, refusals
        if self._may_skip_logs:
            # As in send.lua, which publishes nothing if receivers could not learn that it was not logged.
            self.consequence = _ALL_FAILS if refusal and not refusals else _LOGS_FAIL
        if before and not refusal:
            text = "%(address)s takes writes again"
            record(CONNECTION, logging.INFO, "connection.writable", text, address=self._address)
        elif refusal and not before:
            record(
                CONNECTION,
                logging.WARNING,
                "connection.unwritable",
                "%(address)s refuses to write: %(reason)s",
                address=self._address,
                reason=self.explain(refusal),
            )
        elif not refusal and refusals_before is not None and refusals != refusals_before:
            self._throttle.warn(
                CONNECTION,
                "connection.unwritable",
                "%(address)s refused to write for a moment: our commands, or those of another program. "
                "%(reason)s",
                address=self._address,
                reason=self.consequence,
            )

    # Losses

    def warn_of_evictions(self, memory: bytes) -> None:
        """Log, once per host and process, that the server may evict our keys, according to INFO memory."""
        policy = _word_of(b"maxmemory_policy", memory)
        if policy in ("noeviction", "?") or self._address in _evicting:
            return
        _evicting.add(self._address)
        limit = _number_of(b"maxmemory", memory)
        record(
            CONNECTION,
            logging.WARNING if limit else logging.INFO,
            "connection.eviction",
            "%(address)s has the maxmemory-policy %(policy)s: jobs, logs and memberships of normal channels "
            "vanish when it is full. Set the policy to noeviction, or give the layer a server of its own",
            address=self._address,
            policy=policy + ("" if limit else ", which evicts nothing while maxmemory is 0"),
        )

    def log_evictions(self) -> None:
        """Log, once per host and process, that the server has evicted keys, possibly ours."""
        if self._address not in _evicted:
            _evicted.add(self._address)
            record(
                LOSS,
                logging.WARNING,
                "loss.evicted",
                "%(address)s evicts keys, and messages that wait in normal channels may be among them. Set its "
                "maxmemory-policy to noeviction, or give the layer a server of its own. This is logged once, and "
                "counted as server_forgot",
                address=self._address,
            )

    def log_forgotten(self, findings: Findings, partitions: int, info: bytes) -> None:
        """Log that the server lost data, with the likely cause according to INFO all, which may be empty."""
        flushes = sum(map(int, _FLUSHES.findall(info)))
        if findings.has_evicted or (not flushes and _number_of(b"evicted_keys", info)):
            policy = _word_of(b"maxmemory_policy", info)
            cause = (
                f"it evicts keys (maxmemory-policy {policy}). Set that to noeviction, or give the layer a server "
                "of its own"
            )
        elif flushes:
            cause = (
                f"FLUSHDB or FLUSHALL ({flushes} times since it started), which is what Django's cache.clear() "
                "does. Give the cache another database, or a server of its own"
            )
        else:
            cause = (
                "FLUSHDB or FLUSHALL (Django's cache.clear()), eviction (maxmemory-policy), or a DEL command"
            )
        self._throttle.warn(
            LOSS,
            "loss.server_forgot",
            "%(address)s has lost what it held of %(lost)d of %(partitions)d partitions: jobs, logs, and "
            "memberships of normal channels, of which those made here are made again. The likely cause: "
            "%(reason)s",
            address=self._address,
            lost=len(findings.forgotten),
            partitions=partitions,
            reason=cause,
        )


def _forgotten(partitions: Sequence[Partition | None], now: int, marks: bytes) -> Iterator[int]:
    """Yield the partitions whose marks have changed although the old ones had not expired."""
    for partition, text in zip(partitions, marks.split(b" "), strict=False):
        if partition is None or text == b"-":
            continue  # the partition has moved; or there is no mark, and the server refuses to write one
        expires_at = int(text)
        known = expires_at if partition.mark is None else partition.mark
        if abs(expires_at - known) > _TOLERANCE and now < known - _TOLERANCE:
            yield partition.number
        partition.mark = expires_at


def _number(digits: bytes) -> int | None:
    """Return a count of the fence script; None for `-`: the server does not report it."""
    return int(digits) if digits.isdigit() else None


def refusals_in(counts: bytes) -> int | None:
    """Return how often the server has refused to write, by INFO errorstats; None if it does not report it."""
    if not counts.startswith(b"# Errorstats"):
        return None
    return sum(map(int, _REFUSALS.findall(counts)))


def _word_of(name: bytes, info: bytes) -> str:
    """Return the value of a field of INFO, `?` if there is none."""
    found = re.search(rb"^%b:(\S*)" % name, info, re.MULTILINE)
    return found[1].decode() if found else "?"


def _number_of(name: bytes, info: bytes) -> int | None:
    word = _word_of(name, info)
    return int(word) if word.isdecimal() else None
