"""The process of the clients: many browsers that come, are cut off, and come back."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..process import Line
from .counting import Ledger, Visit
from .links import LINKS, Link

#: A client that has not caught up after this many seconds tries again, as a page with a watchdog would.
PATIENCE = 40.0
#: Connections that are opened in one second when all clients come for the first time.
RAMP = 250.0


@dataclass(frozen=True, slots=True)
class Habits:
    """
    What the clients of a run do.

    `stay` seconds after each connect a client is cut off (None: never), and is away for `away` seconds. With
    `budget` it is cut off after so many bytes instead. Ranges are uniform. With `gathers` a client that the
    server left does not come back before it is told.
    """

    stay: tuple[float, float] | None = None
    away: float = 2.0
    budget: tuple[int, int] | None = None
    gathers: bool = False


class Client:
    """
    One browser: implements `links.Visitor`.

    | state | `_link` | `_timer` |
    |---|---|---|
    | away | None | comes back; None if it waits to be told, or stays away |
    | connecting, replaying | set | gives up |
    | live | set, `is_live` | is cut off; None if nobody cuts it |
    """

    def __init__(self, crowd: "Crowd", number: int, rooms: Sequence[str]) -> None:
        self._crowd = crowd
        self._random = random.Random(f"{crowd.seed} {number}")
        self._path = f"{crowd.query}group={','.join(rooms)}"
        self.ledgers = {room: Ledger() for room in rooms}
        self.resets: list[tuple[float, str]] = []
        self.is_live = False
        self._position = ""
        self._wait: float | None = None
        self._came = 0.0
        self._port = 0
        self._is_first = True
        self._link: Link | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Coming and going

    def come(self) -> None:
        """Connect to one of the servers."""
        self._timer = None
        if self._link is None and not self._crowd.is_over:
            self._port = self._random.choice(self._crowd.ports)
            bytes_ = self._crowd.habits.budget
            budget = self._random.randint(*bytes_) if bytes_ and not self._crowd.is_settling else None
            link = self._link = self._crowd.link(self, self._path, self._position, budget)
            self._came = time.monotonic()
            self._after(PATIENCE, self._give_up)
            self._crowd.connect(link, self._port, self)

    def _cut(self) -> None:
        if not self._crowd.is_settling:
            self._crowd.counts["cut"] += 1
            self._leave()
            self._after(self._crowd.habits.away, self.come)

    def _give_up(self) -> None:
        self._crowd.counts["given up"] += 1
        self._leave()
        self._after(0.1, self.come)

    def _leave(self) -> None:
        link, self._link = self._link, None
        if self.is_live:
            self.is_live = False
            self._crowd.note_live(-1)
        self._stop_timer()
        if link is not None:
            link.cut()

    def ended(self, link: Link, why: str) -> None:
        if link is not self._link:
            return
        self._crowd.counts[why] += 1
        was_live = self.is_live
        self._leave()
        if self._crowd.habits.gathers and was_live:
            return
        if why == "cut":
            self._after(self._crowd.habits.away, self.come)
        else:
            # Not all in the same moment: EventSource waits for what `retry:` says, with or without jitter.
            wait = self._crowd.habits.away if self._wait is None else self._wait
            self._after(wait * self._random.uniform(0.5, 1.0), self.come)

    def _after(self, seconds: float, call: Any) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the connection says

    def at(self, position: str) -> None:
        self._position = position

    def message(self, message: dict[str, Any]) -> None:
        self.ledgers[message["room"]].take(message["n"])

    def caught_up(self) -> None:
        if self.is_live:
            return
        self.is_live = True
        now = time.monotonic()
        if not self._is_first:
            self._crowd.visits.append(Visit(self._came, now, self._port))
        self._is_first = False
        self._stop_timer()
        if self._crowd.habits.stay is not None:
            self._after(
                max(0.0, self._came + self._random.uniform(*self._crowd.habits.stay) - now), self._cut
            )
        self._crowd.note_live(1)

    def reset(self, reason: str, groups: list[str] | None) -> None:
        now = time.monotonic()
        self.resets.append((now, reason))
        for room in self.ledgers if groups is None else groups:
            self.ledgers[room].tell(now)

    def wait(self, seconds: float) -> None:
        self._wait = seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "ledgers": {room: ledger.as_json() for room, ledger in self.ledgers.items()},
            "resets": self.resets,
            "is_live": self.is_live,
        }


class Crowd:
    """All clients of this process, and what they share."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.seed: int = order["seed"]
        self.query: str = order["query"]
        self.ports: list[int] = order["ports"]
        self.habits = Habits(**order["habits"])
        self.link = LINKS[order["kind"]]
        self.visits: list[Visit] = []
        self.counts: Counter[str] = Counter()
        self.live = 0
        self.is_settling = False
        self.is_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.clients = [Client(self, number, rooms) for number, rooms in order["clients"]]

    def connect(self, link: Link, port: int, client: Client) -> None:
        """Open the connection of a client; it is told if that fails."""
        task = asyncio.create_task(self._connect(link, port, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, link: Link, port: int, client: Client) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: link, "127.0.0.1", port)
        except OSError as error:
            client.ended(link, type(error).__name__)

    def note_live(self, change: int) -> None:
        """A client is live now (1), or no more (-1)."""
        self.live += change
        self._changed.set()

    def come_all(self, *, at_once: bool) -> None:
        for number, client in enumerate(self.clients):
            if at_once:
                client.come()
            else:
                asyncio.get_running_loop().call_later(number / RAMP, client.come)

    async def until(self, live: int, patience: float) -> int:
        """Wait until so many clients are live; return how many are, also if time runs out."""
        try:
            async with asyncio.timeout(patience):
                while self.live != live:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.live

    async def until_cut(self, number: int) -> None:
        """Wait for so many cuts."""
        while self.counts["cut"] < number:
            self._changed.clear()
            await self._changed.wait()

    def report(self) -> dict[str, Any]:
        return {
            "clients": [client.as_json() for client in self.clients],
            "visits": self.visits,
            "counts": self.counts,
            "cpu": time.process_time(),
        }


async def obey(crowd: Crowd, line: Line) -> None:
    """Do what the conductor says, one word after the other, and answer each."""
    while True:
        news = await line.hear()
        word = news["word"]
        if word == "come":
            crowd.come_all(at_once=news["at_once"])
            await line.tell(live=await crowd.until(len(crowd.clients), news["patience"]), at=time.monotonic())
        elif word == "gone":
            await line.tell(live=await crowd.until(0, news["patience"]))
        elif word == "cuts":
            await crowd.until_cut(news["number"])
            await line.tell(**crowd.counts)
        elif word == "settle":
            # Nobody is cut off any more; the ones that are away come back.
            crowd.is_settling = True
            await line.tell(live=await crowd.until(len(crowd.clients), news["patience"]))
        elif word == "report":
            crowd.is_over = True
            await line.tell(**crowd.report())
            return


async def main(order: dict[str, Any]) -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await obey(Crowd(order), Line(reader))
    finally:
        transport.close()


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        order = json.load(file)
    try:
        # The clients share two cores with what is measured.
        run = import_module("uvloop").run
    except ImportError:
        run = asyncio.run
    run(main(order))
