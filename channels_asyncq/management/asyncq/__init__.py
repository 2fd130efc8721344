"""
The commands of `manage.py asyncq`, a module for each.

To add one, write a module with a `Subcommand`, and put the class into the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import Subcommand
from .drain import Drain
from .status import Status

COMMANDS: Mapping[str, type[Subcommand]] = {each.name: each for each in (Status, Drain)}
