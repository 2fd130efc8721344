"""
A client that sends frames as fast as its socket takes them, and comes back when it is disconnected.

`python -m benchmarks.sockets.flooder HOST PORT SIZE`. It reads what comes, and answers nothing. At the end of its
stdin it prints how many bytes it has sent, and over how many connections.
"""

import base64
import json
import os
import select
import socket
import sys
import threading

#: The most bytes of a frame whose length is in its second byte.
LONGEST_FRAME = 125


def connected(address: tuple[str, int]) -> socket.socket:
    """A WebSocket that a server has accepted."""
    connection = socket.create_connection(address, 20)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /ws/room/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(4096)
        if not data:
            raise ConnectionError(f"the server refused a WebSocket: {answer!r}")
        answer += data
    connection.setblocking(False)
    return connection


def flood(address: tuple[str, int], size: int, is_over: threading.Event) -> tuple[int, int]:
    """Send until it is over; return bytes and connections."""
    assert size <= LONGEST_FRAME
    frame = bytes([0x81, 0x80 | size]) + bytes(4) + b"x" * size
    frames = frame * (65536 // len(frame))
    sent = connections = 0
    while not is_over.is_set():
        connections += 1
        with connected(address) as connection:
            rest = memoryview(b"")
            try:
                while not is_over.is_set():
                    if not rest:
                        rest = memoryview(frames)
                    can_read, can_write, _ = select.select([connection], [connection], [], 0.1)
                    if can_read and not connection.recv(65536):
                        break
                    if can_write:
                        count = connection.send(rest)
                        sent += count
                        rest = rest[count:]
            except OSError:
                pass
    return sent, connections


def main() -> None:
    host, port, size = sys.argv[1:]
    is_over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=wait, daemon=True).start()
    print(json.dumps(flood((host, int(port)), int(size), is_over)))


if __name__ == "__main__":
    main()
