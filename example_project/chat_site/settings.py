"""
Settings of the example: a chat without accounts.

For a site of your own: take the secret key from the environment, name your hosts, and turn on HTTPS.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "an-example-key-that-protects-nothing")
DEBUG = os.environ.get("DJANGO_DEBUG") == "1"
# AllowedHostsOriginValidator reads this too: a page of another site cannot open our WebSockets.
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")

INSTALLED_APPS = [
    "django.contrib.humanize",
    "django.contrib.staticfiles",
    "channels",
    "channels_asyncq",
    "chat",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "chat_site.urls"
ASGI_APPLICATION = "chat_site.asgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
        "CONFIG": {
            "hosts": [os.environ.get("REDIS_URL", "redis://localhost:6379/0")],
            # Every local channel is told of an outage; the consumers hand it on to the page.
            "on_disconnect": "layer.down",
            "on_reconnect": "layer.up",
            # What may have been missed all the same, and nobody can know, is told too.
            "on_loss": "layer.loss",
        },
    },
}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("CHAT_DATABASE", BASE_DIR / "db.sqlite3"),
        # Two servers and a worker write to one file. WAL lets readers go on meanwhile; an immediate
        # transaction waits for its turn at BEGIN, where a deferred one would fail half-way as "locked".
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Without it the clock of the logs would be Chicago's. Pages show times by the reader's own clock.
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"

# Everybody's messages in one form; Django's own also without DEBUG. How much of the rest is said is the server's
# to decide (`daphne -v`): the root logger has no level here.
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
