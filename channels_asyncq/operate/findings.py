"""What `check` finds: a line for each thing that it looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "State", "has_fault"]


class State(Enum):
    """How a thing is."""

    OK = "ok"
    #: It works now, and the remedy says what should be changed.
    WARNING = "warning"
    #: The layer cannot work so, or not as its pages promise.
    FAULT = "fault"
    #: The user may not see it.
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing at one server: what was found, and the remedy if there is something to mend."""

    server: str
    subject: str
    state: State
    text: str
    remedy: str = ""


def has_fault(findings: Iterable[Finding]) -> bool:
    """Tell whether one of them is a fault."""
    return any(finding.state is State.FAULT for finding in findings)
