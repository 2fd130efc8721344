"""Rates such as "20/s": how they are written, and the meters that hold clients to them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from . import threads
from .clock import monotonic

_FORM = re.compile(r"([1-9][0-9]{0,8})/([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
#: The most clients that `ClientMeters` knows.
MOST_CLIENTS = 10_000
# The bits of an IPv6 address that name its network. One client has all addresses of such a network.
_NETWORK_BITS = 64


@dataclass(frozen=True, slots=True)
class Rate:
    """How many seconds lie between two events, and how many events may come at once after a quiet time."""

    interval: float
    burst: int


def checked_rate(owner: str, name: str, text: object, burst_name: str, burst: object) -> Rate | None:
    """
    Return the rate of an owner's settings, None if it is None.

    Without a burst, the events of one second may come at once, at least one.

    Raises:
        TypeError, ValueError: the rate is not written as "20/s", or the burst is no positive int. The text names
            the owner, the setting, the value and what would be right.
    """
    if burst is not None:
        require_positive_int(owner, burst_name, burst, "events")
    if text is None:
        return None
    remedy = 'write events per second, minute or hour, such as "20/s", "100/m" or "1000/h", or None'
    if not isinstance(text, str):
        raise TypeError(f"{name} of {owner} is {text!r}, and must be a str: {remedy}")
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} of {owner} is {text!r}: {remedy}")
    interval = _SECONDS[match[2]] / int(match[1])
    return Rate(interval, burst if isinstance(burst, int) else max(1, int(1 / interval)))


def require_positive_int(owner: str, name: str, value: object, unit: str) -> None:
    """
    Raises:
        TypeError, ValueError: the value is no int, or is below 1.
    """
    remedy = f"give a number of {unit}, 1 or more, or None"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} of {owner} is {value!r}, and must be an int: {remedy}")
    if value < 1:
        raise ValueError(f"{name} of {owner} is {value!r}: {remedy}")


class Meter:
    """
    Holds the events of one client to a rate.

    It is a bucket that fills at the rate and from which each event takes one; all that is kept is the time at
    which the bucket is full again.
    """

    __slots__ = ("_full_at", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._full_at = 0.0

    def wait(self) -> float:
        """Return the seconds until the next event may come, 0.0 if it may come now."""
        rate = self._rate
        return max(0.0, self._full_at - (rate.burst - 1) * rate.interval - monotonic())

    def take(self, events: int = 1) -> None:
        """Count an event, or several."""
        self._full_at = max(self._full_at, monotonic()) + events * self._rate.interval

    @property
    def is_full(self) -> bool:
        """Whether the meter is as good as a new one."""
        return self._full_at <= monotonic()


class ClientMeters:
    """
    A meter for each client of the process, from any thread.

    Those of the clients that were quiet for longest are forgotten first, when there are more than MOST_CLIENTS.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._meters: dict[tuple[str, str, Rate], Meter] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def take(self, owner: str, client: str, rate: Rate) -> float:
        """
        Count an event of a client, and return 0.0. If it is too early, return the seconds to wait.

        `owner` names what the rate belongs to: clients have a meter for each.
        """
        key = (owner, client, rate)
        with self._lock:
            meter = self._meters.pop(key, None) or Meter(rate)
            self._meters[key] = meter  # as the last one
            self._forget()
            wait = meter.wait()
            if not wait:
                meter.take()
            return wait

    def _forget(self) -> None:
        """Forget two clients whose meters are full, so that quiet ones do not stay; all that are too many."""
        for _ in range(2):
            oldest = next(iter(self._meters))
            if len(self._meters) <= MOST_CLIENTS and not self._meters[oldest].is_full:
                break
            if len(self._meters) > 1:
                del self._meters[oldest]


def network_of(host: str) -> str:
    """Return what one client has of addresses: an IPv4 address; of IPv6 a network, half an address long."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a name, as of a proxy
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _NETWORK_BITS), strict=False))
