"""
A process that forks in an outage that it knows of. Its server comes back when the child is there.

Prints the error of a send after the fork in the parent, and the exit code of the child: 0 if it could send.
"""

import asyncio
import json
import os
import warnings
from dataclasses import replace

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.testing import EmbeddedServer

warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)


async def outcome(layer: AsyncQueueChannelLayer) -> str:
    """Send on a loop that has a session, and return the error's name."""
    channel = await layer.new_channel()
    try:
        await layer.group_send("room", {"type": "test.note", "from": channel})
    except LayerUnavailable as exc:
        return type(exc).__name__
    return ""


def main() -> None:
    with EmbeddedServer(external=False) as server:
        server.kill()
        layer = AsyncQueueChannelLayer(hosts=[server.url], send_timeout=0.5)
        asyncio.run(outcome(layer))
        # Who has to wait from now on does so for the server's return.
        layer.options = replace(layer.options, send_timeout=60)
        child = os.fork()
        if child == 0:
            os._exit(1 if asyncio.run(outcome(layer)) else 0)
        told = asyncio.run(outcome(layer))
        server.restart()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([told, code]))


if __name__ == "__main__":
    main()
