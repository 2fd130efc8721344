"""A channel layer for Django Channels: a bounded queue per channel, Redis between processes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import sync
    from .bus.base import Health, HostHealth, Link, ReplayCounts
    from .exceptions import (
        ChannelClosed,
        ChannelLayerError,
        DeliveryUnknown,
        LayerClosed,
        LayerUnavailable,
        MessagesLost,
        StillFull,
        TooManyGroups,
    )
    from .layer import AsyncQueueChannelLayer
    from .local.buffers import ChannelView
    from .messages.external import ExternalMessage
    from .session.histories import History
    from .session.logged import LoggedMessage
    from .session.open_channel import OpenChannel
    from .session.statistics import Statistics
    from .session.surveys import Answer, Missing, Survey
    from .settings.config import Config, ExternalConfig, HistoryConfig, RecoveryConfig
    from .settings.keys import Overflow, SerializerFormat
    from .subscription import Replay, Subscription
    from .tallies import Latency

__all__ = [
    "Answer",
    "AsyncQueueChannelLayer",
    "ChannelClosed",
    "ChannelLayerError",
    "ChannelView",
    "Config",
    "DeliveryUnknown",
    "ExternalConfig",
    "ExternalMessage",
    "Health",
    "History",
    "HistoryConfig",
    "HostHealth",
    "Latency",
    "LayerClosed",
    "LayerUnavailable",
    "Link",
    "LoggedMessage",
    "MessagesLost",
    "Missing",
    "OpenChannel",
    "Overflow",
    "RecoveryConfig",
    "Replay",
    "ReplayCounts",
    "SerializerFormat",
    "Statistics",
    "StillFull",
    "Subscription",
    "Survey",
    "TooManyGroups",
    "get_layer",
    "sync",
]

__version__ = "1.0.0rc1"

# Imported when they are asked for: every run of pytest imports this package for its plugin, whatever it tests.
_HOMES = {
    "Answer": "session.surveys",
    "AsyncQueueChannelLayer": "layer",
    "ChannelView": "local.buffers",
    "Config": "settings.config",
    "ExternalConfig": "settings.config",
    "ExternalMessage": "messages.external",
    "Health": "bus.base",
    "History": "session.histories",
    "HistoryConfig": "settings.config",
    "HostHealth": "bus.base",
    "Latency": "tallies",
    "Link": "bus.base",
    "LoggedMessage": "session.logged",
    "Missing": "session.surveys",
    "OpenChannel": "session.open_channel",
    "Overflow": "settings.keys",
    "RecoveryConfig": "settings.config",
    "Replay": "subscription",
    "ReplayCounts": "bus.base",
    "SerializerFormat": "settings.keys",
    "Statistics": "session.statistics",
    "Subscription": "subscription",
    "Survey": "session.surveys",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "sync":
        return import_module(".sync", __name__)
    found = getattr(import_module(f".{_HOMES.get(name, 'exceptions')}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_layer(alias: str = "default") -> "AsyncQueueChannelLayer":
    """
    Return the layer of an alias, typed: `channels.layers.get_channel_layer()` for those who use this one.

    Raises:
        ImproperlyConfigured: there is no such alias in CHANNEL_LAYERS, or its BACKEND is another one.
    """
    from channels.layers import channel_layers, get_channel_layer
    from django.core.exceptions import ImproperlyConfigured

    from .layer import AsyncQueueChannelLayer
    from .settings.options import Options

    if alias not in channel_layers.backends and alias in channel_layers.configs:
        config: object = channel_layers.configs[alias].get("CONFIG", {})
        if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
            # Channels takes it apart, and Python's error about that names no setting.
            Options.from_config(config)
    layer = get_channel_layer(alias)
    if isinstance(layer, AsyncQueueChannelLayer):
        return layer
    problem = "is not configured" if layer is None else f"has the backend {type(layer).__qualname__}"
    raise ImproperlyConfigured(
        f"CHANNEL_LAYERS[{alias!r}] {problem}; get_layer() is for channels_asyncq.AsyncQueueChannelLayer"
    )
