"""What a command says: lines and tables for people, or JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.core.management.base import OutputWrapper
from django.core.management.color import Style, no_style

from channels_asyncq.session.surveys import Missing

#: The longest line of a table.
WIDTH = 80
_CLEAR = "\x1b[H\x1b[2J"


class Output:
    """
    Writes to the stream of a command. Colours are for terminals, and for `--force-color`.

    Args:
        as_json: whether `--json` was given. Then `show()` writes one line of JSON, and `line()` nothing.
    """

    def __init__(self, stream: OutputWrapper, style: Style, *, as_json: bool, has_colours: bool) -> None:
        self._stream = stream
        self.as_json = as_json
        self.style: Any = style if has_colours else no_style()

    def line(self, text: str = "") -> None:
        """Write a line for people."""
        if not self.as_json:
            self._stream.write(text)

    def show(self, found: Mapping[str, Any], lines: Callable[[], Iterable[str]]) -> None:
        """Write what was found, as JSON or in the lines for people."""
        if self.as_json:
            self._stream.write(json.dumps(found))
        else:
            for line in lines():
                self._stream.write(line)
        self._stream.flush()

    def begin_round(self) -> None:
        """Begin with an empty screen, before each round of `--watch`. In a pipe a line parts the rounds."""
        if self._stream.isatty():
            self._stream.write(_CLEAR, ending="")
        else:
            self.line()

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], gap: str = "  ") -> list[str]:
        """
        Return the lines of a table. The first column is on the left, the others are on the right.

        In a table that is too wide, texts of the first column are cut in the middle.
        """
        cells = [[_text(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        widths[0] = max(8, min(widths[0], WIDTH - sum(widths[1:]) - len(gap) * (len(widths) - 1)))
        lines = [
            gap.join(
                [shortened(first, widths[0]).ljust(widths[0]), *map(str.rjust, rest, widths[1:])]
            ).rstrip()
            for first, *rest in [list(head), *cells]
        ]
        return [self.style.MIGRATE_HEADING(lines[0]), *lines[1:]]

    def missing(self, missing: Sequence[Missing]) -> list[str]:
        """Return a line for each process, or event loop of one, that has not answered."""
        return [
            self.style.ERROR(line)
            for each in missing
            for line in wrapped(f"missing: {_name_of(each)} ({each.reason})")
        ]


def _name_of(missing: Missing) -> str:
    if missing.process or missing.session:
        return missing.process or f"session {missing.session}"
    return "one that the server does not name"


def missing_as_json(missing: Iterable[Missing]) -> list[dict[str, str]]:
    """Return those that have not answered, for `Output.show()`."""
    return [{"process": each.process, "session": each.session, "reason": each.reason} for each in missing]


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` characters: a longer one without its middle."""
    if len(text) <= width:
        return text
    end = (width - 2) // 2
    return f"{text[: width - 2 - end]}..{text[len(text) - end :]}"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return the lines of a text that may be long. All are indented, those behind the first a little more."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )


def duration(seconds: float) -> str:
    """Return seconds in the largest unit that fits: `42s`, `7m`, `3h`, `12d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.0f}s"


def _text(cell: object) -> str:
    """Return a cell as text: numbers with a fraction get one digit of it, and None is a dash."""
    if cell is None:
        return "-"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
