"""
The commands of `manage.py asyncq`, a module for each.

To add one, write a module with a `Subcommand`, and put the class into the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import Subcommand
from .channels import Channels
from .check import Check
from .drain import Drain
from .flush import Flush
from .group_send import GroupSend
from .groups import Groups
from .listen import Listen
from .logs import Logs
from .metrics import Metrics
from .queues import Queues
from .send import Send
from .status import Status
from .trace import Trace

COMMANDS: Mapping[str, type[Subcommand]] = {
    each.name: each
    for each in (
        *(Check, Status, Groups, Channels, Queues, Logs, Trace, Metrics),
        *(Send, GroupSend, Listen, Flush, Drain),
    )
}
