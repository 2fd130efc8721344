"""The objects that all parts of one session's bus share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ...messages.framing import Formats
from ...names import Topics
from ...settings.options import Options
from ..base import Receiver
from ..resp.outages import Outages
from .opening import Opener
from .scripts import Script
from .subscriptions import Subscription


class LinkObserver(Protocol):
    """The bus, as its nodes see it. Implemented by `bus.redis.bus.RedisBus`."""

    def start(self) -> None:
        """Begin connecting to all hosts, unless that is done or under way."""

    def on_links_changed(self) -> None:
        """A connection came up or was lost."""


@dataclass(frozen=True, eq=False)
class Shared:
    """The settings, names and helpers of one session, and the objects that get its callbacks."""

    options: Options
    topics: Topics
    session_id: bytes
    receiver: Receiver
    formats: Formats
    opener: Opener
    outages: Outages
    #: All scripts that are loaded into a server.
    scripts: tuple[Script, ...]
    loop: asyncio.AbstractEventLoop
    observer: LinkObserver
    #: The wanted topics of all partitions, to look up pushes that arrive.
    index: dict[bytes, Subscription] = field(default_factory=dict)
