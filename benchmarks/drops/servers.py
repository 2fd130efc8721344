"""Server processes: how each kind is started, killed, asked, and what CPU time it took."""

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..asgi import COMMANDS, free_port
from ..process_groups import kill_group, processes_of_group
from ..runner import ROOT, BenchmarkError

APPLICATION = "benchmarks.drops.site:application"
START_SECONDS = 30.0
TICKS = os.sysconf("SC_CLK_TCK")


#: The servers whose clients must leave by the command, because SIGTERM cuts WebSockets at once.
BY_COMMAND = frozenset({"granian"})
#: Seconds beyond those of a drain until the process must have ended.
SPARE_SECONDS = 60.0


class Server:
    """
    One server on a port of its own, the same after a restart.

    | state | `_process` |
    |---|---|
    | down | None |
    | up | set; `pid` is the group of all its processes |
    """

    #: Whether its clients must leave before SIGTERM.
    is_told_by_command = False

    def __init__(self, command: Sequence[str], port: int, order: Mapping[str, Any], log: Path) -> None:
        self.port = port
        self._command = command
        self._order = json.dumps({**order, "port": port})
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """
        Start it; return when it answers.

        Raises:
            BenchmarkError: it ended, or did not answer in time; the text has the end of its output.
        """
        # A measurement in development mode would measure development mode.
        names = ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "PYTHONTRACEMALLOC")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                env={**environment, "BENCHMARK_DROPS": self._order},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not await self.ask():
            if self._process.returncode is not None or time.monotonic() > deadline:
                await self.kill()
                raise BenchmarkError(f"{' '.join(self._command)} does not serve:\n{self.tail()}")
            await asyncio.sleep(0.02)

    async def drain(self) -> None:
        """
        Tell it to stop, and wait until its clients have left and it has ended.

        Raises:
            BenchmarkError: it did not end in time, or it or the command has another exit status than 0.
        """
        assert self._process is not None
        seconds = json.loads(self._order)["drain"]
        if self.is_told_by_command:
            command = [sys.executable, "-m", "benchmarks.drops.draining", str(self._process.pid)]
            environment = {**os.environ, "BENCHMARK_DROPS": self._order}
            with self.log.open("ab") as output:
                told = await asyncio.create_subprocess_exec(
                    *command, cwd=ROOT, env=environment, stdout=output, stderr=output
                )
                if status := await told.wait():
                    raise BenchmarkError(f"`asyncq drain` has the exit status {status}:\n{self.tail()}")
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds + SPARE_SECONDS):
                ended: object = await self._process.wait()
        except TimeoutError:
            ended = "none"
        await self.kill()
        if ended != 0:
            raise BenchmarkError(f"a drained server has the exit status {ended}:\n{self.tail()}")

    async def kill(self) -> None:
        """Kill it and its workers: those of a parent that was killed alone would serve on."""
        if self._process is not None:
            kill_group(self._process.pid)
            await self._process.wait()
            self._process = None

    async def ask(self) -> dict[str, Any]:
        """The statistics of its process; empty if it gives none within two seconds."""
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(b"GET /statistics/ HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return {}
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            return {}
        figures: dict[str, Any] = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
        return figures

    @property
    def group(self) -> int:
        """The id of the group of all its processes."""
        assert self._process is not None
        return self._process.pid

    def cpu(self) -> dict[int, float]:
        """CPU seconds by process id, of all its processes that are alive."""
        return cpu_of_group(self._process.pid) if self._process is not None else {}

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


def cpu_of_group(group: int) -> dict[int, float]:
    """CPU seconds, by process id, of the processes of a group."""
    seconds: dict[int, float] = {}
    for folder, values in processes_of_group(group):
        seconds[int(folder.name)] = (int(values[11]) + int(values[12])) / TICKS
    return seconds


@dataclass(slots=True)
class Resources:
    """What the processes of a group hold: `databases` are the open descriptors of one file."""

    threads: int = 0
    bytes: int = 0
    descriptors: int = 0
    databases: int = 0


def resources_of_group(group: int, database: Path) -> Resources:
    """Return what the processes of a group hold now."""
    held = Resources()
    for folder, values in processes_of_group(group):
        held.threads += int(values[17])
        held.bytes += int(values[21]) * resource.getpagesize()
        for link in (folder / "fd").iterdir():
            held.descriptors += 1
            try:
                held.databases += link.readlink() == database
            except OSError:
                # It was closed since.
                held.descriptors -= 1
    return held


def busy_share(before: Sequence[int], after: Sequence[int]) -> float:
    """How much of the machine's CPU time was used between two calls of `cpu_times()`."""
    total = sum(after) - sum(before)
    idle = after[3] + after[4] - before[3] - before[4]
    return 1 - idle / total if total else 0.0


def cpu_times() -> list[int]:
    """The machine's CPU times by kind, idle and waiting at 3 and 4."""
    return [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]


def asgi_server(kind: str, order: Mapping[str, Any], log: Path) -> Server:
    """A server of that kind for the site of this folder."""
    port = free_port()
    server = Server(COMMANDS[kind](APPLICATION, port), port, order, log)
    server.is_told_by_command = kind in BY_COMMAND
    return server
