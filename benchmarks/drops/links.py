"""One connection of a client, by hand: what a browser would do, at a fraction of its cost."""

import asyncio
import base64
import json
import os
import socket
import struct
from typing import Any, Protocol, cast
from urllib.parse import quote

from .streams import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Chunks,
    EventReader,
    FrameReader,
    Head,
    StreamError,
    client_frame,
)


class Visitor(Protocol):
    """The client, as its connection sees it. Implemented by `clients.Client`."""

    def at(self, position: str) -> None:
        """Everything up to this position has come."""

    def message(self, message: dict[str, Any]) -> None:
        """A message has come."""

    def caught_up(self) -> None:
        """Everything that was missed has come."""

    def reset(self, reason: str, groups: list[str] | None) -> None:
        """The server cannot resume; None stands for all groups."""

    def wait(self, seconds: float) -> None:
        """The server says how long to wait before the next attempt."""

    def ended(self, link: "Link", why: str) -> None:
        """The connection is over, and this client did not cut it."""


class Link(asyncio.Protocol):
    """
    A connection from its request to its end.

    After `budget` bytes (None: never) it cuts itself: what the server sent after them is not read.

    | state | meaning | left by |
    |---|---|---|
    | head | the request was written | the blank line after the headers |
    | body | the status is right | the end of the response, a lost connection, `cut()` |
    | over | nothing more is read | |
    """

    #: The status of a response that goes on.
    status = 200

    def __init__(self, visitor: Visitor, path: str, position: str, budget: int | None) -> None:
        self._visitor = visitor
        self._path = path
        self._position = position
        self._budget = budget
        self._head: Head | None = Head()
        self._is_over = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_over:
            self.cut()
        else:
            self._transport.write(self._request())

    def connection_lost(self, error: Exception | None) -> None:
        self._end("lost")

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._budget is not None:
            data = data[: self._budget]
            self._budget -= len(data)
        try:
            self._read(data)
        except (StreamError, ValueError, KeyError) as error:
            self._end(f"unreadable: {error!r}")
        if self._budget == 0:
            self._end("cut")

    def cut(self) -> None:
        """Cut the connection (RST), and tell nobody."""
        self._is_over = True
        if self._transport is not None:
            connection: socket.socket = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _request(self) -> bytes:
        raise NotImplementedError

    def _read(self, data: bytes) -> None:
        if self._head is not None:
            rest = self._head.feed(data)
            if rest is None:
                return
            if self._head.status != self.status:
                self._end(f"status {self._head.status}")
                return
            self._begin(self._head)
            self._head = None
            data = rest
        if data:
            self._body(data)

    def _begin(self, head: Head) -> None:
        """Look at the headers of a response with the right status."""

    def _body(self, data: bytes) -> None:
        raise NotImplementedError

    def _end(self, why: str, *, is_server_done: bool = False) -> None:
        if self._is_over:
            return
        if is_server_done and self._transport is not None:
            self._is_over = True
            self._transport.close()
        else:
            self.cut()
        self._visitor.ended(self, why)


class EventLink(Link):
    """An EventSource."""

    def _request(self) -> bytes:
        since = f"Last-Event-ID: {self._position}\r\n" if self._position else ""
        head = f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        return f"{head}{since}\r\n".encode()

    def _begin(self, head: Head) -> None:
        if not head.headers.get("content-type", "").startswith("text/event-stream"):
            raise StreamError(f"content-type {head.headers.get('content-type')}")
        self._chunks = Chunks() if head.headers.get("transfer-encoding") == "chunked" else None
        self._events = EventReader()

    def _body(self, data: bytes) -> None:
        visitor = self._visitor
        if self._chunks is not None:
            data = self._chunks.feed(data)
        for event in self._events.feed(data):
            if event.retry is not None:
                visitor.wait(event.retry)
            if event.type == "reset" and event.data is not None:
                news = json.loads(event.data)
                visitor.reset(news["reason"], news["groups"])
            elif event.data is not None:
                visitor.message(json.loads(event.data))
            if event.id is not None:
                visitor.at(event.id)
            if event.type == "reset" or event.comment == "here":
                visitor.caught_up()
        if self._chunks is not None and self._chunks.is_over:
            # The connection stays open for the next request, and an EventSource makes none on it.
            self._end("response ended", is_server_done=True)


class SocketLink(Link):
    """A WebSocket of the resumable consumer, or of one that answers like it."""

    status = 101

    def _request(self) -> bytes:
        return upgrade(self._path + (f"&since={quote(self._position)}" if self._position else ""))

    def _begin(self, head: Head) -> None:
        self._frames = FrameReader()

    def _body(self, data: bytes) -> None:
        for opcode, payload in self._frames.feed(data):
            if opcode == TEXT:
                self._text(payload.decode())
            elif opcode == PING:
                self._write(client_frame(PONG, payload))
            elif opcode == CLOSE:
                self._write(client_frame(CLOSE, payload[:2]))
                self._end(f"close {int.from_bytes(payload[:2], 'big')}", is_server_done=True)
                return

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _text(self, text: str) -> None:
        frame = json.loads(text)
        if "m" in frame:
            self._visitor.message(frame["m"])
            # Of several frames of one message only the last one has its position.
            if "id" in frame:
                self._visitor.at(frame["id"])
        elif "type" not in frame:
            # A heartbeat: a fresh position in quiet groups.
            self._visitor.at(frame["id"])
        elif frame["type"] == "resumed":
            # The first visit has nothing to recover.
            if not frame["recovered"] and self._position:
                self._visitor.reset(frame["reason"], None)
            self._position = frame["id"]
            self._visitor.at(frame["id"])
            self._visitor.caught_up()
        elif frame["type"] == "retry":
            self._visitor.wait(frame["ms"] / 1000)


class SocketIOLink(SocketLink):
    """
    A client of Socket.IO over WebSocket, with connection state recovery.

    Its position is the private id of the session and the offset of the last message, with a space between them.
    """

    def __init__(self, visitor: Visitor, path: str, position: str, budget: int | None) -> None:
        super().__init__(visitor, path, position, budget)
        self._session, _, self._offset = position.partition(" ")

    def _request(self) -> bytes:
        return upgrade(self._path)

    def _text(self, text: str) -> None:
        if text == "2":
            self._write(client_frame(TEXT, b"3"))
        elif text.startswith("0"):
            auth = json.dumps({"pid": self._session, "offset": self._offset}) if self._session else ""
            self._write(client_frame(TEXT, f"40{auth}".encode()))
        elif text.startswith("40"):
            session = json.loads(text[2:])["pid"]
            self._offset = self._offset if session == self._session else ""
            self._session = session
            self._visitor.at(f"{session} {self._offset}")
        elif text.startswith("42"):
            self._event(json.loads(text[2:]))

    def _event(self, event: list[Any]) -> None:
        name, body, *rest = event
        if rest:
            self._offset = rest[0]
            self._visitor.at(f"{self._session} {self._offset}")
        if name == "here":
            if not body["recovered"] and self._position:
                self._visitor.reset("not_recovered", None)
            self._visitor.caught_up()
        else:
            self._visitor.message(body)


def upgrade(path: str) -> bytes:
    """The request for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


LINKS: dict[str, type[EventLink] | type[SocketLink]] = {
    "sse": EventLink,
    "websocket": SocketLink,
    "socketio": SocketIOLink,
}
