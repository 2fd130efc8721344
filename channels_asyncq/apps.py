"""Optional: `INSTALLED_APPS` with `channels_asyncq` brings the system checks."""

from django.apps import AppConfig


class ChannelsAsyncqConfig(AppConfig):
    name = "channels_asyncq"
    verbose_name = "Channel layer"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)
