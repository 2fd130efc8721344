"""`manage.py asyncq metrics`: the figures of all processes for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer

from .base import FAULT, FINE, UNKNOWN, Subcommand


class Metrics(Subcommand):
    """Writes the figures of all processes once, or serves them until it is told to stop."""

    name = "metrics"
    help = "write the figures of all processes for Prometheus, or serve them at a port"
    has_json = False
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, help="serve them over HTTP, until Ctrl-C or SIGTERM")
        parser.add_argument(
            "--host", default="127.0.0.1", help="the address to serve at; 127.0.0.1 by default"
        )

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        try:
            from prometheus_client import CollectorRegistry, generate_latest, start_http_server

            from channels_asyncq.prometheus import SurveyCollector
        except ImportError as error:
            text = "prometheus-client is not installed: pip install 'channels_asyncq[prometheus]'"
            raise CommandError(text, returncode=UNKNOWN) from error
        registry = CollectorRegistry()
        loop = asyncio.get_running_loop()
        collector = SurveyCollector(layer, options["layer"], loop, options["timeout"])
        registry.register(collector)
        if options["port"] is None:
            written: bytes = await loop.run_in_executor(None, generate_latest, registry)
            self.output.line(written.decode().rstrip())
            return FINE if collector.is_complete else FAULT
        host = options["host"]
        try:
            server, _ = start_http_server(options["port"], host, registry)
        except OSError as error:
            raise CommandError(f"{host}:{options['port']}: {error}", returncode=UNKNOWN) from error
        try:
            with _sigterm(loop) as stopped:
                self.output.line(f"http://{host}:{server.server_port}/metrics")
                self.output.flush()
                await stopped.wait()
        finally:
            # In a thread: a scrape that is under way waits for this loop.
            await asyncio.to_thread(server.shutdown)
            server.server_close()
        return FINE


@contextlib.contextmanager
def _sigterm(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM sets, where that can be heard: on the main thread, and not on Windows."""
    stopped = asyncio.Event()
    try:
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
    except (NotImplementedError, RuntimeError, ValueError):
        yield stopped
        return
    try:
        yield stopped
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
