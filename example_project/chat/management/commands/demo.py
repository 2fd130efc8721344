from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import logging
import os
import signal
import socket
import sys
from argparse import ArgumentParser
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError, call_command
from django.db import connections

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError

PROJECT = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
RESTART_DELAY = 0.2  # Short: the process is back before its page has failed to reconnect twice.
OUTAGE = 10.0  # Long enough to see what the pages do without the message server.

PAGES = {"Chat": "/chat/lobby/", "Orders": "/orders/", "Tokens": "/tokens/"}

Say = Callable[[str, str], None]


class ProcessEnded(Exception):
    """A process of the demo ended by itself or never answered. The text names it and has its last lines."""


class Child:
    """A process of the demo: starts it, watches it, passes its output on line by line, and stops it."""

    def __init__(
        self, name: str, label: str, arguments: list[str], answers: Callable[[], Awaitable[bool]]
    ) -> None:
        self.name = name
        self.label = label
        self.arguments = arguments
        self.answers = answers
        self.ready = asyncio.Event()
        self.last_lines: deque[str] = deque(maxlen=15)
        self.process: asyncio.subprocess.Process | None = None
        self.output: asyncio.Task[None] | None = None
        self.was_killed = False

    async def keep(self, environment: dict[str, str], say: Say) -> None:
        """
        Keep the process running, until this is cancelled.

        A process that is killed is started again at once, as a supervisor would do. So you can try what happens
        when it is killed.

        Raises:
            ProcessEnded: the process ended by itself, or did not answer.
        """
        while True:
            process = await self._start(environment, say)
            await self._wait_for_answer(process)
            again = " again" if self.was_killed else ""
            say("demo", f"{self.name} answers{again} (pid {process.pid}).")
            self.ready.set()
            code = await process.wait()
            if self.output is not None:
                await self.output
            if code >= 0:
                raise ProcessEnded(self._obituary(code))
            self.was_killed = True
            say("demo", f"{self._obituary(code)} It starts again.")
            await asyncio.sleep(RESTART_DELAY)

    async def stop(self) -> None:
        """Terminate the process; kill it if it does not end. Safe to call twice, and before the start."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        if self.output is not None:
            await self.output

    async def _start(self, environment: dict[str, str], say: Say) -> asyncio.subprocess.Process:
        self.last_lines.clear()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.arguments,
            cwd=PROJECT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C in the terminal reaches only the demo, which stops its children in order.
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.output = asyncio.create_task(
            self._pass_on(self.process.stdout, say), name=f"output of {self.name}"
        )
        return self.process

    async def _pass_on(self, stream: asyncio.StreamReader, say: Say) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue  # The line is longer than the reader's limit. The rest of it is read as a line.
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            say(self.label, text)

    async def _wait_for_answer(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self.answers():
                    if process.returncode is not None and self.output is not None:
                        await self.output
                        raise ProcessEnded(self._obituary(process.returncode))
                    await asyncio.sleep(0.1)
        except TimeoutError:
            text = f"{self.name} runs but gave no answer for {START_TIMEOUT:g} seconds."
            raise ProcessEnded(text + self._last_words()) from None

    def _obituary(self, code: int) -> str:
        if code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name} (exit code {code})."
        return f"{self.name} ended by itself with exit code {code}." + self._last_words()

    def _last_words(self) -> str:
        return (
            "".join(["\nIts last lines:", *(f"\n    {line}" for line in self.last_lines)])
            if self.last_lines
            else ""
        )


class SayingHandler(logging.Handler):
    """Writes the log records of this process as lines of the demo, with a label."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say
        self.setFormatter(logging.Formatter("{levelname} {name}: {message}", style="{"))

    def emit(self, record: logging.LogRecord) -> None:
        self.say("demo", self.format(record))


