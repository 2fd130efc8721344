"""`manage.py asyncq drain`: the clients of processes leave, before these are told to stop."""

from __future__ import annotations

import socket
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.clock import monotonic
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.stopping.orders import Order, with_host

from .base import FINE, Subcommand, seconds

#: Seconds within which the first process must answer.
ANSWER = 10.0
#: Seconds for which the command gathers the processes that answer.
GATHER = 2.0
#: Seconds for which the command waits beyond the time of the drain.
SPARE = 10.0


class Drain(Subcommand):
    """Has the clients of processes leave one after the other."""

    name = "drain"
    help = "have clients leave one after the other; returns when they have left"
    needs_server = False

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument(
            "--process",
            action="append",
            metavar="PATTERN",
            help="a process id of this host, or a pattern for host:pid such as 'web-1:*'. Processes whose parent "
            "has the id are meant too. May be repeated. Default: all processes of this host",
        )
        parser.add_argument(
            "--seconds", type=seconds, help="the time in which they leave, in place of the site's"
        )

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        patterns = [with_host(pattern) for pattern in options["process"] or [f"{socket.gethostname()}:*"]]
        channel = await layer.open_channel()
        order = Order(layer, channel, patterns, options["seconds"])
        told: list[dict[str, Any]] = []
        began = monotonic()
        try:
            while True:
                for report in await order.ask():
                    told.append({"process": report.process, "open": report.open, "seconds": report.seconds})
                    self.output.line(f"{report.process}: {report.open} open, {report.seconds:g} s")
                took = monotonic() - began
                late = order.late()
                if not order.reports:
                    if took > ANSWER:
                        raise CommandError(_nobody(patterns))
                elif not late:
                    # Other processes may answer a moment later than the first ones.
                    if took > GATHER:
                        break
                elif took > max(report.seconds for report in late) + SPARE:
                    names = ", ".join(sorted({report.process for report in late}))
                    raise CommandError(f"these have not drained in time: {names}")
        finally:
            channel.close()
        drained = sorted(order.processes())
        self.output.show({"drained": drained, "told": told}, lambda: [f"drained: {', '.join(drained)}"])
        return FINE


def _nobody(patterns: list[str]) -> str:
    return (
        f"no process of {' '.join(patterns)} has answered within {ANSWER:g} s. Its application must be drained() "
        "of channels_asyncq.asgi, it must have served a request, and it must use the same hosts and prefix, "
        "which cannot be memory://"
    )
