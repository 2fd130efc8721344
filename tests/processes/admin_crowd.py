"""
A process with members of the group `lobby`, and a channel in `slow.readers` that is full.

The argument is the number of members. SIGUSR1 adds another one. It prints how many there are.
"""

import asyncio
import os
import signal
import sys

import django

from channels_asyncq import get_layer

#: More than `capacity` of the settings: the rest is dropped.
MESSAGES = 5


async def main(members: int) -> None:
    layer = get_layer()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    slow = await layer.new_channel("slow")
    await layer.group_add("slow.readers", slow)
    for number in range(MESSAGES):
        await layer.group_send("slow.readers", {"type": "news", "number": number})
    for _ in range(members):
        await layer.group_add("lobby", await layer.new_channel())
    while True:
        print(f"members: {members}", flush=True)
        await asked.wait()
        asked.clear()
        await layer.group_add("lobby", await layer.new_channel())
        members += 1


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.admin_settings")
    django.setup()
    asyncio.run(main(int(sys.argv[1])))
