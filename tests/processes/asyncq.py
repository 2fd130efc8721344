"""Runs `manage.py asyncq`: as a process of its own, which asks that of the test as it asks any other; or here."""

import asyncio
import io
import json
import sys
from typing import Any, NamedTuple

from django.core.management import CommandError, call_command
from django.test import override_settings

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


async def started(*arguments: str, config: dict[str, Any]) -> asyncio.subprocess.Process:
    """Start the command as a process, for a layer with this CONFIG."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "django", "asyncq", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment(
            DJANGO_SETTINGS_MODULE="tests.processes.site_settings", TEST_LAYER_CONFIG=json.dumps(config)
        ),
    )


async def ended(process: asyncio.subprocess.Process, begin: bytes = b"") -> Ended:
    """Return the end of a process, of which `begin` was read before."""
    try:
        async with asyncio.timeout(2 * START_TIMEOUT):
            text, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, (begin + text).decode(), said(errors.decode()))


async def asyncq(*arguments: str, config: dict[str, Any]) -> Ended:
    """Run the command as a process, to its end."""
    return await ended(await started(*arguments, config=config))


async def called(*arguments: str, config: dict[str, Any]) -> Ended:
    """Run the command in a thread of this process, which it does not ask in surveys: faster than a process."""
    return await asyncio.to_thread(_call, arguments, config)


def _call(arguments: tuple[str, ...], config: dict[str, Any]) -> Ended:
    output, status, errors = io.StringIO(), 0, ""
    backend = {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": config}
    with override_settings(CHANNEL_LAYERS={"default": backend}):
        try:
            call_command("asyncq", *arguments, stdout=output)
        except CommandError as error:
            status, errors = error.returncode, str(error)
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, output.getvalue(), errors)
