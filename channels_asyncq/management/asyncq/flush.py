"""`manage.py asyncq flush`: all messages and memberships are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer

from .base import FINE, UNKNOWN, Subcommand


class Flush(Subcommand):
    """Drops everything of the prefix, after a question."""

    name = "flush"
    help = "drop all messages and memberships of the prefix, in every process; asks first"

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("--yes", action="store_true", help="do not ask")

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        prefix = layer.options.prefix
        hosts = [host.address for host in layer.options.hosts]
        what = [f"all messages that wait, and all memberships, of the prefix {prefix!r} on"]
        what += [f"  {host}" for host in hosts]
        if not options["yes"]:
            self._ask(what)
        await layer.flush()

        def lines() -> Iterator[str]:
            yield f"dropped {what[0]}"
            yield from what[1:]

        self.output.show({"prefix": prefix, "hosts": hosts}, lines)
        return FINE

    def _ask(self, what: list[str]) -> None:
        """
        Raises:
            CommandError: the answer is not yes.
        """
        if self.output.as_json:
            raise CommandError("--json needs --yes: there is nobody to ask", returncode=UNKNOWN)
        for line in (f"This drops {what[0]}", *what[1:], "Every process loses them."):
            self.output.line(line)
        try:
            # Nothing is connected yet, so nothing waits for this loop.
            answer = input("Drop them? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was dropped")
