"""Runs `manage.py asyncq` as a process of its own, which asks the process of the test as it asks any other."""

import asyncio
import json
import sys
from typing import Any, NamedTuple

from tests.processes.handles import ROOT, START_TIMEOUT, environment, said


class Ended(NamedTuple):
    """The end of a command: its exit status, and what it wrote."""

    status: int
    text: str
    errors: str

    @property
    def found(self) -> Any:
        """What it found, of its line of JSON."""
        return json.loads(self.text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


async def started(*arguments: str, **config: Any) -> asyncio.subprocess.Process:
    """Start the command, for a layer with this CONFIG."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "django", "asyncq", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment(
            DJANGO_SETTINGS_MODULE="tests.processes.site_settings", TEST_LAYER_CONFIG=json.dumps(config)
        ),
    )


async def asyncq(*arguments: str, answer: str = "", **config: Any) -> Ended:
    """Run the command to its end; `answer` is what is typed."""
    process = await started(*arguments, **config)
    try:
        async with asyncio.timeout(2 * START_TIMEOUT):
            text, errors = await process.communicate(answer.encode())
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, text.decode(), said(errors.decode()))
