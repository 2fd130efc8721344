"""Sites made of the code blocks of a page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.example import HOST, Program, free_port

DOCS = Path(__file__).resolve().parent.parent / "docs"

#: What the page does not say because every site has it.
_SETTINGS = """\
import json
import os

from settings import *

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ROOT_URLCONF = "tested_urls"
STATIC_URL = "static/"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["TEST_DATABASE"],
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}
CHANNEL_LAYERS["default"]["CONFIG"].update(json.loads(os.environ["TEST_LAYER_CONFIG"]))
"""

_APPLICATION = """\
from asgi import application
from channels.routing import ProtocolTypeRouter
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

routes = application.application_mapping
application = ProtocolTypeRouter({**routes, "http": ASGIStaticFilesHandler(routes["http"])})
"""


class PageSite:
    """The site of a page's files in a folder, with `urls` as its URLs, under uvicorn."""

    def __init__(self, folder: Path, files: Mapping[str, str], urls: str, config: str) -> None:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.folder = folder
        (folder / "tested_settings.py").write_text(_SETTINGS)
        (folder / "tested_urls.py").write_text(urls)
        (folder / "tested_asgi.py").write_text(_APPLICATION)
        self.port = free_port()
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tested_settings",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "TEST_DATABASE": str(folder / "site.sqlite3"),
            "TEST_LAYER_CONFIG": config,
        }
        self.server: Program | None = None
        self.run("migrate", "--run-syncdb", "--verbosity=0")

    def run(self, *arguments: str) -> str:
        """Run a management command to its end, in a process of its own; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            env=os.environ | {"PYTHONDEVMODE": ""} | self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def program(self, *arguments: str) -> Program:
        """Start a Python program of the site, which goes on."""
        return Program(*arguments, environment=self.environment).__enter__()

    def start(self) -> None:
        host = ["--host", HOST, "--port", str(self.port)]
        self.server = self.program(
            "-m", "uvicorn", *host, "--timeout-graceful-shutdown", "5", "tested_asgi:application"
        )
        self.server.wait_for("Uvicorn running on")

    def stop(self) -> None:
        if self.server is not None:
            self.server.__exit__(None, None, None)
            for complaint in ("Traceback", "Task was destroyed", "never retrieved", "never awaited"):
                assert complaint not in self.server.output, self.server.output
            self.server = None

    def url(self, path: str = "") -> str:
        return f"http://{HOST}:{self.port}/{path}"


def python(text: str) -> list[Any]:
    """The arguments of `manage.py` that run a program."""
    return ["shell", "--verbosity=0", "-c", text]
