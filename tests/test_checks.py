"""Django's system checks of CHANNEL_LAYERS, as `manage.py check` runs them."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks

OURS = "channels_asyncq.AsyncQueueChannelLayer"


def layers(**configs: dict[str, Any]) -> dict[str, Any]:
    return {alias: {"BACKEND": OURS, "CONFIG": config} for alias, config in configs.items()}


def found(*, deploy: bool = False) -> list[tuple[str | None, str]]:
    messages = run_checks(include_deployment_checks=deploy)
    return [(m.id, str(m.msg)) for m in messages if (m.id or "").startswith("channels_asyncq.")]


@pytest.mark.parametrize(
    "value",
    [
        {},
        layers(default={"hosts": ["memory://"]}),
        layers(default={}, other={"prefix": "other"}),
        layers(default={}, other={"hosts": ["redis://localhost:6379/1"]}),
        {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        {"default": {"BACKEND": "there.is.no.such.Layer"}},
        {"default": {}},
    ],
)
def test_nothing_to_say(settings: Any, value: dict[str, Any]) -> None:
    """A right CONFIG, and the layers of others, pass without a word."""
    settings.CHANNEL_LAYERS = value
    assert found() == []


def test_bad_config(settings: Any) -> None:
    """E001 names the alias, the key and the remedy."""
    settings.CHANNEL_LAYERS = layers(chat={"capactiy": 5})
    ((code, text),) = found()
    assert code == "channels_asyncq.E001"
    assert "'chat'" in text and "capactiy" in text and "capacity" in text


def test_memory_in_production(settings: Any) -> None:
    """W001 comes with --deploy only, and not for a CONFIG that is wrong anyway."""
    settings.CHANNEL_LAYERS = layers(a={"hosts": ["memory://"]}, b={"hosts": "memory://"}, c={"prefix": "c"})
    assert [code for code, _ in found()] == ["channels_asyncq.E001"]
    warned = [text for code, text in found(deploy=True) if code == "channels_asyncq.W001"]
    assert len(warned) == 1 and "'a'" in warned[0]


def test_two_aliases_in_one_place(settings: Any) -> None:
    """W002 names both aliases that share prefix, server and database."""
    settings.CHANNEL_LAYERS = layers(a={}, b={"hosts": ["redis://localhost:6379/0"]}, c={"prefix": "c"})
    ((code, text),) = found()
    assert code == "channels_asyncq.W002"
    assert "'a'" in text and "'b'" in text
