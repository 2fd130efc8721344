"""What the page shows of a layer, asked for once for all who look at the same time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from channels_asyncq.clock import monotonic, time_ns
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.management.asyncq.base import LIMIT
from channels_asyncq.management.asyncq.channels import fullest
from channels_asyncq.management.asyncq.groups import largest
from channels_asyncq.management.asyncq.output import duration
from channels_asyncq.management.asyncq.status import INTERVAL, by_process, total_of
from channels_asyncq.session.forks import running_relay
from channels_asyncq.session.surveys import Missing, Survey
from channels_asyncq.tasks import all_of

#: Seconds within which processes must answer.
TIMEOUT = 2.0
#: Seconds for which a look serves others too.
FRESH = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """The figures of all processes at one time: `ended`, by `monotonic()`."""

    ended: float
    processes: Sequence[dict[str, Any]]
    total: dict[str, Any]
    missing: Sequence[Missing]
    groups: Sequence[dict[str, Any]]
    #: Whether `groups` has all there are.
    has_all_groups: bool
    channels: Sequence[dict[str, Any]]
    #: In how many channels messages wait.
    waiting: int


# The last look at each layer, made on the relay's loop, and used there only.
_looks: weakref.WeakKeyDictionary[AsyncQueueChannelLayer, asyncio.Task[Look]] = weakref.WeakKeyDictionary()


def look_at(layer: AsyncQueueChannelLayer) -> Look:
    """
    Return the figures of all processes that use the layer. For threads without an event loop, of any server.

    Blocks while the processes answer, for at most `TIMEOUT`, and while the server counts messages. Where the
    server cannot be reached, that takes up to `send_timeout`.

    Raises:
        LayerUnavailable, DeliveryUnknown: the server cannot be reached.
    """
    return running_relay().wait(_shared(layer))


async def _shared(layer: AsyncQueueChannelLayer) -> Look:
    """Return what another caller has just got or is about to get, else look."""
    loop = asyncio.get_running_loop()
    task = _looks.get(layer)
    if task is None or task.get_loop() is not loop or (task.done() and not _is_fresh(task)):
        task = _looks[layer] = loop.create_task(_look(layer), name="channels_asyncq looking for the admin")
    return await asyncio.shield(task)


def _is_fresh(task: asyncio.Task[Look]) -> bool:
    if task.cancelled() or task.exception() is not None:
        return False
    return monotonic() - task.result().ended < FRESH


async def _look(layer: AsyncQueueChannelLayer) -> Look:
    status, groups, channels = await all_of(
        [
            layer.survey("status", TIMEOUT, interval=INTERVAL),
            layer.survey("groups", TIMEOUT, limit=LIMIT),
            layer.survey("channels", TIMEOUT, limit=LIMIT, slow=True),
        ]
    )
    rates = await layer.message_rates()
    processes = by_process(status.answers)
    now = time_ns() / 1e9
    for each in processes:
        each["up"] = duration(each["seconds"])
        for link in each["links"]:
            if link["reconnected_at"] is not None:
                link["ago"] = duration(max(0.0, now - link["reconnected_at"]))
    rows, has_all_groups = largest(layer, groups.answers, rates, LIMIT)
    return Look(
        ended=monotonic(),
        processes=processes,
        total=total_of(processes),
        missing=_missing(status, groups, channels),
        groups=rows,
        has_all_groups=has_all_groups,
        channels=fullest(channels.answers, LIMIT),
        waiting=sum(answer.body["count"] for answer in channels.answers),
    )


def _missing(*surveys: Survey) -> list[Missing]:
    """Return who has not answered one of the questions, each once."""
    return list(dict.fromkeys(missing for survey in surveys for missing in survey.missing))
