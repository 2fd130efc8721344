"""What `check` looks at on one server. Each function returns what it found, and none raises for a refusal."""

from __future__ import annotations

import re
import shlex
import ssl
from collections.abc import Iterator

from hiredis import ReplyError

from ..bus.redis.layout import Layout, in_words
from ..bus.resp.remedies import Part, unsupported
from ..clock import monotonic, time_ns
from ..messages.sealing import CLOCK_ALLOWANCE
from .findings import Finding, State
from .rights import Rights, needed
from .servers import Server

__all__ = ["Fields", "buffer_limits", "clock", "eviction", "layout", "login", "name", "rights", "version"]

#: What the fields of INFO say.
Fields = dict[str, str]

# The default of `client-output-buffer-limit pubsub`, with which the pages reckon.
_HARD, _SOFT = 32 * 2**20, 8 * 2**20
_MIB = 2**20
# From this share of maxmemory on a server counts as nearly full.
_NEARLY = 0.9
_PAGE = "access control, on the page of advanced settings"


def _seen(server: Server, subject: str, text: str) -> Finding:
    return Finding(server.address, subject, State.OK, text)


def _unseen(server: Server, subject: str, command: str, refusal: object, consequence: str = "") -> Finding:
    """Return that the server has refused to tell something."""
    words = str(refusal)
    if words.startswith("NOPERM"):
        text, remedy = f"the user may not call {command}", f"Grant +{command.lower().replace(' ', '|')}"
        if not consequence:
            remedy += ", or have somebody look who may"
    elif words.startswith("ERR unknown"):
        text, remedy = f"the server does not know {command}", "Look where its provider shows its settings"
    else:
        text, remedy = words, ""
    if consequence:
        text = f"{text}. {consequence}"
    return Finding(server.address, subject, State.UNSEEN, f"not seen: {text}", remedy)


# The connection


def login(server: Server) -> Iterator[Finding]:
    """Yield what a connection that is made shows of address, TLS and login."""
    yield _seen(server, "address", "it answers")
    transport = server.wire.transport
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
    yield _seen(server, "TLS", "off" if tls is None else str(tls.version()))
    user = server.host.arguments.get("username") or "default"
    yield _seen(server, "login", f"as the user {user!r}")


def failure(server: Server, words: str, part: Part, remedy: str) -> Iterator[Finding]:
    """Yield why no connection was made, behind the parts that went well before."""
    for each in (Part.ADDRESS, Part.TLS, Part.LOGIN):
        if each is part:
            break
        if each is Part.TLS and server.host.transport != "tls":
            yield _seen(server, each.value, "off")
        else:
            yield _seen(server, each.value, "it answers" if each is Part.ADDRESS else "accepted")
    yield Finding(server.address, part.value, State.FAULT, words, remedy)


# What the server is


