"""
Settings of the example: a chat without accounts, live orders, and answers that come word by word.

For your own site: take the secret key from the environment, set your host names, and turn on HTTPS.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "an-example-key-that-protects-nothing")
DEBUG = os.environ.get("DJANGO_DEBUG") == "1"
# AllowedHostsOriginValidator uses this too: pages of other sites cannot open our WebSockets.
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")

INSTALLED_APPS = [
    "django.contrib.humanize",
    "django.contrib.staticfiles",
    "channels",
    "channels_asyncq",
    "chat",
    "orders",
    "tokens",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "chat_site.policy.content_security_policy",
]
ROOT_URLCONF = "chat_site.urls"
ASGI_APPLICATION = "chat_site.asgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
        "CONFIG": {
            "hosts": [os.environ.get("REDIS_URL", "redis://localhost:6379/0")],
            # Each consumer gets these messages in an outage, and informs its page.
            "on_disconnect": "layer.down",
            "on_reconnect": "layer.up",
        },
    },
}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("CHAT_DATABASE", BASE_DIR / "db.sqlite3"),
        # Two servers and a worker write to one file. WAL lets readers go on during a write. An immediate
        # transaction waits at BEGIN; a deferred one would fail in the middle with "database is locked".
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Django's default is America/Chicago. Pages show times in the reader's own time zone.
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"

# One format for all log lines, and Django's own lines without DEBUG too. The root logger has no level here,
# because the server chooses it (`daphne -v`).
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {
            "format": "{asctime} {levelname} {name}: {message}",
            "datefmt": "%H:%M:%S",
            "style": "{",
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"]},
    "loggers": {"django": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}
