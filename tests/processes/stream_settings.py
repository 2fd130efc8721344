"""Django's settings of the site with event streams; what differs from test to test is in the environment."""

import json
import os

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
INSTALLED_APPS = ["channels_asyncq"]
ROOT_URLCONF = os.environ.get("TEST_URLS", "tests.processes.streams")
MIDDLEWARE = json.loads(os.environ.get("TEST_MIDDLEWARE", "[]"))
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("TEST_DATABASE", ":memory:")}
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
        "CONFIG": json.loads(os.environ.get("TEST_LAYER_CONFIG", "{}")),
    },
}
