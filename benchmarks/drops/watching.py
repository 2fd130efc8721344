"""Figures that are sampled during a run, because the processes that have them may be killed at any time."""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError

from .servers import Server, busy_share, cpu_times

PERIOD = 0.5
MARK = "the end of what is counted"
STATISTICS = (
    "resumes",
    "refused",
    "replay_reads",
    "replay_records",
    "replay_bytes",
    "replay_evicted",
    "delivered",
    "dropped",
    "told",
)


class Samples:
    """The last known figures of each process that lived during a run, and their sums."""

    def __init__(self, nodes: Sequence[EmbeddedServer], servers: Sequence[Server]) -> None:
        self._nodes = nodes
        self._servers = servers
        self._cpu: dict[int, float] = {}
        self._cpu_before: dict[int, float] = {}
        self._statistics: dict[int, dict[str, Any]] = {}
        self._commands: dict[int, Counter[str]] = {}
        self._began = cpu_times()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Samples":
        for node in self._nodes:
            with contextlib.suppress(OSError, EmbeddedServerError):
                await asyncio.to_thread(node.command, "CONFIG", "RESETSTAT")
        for server in self._servers:
            self._cpu_before |= server.cpu()
        self._task = asyncio.create_task(self._sample_for_ever())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Take the last sample."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._sample()
        self.busy = busy_share(self._began, cpu_times())

    async def _sample_for_ever(self) -> None:
        while True:
            await self._sample()
            await asyncio.sleep(PERIOD)

    async def _sample(self) -> None:
        for server in self._servers:
            self._cpu |= server.cpu()
        for figures in await asyncio.gather(*(server.ask() for server in self._servers)):
            if figures:
                self._statistics[figures["pid"]] = figures
        # In an outage there is no answer: the next sample has it.
        for node in self._nodes:
            with contextlib.suppress(OSError, EmbeddedServerError):
                pid = node.pid
                self._commands[pid] = await asyncio.to_thread(command_counts, node)

    @property
    def cpu(self) -> float:
        """CPU seconds of all server processes; those that were started during the run with their start."""
        return sum(seconds - self._cpu_before.get(pid, 0.0) for pid, seconds in self._cpu.items())

    @property
    def commands(self) -> Counter[str]:
        """Calls of commands, by name in lower case."""
        return sum(self._commands.values(), Counter())

    @property
    def statistics(self) -> dict[str, int]:
        """The sums of the layers' figures; those that a layer does not have are left out."""
        sums: Counter[str] = Counter()
        for figures in self._statistics.values():
            for name in STATISTICS:
                if name in figures:
                    value = figures[name]
                    sums[name] += sum(value.values()) if isinstance(value, dict) else value
        return dict(sums)


def command_counts(redis: EmbeddedServer) -> Counter[str]:
    """How often each command was called since the last CONFIG RESETSTAT."""
    text = redis.command("INFO", "commandstats", timeout=1.0).decode()
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("cmdstat_"):
            name, _, values = line.removeprefix("cmdstat_").partition(":")
            counts[name] = int(values.partition(",")[0].removeprefix("calls="))
    return counts


class ScriptCount:
    """Counts scripts, and those that read a log: in MONITOR the commands of a script follow its EVALSHA."""

    def __init__(self) -> None:
        self.scripts = 0
        self.reads = 0
        # Nothing is to be counted outside of a script.
        self._is_counted = True

    def take(self, line: bytes) -> None:
        """Count one line of MONITOR."""
        where, _, words = line.upper().partition(b"] ")
        if not where.endswith(b" LUA"):
            is_script = words.startswith((b'"EVALSHA"', b'"EVAL"', b'"FCALL"'))
            self.scripts += is_script
            self._is_counted = not is_script
        elif words.startswith(b'"XRANGE"') and not self._is_counted:
            self.reads += 1
            self._is_counted = True


class ScriptWatch:
    """
    Counts the scripts of a server by MONITOR, in a thread.

    MONITOR costs the server about as much as the commands, so it runs only where there are few.
    """

    def __init__(self, redis: EmbeddedServer) -> None:
        self.count = ScriptCount()
        self._redis = redis
        self._socket = socket.create_connection((redis.host, redis.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._file:
            if MARK.encode() in line:
                return
            self.count.take(line)

    def stop(self) -> None:
        """Stop counting, after everything that was done until now was counted."""
        self._redis.command("ECHO", MARK)
        self._thread.join()
        self._file.close()
        self._socket.close()
