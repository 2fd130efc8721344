"""`manage.py asyncq queues`: the normal channels, and the processes that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.operate.queues import Queue, queues_of

from .base import FAULT, FINE, Subcommand
from .output import duration, missing_as_json

#: The normal channels that each process names at most. A worker reads few.
MOST_READ = 1000


class Queues(Subcommand):
    """Shows the normal channels in which messages wait, or that somebody reads."""

    name = "queues"
    help = "show the normal channels: messages that wait, their bytes, the age of the oldest, and readers"
    can_watch = True
    asks_processes = True

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        queues = {queue.channel: queue for queue in await queues_of(layer.options)}
        survey = await self.survey(layer, "readers", options, limit=MOST_READ)
        readers: dict[str, list[str]] = {}
        for answer in survey.answers:
            for channel in answer.body["channels"]:
                readers.setdefault(channel, []).append(answer.process)
        names = sorted({*queues, *readers})
        found = [(queues.get(name, Queue(name, 0, 0, None)), readers.get(name, [])) for name in names]

        def lines() -> Iterator[str]:
            rows = [
                [
                    queue.channel,
                    queue.length,
                    queue.bytes,
                    None if queue.oldest is None else duration(queue.oldest),
                    len(processes),
                ]
                for queue, processes in found
            ]
            yield from self.output.table(["QUEUE", "LENGTH", "BYTES", "OLDEST", "READERS"], rows)
            yield from self.output.missing(survey.missing)

        as_json = [asdict(queue) | {"readers": processes} for queue, processes in found]
        self.output.show({"queues": as_json, "missing": missing_as_json(survey.missing)}, lines)
        return FAULT if survey.missing else FINE
