"""The type of `CONFIG`, for type checkers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from .keys import Overflow, SerializerFormat

# A str is a Sequence too; the layer refuses it when it is made.
Patterns = Sequence[str | re.Pattern[str]]
Hosts = Sequence[str | tuple[str, int] | Mapping[str, Any]]


class RecoveryConfig(TypedDict, total=False):
    """The setting `recovery`."""

    seconds: float
    messages: int
    message_bytes: int
    exclude: Patterns
    required: bool
    resume_messages: int
    catch_up_messages: int
    catch_up_seconds: float


class HistoryConfig(TypedDict, total=False):
    """What the setting `history` says of the groups of one pattern."""

    seconds: float
    messages: int


class ExternalConfig(TypedDict, total=False):
    """The setting `external`."""

    types: Patterns
    groups: Patterns


class Config(TypedDict, total=False):
    """
    The keys of `CONFIG`, and the arguments of `AsyncQueueChannelLayer`, for type checkers.

    `Options.from_config()` checks what types cannot express.
    """

    hosts: Hosts
    prefix: str
    expiry: float
    group_expiry: float
    capacity: int
    channel_capacity: (
        Mapping[Any, int] | None
    )  # str or compiled patterns; the keys of a Mapping are invariant
    symmetric_encryption_keys: Sequence[str | bytes] | None
    serializer_format: SerializerFormat
    on_disconnect: str | None
    on_reconnect: str | None
    overflow: Overflow
    send_timeout: float
    max_message_size: int
    partitions: int
    on_loss: str | None
    recovery: RecoveryConfig | None
    history: Mapping[Any, HistoryConfig] | None  # as in channel_capacity
    max_buffered_bytes: int | None
    external: ExternalConfig | None
    random_prefix_length: int
