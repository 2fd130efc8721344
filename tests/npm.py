"""Packages that npm has installed on this machine, for tests of what the pages say of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def global_packages(name: str) -> Path:
    """Return the folder in which npm has installed this package for all; without it, skip the test."""
    if shutil.which("npm") is not None:
        done = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, timeout=60)
        folder = Path(done.stdout.strip())
        if folder.joinpath(name).is_dir():
            return folder
    pytest.skip(f"npm has no {name}: npm install --global {name}")
