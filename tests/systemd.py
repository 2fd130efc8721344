"""A systemd of the test's own: the manager of a user, where no systemd has started the machine."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes.handles import END_TIMEOUT, START_TIMEOUT

PROGRAM = Path("/lib/systemd/systemd")

#: The control groups: their root in version 2, and the folder of their hierarchies in version 1.
CGROUPS = Path("/sys/fs/cgroup")
#: A manager of a user wants to be told that systemd started the machine, and it may say so where only it looks.
#: It takes all processes of its control group for its own, so it begins in one that has no others.
BEGIN = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system || exit
for group do
    mkdir "$group" && echo $$ > "$group/cgroup.procs" || exit
done
exec "$0" --user --unit=basic.target --log-target=console
"""

needs_systemd = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not PROGRAM.exists() or not shutil.which("unshare"),
    reason="wants root and systemd (Debian: systemd)",
)


class Systemd:
    """Runs units; `folder` is for its sockets, and has to have a short path."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self._units = folder / ".config" / "systemd" / "user"
        self._units.mkdir(parents=True)
        self._log = folder / "log"
        self._environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PATH": os.defpath,
            "SYSTEMD_COLORS": "0",
        }
        self._manager: asyncio.subprocess.Process | None = None
        self._group = f"test-{folder.name}"
        roots = (
            [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else [CGROUPS / "unified", CGROUPS / "systemd"]
        )
        self._begins_in = [root / self._group for root in roots if root.is_dir()]

    async def __aenter__(self) -> "Systemd":
        with self._log.open("w") as log:
            self._manager = await asyncio.create_subprocess_exec(
                # When the tests are killed, it is told to end.
                *("setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", BEGIN, str(PROGRAM)),
                *map(str, self._begins_in),
                env=self._environment,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while (await self.ask("is-active", "basic.target")).strip() != "active":
                    if self._manager.returncode is not None:
                        pytest.skip(f"systemd cannot run here: {self._log.read_text()}")
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """End all units, and then the manager; kill what is left, and remove the control groups."""
        assert self._manager is not None
        if self._manager.returncode is None:
            self._manager.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._manager.wait(), END_TIMEOUT)
        async with asyncio.timeout(END_TIMEOUT):
            while left := self.processes():
                for process in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                await asyncio.sleep(0.01)
            await self._manager.wait()
        for group in self.groups():
            group.rmdir()

    def groups(self) -> list[Path]:
        """The control groups of the manager and its units in all hierarchies, the innermost first."""
        tops = [*CGROUPS.glob(self._group), *CGROUPS.glob(f"*/{self._group}")]
        inner = [each for top in tops for each in top.rglob("*") if each.is_dir()]
        return sorted([*tops, *inner], reverse=True)

    def processes(self) -> list[int]:
        """The ids of the processes in these groups."""
        return [int(line) for group in self.groups() for line in (group / "cgroup.procs").read_text().split()]

    async def ask(self, *arguments: str) -> str:
        """What `systemctl` prints, whatever its status."""
        process = await asyncio.create_subprocess_exec(
            *("systemctl", "--user", *arguments),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), START_TIMEOUT)
        return said.decode()

    async def do(self, *arguments: str) -> None:
        """Let `systemctl` do something that it has no word to say about."""
        assert await self.ask(*arguments) == ""

    async def install(self, name: str, text: str) -> None:
        """Write a unit, as `mysite.service`."""
        (self._units / name).write_text(text)
        await self.do("daemon-reload")

    async def property(self, unit: str, name: str) -> str:
        """A property of a unit, such as its `MainPID`."""
        return (await self.ask("show", "--value", "--property", name, unit)).strip()


@pytest.fixture
async def systemd() -> AsyncIterator[Systemd]:
    """In a folder with a short path: that of a socket has to fit into 108 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        async with Systemd(Path(folder)) as manager:
            yield manager
