"""The Lua scripts, as they are loaded into a server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from ....settings.keys import HISTORY_BYTES, Keeping, Recovery, log_bytes

_INCLUDE = re.compile(rb"^{(\w+)\.lua}$", re.MULTILINE)


def _text_of(name: str) -> bytes:
    return resources.files(__package__).joinpath(f"{name}.lua").read_bytes()


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 by which EVALSHA names it."""

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str, *, is_sharded: bool = False, **constants: int) -> Script:
        """
        Return the script in the file `<name>.lua`. A line `{<other>.lua}` stands for the text of that file.

        Args:
            is_sharded: publish to the subscribers of sharded channels.
            constants: values that replace their names in the text, and need not be sent with each command.
        """
        text = _INCLUDE.sub(lambda line: _text_of(line[1].decode()), _text_of(name))
        if is_sharded:
            text = text.replace(b"'PUBLISH'", b"'SPUBLISH'")
        for word, value in constants.items():
            text = text.replace(word.encode(), b"%d" % value)
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class Scripts:
    """
    The scripts of one session. In a cluster they publish to sharded channels.

    `send` logs and publishes, as `recovery` says; None without it. Those in `keep` are for groups with a history.
    """

    push: Script
    pop: Script
    give_back: Script
    group_send: Script
    add_member: Script
    lease: Script
    leave: Script
    fence: Script
    fence_part: Script | None
    read_log: Script
    read_logs: Script
    log_ends: Script
    log_part: Script | None
    history: Script | None
    log_rates: Script | None
    send: Script | None
    keep: Mapping[Keeping, Script]

    @classmethod
    def of(
        cls,
        recovery: Recovery | None,
        partitions: int = 16,
        *,
        keepings: Collection[Keeping] = (),
        is_cluster: bool = False,
    ) -> Scripts:
        """Return the scripts for these settings. `keepings` are those of the groups with a history."""

        def load(name: str, **constants: int) -> Script:
            return Script.load(name, is_sharded=is_cluster, **constants)

        def load_send(recovery: Recovery, messages: int, seconds: float) -> Script:
            log = {"MOST_ENTRIES": recovery.messages, "MOST_BYTES": log_bytes(partitions)}
            kept = {"KEPT_ENTRIES": messages, "KEPT_BYTES": HISTORY_BYTES, "KEPT_MS": milliseconds(seconds)}
            return load("send", **log, **kept, IS_REQUIRED=int(recovery.required))

        send, keep = None, {}
        if recovery is not None:
            send = load_send(recovery, 0, 0)
            keep = {each: load_send(recovery, each.messages, each.seconds) for each in keepings}
        return cls(
            load("push"),
            load("pop"),
            load("give_back"),
            load("group_send"),
            load("add_member"),
            load("take_lease"),
            load("leave"),
            load("fence"),
            load("fence_part") if is_cluster else None,
            load("read_log"),
            load("read_logs"),
            load("log_ends"),
            load("log_part") if is_cluster else None,
            load("history") if keep else None,
            None if recovery is None else load("log_rates"),
            send,
            keep,
        )

    def __iter__(self) -> Iterator[Script]:
        """Yield all that are loaded into a server."""
        for name in self.__slots__:
            if isinstance(script := getattr(self, name), Script):
                yield script
        yield from self.keep.values()


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds, at least one, for a server."""
    return max(1, round(seconds * 1000))
