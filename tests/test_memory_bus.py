"""The broker of `memory://`: what a reader gives back, and capacities that differ."""

from __future__ import annotations

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.bus.memory import Broker
from channels_asyncq.envelopes import Envelope


def push(broker: Broker, payload: bytes, capacity: int) -> None:
    broker.push("jobs", b"queue:jobs", Envelope(payload, "jobs", expires_at=float("inf")), capacity)


def pop(broker: Broker, node: str, number: int) -> bytes | None:
    envelope = broker.pop("jobs", node, number)
    return None if envelope is None else envelope.payload


def test_given_back_to_an_empty_channel() -> None:
    """It is at the head again, and the channel holds as many as ever."""
    broker = Broker()
    push(broker, b"1", 3)
    assert pop(broker, "a", 1) == b"1"
    assert pop(broker, "b", 1) is None
    broker.give_back("jobs", b"queue:jobs", "a", 1)
    for payload in (b"2", b"3"):
        push(broker, payload, 3)
    with pytest.raises(ChannelFull):
        push(broker, b"4", 3)
    assert [pop(broker, "b", number) for number in (2, 3, 4, 5)] == [b"1", b"2", b"3", None]


def test_layers_of_other_capacities() -> None:
    """Each push goes by the capacity of its own layer."""
    broker = Broker()
    push(broker, b"1", 1)
    with pytest.raises(ChannelFull):
        push(broker, b"2", 1)
    push(broker, b"2", 2)
    with pytest.raises(ChannelFull):
        push(broker, b"3", 1)
