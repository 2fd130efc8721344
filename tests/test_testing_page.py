"""The examples of docs/testing.md, run as somebody's tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.code_blocks import ROOT, files
from tests.test_docs import DOCS

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in files("docs/testing.md").items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(project: Path, redis_url: str, *arguments: str) -> str:
    """Run pytest there; return what it says at the end."""
    is_installed = bool(entry_points(group="pytest11", name="channels_asyncq"))
    plugin = [] if is_installed else ["-p", "channels_asyncq.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir=.", *plugin, *arguments],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(project), str(ROOT / "example_project"), *sys.path]),
            "DJANGO_SETTINGS_MODULE": "live_settings",
            "TEST_DATABASE": str(project / "test.sqlite3"),
            "REDIS_URL": redis_url,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_every_file_is_used() -> None:
    """The tests below run each file of the page."""
    names = {"test_sends.py", "test_consumer.py", "test_coming_back.py", "test_live.py", "live_settings.py"}
    assert set(files("docs/testing.md")) == names


def test_code_that_sends_and_consumers(project: Path, redis_url: str) -> None:
    """The fixtures do what the page says."""
    asyncio_mode = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    names = ["test_sends.py", "test_consumer.py", "test_coming_back.py"]
    said = run(project, redis_url, *asyncio_mode, *names)
    assert re.search(r"\b6 passed\b", said), said


@pytest.mark.slow
def test_running_server(project: Path, redis_url: str) -> None:
    """ChannelsLiveServerTestCase, with a layer that both processes reach."""
    said = run(project, redis_url, "test_live.py")
    assert re.search(r"\b2 passed\b", said), said
