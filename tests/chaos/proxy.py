"""A TCP proxy with faults: what lies between a client and its server, in the hands of a test."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Literal

Direction = Literal["up", "down"]
Kind = Literal["commands", "pushes"]

#: Closing a socket that lingers for no time sends RST, not FIN.
_RESET = struct.pack("ii", 1, 0)
_CHUNK = 65536


class Flow:
    """
    One direction of one tunnel: `up` is from client to server.

    Stalled, it reads nothing: what is sent piles up in the buffers of the kernel, as behind a network that is
    gone. Deaf, it reads and throws away: the sender thinks that all is well.
    """

    def __init__(self, tunnel: Tunnel, source: socket.socket, target: socket.socket) -> None:
        self._tunnel = tunnel
        self._source = source
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self.is_deaf = False
        #: Bytes passed on, and bytes thrown away.
        self.passed = self.dropped = 0

    @property
    def is_stalled(self) -> bool:
        return not self._open.is_set()

    def stall(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def run(self, direction: Direction) -> None:
        loop = asyncio.get_running_loop()
        proxy = self._tunnel.proxy
        while True:
            await self._open.wait()
            data = await loop.sock_recv(self._source, _CHUNK)
            if not data:
                return
            await self._open.wait()
            if direction == "up":
                data = self._tunnel.look(data)
            if self.is_deaf:
                self.dropped += len(data)
                self._tunnel.has_dropped.set()
                continue
            for piece in proxy.pieces(direction, data):
                delay = proxy.delays[direction]
                if delay:
                    await asyncio.sleep(delay())
                await loop.sock_sendall(self._target, piece)
                self.passed += len(piece)


class Tunnel:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        #: When it was made.
        self.since = monotonic()
        #: It is one for pushes from its first SUBSCRIBE on.
        self.kind: Kind = "commands"
        self.up = Flow(self, client, server)
        self.down = Flow(self, server, client)
        #: Something was thrown away.
        self.has_dropped = asyncio.Event()
        #: What is kept back, once `Proxy.hold()` has found its command; it is released or lost.
        self.held: bytes | None = None
        self._client = client
        self._server = server
        self._tasks: list[asyncio.Task[None]] = []

    def flow(self, direction: Direction) -> Flow:
        return self.up if direction == "up" else self.down

    def look(self, data: bytes) -> bytes:
        """See what the client says; return what is passed on."""
        if b"SUBSCRIBE" in data:
            self.kind = "pushes"
        if self.held is not None:
            self.held += data
            return b""
        proxy = self.proxy
        if proxy.loses_reply_to and proxy.loses_reply_to in data:
            proxy.loses_reply_to = b""
            self.down.is_deaf = True
            proxy.found.set_result(self)
        if proxy.holds and proxy.holds in data:
            # From the beginning of that command on: a command of RESP begins with an asterisk and a number.
            at = data.rfind(b"*", 0, data.index(proxy.holds))
            proxy.holds = b""
            data, self.held = data[:at], data[at:]
            proxy.found.set_result(self)
        return data

    async def release(self) -> None:
        """Let the server have what was held back, whether or not the client is still there."""
        assert self.held is not None
        data, self.held = self.held, None
        await asyncio.get_running_loop().sock_sendall(self._server, data)

    def cut(self) -> None:
        """Reset both ends."""
        self.end()

    def cut_client(self) -> None:
        """Reset the client's end. The server's stays: for it nothing has happened yet."""
        for task in self._tasks:
            task.cancel()
        _reset(self._client)

    async def run(self) -> None:
        self._tasks = [asyncio.create_task(self.up.run("up")), asyncio.create_task(self.down.run("down"))]
        try:
            await asyncio.wait(self._tasks, return_when="FIRST_COMPLETED")
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self.held is None:
                self.end()

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        _reset(self._client)
        _reset(self._server)
        self.proxy.forget(self)


class Proxy:
    """
    Listens on a port of its own and passes everything on to `target`, a port of this machine.

    Splits and delays are for all connections, also those that come; the rest is done to tunnels that are there.
    """

    def __init__(self, target: int, rng: random.Random | None = None) -> None:
        self.target = target
        self.tunnels: list[Tunnel] = []
        #: Refuse new connections: they are accepted and reset.
        self.refuses = False
        #: Bytes that go in one packet at most, by direction; 0 for as they come.
        self.splits: dict[Direction, int] = {"up": 0, "down": 0}
        #: What says for how many seconds a packet waits, by direction.
        self.delays: dict[Direction, Callable[[], float] | None] = {"up": None, "down": None}
        self.loses_reply_to = b""
        self.holds = b""
        self.found: asyncio.Future[Tunnel] = asyncio.get_running_loop().create_future()
        self.rng = rng or random.Random(0)
        self._listener = socket.socket()
        self._accepting: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        assert self._accepting is not None
        self._accepting.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(self._accepting, *self._running, return_exceptions=True)
        for tunnel in list(self.tunnels):
            tunnel.end()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._serve(client))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        server = socket.socket()
        server.setblocking(False)
        try:
            if self.refuses:
                raise ConnectionRefusedError
            await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self.target))
        except BaseException as exc:
            _reset(client)
            server.close()
            if isinstance(exc, OSError):
                return
            raise
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tunnel = Tunnel(self, client, server)
        self.tunnels.append(tunnel)
        await tunnel.run()

    def forget(self, tunnel: Tunnel) -> None:
        with contextlib.suppress(ValueError):
            self.tunnels.remove(tunnel)

    # Faults

    def narrow(self) -> None:
        """Keep little of what connections from now on send and what is not passed on yet."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)

    def of(self, kind: Kind | None = None) -> list[Tunnel]:
        """The tunnels of a kind; all without one."""
        return [tunnel for tunnel in self.tunnels if kind is None or tunnel.kind == kind]

    def cut(self, kind: Kind | None = None) -> int:
        """Reset the connections of a kind; how many there were."""
        tunnels = self.of(kind)
        for tunnel in tunnels:
            tunnel.cut()
        return len(tunnels)

    def stall(self, direction: Direction, kind: Kind | None = None) -> None:
        for tunnel in self.of(kind):
            tunnel.flow(direction).stall()

    def resume(self) -> None:
        for tunnel in self.tunnels:
            tunnel.up.resume()
            tunnel.down.resume()

    def deafen(self, kind: Kind = "pushes") -> None:
        """Throw away what the server says on the connections that are there; they stay open."""
        for tunnel in self.of(kind):
            tunnel.down.is_deaf = True

    def switch(self, target: int) -> None:
        """Lead to another server from now on, and cut what leads to the old one."""
        self.target = target
        self.cut()

    def lose_reply(self, command: bytes) -> asyncio.Future[Tunnel]:
        """
        Pass on the next packet with these bytes in it, and nothing that the server says from then on.

        The result is the tunnel. Its `has_dropped` is set when the reply is lost, and so the command executed.
        """
        self.loses_reply_to = command
        self.found = asyncio.get_running_loop().create_future()
        return self.found

    def hold(self, command: bytes) -> asyncio.Future[Tunnel]:
        """Keep back the next command with these bytes in it and what follows; the result is its tunnel."""
        self.holds = command
        self.found = asyncio.get_running_loop().create_future()
        return self.found

    def pieces(self, direction: Direction, data: bytes) -> Iterator[bytes]:
        most = self.splits[direction]
        if not most:
            if data:
                yield data
            return
        at = 0
        while at < len(data):
            size = self.rng.randint(1, most)
            yield data[at : at + size]
            at += size


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    if end.fileno() >= 0:
        # Before its number can be given to another: whoever waits for it is cancelled only later.
        asyncio.get_running_loop().remove_reader(end)
        asyncio.get_running_loop().remove_writer(end)
    end.close()


@asynccontextmanager
async def proxied(target: int, rng: random.Random | None = None) -> AsyncGenerator[Proxy, None]:
    """A proxy to a port of this machine, for as long as the block lasts."""
    proxy = Proxy(target, rng)
    proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
