"""`manage.py asyncq logs`: the logs of the partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.operate.logs import PartitionLog, logs_of

from .base import FINE, Subcommand
from .output import duration


class Logs(Subcommand):
    """Shows what each log has, and how far back it reaches."""

    name = "logs"
    help = "show the log of each partition: entries, bytes, their time, and how far back recovery reaches"
    can_watch = True

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        recovery = layer.options.recovery
        logs = await logs_of(layer.options)
        kept = None if recovery is None else recovery.seconds

        def lines() -> Iterator[str]:
            if kept is None:
                yield "there are no logs: the setting recovery is None"
                return
            yield f"recovery keeps {duration(kept)}"
            by_server = sorted(logs, key=lambda log: (log.server, log.partition))
            for server, here in groupby(by_server, key=lambda log: log.server):
                yield server
                yield from self.output.table(
                    ["PARTITION", "ENTRIES", "BYTES", "SPAN", "REACHES"], map(_row, here)
                )

        self.output.show({"seconds": kept, "logs": [asdict(log) for log in logs]}, lines)
        return FINE


def _row(log: PartitionLog) -> list[object]:
    return [log.partition, log.entries, log.bytes, duration(log.span), duration(log.reaches)]
