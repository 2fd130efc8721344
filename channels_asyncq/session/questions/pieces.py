"""What a question may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...bus.base import Bus
from ...clock import monotonic
from ...local.hub import Hub
from ...names import Topics
from ...settings.options import Options
from ..drops import DropLog
from ..readers import QueueReaders
from ..views import Views


@dataclass(frozen=True, slots=True)
class Pieces:
    """The parts of one session. Questions read them, on the session's loop, and change nothing."""

    options: Options
    session_id: str
    topics: Topics
    hub: Hub
    bus: Bus
    readers: QueueReaders
    drops: DropLog
    views: Views
    #: When the session began, by `monotonic()`.
    began: float = field(default_factory=monotonic)
