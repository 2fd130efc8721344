"""How sessions use one host: what all of them must agree on, and the format that all of them read."""

from __future__ import annotations

import enum
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
# Why a server takes no writes for now. Whoever has found no stranger there goes on without a lease.
_FULL = ("OOM", "MISCONF", "NOREPLICAS")


@dataclass(frozen=True, slots=True)
class Layout:
    """
    What a session says on a host of how it uses the namespace there. Nothing in it is secret.

    The host is number `host` of `hosts` to it. It reads the wire versions from `oldest` to `newest`, and writes
    `writes`. `keys` are the ids of its encryption keys, the one that encrypts first.
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

    @classmethod
    def of(cls, options: Options, host: int, formats: Formats = FORMATS) -> Layout:
        """Return what a process with these options has to say on one of its hosts."""
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
        )

    @classmethod
    def from_text(cls, text: bytes) -> Layout:
        """
        Return the layout that somebody else has said. A later release may say more, which is passed over.

        Raises:
            ValueError, KeyError: it is none.
        """
        said = json.loads(text)
        return cls(**{name: said[name] for name in cls.__slots__ if name != "keys"}, keys=tuple(said["keys"]))

    def text(self) -> bytes:
        """Return it as it is said: one line."""
        return _text_of(self)

    def place(self) -> bytes:
        """Return on what it depends in which log a message is, and whether it can be read there."""
        format_and_keys = f"{self.serializer_format}/{bool(self.keys)}"
        return b"%d/%d/%d/%b" % (self.host, self.hosts, self.partitions, format_and_keys.encode())

    def objections(self, other: Layout) -> list[Objection]:
        """Return why a session with this layout cannot work beside one with the other; nothing if it can."""
        objections = []
        if (self.host, self.hosts) != (other.host, other.hosts):
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


# Each fence says it.
@lru_cache(64)
def _text_of(layout: Layout) -> bytes:
    return json.dumps(asdict(layout)).encode()


@dataclass(frozen=True, slots=True)
class Objection:
    """One thing that two layouts do not agree on: what the other has, what this one has, and the remedy."""

    there: str
    here: str
    remedy: str


class Standing(enum.Enum):
    """What the answer to a session that asks for its lease means to it."""

    HELD = enum.auto()
    """It may read and write, and has said so."""
    UNSAID = enum.auto()
    """The same, but the server has no memory or disk to note it."""
    ASK_AGAIN = enum.auto()
    """There were layouts that it did not know. They go with its own: it will be let in."""
    WAIT = enum.auto()
    """It has its lease, and some still write what it does not read. They will see the lease, and stop."""


class Lease:
    """
    One session's lease on one host: what it says of itself, and the format it writes so that all others read it.

    A session that is let in never meets a format that it does not read, because each says what it writes before
    it does so, and takes that back after its last message of that format:

    state     | says            | writes     | what comes next
    ----------|-----------------|------------|------------------------------------------------------------
    out       | nothing         | nothing    | it asks: refused, let in, or waiting
    waiting   | its layout      | nothing    | the others say that they write what it reads
    held      | its layout      | its format | the newest that all read is another: changing
    changing  | both layouts    | the old    | the new layout is let in: it writes the new, and takes the old back
    """

    def __init__(self, layout: Layout, formats: Formats, address: str, prefix: str) -> None:
        self._formats = formats
        self._address = address
        self._prefix = prefix
        #: What this session says, and what it should say as far as it knows of the others.
        self.layout = self.wanted = layout
        #: What it writes.
        self.format: Format = formats[layout.writes]
        #: What it may have said and not taken back.
        self.said: set[Layout] = set()
        #: Messages up to this time of the server, in ms, may be in no log, or not in those that are read here.
        self.gap = 0
        #: The layouts that were found there and go with ours.
        self.friends: frozenset[bytes] = frozenset()
        # The last answer that was judged: as which layout, its texts, and the layouts in them.
        self._judged_as: tuple[Layout, list[bytes]] | None = None
        self._others: list[Layout] = []

    def arguments(self, layout: Layout, session: bytes, keep_past: int) -> tuple[bytes | int, ...]:
        """Return what lease.lua wants to know, when this layout is to be said."""
        self.said.add(layout)
        friends = b"\n".join(sorted(self.friends))
        logged = b"1" if layout.is_logged else b"0"
        return layout.text(), session, round(1000 * LEASE), friends, layout.place(), logged, keep_past

    def learn(self, answer: Any, layout: Layout) -> Standing:
        """
        Take in the answer to a session that asked for a lease with this layout.

        Raises:
            ImproperlyConfigured: the namespace is used in a way that does not go with this one.
            LayerUnavailable: the server does not let it be written.
        """
        if not isinstance(answer, list) or len(answer) < 2:
            raise LayerUnavailable(self._address, f"its answer to a script is {answer!r}")
        state, gap, *texts = answer
        self.gap = int(gap)
        others = self._judged(texts)
        newest = min((other.newest for other in others), default=self.layout.newest)
        self.wanted = replace(self.layout, writes=min(newest, self.layout.newest))
        if state == b"out":
            if layout is self.layout:
                # Nobody relies on what it said before.
                self.turn_to(self.wanted)
            return Standing.ASK_AGAIN
        is_said = state == b"in"
        if not is_said and not state.startswith(tuple(map(str.encode, _FULL))):
            raise LayerUnavailable(self._address, state.decode(errors="replace"))
        if all(self.layout.oldest <= other.writes <= self.layout.newest for other in others):
            return Standing.HELD if is_said else Standing.UNSAID
        return Standing.WAIT

    def turn_to(self, layout: Layout) -> None:
        """Say and write what this layout says from now on."""
        self.layout = layout
        self.format = self._formats[layout.writes]

    def _judged(self, texts: list[bytes]) -> list[Layout]:
        if self._judged_as == (self.layout, texts):
            return self._others
        others = []
        for text in texts:
            try:
                other = Layout.from_text(text)
            except (ValueError, KeyError, TypeError):
                there = f"a layout that this release cannot read ({text.decode(errors='replace')})"
                objections = [Objection(there, "this release", "Use the same release in every process.")]
            else:
                objections = self.layout.objections(other)
                others.append(other)
            if objections:
                raise ImproperlyConfigured(self._refusal(objections))
        self.friends = frozenset(texts)
        self._judged_as, self._others = (self.layout, texts), others
        return others

    def _refusal(self, objections: list[Objection]) -> str:
        there = ", ".join(objection.there for objection in objections)
        here = ", ".join(objection.here for objection in objections)
        remedies = " ".join(dict.fromkeys(objection.remedy for objection in objections))
        return (
            f"{self._address} is in use with prefix {self._prefix!r}: others have {there}, and this process has "
            f"{here}. {remedies} This one goes on trying, and comes up when the last of the others has gone."
        )
