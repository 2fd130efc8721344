"""A real server that answers and publishes, and refuses to write, each way there is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from channels_asyncq.testing import EmbeddedServer

KINDS = ("OOM", "MISCONF", "NOREPLICAS")


#: What the server is started with, so that its folder can be changed.
PROTECTED: Mapping[str, Any] = {"enable_protected_configs": "yes"}


def refuse_to_write(server: EmbeddedServer, kind: str) -> None:
    """Have the server refuse to write: it is full, cannot save, or lacks replicas."""
    if kind == "OOM":
        server.command("CONFIG", "SET", "maxmemory", "1")
    elif kind == "NOREPLICAS":
        server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    else:
        # Not even root can write there.
        server.command("CONFIG", "SET", "dir", "/proc", "save", "3600 1")
        _save(server, "err")


def write_again(server: EmbeddedServer, kind: str) -> None:
    """Have the server write again."""
    if kind == "OOM":
        server.command("CONFIG", "SET", "maxmemory", "0")
    elif kind == "NOREPLICAS":
        server.command("CONFIG", "SET", "min-replicas-to-write", "0")
    else:
        server.command("CONFIG", "SET", "save", "", "dir", str(server.unix_path.parent))
        _save(server, "ok")


def _save(server: EmbeddedServer, status: str) -> None:
    """Save in the background, which ends with this status."""
    server.command("BGSAVE")
    for _ in range(500):
        if f"rdb_last_bgsave_status:{status}".encode() in server.command("INFO", "persistence"):
            return
        time.sleep(0.01)
    raise AssertionError(f"saving did not end with {status}")


@contextmanager
def refusing(server: EmbeddedServer, kind: str) -> Iterator[None]:
    """Within the block the server refuses to write."""
    refuse_to_write(server, kind)
    try:
        yield
    finally:
        write_again(server, kind)
