"""
From a host in the settings to a connected, authenticated `WireProtocol`.

redis-py holds the credentials, does TLS, AUTH and SELECT, for Sentinels too. Then its
transport is taken from it, in `_hand_over()`, and redis-py is out of the way. No other module but `testing`
imports redis-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import ssl
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
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from channels_asyncq.bus.resp.protocol import NoAnswer, NotSent, WireProtocol
from channels_asyncq.bus.resp.remedies import PLAIN, PROXY, TLS, WEB, Diagnosis, Remedies
from channels_asyncq.clock import monotonic
from channels_asyncq.exceptions import ChannelLayerError, LayerUnavailable
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.options import Options

__all__ = ["Connector", "check_hosts", "let_go"]

# redis-py would retry, check health and decode behind our back; deadlines and reconnects are the bus's.
_NOT_FOR_US = frozenset(
    {
        "connection_class",
        "decode_responses",
        "health_check_interval",
        "max_connections",
        "parser_class",
        "protocol",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "timeout",
    }
)
_SECRETS = ("password", "ssl_password")
_TLS_FILES = {"ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path"}

# From 7.2 on redis-py wants the name of the library by driver_info, and warns of the arguments before it.
_HAS_DRIVER_INFO = "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
_NO_SETINFO: Mapping[str, Any] = (
    {"driver_info": None} if _HAS_DRIVER_INFO else {"lib_name": None, "lib_version": None}
)

# A peer that is gone without a word is noticed when it leaves what was sent unacknowledged for so long.
_USER_TIMEOUT_MS = 10_000
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

# A look at a port, after an error that does not say why: seconds for what may be said unasked, and after a
# handshake; for an answer, which comes at once unless a machine is busy; and for all.
_LISTEN = 0.3
_LISTEN_UNDER_TLS = 1.0
_ANSWER = 2.0
_LOOK = 6.0
# How many connections in a row must end at INFO for a proxy to be diagnosed, and the seconds between them.
_ENDS = 3
_BETWEEN_ENDS = 0.1
# What it found is not looked for again for so long.
_LOOK_EVERY = 10.0
# A handshake that takes longer may have gone to a port without TLS, where nobody ever answers it.
_LONG_HANDSHAKE = 0.5


class Unreachable(LayerUnavailable):
    """No connection was made, and what that means."""

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
        remedies: what errors of this host mean.

    Raises:
        ImproperlyConfigured: the installed redis-py does not take the host's arguments.
    """

    def __init__(self, host: Host, *, connect_timeout: float = 5.0, remedies: Remedies | None = None) -> None:
        self._host = host
        self._connect_timeout = connect_timeout
        self.remedies = remedies or Remedies(host, "asgi", {})
        self._looking = asyncio.Lock()
        self._looked_at = -_LOOK_EVERY
        self._found = ""
        given: dict[str, Any] = dict(host.arguments)
        if host.transport == "tls":
            given |= _for_tls(given)
        self._arguments = _for_redis_py(given) | {"db": host.db}
        self._connection_class: type[AbstractConnection] = {
            "tcp": Connection,
            "tls": SSLConnection,
            "unix": UnixDomainSocketConnection,
        }[host.transport]
        watch: dict[str, Any]
        if host.sentinel_kwargs is not None:
            watch = dict(host.sentinel_kwargs)
        else:
            # As in redis-py: credentials and TLS of the master are not for its Sentinels.
            watch = {name: value for name, value in given.items() if name.startswith("socket_")}
        self._sentinels = list(host.sentinels)
        self._sentinel_class: type[AbstractConnection] = Connection
        if watch.pop("ssl", False):
            self._sentinel_class = SSLConnection
            watch |= _for_tls(watch)
        self._sentinel_arguments = _for_redis_py(watch)
        every = [given, watch]
        self._secrets = {_text(source[name]) for source in every for name in _SECRETS if source.get(name)}
        # Where it leads; with Sentinels not before one has named the master.
        self._target = {} if host.sentinels else self._arguments
        try:
            self._connection_class(**self._arguments)
            self._sentinel_class(**self._sentinel_arguments)
        except (TypeError, ValueError, redis.RedisError) as exc:
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS: redis-py {redis.__version__} does not take the arguments "
                f"for {host.address}: {self._without_secrets(exc)}"
            ) from None

    @property
    def address(self) -> str:
        """Where this leads, for messages: no credentials."""
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
                    f"(files, password of the key, ciphers): {self._without_secrets(exc)}"
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
            LayerUnavailable: whatever the reason; its text has no credentials.
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
                words = _words_of(exc)
            elif watching is not None and watching.done() and not watching.cancelled() and watching.result():
                words = PLAIN
            else:
                words = f"no connection within {self._connect_timeout:g} s"
            # The server's text may hold what it was sent, and then a traceback must not show it either.
            cause = exc if not self._has_secrets(exc) else None
            raise Unreachable(self.address, self.remedies.diagnose(words, self._hidden)) from cause

    async def _watch_handshake(self, deadline: asyncio.Timeout) -> bool:
        """End a handshake that goes to a port without TLS, which waits for more of it; return whether it did."""
        await asyncio.sleep(_LONG_HANDSHAKE)
        if await self._look() != PLAIN:
            return False
        deadline.reschedule(asyncio.get_running_loop().time())
        return True

    async def _connect(self, make_protocol: Callable[[], WireProtocol]) -> WireProtocol:
        arguments = self._arguments
        if self._host.sentinels:
            name, port = await self._find_master()
            arguments = self._target = arguments | {"host": name, "port": port}
        connection: Any = self._connection_class(**arguments)
        try:
            await connection.connect()
            protocol = make_protocol()
            transport = _hand_over(connection, protocol)
        except BaseException:
            await _abandon(connection)
            raise
        _tune(transport, arguments)
        return protocol

    # Why not

    def diagnose(self, exc: Exception) -> Diagnosis:
        """Return what an error of `connect()`, or of the first commands on the connection, means by its words."""
        if isinstance(exc, Unreachable):
            diagnosis = exc.diagnosis
        else:
            if isinstance(exc, LayerUnavailable):
                words = exc.reason
            elif isinstance(exc, (NoAnswer, NotSent, ChannelLayerError)) and exc.__cause__ is not None:
                words = _words_of(exc.__cause__)
            else:
                words = _words_of(exc)
            # After AUTH no server quotes the password.
            diagnosis = self.remedies.diagnose(words)
        return diagnosis

    async def look(self) -> Diagnosis | None:
        """Look at the port, after connections that ended without a word; None if that explains nothing."""
        found = await self._look()
        return self.remedies.diagnose(found) if found else None

    async def _look(self) -> str:
        """
        Return what the server says, or speaks, on a connection of its own; nothing if that explains nothing.

        A server may say why it ends a connection, and end it before that is read. Only after an error, and not
        more often than every ten seconds.
        """
        async with self._looking:
            if self._target and monotonic() - self._looked_at >= _LOOK_EVERY:
                self._found = ""
                # Whatever goes wrong: it explains nothing, and the attempts at a connection go on.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_LOOK):
                        self._found = await self._look_at_port()
                self._looked_at = monotonic()
            return self._found

    async def _look_at_port(self) -> str:
        is_tls = self._host.transport == "tls"
        reader, writer = await self._open_plain()
        try:
            said = b"" if is_tls else await _heard(reader, _LISTEN)
            if not said:
                writer.write(b"*1\r\n$4\r\nPING\r\n")
                said = await _heard(reader, _ANSWER)
            if is_tls:
                return PLAIN if said and said.startswith((b"+", b"-")) else await self._words_under_tls()
            if not said or said.startswith(b"\x15"):  # a TLS alert
                return TLS if await self._speaks_tls() else ""
            if said.startswith((b"HTTP/", b"<")):
                return WEB
            if said.startswith((b"-ERR max number", b"-DENIED")):
                return said[1:].decode(errors="replace").splitlines()[0]
        finally:
            writer.transport.abort()
        for _ in range(_ENDS):
            if not await self._ends_at_info():
                return ""
            await asyncio.sleep(_BETWEEN_ENDS)
        return PROXY

    async def _ends_at_info(self) -> bool:
        """Tell whether a connection is closed at INFO that has answered PING."""
        reader, writer = await self._open_plain()
        try:
            writer.write(b"*1\r\n$4\r\nPING\r\n")
            said = await _heard(reader, _ANSWER)
            if not said or not said.endswith(b"\r\n"):
                return False
            writer.write(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n")
            return await _heard(reader, _ANSWER) == b""
        finally:
            writer.transport.abort()

    async def _words_under_tls(self) -> str:
        """Return what comes after a handshake and nothing more: a server may judge our certificate then."""
        connection: Any = self._connection_class(**self._arguments)
        try:
            reader, writer = await asyncio.open_connection(
                self._target["host"], self._target["port"], ssl=connection.ssl_context.get()
            )
            try:
                async with asyncio.timeout(_LISTEN_UNDER_TLS):
                    await reader.read(1)
            finally:
                writer.transport.abort()
        except ssl.SSLError as exc:
            return str(exc)
        return ""

    async def _open_plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.transport == "unix":
            return await asyncio.open_unix_connection(self._target["path"])
        return await asyncio.open_connection(self._target["host"], self._target["port"])

    async def _speaks_tls(self) -> bool:
        if self._host.transport == "unix":
            return False
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent over it
        try:
            _, writer = await asyncio.open_connection(self._target["host"], self._target["port"], ssl=context)
        except ssl.SSLError as exc:
            return "ALERT" in str(exc)
        writer.transport.abort()
        return True

    # Sentinels

    async def _find_master(self) -> tuple[str, int]:
        """Ask the Sentinels, one after the other, and leave no connection to them."""
        # One that does not answer must leave time for the others, and for the master.
        share = self._connect_timeout / (len(self._sentinels) + 1)
        problems = []
        for address in self._sentinels:
            try:
                async with asyncio.timeout(share):
                    master = await self._ask_sentinel(address)
            except Exception as exc:
                problem = self._without_secrets(exc) if str(exc) else f"no answer within {share:g} s"
                problems.append(f"{address[0]}:{address[1]}: {problem}")
            else:
                # The one that answered is asked first the next time.
                self._sentinels.remove(address)
                self._sentinels.insert(0, address)
                return master
        raise ConnectionError(f"no Sentinel names a master {self._host.master_name!r}: {'; '.join(problems)}")

    async def _ask_sentinel(self, address: tuple[str, int]) -> tuple[str, int]:
        # Not redis-py's Sentinel class: when it is cancelled, or its closing is, it leaves connections open.
        arguments = self._sentinel_arguments | {"host": address[0], "port": address[1]}
        connection: Any = self._sentinel_class(**arguments)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "MASTER", self._host.master_name)
            flat = [_text(item) for item in await connection.read_response()]
        finally:
            await _abandon(connection)
        master = dict(zip(flat[::2], flat[1::2], strict=True))
        if not {"s_down", "o_down"}.isdisjoint(master["flags"].split(",")):
            raise ConnectionError("the master is down")
        return master["ip"], int(master["port"])

    def _without_secrets(self, exc: BaseException) -> str:
        return self._hidden(_words_of(exc))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _has_secrets(self, exc: BaseException | None) -> bool:
        """Does the error, or one that it came from, tell a password?"""
        while exc is not None:
            if any(secret in str(exc) for secret in self._secrets):
                return True
            exc = exc.__cause__ or exc.__context__
        return False


