"""What is sent to the room."""

import json
import random
from typing import Literal

ROOM = "room"
#: How a message gets to the clients: passed on as it is, or made anew for each by a handler.
Way = Literal["frame", "handler"]
_WORDS = (
    "this",
    "layer",
    "carries",
    "it",
    "from",
    "one",
    "process",
    "to",
    "another",
    "hundred",
    "times",
    "a",
    "second",
)


def content(size: int, number: int) -> dict[str, str]:
    """A message of a chat whose JSON has that many bytes; each number has other words."""
    words = random.Random(number)
    found = {"user": "ada", "text": ""}
    room = size - len(json.dumps(found))
    text = str(number)
    while len(text) < room:
        text += " " + words.choice(_WORDS)
    return {**found, "text": text[:room]}
