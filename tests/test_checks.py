"""Django's system checks of CHANNEL_LAYERS, run as `manage.py check` runs them."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage, run_checks
from django.test import override_settings

BACKEND = "channels_asyncq.AsyncQueueChannelLayer"


def layer(**config: Any) -> dict[str, Any]:
    return {"BACKEND": BACKEND, "CONFIG": config}


def found(layers: dict[str, Any], *, deploy: bool = False) -> list[CheckMessage]:
    """What the checks say of these CHANNEL_LAYERS."""
    with override_settings(CHANNEL_LAYERS=layers):
        messages = run_checks(include_deployment_checks=deploy)
    return [message for message in messages if str(message.id).startswith("channels_asyncq.")]


@pytest.mark.parametrize(
    "layers",
    [
        {},
        {"default": layer()},
        {"default": {"BACKEND": BACKEND}},
        {"default": layer(hosts=["redis://one/0"]), "other": layer(hosts=["redis://one/1"])},
        {"default": layer(prefix="a"), "other": layer(prefix="b")},
        {"default": layer(hosts=["redis://one"]), "other": layer(hosts=["redis://two"])},
        {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"nonsense": 1}}},
        {"default": {"BACKEND": "no.such.module.Layer"}},
        {"default": {}},
        {"default": {"BACKEND": "channels_asyncq.get_layer"}},
    ],
)
def test_nothing_to_say(layers: dict[str, Any]) -> None:
    """What is right, and what is somebody else's, is passed over, also in production."""
    assert found(layers, deploy=True) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"capasity": 5}, ["capasity", "capacity"]),
        ({"capacity": 0}, ["capacity", "0"]),
        ({"hosts": "redis://one"}, ["hosts"]),
    ],
)
def test_a_bad_config(config: dict[str, Any], words: list[str]) -> None:
    """E001: an error that names the alias, the key and the value."""
    [message] = found({"default": layer(), "second": layer(**config)})
    assert message.id == "channels_asyncq.E001" and message.level == ERROR
    assert all(word in message.msg for word in ["'second'", *words])


def test_secrets_stay_secret() -> None:
    """No check prints a password."""
    url = "redis://user:s3cret@one/0"
    messages = found(
        {"default": layer(hosts=[url]), "same": layer(hosts=[url]), "bad": layer(hosts=[url], capacity=0)}
    )
    assert {message.id for message in messages} == {"channels_asyncq.E001", "channels_asyncq.W002"}
    assert not any("s3cret" in str(message) for message in messages)


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"hosts": ["redis://localhost:6379/0"]},
        {"hosts": ["redis://two", "redis://localhost:6379"]},
        {"hosts": [("localhost", 6379)], "capacity": 5},
    ],
)
def test_two_aliases_of_one_namespace(second: dict[str, Any]) -> None:
    """W002: a warning with both aliases, once, however many hosts they share."""
    [message] = found({"default": layer(), "second": layer(**second)})
    assert message.id == "channels_asyncq.W002" and message.level == WARNING
    assert "'default'" in message.msg and "'second'" in message.msg and message.hint


def test_three_aliases_of_one_namespace() -> None:
    """Each alias but the first is told."""
    messages = found({name: layer() for name in "abc"})
    assert [message.id for message in messages] == ["channels_asyncq.W002"] * 2


def test_memory_in_production() -> None:
    """W001 comes with --deploy only; a CONFIG that is refused anyway does not hide it for others."""
    layers = {"default": layer(hosts=["memory://"]), "bad": layer(capacity=0), "redis": layer()}
    assert [message.id for message in found(layers)] == ["channels_asyncq.E001"]
    messages = found(layers, deploy=True)
    [message] = [message for message in messages if message.id == "channels_asyncq.W001"]
    assert "'default'" in message.msg and message.level == WARNING


def test_no_channel_layers_at_all() -> None:
    """A project without the setting is no error."""
    with override_settings():
        del settings.CHANNEL_LAYERS
        messages = run_checks(include_deployment_checks=True)
    assert not [message for message in messages if str(message.id).startswith("channels_asyncq.")]
