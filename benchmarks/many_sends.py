"""`python -m benchmarks.many_sends`: one send after the other, and many at once, from async and sync code."""

import argparse
import asyncio
import statistics
import time

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.testing import EmbeddedServer

from .scenario import CHAT_MESSAGE

SENDS = 6400
WARM_UP = 200
FROM_SYNC = 100
CALLS = 30


async def at_once(layer: AsyncQueueChannelLayer, count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(layer.group_send("room", dict(CHAT_MESSAGE)))


async def from_async_code(url: str) -> dict[str, float]:
    """Return sends per second in an event loop that lasts and has connections of its own."""
    layer = AsyncQueueChannelLayer(hosts=[url])
    await layer.new_channel()
    for _ in range(WARM_UP):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    rates = {}
    began = time.perf_counter()
    for _ in range(SENDS):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    rates["async, one after the other"] = SENDS / (time.perf_counter() - began)
    for count in (32, 100):
        began = time.perf_counter()
        for _ in range(SENDS // count):
            await at_once(layer, count)
        rates[f"async, {count} at once"] = SENDS // count * count / (time.perf_counter() - began)
    await layer.close()
    return rates


def from_sync_code(url: str) -> dict[str, float]:
    """Return sends per second on a thread without an event loop, by the medians of `CALLS` calls in turn."""
    layer = AsyncQueueChannelLayer(hosts=[url])
    one_by_one, together = [], []
    for _ in range(CALLS):
        began = time.perf_counter()
        for _ in range(FROM_SYNC):
            sync.group_send("room", dict(CHAT_MESSAGE), layer)
        middle = time.perf_counter()
        async_to_sync(at_once)(layer, FROM_SYNC)
        one_by_one.append(middle - began)
        together.append(time.perf_counter() - middle)
    layer.close_from_thread()
    return {
        f"sync, {FROM_SYNC} calls of sync.group_send": FROM_SYNC / statistics.median(one_by_one),
        f"sync, {FROM_SYNC} at once in one async_to_sync call": FROM_SYNC / statistics.median(together),
    }


def main() -> None:
    command = argparse.ArgumentParser(prog="python -m benchmarks.many_sends", description=__doc__)
    command.add_argument("--rounds", type=int, default=5, help="rounds of all in turn (default: %(default)s)")
    arguments = command.parse_args()
    with EmbeddedServer(external=False) as server:
        rounds = [
            asyncio.run(from_async_code(server.url)) | from_sync_code(server.url)
            for _ in range(arguments.rounds)
        ]
    medians = {name: statistics.median(rates[name] for rates in rounds) for name in rounds[0]}
    first = next(iter(medians.values()))
    for name, middle in medians.items():
        rates = [each[name] for each in rounds]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(f"{name}: {middle / first:.1f} times the first, {middle:,.0f} sends/s ({spread})")


if __name__ == "__main__":
    main()
