"""Django's system checks of CHANNEL_LAYERS."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .bus.resp.connector import check_hosts
from .layer import AsyncQueueChannelLayer
from .settings.hosts import DEFAULT_PORT, Host
from .settings.options import Options

_BACKEND = "channels_asyncq.AsyncQueueChannelLayer"
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# The keys of an entry that Channels reads; make_test_backend() reads TEST_CONFIG.
_READ = ("BACKEND", "CONFIG", "TEST_CONFIG")
# A path that is this similar to ours is a typo; a less similar one names another layer.
_ALIKE = 0.8


def _entries() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the aliases of CHANNEL_LAYERS with their entries, except entries of a wrong type."""
    configured = getattr(settings, "CHANNEL_LAYERS", {})
    if isinstance(configured, Mapping):
        for alias, entry in configured.items():
            if isinstance(entry, Mapping):
                yield alias, entry


def _backend(path: object) -> object:
    """Return the object that a BACKEND names, None if it cannot be imported."""
    if not isinstance(path, str) or not _DOTTED.fullmatch(path):
        return None
    try:
        return import_string(path)
    except ImportError:
        return None  # Channels reports it when the layer is used


def _is_ours(path: object) -> bool:
    backend = _backend(path)
    return isinstance(backend, type) and issubclass(backend, AsyncQueueChannelLayer)


def _configured() -> Iterator[tuple[str, Any]]:
    """Yield the aliases whose BACKEND is this layer, with their CONFIG."""
    for alias, entry in _entries():
        if _is_ours(entry.get("BACKEND")):
            yield alias, entry.get("CONFIG", {})


def _options(config: Any) -> Options | None:
    try:
        return Options.from_config(config)
    except ImproperlyConfigured:
        return None


