"""
From a host in the settings to a connected, authenticated `WireProtocol`.

redis-py holds the credentials and does TLS, AUTH and SELECT, for Sentinels too. Then its transport is taken over,
and redis-py has no part in the connection any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import redis
from django.core.exceptions import ImproperlyConfigured
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)

from ...exceptions import ChannelLayerError, LayerUnavailable
from ...identity import identity
from ...settings.hosts import Host
from ...settings.options import Options
from .handover import abandon, hand_over
from .passwords import Passwords, words_of
from .port import Port
from .protocol import WireProtocol
from .redis_arguments import for_connection, for_tls
from .remedies import PLAIN, Diagnosis, Remedies
from .replies import NoAnswer, NotSent
from .sentinels import Sentinels

__all__ = ["Connector", "check_hosts"]

_TLS_FILES = {"ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path"}

# A TLS handshake that takes longer may have reached a port without TLS, which waits for more bytes.
_LONG_HANDSHAKE = 0.5


class Unreachable(LayerUnavailable):
    """No connection was made; `diagnosis` explains it."""

    def __init__(self, address: str, diagnosis: Diagnosis) -> None:
        super().__init__(address, diagnosis.reason)
        self.diagnosis = diagnosis

    def __reduce__(self) -> tuple[type[LayerUnavailable], tuple[str, str, bool]]:
        return LayerUnavailable, (self.address, self.reason, False)


class Connector:
    """
    Makes connections to one host of the settings. Holds no connection itself.

    Args:
        host: one entry of `Options.hosts` that is not memory.
        connect_timeout: seconds that a whole `connect()` may take: asking Sentinels, TLS and AUTH included.
        remedies: explains the errors of this host.

    Raises:
        ImproperlyConfigured: the installed redis-py does not take the host's arguments.
    """

    def __init__(self, host: Host, *, connect_timeout: float = 5.0, remedies: Remedies | None = None) -> None:
        self._host = host
        self._connect_timeout = connect_timeout
        self.remedies = remedies or Remedies(host, "asgi", {})
        given: dict[str, Any] = dict(host.arguments)
        if host.transport == "tls":
            given |= for_tls(given)
        self._arguments = for_connection(given) | {"db": host.db}
        self._connection_class: type[AbstractConnection] = {
            "tcp": Connection,
            "tls": SSLConnection,
            "unix": UnixDomainSocketConnection,
        }[host.transport]
        given_to_sentinels = _given_to_sentinels(host)
        self._sentinel_class: type[AbstractConnection] = Connection
        if given_to_sentinels.pop("ssl", False):
            self._sentinel_class = SSLConnection
            given_to_sentinels |= for_tls(given_to_sentinels)
        self._sentinel_arguments = for_connection(given_to_sentinels)
        self._passwords = Passwords([given, given_to_sentinels])
        self._sentinels = Sentinels(
            host, self._sentinel_class, self._sentinel_arguments, self._passwords, connect_timeout
        )
        self._port = Port(host.transport, self._connection_class, self._arguments)
        if not host.sentinels:
            self._port.target = self._arguments
        try:
            self._connection_class(**self._arguments)
            self._sentinel_class(**self._sentinel_arguments)
        except (TypeError, ValueError, redis.RedisError) as exc:
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS: redis-py {redis.__version__} does not take the arguments "
                f"for {host.address}: {self._passwords.words_of(exc)}"
            ) from None

    @property
    def address(self) -> str:
        """The address of the host, for messages: no credentials."""
        return self._host.address

    def check(self) -> None:
        """
        Read the files that TLS needs, as each connection will.

        Raises:
            ImproperlyConfigured: one of them, or another argument of TLS, cannot be used.
        """
        for connection_class, arguments in (
            (self._connection_class, self._arguments),
            (self._sentinel_class, self._sentinel_arguments),
        ):
            for name in _TLS_FILES & arguments.keys():
                self._check_file(name, arguments[name])
            context = getattr(connection_class(**arguments), "ssl_context", None)
            try:
                if context is not None:
                    context.get()
            except (OSError, ValueError, TypeError, OverflowError) as exc:
                raise ImproperlyConfigured(
                    f"CHANNEL_LAYERS: TLS to {self.address} cannot be set up with the ssl_ arguments in `hosts` "
                    f"(files, password of the key, ciphers): {self._passwords.words_of(exc)}"
                ) from None

    def _check_file(self, name: str, path: str | None) -> None:
        if path is None:
            return
        try:
            os.scandir(path).close() if os.path.isdir(path) else open(path, "rb").close()
        except (OSError, ValueError) as exc:
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS: {name} = {path!r} for {self.address}: this process cannot read it: "
                f"{getattr(exc, 'strerror', None) or exc}"
            ) from None

    async def connect(self, make_protocol: Callable[[], WireProtocol]) -> WireProtocol:
        """
        Return a protocol of `make_protocol` on a new connection: authenticated, its database selected.

        The Sentinels, if there are any, are asked anew each time. Cancelling leaves no connection behind.

        Raises:
            LayerUnavailable: no connection was made. The text has no credentials.
        """
        watching: asyncio.Task[bool] | None = None
        try:
            async with asyncio.timeout(self._connect_timeout) as deadline:
                if self._host.transport == "tls":
                    watching = asyncio.create_task(
                        self._watch_handshake(deadline),
                        name=f"channels_asyncq watching TLS to {self.address}",
                    )
                try:
                    return await self._connect(make_protocol)
                finally:
                    if watching is not None:
                        watching.cancel()
        except Exception as exc:
            if not deadline.expired():
                words = words_of(exc)
            elif watching is not None and watching.done() and not watching.cancelled() and watching.result():
                words = PLAIN
            else:
                words = f"no connection within {self._connect_timeout:g} s"
            # The server's text may quote the password; then a traceback must not show it either.
            cause = exc if not self._passwords.are_in(exc) else None
            raise Unreachable(self.address, self.remedies.diagnose(words, self._passwords.hide)) from cause

    async def _watch_handshake(self, deadline: asyncio.Timeout) -> bool:
        """End a handshake with a port without TLS, which would wait for more bytes; return whether it did."""
        await asyncio.sleep(_LONG_HANDSHAKE)
        if await self._port.examine() != PLAIN:
            return False
        deadline.reschedule(asyncio.get_running_loop().time())
        return True

    async def _connect(self, make_protocol: Callable[[], WireProtocol]) -> WireProtocol:
        arguments: Mapping[str, Any] = self._arguments
        if self._host.sentinels:
            name, port = await self._sentinels.find_master()
            arguments = self._port.target = {**arguments, "host": name, "port": port}
        connection: Any = self._connection_class(**arguments)
        try:
            await connection.connect()
            protocol = make_protocol()
            hand_over(connection, protocol, arguments)
            if "client_name" not in self._arguments:
                # Nobody waits for the reply, which may be a refusal.
                protocol.call("CLIENT", "SETNAME", identity()).add_done_callback(asyncio.Future.exception)
        except BaseException:
            await abandon(connection)
            raise
        return protocol

    def diagnose(self, exc: Exception) -> Diagnosis:
        """Return the meaning of an error of `connect()`, or of the first commands on the connection."""
        if isinstance(exc, Unreachable):
            return exc.diagnosis
        if isinstance(exc, LayerUnavailable):
            words = exc.reason
        elif isinstance(exc, (NoAnswer, NotSent, ChannelLayerError)) and exc.__cause__ is not None:
            words = words_of(exc.__cause__)
        else:
            words = words_of(exc)
        # After AUTH no server quotes the password.
        return self.remedies.diagnose(words)

    async def look(self) -> Diagnosis | None:
        """Examine the port, after connections that ended without a word; None if that explains nothing."""
        finding = await self._port.examine()
        return self.remedies.diagnose(finding) if finding else None


def _given_to_sentinels(host: Host) -> dict[str, Any]:
    if host.sentinel_kwargs is not None:
        return dict(host.sentinel_kwargs)
    # As in redis-py: credentials and TLS of the master are not for its Sentinels.
    return {name: value for name, value in host.arguments.items() if name.startswith("socket_")}


def check_hosts(options: Options) -> None:
    """
    Make sure that connections to the hosts can be made, as far as can be told without one.

    Raises:
        ImproperlyConfigured: redis-py or the TLS library does not take the arguments in `hosts`.
    """
    for host in options.hosts:
        if host.kind != "memory":
            Connector(host).check()
