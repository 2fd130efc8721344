"""The name of a process: `host:pid:role`."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from channels_asyncq.identity import identity, role_of


@pytest.mark.parametrize(
    ("arguments", "role"),
    [
        ("/venv/bin/daphne -p 8000 site.asgi:application", "daphne"),
        ("/venv/lib/python3.13/site-packages/daphne/__main__.py site.asgi:application", "daphne"),
        ("/venv/bin/uvicorn site.asgi:application", "uvicorn"),
        ("/venv/lib/python3.13/site-packages/uvicorn/__main__.py --workers 2", "uvicorn"),
        ("gunicorn -k asgi site.asgi:application", "gunicorn"),
        ("/venv/bin/hypercorn site.asgi:application", "hypercorn"),
        ("/venv/lib/granian/__main__.py --interface asgi", "granian"),
        ("manage.py runserver 8000", "runserver"),
        ("./chat.py runworker thumbnails", "runworker"),
        ("manage.py shell", "shell"),
        ("manage.py send_reports --all", "send_reports"),
        ("manage.py --help", "manage"),
        ("/venv/bin/django-admin asyncq status", "asyncq"),
        ("/venv/lib/python3.13/site-packages/django/__main__.py asyncq status", "asyncq"),
        ("/venv/bin/celery -A site worker", "celery"),
        ("/venv/lib/celery/__main__.py -A site worker", "celery"),
        ("/srv/my reports.py", "my-reports"),
        ("-c", "python"),
        ("-", "python"),
        ("", "python"),
    ],
)
def test_role(arguments: str, role: str) -> None:
    """It is the server or the command of Django, else the name of the program, without spaces."""
    assert role_of([arguments] if "my reports" in arguments else arguments.split(" ")) == role


def test_no_arguments() -> None:
    """A program that embeds Python may have set none."""
    assert role_of([]) == "python"


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the host, the process and the role, and fits into `CLIENT SETNAME` whatever the host is called."""
    monkeypatch.setattr(sys, "argv", ["manage.py", "runworker", "jobs"])
    assert identity() == f"{socket.gethostname()}:{os.getpid()}:runworker"
    monkeypatch.setattr(socket, "gethostname", lambda: "büro 1")
    assert identity() == f"b-ro-1:{os.getpid()}:runworker"
