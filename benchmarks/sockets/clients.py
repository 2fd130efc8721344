"""WebSocket clients of raw sockets: they count the bytes that come, and understand as little as they may."""

import base64
import os
import selectors
import socket
import time


class Clients:
    """
    Clients of one server, which count what they are sent.

    A frame of the server is a header and its text, unmasked; all messages of a measurement have one size, so
    bytes received are frames received.
    """

    def __init__(self, host: str, port: int, path: str = "/ws/room/") -> None:
        self._address = host, port
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self.received: list[int] = []

    def connect(self, count: int) -> None:
        """Open so many more connections, one after the other."""
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        for _ in range(count):
            connection = socket.create_connection(self._address, 20)
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = connection.recv(4096)
                if not data:
                    raise ConnectionError(f"the server refused a WebSocket: {answer!r}")
                answer += data
            if not answer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"the server refused a WebSocket: {answer!r}")
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, len(self._sockets))
            self._sockets.append(connection)
            self.received.append(len(answer.partition(b"\r\n\r\n")[2]))

    def read(self, total: int, patience: float) -> int:
        """Read until `total` bytes have come to all together, or nothing came for `patience` seconds."""
        so_far = sum(self.received)
        quiet_since = time.monotonic()
        while so_far < total and time.monotonic() - quiet_since < patience:
            for key, _ in self._selector.select(0.2):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    data = key.fileobj.recv(65536)
                except BlockingIOError:
                    continue
                if not data:
                    self._selector.unregister(key.fileobj)
                    continue
                self.received[key.data] += len(data)
                so_far += len(data)
                quiet_since = time.monotonic()
        return so_far

    def close(self) -> None:
        self._selector.close()
        for connection in self._sockets:
            connection.close()
