"""
The consumers of Channels, leaner inside: change the import, and nothing else.

`AsyncConsumer` is `channels.consumer.AsyncConsumer` with another way of waiting for its two sources, the client
and the channel layer, and without a trip to the database's thread where nothing is to be done there. It works
with every channel layer, and with none. `SyncConsumer` is the one of Channels.
"""

from channels.consumer import SyncConsumer, get_handler_name

from .consumer import AsyncConsumer

__all__ = ["AsyncConsumer", "SyncConsumer", "get_handler_name"]
