"""WebSocket clients of raw sockets: they count the frames that come, and understand as little as they may."""

import base64
import os
import selectors
import socket
import time

CONNECT_TIMEOUT = 20.0
#: So many are connecting at the same time, as after a deploy.
AT_ONCE = 50
#: What browsers offer.
DEFLATE = "permessage-deflate; client_max_window_bits"
#: The frame with which a client of Socket.IO connects: text "40", masked with zeros.
SOCKET_IO_CONNECT = b"\x81\x82\0\0\0\0" + b"40"
TEXT, BINARY, PING = 1, 2, 9


class Connection:
    """One client: its socket, the frames that it got, and the bytes of one that is not complete."""

    __slots__ = ("_rest", "frames", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.frames = 0
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Count the messages in what has come; answer a ping."""
        if self._rest:
            data = self._rest + data
        place, length, count = 0, len(data), 0
        while length - place >= 2:
            size, begin = data[place + 1], place + 2
            if size == 126:
                size, begin = int.from_bytes(data[begin : begin + 2]), begin + 2
            elif size == 127:
                size, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
            if begin + size > length:
                break
            kind = data[place] & 15
            if kind in (TEXT, BINARY):
                count += 1
            elif kind == PING:
                self.socket.sendall(bytes([0x8A, 0x80 | size, 0, 0, 0, 0]) + data[begin : begin + size])
            place = begin + size
        self._rest = data[place:]
        self.frames += count
        return count


class Clients:
    """Clients of one server, which offer compression as browsers do, and count what they are sent."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        #: Whether the server has agreed to compress.
        self.is_deflated = False

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def frames(self) -> int:
        """The messages that all together have got."""
        return sum(connection.frames for connection in self._connections)

    def connect(self, count: int, path: str) -> None:
        """
        Open so many more connections, some at a time.

        Raises:
            ConnectionError: the server refused one, or did not answer in time.
        """
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Extensions: {DEFLATE}\r\n\r\n"
        ).encode()
        while count > 0:
            batch = min(count, AT_ONCE)
            count -= batch
            for _ in range(batch):
                self._connections.append(Connection(socket.create_connection(self._address, CONNECT_TIMEOUT)))
            connections = self._connections[-batch:]
            for connection in connections:
                connection.socket.sendall(request)
            for connection in connections:
                self._await_answer(connection)
            if path.startswith("/socket.io/"):
                for connection in connections:
                    self._await_frames(connection, 1)
                    connection.socket.sendall(SOCKET_IO_CONNECT)
                for connection in connections:
                    self._await_frames(connection, 2)
            for connection in connections:
                connection.socket.setblocking(False)
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _await_answer(self, connection: Connection) -> None:
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.socket.recv(4096)
            if not data:
                raise ConnectionError(f"the server refused a WebSocket: {answer!r}")
            answer += data
        head, _, rest = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"the server refused a WebSocket: {answer!r}")
        self.is_deflated = b"permessage-deflate" in head
        connection.feed(rest)

    @staticmethod
    def _await_frames(connection: Connection, count: int) -> None:
        while connection.frames < count:
            data = connection.socket.recv(4096)
            if not data:
                raise ConnectionError("the server ended a connection of Socket.IO")
            connection.feed(data)

    def read(self, count: int, patience: float) -> int:
        """Read until `count` messages have come, or nothing came for `patience` seconds; return how many came."""
        found = 0
        quiet_since = time.monotonic()
        while found < count and time.monotonic() - quiet_since < patience:
            for key, _ in self._selector.select(0.2):
                connection: Connection = key.data
                try:
                    data = connection.socket.recv(65536)
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    data = b""
                if not data:
                    self._selector.unregister(connection.socket)
                    continue
                found += connection.feed(data)
                quiet_since = time.monotonic()
        return found

    def close_all(self) -> None:
        """End all connections, as browsers do whose pages are left: without a word."""
        for connection in self._connections:
            if connection.socket in self._selector.get_map():
                self._selector.unregister(connection.socket)
            connection.socket.close()
        self._connections = []

    def close(self) -> None:
        self.close_all()
        self._selector.close()
