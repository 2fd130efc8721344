"""The command `manage.py asyncq`."""

from __future__ import annotations

import asyncio
import math
import socket
from argparse import ArgumentTypeError
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from channels_asyncq import get_layer
from channels_asyncq.clock import monotonic
from channels_asyncq.exceptions import DeliveryUnknown, LayerUnavailable
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.stopping.orders import Order, with_host

#: Seconds within which the first process must answer.
ANSWER = 10.0
#: Seconds for which the command gathers the processes that answer.
GATHER = 2.0
#: Seconds for which the command waits beyond the time of the drain.
SPARE = 10.0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return seconds


class Command(BaseCommand):
    """`manage.py asyncq drain`: the clients of processes leave, before these are told to stop."""

    help = "Acts on the running processes of this site, over the channel layer."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="do", required=True)
        drain = commands.add_parser(
            "drain", help="have clients leave one after the other; returns when they have left"
        )
        drain.add_argument(
            "--process",
            action="append",
            metavar="PATTERN",
            help="a process id of this host, or a pattern for host:pid such as 'web-1:*'. Processes whose parent "
            "has the id are meant too. May be repeated. Default: all processes of this host",
        )
        drain.add_argument(
            "--seconds", type=_seconds, help="the time in which they leave, in place of the site's"
        )
        drain.add_argument("--layer", default=DEFAULT_CHANNEL_LAYER, help="an alias of CHANNEL_LAYERS")

    def handle(self, *args: Any, do: str, **options: Any) -> None:
        patterns = [with_host(pattern) for pattern in options["process"] or [f"{socket.gethostname()}:*"]]
        try:
            layer = get_layer(options["layer"])
            asyncio.run(self._drain(layer, patterns, options["seconds"]))
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        except (LayerUnavailable, DeliveryUnknown) as error:
            raise CommandError(f"the processes cannot be reached: {error}") from error

    async def _drain(self, layer: AsyncQueueChannelLayer, patterns: list[str], seconds: float | None) -> None:
        channel = await layer.open_channel()
        order = Order(layer, channel, patterns, seconds)
        began = monotonic()
        try:
            while True:
                for report in await order.ask():
                    self.stdout.write(f"{report.process}: {report.open} open, {report.seconds:g} s")
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
        self.stdout.write(f"drained: {', '.join(sorted(order.processes()))}")


def _nobody(patterns: list[str]) -> str:
    return (
        f"no process of {' '.join(patterns)} has answered within {ANSWER:g} s. Its application must be drained() "
        "of channels_asyncq.asgi, it must have served a request, and it must use the same hosts and prefix, "
        "which cannot be memory://"
    )
