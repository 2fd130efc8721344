"""What pip says of the lines and files of the pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def dry_run(*arguments: str) -> str:
    """Return what `pip install` says if it may load nothing: all must be installed here. Without pip, skip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *arguments, "--dry-run", "--no-index"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONDEVMODE": ""},
    )
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip here")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
