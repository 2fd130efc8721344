"""The app of Django that ends connections when sessions end."""

from django.apps import AppConfig


class AuthConfig(AppConfig):
    name = "channels_asyncq.auth"
    label = "channels_asyncq_auth"
    verbose_name = "Connections of users"

    def ready(self) -> None:
        from . import receivers

        receivers.connect()
