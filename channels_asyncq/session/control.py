"""What sessions ask each other to do, and what of it is done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

# Of so many memberships that others asked for last it is known what was done.
_MOST_ASKED = 10_000


@dataclass(slots=True)
class Request:
    """What other sessions were asked to do: the future is done when `expected` of them have confirmed."""

    done: asyncio.Future[None]
    expected: int | None = None
    confirmed: int = 0

    def look(self) -> None:
        if self.expected is not None and self.confirmed >= self.expected and not self.done.done():
            self.done.set_result(None)


@dataclass(slots=True)
class Latest:
    """The highest number of a request that was done, and of one that is under way."""

    done: int = 0
    under_way: int = 0


class Asked:
    """
    What other sessions asked this one to do: a repeat that comes late must not be done after its opposite.

    A session numbers its requests in the order of its calls. So of each session that asks, group and channel the
    highest numbers are all that counts. The last 10,000 of these are remembered.

    number               | what was or is done            | what becomes of the request
    ---------------------|--------------------------------|------------------------------------------------
    up to `done`         | this request, or a later one   | it is confirmed
    up to `under_way`    | this request, or a later one   | nothing: it is asked again if that one fails
    higher               | nothing                        | it is done
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str, str], Latest] = {}

    def was_done(self, what: tuple[str, str, str], number: int) -> bool:
        latest = self._latest.get(what)
        return latest is not None and number <= latest.done

    def begin(self, what: tuple[str, str, str], number: int) -> bool:
        """Note that a request is under way; False if it, or a later one, is already."""
        latest = self._latest.pop(what, None) or Latest()
        self._latest[what] = latest  # as the last
        if len(self._latest) > _MOST_ASKED:
            del self._latest[next(iter(self._latest))]
        if number <= latest.under_way:
            return False
        latest.under_way = number
        return True

    def end(self, what: tuple[str, str, str], number: int, *, is_done: bool) -> None:
        latest = self._latest.get(what)
        if latest is None:
            return
        if number == latest.under_way:
            latest.under_way = 0
        if is_done:
            latest.done = max(latest.done, number)
