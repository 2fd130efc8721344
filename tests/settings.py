"""The least that Django asks for; tests that want a server build their layer themselves."""

SECRET_KEY = "only for tests"
USE_TZ = True
INSTALLED_APPS = ["channels_asyncq"]
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
        "CONFIG": {"hosts": ["memory://"]},
    },
}
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
