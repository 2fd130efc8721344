"""
The consumers of Channels, leaner inside: change the import, and nothing else.

`AsyncConsumer` is `channels.consumer.AsyncConsumer` with one waiter for both sources, the client and the channel
layer, and without a trip to the database's thread if nothing is due there. It works with every channel layer, and
without one. `SyncConsumer` is that of Channels.
"""

from channels.consumer import SyncConsumer, get_handler_name

from .consumer import AsyncConsumer

__all__ = ["AsyncConsumer", "SyncConsumer", "get_handler_name"]
