"""docs/deployment.md: its blocks for systemd, Docker and Kubernetes, which systemd and the recipes bear out."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels_asyncq.management.commands.asyncq import Command
from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import block
from tests.contract import DEADLINE
from tests.example import free_port
from tests.systemd import Systemd, needs_systemd, systemd
from tests.test_docs import DOCS
from tests.test_platform_recipes import Site, blocks, needs_systemd_analyze, said_by_systemd, site

__all__ = ["site", "systemd"]

PAGE = "docs/deployment.md"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


def is_known(arguments: list[str]) -> None:
    """Refuse what `manage.py asyncq` does not know: its parser exits."""
    python, program, name, *rest = arguments
    assert (Path(python).name, program, name) == ("python", "manage.py", "asyncq")
    Command().create_parser(program, name).parse_args(rest)


@needs_systemd_analyze
def test_the_unit_is_verified(tmp_path: Path) -> None:
    """systemd has nothing to say of it."""
    assert said_by_systemd(block(PAGE, "ini"), tmp_path / "mysite.service") == ""


def test_the_commands_of_the_unit() -> None:
    """granian has the options, and our command those of ExecStop."""
    lines = dict(line.split("=", 1) for line in block(PAGE, "ini").splitlines()[1:])
    is_known(shlex.split(lines["ExecStop"].removeprefix("-").replace("$MAINPID", "5")))
    pytest.importorskip("granian")
    options = [word for word in shlex.split(lines["ExecStart"]) if word.startswith("--")]
    command = [sys.executable, "-m", "granian", "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert options and all(option in helped for option in options)


@needs_systemd
@pytest.mark.processes
@pytest.mark.timeout(300)
async def test_the_unit(site: Site, systemd: Systemd) -> None:
    """granian serves under it. When it is stopped, the command of ExecStop tells its clients to come back."""
    pytest.importorskip("granian")
    port = free_port()
    await systemd.install("mysite.service", site.unit(block(PAGE, "ini"), port))
    await systemd.do("start", "mysite.service")
    await site.is_ready(port)
    async with site.client(port) as socket:
        await systemd.do("stop", "mysite.service")
        await asyncio.wait_for(socket.wait_closed(), DEADLINE)
        assert socket.close_code == 1012
    assert await systemd.property("mysite.service", "ActiveState") == "inactive"
    assert await systemd.property("mysite.service", "Result") == "success"
    assert not any(
        "failed" in line.lower() for line in (await systemd.ask("status", "mysite.service")).splitlines()
    )


def test_the_command_of_the_image() -> None:
    """It is that of the recipe, but for the port."""
    ours, theirs = (
        json.loads(re.search(r"^CMD (\[.*?\])$", text.replace("\\\n", ""), re.MULTILINE)[1])  # type: ignore[index]
        for text in (block(PAGE, "dockerfile"), blocks()["Dockerfile"])
    )
    at = theirs.index("--port")
    assert ours == theirs[:at] + theirs[at + 2 :]


def test_the_hook_of_the_pod() -> None:
    """Our command knows it, and the pod has the time of the recipe's."""
    spec = yaml.safe_load(block(PAGE, "yaml"))["spec"]
    (container,) = spec["containers"]
    is_known(container["lifecycle"]["preStop"]["exec"]["command"])
    documents = yaml.safe_load_all(next(text for text in blocks().values() if "kind: Deployment" in text))
    times = {
        each["spec"]["template"]["spec"].get("terminationGracePeriodSeconds")
        for each in documents
        if each["kind"] == "Deployment"
    }
    assert spec["terminationGracePeriodSeconds"] in times


def test_the_commands_of_drain() -> None:
    """Our command knows their options."""
    for line in block(PAGE, "sh", having="asyncq drain").splitlines():
        is_known(shlex.split(line))


@pytest.mark.server
def test_the_configuration_of_a_server() -> None:
    """A server takes each line."""
    lines = dict(line.split(" ", 1) for line in block(PAGE, "text", having="cluster-enabled").splitlines())
    settings: Any = {name.replace("-", "_"): value for name, value in lines.items()}
    with EmbeddedServer(external=False, **settings) as server:
        for name, value in lines.items():
            (_, found) = server.command("CONFIG", "GET", name)
            wanted = value.replace("64mb", str(64 << 20)).replace("32mb", str(32 << 20))
            assert wanted.encode() in found, name
