"""`manage.py asyncq groups`: the groups of all processes, or the members of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.names import check_group_name
from channels_asyncq.session.surveys import Answer

from .base import FAULT, FINE, UNKNOWN, Subcommand, add_limit
from .channels import left_out, lines_of
from .output import WIDTH, missing_as_json, shortened

_WILDCARDS = re.compile(r"[*?\[]")


class Groups(Subcommand):
    """Shows groups by their members, or the members of one group."""

    name = "groups"
    help = "show the groups with the most members, or the members of one group"
    can_watch = True
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument(
            "pattern",
            nargs="?",
            default="*",
            metavar="PATTERN",
            help="for the names of groups, such as 'chat.*'; a name without a wildcard shows the members",
        )
        add_limit(parser, "groups or members")

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        pattern = options["pattern"]
        if _WILDCARDS.search(pattern):
            return await self._show_groups(layer, options, pattern)
        try:
            check_group_name(pattern)
        except TypeError as error:
            raise CommandError(str(error), returncode=UNKNOWN) from error
        return await self._show_members(layer, options, pattern)

    async def _show_groups(self, layer: AsyncQueueChannelLayer, options: dict[str, Any], pattern: str) -> int:
        limit = options["limit"]
        survey = await self.survey(layer, "groups", options, pattern=pattern, limit=limit)
        rates = await layer.message_rates()
        rows, is_complete = largest(layer, survey.answers, rates, limit)
        found = {
            "groups": rows,
            "is_complete": is_complete,
            "missing": missing_as_json(survey.missing),
        }

        def lines() -> Iterator[str]:
            table = [[row["group"], row["members"], row["processes"], row["per_second"]] for row in rows]
            yield from self.output.table(["GROUP", "MEMBERS", "PROCESSES", "MSG/S"], table)
            if not is_complete:
                yield f"and more: each process told its {limit} largest groups; --limit asks for more"
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing else FINE

    async def _show_members(self, layer: AsyncQueueChannelLayer, options: dict[str, Any], group: str) -> int:
        limit = options["limit"]
        survey = await self.survey(layer, "group", options, group=group, limit=limit)
        normal = await layer.normal_members(group)
        rows = [
            {**row, "process": answer.process} for answer in survey.answers for row in answer.body["members"]
        ]
        rows.sort(key=lambda row: (-row["waiting"], -(row["oldest"] or 0), row["channel"]))
        rows = rows[:limit]
        count = sum(answer.body["count"] for answer in survey.answers)
        found = {
            "group": group,
            "count": count,
            "members": rows,
            "normal_channels": normal,
            "missing": missing_as_json(survey.missing),
        }

        def lines() -> Iterator[str]:
            words = f": {count} members"
            yield shortened(group, WIDTH - len(words)) + words
            if rows:
                yield from lines_of(self.output.style.MIGRATE_HEADING, rows)
            yield from left_out(count, len(rows))
            for channel in normal:
                yield shortened(f"normal channel: {channel}", WIDTH)
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing else FINE


def largest(
    layer: AsyncQueueChannelLayer, answers: Iterable[Answer], rates: Mapping[str, float], limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return the groups with the most members in all processes, and whether these are all groups."""
    groups: dict[str, dict[str, Any]] = {}
    is_cut = False
    for answer in answers:
        is_cut = is_cut or answer.body["count"] > len(answer.body["groups"])
        for row in answer.body["groups"]:
            name = row["group"]
            group = groups.setdefault(name, {"group": name, "members": 0, "processes": set()})
            group["members"] += row["members"]
            group["processes"].add(answer.process)
    rows = sorted(groups.values(), key=lambda row: (-row["members"], row["group"]))[:limit]
    for row in rows:
        row["processes"] = len(row["processes"])
        # A group without a log, and one without messages, have no rate. Only the former's is not known.
        row["per_second"] = rates.get(row["group"], 0.0) if _is_logged(layer, row["group"]) else None
    return rows, not is_cut and len(groups) <= limit


def _is_logged(layer: AsyncQueueChannelLayer, group: str) -> bool:
    recovery = layer.options.recovery
    return recovery is not None and recovery.is_logged(group)
