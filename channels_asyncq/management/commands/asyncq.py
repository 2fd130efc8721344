"""The command `manage.py asyncq`: it runs one of `management.asyncq.COMMANDS`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import channel_layers
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from channels_asyncq import get_layer
from channels_asyncq.exceptions import ChannelLayerError, DeliveryUnknown, LayerUnavailable
from channels_asyncq.layer import AsyncQueueChannelLayer

from ..asyncq import COMMANDS
from ..asyncq.base import FINE, UNKNOWN, Subcommand, seconds
from ..asyncq.output import Output

#: Seconds from one round of `--watch` to the next.
WATCH = 2.0
#: Seconds within which processes must answer.
TIMEOUT = 2.0


class Command(BaseCommand):
    """`manage.py asyncq COMMAND`: look into the running processes of a site, and act on them."""

    help = "Looks into the running processes of this site, and acts on them, over the channel layer."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="do", required=True, metavar="COMMAND")
        for name, command in COMMANDS.items():
            one = commands.add_parser(name, help=command.help, description=command.help)
            command.add_arguments(one)
            one.add_argument("--layer", default=DEFAULT_CHANNEL_LAYER, help="an alias of CHANNEL_LAYERS")
            if command.has_json:
                one.add_argument("--json", action="store_true", help="write one line of JSON")
            if command.can_watch:
                one.add_argument(
                    "--watch",
                    nargs="?",
                    type=seconds,
                    const=WATCH,
                    metavar="SECONDS",
                    help=f"again and again, until Ctrl-C; every {WATCH:g} s if no time is given",
                )
            if command.asks_processes:
                one.add_argument(
                    "--timeout",
                    type=seconds,
                    default=TIMEOUT,
                    metavar="SECONDS",
                    help=f"the time in which processes must answer; {TIMEOUT:g} if it is not given",
                )

    def handle(self, *args: Any, do: str, **options: Any) -> None:
        has_colours = self.stdout.isatty() or options["force_color"]
        output = Output(self.stdout, self.style, as_json=options.get("json", False), has_colours=has_colours)
        try:
            status = asyncio.run(self._run(COMMANDS[do](output), options))
        except ImproperlyConfigured as error:
            raise CommandError(str(error), returncode=UNKNOWN) from error
        except (LayerUnavailable, DeliveryUnknown) as error:
            raise CommandError(f"the processes cannot be reached: {error}", returncode=UNKNOWN) from error
        except ChannelLayerError as error:
            raise CommandError(str(error), returncode=UNKNOWN) from error
        except KeyboardInterrupt:
            status = FINE if options.get("watch") is not None else 128 + 2  # as a shell says of SIGINT
        if status != FINE:
            sys.exit(status)

    async def _run(self, command: Subcommand, options: dict[str, Any]) -> int:
        alias = options["layer"]
        # In a program that calls this command, the layer is in use, and goes on.
        is_in_use = alias in channel_layers.backends
        layer = get_layer(alias)
        try:
            if command.needs_server and layer.options.hosts[0].kind == "memory":
                raise CommandError(
                    f"CHANNEL_LAYERS[{alias!r}] is on memory://, so no other process uses it, and there is "
                    "nothing to see. Set `hosts` to the URL of a Redis or Valkey server",
                    returncode=UNKNOWN,
                )
            return await self._rounds(command, layer, options)
        finally:
            if not is_in_use:
                await layer.close()
                del channel_layers.backends[alias]

    @staticmethod
    async def _rounds(command: Subcommand, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        every = options.get("watch")
        if every is None:
            return await command.run(layer, options)
        while True:
            command.output.begin_round()
            try:
                await command.run(layer, options)
            except (LayerUnavailable, DeliveryUnknown) as error:
                command.output.line(command.output.style.ERROR(f"the processes cannot be reached: {error}"))
            except ChannelLayerError as error:
                command.output.line(command.output.style.ERROR(str(error)))
            await asyncio.sleep(every)
