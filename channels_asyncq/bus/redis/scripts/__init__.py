"""The Lua scripts, as they are loaded into a server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from ....settings.keys import Recovery

# An entry of s > 1024 bytes trims its log to LOG_BYTES / s entries. A logged message has at most `message_bytes`.
LOG_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 by which EVALSHA names it."""

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str, begins_with: Script | None = None, **constants: int) -> Script:
        """
        Return the script in the file `<name>.lua`.

        Args:
            begins_with: the script that replaces `{lease.lua}` in the text.
            constants: values that replace their names in the text, and need not be sent with each command.
        """
        text = resources.files(__package__).joinpath(f"{name}.lua").read_bytes()
        if begins_with is not None:
            text = text.replace(b"{lease.lua}", begins_with.text.rstrip().removesuffix(b"return answer"))
        for word, value in constants.items():
            text = text.replace(word.encode(), b"%d" % value)
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


PUSH = Script.load("push")
POP = Script.load("pop")
GIVE_BACK = Script.load("give_back")
GROUP_SEND = Script.load("group_send")
ADD_MEMBER = Script.load("add_member")
LEASE_SCRIPT = Script.load("lease")
LEAVE = Script.load("leave")
FENCE = Script.load("fence", LEASE_SCRIPT)
READ_LOG = Script.load("read_log")
SCRIPTS = (PUSH, POP, GIVE_BACK, GROUP_SEND, ADD_MEMBER, LEASE_SCRIPT, LEAVE, FENCE, READ_LOG)


def send_script(recovery: Recovery) -> Script:
    """Return the script that logs and publishes, for these settings."""
    return Script.load(
        "send", MOST_ENTRIES=recovery.messages, MOST_BYTES=LOG_BYTES, IS_REQUIRED=int(recovery.required)
    )


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds, at least one, for a server."""
    return max(1, round(seconds * 1000))
