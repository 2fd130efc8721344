"""Messages that other programs publish: which ones are accepted, and the dict in which receivers get them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .closing import CLOSE, close_of

#: Methods and attributes of Channels' consumers, and methods of ours. A consumer finds the handler of a type by
#: its name, with underscores for dots: a message of type `disconnect` from another program would run
#: `disconnect()`. (Attributes of ours do no harm: our consumers run coroutine functions only.)
CONSUMER_NAMES = frozenset(
    {
        "accept",
        "as_asgi",
        "base_send",
        "body",
        "channel_layer",
        "channel_layer_alias",
        "channel_name",
        "channel_receive",
        "close",
        "connect",
        "decode_json",
        "disconnect",
        "dispatch",
        "encode_json",
        "groups",
        "handle",
        "on_resumed",
        "receive",
        "receive_json",
        "resumable_groups",
        "resume_key",
        "scope",
        "send",
        "send_body",
        "send_headers",
        "send_json",
        "send_response",
    }
)
# Types that a server, or this package, sends to a consumer. Another program may send to the client, but not pose
# as one of them.
_OF_SERVERS = ("websocket_", "http_", "asyncq_")
_TO_THE_CLIENT = "websocket.send"


class ExternalMessage(dict[str, Any]):
    """A message of another program, as `receive()` returns it: consumers recognise it by its class."""

    def copy(self) -> ExternalMessage:
        return ExternalMessage(self)


@dataclass(frozen=True, slots=True)
class External:
    """Patterns of the types that other programs may send, and of the groups they may send to; None: any."""

    types: tuple[re.Pattern[str], ...] | None = None
    groups: tuple[re.Pattern[str], ...] | None = None

    def refusal(self, message: dict[str, Any], group: str, notices: frozenset[str]) -> str | None:
        """Return why a message to this group is refused, or None. `notices` are types of the layer itself."""
        kind = message.get("type")
        if not isinstance(kind, str) or not kind:
            return "JSON without a `type`"
        if kind == _TO_THE_CLIENT:
            if not isinstance(message.get("text"), str):
                return f'JSON of type {kind!r} without "text", a str'
        elif kind == CLOSE and self.types is not None:  # whether it is among the types, is asked below
            try:
                close_of(message)
            except (TypeError, ValueError) as error:
                return f"JSON of type {kind!r}: {error}"
        else:
            handler = kind.replace(".", "_")
            if handler.startswith(_OF_SERVERS) or handler in CONSUMER_NAMES or kind in notices:
                return (
                    f"JSON of type {kind!r}: only the server, the consumer or the layer itself may say that"
                )
            if handler.startswith("_"):
                return f"JSON of type {kind!r}: no handler's name begins like that"
        if not _fits(self.types, kind):
            return f"JSON of type {kind!r}, which is not among external['types']"
        if not _fits(self.groups, group):
            return f"JSON for group {group!r}, which is not among external['groups']"
        return None


def _fits(patterns: tuple[re.Pattern[str], ...] | None, name: str) -> bool:
    return patterns is None or any(pattern.match(name) for pattern in patterns)
