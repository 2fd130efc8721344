"""The Lua scripts, as they are loaded into a server."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from ....settings.keys import Recovery

# An entry of s > 1024 bytes trims its log to LOG_BYTES / s entries. A logged message has at most `message_bytes`.
LOG_BYTES = 8 * 2**20


_INCLUDE = re.compile(rb"^{(\w+)\.lua}$", re.MULTILINE)


def _text_of(name: str) -> bytes:
    return resources.files(__package__).joinpath(f"{name}.lua").read_bytes()


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 by which EVALSHA names it."""

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str, **constants: int) -> Script:
        """
        Return the script in the file `<name>.lua`. A line `{<other>.lua}` stands for the text of that file.

        Args:
            constants: values that replace their names in the text, and need not be sent with each command.
        """
        text = _INCLUDE.sub(lambda line: _text_of(line[1].decode()), _text_of(name))
        for word, value in constants.items():
            text = text.replace(word.encode(), b"%d" % value)
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


PUSH = Script.load("push")
POP = Script.load("pop")
GIVE_BACK = Script.load("give_back")
GROUP_SEND = Script.load("group_send")
ADD_MEMBER = Script.load("add_member")
LEASE_SCRIPT = Script.load("take_lease")
LEAVE = Script.load("leave")
FENCE = Script.load("fence")
READ_LOG = Script.load("read_log")
READ_LOGS = Script.load("read_logs")
LOG_ENDS = Script.load("log_ends")
SCRIPTS = (
    PUSH,
    POP,
    GIVE_BACK,
    GROUP_SEND,
    ADD_MEMBER,
    LEASE_SCRIPT,
    LEAVE,
    FENCE,
    READ_LOG,
    READ_LOGS,
    LOG_ENDS,
)


def send_script(recovery: Recovery) -> Script:
    """Return the script that logs and publishes, for these settings."""
    return Script.load(
        "send", MOST_ENTRIES=recovery.messages, MOST_BYTES=LOG_BYTES, IS_REQUIRED=int(recovery.required)
    )


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds, at least one, for a server."""
    return max(1, round(seconds * 1000))
