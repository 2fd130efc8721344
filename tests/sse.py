"""A client of event streams, after the HTML standard: what a browser would make of the bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Event:
    """An event that a browser dispatches. `id` is the last one that it knows then."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True)
class Comment:
    """A comment; browsers do not show it to pages."""

    text: str


class Parser:
    """
    Interprets an event stream. Only "\\n" ends a line here: a "\\r" in a line would be a fault of ours.

    `last_id` is what a browser would send as Last-Event-ID if the connection broke now: an id counts only when
    the blank line after it has come.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self._id = ""
        self._type = ""
        self._data: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> list[Event | Comment]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[Event | Comment] = []
        for raw in lines:
            line = raw.decode()
            assert "\r" not in line
            if line:
                self._on_line(line, found)
            else:
                self._dispatch(found)
        return found

    def _on_line(self, line: str, found: list[Event | Comment]) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "":
            found.append(Comment(value))
        elif field == "id":
            assert "\0" not in value
            self._id = value
        elif field == "event":
            self._type = value
        elif field == "data":
            self._data.append(value)
        elif field == "retry":
            self.retry = int(value)
        else:
            raise AssertionError(f"no such field: {line!r}")

    def _dispatch(self, found: list[Event | Comment]) -> None:
        self.last_id = self._id
        if self._data:
            found.append(Event(self._type or "message", "\n".join(self._data), self._id))
        self._type, self._data = "", []


class Client:
    """Reads one stream: that of a response of Django, or of a connection."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.chunks = chunks
        self.parser = Parser()
        self.waiting: list[Event | Comment] = []
        self.is_ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        await self.chunks.aclose()  # type: ignore[attr-defined]

    @property
    def last_id(self) -> str:
        return self.parser.last_id

    async def next(self, within: float = 20) -> Event | Comment | None:
        """Return the next event or comment, None at the end of the stream."""
        while not self.waiting:
            async with asyncio.timeout(within):
                chunk = await anext(self.chunks, None)
            if chunk is None:
                self.is_ended = True
                return None
            self.waiting += self.parser.feed(chunk)
        return self.waiting.pop(0)

    async def event(self) -> Event:
        """Return the next event."""
        while not isinstance(found := await self.next(), Event):
            assert found is not None, "the stream has ended"
        return found

    async def here(self) -> list[Event]:
        """Return the events before the comment that tells that nothing is missing so far."""
        events = []
        while (found := await self.next()) != Comment("here"):
            assert isinstance(found, Event), found
            events.append(found)
        return events

    async def end(self) -> list[Event | Comment]:
        """Return what comes before the end of the stream."""
        found = []
        while (item := await self.next()) is not None:
            found.append(item)
        return found


async def over_http(port: int, path: str, last_id: str = "", headers: str = "") -> Connection:
    """Open a stream on a server of this host; return it when the head of the response has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if last_id:
        headers += f"Last-Event-ID: {last_id}\r\n"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode())
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
    return Connection(reader, writer, head)


class Connection(Client):
    """A stream over a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        super().__init__(self._read())
        self._reader = reader
        self._writer = writer
        self.head = head

    async def _read(self) -> AsyncIterator[bytes]:
        """Yield the chunks (RFC 9112, 7.1); end after the last one."""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]

    def abort(self) -> None:
        self._writer.transport.abort()

    async def leave(self) -> None:
        self.abort()
        await super().leave()
