"""`manage.py asyncq status`: every process and its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from channels_asyncq.clock import time_ns
from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.session.surveys import Answer

from .base import FAULT, FINE, Subcommand
from .output import duration, missing_as_json, wrapped

#: Seconds for which each process measures its messages per second.
INTERVAL = 0.5
_HEAD = ["PROCESS", "UP", "LINKS", "CHANS", "GROUPS", "QUEUED", "MSG/S", "DROPS", "TOLD"]
_SUMS = ("channels", "groups", "queued", "delivered", "per_second")

Figures = dict[str, Any]


class Status(Subcommand):
    """Shows every process, the sums, and who did not answer."""

    name = "status"
    help = "show every process and its figures, and who did not answer"
    can_watch = True
    asks_processes = True

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        interval = min(INTERVAL, options["timeout"] / 4)
        survey = await self.survey(layer, "status", options, interval=interval)
        processes = by_process(survey.answers)
        total = total_of(processes)
        found = {"processes": processes, "total": total, "missing": missing_as_json(survey.missing)}

        def lines() -> Iterator[str]:
            yield from self._lines(processes, total)
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing or not processes else FINE

    def _lines(self, processes: Sequence[Figures], total: Figures) -> Iterator[str]:
        if not processes:
            yield "No process has answered."
            return
        rows = [_row(each["process"], duration(each["seconds"]), _links_of(each), each) for each in processes]
        if len(rows) > 1:
            rows.append(_row(f"all {len(rows)}", "", "", total))
        head, *lines = self.output.table(_HEAD, rows, gap=" ")
        yield head
        for each, line in zip(processes, lines, strict=False):
            yield line
            for link in each["links"]:
                yield from wrapped(_of_link(link), "  ")
            for name in ("dropped", "told"):
                if each[name]:
                    lost = wrapped(f"{name}: {_reasons(each[name])}", "  ")
                    yield from map(self.output.style.WARNING, lost)
        yield from lines[len(processes) :]


def by_process(answers: Sequence[Answer]) -> list[Figures]:
    """Return the figures of each process: the sums over its event loops."""
    found: dict[str, Figures] = {}
    for answer in answers:
        body = answer.body
        figures = found.setdefault(
            answer.process,
            {
                "process": answer.process,
                "loops": 0,
                "seconds": 0.0,
                **dict.fromkeys(_SUMS, 0),
                "dropped": {},
                "told": {},
                "links": [],
            },
        )
        figures["loops"] += 1
        figures["seconds"] = max(figures["seconds"], body["seconds"])
        for name in _SUMS:
            figures[name] += body[name]
        for name in ("dropped", "told"):
            figures[name] = dict(Counter(figures[name]) + Counter(body[name]))
        figures["links"] += body["links"]
    return list(found.values())


def total_of(processes: Sequence[Figures]) -> Figures:
    """Return the sums over processes: of figures, and of each reason why messages were dropped or told."""
    total: Figures = {name: sum(each[name] for each in processes) for name in _SUMS}
    for name in ("dropped", "told"):
        total[name] = dict(sum((Counter(each[name]) for each in processes), Counter[str]()))
    return total


def _row(name: str, up: str, links: str, figures: Figures) -> list[object]:
    losses = [sum(figures[name].values()) for name in ("dropped", "told")]
    sums = [figures[name] for name in ("channels", "groups", "queued")]
    return [name, up, links, *sums, float(figures["per_second"]), *losses]


def _links_of(figures: Figures) -> str:
    links = figures["links"]
    return f"{sum(link['state'] == 'connected' for link in links)}/{len(links)}"


def _of_link(link: dict[str, Any]) -> str:
    """Return a line about one link: the server, and what there was about it."""
    text = str(link["address"])
    if link["state"] != "connected":
        text += f", {link['state']}: {link['reason']}" if link["reason"] else f", {link['state']}"
    if link["reconnected_at"] is not None:
        ago = duration(max(0.0, time_ns() / 1e9 - link["reconnected_at"]))
        text += f", last reconnect {ago} ago ({link['reconnects']} in all)"
    return text


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda each: -each[1])
    )