def fields_of(info: bytes) -> Fields:
    """Return the fields in a reply to INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, separator, value in lines if separator}


def version(server: Server, info: object, role: object) -> Finding:
    """Tell whether the server is one that can be used, by its replies to INFO and ROLE, or its refusals."""
    problem = unsupported(info, is_cluster=server.is_cluster) if isinstance(info, bytes) else None
    if problem is None and isinstance(role, list) and role and role[0] != b"master":
        problem = "it is a replica; only masters are used"
    if problem is not None:
        found = server.remedies.diagnose(problem)
        return Finding(server.address, "server", State.FAULT, found.words, found.remedy)
    if not isinstance(info, bytes):
        return _unseen(server, "server", "INFO", info)
    said = fields_of(info)
    name = (
        f"Valkey {said['valkey_version']}" if "valkey_version" in said else f"Redis {said['redis_version']}"
    )
    return _seen(server, "server", f"{name}, a primary" if isinstance(role, list) else name)


async def rights(server: Server) -> Iterator[Finding]:
    """
    Return which rights are missing, and whether the server takes writes. Another connection is made after that.

    Raises:
        OSError: the connection was lost.
    """
    found = await Rights.of(server)
    server.close()
    await server.connect()
    return iter([*_rights(server, found), _writes(server, found.refusal)])


def _rights(server: Server, found: Rights) -> Iterator[Finding]:
    prefix = server.options.prefix
    grants = found.grants(prefix)
    user = server.host.arguments.get("username") or "default"
    remedy = f"ACL SETUSER {shlex.quote(user)} {' '.join(grants)} (all that is needed: {_PAGE})"
    if found.fatal or found.lacks_keys or found.lacks_channels:
        yield Finding(server.address, "rights", State.FAULT, f"missing: {' '.join(grants)}", remedy)
    elif grants:
        yield Finding(server.address, "rights", State.WARNING, f"missing: {' '.join(grants)}", remedy)
    else:
        count = len(needed(is_cluster=server.is_cluster))
        yield _seen(server, "rights", f"all {count} commands, the keys ~{prefix}:*, the channels &{prefix}:*")
    for right in found.missing:
        if right.effect:
            text = f"without {right.command.upper()}, {right.effect}"
            yield Finding(server.address, "rights", State.WARNING, text, f"Grant +{right.command}")


def _writes(server: Server, refusal: str) -> Finding:
    if not refusal:
        return _seen(server, "writes", "it takes writes")
    found = server.remedies.diagnose(refusal)
    return Finding(server.address, "writes", State.FAULT, found.words, found.remedy)


# Its settings


async def eviction(server: Server) -> Finding:
    """Tell whether the server may delete keys of the layer, and how full it is."""
    try:
        said = fields_of(await server.wire.call("INFO", "memory"))
    except ReplyError as exc:
        return _unseen(server, "eviction", "INFO", exc)
    policy, most = said.get("maxmemory_policy", ""), int(said.get("maxmemory", 0))
    used = int(said.get("used_memory", 0))
    filled = f"; {used / _MIB:.0f} of {most / _MIB:.0f} MiB are used" if most else "; no maxmemory"
    text = f"maxmemory-policy {policy}{filled}"
    if policy != "noeviction":
        # Without a limit nothing is evicted yet.
        state = State.FAULT if most else State.WARNING
        remedy = "Set maxmemory-policy to noeviction, or give the layer a server of its own"
        return Finding(
            server.address,
            "eviction",
            state,
            f"{text}. Jobs, logs and memberships vanish when it is full",
            remedy,
        )
    if most and used > _NEARLY * most:
        return Finding(
            server.address,
            "eviction",
            State.WARNING,
            f"{text}. Full, it refuses writes",
            "Raise maxmemory, or see what fills it, as MEMORY STATS tells",
        )
    return _seen(server, "eviction", text)


async def buffer_limits(server: Server) -> Finding:
    """Tell whether the server gives processes that do not read for a moment enough time."""
    try:
        reply = await server.wire.call("CONFIG", "GET", "client-output-buffer-limit")
    except ReplyError as exc:
        return _unseen(server, "buffers", "CONFIG GET", exc)
    limits = re.search(rb"pubsub (\d+) (\d+) (\d+)", b" ".join(reply))
    if limits is None:
        return _unseen(server, "buffers", "CONFIG GET", "the server does not tell its limits")
    hard, soft, seconds = map(int, limits.groups())
    text = f"client-output-buffer-limit pubsub {hard} {soft} {seconds}"
    remedy = f'CONFIG SET client-output-buffer-limit "pubsub {_HARD} {_SOFT} 60", or more'
    most = server.options.max_message_size
    if 0 < hard <= most or 0 < soft <= most:
        why = f"a message may have {most} bytes (max_message_size), and whoever gets it is disconnected"
        return Finding(server.address, "buffers", State.FAULT, f"{text}: {why}", remedy)
    if 0 < hard < _HARD or (soft and (soft < _SOFT or seconds < 60)):
        why = "a process that does not read for a moment is disconnected"
        return Finding(server.address, "buffers", State.WARNING, f"{text}: {why}", remedy)
    return _seen(server, "buffers", text)


async def clock(server: Server) -> Finding:
    """Tell how far the server's clock is from ours."""
    began = monotonic()
    try:
        seconds, micros = await server.wire.call("TIME")
    except ReplyError as exc:
        return _unseen(server, "clock", "TIME", exc)
    now = time_ns() / 1e9 - (monotonic() - began) / 2
    ahead = int(seconds) + int(micros) / 1e6 - now
    text = f"{abs(ahead):.2f} s {'ahead of' if ahead >= 0 else 'behind'} this machine's"
    if abs(ahead) <= CLOCK_ALLOWANCE:
        return _seen(server, "clock", text)
    why = "positions and times of messages are wrong by that"
    state = State.WARNING
    if server.options.symmetric_encryption_keys:
        # Sealed messages carry the time of their sender.
        why, state = "encrypted messages are refused by machines whose clocks differ so", State.FAULT
    remedy = "Set both clocks (NTP): timedatectl tells which of them is wrong"
    return Finding(server.address, "clock", state, f"{text}: {why}", remedy)


async def name(server: Server) -> Finding:
    """Tell whether connections may have a name, by which CLIENT LIST shows whose they are."""
    wanted = server.host.arguments.get("client_name") or "asyncq-check"
    try:
        await server.wire.call("CLIENT", "SETNAME", str(wanted))
    except ReplyError as exc:
        text = "CLIENT LIST shows the connections of the site without names"
        return _unseen(server, "name", "CLIENT SETNAME", exc, text)
    return _seen(server, "name", "connections may have names")


async def layout(server: Server) -> Finding:
    """Tell whether the processes that run now use the prefix as these settings do, where the server knows it."""
    key = server.topics.layouts(server.index)
    try:
        seconds, _ = await server.wire.call("TIME")
        texts = await server.wire.call("ZRANGEBYSCORE", key, b"(%d" % (1000 * int(seconds)), "+inf")
    except ReplyError as exc:
        return _unseen(server, "layout", "ZRANGEBYSCORE", exc)
    ours = Layout.of(server.options, server.index)
    for text in texts:
        other, objections = ours.compare(text)
        if objections:
            return Finding(server.address, "layout", State.FAULT, *in_words(objections))
        if other is not None and not ours.reads(other):
            words = "a running process writes a format that this release does not read yet"
            remedy = "Nothing: the first process of this release waits until the others have changed"
            return Finding(server.address, "layout", State.WARNING, words, remedy)
    return _seen(server, "layout", "that of the running processes" if texts else "no process runs")
