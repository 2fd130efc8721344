"""The answers of a server while a connection is set up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from hiredis import ReplyError


def raise_last_words(replies: Collection[asyncio.Future[Any]]) -> None:
    """
    Raise the reason if the connection ended.

    Prefer an error that the server sent before, such as that it has too many clients. A missing permission does
    not end a connection.
    """
    errors = [reply.exception() for reply in replies]
    ends = [error for error in errors if error is not None and not isinstance(error, ReplyError)]
    if ends:
        words = [
            error
            for error in errors
            if isinstance(error, ReplyError) and not str(error).startswith(("NOPERM", "ERR unknown"))
        ]
        raise words[0] if words else ends[0]


def raise_refusals(replies: Collection[asyncio.Future[Any]]) -> None:
    """Raise the first refusal as a ReplyError; if permissions are missing, raise all of these together."""
    refusals = list(
        dict.fromkeys(str(error) for reply in replies if (error := reply.exception()) is not None)
    )
    if refusals:
        rights = [refusal for refusal in refusals if refusal.startswith("NOPERM")]
        raise ReplyError("; ".join(rights or refusals[:1]))


def run_id_in(info: asyncio.Future[bytes]) -> bytes:
    """Return the line of INFO with the server's identity; empty if INFO was refused. A restart changes it."""
    if info.exception() is not None:
        return b""
    for line in info.result().splitlines():
        if line.startswith(b"run_id:"):
            return line
    return b""
