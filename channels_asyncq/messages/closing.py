"""The message that ends a client's connection: its close code and its reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

#: The type of the message. From the layer it ends the WebSockets and event streams of a group.
CLOSE = "websocket.close"
#: The close code for a client whose user has signed out, or was signed out.
SIGNED_OUT = 4401
#: The registered close code for "unauthorized": the client comes back with the session that it has then.
UNAUTHORIZED = 3000
#: Seconds after which such a client comes back: by then a browser that has changed the password has the cookie of
#: the new session, which comes with the response.
NEW_SESSION = 2.0
# The codes below 3000 that an endpoint may send (RFC 6455, 7.4, and IANA's registry). Servers below this package
# check them too: Daphne refuses most of them.
_STANDARD = frozenset((*range(1000, 1004), *range(1007, 1015)))
# A control frame has 125 bytes, and the code takes two.
_LONGEST_REASON = 123
_LONGEST_RETRY = 3600


class Close(NamedTuple):
    """
    A close code, the text that goes with it, and when the client may come back. Checked by `close_of()`.

    `retry` is in seconds. Clients that are told come back between it and twice as long. None leaves it to them.
    """

    code: int
    reason: str = ""
    retry: float | None = None

    @property
    def is_final(self) -> bool:
        """
        Whether the client is not to come back.

        resume.js has the same codes: "normal", "a policy forbids it", "too big", and 4000 to 4499. 4012 and 4013
        stand for 1012 and 1013 under Daphne.
        """
        return self.code in (1000, 1008, 1009) or (4000 <= self.code < 4500 and self.code not in (4012, 4013))

    @property
    def substitute(self) -> int:
        """What a server sends that sends no code between 1000 and 3000 (Daphne). Clients do the same at it."""
        return self.code + (3000 if self.code in (1008, 1009, 1012, 1013) else 3500)

    def as_message(self) -> dict[str, Any]:
        """Return the message for a channel layer."""
        message: dict[str, Any] = {"type": CLOSE, "code": self.code, "reason": self.reason}
        return message if self.retry is None else message | {"retry": self.retry}


def close_of(message: Mapping[str, Any]) -> Close:
    """
    Return what a message of the type `CLOSE` says. Without "code" that is 1000, without "reason" "".

    Raises:
        TypeError: "code" is no int, "reason" no str, or "retry" no number.
        ValueError: no server may send this code, the reason is too long for a close frame, or "retry" is not
            between 0 and an hour.
    """
    code, reason, retry = message.get("code", 1000), message.get("reason") or "", message.get("retry")
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f'a "{CLOSE}" message needs "code", an int such as {SIGNED_OUT}, not {code!r}')
    if code not in _STANDARD and not 3000 <= code <= 4999:
        raise ValueError(
            f'a "{CLOSE}" message has the code {code}, which no server may send: use 1000, or 4000 to 4999 for '
            "codes of your own"
        )
    if not isinstance(reason, str):
        raise TypeError(f'a "{CLOSE}" message needs "reason", a str, not {reason!r}')
    if (size := len(reason.encode())) > _LONGEST_REASON:
        raise ValueError(
            f'a "{CLOSE}" message has a reason of {size} bytes, {reason!r}: a close frame has room for '
            f"{_LONGEST_REASON}"
        )
    if retry is not None:
        if isinstance(retry, bool) or not isinstance(retry, (int, float)):
            raise TypeError(f'a "{CLOSE}" message needs "retry", a number of seconds, not {retry!r}')
        if not 0 < retry <= _LONGEST_RETRY:
            raise ValueError(
                f'a "{CLOSE}" message has retry={retry!r}: it must be seconds between 0 and {_LONGEST_RETRY}'
            )
    return Close(code, reason, retry)


async def send_close(send: Callable[[Any], Awaitable[None]], close: Close) -> None:
    """
    Close a WebSocket, with the substitute of the code if the server refuses that.

    Raises:
        OSError, RuntimeError: the client has gone.
    """
    message = {"type": CLOSE, "code": close.code}
    if close.reason:
        message["reason"] = close.reason
    try:
        await send(message)
    except (OSError, RuntimeError):
        raise
    except Exception:
        if close.code >= 3000:
            raise
        await send(message | {"code": close.substitute})
