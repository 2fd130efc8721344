"""`manage.py asyncq check`: whether this machine can use the servers as they are configured."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from channels_asyncq.layer import AsyncQueueChannelLayer
from channels_asyncq.operate.checking import check
from channels_asyncq.operate.findings import Finding, State, has_fault

from .base import FAULT, FINE, Subcommand
from .output import WIDTH

#: The columns of a line: how it is, and what it is about.
COLUMNS = "  {:<8} {:<9} "
_INDENT = " " * len(COLUMNS.format("", ""))


class Check(Subcommand):
    """Shows what was found at each server, and the remedies."""

    name = "check"
    help = "check whether this machine can use the servers as configured, and name the remedies"
    needs_server = False

    async def run(self, layer: AsyncQueueChannelLayer, options: dict[str, Any]) -> int:
        findings: list[Finding] = []
        server = ""
        async for finding in check(layer):
            # At once: a server that is silent takes a while.
            if finding.server != server:
                server = finding.server
                self.output.line(server)
            for line in self._lines(finding):
                self.output.line(line)
            findings.append(finding)
        is_faulty = has_fault(findings)
        self.output.show({"ok": not is_faulty, "findings": [_as_json(each) for each in findings]}, list)
        return FAULT if is_faulty else FINE

    def _lines(self, finding: Finding) -> Iterator[str]:
        colour = {
            State.OK: self.output.style.SUCCESS,
            State.WARNING: self.output.style.WARNING,
            State.FAULT: self.output.style.ERROR,
            State.UNSEEN: self.output.style.WARNING,
        }[finding.state]
        first, *rest = textwrap.wrap(finding.text, WIDTH - len(_INDENT)) or [""]
        head = COLUMNS.format(finding.state.value, finding.subject)
        state = finding.state.value
        yield head.replace(state, colour(state), 1) + first
        yield from (_INDENT + line for line in rest)
        for number, line in enumerate(textwrap.wrap(finding.remedy, WIDTH - len(_INDENT) - 3)):
            yield f"{_INDENT}{'   ' if number else '-> '}{line}"


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "server": finding.server,
        "subject": finding.subject,
        "state": finding.state.value,
        "text": finding.text,
        "remedy": finding.remedy,
    }
