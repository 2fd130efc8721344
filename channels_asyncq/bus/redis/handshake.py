"""What a server answers while a connection is set up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from hiredis import ReplyError


def raise_last_words(replies: Collection[asyncio.Future[Any]]) -> None:
    """
    Raise why the connection ended, if it did.

    Prefer what the server said before, such as that no more clients fit. A missing permission ends no connection.
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
    """Raise the first refusal as a ReplyError; of missing permissions, all of them."""
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
