"""Rates, the meters that hold clients to them, and what counts as one client."""

from __future__ import annotations

from typing import Any

import pytest

from channels_asyncq.rates import MOST_CLIENTS, ClientMeters, Meter, Rate, checked_rate, network_of
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["rates"])
    return clock


@pytest.mark.parametrize(
    ("text", "burst", "rate"),
    [
        ("20/s", None, Rate(1 / 20, 20)),
        ("20/s", 5, Rate(1 / 20, 5)),
        ("120/m", None, Rate(0.5, 2)),
        ("6/m", None, Rate(10, 1)),
        ("1/h", 3, Rate(3600, 3)),
        (None, None, None),
    ],
)
def test_rate(text: str | None, burst: int | None, rate: Rate | None) -> None:
    """Events per second, minute or hour; without a burst, those of one second may come at once, at least one."""
    assert checked_rate("Room", "rate", text, "burst", burst) == rate


@pytest.mark.parametrize(
    ("text", "burst", "error", "words"),
    [
        (20, None, TypeError, "rate of Room is 20, and must be a str: write events per second"),
        (
            "20",
            None,
            ValueError,
            "rate of Room is '20': write events per second, minute or hour, such as",
        ),
        ("0/s", None, ValueError, "rate of Room is '0/s'"),
        ("20/day", None, ValueError, "rate of Room is '20/day'"),
        ("-1/s", None, ValueError, "rate of Room is '-1/s'"),
        ("1.5/s", None, ValueError, "rate of Room is '1.5/s'"),
        ("20/s", 0, ValueError, "burst of Room is 0: give a number of events, 1 or more"),
        ("20/s", True, TypeError, "burst of Room is True, and must be an int"),
        ("20/s", "5", TypeError, "burst of Room is '5', and must be an int"),
    ],
)
def test_rate_that_is_wrong(text: Any, burst: Any, error: type[Exception], words: str) -> None:
    """The error names the owner, the setting, the value, and what would be right."""
    with pytest.raises(error) as raised:
        checked_rate("Room", "rate", text, "burst", burst)
    assert str(raised.value).startswith(words)


def test_meter(clock: Clock) -> None:
    """A burst at once, then one for each interval; a quiet time gives the burst back, and no more than that."""
    meter = Meter(Rate(0.5, 3))
    for _ in range(3):
        assert meter.wait() == 0
        meter.take()
    assert meter.wait() == 0.5
    clock.turn(0.25)
    assert meter.wait() == 0.25
    clock.turn(0.25)
    assert meter.wait() == 0
    meter.take()
    assert meter.wait() == 0.5
    clock.turn(3600)
    assert meter.is_full
    for _ in range(3):
        assert meter.wait() == 0
        meter.take()
    assert meter.wait() == 0.5


def test_client_meters(clock: Clock) -> None:
    """Each client has its own meter, for each owner and rate. What comes too early does not count."""
    meters, rate = ClientMeters(), Rate(1, 1)
    assert meters.take("Room", "a", rate) == 0
    assert meters.take("Room", "a", rate) == 1
    assert meters.take("Room", "a", rate) == 1
    assert meters.take("Room", "b", rate) == 0
    assert meters.take("Other", "a", rate) == 0
    assert meters.take("Room", "a", Rate(2, 1)) == 0
    clock.turn(1)
    assert meters.take("Room", "a", rate) == 0


def test_client_meters_that_are_many(clock: Clock) -> None:
    """Clients that were quiet for longest go first, and those whose meters are full go anyway."""
    meters, rate = ClientMeters(), Rate(1000, 1)
    for number in range(MOST_CLIENTS + 100):
        assert meters.take("Room", f"client {number}", rate) == 0
    assert len(meters) == MOST_CLIENTS
    assert meters.take("Room", f"client {MOST_CLIENTS}", rate) == 1000
    assert meters.take("Room", "client 0", rate) == 0
    clock.turn(1001)
    for number in range(MOST_CLIENTS):
        assert meters.take("Room", "one", rate) == (1000 if number else 0)
    assert len(meters) == 1


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_network_of(host: str, network: str) -> None:
    """One client has many addresses of IPv6: it is known by their network."""
    assert network_of(host) == network