def _words_of(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


async def _heard(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
    """Return what arrives before the timeout: nothing if the connection ends, None if nothing arrives."""
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(1000)
    except TimeoutError:
        return None
    except OSError:
        return b""


def check_hosts(options: Options) -> None:
    """
    Make sure that connections to the hosts can be made, as far as can be told without one.

    Raises:
        ImproperlyConfigured: redis-py or the TLS library does not take what `hosts` says.
    """
    for host in options.hosts:
        if host.kind != "memory":
            Connector(host).check()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _for_redis_py(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for a redis-py connection that only connects and authenticates."""
    kept = {name: value for name, value in given.items() if name not in _NOT_FOR_US}
    if not any(name in kept for name in ("driver_info", "lib_name", "lib_version")):
        kept.update(_NO_SETINFO)
    # The deadline is ours; redis-py's own differ between its versions.
    kept.setdefault("socket_connect_timeout", None)
    kept.setdefault("socket_timeout", None)
    return kept | {"protocol": 2, "retry": Retry(NoBackoff(), 0)}


def _for_tls(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say what is checked: before 6 redis-py took a certificate for any other host."""
    requirement = given.get("ssl_cert_reqs", "required")
    if isinstance(requirement, ssl.VerifyMode):
        # Likewise, it took the words only.
        requirement = requirement.name.removeprefix("CERT_").lower()
    checks = requirement not in (None, "none") and given.get("ssl_check_hostname", True)
    return {"ssl_cert_reqs": requirement, "ssl_check_hostname": checks}


class _ClosedTransport(asyncio.Transport):
    """What redis-py's StreamWriter holds after the handover: nothing that collecting it could close."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _hand_over(connection: Any, protocol: WireProtocol) -> asyncio.Transport:
    """
    Give the transport of a connected redis-py connection to `protocol`.

    Nothing is awaited between looking and taking, so nothing can arrive in between.

    Raises:
        RuntimeError: this redis-py is built in another way.
        ConnectionError: the connection has ended, or the server said more than it was asked.
    """
    try:
        stream, writer = connection._reader, connection._writer
        transport: asyncio.Transport = writer.transport
        unread = bool(stream._buffer) or connection._parser._reader.has_data()
        has_ended = stream.at_eof() or stream.exception() is not None or transport.is_closing()
        _ = writer._transport
    except AttributeError as exc:
        raise RuntimeError(
            f"the connections of redis-py {redis.__version__} cannot be taken over ({exc}): "
            "install redis>=5.2,<9"
        ) from exc
    if unread:
        raise ConnectionError("the server sent more than was asked for")
    if has_ended:
        raise ConnectionResetError("the server closed the connection")
    transport.set_protocol(protocol)
    # Collecting a StreamWriter closes its transport, and collecting a redis-py connection closes its writer.
    writer._transport = _ClosedTransport()
    connection._reader = connection._writer = None
    # asyncio calls it for a new transport only.
    protocol.connection_made(transport)
    return transport


def let_go(transport: asyncio.BaseTransport) -> None:
    """
    Close the socket of a transport whose event loop is closed: it would have the loop do it on its next turn.

    (uvloop's loops have closed their sockets by then.)
    """
    under_tls = getattr(transport, "_ssl_protocol", None)
    with contextlib.suppress(RuntimeError):  # "Event loop is closed", after all that needs none
        transport.abort()  # type: ignore[attr-defined]
    below: Any = getattr(under_tls, "_transport", transport)
    sock = getattr(below, "_sock", None)
    if isinstance(sock, socket.socket):
        sock.close()
        # Else it is told as unclosed when it is collected.
        below._sock = None


async def _abandon(connection: Any) -> None:
    """Close what a failed or cancelled connect() left open."""
    writer = getattr(connection, "_writer", None)
    connection._reader = connection._writer = None
    if writer is not None:
        writer.transport.abort()
    # The socket is closed on the loop's next turn; have it happen before the caller goes on.
    await asyncio.sleep(0)


def _tune(transport: asyncio.Transport, arguments: Mapping[str, Any]) -> None:
    """Make a TCP socket prompt, and quick to notice a peer that is gone."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wanted: list[tuple[int, int | None, int]] = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), _USER_TIMEOUT_MS),
    ]
    if arguments.get("socket_keepalive", True):
        wanted.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        if not arguments.get("socket_keepalive_options"):
            wanted += [(socket.IPPROTO_TCP, getattr(socket, name, None), value) for name, value in _KEEPALIVE]
    for level, option, value in wanted:
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError:
                # A system that knows the option and refuses it is no reason to do without a connection.
                continue
