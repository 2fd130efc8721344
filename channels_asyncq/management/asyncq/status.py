"""`manage.py asyncq status`: every process and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from channels_asyncq.layer import AsyncQueueChannelLayer

from .base import FAULT, FINE, Subcommand
from .output import duration, missing_as_json


class Status(Subcommand):
    """Shows every process, and who did not answer."""

    name = "status"
    help = "show every process and its figures, and who did not answer"
    can_watch = True
    asks_processes = True

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        survey = await self.survey(layer, "status", options)
        processes = [{"process": answer.process, **answer.body} for answer in survey.answers]
        found = {"processes": processes, "missing": missing_as_json(survey.missing)}

        def lines() -> Iterator[str]:
            rows = [
                [each["process"], duration(each["seconds"]), each["channels"], each["groups"], each["queued"]]
                for each in processes
            ]
            yield from self.output.table(["PROCESS", "UP", "CHANNELS", "GROUPS", "QUEUED"], rows)
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing or not processes else FINE
