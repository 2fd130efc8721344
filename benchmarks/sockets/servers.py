"""The process of a server: started, asked for its CPU time and memory, killed with its workers."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..asgi import HOST
from ..process_groups import busiest_of_group, cpu_of_threads, kill_group, memory_of_group
from ..runner import ROOT, BenchmarkError

APPLICATION = "benchmarks.sockets.site:application"
NODE = Path(__file__).parent / "node"
START_SECONDS = 30.0
#: The options with which a kind of server runs on asyncio's own event loop.
ASYNCIO: Mapping[str, Sequence[str]] = {
    "uvicorn": ("--loop", "asyncio"),
    "daphne": (),
    "granian": ("--loop", "asyncio"),
    "gunicorn": ("--asgi-loop", "asyncio"),
    "hypercorn": ("--worker-class", "asyncio"),
}
#: It rests when it has used less CPU time than this in the time of a look.
REST_SECONDS = 0.002
LOOK_SECONDS = 0.1
SETTLE_SECONDS = 20.0


class SocketServer:
    """One server and its workers. Use as an async context manager: at its end all of them are gone."""

    def __init__(self, command: Sequence[str], port: int, order: Mapping[str, Any]) -> None:
        self.port = port
        self._command = command
        self._order = json.dumps({**order, "host": HOST, "port": port})
        self._process: asyncio.subprocess.Process | None = None
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __aexit__)

    async def __aenter__(self) -> "SocketServer":
        """
        Start it; return when it listens.

        Raises:
            BenchmarkError: it ended, or did not listen in time; the text has the end of its output.
        """
        # A measurement in development mode would measure development mode.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env={**environment, "BENCHMARK_SOCKETS": self._order},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not await self._listens():
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise BenchmarkError(f"{' '.join(self._command)} does not serve:\n{self.tail()}")
                await asyncio.sleep(0.05)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            kill_group(self._process.pid)
            await self._process.wait()
            self._process = None
        self._output.close()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    @property
    def _group(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def serving_pid(self) -> int:
        """The process that serves: that of a worker, if there is one."""
        return busiest_of_group(self._group)

    def cpu(self) -> float:
        """The CPU seconds of all its threads and workers."""
        return cpu_of_threads(self._group)

    def memory(self) -> int:
        """The bytes that it and its workers have in memory."""
        return memory_of_group(self._group)

    async def settle(self) -> None:
        """Wait until it rests, or for 20 seconds."""
        deadline = time.monotonic() + SETTLE_SECONDS
        used = self.cpu()
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            before, used = used, self.cpu()
            if used - before < REST_SECONDS:
                return

    def tail(self) -> str:
        """The end of its output."""
        self._output.seek(0)
        return self._output.read()[-3000:].decode(errors="replace")
