"""
The questions of a survey: what a session tells of itself when somebody asks.

To add one, write a module here with an `async def` as `Question` says, and give it a name in the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .channels import channels
from .groups import group, groups
from .metrics import metrics
from .pieces import Pieces
from .readers import readers
from .status import status
from .takers import takers
from .trace import trace

#: Answers a question: a dict of plain values (str, int, float, bool, None, and lists and dicts of them). It takes
#: turns with the loop (`slices.Slice`) where it walks through all channels or groups, and has at most
#: `arguments["limit"]` rows, so that an answer that would be too large can be asked for again with fewer.
Question = Callable[[Pieces, Mapping[str, Any]], Awaitable[dict[str, Any]]]

QUESTIONS: Mapping[str, Question] = {
    "metrics": metrics,
    "channels": channels,
    "group": group,
    "groups": groups,
    "status": status,
    "trace": trace,
    "readers": readers,
    "takers": takers,
}
