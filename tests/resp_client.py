"""A connection to a server that a test reads and writes by hand, without an event loop."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Final, Self

import hiredis

from channels_asyncq.testing import EmbeddedServerError

NOTHING: Final = object()


class RespClient:
    """
    One connection to the Unix socket of a server (RESP2): what arrives is read in the order of the wire.

    `with` closes it. Strings come as bytes, a missing value as None, lists as lists.

    Args:
        path: the Unix socket.
        password: that of the default user, or "".
        timeout: seconds to wait for what `read()` and `command()` return.

    Raises:
        OSError: the server could not be reached.
        EmbeddedServerError: the server refused the password.
    """

    def __init__(self, path: str, *, password: str = "", timeout: float = 5.0) -> None:
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            if password:
                self.command("AUTH", password)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._socket.close()

    def send(self, *words: str | bytes | int | float) -> None:
        """Write one command, and leave its reply to `read()`."""
        # Its stub types a tuple of one word.
        self._socket.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]

    def read(self, timeout: float | None = None) -> Any:
        """
        Return what comes next, a reply or a push; an error reply is returned as a `hiredis.ReplyError`.

        Raises:
            TimeoutError: nothing came for `timeout` seconds.
            ConnectionError: the server closed the connection.
        """
        self._socket.settimeout(self._timeout if timeout is None else timeout)
        while (reply := self._reader.gets()) is NOTHING:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("The server closed the connection.")
            self._reader.feed(data)
        return reply

    def command(self, *words: str | bytes | int | float) -> Any:
        """
        Write one command and return its reply; no push may be on its way.

        Raises:
            EmbeddedServerError: the server answered with an error; the text is the server's, its code included.
            OSError: the connection ended, or there was no answer in time.
        """
        self.send(*words)
        reply = self.read()
        if isinstance(reply, hiredis.ReplyError):
            raise EmbeddedServerError(str(reply)) from reply
        return reply
