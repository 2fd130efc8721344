"""The example started for real: its demo command, its servers, and clients that speak to them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import websockets.asyncio.client

import channels_asyncq

PROJECT = Path(__file__).resolve().parent.parent / "example_project"
HOST = "127.0.0.1"

Frame = dict[str, Any]


def free_port() -> int:
    """
    Return a port that nobody listens on.

    It is below those that outgoing connections get: a page that knocks at a dead server's port could end up
    connected to itself, and the server could not come back.
    """
    while True:
        port = secrets.choice(range(15000, 32000))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that ended and was not collected yet does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def get(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a page."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Program:
    """
    A program whose output can be waited for: of the example, in Python, unless said otherwise.

    It is killed when the block ends.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        executable: str = sys.executable,
        folder: Path = PROJECT,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        self.environment = inherited | {
            "DJANGO_SETTINGS_MODULE": "chat_site.settings",
            "PYTHONPATH": str(Path(channels_asyncq.__file__).parent.parent),
            "PYTHONUNBUFFERED": "1",
            # Warnings of the servers' own libraries are not what is tested here.
            "PYTHONDEVMODE": "",
            "PYTHONWARNINGS": "",
            **environment,
        }
        self.executable = executable
        self.arguments = arguments
        self.folder = folder
        self.output = ""
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [self.executable, *self.arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            # Asked first: a demo that is killed cannot stop what it started.
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        if error is not None:
            print(self.output)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output += line
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str, timeout: float = 40) -> re.Match[str]:
        """Return the first match in the output, waiting for it."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if match := re.search(pattern, self.output):
                    return match
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"No {pattern!r} in the output:\n{self.output}")
                self._changed.wait(min(left, 0.5))

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(how)
        return self.end()

    def end(self, timeout: float = 30) -> int:
        """Return the exit code, waiting for the end."""
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code


class Demo(Program):
    """`manage.py demo` on free ports, with a database of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.first, self.second = free_port(), free_port()
        super().__init__(
            "manage.py",
            "demo",
            f"--port={self.first}",
            f"--second-port={self.second}",
            # Buffered, as for everybody who has its output in a pipe.
            environment={
                "CHAT_DATABASE": str(folder / "chat.sqlite3"),
                "PYTHONUNBUFFERED": "",
                **environment,
            },
        )

    def wait_until_ready(self) -> None:
        self.wait_for(r"Ctrl-C stops everything")

    def pid_of(self, what: str) -> int:
        """The process id that the demo gives for the first Daphne, the worker or the message server."""
        return int(self.wait_for(rf"kill -9 (\d+) +the {what}")[1])


class Page:
    """What a page does, without a browser: a WebSocket to a room."""

    def __init__(self, port: int, name: str, room: str = "lobby") -> None:
        self.port = port
        self.address = f"ws://{HOST}:{port}/ws/chat/{room}/?name={name}"

    async def __aenter__(self) -> Self:
        origin: Any = f"http://{HOST}:{self.port}"
        self.socket = await websockets.asyncio.client.connect(self.address, origin=origin, proxy=None)
        self.server = (await self.frame("welcome"))["server"]
        await self.frame("resumed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.socket.close()

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def frame(self, kind: str, within: float = 20, **values: Any) -> Frame:
        """
        Return the next frame of a type, with these values, leaving out what comes before it.

        Of a message of the room's group it is what the page handles, without the position.
        """
        async with asyncio.timeout(within):
            while True:
                frame: Frame = json.loads(await self.socket.recv())
                frame = frame.get("m", frame)
                if frame.get("type") == kind and frame | values == frame:
                    return frame

    async def is_here(self, *expected: str) -> set[str]:
        """Call the roll and return who answers: those who are expected, and others who do it just as fast."""
        await self.send(who=True)
        await self.frame("roll_call")
        names: set[str] = set()
        try:
            while True:
                within = 0.5 if names.issuperset(expected) else 20
                names.add((await self.frame("here", within=within))["name"])
        except TimeoutError:
            return names
