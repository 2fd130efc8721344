"""
A plugin of pytest for the tests of another project: this layer in the place of the classes that they make.

IN_PLACE_OF has the names of the classes; REDIS_URL and SENTINEL_PORT say which servers to use.
"""

import importlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.testing import HOST

_numbers = itertools.count(1)
_prefix = ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """
    Give the layers of each test a prefix of their own.

    These tests leave their layers open, with other `hosts` than the next test's. That would be refused.
    """
    global _prefix
    _prefix = f"test{next(_numbers)}"


def here(host: Any) -> Any:
    """Return this item of `hosts` with the servers of this run in the place of those at the usual ports."""
    if isinstance(host, dict) and host.get("sentinels") == [("localhost", 26379)]:
        return {**host, "sentinels": [(HOST, int(os.environ["SENTINEL_PORT"]))]}
    url, _, database = host.partition("localhost:6379")
    assert url == "redis://"
    return os.environ["REDIS_URL"].removesuffix("/0") + database


class InPlace(AsyncQueueChannelLayer):
    """The layer, with the servers of this run and the prefix of this test."""

    def __init__(self, hosts: Sequence[Any] = ("redis://localhost:6379",), **config: Any) -> None:
        super().__init__(**{"hosts": [here(host) for host in hosts], "prefix": _prefix, **config})


for name in os.environ["IN_PLACE_OF"].split():
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)
    setattr(importlib.import_module(module), attribute, InPlace)
