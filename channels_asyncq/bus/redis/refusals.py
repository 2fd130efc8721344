"""The meaning of the errors of one server: send the command again, or fail."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hiredis import ReplyError

from ...clock import monotonic
from ...exceptions import ChannelLayerError, LayerUnavailable
from ..resp.protocol import WireProtocol
from ..resp.remedies import Remedies
from ..resp.supervisor import SupervisedConnection
from .scripts import Scripts
from .watch import UNWRITABLE

# Errors of a server that answers and cannot serve now: the connection is given up, and made again.
_UNSERVING = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS")
# A command whose script is missing is sent again this many times, each time after loading the scripts.
_MOST_LOADS = 3
# Seconds until scripts that the server refused are loaded again.
_PAUSE_AFTER_REFUSAL = 1.0
# Redis 6 puts the line of the script before the words of an error.
_IN_SCRIPT = re.compile(r"@user_script: \d+: -([^\r\n]*)")


class Refusals:
    """Interprets the errors of commands, and loads the scripts again when the server has lost them."""

    def __init__(
        self, connection: SupervisedConnection, address: str, remedies: Remedies, scripts: Scripts
    ) -> None:
        self._connection = connection
        self._address = address
        self._remedies = remedies
        self._scripts = scripts
        # The number of replies to SCRIPT LOAD that are due; the last refusal, and when to try again after it.
        self._loading = 0
        self._load_refusal: BaseException | None = None
        self._load_again_at = 0.0

    def load_scripts(self, wire: WireProtocol) -> list[asyncio.Future[Any]]:
        """Send SCRIPT LOAD for each script; return the replies."""
        return [wire.call("SCRIPT", "LOAD", script.text) for script in self._scripts]

    def may_go_on(self, wire: WireProtocol, exc: ReplyError, loads: int = 0) -> bool:
        """
        Act on the error of a command that was not executed; return whether the command should be sent again.

        `loads` counts how often it was sent again because its script was missing.
        """
        if is_script_missing(exc):
            return loads < _MOST_LOADS and self._load(wire)
        text = _words_of(exc)
        if text.startswith(_UNSERVING):
            self._connection.give_up(wire, self._remedies.diagnose(text).reason)
            return True
        return False

    def _load(self, wire: WireProtocol) -> bool:
        """Load the scripts, unless that is under way; False if the server has just refused them."""
        if self._loading:
            return True
        if self._load_refusal is not None and monotonic() < self._load_again_at:
            return False
        self._load_refusal = None
        replies = self.load_scripts(wire)
        self._loading = len(replies)
        for reply in replies:
            reply.add_done_callback(self._loaded)
        return True

    def _loaded(self, reply: asyncio.Future[Any]) -> None:
        self._loading -= 1
        if isinstance(reply.exception(), ReplyError):
            self._load_refusal = reply.exception()
            self._load_again_at = monotonic() + _PAUSE_AFTER_REFUSAL

    def error_for(self, exc: BaseException) -> ChannelLayerError:
        """Return the error for the caller of a refused command."""
        text = _words_of(exc)
        if is_script_missing(exc):
            if self._load_refusal is not None:
                text += (
                    f"; it cannot be loaded: {self._load_refusal} (the user needs the command script|load)"
                )
            else:
                text += (
                    f"; it was missing again after {_MOST_LOADS} times of loading it (does something run SCRIPT "
                    "FLUSH all the time, or does a proxy lead to several servers?)"
                )
        if text.startswith((*UNWRITABLE, "BUSY")):
            return LayerUnavailable(self._address, text, is_refusal=True)
        return ChannelLayerError(f"{self._address} refused: {self._remedies.diagnose(text).reason}")


def is_script_missing(exc: BaseException) -> bool:
    """Tell whether the server does not have the script, by its error."""
    return str(exc).startswith("NOSCRIPT")


def _words_of(exc: BaseException) -> str:
    """Return the words of the server, without the line of the script."""
    text = str(exc)
    found = _IN_SCRIPT.search(text)
    return text if found is None else found[1]
