"""The page, as what Django's admin knows: the options of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.exceptions import InvalidChannelLayerError
from channels.layers import channel_layers
from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_safe

from channels_asyncq import get_layer
from channels_asyncq.exceptions import ChannelLayerError
from channels_asyncq.layer import AsyncQueueChannelLayer

from .looks import look_at
from .models import Layer

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Layer]
else:
    _ModelAdmin = admin.ModelAdmin


class LayerAdmin(_ModelAdmin):
    """
    The one page, in place of the list of a model, for staff with `channels_asyncq_admin.view_layer`. Read-only.

    `?layer=` is an alias of CHANNEL_LAYERS. With `&figures` it is the part of the page that its script puts in.
    A site of your own has it by `site.register(Layer, LayerAdmin)`.
    """

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.changelist_view)
        return [path("", view, name=f"{self.opts.app_label}_{self.opts.model_name}_changelist")]

    @method_decorator(require_safe)
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        layers = _layers()
        alias = request.GET.get("layer") or next(iter(layers), None)
        if alias is not None and alias not in layers:
            raise Http404(f"CHANNEL_LAYERS has no layer {alias!r} of channels_asyncq")
        figures: dict[str, Any] = {"layers": layers, "alias": alias}
        if alias is not None:
            figures["is_memory"] = layers[alias].options.hosts[0].kind == "memory"
            try:
                figures["look"] = look_at(layers[alias])
            except ChannelLayerError as error:
                figures["error"] = error
        if "figures" in request.GET:
            return TemplateResponse(request, "channels_asyncq/figures.html", figures)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": "Channel layer",
            "opts": self.opts,
            **figures,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "channels_asyncq/layer.html", context)


def _layers() -> dict[str, AsyncQueueChannelLayer]:
    """Return the layers of this package by their aliases, the default one first."""
    found = {}
    for alias in sorted(channel_layers.configs, key=lambda alias: (alias != DEFAULT_CHANNEL_LAYER, alias)):
        try:
            found[alias] = get_layer(alias)
        except (ImproperlyConfigured, InvalidChannelLayerError):
            continue  # one of another package, or one that the system checks refuse
    return found
