"""
A table from the words of an error to its remedy. No I/O.

The words are those of redis-py, the TLS library, the operating system or the server. A row adds the remedy to
them and says whether waiting may help.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ...settings.hosts import Host

__all__ = ["PLAIN", "PROXY", "TLS", "WEB", "Diagnosis", "Heals", "Part", "Remedies", "unsupported"]

#: The oldest server that has the commands of the scripts (XTRIM MINID, INFO errorstats).
OLDEST = (6, 2)
#: The oldest in a Redis Cluster: it has sharded channels.
OLDEST_OF_CLUSTERS = (7, 0)

# The findings of an examination of the port.
PLAIN = "the port answers in plain text, without TLS"
TLS = "the port speaks TLS"
WEB = "a web server answers there"
PROXY = "it answers PING and closes the connection at INFO"


# The connection was accepted, and reset before redis-py sent anything.
_RESET = f"Error {errno.ECONNRESET} connecting"


class Heals(Enum):
    """Whether an error may pass while a send waits."""

    YES = auto()
    NO = auto()
    #: Only if the credentials come from a provider: the next ones may be right.
    WITH_PROVIDER = auto()


class Part(Enum):
    """What an error is about, in the order in which a connection gets there."""

    ADDRESS = "address"
    TLS = "TLS"
    LOGIN = "login"
    SERVER = "server"
    RIGHTS = "rights"
    WRITES = "writes"


class _Row(NamedTuple):
    part: Part
    words: re.Pattern[str]
    remedy: str
    heals: Heals


def _row(part: Part, words: str, remedy: str, heals: Heals = Heals.NO) -> _Row:
    return _Row(part, re.compile(words), remedy, heals)


# The first row that matches counts. In a remedy, `{user}`, `{prefix}` and `{rights}` stand for those of the host,
# and `{kind}` for what follows redis or rediss in its URL.
_TABLE = (
    # Each Sentinel has its own reason, and that may change.
    _row(
        Part.ADDRESS,
        "^no Sentinel names a master",
        "Check `sentinels`, `master_name` and `sentinel_kwargs` in `hosts`",
        Heals.YES,
    ),
    # Another protocol.
    _row(
        Part.TLS,
        f"{PLAIN}|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|HTTP_REQUEST",
        "Use redis{kind}:// in place of rediss{kind}://, or the port on which the server speaks TLS",
    ),
    _row(
        Part.TLS,
        rf'{TLS}|got "\\x1[56]" as reply type byte',
        "Use rediss{kind}:// in place of redis{kind}://, or the port on which the server speaks plain text",
    ),
    _row(
        Part.ADDRESS,
        f'{WEB}|got "[<H]" as reply type byte',
        "That is HTTP: check host and port in `hosts`; a Redis or Valkey server is mostly at port 6379",
    ),
    # Certificates.
    _row(
        Part.TLS,
        "CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)",
        "Give the host by a name or address that the server's certificate has, or have this one put into it",
    ),
    _row(Part.TLS, "CERTIFICATE_VERIFY_FAILED.*expired", "Renew the server's certificate"),
    _row(
        Part.TLS,
        "CERTIFICATE_VERIFY_FAILED.*not yet valid",
        "Compare the clocks of this machine and of the server's",
    ),
    _row(
        Part.TLS,
        "CERTIFICATE_VERIFY_FAILED",
        "Name the file of the authority that signed the server's certificate: "
        "rediss{kind}://HOST?ssl_ca_certs=/path/of/ca.pem",
    ),
    _row(
        Part.TLS,
        "ALERT_CERTIFICATE_REQUIRED|ALERT_BAD_CERTIFICATE|ALERT_UNKNOWN_CA|HANDSHAKE_FAILURE",
        "The server may want a certificate of its clients: give ssl_certfile and ssl_keyfile",
    ),
    # Passwords and rights.
    _row(
        Part.LOGIN,
        "WRONGPASS|invalid username-password pair|invalid password",
        "Check the password of the user {user} in `hosts`; in a URL, special characters are percent-encoded",
        Heals.WITH_PROVIDER,
    ),
    _row(
        Part.LOGIN,
        "NOAUTH|Authentication required",
        "Give the password in `hosts`, as in redis{kind}://:PASSWORD@HOST or redis{kind}://USER:PASSWORD@HOST",
        Heals.WITH_PROVIDER,
    ),
    _row(
        Part.LOGIN,
        "called without any password|AUTH, but no password is set",
        "Leave the password out of `hosts`, or set one in the server (requirepass)",
    ),
    _row(
        Part.RIGHTS,
        "NOPERM|ACL failure in script|The user executing the script can't|has no permissions",
        "Grant the user {user} {rights} (all that is needed: access control, on the page of advanced settings)",
    ),
    # Kind and settings of the server.
    _row(
        Part.LOGIN,
        "DENIED .*protected mode",
        "Set a password in the server (requirepass) and give it in `hosts`, or connect over 127.0.0.1",
    ),
    _row(
        Part.LOGIN,
        "max number of clients",
        "Raise `maxclients` of the server, or close other connections: each event loop has two, and each process "
        "two more for callers without a lasting loop",
        Heals.YES,
    ),
    _row(
        Part.SERVER,
        r"^it runs in cluster mode|CLUSTERDOWN|CROSSSLOT|^MOVED |^ASK \d|not allowed in cluster mode",
        "That is a node of a Redis Cluster: use redis+cluster://HOST:PORT in `hosts`, with TLS "
        "rediss+cluster://HOST:PORT",
    ),
    _row(
        Part.SERVER,
        "^it is no node of a Redis Cluster",
        "List one server as redis://HOST:PORT, with TLS as rediss://HOST:PORT",
    ),
    _row(
        Part.SERVER,
        r"^it is Redis .*, without sharded channels",
        f"Redis {OLDEST_OF_CLUSTERS[0]}.{OLDEST_OF_CLUSTERS[1]} is the oldest that works in a Redis Cluster: "
        "update the servers, or use Valkey",
    ),
    _row(
        Part.SERVER,
        r"^it is Redis \d",
        f"Redis {OLDEST[0]}.{OLDEST[1]} is the oldest that works: update the server, or use Valkey",
    ),
    _row(
        Part.SERVER,
        "^it is a Sentinel",
        'Name the Sentinels so: {{"sentinels": [("HOST", 26379)], "master_name": "mymaster"}}',
    ),
    _row(
        Part.SERVER,
        f"{PROXY}|unknown command .?(ROLE|SCRIPT|EVALSHA|SUBSCRIBE|PUBLISH|SELECT)",
        "A proxy that passes neither pub/sub nor scripts, such as Twemproxy, cannot be used, and neither can a "
        "server whose commands were renamed: connect to the server itself",
    ),
    _row(
        Part.SERVER,
        "DB index is out of range|invalid DB index",
        "The server has fewer databases: use a lower number in the URL, or raise its `databases`",
    ),
    _row(
        Part.SERVER,
        "^it is a replica|^READONLY|^MASTERDOWN",
        "Name the primary in `hosts`; or name Sentinels or a Redis Cluster, and the layer follows a failover",
        Heals.YES,
    ),
    _row(
        Part.SERVER,
        "^LOADING",
        "The server reads its data from the disk: wait until it has done so, as INFO persistence tells",
        Heals.YES,
    ),
    # Writes.
    _row(
        Part.WRITES,
        "^OOM",
        "The server is full: raise its maxmemory, or see what fills it, as MEMORY STATS tells",
        Heals.YES,
    ),
    _row(
        Part.WRITES,
        "^MISCONF",
        "It cannot save to its disk: see its log, and the folder and the space there",
        Heals.YES,
    ),
    _row(
        Part.WRITES,
        "^NOREPLICAS",
        "It lacks replicas: see INFO replication, and its min-replicas-to-write",
        Heals.YES,
    ),
    # Addresses.
    _row(
        Part.ADDRESS,
        "^no connection within",
        "Check host and port in `hosts`, and whether a firewall drops what is sent there; or the server is stuck",
        Heals.YES,
    ),
    _row(
        Part.ADDRESS,
        "(?i)name or service not known|nodename nor servname|name resolution|no address associated|getaddrinfo",
        "The name does not resolve: check the host in `hosts`, and the DNS of this machine or container",
        Heals.YES,
    ),
    _row(
        Part.ADDRESS,
        f"^(?!{_RESET}).*Connect call failed|Connection refused|[Cc]onnecting to /.*No such file",
        "Nobody listens there: check that the server runs, and host and port (or path) in `hosts`",
        Heals.YES,
    ),
    _row(
        Part.ADDRESS,
        "(?i)connecting to /.*permission denied",
        "The user of this process may not use the socket: check its mode (unixsocketperm) and owner",
    ),
)

# The first rows for a node of a cluster.
_CLUSTER_TABLE = (
    _row(
        Part.SERVER,
        "^CLUSTERDOWN",
        "Slots have no primary: see CLUSTER INFO at the nodes. With cluster-require-full-coverage no, the other "
        "slots are served meanwhile",
        Heals.YES,
    ),
    _row(
        Part.SERVER,
        "^(MOVED|ASK|TRYAGAIN) ",
        "The slot is moving to another node, and is looked for",
        Heals.YES,
    ),
)

# The connection ended without an explanation: an examination of the port may find one.
_WORDLESS = re.compile(
    "(?i)connection reset|broken pipe|closed the connection|closed by server|connection lost|EOF occurred"
    f"|{_RESET}"
)
_NO_WORD = (
    "Nobody said why: look into the server's log; if a proxy or load balancer is before it, check that this one "
    "reaches the server"
)

# A user may be called "channels".
_USER = re.compile(r"\bUser \S+ ")
_COMMAND_REFUSED = re.compile(r"run the '([\w|]+)' command")
# Redis 7.0 does not name the command that a script may not run, but its line in the script.
_PLACE = re.compile(r"script: ([0-9a-f]{40}), on @user_script:(\d+)")
_COMMAND = re.compile(r"redis\.p?call\(\s*'(\w+)'")
# It may run the command, and not on this key or channel: the words of Redis 7, and those of Redis 8.
_OF_A_NAME = re.compile("to the channel|access (?:a|at least one of the) (?:channel|key)")
# A longer text, such as that about the protected mode, is cut after its first sentence.
_MOST_WORDS = 200
_SENTENCE = re.compile(r"(?<=[.!?]) ")


class Diagnosis(NamedTuple):
    """The meaning of an error."""

    #: The words of the error, and the remedy if there is one.
    reason: str
    #: Equal for errors that differ in their words only.
    cause: str
    #: Waiting may help.
    heals: bool
    #: The connection ended without an explanation.
    is_wordless: bool = False
    part: Part = Part.ADDRESS

    @property
    def remedy(self) -> str:
        """The remedy alone; empty if none is known."""
        return "" if self.cause == self.reason else self.cause

    @property
    def words(self) -> str:
        """The reason without the remedy."""
        return self.reason.removesuffix(self.remedy).rstrip()


@dataclass(frozen=True, slots=True)
class Remedies:
    """
    The table for one host. `scripts` are the texts of the scripts, by SHA-1.

    With `is_cluster` it is a node of a Redis Cluster, as the settings say.
    """

    host: Host
    prefix: str
    scripts: Mapping[str, str]
    is_cluster: bool = False

    def diagnose(self, words: str, clean: Callable[[str], str] = str) -> Diagnosis:
        """
        Return the meaning of an error.

        Args:
            words: the words of the error. Those of an earlier diagnosis give that diagnosis again.
            clean: hides the secrets in a text.
        """
        table = (*_CLUSTER_TABLE, *_TABLE) if self.is_cluster else _TABLE
        row = next((row for row in table if row.words.search(words)), None)
        if row is None:
            reason = clean(words)
            if _WORDLESS.search(words) is None:
                return Diagnosis(reason, reason, True)
            return Diagnosis(_with(_NO_WORD, reason), _NO_WORD, True, is_wordless=True)
        remedy = row.remedy.format(
            kind="+cluster" if self.is_cluster else "",
            user=self._user,
            prefix=self.prefix,
            rights=self.rights(words),
        )
        heals = row.heals is Heals.YES or (row.heals is Heals.WITH_PROVIDER and self._has_provider)
        reason = words if remedy in words else _with(remedy, clean(_shortened(words)))
        return Diagnosis(reason, remedy, heals, part=row.part)

    @property
    def _user(self) -> str:
        return repr(self.host.arguments.get("username") or "default")

    @property
    def _has_provider(self) -> bool:
        return self.host.arguments.get("credential_provider") is not None

    def rights(self, words: str) -> str:
        """Return the rights that the user lacks, in the form of ACL SETUSER: all if the server names none."""
        words = _USER.sub("", words)
        commands = _COMMAND_REFUSED.findall(words)
        for sha, number in _PLACE.findall(words):
            lines = self.scripts.get(sha, "").splitlines()
            called = _COMMAND.search(lines[int(number) - 1]) if int(number) <= len(lines) else None
            if called is not None and _OF_A_NAME.search(words) is None:
                commands.append(called[1].lower())
        rights = [f"+{command}" for command in dict.fromkeys(commands)]
        if re.search(r"\bkeys?\b", words):
            rights.append(f"~{self.prefix}:*")
        if re.search(r"\bchannels?\b", words):
            rights.append(f"&{self.prefix}:*")
        return " ".join(rights) or f"~{self.prefix}:* &{self.prefix}:* and the commands of the layer"


def _with(remedy: str, said: str) -> str:
    if remedy in said:
        return said
    return f"{said}{'' if said.endswith(('.', '?', '!')) else '.'} {remedy}"


def _shortened(words: str) -> str:
    return words if len(words) <= _MOST_WORDS else _SENTENCE.split(words, maxsplit=1)[0]


def unsupported(info: bytes, *, is_cluster: bool = False) -> str | None:
    """
    Return why the server of this INFO cannot be used; None if it can be, or does not say.

    Args:
        is_cluster: a node of a Redis Cluster is expected.
    """
    said = dict(line.partition(":")[::2] for line in info.decode(errors="replace").splitlines())
    # Valkey 9 has the second name only.
    mode = said.get("redis_mode", said.get("server_mode"))
    if mode == "sentinel":
        return "it is a Sentinel"
    if mode == "cluster" and not is_cluster:
        return "it runs in cluster mode"
    version = said.get("redis_version", "")
    words = re.match(r"(\d+)\.(\d+)", version)
    numbers = OLDEST_OF_CLUSTERS if words is None else (int(words[1]), int(words[2]))
    if is_cluster and numbers < OLDEST_OF_CLUSTERS:
        return f"it is Redis {version}, without sharded channels"
    return f"it is Redis {version}" if numbers < OLDEST else None