@register(Tags.compatibility)
def check_backends(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002: CHANNEL_LAYERS or an entry has a wrong type, or our path has a typo. W004: a key that is not read."""
    configured = getattr(settings, "CHANNEL_LAYERS", {})
    if not isinstance(configured, Mapping):
        # The text leaves out the value, which may hold passwords.
        return [_no_backend(f"CHANNEL_LAYERS must be a dict of aliases, and is {type(configured).__name__}.")]
    messages: list[CheckMessage] = []
    for alias, entry in configured.items():
        if not isinstance(entry, Mapping):
            messages.append(_no_backend(f"CHANNEL_LAYERS[{alias!r}] must be a dict with BACKEND and CONFIG."))
        elif "BACKEND" in entry and (problem := _problem_of(entry["BACKEND"])) is not None:
            messages.append(
                _no_backend(f"CHANNEL_LAYERS[{alias!r}]: BACKEND = {entry['BACKEND']!r}: {problem}")
            )
        elif _is_ours(entry.get("BACKEND")):
            messages += [_unread(alias, key) for key in entry if key not in _READ]
    return messages


def _no_backend(problem: str) -> CheckMessage:
    return Error(problem, hint=f'"BACKEND": "{_BACKEND}"', id="channels_asyncq.E002")


def _unread(alias: object, key: object) -> CheckMessage:
    return Warning(
        f"CHANNEL_LAYERS[{alias!r}] has the key {key!r}, which is not read.",
        hint='The settings of the layer go into "CONFIG".',
        id="channels_asyncq.W004",
    )


def _problem_of(backend: object) -> str | None:
    """Return the problem of a BACKEND; None if there is none, or if it may name another layer."""
    if not isinstance(backend, str):
        return f"must be the path of a class as a str, such as {_BACKEND!r}."
    if _is_ours(backend):
        return None
    if backend.partition(".")[0] != __package__:
        likeness = difflib.SequenceMatcher(None, backend.strip(), _BACKEND).ratio()
        if likeness < _ALIKE or _backend(backend) is not None:
            return None
    return f"is no channel layer that can be imported. Did you mean {_BACKEND!r}?"


@register(Tags.compatibility)
def check_config(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: a CONFIG that the layer refuses. W002: two aliases that share prefix, server and database."""
    messages: list[CheckMessage] = []
    seen: dict[tuple[str, str, int], str] = {}
    for alias, config in _configured():
        try:
            options = Options.from_config(config)
            check_hosts(options)
        except ImproperlyConfigured as exc:
            messages.append(Error(f"CHANNEL_LAYERS[{alias!r}]: {exc}", id="channels_asyncq.E001"))
            continue
        for host in _servers_of(options):
            place = (options.prefix, host.address, host.db)
            other = seen.setdefault(place, alias)
            if other != alias:
                database = "" if options.hosts[0].is_cluster else ", or another database"
                messages.append(
                    Warning(
                        f"CHANNEL_LAYERS {other!r} and {alias!r} share the prefix {options.prefix!r} on "
                        f"{host.address}: each gets what is sent to the groups and channels of the other.",
                        hint=f"Give one of them another `prefix`{database}.",
                        id="channels_asyncq.W002",
                    )
                )
                break
    return messages


def _servers_of(options: Options) -> Iterator[Host]:
    """Yield the hosts in CONFIG; of a Redis Cluster the nodes that CONFIG names."""
    for host in options.hosts:
        if host.is_cluster:
            yield from (host.at(*node) for node in host.startup_nodes)
        else:
            yield host


# A database on a server: a host and a port, or the path of a socket and 0; and the number of the database.
_Place = tuple[str, int, int]
_URL = re.compile(r"(redis|rediss|valkey|valkeys|unix)://")


def _place_of_host(host: Host) -> _Place | None:
    if host.kind == "memory" or host.sentinels:
        return None
    if host.transport == "unix":
        return str(host.arguments["path"]), 0, host.db
    return _named(str(host.arguments["host"])), int(host.arguments["port"]), host.db


def _place_of_cache(url: str, options: Mapping[str, Any]) -> _Place | None:
    """Return the database that a URL in CACHES names; None if it names none, or is malformed."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
        found = parse_qs(parts.query).get("db", [])
        if parts.scheme != "unix":
            found = [word for word in (*found, parts.path.strip("/")) if word]
        database = int(found[0] if found else options.get("db", 0))
    except (TypeError, ValueError):
        return None
    if not _URL.match(url):
        return None
    if parts.scheme == "unix":
        return unquote(parts.path), 0, database
    return _named(parts.hostname or "localhost"), port, database


def _named(host: str) -> str:
    return "localhost" if host in ("127.0.0.1", "::1") else host.lower()


def _caches() -> Iterator[tuple[str, _Place]]:
    """Yield the aliases of CACHES on Redis or Valkey servers, with the database of each of their URLs."""
    caches = getattr(settings, "CACHES", {})
    for alias, entry in caches.items() if isinstance(caches, Mapping) else ():
        if not isinstance(entry, Mapping):
            continue
        location, options = entry.get("LOCATION", ""), entry.get("OPTIONS")
        options = options if isinstance(options, Mapping) else {}
        urls = re.split("[;,]", location) if isinstance(location, str) else location
        for url in urls if isinstance(urls, (list, tuple)) else ():
            place = _place_of_cache(url.strip(), options) if isinstance(url, str) else None
            if place is not None:
                yield alias, place


@register(Tags.compatibility)
def check_caches(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W003: a cache on the database of a layer."""
    layers = {
        _place_of_host(host): (alias, host.address)
        for alias, config in _configured()
        if (options := _options(config)) is not None
        for host in _servers_of(options)
    }
    return [
        Warning(
            f"CACHES[{cache!r}] is on the database of CHANNEL_LAYERS[{layers[place][0]!r}], {layers[place][1]}: "
            "cache.clear() deletes the data of the layer there (jobs, logs, memberships).",
            hint=(
                "Give the cache another database number, or a server of its own: another number does not help "
                "against FLUSHALL, nor against a maxmemory-policy that evicts."
            ),
            id="channels_asyncq.W003",
        )
        for cache, place in dict.fromkeys(_caches())
        if place in layers
    ]


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
