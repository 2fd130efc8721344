"""The name of this process that people recognise: `host:pid:role`."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import PurePath

_SERVERS = frozenset({"daphne", "uvicorn", "gunicorn", "hypercorn", "granian", "celery"})
# Commands that name the role, whatever the name of the script is that runs them.
_COMMANDS = frozenset({"asyncq", "celery", "runserver", "runworker", "shell"})
_MANAGERS = frozenset({"django", "django-admin", "manage"})
# A server shows the name in lists that are split at spaces.
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.-]+")


def identity() -> str:
    """Return `host:pid:role` of this process, such as `web-1:4711:daphne`. It has no spaces."""
    return f"{_plain(socket.gethostname())}:{os.getpid()}:{role_of(sys.argv)}"


def role_of(arguments: Sequence[str]) -> str:
    """
    Return the role that the arguments of a program name: its server or its command of Django.

    Elsewhere that is the name of the program, and `python` for code that has none.
    """
    program = PurePath(arguments[0] if arguments else "")
    name = program.parent.name if program.stem == "__main__" else program.name.removesuffix(".exe")
    name = name.removesuffix(".py")
    first = arguments[1] if len(arguments) > 1 else ""
    if name in _SERVERS:
        return name
    if first in _COMMANDS or (name in _MANAGERS and first and not first.startswith("-")):
        return _plain(first)
    return _plain(name) if name not in ("", "-", "-c") else "python"


def _plain(text: str) -> str:
    return _UNUSUAL.sub("-", text)
