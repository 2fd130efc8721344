"""`manage.py asyncq send`: a message to a channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandParser

from channels_asyncq.exceptions import ChannelClosed
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.names import check_channel_name, owner_of
from channels_asyncq.session.surveys import Survey

from .base import FAULT, FINE, Subcommand
from .output import missing_as_json
from .sending import REFUSED, message, processes, refused, takers_in


class Send(Subcommand):
    """Sends a message to a channel, and shows which process took it."""

    name = "send"
    help = "send a message to a channel, and say which process took it"
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("channel", help="the name of the channel")
        parser.add_argument("message", type=message, metavar="JSON", help="the message, as a JSON object")

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        channel = options["channel"]
        try:
            check_channel_name(channel)
            is_normal = owner_of(channel) is None
            # Before it is sent: a message may have its reader close the channel.
            survey = await self.survey(layer, "readers" if is_normal else "takers", options, channel=channel)
            await layer.send(channel, options["message"])
        except (*REFUSED, ChannelClosed) as exc:
            raise refused(exc) from exc
        return self._show_readers(channel, survey) if is_normal else self._show_takers(channel, survey)

    def _show_readers(self, channel: str, survey: Survey) -> int:
        readers = [answer.process for answer in survey.answers if answer.body["channels"]]
        found = {"channel": channel, "queued": True, "readers": readers}

        def lines() -> Iterator[str]:
            verb = "reads" if len(readers) == 1 else "read"
            yield f"queued in {channel!r}, which {processes(len(readers))} {verb}"
            yield from (f"  {process}" for process in readers)
            yield from self.output.missing(survey.missing)

        self.output.show(found | {"missing": missing_as_json(survey.missing)}, lines)
        return FINE

    def _show_takers(self, channel: str, survey: Survey) -> int:
        takers = list(takers_in(survey))
        found = {"channel": channel, "queued": False, "processes": takers}

        def lines() -> Iterator[str]:
            yield f"{processes(len(takers))} took it"
            yield from (f"  {process}" for process in takers)
            yield from self.output.missing(survey.missing)

        self.output.show(found | {"missing": missing_as_json(survey.missing)}, lines)
        return FINE if takers else FAULT
