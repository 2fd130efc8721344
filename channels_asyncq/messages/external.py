"""Messages of other programs, which only publish: what they may be, and the dict in which receivers get them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

#: Methods and attributes of Channels' consumers, which look for a type's handler under its name with underscores
#: for dots: a message of type `disconnect`, from another program, would run a consumer's `disconnect()`.
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
        "receive",
        "receive_json",
        "scope",
        "send",
        "send_body",
        "send_headers",
        "send_json",
        "send_response",
    }
)
# What servers say to consumers. A program may send to the client, and not in the client's name.
_OF_SERVERS = ("websocket_", "http_")
_TO_THE_CLIENT = "websocket.send"


class ExternalMessage(dict[str, Any]):
    """A message from outside, as `receive()` returns it: a dict by which a consumer can tell where it is from."""

    def copy(self) -> ExternalMessage:
        return ExternalMessage(self)


@dataclass(frozen=True, slots=True)
class External:
    """The types and groups that other programs may send, by patterns; None for all but those of servers."""

    types: tuple[re.Pattern[str], ...] | None = None
    groups: tuple[re.Pattern[str], ...] | None = None

    def refusal(self, message: dict[str, Any], group: str, notices: frozenset[str]) -> str | None:
        """Return why a message to this group is refused, or None. `notices` are the types of the layer's own."""
        kind = message.get("type")
        if not isinstance(kind, str) or not kind:
            return "JSON without a `type`"
        if kind == _TO_THE_CLIENT:
            if not isinstance(message.get("text"), str):
                return f'JSON of type {kind!r} without "text", a str'
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
