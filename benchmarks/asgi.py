"""ASGI servers: the command that has each kind serve one application, with one process that serves."""

import socket
import sys
from collections.abc import Callable, Mapping

HOST = "127.0.0.1"
BACKLOG = 4096


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _uvicorn(application: str, port: int) -> list[str]:
    address = ["--host", HOST, "--port", str(port), "--backlog", str(BACKLOG)]
    return [sys.executable, "-m", "uvicorn", *address, "--log-level", "warning", application]


def _daphne(application: str, port: int) -> list[str]:
    endpoint = f"tcp:port={port}:interface={HOST}:backlog={BACKLOG}"
    return [sys.executable, "-m", "daphne", "-v", "0", "-e", endpoint, application]


def _granian(application: str, port: int) -> list[str]:
    # Its back-pressure is a limit of open requests, and each WebSocket and stream is one.
    address = ["--host", HOST, "--port", str(port), "--backlog", str(BACKLOG)]
    limits = ["--backpressure", "20000", "--log-level", "warning"]
    return [sys.executable, "-m", "granian", "--interface", "asgi", *address, *limits, application]


def _gunicorn(application: str, port: int) -> list[str]:
    address = ["-b", f"{HOST}:{port}", "--backlog", str(BACKLOG), "--log-level", "warning"]
    limits = ["--workers", "1", "--worker-connections", "20000"]
    return [sys.executable, "-m", "gunicorn", "-k", "asgi", *address, *limits, application]


def _hypercorn(application: str, port: int) -> list[str]:
    # Its workers get no signal. Without them, the process itself does.
    address = ["-b", f"{HOST}:{port}", "--backlog", str(BACKLOG), "--log-level", "warning"]
    return [sys.executable, "-m", "hypercorn", "--workers", "0", *address, application]


#: By kind: from the application, as `module:name`, and a port to the command. Options may follow it.
COMMANDS: Mapping[str, Callable[[str, int], list[str]]] = {
    "uvicorn": _uvicorn,
    "daphne": _daphne,
    "granian": _granian,
    "gunicorn": _gunicorn,
    "hypercorn": _hypercorn,
}
