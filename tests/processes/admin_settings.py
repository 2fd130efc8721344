"""Django's settings of a site with the page of the channel layer, and a strict Content Security Policy."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "example_project"))

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "channels",
    "channels_asyncq",
    "channels_asyncq.admin",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "chat_site.policy.content_security_policy",
]
ROOT_URLCONF = "tests.processes.admin_site"
ASGI_APPLICATION = "tests.processes.admin_site.asgi"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
# Fast, as these passwords protect nothing.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("ADMIN_DATABASE", ":memory:"),
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
}
_HOSTS = [os.environ.get("REDIS_URL", "memory://")]
_BACKEND = "channels_asyncq.AsyncQueueChannelLayer"
CHANNEL_LAYERS = {
    "default": {"BACKEND": _BACKEND, "CONFIG": {"hosts": _HOSTS, "prefix": "site", "capacity": 3}},
    "another": {"BACKEND": _BACKEND, "CONFIG": {"hosts": _HOSTS, "prefix": "another"}},
    "in memory": {"BACKEND": _BACKEND, "CONFIG": {"hosts": ["memory://"]}},
    "of Channels": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
}
