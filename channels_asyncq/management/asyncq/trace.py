"""`manage.py asyncq trace`: the last messages to a group or channel, and what became of them."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.local.counters import MOST_DROPS
from channels_asyncq.names import check_channel_name, check_group_name, owner_of
from channels_asyncq.session.logged import LoggedMessage
from channels_asyncq.session.surveys import Survey

from .base import FAULT, FINE, UNKNOWN, Subcommand, positive
from .output import WIDTH, missing_as_json, shortened

#: The most messages, where `--last` gives no other number.
LAST = 20
#: The most groups of a channel whose logs are read.
MOST_GROUPS = 20
DELIVERED = "delivered"
WAITING = "waiting"
EXCLUDED = "excluded"
#: The most that can be asked for: an answer has a place for them.
MOST = 1000
# The server's times have no smaller parts.
_MILLISECOND = 0.001
_INDENT = " " * 25

Row = dict[str, Any]


class Trace(Subcommand):
    """Shows the last messages to a group or channel, and what became of them."""

    name = "trace"
    help = "show the last messages to a group or channel, and why some of them were dropped"
    asks_processes = True

    @classmethod
    def add_arguments(cls, parser: CommandParser) -> None:
        parser.add_argument("target", metavar="GROUP|CHANNEL", help="a group, or the full name of a channel")
        parser.add_argument(
            "--last",
            type=_last,
            default=LAST,
            metavar="NUMBER",
            help=f"the most messages that are shown; {LAST} if it is not given",
        )

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        target, last = options["target"], options["last"]
        is_channel = "!" in target
        try:
            (check_channel_name if is_channel else check_group_name)(target)
        except TypeError as error:
            raise CommandError(str(error), returncode=UNKNOWN) from error
        survey = await self.survey(layer, "trace", options, name=target, limit=last)
        if is_channel:
            return await self._show_channel(layer, survey, target, last)
        return await self._show_group(layer, survey, target, last)

    # Groups

    async def _show_group(self, layer: AsyncQueueChannelLayer, survey: Survey, group: str, last: int) -> int:
        is_logged = layer.options.recovery is not None and layer.options.recovery.is_logged(group)
        messages = [_row(each, survey) for each in await layer.logged_messages(group, last)]
        ids = {_key(row): row["id"] for row in messages}
        drops = [
            {**drop, "id": ids.get(_key(drop)), "process": answer.process}
            for answer in survey.answers
            for drop in answer.body["dropped"]
        ]
        drops.sort(key=lambda drop: drop["at"])
        drops = drops[-last:]
        found = {
            "group": group,
            "is_logged": is_logged,
            "messages": messages,
            "dropped": drops,
            "missing": missing_as_json(survey.missing),
        }

        def lines() -> Iterator[str]:
            if is_logged:
                yield f"{group}: {len(messages)} messages, the last ones in its log"
            else:
                yield f"{group}: it is in no log (`recovery`), so only drops are known"
            if messages:
                yield self._heading("BYTES", "TYPE, ID AND SENDER")
            for row in messages:
                yield from _lines_of(row, _size(row), _type(row), f"{row['id']} from {row['from']}")
            if drops:
                yield self._heading("DROPPED", "CHANNEL, ID AND PROCESS")
            for drop in drops:
                about = f"{drop['id'] or 'not in the log'}, {drop['process']}"
                yield from _lines_of(drop, _reason(drop), drop["channel"], about)
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing else FINE

    def _heading(self, second: str, third: str) -> str:
        heading: str = self.output.style.MIGRATE_HEADING(f"{'TIME':<12}  {second:>9}  {third}")
        return heading

    # Channels

    async def _show_channel(
        self, layer: AsyncQueueChannelLayer, survey: Survey, channel: str, last: int
    ) -> int:
        owner = next((answer for answer in survey.answers if answer.body["is_owner"]), None)
        if owner is None and owner_of(channel) not in {each.session for each in survey.missing}:
            raise CommandError(
                f"no process has channel {channel!r}: its process has ended, or it uses another server or prefix"
            )
        body: Mapping[str, Any] = {} if owner is None else owner.body
        state: Mapping[str, Any] = body.get("channel") or {}
        rows = await self._messages(layer, survey, channel, body, last)
        since = body.get("drops_since")
        found = {
            "channel": channel,
            "process": None if owner is None else owner.process,
            "is_closed": body.get("is_closed"),
            "waiting": state.get("waiting"),
            "capacity": state.get("capacity"),
            "reader": state.get("reader"),
            "groups": [row["group"] for row in state.get("groups", ())],
            "messages": rows,
            # Nobody has noted this of a message: it is what remains.
            "inferred": [DELIVERED],
            "drops_since": since,
            "told": body.get("told", {}),
            "missing": missing_as_json(survey.missing),
        }

        def lines() -> Iterator[str]:
            yield channel
            if owner is not None:
                yield f"{_state_of(state, body)}, in {owner.process}"
            if rows:
                yield self._heading("BYTES", "WHAT BECAME OF IT, TYPE, TARGET AND SENDER")
            for row in rows:
                yield from _lines_of(row, _size(row), f"{row['state']}: {_type(row)}", _about(row, channel))
            if owner is not None:
                yield from _inferred(since, body["told"])
            yield from self.output.missing(survey.missing)

        self.output.show(found, lines)
        return FAULT if survey.missing else FINE

    async def _messages(
        self,
        layer: AsyncQueueChannelLayer,
        survey: Survey,
        channel: str,
        body: Mapping[str, Any],
        last: int,
    ) -> list[Row]:
        """Return the last messages to a channel and its groups, and what became of each."""
        state: Mapping[str, Any] = body.get("channel") or {}
        names = set(state.get("names", ()))
        known = {
            _key(row): row
            for row in [
                *({**row, "state": f"dropped, {_reason(row)}"} for row in body.get("dropped", ())),
                *({**row, "state": WAITING} for row in state.get("messages", ())),
            ]
        }
        rows: list[Row] = []
        joined = {row["group"]: row["joined"] for row in state.get("groups", ())[:MOST_GROUPS]}
        for target in [channel, *joined] if body else []:
            for message in await layer.logged_messages(target, last):
                row = _row(message, survey)
                noted = known.pop(_key(row), None)
                if noted is not None:
                    rows.append({**row, "state": noted["state"]})
                elif message.at + _MILLISECOND > joined.get(target, 0.0):
                    is_excluded = not names.isdisjoint(message.excluded)
                    rows.append({**row, "state": EXCLUDED if is_excluded else DELIVERED})
        processes = _processes(survey)
        # In no log, or not any more.
        rows += [{"id": None, "from": processes.get(row["sender"]), **row} for row in known.values()]
        rows.sort(key=lambda row: row["at"])
        return rows[-last:]


def _last(text: str) -> int:
    number = positive(text)
    if number > MOST:
        raise ArgumentTypeError(f"{text} is more than {MOST}")
    return number


def _processes(survey: Survey) -> dict[str, str]:
    """Return the processes of the sessions that are there."""
    answered = {each.session: each.process for each in survey.answers}
    return answered | {each.session: each.process for each in survey.missing if each.process}


def _row(message: LoggedMessage, survey: Survey) -> Row:
    return {
        "id": message.id,
        "at": message.at,
        "target": message.target,
        "sender": message.sender,
        "number": message.number,
        "from": _processes(survey).get(message.sender),
        "size": message.size,
        "type": message.type,
    }


def _key(row: Mapping[str, Any]) -> object:
    """Return what tells a message from others. What never left its process has no number."""
    return (row["sender"], row["number"], row["target"]) if row["number"] else id(row)


# The lines for people


def _lines_of(row: Row, second: str, third: str, about: str) -> Iterator[str]:
    time = datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S.%f")[:-3]
    yield f"{time:<12}  {second:>9}  {shortened(third, WIDTH - len(_INDENT))}"
    yield _INDENT + shortened(about, WIDTH - len(_INDENT))


def _size(row: Row) -> str:
    return "-" if row["size"] is None else str(row["size"])


def _type(row: Row) -> str:
    return row["type"] or ("a message" if row.get("count", 1) == 1 else f"{row['count']} messages")


def _reason(row: Row) -> str:
    return str(row["reason"])


def _about(row: Row, channel: str) -> str:
    target = "" if row["target"] in ("", channel) else f"to {row['target']}, "
    if row["sender"] is None:
        return f"{target}from unknown senders"
    return f"{target}from {row['from'] or row['sender']}"


def _state_of(state: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    if not state:
        return "closed" if body["is_closed"] else "not open"
    return f"{state['waiting']} of {state['capacity']} places taken, read by {state['reader']}"


def _inferred(since: float | None, told: Mapping[str, int]) -> Iterator[str]:
    begin = "" if since is None else f", from {datetime.fromtimestamp(since):%H:%M:%S} on"
    yield f'"{DELIVERED}" is inferred: the message does not wait, and is not among the last'
    yield f"{MOST_DROPS} drops, which its event loop remembers{begin}"
    for reason, count in sorted(told.items()):
        yield f"{count} channels of its event loop missed messages that did not arrive: {reason}"
