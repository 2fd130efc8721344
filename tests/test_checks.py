"""Django's system checks of CHANNEL_LAYERS, as `manage.py check` runs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import Tags, run_checks
from django.core.exceptions import ImproperlyConfigured

import channels_asyncq
from channels_asyncq import checks

OURS = "channels_asyncq.AsyncQueueChannelLayer"


def layers(**configs: dict[str, Any]) -> dict[str, Any]:
    return {alias: {"BACKEND": OURS, "CONFIG": config} for alias, config in configs.items()}


def found(*, deploy: bool = False) -> list[tuple[str | None, str]]:
    messages = run_checks(tags=[Tags.compatibility], include_deployment_checks=deploy)
    return [(m.id, str(m.msg)) for m in messages if (m.id or "").startswith("channels_asyncq.")]


@pytest.mark.parametrize(
    "value",
    [
        {},
        layers(default={"hosts": ["memory://"]}),
        layers(default={}, other={"prefix": "other"}),
        layers(default={}, other={"hosts": ["redis://localhost:6379/1"]}),
        layers(default={"hosts": ["redis+cluster://a,b"]}, other={"hosts": ["redis+cluster://c"]}),
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


def test_bad_history(settings: Any) -> None:
    """E001 for a history whose bounds are impossible, or that has no logs to stand beside."""
    settings.CHANNEL_LAYERS = layers(
        chat={"history": {"room.*": {"messages": -1}}}, news={"history": {"room.*": {}}, "recovery": None}
    )
    (code, text), (other, words) = found()
    assert code == other == "channels_asyncq.E001"
    assert "history['room.*']['messages'] = -1" in text and "`recovery` is None" in words


def test_bad_cluster(settings: Any) -> None:
    """E001 for the address of a Redis Cluster, also for a file of TLS that its connections need."""
    settings.CHANNEL_LAYERS = layers(
        chat={"hosts": ["redis+cluster://:secret@a,b/1"]},
        news={"hosts": ["rediss+cluster://a,b?ssl_ca_certs=/no/such/file"]},
    )
    (code, text), (other, words) = found()
    assert code == other == "channels_asyncq.E001"
    assert "'chat'" in text and "a Redis Cluster has database 0 only" in text and "secret" not in text
    assert "'news'" in words and "/no/such/file" in words and "rediss+cluster://a:6379,b:6379" in words


REDIS = "django.core.cache.backends.redis.RedisCache"


def cache(location: object, backend: str = REDIS, **options: Any) -> dict[str, Any]:
    return {"default": {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}}


@pytest.mark.parametrize(
    "config",
    [None, [], ["redis://localhost"], "redis://localhost", 5, {5: "redis://localhost"}],
    ids=repr,
)
def test_config_of_a_wrong_type(settings: Any, config: Any) -> None:
    """E001 for a CONFIG that is no dict of names; and the layer says the same when it is asked for."""
    settings.CHANNEL_LAYERS = layers(chat=config)
    ((code, text),) = found()
    assert code == "channels_asyncq.E001"
    assert "'chat'" in text and ("CONFIG = " in text or "5 = " in text)
    with pytest.raises(ImproperlyConfigured, match=r"CONFIG|there is no such key"):
        channels_asyncq.get_layer("chat")


@pytest.mark.parametrize(
    "hosts",
    [
        5,
        "redis://localhost",
        b"redis://localhost",
        {"host": "localhost"},
        [5],
        [None],
        [{"address": 5}],
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hosts_of_a_wrong_type(settings: Any, hosts: Any) -> None:
    """E001 names the key."""
    settings.CHANNEL_LAYERS = layers(chat={"hosts": hosts})
    ((code, text),) = found()
    assert code == "channels_asyncq.E001"
    assert "'chat'" in text and "hosts" in text and "must be" in text


def test_file_that_is_not_there(settings: Any) -> None:
    """E001 for a file of TLS that cannot be read."""
    settings.CHANNEL_LAYERS = layers(chat={"hosts": ["rediss://localhost?ssl_ca_certs=/no/such/file"]})
    ((code, text),) = found()
    assert code == "channels_asyncq.E001"
    assert "/no/such/file" in text


@pytest.mark.parametrize(
    "backend",
    [
        "channels_asyncq.AsyncQueueChanelLayer",
        "channels_asyncq.layers.AsyncQueueChannelLayer",
        "chanels_asyncq.AsyncQueueChannelLayer",
        "channels_asyncq.AsyncQueueChannelLayer ",
        ".channels_asyncq.AsyncQueueChannelLayer",
        "channels_asyncq",
        "channels_asyncq.sync",
    ],
)
def test_backend_with_a_typo(settings: Any, backend: str) -> None:
    """E002 names the right one."""
    settings.CHANNEL_LAYERS = {"chat": {"BACKEND": backend}}
    ((code, text),) = found()
    assert code == "channels_asyncq.E002"
    assert "'chat'" in text and repr(backend) in text and f"{OURS!r}" in text


@pytest.mark.parametrize("key", ["OPTIONS", "config", "LOCATION", 5])
def test_key_that_nobody_reads(settings: Any, key: Any) -> None:
    """W004: what stands beside CONFIG would be ignored without a word."""
    settings.CHANNEL_LAYERS = {"chat": {"BACKEND": OURS, "TEST_CONFIG": {}, key: {"hosts": ["memory://"]}}}
    ((code, text),) = found()
    assert code == "channels_asyncq.W004"
    assert "'chat'" in text and repr(key) in text


def test_credentials_of_a_wrong_type(settings: Any) -> None:
    """E001, and no connection that fails for ever for a word that says nothing."""
    host = {"host": "localhost", "port": 6379, "credential_provider": "secret"}
    settings.CHANNEL_LAYERS = layers(chat={"hosts": [host]})
    ((code, text),) = found()
    assert code == "channels_asyncq.E001"
    assert "credential_provider" in text and "must be an object such as a redis.CredentialProvider" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "channels_asyncq.AsyncQueueChannelLayer",
        {"chat": None},
        {"chat": "channels_asyncq.AsyncQueueChannelLayer"},
        {"chat": {"BACKEND": channels_asyncq.AsyncQueueChannelLayer}},
        {"chat": {"BACKEND": 5}},
        {"chat": {"BACKEND": None}},
    ],
    ids=repr,
)
def test_layers_of_a_wrong_type(settings: Any, value: Any) -> None:
    """E002 says what belongs there, and no other check stumbles."""
    settings.CHANNEL_LAYERS = value
    ((code, text),) = found(deploy=True)
    assert code == "channels_asyncq.E002"
    assert "CHANNEL_LAYERS" in text and "must be" in text


@pytest.mark.parametrize(
    "value",
    [None, [], {"default": None}, {"default": {"LOCATION": 5}}, cache("redis://h") | {"o": {"OPTIONS": 5}}],
)
def test_caches_of_a_wrong_type(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """That is for Django to say, which stumbles over it; no check of ours does."""
    monkeypatch.setattr(checks, "settings", SimpleNamespace(CHANNEL_LAYERS=layers(chat={}), CACHES=value))
    assert checks.check_caches(None) == []


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


def test_two_aliases_in_one_cluster(settings: Any) -> None:
    """W002 for a cluster in which both name the same node, in whatever order; it has no other database."""
    settings.CHANNEL_LAYERS = layers(
        a={"hosts": ["redis+cluster://h1,h2:7000"]},
        b={"hosts": ["redis+cluster://h3,h2:7000"]},
        c={"hosts": ["redis+cluster://h1,h2:7000"], "prefix": "c"},
    )
    (message,) = [each for each in run_checks(tags=[Tags.compatibility]) if each.id == "channels_asyncq.W002"]
    assert "'a' and 'b'" in message.msg and "redis://h2:7000/0" in message.msg
    assert message.hint == "Give one of them another `prefix`."


@pytest.mark.parametrize(
    ("host", "caches"),
    [
        ("redis://localhost:6379/0", cache("redis://localhost")),
        ("redis://localhost", cache("redis://127.0.0.1:6379/0")),
        ("redis://:secret@Cache.example:7000/3", cache("redis://cache.example:7000/3")),
        ("redis://localhost/3", cache("redis://localhost?db=3")),
        ("redis://localhost/3", cache("redis://localhost/1?db=3")),
        ("redis://localhost/3", cache("redis://localhost", db=3)),
        ("redis://localhost/1", cache("redis://other, redis://localhost/1")),
        ("redis://localhost/1", cache(["redis://other/1", "redis://localhost/1"])),
        ("redis://localhost/1", cache("redis://localhost/1", "django_redis.cache.RedisCache")),
        ("redis://localhost/1", cache("valkey://localhost/1", "django_valkey.cache.ValkeyCache")),
        ("unix:///run/redis.sock?db=2", cache("unix:///run/redis.sock?db=2")),
        ("redis+cluster://:secret@a,b:7000", cache("redis://b:7000")),
    ],
)
def test_cache_on_the_database_of_a_layer(settings: Any, host: str, caches: dict[str, Any]) -> None:
    """W003 names both aliases and the place, without a password."""
    settings.CHANNEL_LAYERS = layers(chat={"hosts": [host]})
    settings.CACHES = caches
    ((code, text),) = found()
    assert code == "channels_asyncq.W003"
    assert "'default'" in text and "'chat'" in text and "cache.clear()" in text and "secret" not in text


@pytest.mark.parametrize(
    "caches",
    [
        cache("redis://localhost/1"),
        cache("redis://localhost:6380/0"),
        cache("redis://other/0"),
        cache("unix:///run/redis.sock"),
        cache("redis://localhost:port/0"),
        cache("redis://localhost/zero"),
        cache("localhost:6379", "django.core.cache.backends.memcached.PyMemcacheCache"),
        cache(None),
        {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    ],
)
def test_cache_elsewhere(settings: Any, caches: dict[str, Any]) -> None:
    """Another server, another database, something else: nothing to say."""
    settings.CHANNEL_LAYERS = layers(chat={}, test={"hosts": ["memory://"]})
    settings.CACHES = caches
    assert found() == []
