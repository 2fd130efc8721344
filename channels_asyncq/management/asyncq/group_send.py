"""`manage.py asyncq group-send`: a message to a group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.names import check_group_name

from .base import FAULT, FINE, Subcommand
from .output import missing_as_json
from .sending import REFUSED, channels, message, processes, refused, takers_in


class GroupSend(Subcommand):
    """Sends a message to a group, and shows which processes took it."""

    name = "group-send"
    help = "send a message to a group, and say how many processes took it"
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("group", help="the name of the group")
        parser.add_argument("message", type=message, metavar="JSON", help="the message, as a JSON object")
        parser.add_argument(
            "--exclude",
            action="append",
            default=[],
            metavar="CHANNEL",
            help="a channel that does not get it. May be repeated",
        )

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        group, exclude = options["group"], options["exclude"]
        try:
            check_group_name(group)
            # Before it is sent: a message may have its readers close their channels.
            survey = await self.survey(layer, "takers", options, group=group, exclude=exclude)
            queued = [each for each in await layer.normal_members(group) if each not in exclude]
            await layer.group_send(group, options["message"], exclude=exclude)
        except REFUSED as exc:
            raise refused(exc) from exc
        takers = takers_in(survey)

        def lines() -> Iterator[str]:
            yield f"{processes(len(takers))} took it, for {channels(takers.values())}"
            yield from (f"  {process}: {count}" for process, count in takers.items())
            if queued:
                yield f"queued in {', '.join(queued)}"
            yield from self.output.missing(survey.missing)

        found = {
            "group": group,
            "processes": [{"process": process, "channels": count} for process, count in takers.items()],
            "queued": queued,
            "missing": missing_as_json(survey.missing),
        }
        self.output.show(found, lines)
        return FINE if takers or queued else FAULT
