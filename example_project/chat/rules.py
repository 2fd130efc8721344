"""What the chat accepts: room names, author names, texts and the frames that a page sends."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

ROOM_LENGTH = 50
AUTHOR_LENGTH = 30
TEXT_LENGTH = 1000
KEY_LENGTH = 64
FRAME_LENGTH = 16 * 1024
ROOM_PATTERN = "[A-Za-z0-9_-]{1,50}"
ROOM_RULE = "A room name is 1 to 50 letters (A to Z), digits, hyphens or underscores."


class Refused(ValueError):
    """Input that the chat does not accept. The text is for the person who sent it."""


class RoomConverter:
    """`<room:room>` in a path. Any other name is a 404."""

    regex = ROOM_PATTERN

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


def is_room(name: str) -> bool:
    return re.fullmatch(ROOM_PATTERN, name) is not None


def group_of(room: str) -> str:
    """The channel layer's group for what is said in a room. A page that comes back gets what it missed of it."""
    return f"chat.{room}"


def people_of(room: str) -> str:
    """The channel layer's group for who is in a room, and who is typing."""
    return f"people.{room}"


def clean_text(text: object) -> str:
    """Return the text of a message, or raise Refused."""
    if not isinstance(text, str):
        raise Refused("A message is a text.")
    text = text.strip()
    if not text:
        raise Refused("The message is empty.")
    if len(text) > TEXT_LENGTH:
        raise Refused(f"The message has {len(text)} characters; {TEXT_LENGTH} is the limit.")
    if "\0" in text or not _is_unicode(text):
        raise Refused("The message has characters that cannot be stored.")
    return text


def clean_author(name: object) -> str:
    """Return a name on one line and without invisible characters, or raise Refused."""
    if not isinstance(name, str):
        raise Refused("A name is a text.")
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if not name:
        raise Refused("The name is empty.")
    if len(name) > AUTHOR_LENGTH:
        raise Refused(f"The name has {len(name)} characters; {AUTHOR_LENGTH} is the limit.")
    return name


def clean_key(key: object) -> str | None:
    """Return the key that a page gave its message, None if it gave none, or raise Refused."""
    if key is None:
        return None
    if not isinstance(key, str) or not re.fullmatch(f"[A-Za-z0-9_-]{{8,{KEY_LENGTH}}}", key):
        raise Refused(f"A key is 8 to {KEY_LENGTH} letters (A to Z), digits, hyphens or underscores.")
    return key


def guest_name() -> str:
    """A name for a person who gave none."""
    return f"{secrets.choice(_ADJECTIVES)} {secrets.choice(_ANIMALS)}"


def parse_frame(text: str | None) -> tuple[str, dict[str, Any]]:
    """
    Return the action of a page's frame, and the frame, which has the action's value under the action's name.

    A frame is a JSON object with one of these keys: `{"message": "..."}`, `{"typing": true}`,
    `{"name": "..."}`, `{"who": true}` or `{"after": 17}`. A message may also have a "key" that the page chose.
    Then the page can send the message again, and it is stored once.

    Raises:
        Refused: the text is no such frame.
    """
    if text is None:
        raise Refused("Send JSON as a text frame, not bytes.")
    if len(text) > FRAME_LENGTH:
        raise Refused("The frame is too long.")
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("That is not JSON.") from None
    for action in _ACTIONS if isinstance(frame, dict) else ():
        if action in frame:
            return action, frame
    raise Refused('Send a JSON object such as {"message": "hello"}.')


def parse_after(value: Any) -> int:
    """Return the id after which a page wants the history; 0 is all of it."""
    try:
        after = int(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused("`after` is the id of a message.") from None
    if not 0 <= after < 2**63:
        raise Refused("`after` is the id of a message.")
    return after


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can contain and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_ACTIONS = ("message", "typing", "name", "who", "after")
_ADJECTIVES = (
    "Amber",
    "Bold",
    "Calm",
    "Clever",
    "Gentle",
    "Happy",
    "Keen",
    "Lucky",
    "Quiet",
    "Swift",
    "Witty",
)
_ANIMALS = (
    "Badger",
    "Crane",
    "Falcon",
    "Fox",
    "Hare",
    "Heron",
    "Lynx",
    "Marten",
    "Otter",
    "Owl",
    "Robin",
    "Seal",
)
