"""What the commands have in common: their options, and surveys without the process of the command."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from channels_asyncq.identity import identity
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.session.surveys import Survey

from .output import Output

#: Exit statuses: all is well; a fault was found, or a process has not answered; nothing could be found out.
FINE = 0
FAULT = 1
UNKNOWN = 2
#: The most rows, where `--limit` gives no other number.
LIMIT = 20


def seconds(text: str) -> float:
    """
    Return the seconds of an option, for argparse.

    Raises:
        ArgumentTypeError: it is no number, or less than 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return number


def positive(text: str) -> int:
    """
    Return the number of an option, for argparse.

    Raises:
        ArgumentTypeError: it is no whole number, or less than 1.
    """
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def add_limit(parser: CommandParser, what: str) -> None:
    """Add the option `--limit`."""
    parser.add_argument(
        "--limit",
        type=positive,
        default=LIMIT,
        metavar="NUMBER",
        help=f"the most {what} that each process tells, and that are shown; {LIMIT} if it is not given",
    )


class Subcommand:
    """
    One command. An object of it serves one call of `manage.py`. With `--watch`, `run()` is called repeatedly.

    Subclasses set the first attributes, and write `run()`. `output` takes what they have to say.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    #: Whether it has the options `--json`, `--watch` and `--timeout`.
    has_json: ClassVar[bool] = True
    can_watch: ClassVar[bool] = False
    asks_processes: ClassVar[bool] = False
    #: Whether it is refused on `memory://`, where it would see nothing but itself.
    needs_server: ClassVar[bool] = True

    def __init__(self, output: Output) -> None:
        self.output = output

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        """Add the options and arguments of this command alone."""

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        """
        Do it once; return the exit status: FINE, or FAULT.

        Raises:
            CommandError: it cannot be done. The text says why; `returncode` is 1 if nothing else is given.
            LayerUnavailable, DeliveryUnknown, ImproperlyConfigured: likewise; the exit status is UNKNOWN.
        """
        raise NotImplementedError

    @staticmethod
    async def survey(
        layer: AsyncQueueChannelLayer, question: str, options: dict[str, Any], **arguments: Any
    ) -> Survey:
        """Return the answers of all processes but this one."""
        survey = await layer.survey(question, timeout=options["timeout"], **arguments)
        here = identity()
        return Survey(
            tuple(answer for answer in survey.answers if answer.process != here),
            tuple(missing for missing in survey.missing if missing.process != here),
        )
