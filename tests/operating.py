"""Runs `manage.py asyncq`, and holds what it says against docs/operating.md."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from io import StringIO
from typing import Any, NamedTuple

from django.core.management import call_command

#: What differs from run to run, and what it is called in a shape.
_VARIABLE = (
    (r"(?:redis|rediss|unix)(?:\+cluster)?://\S*?(?=,|$)", "URL"),
    (r"[\w.-]+:\d+:(\w+)", r"PROCESS:\1"),
    (r"[\w.]+\.(\w+),", r"MODULE.\1,"),
    (r"\w*\.?[0-9a-f]{16}!\S+", "CHANNEL"),
    (r"\d+-\d+", "ID"),
    (r"\d\d:\d\d:\d\d(?:\.\d+)?", "TIME"),
    (r"\d+(?:\.\d+)?(?:s|ms|m|h|d)", "DURATION"),
    (r"\d+\.\d+", "FLOAT"),
)


class Said(NamedTuple):
    """What a command said, and its exit status."""

    text: str
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


async def asyncq(*arguments: str) -> Said:
    """Run a command in this process, in a thread: on the layer that is installed as the default one."""
    output = StringIO()

    def run() -> int:
        try:
            call_command("asyncq", *arguments, stdout=output, no_color=True)
        except SystemExit as end:
            return int(str(end.code))
        return 0

    status = await asyncio.to_thread(run)
    said = Said(output.getvalue(), status)
    if "--json" not in arguments:
        assert all(len(line) <= 80 for line in said.lines), said.text
    return said


def transcript(text: str) -> tuple[list[str], str]:
    """Return the arguments of `python manage.py asyncq` in a block of the page, and the output below it."""
    command, _, output = text.partition("\n")
    prompt, python, program, name, *arguments = shlex.split(command)
    assert (prompt, python, program, name) == ("$", "python", "manage.py", "asyncq"), command
    return arguments, output


def shape(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run: names, times and addresses."""
    return [_shape_of(line) for line in text.splitlines()]


def _shape_of(line: str) -> str:
    words = []
    for word in line.split():
        for pattern, name in _VARIABLE:
            changed = re.fullmatch(rf"(\(?){pattern}([,):]*)", word)
            if changed is not None:
                word = re.sub(pattern, name, word)
                break
        words.append(word)
    indent = "  " if line.startswith(" ") and not words[0][0].isdigit() else ""
    return indent + " ".join(words)
