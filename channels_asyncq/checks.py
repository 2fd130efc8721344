"""Django's system checks of CHANNEL_LAYERS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .layer import AsyncQueueChannelLayer
from .options import Options


def _configured() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the aliases whose BACKEND is this layer, with their CONFIG."""
    for alias, entry in getattr(settings, "CHANNEL_LAYERS", {}).items():
        try:
            backend = import_string(entry["BACKEND"])
        except (KeyError, ImportError):
            continue  # Channels reports that itself, when the layer is used
        if isinstance(backend, type) and issubclass(backend, AsyncQueueChannelLayer):
            yield alias, entry.get("CONFIG", {})


def _options(config: dict[str, Any]) -> Options | None:
    try:
        return Options.from_config(config)
    except ImproperlyConfigured:
        return None


@register(Tags.compatibility)
def check_config(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: a CONFIG that the layer refuses. W002: two aliases that share prefix, server and database."""
    messages: list[CheckMessage] = []
    seen: dict[tuple[str, str, int], str] = {}
    for alias, config in _configured():
        try:
            options = Options.from_config(config)
        except ImproperlyConfigured as exc:
            messages.append(Error(f"CHANNEL_LAYERS[{alias!r}]: {exc}", id="channels_asyncq.E001"))
            continue
        for host in options.hosts:
            place = (options.prefix, host.address, host.db)
            other = seen.setdefault(place, alias)
            if other != alias:
                messages.append(
                    Warning(
                        f"CHANNEL_LAYERS {other!r} and {alias!r} share the prefix {options.prefix!r} on "
                        f"{host.address}: each gets what is sent to the groups and channels of the other.",
                        hint="Give one of them another `prefix`, or another database.",
                        id="channels_asyncq.W002",
                    )
                )
                break
    return messages


@register(Tags.compatibility, deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W001: memory:// in production."""
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}] uses memory://, which reaches one process only.",
            hint="Set `hosts` to the URL of a Redis or Valkey server.",
            id="channels_asyncq.W001",
        )
        for alias, config in _configured()
        if (options := _options(config)) is not None and options.hosts[0].kind == "memory"
    ]
