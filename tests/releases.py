"""Releases that read other formats of the wire than this one, and layers of their processes."""

from __future__ import annotations

from typing import Any

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.base import Receiver
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.messages.framing import Format, Formats, pack, unpack
from channels_asyncq.names import Topics
from channels_asyncq.session.buses import RedisBuses
from channels_asyncq.settings.options import Options


def pack_2(*args: Any, **kwargs: Any) -> bytes:
    """Format 2, for tests: format 1 behind the new version and the length of a batch."""
    batch = pack(*args, **kwargs)
    return b"\x02%b%b" % (len(batch).to_bytes(4), batch)


def unpack_2(data: bytes, *args: Any, **kwargs: Any) -> list[Envelope]:
    envelopes = []
    while data:
        end = 5 + int.from_bytes(data[1:5])
        envelopes += unpack(data[5:end], *args, **kwargs)
        data = data[end:]
    return envelopes


ONE, TWO = Format(1, pack, unpack), Format(2, pack_2, unpack_2)
THREE = Format(3, pack_2, unpack_2)
#: This release, the next one, and the one after that.
OLD, BETWEEN, NEW = Formats(ONE), Formats(ONE, TWO), Formats(TWO, THREE)


class ReleaseBuses(RedisBuses):
    """The buses of a release that reads these formats."""

    def __init__(self, formats: Formats) -> None:
        super().__init__()
        self._formats = formats

    def open(
        self, options: Options, topics: Topics, codec: Codec, session_id: str, receiver: Receiver
    ) -> RedisBus:
        return RedisBus(options, topics, codec, session_id, receiver, formats=self._formats)


def layer_of_release(formats: Formats, **config: Any) -> AsyncQueueChannelLayer:
    """The layer of a process with a release that reads these formats."""
    layer = AsyncQueueChannelLayer(**config)
    layer._registry.buses = ReleaseBuses(formats)
    return layer
