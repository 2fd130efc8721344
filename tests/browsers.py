"""The Chromium that is installed, driven by playwright; without it, modules that import this are skipped."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright: Any = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Not playwright's own types: the type checker's environment does without it.
Page = Any
Browser = Any


OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, closed at the end."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=OPTIONS,
            # Playwright's own: people's browsers do keep the pages that they leave.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


@contextmanager
def chromium_with_tabs(other: Browser, profile: Path) -> Iterator[Browser]:
    """
    A second headless browser, in which only the tab in front is visible, as in people's browsers.

    In a browser that playwright launches, every page counts as visible.
    """
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    port_file = profile / "DevToolsActivePort"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not (port_file.exists() and port_file.read_text().count("\n")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            port = port_file.read_text().splitlines()[0]
            browser = other.browser_type.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
            yield browser
            browser.close()
        finally:
            process.terminate()
