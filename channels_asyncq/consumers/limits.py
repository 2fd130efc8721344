"""What the clients of a consumer may do: its class attributes, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..rates import Rate, checked_rate, require_positive_int

RateAction = Literal["wait", "drop", "close"]


@dataclass(frozen=True, slots=True)
class Limits:
    """
    The limits of one consumer. None means that there is no limit.

    `max_frame` is in bytes, `idle_timeout` in seconds.
    """

    rate: Rate | None
    rate_action: RateAction
    max_frame: int | None
    idle_timeout: float | None
    max_groups: int | None

    @classmethod
    def of(cls, consumer: Any) -> Limits:
        """
        Return the limits of a consumer, or of a class of consumers, from its attributes.

        Raises:
            TypeError, ValueError: an attribute is wrong; the text names the class, the value and the remedy.
        """
        name = (consumer if isinstance(consumer, type) else type(consumer)).__name__
        rate = checked_rate(name, "rate", consumer.rate, "burst", consumer.burst)
        _check_action(name, consumer.rate_action)
        if consumer.max_frame is not None:
            require_positive_int(name, "max_frame", consumer.max_frame, "bytes")
        if consumer.max_groups is not None:
            require_positive_int(name, "max_groups", consumer.max_groups, "groups")
        if consumer.idle_timeout is not None:
            _check_seconds(name, consumer.idle_timeout)
        return cls(rate, consumer.rate_action, consumer.max_frame, consumer.idle_timeout, consumer.max_groups)

    @property
    def concern_frames(self) -> bool:
        """Whether what the client sends is limited at all."""
        return not (self.rate is None and self.max_frame is None and self.idle_timeout is None)


def require_used(consumer: Any, rate: str, **unset: Any) -> None:
    """
    Refuse attributes that have no effect without a rate. Not when a class is made: a subclass may have the rate.

    Args:
        rate: the name of the attribute with the rate.
        **unset: the names of those that belong to it, with their defaults.

    Raises:
        ValueError: there is no rate, and one of the others is not its default.
    """
    if getattr(consumer, rate) is not None:
        return
    for name, default in unset.items():
        value = getattr(consumer, name)
        if value != default:
            raise ValueError(
                f"{name} of {type(consumer).__name__} is {value!r} and has no effect, because {rate} is None: "
                f'set {rate} = "20/s", for instance, or leave {name} out'
            )


def _check_action(name: str, action: object) -> None:
    if action not in get_args(RateAction):
        choices = ", ".join(f'"{each}"' for each in get_args(RateAction))
        raise ValueError(f"rate_action of {name} is {action!r}: give one of {choices}")


def _check_seconds(name: str, seconds: object) -> None:
    remedy = "give a positive number of seconds, such as 300, or None"
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"idle_timeout of {name} is {seconds!r}, and must be a number: {remedy}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"idle_timeout of {name} is {seconds!r}: {remedy}")
