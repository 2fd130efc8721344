"""The layouts of one host: how sessions use it, whether they agree, and the format that all of them read."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ...exceptions import LayerUnavailable
from ...messages.framing import FORMATS, Format, Formats
from ...messages.sealing import fingerprint_of, root_of
from ...settings.options import Options

#: Seconds for which a lease holds. It is renewed every five.
LEASE = 20.0
# Errors of a server that takes no writes for now. A session that found only compatible layouts goes on without a
# lease.
_FULL = ("OOM", "MISCONF", "NOREPLICAS")


@dataclass(frozen=True, slots=True)
class Layout:
    """
    How a session uses the namespace on a host, as it publishes it there. Nothing in it is secret.

    `host` is the index of the host in the session's list of `hosts` hosts. A Redis Cluster counts as one host.
    The session reads the wire versions from `oldest` to `newest`, and writes `writes`. `keys` are the ids of its
    encryption keys; the first one encrypts. `histories` names the setting `history`, empty for none.
    """

    host: int
    hosts: int
    partitions: int
    serializer_format: str
    is_logged: bool
    oldest: int
    newest: int
    writes: int
    keys: tuple[str, ...] = ()
    is_cluster: bool = False
    histories: str = ""

    @classmethod
    def of(cls, options: Options, host: int, formats: Formats = FORMATS) -> Layout:
        """Return the layout of a process with these options on one of its hosts."""
        return cls(
            host,
            len(options.hosts),
            options.partitions,
            options.serializer_format,
            options.recovery is not None,
            formats.oldest,
            formats.newest,
            formats.newest,
            tuple(fingerprint_of(root_of(key))[:8].hex() for key in options.symmetric_encryption_keys),
            options.hosts[0].is_cluster,
            _name_of(options),
        )

    @classmethod
    def from_text(cls, text: bytes) -> Layout:
        """
        Return the layout that another session has published. Fields that a later release adds are ignored.

        Raises:
            ValueError, KeyError: the text is no layout.
        """
        fields = json.loads(text)
        later = ("keys", "is_cluster", "histories")
        values = {name: fields[name] for name in cls.__slots__ if name not in later}
        # Releases without Redis Cluster, or without histories, do not say it.
        is_cluster, histories = fields.get("is_cluster", False), fields.get("histories", "")
        return cls(**values, keys=tuple(fields["keys"]), is_cluster=is_cluster, histories=histories)

    def text(self) -> bytes:
        """Return the layout as it is published: one line."""
        return _text_of(self)

    def place(self) -> bytes:
        """Return the settings that decide in which log a message is, and whether it can be read there."""
        format_and_keys = f"{self.serializer_format}/{bool(self.keys)}"
        return b"%d/%d/%d/%b" % (self.host, self.hosts, self.partitions, format_and_keys.encode())

    def compare(self, text: bytes) -> tuple[Layout | None, list[Objection]]:
        """Return the layout that another session has published, None for an unknown kind, and the objections."""
        try:
            other = Layout.from_text(text)
        except (ValueError, KeyError, TypeError):
            there = f"a layout that this release cannot read ({text.decode(errors='replace')})"
            return None, [Objection(there, "this release", "Use the same release in every process.")]
        return other, self.objections(other)

    def reads(self, other: Layout) -> bool:
        """Tell whether a session with this layout reads what one with the other writes."""
        return self.oldest <= other.writes <= self.newest

    def objections(self, other: Layout) -> list[Objection]:
        """Return why sessions with these two layouts cannot work together; an empty list if they can."""
        objections = []
        if self.is_cluster != other.is_cluster:
            there, here = (
                "it for a Redis Cluster" if layout.is_cluster else "it for plain servers"
                for layout in (other, self)
            )
            remedy = "Use redis+cluster:// in every process or in none."
            objections.append(Objection(there, here, remedy))
        elif (self.host, self.hosts) != (other.host, other.hosts):
            objections.append(
                Objection(
                    f"it for hosts[{other.host}] of {other.hosts}",
                    f"it for hosts[{self.host}] of {self.hosts}",
                    "List the same servers in the same order in every process, each of them once.",
                )
            )
        same = "Use the same settings in every process, or another `prefix`."
        if self.partitions != other.partitions:
            objections.append(
                Objection(f"partitions: {other.partitions}", f"partitions: {self.partitions}", same)
            )
        if self.serializer_format != other.serializer_format:
            there, here = other.serializer_format, self.serializer_format
            objections.append(
                Objection(f"serializer_format: {there!r}", f"serializer_format: {here!r}", same)
            )
        if self.newest < other.oldest or other.newest < self.oldest:
            objections.append(
                Objection(
                    f"a release that reads the wire versions {other.oldest} to {other.newest}",
                    f"one that reads {self.oldest} to {self.newest}",
                    "Deploy a release between them first, which reads both.",
                )
            )
        if bool(self.keys) != bool(other.keys):
            objections.append(
                Objection(
                    "symmetric_encryption_keys" if other.keys else "no symmetric_encryption_keys",
                    "some" if self.keys else "none",
                    same,
                )
            )
        elif self.keys and (self.keys[0] not in other.keys or other.keys[0] not in self.keys):
            objections.append(
                Objection(
                    "other symmetric_encryption_keys",
                    "a first key that is not among them, or not the first of them",
                    "Add a new key at the end of the list in every process, then move it to the front.",
                )
            )
        return objections


def _name_of(options: Options) -> str:
    """Return a name of the setting `history`, which is the same for the same histories."""
    if not options.history:
        return ""
    assert options.recovery is not None
    rules = [(pattern.pattern, pattern.flags, kept) for pattern, kept in options.history]
    unlogged = [(pattern.pattern, pattern.flags) for pattern in options.recovery.exclude]
    return hashlib.sha256(repr((rules, unlogged)).encode()).hexdigest()[:16]


# Each fence contains it.
@lru_cache(64)
def _text_of(layout: Layout) -> bytes:
    return json.dumps(asdict(layout)).encode()


@dataclass(frozen=True, slots=True)
class Objection:
    """One difference between two layouts: the other side's value, this side's value, and the remedy."""

    there: str
    here: str
    remedy: str


def in_words(objections: list[Objection]) -> tuple[str, str]:
    """Return what differs between others and this process, and the remedies."""
    there = ", ".join(objection.there for objection in objections)
    here = ", ".join(objection.here for objection in objections)
    remedies = " ".join(dict.fromkeys(objection.remedy for objection in objections))
    return f"others have {there}, and this process has {here}", remedies


class Standing(enum.Enum):
    """The result of a request for a lease."""

    HELD = enum.auto()
    """The session may read and write. Its layout is published."""
    UNPUBLISHED = enum.auto()
    """The session may read and write. The server has no memory or disk to store its layout."""
    ASK_AGAIN = enum.auto()
    """There were layouts that the session did not know. They are compatible, and the next request succeeds."""
    WAIT = enum.auto()
    """The session has its lease. Others still write a format that it does not read, until they see its layout."""


class Lease:
    """
    One session's lease on one host: the layouts that it publishes, and the format that it writes.

    A session with a lease never meets a format that it does not read: each session publishes a format before it
    writes it, and withdraws it after its last message in that format.

    state     | publishes    | writes     | event: next state
    ----------|--------------|------------|-----------------------------------------------------------------------
    out       | nothing      | nothing    | it asks for a lease: refused, held, or waiting
    waiting   | its layout   | nothing    | the others publish that they write a format that it reads: held
    held      | its layout   | its format | the newest format that all read is another one: changing
    changing  | both layouts | the old    | the new layout is accepted: it writes the new format, withdraws the
              |              |            | old layout, and is held
    """

    def __init__(self, layout: Layout, formats: Formats, address: str, prefix: str) -> None:
        self._formats = formats
        self._address = address
        self._prefix = prefix
        #: The layout that this session publishes, and the one that suits the others that it knows of.
        self.layout = self.wanted = layout
        #: The format that it writes.
        self.format: Format = formats[layout.writes]
        #: The layouts that it may have published and not withdrawn.
        self.published: set[Layout] = set()
        #: Messages up to this time of the server, in ms, may be in no log, or in logs that are not read here.
        self.gap = 0
        #: Messages up to this time of the server, in ms, may be missing from histories.
        self.unkept = 0
        #: The layouts that were found there and are compatible with ours.
        self.compatible: frozenset[bytes] = frozenset()
        # The last answer that was compared: with which layout, its texts, and whether all of them write a format
        # that this session reads. Most answers are the same as the last one.
        self._judged_as: tuple[Layout, list[bytes]] | None = None
        self._reads_all = False

    def arguments(self, layout: Layout, session: bytes, keep_past: int) -> tuple[bytes | int, ...]:
        """Return the arguments of lease.lua that publish this layout."""
        self.published.add(layout)
        compatible = b"\n".join(sorted(self.compatible))
        logged = b"1" if layout.is_logged else b"0"
        return layout.text(), session, round(1000 * LEASE), compatible, layout.place(), logged, keep_past

    def learn(self, answer: Any, layout: Layout) -> Standing:
        """
        Process the answer to a request for a lease with this layout.

        Raises:
            ImproperlyConfigured: another session uses the namespace in an incompatible way.
            LayerUnavailable: the server refuses to write.
        """
        if not isinstance(answer, list) or len(answer) < 3:
            raise LayerUnavailable(self._address, f"its answer to a script is {answer!r}")
        state, gap, unkept, *texts = answer
        self.gap, self.unkept = int(gap), int(unkept)
        if self._judged_as != (self.layout, texts):
            self._judge(texts)
        if state == b"out":
            if layout is self.layout:
                # No other session relies on the layout that it published before.
                self.turn_to(self.wanted)
            return Standing.ASK_AGAIN
        is_published = state == b"in"
        if not is_published and not state.startswith(tuple(map(str.encode, _FULL))):
            raise LayerUnavailable(self._address, state.decode(errors="replace"))
        if self._reads_all:
            return Standing.HELD if is_published else Standing.UNPUBLISHED
        return Standing.WAIT

    def turn_to(self, layout: Layout) -> None:
        """Use this layout, and write its format, from now on."""
        self.layout = layout
        self.format = self._formats[layout.writes]

    def _judge(self, texts: list[bytes]) -> None:
        others = []
        for text in texts:
            other, objections = self.layout.compare(text)
            if objections:
                raise ImproperlyConfigured(self._refusal(objections))
            assert other is not None  # or there were an objection
            others.append(other)
        self.compatible = frozenset(texts)
        newest = min((other.newest for other in others), default=self.layout.newest)
        self.wanted = replace(self.layout, writes=min(newest, self.layout.newest))
        self._reads_all = all(map(self.layout.reads, others))
        self._judged_as = (self.layout, texts)

    def _refusal(self, objections: list[Objection]) -> str:
        difference, remedies = in_words(objections)
        return (
            f"{self._address} is in use with prefix {self._prefix!r}: {difference}. {remedies} This one goes on "
            "trying, and comes up when the last of the others has gone."
        )
