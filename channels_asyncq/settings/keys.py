"""Which values the keys of `CONFIG` may have: a function for each kind of value."""

from __future__ import annotations

import fnmatch
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NoReturn, get_args

from django.core.exceptions import ImproperlyConfigured

from ..messages.external import External
from .refusals import refuse, suggestion

Overflow = Literal["drop_newest", "drop_oldest", "close"]
SerializerFormat = Literal["msgpack", "json"]

MAX_PARTITIONS = 4096
PARTITIONS = 16
#: The default in a Redis Cluster, whose nodes share the partitions.
CLUSTER_PARTITIONS = 64
# The maximum of seconds, of bytes of a message and of entries of a log. The scripts write a time as 13 digits of
# ms, and no log begins before 1970. The header has 32 bits for the length of a message.
MOST = 10**9
#: The most bytes of a message that a log keeps: one of up to 16 logs has room for seven such messages.
MOST_LOGGED = 2**20
# An entry of s > 1024 bytes trims its log to LOG_BYTES / s entries, if there are up to 16 logs.
LOG_BYTES = 8 * 2**20
#: The most entries of a history. An entry of s > 1024 bytes trims its history to HISTORY_BYTES / s entries.
MOST_KEPT = 10_000
HISTORY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Recovery:
    """
    What each partition's log keeps: seconds, messages, bytes of a message; and which groups are not logged.

    With `required` a message that the server refuses to log is not sent. A channel that comes back gets at most
    `resume_messages` at once. After an outage a process reads at most `catch_up_messages` entries of each log,
    for `catch_up_seconds` at each server.
    """

    seconds: float = 60.0
    messages: int = 10000
    message_bytes: int = 64 * 1024
    exclude: tuple[re.Pattern[str], ...] = ()
    required: bool = False
    resume_messages: int = 5000
    catch_up_messages: int = 20000
    catch_up_seconds: float = 10.0

    def is_logged(self, group: str) -> bool:
        return not any(pattern.match(group) for pattern in self.exclude)

    def spread_over(self, partitions: int) -> Recovery:
        """
        Return this for each of `partitions` logs, which together keep the messages that 16 logs would keep.

        Each keeps at least one message. Up to 16 logs keep `messages` each.
        """
        return replace(self, messages=max(1, self.messages * PARTITIONS // max(PARTITIONS, partitions)))


@dataclass(frozen=True, slots=True)
class Keeping:
    """What the history of a group has: the last `messages` entries of the last `seconds`."""

    seconds: float = 300.0
    messages: int = 100


#: By pattern of groups; the first that matches decides.
Histories = tuple[tuple[re.Pattern[str], Keeping], ...]


def log_bytes(partitions: int) -> int:
    """
    Return the bytes that each of `partitions` logs has for entries of more than 1 KiB.

    More than 16 logs together have what 16 have. The last entry of a log stays even if it is larger.
    """
    return LOG_BYTES * PARTITIONS // max(PARTITIONS, partitions)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def integer(key: str, value: Any, *, least: int, most: int | None = None) -> int:
    if not is_int(value) or value < least or (most is not None and value > most):
        refuse(key, value, f"must be an int, {least} {f'to {most}' if most is not None else 'or more'}.")
    return int(value)


def positive_integer(key: str, value: Any) -> int:
    return integer(key, value, least=1)


def message_size(key: str, value: Any) -> int:
    return integer(key, value, least=1, most=MOST)


def partitions(key: str, value: Any) -> int:
    return integer(key, value, least=1, most=MAX_PARTITIONS)


def seconds(key: str, value: Any) -> float:
    if not is_seconds(value) or value > MOST:
        refuse(key, value, f"must be a number of seconds greater than 0, {MOST} at most.")
    return float(value)


def prefix(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value) or set(value) & set("{}*?[]\\"):
        # Every name on the server begins with it: braces are Cluster's hash tags, the others ACL patterns.
        refuse(key, value, "must be a str of printable ASCII without spaces and without any of {}*?[]\\.")
    return value


def choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        refuse(key, value, f"must be one of {', '.join(map(repr, choices))}.")
    return value


def overflow(key: str, value: Any) -> str:
    return choice(key, value, get_args(Overflow))


def serializer_format(key: str, value: Any) -> str:
    return choice(key, value, get_args(SerializerFormat))


def message_type(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        refuse(key, value, 'must be None or a message type such as "redis.disconnected".')
    return value


def bytes_or_none(key: str, value: Any) -> int | None:
    return None if value is None else integer(key, value, least=1)


def recovery(key: str, value: Any) -> Recovery | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        refuse(key, value, 'must be None or a dict such as {"seconds": 60, "messages": 10000}.')
    values: dict[str, Any] = {}
    for name, part in value.items():
        at = f"{key}[{name!r}]"
        if name in ("seconds", "catch_up_seconds"):
            values[name] = seconds(at, part)
        elif name == "messages":
            values[name] = integer(at, part, least=100, most=MOST)
        elif name in ("resume_messages", "catch_up_messages"):
            values[name] = integer(at, part, least=1, most=MOST)
        elif name == "message_bytes":
            if not is_int(part) or not 1024 <= part <= MOST_LOGGED:
                refuse(
                    at,
                    part,
                    f"must be an int, 1024 to {MOST_LOGGED}: a log has room for few that are larger. "
                    "Store those, and send a key to them.",
                )
            values[name] = int(part)
        elif name == "required":
            if not isinstance(part, bool):
                refuse(at, part, "must be True or False.")
            values[name] = part
        elif name == "exclude":
            values[name] = patterns(at, part, 'patterns of groups such as ["typing.*"]')
        else:
            refuse(
                at,
                part,
                f"there is no such key. {suggestion(name, [each.name for each in fields(Recovery)])}",
            )
    return Recovery(**values)


def history(key: str, value: Any) -> Histories:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        refuse(key, value, 'must be None or a dict such as {"chat.*": {"seconds": 300, "messages": 100}}.')
    return tuple(
        (pattern(f"{key}[{glob!r}]", glob, part, "chat.*"), _keeping(f"{key}[{glob!r}]", part))
        for glob, part in value.items()
    )


def _keeping(key: str, value: Any) -> Keeping:
    if not isinstance(value, Mapping):
        refuse(key, value, 'must be a dict such as {"seconds": 300, "messages": 100}.')
    values: dict[str, Any] = {}
    for name, part in value.items():
        at = f"{key}[{name!r}]"
        if name == "seconds":
            values[name] = seconds(at, part)
        elif name == "messages":
            values[name] = integer(at, part, least=1, most=MOST_KEPT)
        else:
            refuse(
                at, part, f"there is no such key. {suggestion(name, [each.name for each in fields(Keeping)])}"
            )
    return Keeping(**values)


def external(key: str, value: Any) -> External | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        refuse(key, value, 'must be None or a dict such as {"types": ["news.*"], "groups": ["board.*"]}.')
    examples = {
        "types": 'patterns of types such as ["news.*"]',
        "groups": 'patterns of groups such as ["board.*"]',
    }
    values: dict[str, tuple[re.Pattern[str], ...]] = {}
    for name, part in value.items():
        at = f"{key}[{name!r}]"
        if name not in examples:
            refuse(at, part, f"there is no such key. {suggestion(name, examples)}")
        values[name] = patterns(at, part, examples[name])
    return External(**values)


def patterns(key: str, value: Any, what: str) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, (list, tuple)):
        refuse(key, value, f"must be a list of {what}.")
    for glob in value:
        is_pattern = isinstance(glob, re.Pattern) and isinstance(glob.pattern, str)
        if not (is_pattern or (isinstance(glob, str) and glob)):
            refuse(key, glob, "must be a glob or a compiled pattern of str.")
    return tuple(_compiled(glob) if isinstance(glob, str) else glob for glob in value)


def _compiled(glob: str) -> re.Pattern[str]:
    r"""
    Compile a glob.

    From Python 3.14 on its translation ends with `\z`, before that with `\Z`, which means the same. Processes
    compare the texts of patterns (the layout).
    """
    return re.compile(re.sub(r"\\z$", r"\\Z", fnmatch.translate(glob)))


def channel_capacity(key: str, value: Any) -> tuple[tuple[re.Pattern[str], int], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        refuse(key, value, 'must be a dict of patterns and capacities such as {"http.*": 200}.')
    compiled = []
    for glob, capacity in value.items():
        at = f"{key}[{glob!r}]"
        compiled.append((pattern(at, glob, capacity, "http.*"), positive_integer(at, capacity)))
    return tuple(compiled)


def pattern(key: str, glob: Any, value: Any, example: str) -> re.Pattern[str]:
    """Return the pattern that is a key of a dict."""
    compiled = _compiled(glob) if isinstance(glob, str) and glob else glob
    if not isinstance(compiled, re.Pattern) or not isinstance(compiled.pattern, str):
        refuse(key, value, f'the key must be a glob such as "{example}" or a compiled str pattern.')
    return compiled


def encryption_keys(key: str, value: Any) -> tuple[bytes, ...]:
    # The values are secret: no message shows them.
    def refuse_keys(problem: str) -> NoReturn:
        raise ImproperlyConfigured(f"CHANNEL_LAYERS: {key}: {problem}")

    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        refuse_keys(
            f"must be a list of keys (str or bytes), even if there is only one; not {type(value).__name__}."
        )
    keys = []
    for position, entry in enumerate(value):
        if not isinstance(entry, (str, bytes)) or not entry:
            what = f"not {type(entry).__name__}" if not isinstance(entry, (str, bytes)) else "not empty"
            refuse_keys(f"entry {position} must be str or bytes, {what}.")
        keys.append(entry.encode() if isinstance(entry, str) else bytes(entry))
    if keys and importlib.util.find_spec("cryptography") is None:
        refuse_keys("encryption needs the cryptography package: pip install channels_asyncq[cryptography]")
    return tuple(keys)
