"""A systemd of the test's own: the manager of a user, where no systemd has started the machine."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes.handles import START_TIMEOUT

PROGRAM = Path("/lib/systemd/systemd")

#: A manager of a user wants to be told that systemd started the machine, and it may say so where only it looks.
BOOTED = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system"

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
        self._environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PATH": os.defpath,
            "SYSTEMD_COLORS": "0",
        }
        self._manager: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Systemd":
        command = f'{BOOTED} && exec "$0" --user --unit=basic.target --log-target=console'
        self._manager = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", command, str(PROGRAM)),
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while (await self.ask("is-active", "basic.target")).strip() != "active":
                    if self._manager.returncode is not None:
                        _, said = await self._manager.communicate()
                        pytest.skip(f"systemd cannot run here: {said.decode()}")
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """End all units, and then the manager."""
        if self._manager is not None and self._manager.returncode is None:
            await self.ask("exit")
            await asyncio.wait_for(self._manager.communicate(), START_TIMEOUT)

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
