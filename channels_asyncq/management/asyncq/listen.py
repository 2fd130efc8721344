"""`manage.py asyncq listen`: the messages of groups as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.operate.listening import Heard, listen

from .base import FINE, UNKNOWN, Subcommand

#: The sender of a message that another program has published.
EXTERNAL = "another program"


class Listen(Subcommand):
    """Shows each message to some groups, with its time and its sender, until it is interrupted."""

    name = "listen"
    help = "print the messages to groups as they come, until Ctrl-C"
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("groups", nargs="+", metavar="GROUP", help="the names of the groups")
        parser.add_argument(
            "--count", type=int, metavar="N", help="end after this many messages; for scripts"
        )

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        # By session. One that has ended is not found any more.
        senders: dict[str, str] = {"": EXTERNAL}
        left = options["count"]
        try:
            async with aclosing(listen(layer, options["groups"])) as messages:
                async for heard in messages:
                    if heard.session not in senders:
                        await self._look_up(layer, options, senders)
                    self._show(heard, senders.setdefault(heard.session, heard.session))
                    if left is not None and (left := left - bool(heard.group)) <= 0:
                        break
        except TypeError as exc:
            raise CommandError(str(exc), returncode=UNKNOWN) from exc
        return FINE

    @staticmethod
    async def _look_up(
        layer: AsyncQueueChannelLayer, options: dict[str, Any], senders: dict[str, str]
    ) -> None:
        survey = await layer.survey("takers", timeout=options["timeout"], channel="")
        senders.update({answer.session: answer.process for answer in survey.answers})

    def _show(self, heard: Heard, sender: str) -> None:
        at = datetime.fromtimestamp(heard.at, UTC).astimezone()
        text = json.dumps(heard.message, default=repr, ensure_ascii=False)

        def lines() -> Iterator[str]:
            if heard.group:
                yield f"{at:%H:%M:%S.%f}"[:-3] + f" {heard.group} from {sender}"
                yield f"  {text}"
            else:
                yield self.output.style.ERROR(f"messages were missed: {text}")

        found = {
            "group": heard.group or None,
            "time": at.isoformat(timespec="milliseconds"),
            "sender": sender if heard.group else None,
            "message": json.loads(text),
        }
        self.output.show(found, lines)
