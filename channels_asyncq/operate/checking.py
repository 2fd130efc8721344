"""Whether this machine can use the servers of a layer as it is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ..bus.redis.handshake import raise_last_words
from ..bus.resp.connector import Unreachable
from ..exceptions import ChannelLayerError, LayerUnavailable
from ..layer import AsyncQueueChannelLayer
from ..settings.options import Options
from . import server_checks
from .findings import Finding, State, has_fault
from .servers import Server, primaries_in, seeds_of, server_at, slots_of
from .trips import round_trips

__all__ = ["check"]


async def check(layer: AsyncQueueChannelLayer) -> AsyncGenerator[Finding]:
    """
    Yield what is found at each server of a layer, in a cluster at each primary, and then by using the layer.

    The layer itself connects only if no server has a fault.
    """
    options = layer.options
    if options.hosts[0].kind == "memory":
        text = "no server: each process has a layer of its own, which reaches nobody else"
        remedy = "Set `hosts` to the URL of a Redis or Valkey server, unless there is one process only"
        yield Finding("memory://", "address", State.WARNING, text, remedy)
        return
    found: list[Finding] = []
    servers: list[Server] = []
    if options.hosts[0].is_cluster:
        async for finding in _check_seeds(options, servers):
            found.append(finding)
            yield finding
    else:
        servers += [server_at(options, index) for index in range(len(options.hosts))]
    for server in servers:
        async for finding in _check_server(server):
            found.append(finding)
            yield finding
    if has_fault(found):
        return
    for server in servers:
        try:
            async for finding in round_trips(layer, server):
                yield finding
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            remedy = server.remedies.diagnose(str(exc)).remedy
            yield Finding(server.address, "join", State.FAULT, str(exc), remedy)


async def _check_seeds(options: Options, servers: list[Server]) -> AsyncIterator[Finding]:
    """Yield what is wrong with the nodes in the settings, and add all primaries to `servers`."""
    silent: list[Finding] = []
    for seed in seeds_of(options):
        try:
            findings = [each async for each in _connected(seed) if each.state is State.FAULT]
            if not findings:
                slots = await slots_of(seed)
        except LayerUnavailable as exc:
            found = seed.remedies.diagnose(exc.reason)
            findings = [Finding(seed.address, "server", State.FAULT, found.words, found.remedy)]
        finally:
            seed.close()
        if findings:
            silent += findings
            continue
        for finding in silent:
            # One that answers is enough.
            yield Finding(finding.server, finding.subject, State.WARNING, finding.text, finding.remedy)
        servers += primaries_in(slots, options)
        if not slots.is_whole:
            gap = next(slot for slot in range(16384) if slots.address_of(slot) is None)
            words = seed.remedies.diagnose(f"CLUSTERDOWN: no primary for slots {slots.gap_around(gap)}")
            yield Finding(seed.address, "slots", State.FAULT, words.words, words.remedy)
        return
    for finding in silent:
        yield finding


async def _check_server(server: Server) -> AsyncIterator[Finding]:
    """Yield what is found at one server, until a fault makes all that follows useless."""
    try:
        async for finding in _connected(server):
            yield finding
            if finding.state is State.FAULT:
                return
        for finding in await server_checks.rights(server):
            yield finding
        yield await server_checks.eviction(server)
        yield await server_checks.buffer_limits(server)
        yield await server_checks.clock(server)
        if server.has_layouts:
            yield await server_checks.layout(server)
        yield await server_checks.name(server)
    except (OSError, ReplyError) as exc:
        found = await server.diagnose(exc)
        yield Finding(server.address, found.part.value, State.FAULT, found.words, found.remedy)
    finally:
        server.close()


async def _connected(server: Server) -> AsyncIterator[Finding]:
    """Connect, and yield what address, TLS, login and the first answers show."""
    try:
        await server.connect()
        ping, info, role = (server.wire.call(*words) for words in (("PING",), ("INFO", "server"), ("ROLE",)))
        await asyncio.wait([ping, info, role])
        raise_last_words([ping, info, role])
        error = ping.exception()
        if error is not None and not str(error).startswith("NOPERM"):
            raise error
    except (OSError, ReplyError) as exc:
        found = exc.diagnosis if isinstance(exc, Unreachable) else await server.diagnose(exc)
        for finding in server_checks.failure(server, found.words, found.part, found.remedy):
            yield finding
        return
    for finding in server_checks.login(server):
        yield finding
    told, place = (reply.exception() or reply.result() for reply in (info, role))
    yield server_checks.version(server, told, place)
