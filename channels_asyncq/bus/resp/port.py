"""Examines a port whose connections end without an explanation: TLS, plain text, a web server, a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

from ...clock import monotonic
from .remedies import PLAIN, PROXY, TLS, WEB

__all__ = ["Port"]

# Seconds to wait for bytes that a server sends unasked, in plain text and after a TLS handshake.
_LISTEN = 0.3
_LISTEN_UNDER_TLS = 1.0
# Seconds to wait for an answer, which comes at once unless a machine is busy; and for the whole examination.
_ANSWER = 2.0
_EXAMINATION = 6.0
# How many connections in a row must end at INFO before a proxy is diagnosed, and the seconds between them.
_ENDS = 3
_BETWEEN_ENDS = 0.1
# For this many seconds the last finding is returned again.
_EVERY = 10.0

_PING = b"*1\r\n$4\r\nPING\r\n"
_INFO = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n"


class Port:
    """
    The port, or Unix socket, to which a connector connects.

    Args:
        transport: tcp, tls or unix, as the settings say.
        connection_class: redis-py's class for it, which makes the TLS context.
        arguments: the arguments of that class.
    """

    def __init__(self, transport: str, connection_class: Any, arguments: Mapping[str, Any]) -> None:
        self._transport = transport
        self._connection_class = connection_class
        self._arguments = arguments
        self._lock = asyncio.Lock()
        self._examined_at = -_EVERY
        self._finding = ""
        #: The host and port, or the path. Empty as long as no Sentinel has named them.
        self.target: Mapping[str, Any] = {}

    async def examine(self) -> str:
        """
        Return a finding that `Remedies` explains, from a connection of its own; "" if there is none.

        A server may say why it ends a connection, and end it before that is read. To be called after an error
        only. The port is examined at most once in ten seconds.
        """
        async with self._lock:
            if self.target and monotonic() - self._examined_at >= _EVERY:
                self._finding = ""
                # An error here explains nothing, and must not stop the attempts at a connection.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_EXAMINATION):
                        self._finding = await (
                            self._examine_tls() if self._transport == "tls" else self._examine_plain()
                        )
                self._examined_at = monotonic()
            return self._finding

    async def _examine_tls(self) -> str:
        reader, writer = await self._open()
        try:
            writer.write(_PING)
            said = await _read(reader, _ANSWER)
            return PLAIN if said and said.startswith((b"+", b"-")) else await self._words_under_tls()
        finally:
            writer.transport.abort()

    async def _examine_plain(self) -> str:
        reader, writer = await self._open()
        try:
            said = await _read(reader, _LISTEN)
            if not said:
                writer.write(_PING)
                said = await _read(reader, _ANSWER)
            if not said or said.startswith(b"\x15"):  # a TLS alert
                return TLS if await self._speaks_tls() else ""
            if said.startswith((b"HTTP/", b"<")):
                return WEB
            if said.startswith((b"-ERR max number", b"-DENIED")):
                return said[1:].decode(errors="replace").splitlines()[0]
        finally:
            writer.transport.abort()
        return PROXY if await self._always_ends_at_info() else ""

    async def _always_ends_at_info(self) -> bool:
        """Tell whether connections are closed at INFO, one after the other."""
        for _ in range(_ENDS):
            if not await self._ends_at_info():
                return False
            await asyncio.sleep(_BETWEEN_ENDS)
        return True

    async def _ends_at_info(self) -> bool:
        """Tell whether a connection is closed at INFO that has answered PING."""
        reader, writer = await self._open()
        try:
            writer.write(_PING)
            said = await _read(reader, _ANSWER)
            if not said or not said.endswith(b"\r\n"):
                return False
            writer.write(_INFO)
            return await _read(reader, _ANSWER) == b""
        finally:
            writer.transport.abort()

    async def _words_under_tls(self) -> str:
        """Return the TLS error that follows a handshake: a server may judge our certificate only then."""
        connection: Any = self._connection_class(**self._arguments)
        try:
            reader, writer = await asyncio.open_connection(
                self.target["host"], self.target["port"], ssl=connection.ssl_context.get()
            )
            try:
                async with asyncio.timeout(_LISTEN_UNDER_TLS):
                    await reader.read(1)
            finally:
                writer.transport.abort()
        except ssl.SSLError as exc:
            return str(exc)
        return ""

    async def _speaks_tls(self) -> bool:
        if self._transport == "unix":
            return False
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent over it
        try:
            _, writer = await asyncio.open_connection(self.target["host"], self.target["port"], ssl=context)
        except ssl.SSLError as exc:
            return "ALERT" in str(exc)
        writer.transport.abort()
        return True

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection without TLS."""
        if self._transport == "unix":
            return await asyncio.open_unix_connection(self.target["path"])
        return await asyncio.open_connection(self.target["host"], self.target["port"])


async def _read(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
    """Return the bytes that arrive before the timeout: b"" if the connection ends, None if nothing arrives."""
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(1000)
    except TimeoutError:
        return None
    except OSError:
        return b""