class Command(BaseCommand):
    help = (
        "Run the example on this machine as in production: a Redis or Valkey server (the one of REDIS_URL, or "
        "one of its own), two Daphne processes and a worker. Ctrl-C stops everything."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="port of the first Daphne (8000)")
        parser.add_argument("--second-port", type=int, default=8001, help="port of the second Daphne (8001)")

    def handle(self, *args: Any, **options: Any) -> None:
        first, second = options["port"], options["second_port"]
        check_port("--port", first)
        check_port("--second-port", second)
        if first == second:
            raise CommandError(f"Two servers cannot share port {first}: choose another with --second-port.")
        # Daphne lists each request from its level 1 on.
        self.daphne_verbosity = str(max(0, options["verbosity"] - 1))
        self.stop = asyncio.Event()
        for logger in (logging.getLogger(), logging.getLogger("django")):
            logger.handlers[:] = [SayingHandler(self.say)]
        self.say("demo", f"starting on ports {first} and {second}")
        try:
            with EmbeddedServer() as server:
                self.say("demo", f"message server: {describe(server)}")
                call_command("migrate", verbosity=0)
                connections.close_all()
                asyncio.run(self.run(server, first, second))
        except EmbeddedServerError as error:
            raise CommandError(str(error)) from error
        except ProcessEnded as error:
            raise CommandError(f"{error}\nEverything else has been stopped.") from error
        except KeyboardInterrupt:
            pass
        self.write("Everything has been stopped.")

    async def run(self, server: EmbeddedServer, first: int, second: int) -> None:
        """Start everything, keep it running until a signal comes, then stop everything."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            # Windows has no signal handlers in asyncio. There Ctrl-C is a KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError, AttributeError):
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), self.stop.set)
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "chat_site.settings",
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": server.url,
        }
        layer = AsyncQueueChannelLayer(
            **settings.CHANNEL_LAYERS["default"]["CONFIG"] | {"hosts": [server.url]}
        )
        daphnes = [self.daphne(first), self.daphne(second)]
        arguments = ["manage.py", "runworker", "wordcount", "tokens"]
        worker = Child("The worker", "worker", arguments, lambda: worker_answers(layer))
        children = [*daphnes, worker]
        self.say("demo", "starting two Daphne processes and a worker")
        tasks = [
            asyncio.create_task(self.stop.wait(), name="stop signal"),
            asyncio.create_task(self.keep_server(server, children), name="server"),
            *(asyncio.create_task(child.keep(environment, self.say), name=child.name) for child in children),
        ]
        try:
            # Only the signal ends a task without an error.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # An error with one process, such as a closed terminal, must not leave the others running.
            await asyncio.gather(*(child.stop() for child in children), return_exceptions=True)
            await layer.close()

    def daphne(self, port: int) -> Child:
        options = ["-v", self.daphne_verbosity, "-b", HOST, "-p", str(port)]
        return Child(
            f"Daphne on port {port}",
            f"daphne {port}",
            ["-m", "daphne", *options, "chat_site.asgi:application"],
            lambda: asyncio.to_thread(page_answers, port),
        )

    async def keep_server(self, server: EmbeddedServer, children: list[Child]) -> None:
        """Announce when all children are ready. Then restart a killed server, until this is cancelled."""
        for child in children:
            await child.ready.wait()
        self.announce(server, children)
        while True:
            await asyncio.sleep(0.5)
            if not server.is_running:
                self.say("demo", f"The message server is gone. It starts again in {OUTAGE:g} seconds.")
                await asyncio.sleep(OUTAGE)
                await asyncio.to_thread(server.restart)
                self.say("demo", f"The message server answers again (pid {server.pid}).")

    def announce(self, server: EmbeddedServer, children: list[Child]) -> None:
        first, _, worker = [child.process.pid for child in children if child.process]
        here, there = (f"http://{HOST}:{child.arguments[-2]}" for child in children[:2])
        bold = self.style.MIGRATE_HEADING
        lines = ["", bold("The example runs. Open a page on both servers, side by side:"), ""]
        for name, path in PAGES.items():
            lines += [f"    {name:<8}{self.style.SUCCESS(site + path)}" for site in (here, there)]
        lines += [
            "",
            bold("What to try"),
            "    Chat: write in one window and read in the other. Two processes, one room.",
            "    Press 'Send from a sync view': a synchronous Django view sends to the same room.",
            "    Look at the word count: the worker counts, in a third process.",
            "    Orders: press the buttons. Rows of HTML come to all windows (server-sent events, htmx).",
            "    Tokens: ask, and load the page again in the middle of the answer. No word is missing.",
            f"    kill -9 {first:<8} the first Daphne. Its pages come back, and get what they missed.",
            f"    kill -9 {worker:<8} the worker. Messages wait, and are counted when it is back.",
        ]
        if not server.external:
            lines.append(
                f"    kill -9 {server.pid:<8} the message server. The pages say so, and load what they lack."
            )
        lines += ["", "A killed process starts again, with a new pid. Ctrl-C stops everything.", "", ""]
        self.write("\n".join(lines))

    def say(self, label: str, text: str) -> None:
        """Write the lines of a process, or of the demo itself, with a label."""
        style = self.style.WARNING if label == "demo" else self.style.HTTP_INFO
        for line in text.splitlines():
            self.write(f"{style(f'{label:>11} |')} {line}")

    def write(self, text: str) -> None:
        """Write at once, into a file or a pipe too. If the reader of the pipe is gone, stop everything."""
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            # Discard further output: Python flushes once more when it ends.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            self.stop.set()


def check_port(option: str, port: int) -> None:
    """Raise CommandError if no server can listen on the port."""
    if not 0 < port < 65536:
        raise CommandError(f"{option} {port} is not a port; choose one from 1 to 65535.")
    with socket.socket() as probe:
        if os.name == "posix":
            # Like the server: ignore connections that linger from an earlier run.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = (
                "is taken by another program"
                if error.errno == errno.EADDRINUSE
                else f"fails: {error.strerror}"
            )
            raise CommandError(
                f"Port {port} {reason}. Free it, or choose another port with {option}."
            ) from error


def page_answers(port: int) -> bool:
    """Whether the chat's first page is served on a port."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def worker_answers(layer: AsyncQueueChannelLayer) -> bool:
    """Whether a worker answers through the channel layer."""
    channel = await layer.new_channel()
    try:
        await layer.send("wordcount", {"type": "count.ping", "reply_to": channel})
        await asyncio.wait_for(layer.receive(channel), 5)
    except (TimeoutError, LayerUnavailable):
        return False
    finally:
        layer.close_channel(channel)
    return True


def describe(server: EmbeddedServer) -> str:
    if server.external:
        return f"the server of REDIS_URL at {server.host}:{server.port}"
    return f"{Path(server.binary).name} at {server.host}:{server.port}"
