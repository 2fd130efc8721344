"""Programs for Node. Their packages, as a package.json pins them, are installed once into a cache."""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .runner import BenchmarkError


def has_node() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _cache(folder: Path) -> Path:
    """Where the packages of a folder's package.json are: another file is another place."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256((folder / "package.json").read_bytes()).hexdigest()[:16]
    return root / "channels_asyncq-benchmarks" / f"node-{digest}"


def node_command(folder: Path, script: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """The command of a script, which finds the packages that `install_packages()` has installed."""
    modules = f"NODE_PATH={_cache(folder) / 'node_modules'}"
    return ["env", modules, "node", *options, str(folder / script), *arguments]


async def install_packages(folder: Path) -> None:
    """
    Install what the package.json of a folder names, if it is not there yet.

    Cancelling it ends npm, and leaves nothing in the cache.

    Raises:
        BenchmarkError: npm failed; the text has its output.
    """
    cache = _cache(folder)
    if cache.exists():
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        target = Path(name) / "packages"
        target.mkdir()
        shutil.copy(folder / "package.json", target)
        process = await asyncio.create_subprocess_exec(
            *("npm", "install", "--no-audit", "--no-fund", "--silent"),
            cwd=target,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise BenchmarkError(f"npm install failed:\n{output.decode(errors='replace')}")
        try:
            target.rename(cache)
        except OSError:
            # Another run was faster.
            if not cache.exists():
                raise
