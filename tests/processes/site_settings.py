"""Django's settings of the site that the tests serve; the CONFIG of its layer comes from the environment."""

import json
import os

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
INSTALLED_APPS = ["channels", "channels_asyncq"]
ROOT_URLCONF = "tests.processes.site"
ASGI_APPLICATION = "tests.processes.site.application"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
        "CONFIG": json.loads(os.environ.get("TEST_LAYER_CONFIG", "{}")),
    },
}
