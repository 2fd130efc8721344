"""Start the programs of this folder and servers of others, talk to them, and see that they end clean."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Seconds after which a program that has not answered is taken for hanging. A busy machine imports slowly.
START_TIMEOUT = 100.0
#: Seconds after which a program that should have come to its end is taken for hanging.
RUN_TIMEOUT = 100.0
END_TIMEOUT = 60.0
# A connection's ups and downs and what was told of them; and that the machine was busy, in development mode.
EXPECTED = re.compile(r"\[connection\.\w+\]$|\[loss\.(too_large|server_changed)\]$|^Executing <.* seconds$")


def said(errors: str) -> str:
    """What a process wrote to stderr, without asyncio's word in development mode that a step took long."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"Executing <.* seconds$", line))


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: this one's, with the project on its path and Python's development mode."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDEVMODE": "1", "PYTHONUNBUFFERED": "1", **more}


class Process:
    """A child whose stderr is kept, and which is gone at the end whatever happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []

    async def start(self, command: Sequence[str], **more: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment(**more),
            limit=2**24,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._reading = [
            asyncio.create_task(self._read_lines(self._process.stdout)),
            asyncio.create_task(self._read_errors(self._process.stderr)),
        ]

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def _read_lines(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.on_line(line)
        self.on_end()

    async def _read_errors(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.errors += line.decode(errors="replace")

    def on_line(self, line: bytes) -> None:
        self.errors += line.decode(errors="replace")

    def on_end(self) -> None:
        pass

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        async with asyncio.timeout(END_TIMEOUT):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        return code

    async def finish(self) -> None:
        """Close its stdin, and see that it ends by itself, soon, and with nothing to complain about."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = await self.ended()
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"{self.name} did not end by itself:\n{self.errors}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self.errors}"
        complaints = [line for line in self.errors.splitlines() if not EXPECTED.search(line)]
        assert not complaints, f"{self.name} complained:\n{self.errors}"


class AgentError(Exception):
    """What the layer in the other process raised: its class's name and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text


class Agent(Process):
    """A process of `agent.py`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.jobs: list[dict[str, Any]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last = 0

    def on_line(self, line: bytes) -> None:
        answer = json.loads(line)
        if "job" in answer:
            self.jobs.append(answer["job"])
            return
        future = self._answers.pop(answer["id"])
        if future.done():
            return
        if "error" in answer:
            future.set_exception(AgentError(answer["error"], answer["text"]))
        else:
            future.set_result(answer["result"])

    def on_end(self) -> None:
        for future in self._answers.values():
            if not future.done():
                future.cancel(f"{self.name} is gone")

    def begin(self, do: str, *arguments: object, **options: object) -> "asyncio.Future[Any]":
        """Have the process do something; the answer comes in time."""
        self._last += 1
        request = {"id": self._last, "do": do, "arguments": arguments, "options": options}
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._last] = answer
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return answer

    async def do(self, do: str, *arguments: object, **options: object) -> Any:
        """The same, and wait for the answer."""
        async with asyncio.timeout(START_TIMEOUT):
            return await self.begin(do, *arguments, **options)


@asynccontextmanager
async def agents(count: int, **config: Any) -> AsyncGenerator[list[Agent], None]:
    """
    `count` processes with a layer of the same CONFIG.

    At the end those that still run must end by themselves, with exit code 0 and nothing on stderr.
    """
    started = [Agent(f"agent {n}") for n in range(count)]
    command = [sys.executable, "-m", "tests.processes.agent", json.dumps(config)]
    try:
        await asyncio.gather(*(agent.start(command) for agent in started))
        await asyncio.gather(*(agent.do("ready") for agent in started))
        yield started
        for agent in started:
            if agent.process.returncode is None:
                await agent.finish()
    finally:
        for agent in started:
            if agent._process is not None and agent.process.returncode is None:
                agent.process.kill()
            if agent._process is not None:
                await agent.ended()


async def run(program: str, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Run a program of this folder to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.processes.{program}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment(**more),
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
