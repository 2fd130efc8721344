"""`manage.py asyncq channels`: the fullest channels, and what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core.management.base import CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.session.surveys import Answer

from .base import FAULT, FINE, Subcommand, add_limit
from .output import WIDTH, missing_as_json, shortened

_INDENT = " " * 19


class Channels(Subcommand):
    """Shows the fullest channels of all processes."""

    name = "channels"
    help = "show the fullest channels, the age of their oldest message, and what reads them"
    can_watch = True
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument(
            "--slow", action="store_true", help="only channels in which messages wait for their reader"
        )
        add_limit(parser, "channels")

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        limit = options["limit"]
        survey = await self.survey(layer, "channels", options, slow=options["slow"], limit=limit)
        rows = fullest(survey.answers, limit)
        count = sum(answer.body["count"] for answer in survey.answers)
        found = {"count": count, "channels": rows, "missing": missing_as_json(survey.missing)}

        def lines() -> Iterator[str]:
            which = "in which messages wait" if options["slow"] else "in all"
            yield f"{count} channels {which}"
            yield from lines_of(self.output.style.MIGRATE_HEADING, rows)
            yield from left_out(count, len(rows))
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing else FINE


def fullest(answers: Iterable[Answer], limit: int) -> list[dict[str, Any]]:
    """Return the fullest channels of all processes, each with the name of its process."""
    rows = [{**row, "process": answer.process} for answer in answers for row in answer.body["channels"]]
    rows.sort(key=lambda row: (-row["waiting"] / row["capacity"], -(row["oldest"] or 0), row["channel"]))
    return rows[:limit]


def lines_of(heading: Any, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield two lines for each channel: how full it is, with its name, and what reads it."""
    yield heading(f"{'WAITING':>9}  {'OLDEST':>6}  CHANNEL, READER AND PROCESS")
    for row in rows:
        oldest = "-" if row["oldest"] is None else f"{row['oldest']:.1f}s"
        full = f"{row['waiting']}/{row['capacity']}"
        yield f"{full:>9}  {oldest:>6}  {shortened(row['channel'], WIDTH - len(_INDENT))}"
        yield _INDENT + shortened(f"{row['reader']}, {row['process']}", WIDTH - len(_INDENT))


def left_out(count: int, shown: int) -> Iterator[str]:
    """Yield a line if there are more than are shown."""
    if count > shown:
        yield f"and {count - shown} more: --limit shows more of them"
