"""What comes over a connection, as bytes in pieces of any size: chunks, server-sent events, WebSocket frames."""

import struct
from dataclasses import dataclass

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class StreamError(ValueError):
    """Bytes that the server must not send."""


class Head:
    """The status and the headers of a response."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._rest = b""

    def feed(self, data: bytes) -> bytes | None:
        """Return the bytes after the head, or None as long as it is incomplete."""
        self._rest += data
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._rest[:end].decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        return self._rest[end + 4 :]


class Chunks:
    """
    The body of a chunked response.

    A chunk of which only a part has come gives that part: a browser reads it too, and what it read before a cut
    counts.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._line = b""
        # The bytes of the current chunk that are still to come, with the line end after it.
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes of the body."""
        body: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_over:
            if self._left:
                piece = data[at : at + self._left]
                body.append(piece[: max(0, self._left - 2)])
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                break
            size = int((self._line + data[at:end]).partition(b";")[0], 16)
            self._line = b""
            at = end + 1
            if size:
                self._left = size + 2
            else:
                self.is_over = True
        return b"".join(body)


@dataclass(slots=True)
class Event:
    """
    One block of an event stream: an event, a comment, or both.

    `id` is None where the block has none, `retry` is in seconds. The block is complete, so its id counts.
    """

    id: str | None = None
    type: str = "message"
    data: str | None = None
    comment: str | None = None
    retry: float | None = None


class EventReader:
    """
    The blocks of an event stream.

    An `id:` counts only when the blank line after it has come (HTML standard, 9.2.6): a block that was cut off
    has no effect. Lines end with \\n, as both servers of this benchmark write them.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that are complete now."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [self._event(block.decode()) for block in blocks]

    @staticmethod
    def _event(block: str) -> Event:
        if "\r" in block:
            raise StreamError(f"a carriage return in {block[:80]!r}: this reader knows line feeds only")
        event = Event()
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                event.data = value if event.data is None else f"{event.data}\n{value}"
            elif name == "id":
                event.id = value
            elif name == "event":
                event.type = value
            elif name == "retry":
                event.retry = int(value) / 1000
            elif name == "" and line:
                event.comment = value
        return event


class FrameReader:
    """The messages of a WebSocket, as (opcode, payload): fragments are joined, control frames come between."""

    def __init__(self) -> None:
        self._rest = b""
        self._opcode = 0
        self._fragments: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the messages that are complete now."""
        data = self._rest + data
        messages: list[tuple[int, bytes]] = []
        at = 0
        while len(data) - at >= 2:
            first, size = data[at], data[at + 1]
            start = at + 2
            if size & 0x80:
                raise StreamError("a masked frame from a server")
            if size == 126:
                start += 2
                size = int.from_bytes(data[at + 2 : start], "big") if len(data) >= start else 0
            elif size == 127:
                start += 8
                size = int.from_bytes(data[at + 2 : start], "big") if len(data) >= start else 0
            if len(data) < start + size:
                break
            self._take(first, data[start : start + size], messages)
            at = start + size
        self._rest = data[at:]
        return messages

    def _take(self, first: int, payload: bytes, messages: list[tuple[int, bytes]]) -> None:
        opcode, is_last = first & 0x0F, bool(first & 0x80)
        if first & 0x70:
            raise StreamError("a compressed frame, and no compression was offered")
        if opcode >= CLOSE or (opcode and is_last):
            messages.append((opcode, payload))
            return
        self._opcode = opcode or self._opcode
        self._fragments.append(payload)
        if is_last:
            messages.append((self._opcode, b"".join(self._fragments)))
            self._fragments.clear()


def client_frame(opcode: int, payload: bytes = b"") -> bytes:
    """
    Return a frame of a client.

    Its mask is zero, so that the payload stays as it is: a mask protects proxies, and there are none here.
    """
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload
