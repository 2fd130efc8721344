"""The error for a wrong setting: the key, the value without secrets, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn, cast

from django.core.exceptions import ImproperlyConfigured


def refuse(key: object, value: object, problem: str) -> NoReturn:
    """Raise ImproperlyConfigured for a key of CONFIG whose value has this problem."""
    what = "***" if _SECRET.search(str(key)) else shown(value)
    raise ImproperlyConfigured(f"CHANNEL_LAYERS: {key} = {what}: {problem}")


def suggestion(name: object, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."


# Values in messages, without secrets and cut: a wrong value can be of any size.

# Broad: the value of a key whose name is a misspelled "password" is not shown either.
_SECRET = re.compile(r"pas|pwd|user|secret|cred|auth|token|encr", re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(rf"([?&][^=&]*(?:{_SECRET.pattern})[^=&]*=)[^&]*", re.IGNORECASE)


def without_credentials(url: str) -> str:
    """Return `url` without anything that may be a password, even if it is malformed."""
    head, at, tail = url.rpartition("@")
    scheme, separator, _ = head.partition("://")
    text = f"{scheme + separator if separator else ''}***@{tail}" if at else url
    return _SECRET_IN_QUERY.sub(r"\1***", text)


def cleaned(value: object) -> object:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, bytes):
        return without_credentials(value.decode("utf-8", "replace")).encode()
    if isinstance(value, Mapping):
        return {
            key: "***" if isinstance(key, str) and _SECRET.search(key) else cleaned(entry)
            for key, entry in value.items()
        }
    if type(value) in (list, tuple):
        entries = [cleaned(entry) for entry in cast("list[object]", value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def shown(value: object) -> str:
    text = repr(cleaned(value))
    return text if len(text) <= 200 else f"{text[:197]}..."
