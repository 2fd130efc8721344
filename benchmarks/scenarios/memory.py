"""What open channels and groups weigh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..layers import Layer
from ..scenario import Measurement, Post, Scenario, Stage

CHANNELS = 10_000
MEASURED_FROM = 100


def resident() -> int:
    """Bytes of this process that are in memory; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def open_channels(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`CHANNELS` channels, each in a group of its own if that is asked for; tells the bytes of each."""
    before = 0
    for number in range(MEASURED_FROM + CHANNELS):
        if number == MEASURED_FROM:
            before = resident()
        channel = await layer.new_channel()
        if parameters["groups"]:
            await layer.group_add(f"room.{number}", channel)
    await post.tell(bytes=(resident() - before) / CHANNELS)


class Channels(Scenario):
    name = "memory-channels"
    title = f"{CHANNELS} open channels that nobody reads"
    unit = "bytes each"
    higher_is_better = False
    groups: ClassVar[bool] = False
    unable = {}  # noqa: RUF012
    parts = {"process": open_channels}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        result = await (await stage.enter("process", groups=self.groups)).hear()
        return Measurement(max(1.0, result["bytes"]))


class Groups(Channels):
    name = "memory-groups"
    title = f"{CHANNELS} channels, each in a group of its own"
    groups = True
