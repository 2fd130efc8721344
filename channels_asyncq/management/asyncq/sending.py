"""What `send` and `group-send` have in common: the message, and the processes that take it."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Iterable
from typing import Any

from channels.exceptions import ChannelFull, MessageTooLarge
from django.core.management.base import CommandError

from channels_asyncq.session.surveys import Survey

from .base import UNKNOWN

#: Errors of a message or a name, for which nothing is sent.
REFUSED = (TypeError, ChannelFull, MessageTooLarge)


def message(text: str) -> dict[str, Any]:
    """
    Return the message in an argument, for argparse.

    Raises:
        ArgumentTypeError: it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text!r} is no JSON: {exc}") from None
    except RecursionError:
        raise ArgumentTypeError(f"the message is nested too deeply: {text[:40]!r}...") from None
    if not isinstance(found, dict):
        raise ArgumentTypeError(f'{text!r} is no JSON object such as \'{{"type": "chat.message"}}\'')
    return found


def takers_in(survey: Survey) -> dict[str, int]:
    """Return how many channels take the message in each process that has one."""
    found: dict[str, int] = {}
    for answer in survey.answers:
        if answer.body["channels"]:
            found[answer.process] = found.get(answer.process, 0) + answer.body["channels"]
    return found


def processes(count: int) -> str:
    """Return a number of processes in words."""
    return f"{count} process" if count == 1 else f"{count} processes"


def channels(counts: Iterable[int]) -> str:
    """Return a sum of channels in words."""
    count = sum(counts)
    return f"{count} channel" if count == 1 else f"{count} channels"


def refused(error: Exception) -> CommandError:
    """Return the error of the command for one that the layer raised before anything was sent."""
    return CommandError(f"not sent: {error}", returncode=UNKNOWN)
