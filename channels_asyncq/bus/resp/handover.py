"""Takes the transport of a redis-py connection over, and closes connections that redis-py leaves open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any

import redis

from .protocol import WireProtocol

__all__ = ["abandon", "hand_over", "let_go"]

# A peer that is gone without a word is noticed when sent bytes stay unacknowledged for this long.
_USER_TIMEOUT_MS = 10_000
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class _ClosedTransport(asyncio.Transport):
    """The transport of redis-py's StreamWriter after the handover: collecting the writer closes nothing."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def hand_over(connection: Any, protocol: WireProtocol, arguments: Mapping[str, Any]) -> None:
    """
    Give the transport of a redis-py connection, which was made with these arguments, to `protocol`.

    Nothing is awaited between the checks and the handover, so nothing can arrive in between.

    Raises:
        RuntimeError: this redis-py is built in another way.
        ConnectionError: the connection has ended, or the server sent more than was asked for.
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
    _tune(transport, arguments)


def _tune(transport: asyncio.Transport, arguments: Mapping[str, Any]) -> None:
    """Have a TCP socket send at once and notice quickly that its peer is gone."""
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
                # The connection works without an option that the system knows and refuses.
                continue


async def abandon(connection: Any) -> None:
    """Close a redis-py connection whose connect() failed or was cancelled."""
    writer = getattr(connection, "_writer", None)
    connection._reader = connection._writer = None
    if writer is not None:
        writer.transport.abort()
    # The loop closes the socket on its next iteration: wait for it.
    await asyncio.sleep(0)


def let_go(transport: asyncio.BaseTransport) -> None:
    """
    Close the socket of a transport whose event loop is closed.

    The transport alone would have the loop do it on its next iteration. (uvloop's loops have closed their sockets
    by then.)
    """
    under_tls = getattr(transport, "_ssl_protocol", None)
    with contextlib.suppress(RuntimeError):  # "Event loop is closed", after everything that needs no loop
        transport.abort()  # type: ignore[attr-defined]
    below: Any = getattr(under_tls, "_transport", transport)
    sock = getattr(below, "_sock", None)
    if isinstance(sock, socket.socket):
        sock.close()
        # Or Python warns of an unclosed socket when the transport is collected.
        below._sock = None
