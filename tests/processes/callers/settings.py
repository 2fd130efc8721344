"""The site's settings, with this folder as an app for its command, and views for WSGI."""

from tests.processes.site_settings import *  # noqa: F403

INSTALLED_APPS = ["channels", "tests.processes.callers"]
ROOT_URLCONF = "tests.processes.callers.urls"
WSGI_APPLICATION = "tests.processes.callers.wsgi.application"
ASGI_APPLICATION = "tests.processes.callers.asgi.application"
