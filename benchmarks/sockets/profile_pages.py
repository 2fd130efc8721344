"""The profiles, for people."""

from collections.abc import Iterator, Sequence

from ..report import number
from .pages import markdown_table
from .profiling import OWNERS, Profile

#: Functions with less than this share are left out.
LEAST_SHARE = 0.02


def owner_headings(profiles: Sequence[Profile]) -> tuple[str, ...]:
    return ("owner", *(profile.title for profile in profiles))


def owner_rows(profiles: Sequence[Profile]) -> Iterator[tuple[str, ...]]:
    """A row for each owner, and the whole: microseconds of one delivery or connect."""
    for owner in OWNERS:
        if any(profile.owners[owner] for profile in profiles):
            yield owner, *(number(profile.of_owner(owner)) for profile in profiles)
    yield "all", *(number(profile.cost) for profile in profiles)


def page(profiles: Sequence[Profile], conditions: str) -> str:
    """The owners, and the functions of each profile."""
    parts = ["# Where the CPU time of WebSockets goes", conditions, "## By owner"]
    parts.append("Microseconds of CPU time of the server for a message to one client, or for a connect.")
    parts.append(markdown_table(owner_headings(profiles), owner_rows(profiles), 1))
    for profile in profiles:
        rows = ((f"`{place}`", owner, number(cost)) for owner, place, cost in profile.costly(LEAST_SHARE))
        parts.append(f"## By function: {profile.title}")
        parts.append(
            f"Own time, {profile.samples:,} samples. Functions with less than {LEAST_SHARE:.0%} are left out."
        )
        parts.append(markdown_table(("function", "owner", "us"), rows, 2))
    return "\n\n".join(parts) + "\n"
