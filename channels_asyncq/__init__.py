"""A channel layer for Django Channels: a bounded queue per channel, Redis between processes."""

from channels import DEFAULT_CHANNEL_LAYER

from .exceptions import (
    ChannelClosed,
    ChannelLayerError,
    DeliveryUnknown,
    LayerClosed,
    LayerUnavailable,
    StillFull,
)
from .layer import AsyncQueueChannelLayer
from .session import Statistics

__all__ = [
    "AsyncQueueChannelLayer",
    "ChannelClosed",
    "ChannelLayerError",
    "DeliveryUnknown",
    "LayerClosed",
    "LayerUnavailable",
    "Statistics",
    "StillFull",
    "get_layer",
]

__version__ = "0.1.0"


def get_layer(alias: str = DEFAULT_CHANNEL_LAYER) -> AsyncQueueChannelLayer:
    """
    Return the layer of an alias, typed: `channels.layers.get_channel_layer()` for those who use this one.

    Raises:
        ImproperlyConfigured: there is no such alias in CHANNEL_LAYERS, or its BACKEND is another one.
    """
    from channels.layers import get_channel_layer
    from django.core.exceptions import ImproperlyConfigured

    layer = get_channel_layer(alias)
    if isinstance(layer, AsyncQueueChannelLayer):
        return layer
    problem = "is not configured" if layer is None else f"has the backend {type(layer).__qualname__}"
    raise ImproperlyConfigured(
        f"CHANNEL_LAYERS[{alias!r}] {problem}; get_layer() is for channels_asyncq.AsyncQueueChannelLayer"
    )
