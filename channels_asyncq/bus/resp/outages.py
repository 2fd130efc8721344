"""The outages of hosts: reports that the connections of a process share."""

from __future__ import annotations

from collections import defaultdict

from ... import threads
from ...clock import monotonic
from ...events import Faults

__all__ = ["Outage", "Outages"]


class Outage:
    """
    Whether a host is known to be out, for all connections of one name in the process. From any thread.

    An overdue connection reports each attempt that fails. A report holds until a connection of the process comes
    up, or until it was not repeated for longer than an attempt takes: the loop that made it may have ended.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        #: The log lines about this host.
        self.faults = faults or Faults()
        self._lock = threads.lock()
        self._reason = ""
        self._until = self._served_at = 0.0

    def failed(self, reason: str, since: float, seconds: float) -> None:
        """
        Note a failure, for `seconds`.

        Args:
            since: when the attempt began. A failure that began before the last connection came up is ignored.
        """
        with self._lock:
            if since > self._served_at:
                self._reason, self._until = reason, monotonic() + seconds

    def served(self) -> None:
        """Note that a connection came up: the outage is over for all."""
        with self._lock:
            self._until, self._served_at = 0.0, monotonic()

    @property
    def has_served(self) -> bool:
        """Whether a connection of the process was ever up: then any failure may pass."""
        with self._lock:
            return self._served_at > 0

    @property
    def reason(self) -> str | None:
        """Why the host is out; None if it is not known to be out."""
        with self._lock:
            return self._reason if monotonic() < self._until else None


class Outages:
    """The outages of the hosts of a layer, for all its sessions: a new session need not find them out itself."""

    def __init__(self) -> None:
        self._outages: dict[tuple[int, str], Outage] = {}
        self._faults: defaultdict[int | str, Faults] = defaultdict(Faults)
        self._lock = threads.lock()

    def of(self, host: int, name: str) -> Outage:
        """
        Return the outage of the connections of one name to one host.

        Args:
            host: the index of the host in `hosts`.
            name: "commands" or "pushes".
        """
        with self._lock:
            outage = self._outages.get((host, name))
            if outage is None:
                outage = self._outages[host, name] = Outage(self._faults[host])
            return outage

    def faults_of(self, host: int | str) -> Faults:
        """Return the log lines about a host of `hosts`, or an address, shared by all connections to it."""
        with self._lock:
            return self._faults[host]
