"""The Sentinels of a host: where its master is now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ...settings.hosts import Host
from .handover import abandon
from .passwords import Passwords, text_of

__all__ = ["Sentinels"]


class Sentinels:
    """
    Asks Sentinels for the address of a master, one after the other. Keeps no connection to them.

    Args:
        connection_class: the class of redis-py's connections to them.
        arguments: the arguments of these connections, without host and port.
        seconds: the time that all questions together may take.
    """

    def __init__(
        self,
        host: Host,
        connection_class: Any,
        arguments: Mapping[str, Any],
        passwords: Passwords,
        seconds: float,
    ) -> None:
        # The one that answered last comes first.
        self._addresses = list(host.sentinels)
        self._master_name = host.master_name
        self._connection_class = connection_class
        self._arguments = arguments
        self._passwords = passwords
        # A Sentinel that does not answer must leave time for the others, and for the master.
        self._seconds = seconds / (len(self._addresses) + 1)

    async def find_master(self) -> tuple[str, int]:
        """
        Return host and port of the master.

        Raises:
            ConnectionError: no Sentinel names one.
        """
        problems = []
        for address in self._addresses:
            try:
                async with asyncio.timeout(self._seconds):
                    master = await self._ask(address)
            except Exception as exc:
                problem = (
                    self._passwords.words_of(exc) if str(exc) else f"no answer within {self._seconds:g} s"
                )
                problems.append(f"{address[0]}:{address[1]}: {problem}")
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return master
        raise ConnectionError(f"no Sentinel names a master {self._master_name!r}: {'; '.join(problems)}")

    async def _ask(self, address: tuple[str, int]) -> tuple[str, int]:
        # Not with redis-py's Sentinel class: it leaves connections open when it, or its closing, is cancelled.
        arguments = {**self._arguments, "host": address[0], "port": address[1]}
        connection: Any = self._connection_class(**arguments)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "MASTER", self._master_name)
            flat = [text_of(item) for item in await connection.read_response()]
        finally:
            await abandon(connection)
        master = dict(zip(flat[::2], flat[1::2], strict=True))
        if not {"s_down", "o_down"}.isdisjoint(master["flags"].split(",")):
            raise ConnectionError("the master is down")
        return master["ip"], int(master["port"])
