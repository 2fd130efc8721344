"""One part in a process of its own: started by the runner, JSON lines on stdin and stdout."""

import asyncio
import json
import logging
import sys
from typing import Any, Protocol, runtime_checkable

from .layers import CONTENDERS
from .scenarios import load


@runtime_checkable
class Closable(Protocol):
    """A layer that can be closed."""

    async def close(self) -> None: ...


class Line:
    """The part's end of the post."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def tell(self, **news: Any) -> None:
        sys.stdout.write(json.dumps(news) + "\n")
        sys.stdout.flush()

    async def hear(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise EOFError("the runner has gone")
        news: dict[str, Any] = json.loads(line)
        return news


async def main(order: dict[str, Any]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    layer = CONTENDERS[order["layer"]].make(order["config"])
    part = load()[order["scenario"]].parts[order["part"]]
    try:
        await part(layer, Line(reader), order["parameters"])
        # Beyond the specification: who has it may still hold what was sent.
        if isinstance(layer, Closable):
            await layer.close()
    finally:
        transport.close()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    asyncio.run(main(json.loads(sys.argv[1])))
