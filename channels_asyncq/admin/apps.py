"""The app of Django that has a page in the default site of its admin."""

from django.apps import AppConfig


class LayerAdminConfig(AppConfig):
    name = "channels_asyncq.admin"
    label = "channels_asyncq_admin"
    verbose_name = "Channel layer"

    def ready(self) -> None:
        from django.contrib import admin

        from .models import Layer
        from .page import LayerAdmin

        admin.site.register(Layer, LayerAdmin)
