"""
The consumers of Channels, leaner inside: change the import, and nothing else.

`AsyncConsumer` is `channels.consumer.AsyncConsumer` with one waiter for both sources, the client and the channel
layer, and without a trip to the database's thread if nothing is due there. `SyncConsumer` waits likewise, and
only its handlers go to that thread. They work with every channel layer, and without one.
"""

from channels.consumer import get_handler_name

from .consumer import AsyncConsumer
from .sync import SyncConsumer

__all__ = ["AsyncConsumer", "SyncConsumer", "get_handler_name"]
