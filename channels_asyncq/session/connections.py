"""Whether a session's inbox is confirmed, and whether its connections rest."""

from __future__ import annotations

import contextlib

from ..bus.base import Bus
from ..exceptions import LayerUnavailable
from ..names import Topic, Topics


class Connections:
    """
    What a session knows of its connections, which the bus owns.

    event                        | is_announced | is_resting | was_up
    -----------------------------|--------------|------------|-------
    the session starts           | False        | False      | False
    the server confirms the inbox| True         |            |
    all connections are there    |              |            | True
    `rest()` closes them         | False        | True       | False
    `wake()`                     |              | False      |

    A send opens the connections too, and leaves `is_resting` as it is. The `wake()` of a later receiver then
    changes nothing about the connections.
    """

    def __init__(self, bus: Bus, topics: Topics, inbox: Topic) -> None:
        self._bus = bus
        self._inbox = inbox
        self._everybody = topics.everybody
        #: Whether the server has confirmed the inbox.
        self.is_announced = False
        #: Whether the connections were closed until they are needed; they may be there again.
        self.is_resting = False
        self._was_up = False

    def start(self) -> None:
        """Subscribe to the inbox and to the topic of all sessions, and begin connecting; never waits."""
        self._bus.pubsub.subscribe(self._everybody)
        self._bus.pubsub.subscribe(self._inbox)
        self._bus.start()

    async def announce(self) -> None:
        """
        Return when the server has confirmed the inbox: messages to new channels arrive.

        In an outage it waits as a send does, and then returns all the same: the inbox is subscribed before
        anything else when the server is back.
        """
        with contextlib.suppress(LayerUnavailable):
            await self._bus.pubsub.confirmed(self._inbox)
            self.is_announced = True

    def came_up(self) -> bool:
        """Note that all connections are there; tell whether that ends an outage."""
        was_up, self._was_up = self._was_up, True
        return was_up

    async def rest(self) -> None:
        """Close the connections until they are needed, if the bus is waiting for no reply. Cancelling is safe."""
        closing = self._bus.rest()
        if closing is not None:
            # This is no outage: its end needs no notice.
            self.is_announced = self._was_up = False
            self.is_resting = True
            await closing

    def wake(self) -> None:
        """Open the connections again: a receiver waits for a message."""
        self.is_resting = False
        self._bus.start()
