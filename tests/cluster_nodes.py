"""One node of a Redis Cluster: a server of its own, and how it sees the cluster."""

from __future__ import annotations

import functools
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from channels_asyncq.clock import monotonic
from channels_asyncq.testing import HOST, EmbeddedServer, EmbeddedServerError
from tests.resp_client import RespClient

SLOTS: Final = 16384

#: Seconds after which something that should have happened is called missing. An election that gets no majority
#: is repeated after five seconds.
LIMIT: Final = 40.0

#: The file in which a node keeps the cluster as it knows it.
NODES_FILE: Final = "nodes.conf"

Words = str | bytes | int | float


def wait_for(question: Callable[[], bool], what: str, timeout: float = LIMIT) -> None:
    """
    Return as soon as `question()` says yes.

    Raises:
        TimeoutError: it did not for `timeout` seconds; the text names `what` was waited for.
    """
    deadline = monotonic() + timeout
    while not question():
        if monotonic() > deadline:
            raise TimeoutError(f"Waited {timeout:g} seconds in vain until {what}.")
        time.sleep(0.005)


@functools.cache
def version_of(binary: str) -> tuple[str, tuple[int, ...]]:
    """Return what a server calls itself, in small letters, and its version: `("valkey", (9, 1, 2))`."""
    said = subprocess.run([binary, "--version"], capture_output=True, check=True, text=True).stdout
    match = re.match(r"(\w+) server v=(\d+(?:\.\d+)*)", said)
    if match is None:
        raise EmbeddedServerError(f"{binary} --version names no version of Redis or Valkey: {said!r}")
    return match[1].lower(), tuple(int(part) for part in match[2].split("."))


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What a node knows of a node, from a line of `CLUSTER NODES`.

    `primary` is the id of the node that a replica follows, None for a primary. `slots` are ranges as the server
    writes them, `("0-5460", "7000")`. `open_slots` are those that a migration has left open: a node tells only
    its own.
    """

    id: str
    address: str
    flags: frozenset[str]
    primary: str | None
    epoch: int
    is_linked: bool
    slots: tuple[str, ...]
    open_slots: frozenset[int]

    @classmethod
    def parse(cls, line: str) -> Entry:
        """Read one line of the reply."""
        node_id, where, flags, primary, _, _, epoch, link, *slots = line.split()
        return cls(
            id=node_id,
            address=where.partition("@")[0],
            flags=frozenset(flags.split(",")),
            primary=None if primary == "-" else primary,
            epoch=int(epoch),
            is_linked=link == "connected",
            slots=tuple(word for word in slots if not word.startswith("[")),
            open_slots=frozenset(int(word[1:].split("-")[0]) for word in slots if word.startswith("[")),
        )

    @property
    def is_well(self) -> bool:
        """Whether it can be reached, as far as the node knows that was asked."""
        return self.is_linked and self.flags.isdisjoint({"fail", "fail?", "handshake", "noaddr"})

    @property
    def place(self) -> tuple[str | None, tuple[str, ...]]:
        """Where it stands in the cluster: the node it follows, and its slots."""
        return self.primary, self.slots

    def numbers(self) -> set[int]:
        """Return its slots, one by one."""
        return slot_numbers(self.slots)

    def has_slot(self, slot: int) -> bool:
        """Whether the slot is among its own."""
        return slot in self.numbers()


def slot_numbers(ranges: tuple[str, ...]) -> set[int]:
    """Return the slots of ranges, one by one."""
    found: set[int] = set()
    for text in ranges:
        low, _, high = text.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


class Node(EmbeddedServer):
    """
    A server of a cluster, which ends with this process as every `EmbeddedServer` does.

    | state | `is_running` | `is_frozen` | entered by |
    |---|---|---|---|
    | dead | no | no | the beginning, `kill()`, `stop()`, or its own end |
    | living | yes | no | `start()`, `restart()`, `thaw()` |
    | frozen | yes | yes | `freeze()` |

    Args:
        port: the port of clients.
        bus_port: the port of the other nodes.
        nodes_file: the cluster as the node knows it when it starts in a new folder; "" if it knows only itself.
        options: as those of `EmbeddedServer`.
    """

    def __init__(
        self, *, binary: str, port: int, bus_port: int, nodes_file: str = "", **options: Any
    ) -> None:
        super().__init__(
            external=False,
            binary=binary,
            port=port,
            cluster_enabled="yes",
            cluster_port=bus_port,
            cluster_config_file=NODES_FILE,
            **options,
        )
        self.bus_port = bus_port
        self.is_frozen = False
        self._nodes_file = nodes_file
        self._id: str | None = None

    # What it is

    @property
    def address(self) -> str:
        """`127.0.0.1:port`, as the cluster names it unless hostnames are announced."""
        return f"{HOST}:{self.port}"

    @property
    def is_living(self) -> bool:
        """Whether it answers: it runs and is not frozen."""
        return self.is_running and not self.is_frozen

    @property
    def id(self) -> str:
        """Its id in the cluster, the same after `restart()`; it can be asked for when the node is dead too."""
        if self._id is None:
            self._id = str(self.command("CLUSTER", "MYID").decode())
        return self._id

    @property
    def role(self) -> str:
        """`master` or `slave`, as the node itself says."""
        return self.info("replication")["role"]

    @property
    def settings(self) -> dict[bytes, bytes]:
        """All that CONFIG GET tells."""
        words = self.command("CONFIG", "GET", "*")
        return dict(zip(words[::2], words[1::2], strict=True))

    @property
    def users(self) -> dict[str, list[str]]:
        """The rules of each user of ACL LIST."""
        lines = (line.decode().split() for line in self.command("ACL", "LIST"))
        return {name: rules for _, name, *rules in lines}

    def info(self, section: str) -> dict[str, str]:
        """Return the fields of a section of INFO."""
        return _fields(self.command("INFO", section))

    def cluster_info(self) -> dict[str, str]:
        """Return the fields of CLUSTER INFO."""
        return _fields(self.command("CLUSTER", "INFO"))

    def view(self) -> dict[str, Entry]:
        """Return the cluster as this node sees it, by id."""
        lines = self.command("CLUSTER", "NODES").decode().splitlines()
        return {entry.id: entry for entry in map(Entry.parse, lines)}

    def me(self) -> Entry:
        """Return what the node knows of itself."""
        return self.view()[self.id]

    # Commands

    def connect(self, timeout: float = LIMIT) -> RespClient:
        """Return a connection to this node, for the caller to close."""
        return RespClient(str(self.unix_path), password=self._password, timeout=timeout)

    def command(self, *words: Words, timeout: float = LIMIT) -> Any:
        """
        Send one command on a connection of its own and return the reply.

        Raises:
            EmbeddedServerError: the server answered with an error; the text is the server's, its code included.
            OSError: the node is dead, or did not answer for `timeout` seconds, as a frozen one.
        """
        with self.connect(timeout) as client:
            return client.command(*words)

    # Harm

    def freeze(self) -> None:
        """Suspend the process (SIGSTOP): its connections stay open, and it answers nobody."""
        self.pause()
        self.is_frozen = True

    def thaw(self) -> None:
        """Let a frozen process go on; do nothing to any other."""
        if self.is_frozen:
            self.is_frozen = False
            self.resume()

    def kill(self) -> None:
        """Kill the process (SIGKILL); `restart()` starts it again with its id, and without data."""
        super().kill()
        self.is_frozen = False

    def restart(self) -> None:
        """Start the node again on the same port and with its id; stop it first if it is running."""
        super().restart()
        self.is_frozen = False

    def _launch(self) -> bool:
        assert self._folder is not None
        _write_first(self._folder / NODES_FILE, self._nodes_file)
        return super()._launch()


def _write_first(path: Path, text: str) -> None:
    """Write the file unless it exists: then it holds what the node learned before its end."""
    if text and not path.exists():
        path.write_text(text)


def _fields(text: bytes) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return {name: value for name, value in pairs}
