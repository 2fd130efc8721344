"""One session on one or more Redis or Valkey servers: two connections to each, made again when they are lost."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import math
import random
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError, pack_command

from ...clock import monotonic
from ...events import CONNECTION, WIRE
from ...exceptions import ChannelLayerError, LayerUnavailable
from ...messages.codecs import BadPayload, Codec, decode_json
from ...messages.envelopes import (
    EXTERNAL,
    FORMATS,
    HEADER_ONLY,
    BadEnvelope,
    Envelope,
    Expired,
    Formats,
    batch_size,
    pack_names,
)
from ...messages.external import ExternalMessage
from ...messages.sealing import LOG, QUEUE, TOPIC, Seal, place
from ...names import NOT_LOGGED, Topic, Topics, owner_of
from ...settings.options import Options
from ...slices import Slice
from ..base import WAITS_SECONDS, Bus, Health, HostHealth, Link, Receiver, channel_full
from ..resp.connector import Connector
from ..resp.handover import let_go
from ..resp.protocol import WireProtocol
from ..resp.remedies import Remedies, unsupported
from ..resp.supervisor import Outages, SupervisedConnection, copy_error
from .layout import Layout, Lease, Standing
from .recovery import LogReader
from .sender import Message, Sender, Sending, TopicRoute, is_script_missing
from .sequences import SequenceNumbers, parse_position, stream_of
from .subscriptions import Subscription, SubscriptionLedger
from .watch import UNWRITABLE, Findings, Watch

_WAKE = b"+"
_ITEM_EXPIRY_DIGITS = 13
_SCAN_PAGE = 1000
# Of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# Seconds between two fences, and within which one must arrive: a listener that gets none is deaf.
_FENCE_EVERY = 5.0
_LONGEST_FENCE = 3.0
# How many times as long a fence may take behind large messages on a slow link. (A server drops a subscriber that
# is 8 MB behind for 60 s.)
_MOST_FENCE_LOOKS = 20
# An entry of s > 1024 bytes trims its log to LOG_BYTES / s entries; a message has `message_bytes` at most.
LOG_BYTES = 8 * 2**20
_UNUSED_LOG_EXPIRES = 900
# Between two looks whether others have stopped to write what this session does not read.
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.5
_LET_IN = (Standing.HELD, Standing.UNSAID)
# The life of a mark in ms, and how much longer it may be at random: no two marks are taken for one another.
_MARK_LIVES = 7 * 86_400_000
_MARK_DIFFERS = 86_400_000

Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str, begins_with: Script | None = None, **constants: int) -> Script:
        text = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_bytes()
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


class QueueRoute:
    """The route to a normal channel: messages one by one, each taken in once, by its number."""

    most = 0

    def __init__(self, bus: RedisBus, channel: str) -> None:
        self.open: Sending | None = None
        self._bus = bus
        self._channel = channel
        self._names = pack_names(channel)
        self._queue = queue = bus.topics.queue(channel)
        self._sender = bus.sender_of(queue.topic)
        self._lease = bus.lease_of(queue.topic)
        self._numbers = bus.push_numbers(queue.partition)
        self._place = place(QUEUE, queue.topic.name)
        self.batch_size = batch_size(bus.seal)
        self._capacity = bus.options.capacity_of(channel)

    async def send(self, payload: bytes) -> None:
        if not await self._sender.send(self, self._names, payload):
            raise channel_full(self._channel, self._capacity)

    def pack(self, messages: list[Message]) -> bytes:
        number = self._numbers.take()
        data = self._lease.format.pack(messages, self._bus.session_id, number, 0, self._bus.seal, self._place)
        expiry = _milliseconds(self._bus.options.expiry)
        topic, _, seen, waiting, _ = self._queue
        arguments = (data, self._capacity, expiry, number, *self._waits())
        return _packed(b"EVALSHA", PUSH.sha, 3, topic.name, seen, waiting, *arguments)

    def _waits(self) -> tuple[bytes | int, ...]:
        """Return what the script is told of a sender that waits: nothing, it is one that does not."""
        return ()


class WaitingRoute(QueueRoute):
    """The route to a normal channel for a sender that waits for a place since this was made."""

    def __init__(self, bus: RedisBus, channel: str) -> None:
        super().__init__(bus, channel)
        self._since = monotonic()

    async def send(self, payload: bytes) -> None:
        self._capacity = self._bus.options.capacity_of(self._channel)  # it may have been set meanwhile
        await super().send(payload)

    def _waits(self) -> tuple[bytes | int, ...]:
        waited = round(1000 * (monotonic() - self._since))
        return self._bus.session_id, waited, _milliseconds(WAITS_SECONDS)


class NameRoute:
    """The route to a channel of another session, by the inbox that its channels share, or to a group."""

    __slots__ = ("_bus", "_name", "_names", "_route", "topic")

    def __init__(self, bus: RedisBus, name: str, topic: Topic, route: TopicRoute | None = None) -> None:
        self.topic = topic
        self._bus = bus
        self._name = name
        self._names = b""
        self._route = route

    def send(self, payload: bytes, excluded: tuple[str, ...] = ()) -> Awaitable[Any]:
        names = pack_names(self._name, excluded) if excluded else self._names or self._pack_names()
        # Made by the first send: many groups are joined and never sent to from here.
        route = self._route or self._make_route()
        # For a group the reply is its normal channels; nil, which is None here, stands for none.
        return route.sender.send(route, names, payload)

    def _pack_names(self) -> bytes:
        self._names = pack_names(self._name)
        return self._names

    def _make_route(self) -> TopicRoute:
        self._route = self._bus.make_group_route(self._name)
        return self._route


class Shard:
    """One host: a line for commands, a line for pushes, and what this session is subscribed to there."""

    def __init__(self, bus: RedisBus, index: int, connector: Connector) -> None:
        self._bus = bus
        self.index = index
        self.connector = connector
        self.ledger = SubscriptionLedger()
        self._subscribing: WireProtocol | None = None
        # By topic, what was refused while the connection for pushes is set up: maybe why it does not come up.
        self._refused: dict[bytes, ReplyError] = {}
        # By topic: the UNSUBSCRIBE that has no reply yet.
        self._leaving: dict[bytes, asyncio.Future[Any]] = {}
        # What arrived last and was not taken: its bytes and, the first one last, those left of its envelopes.
        self._held: tuple[bytes, list[Envelope]] | None = None
        self.log = LogReader(
            bus.options,
            bus.receiver,
            self.ledger,
            self._read_log,
            partial(bus.open_all, index, is_logged=True),
            bus.unpack_headers,
            bus.formats,
        )
        # The servers that the lines reached when they connected, empty if they did not say: a server's run_id is
        # another after a restart.
        self._commands_run_id = self._pushes_run_id = b""
        layout = Layout.of(bus.options, index, bus.formats)
        self.lease = Lease(layout, bus.formats, connector.address, bus.options.prefix)
        # A task while this session turns to another format.
        self._changing: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._is_closed = False
        # What is logged is pushed behind the version of the wire, this, and the position of its last entry.
        self._logged = tuple(b"%c#" % version for version in bus.formats.versions)
        self._layouts = bus.topics.layouts(index)
        self._fence_topic = bus.topics.fence(index)
        self._partitions = bus.topics.partitions_of(index)
        logged = self._partitions if bus.options.recovery is not None else ()
        self._marks = [bus.topics.mark(partition) for partition in self._partitions]
        self._logs = [bus.topics.log(partition) for partition in logged]
        self._fence_number = 0
        # The time of the server, in ms, at which the last fence that arrived was sent.
        self._fenced_at = 0
        # The fences that were sent for the present connection for pushes and have not arrived.
        self._fences: dict[int, asyncio.Future[None]] = {}
        self._fence_timer: asyncio.TimerHandle | None = None
        self._watch = Watch(connector.address, self._partitions, bus.options.recovery)
        self._has_changed = False  # what the server may have lost by that is told already
        self._context = contextvars.Context()
        self._faults = bus.outages.faults_of(index)
        options = bus.options
        self.commands = SupervisedConnection(
            connector,
            "commands",
            options,
            self._set_up_commands,
            self._commands_changed,
            resends=True,
            outage=bus.outages.of(index, "commands"),
        )
        self.pushes = SupervisedConnection(
            connector,
            "pushes",
            options,
            self._set_up_pushes,
            bus.on_change,
            on_lost=self._pushes_lost,
            on_overdue=self.ledger.fail_waiters,
            messages=self,
            outage=bus.outages.of(index, "pushes"),
        )
        self.sender = Sender(self.commands, connector.address, connector.remedies, self._load_scripts)
        self.call = self.sender.call

    @property
    def is_up(self) -> bool:
        return self.commands.wire is not None and self.pushes.wire is not None

    def link(self) -> Link:
        reconnects = self.commands.reconnects + self.pushes.reconnects
        if self.is_up:
            return Link(self.connector.address, "connected", reconnects)
        if self.commands.is_resting and self.pushes.is_resting:
            return Link(self.connector.address, "closed", reconnects, self.commands.reason)
        reason = self.commands.reason or self.pushes.reason
        return Link(self.connector.address, "connecting", reconnects, reason)

    # Commands

    def _commands_changed(self) -> None:
        if self.commands.wire is not None:
            # Not with on_up(): another host may be down for long.
            self._bus.receiver.on_answerable()
            if self.pushes.wire is None:
                self._renew_later()
                self._bus.start()  # if it was resting
        self._bus.on_change()

    async def _set_up_commands(self, wire: WireProtocol) -> None:
        role = wire.call("ROLE")
        scripts = self._load_scripts(wire)
        layout = self.lease.layout
        leased = wire.call(*self._lease_command(layout))
        info, memory = wire.call("INFO", "server"), wire.call("INFO", "memory")
        replies = [role, *scripts, leased, info, memory]
        await asyncio.wait(replies)
        _raise_last_words(replies)
        self._check_server(role, info)
        _raise_refusals([*scripts, leased])
        self._commands_run_id = _run_id(info)
        if memory.exception() is None:
            self._watch.warn_of_evictions(memory.result())
        if self.lease.learn(leased.result(), layout) not in _LET_IN:
            await self._hold_lease(wire.call)

    def _check_server(self, role: asyncio.Future[Any], info: asyncio.Future[bytes]) -> None:
        """
        Raise for a server that cannot be used, by what it says to ROLE and INFO.

        It may refuse either: a user without permission for these may well have all the others.
        """
        refusal = role.exception()
        if refusal is not None and not str(refusal).startswith(("NOPERM", "ERR")):
            raise refusal
        problem = unsupported(info.result()) if info.exception() is None else None
        answer = [b"master"] if refusal is not None else role.result()
        if problem is None and (not isinstance(answer, list) or not answer or answer[0] != b"master"):
            problem = "it is a replica; only masters are used"
        if problem is not None:
            raise LayerUnavailable(self.connector.address, problem)

    def _load_scripts(self, wire: WireProtocol) -> list[asyncio.Future[Any]]:
        return [wire.call("SCRIPT", "LOAD", script.text) for script in self._bus.scripts]

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any] | None:
        """Send a command without waiting; None if the line is down. The future fails with ConnectionError."""
        wire = self.commands.wire
        if wire is None or wire.is_lost:
            return None
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wire.call(*command).add_done_callback(partial(self._asked, wire, command, answer, 0))
        return answer

    def _asked(
        self,
        wire: WireProtocol,
        command: tuple[bytes | str | int, ...],
        answer: asyncio.Future[Any],
        loads: int,
        reply: asyncio.Future[Any],
    ) -> None:
        if answer.done():
            return
        error = reply.exception()
        if error is None:
            self.sender.mark_healthy()
            answer.set_result(reply.result())
        elif isinstance(error, ReplyError):
            if self.sender.may_go_on(wire, error, loads) and not wire.is_lost:
                loads += is_script_missing(error)
                wire.call(*command).add_done_callback(partial(self._asked, wire, command, answer, loads))
            else:
                refused = str(self.sender.refused(error))
                self._faults.warn(WIRE, "command.refused", refused, "%s", refused)
                answer.set_exception(ConnectionAbortedError(refused))
        else:
            answer.set_exception(error)

    # The lease: what this session says of how it uses the namespace, and what others say

    def _lease_command(self, layout: Layout, script: Script = LEASE_SCRIPT, *more: bytes) -> Command:
        """Return the command that says a layout, or goes on saying it; `more` keys are for what else it does."""
        keys = (*self._bus.topics.lease_keys(self.index, layout.text()), *more)
        arguments = self.lease.arguments(
            layout, self._bus.session_id.hex().encode(), 1000 * self._unused_log_expires
        )
        return (b"EVALSHA", script.sha, len(keys), *keys, *arguments)

    @property
    def _unused_log_expires(self) -> int:
        """Seconds after which a log that nobody uses expires, and with it what it can be read for."""
        recovery = self._bus.options.recovery
        return _UNUSED_LOG_EXPIRES + (math.ceil(recovery.seconds) if recovery else 0)

    async def _hold_lease(self, call: Callable[..., Awaitable[Any]]) -> None:
        """
        Return when the session may read and write here.

        Raises:
            ImproperlyConfigured: others use the namespace in a way that does not go with this one.
        """
        pause = 0.0
        while True:
            layout = self.lease.layout
            if self.lease.learn(await call(*self._lease_command(layout)), layout) in _LET_IN:
                return
            # Others were told to look. One that is stopped is not waited for longer than its lease holds.
            await asyncio.sleep(pause)
            pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)

    def _renew_later(self) -> None:
        """Renew the lease after a while, unless a fence does that before."""
        if self._renewal is None and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._renewal = loop.call_later(_FENCE_EVERY, self._renew, context=self._context)

    def _renew(self) -> None:
        self._renewal = None
        self._look()
        if self.pushes.wire is None:
            self._renew_later()

    def _stop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    def _look(self) -> None:
        """Renew the lease, and see what others say."""
        layout = self.lease.layout
        answer = None if self._is_closed else self.ask(*self._lease_command(layout))
        if answer is not None:
            answer.add_done_callback(partial(self._looked, layout))

    def _looked(self, layout: Layout, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._leased(answer.result(), layout)

    def _leased(self, answer: Any, layout: Layout) -> bool:
        """Do what the answer to the script asks for; return whether the session may go on."""
        try:
            standing = self.lease.learn(answer, layout)
        except ImproperlyConfigured as exc:
            self._start_over(str(exc))
            return False
        except LayerUnavailable as exc:
            if exc.reason.startswith("READONLY"):
                self._start_over(exc.reason)
            return True  # a lease that is held still holds
        if standing is Standing.WAIT:
            self._start_over("after it was away, others write what this release does not read")
        elif standing is Standing.ASK_AGAIN:
            self._bus.loop.call_later(_FIRST_PAUSE, self._look, context=self._context)
        elif self._changing is None and not self._is_closed and self.lease.wanted != self.lease.layout:
            self._changing = self._bus.loop.create_task(
                self._change(),
                name=f"channels_asyncq changing the format for {self.connector.address}",
                context=contextvars.Context(),
            )
        return standing in _LET_IN

    def _start_over(self, reason: str) -> None:
        """Connect anew, and so wait until this session may take part again."""
        for wire in (self.commands.wire, self.pushes.wire):
            if wire is not None:
                wire.abort(ConnectionAbortedError(reason))

    async def _change(self) -> None:
        """Write what all others read: say so, do so, and take back what was said before."""
        lease = self.lease
        try:
            while lease.wanted != lease.layout:
                wanted, before = lease.wanted, lease.layout
                answer = await self.call(*self._lease_command(wanted), is_repeatable=True)
                standing = lease.learn(answer, wanted)
                if standing is Standing.HELD:
                    lease.turn_to(wanted)
                    # Behind the last message in the format of before, also where that is resent.
                    await self.call(*self._leave_command(before), is_repeatable=True)
                    lease.said.discard(before)
                elif standing is not Standing.ASK_AGAIN:
                    return
        except (ChannelLayerError, ImproperlyConfigured):
            pass  # the next fence, or the next connection, finds out the same
        finally:
            self._changing = None

    def _leave_command(self, layout: Layout) -> Command:
        text = layout.text()
        keys = self._bus.topics.lease_keys(self.index, text)[:2]
        return (b"EVALSHA", LEAVE.sha, len(keys), *keys, text, self._bus.session_id.hex())

    async def _leave(self) -> None:
        """Give the lease back, so that a process with another layout need not wait for its end."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
        wire = self.commands.wire
        if wire is not None:
            for layout in self.lease.said:
                wire.call(*self._leave_command(layout))

    # Pushes

    async def _set_up_pushes(self, wire: WireProtocol) -> None:
        """
        Subscribe to everything wanted, and catch up with what was missed since the connection was lost.

        What is logged and arrives before the server has confirmed all of it is discarded: it is in the logs.
        Then the connection is paused while they are read. Nothing is buffered.
        """
        log = self.log
        self.ledger.disconnect()
        # One that was sent earlier may be executed now: it would vouch for what is discarded.
        self._drop_fences()
        # Those who are refused for their layout are not to receive what others send.
        self.commands.raise_if_overdue()
        self.ledger.want(self._fence_topic.name, NOT_LOGGED)
        self.ledger.want(self._layouts, NOT_LOGGED)
        self._held = None
        log.discards = log.has_positions
        self._subscribing = wire
        info = wire.call("INFO", "server")
        fence, last = await self._subscribe_to_all(wire)
        # Replies come in the order of the commands: with the last one, all are there.
        await asyncio.wait([info, fence, last])
        _raise_last_words([info, last])
        # A refused topic was told to those who want it; the others must not suffer. Without the fence nobody can.
        fence.result()
        for topic, error in self._refused.items():
            self._note_refused(topic, error)
        self._refused.clear()
        run_id, last_run_id = _run_id(info), self._pushes_run_id
        await self.commands.up()
        if run_id and self._commands_run_id and run_id != self._commands_run_id:
            raise LayerUnavailable(self.connector.address, "commands and pushes reached two servers")
        if log.has_positions:
            # After the confirmations: what is not logged, and sent from now on, arrives.
            await self._hold_lease(partial(self.call, is_repeatable=True))
            log.is_reading = True
            # A server that does not say which it is may be another one.
            has_changed = not run_id or run_id != last_run_id
            self._has_changed = self._has_changed or has_changed
            try:
                await log.catch_up(has_changed=has_changed, has_gap=self.lease.gap >= self._fenced_at)
                if not has_changed and await self._has_refused():
                    self._bus.receiver.on_loss("not_logged", self._logged_topics(self._partitions))
            finally:
                log.is_reading = log.discards = False
                wire.resume()
            self._fence_in(0.0)
        else:
            # Without logs; or the first time, when there is nothing to compare.
            self._has_changed = self._has_changed or (
                b"" not in (run_id, last_run_id) and run_id != last_run_id
            )
            await self._first_fence()
            self._fence_in(_FENCE_EVERY)
        self._pushes_run_id = run_id

    async def _subscribe_to_all(self, wire: WireProtocol) -> tuple[asyncio.Future[Any], asyncio.Future[Any]]:
        """Send SUBSCRIBE for each topic that is wanted, in slices; return the fence's reply and the last one."""
        turn = Slice()
        # The fence's topic is always wanted.
        reply: asyncio.Future[Any] | None = None
        fence: asyncio.Future[Any] | None = None
        for entry in self.ledger:
            # Since the last turn it may have been given up, or wanted anew and sent.
            if not entry.is_sent and self.ledger.get(entry.topic) is entry:
                reply = self._send_subscribe(wire, entry)
                if entry.topic == self._fence_topic.name:
                    fence = reply
            await turn.rest()
        assert reply is not None and fence is not None
        return fence, reply

    def _pushes_lost(self) -> None:
        self.ledger.disconnect()
        self._stop_fence()
        self._drop_fences()
        self._renew_later()

    def _drop_fences(self) -> None:
        fences, self._fences = self._fences, {}
        for arrived in fences.values():
            if not arrived.done():
                arrived.set_exception(ConnectionResetError("the connection for pushes was lost"))
                arrived.exception()  # seen: nobody may be waiting

    def _stop_fence(self) -> None:
        if self._fence_timer is not None:
            self._fence_timer.cancel()
            self._fence_timer = None

    async def _read_log(self, partition: int, start: bytes, count: int) -> Any:
        key = self._bus.topics.log(partition)
        return await self.call(b"EVALSHA", READ_LOG.sha, 1, key, start, count, is_repeatable=True)

    async def _has_refused(self) -> bool:
        """
        Tell whether the server refused to write since the last fence: messages may be in no log.

        To be asked when the logs are read: an unlogged push that waits then may come behind later entries, and is
        dropped.
        """
        try:
            counts = await self.call(b"INFO", b"errorstats", is_repeatable=True)
        except ChannelLayerError as exc:
            if isinstance(exc, LayerUnavailable) or not isinstance(exc.__cause__, ReplyError):
                raise
            counts = b""  # not permitted; no script of this user publishes unlogged then
        return self._watch.has_refused(counts)

    def _logged_topics(self, partitions: Collection[int]) -> set[bytes]:
        return {entry.topic for entry in self.ledger if entry.partition in partitions}

    # The fence: what arrives before it has arrived

    def _new_fence(self) -> tuple[Command, asyncio.Future[None]]:
        """Return the command that publishes a fence, and what is done when that has arrived."""
        self._fence_number += 1
        arrived = self._fences[self._fence_number] = asyncio.get_running_loop().create_future()
        recovery = self._bus.options.recovery
        keep = math.ceil(recovery.seconds) if recovery else 0
        command = self._lease_command(self.lease.layout, FENCE, *self._marks, *self._logs)
        lifetime = _MARK_LIVES + _jitter.randrange(_MARK_DIFFERS)
        arguments = (self._fence_number, keep, self._unused_log_expires, len(self._marks), lifetime)
        return (*command, self._fence_topic.name, *arguments), arrived

    async def _first_fence(self) -> None:
        """
        Give every partition a position.

        Raises:
            TimeoutError: the fence did not arrive.
            ConnectionResetError: the connection on which it should have was lost, or this session was away.
        """
        layout = self.lease.layout
        command, arrived = self._new_fence()
        if not self._leased(await self.call(*command, is_repeatable=True), layout):
            raise ConnectionResetError("the lease had run out, and the fence does not count")
        async with asyncio.timeout(_LONGEST_FENCE):
            await arrived

    def _fence_in(self, seconds: float) -> None:
        if self._is_closed:
            return  # it came up in the turn in which it was closed
        self._stop_renewal()
        seconds *= _jitter.uniform(0.8, 1.2)
        loop = asyncio.get_running_loop()
        self._fence_timer = loop.call_later(seconds, self._send_fence, context=self._context)

    def _send_fence(self) -> None:
        layout = self.lease.layout
        command, arrived = self._new_fence()
        answer = self.ask(*command)
        if answer is None:
            self._fence_in(_FENCE_EVERY)
        else:
            answer.add_done_callback(partial(self._fence_sent, layout, arrived))

    def _fence_sent(self, layout: Layout, arrived: asyncio.Future[None], answer: asyncio.Future[Any]) -> None:
        failed = answer.cancelled() or answer.exception() is not None
        # Without a lease no fence was sent.
        failed = failed or not self._leased(answer.result(), layout)
        wire = self.pushes.wire
        if wire is None or (arrived.done() and arrived.exception() is not None):
            return  # the next connection has its own fences
        if failed or arrived.done():
            self._fence_in(_FENCE_EVERY)
            return
        self._look_for(arrived, wire, _MOST_FENCE_LOOKS, _LONGEST_FENCE)

    def _look_for(
        self,
        fence: asyncio.Future[None],
        wire: WireProtocol,
        looks: int,
        seconds: float,
        is_last: bool = False,
    ) -> None:
        """Look for a fence after a delay in seconds."""
        look = partial(self._is_deaf, fence, wire, looks, wire.arrived, is_last)
        self._fence_timer = asyncio.get_running_loop().call_later(seconds, look, context=self._context)

    def _is_deaf(
        self,
        fence: asyncio.Future[None],
        wire: WireProtocol,
        looks: int,
        before: tuple[int, int],
        is_last: bool,
    ) -> None:
        if fence.done():
            self._fence_in(_FENCE_EVERY)
            return
        # It may take longer to arrive than a lease holds.
        self._renew_later()
        if looks > 0 and wire.arrived != before and (wire.arrived[1] or before[1]):
            # A large message is arriving, which no log keeps: the fence comes after it.
            self._look_for(fence, wire, looks - 1, _LONGEST_FENCE)
        elif not is_last or wire.is_stalled:
            # It may be there, unread: this loop was blocked, or is still busy with what came before.
            self._look_for(fence, wire, looks, _LONGEST_FENCE / 10, is_last=True)
        else:
            wire.abort(TimeoutError("what is published does not arrive"))

    def _on_fence(self, data: bytes) -> None:
        positions, marks, refusal, counts = data.split(b"\n", 3)
        number, *ends = positions.split(b" ")
        if int(number) not in self._fences:
            return  # it vouches for an earlier connection
        self._fenced_at = int(marks.partition(b" ")[0])
        self.log.move_to(dict(zip(self._partitions, ends, strict=False)))
        findings = self._watch.note_fence(marks, refusal, counts)
        # Those before it may have been refused, and never come.
        for earlier in [earlier for earlier in self._fences if earlier <= int(number)]:
            arrived = self._fences.pop(earlier)
            if not arrived.done():
                arrived.set_result(None)
        self._act_on(findings)

    def _act_on(self, findings: Findings) -> None:
        """Tell the session what the server has lost."""
        # Who was told that it is another server, or the same without the end of its logs, knows enough.
        has_changed, self._has_changed = self._has_changed, False
        receiver = self._bus.receiver
        if findings.is_first:
            # Memberships that are older than this may be gone with marks that nobody here has seen.
            receiver.on_forgotten(self._partitions, set())
        elif findings.forgotten:
            # Without logs nothing of a topic was held.
            topics = self._logged_topics(findings.forgotten) if self._logs and not has_changed else set()
            # Keys are evicted one by one: those of other partitions may be gone before their marks.
            partitions = self._partitions if findings.has_evicted else findings.forgotten
            receiver.on_forgotten(partitions, topics)
            receiver.on_jobs_unknown(partitions)
            wire = self.commands.wire
            if wire is not None and not wire.is_lost and not has_changed:
                info = wire.call(b"INFO", b"all")
                info.add_done_callback(partial(self._explain, findings))
        elif findings.has_evicted:
            # A membership may be gone before its mark: those have the longest lives, and may be as old.
            receiver.on_forgotten(self._partitions, set())
            if receiver.on_jobs_unknown(self._partitions):
                self._watch.log_evictions()

    def _explain(self, findings: Findings, info: asyncio.Future[bytes]) -> None:
        self._watch.log_forgotten(findings, b"" if info.exception() is not None else info.result())

    def _send_subscribe(self, wire: WireProtocol, entry: Subscription) -> asyncio.Future[Any]:
        entry.is_sent = True
        reply = wire.call(b"SUBSCRIBE", entry.topic)
        reply.add_done_callback(partial(self._subscribed, entry))
        return reply

    def _subscribed(self, entry: Subscription, reply: asyncio.Future[Any]) -> None:
        error = reply.exception()
        if error is None:
            self._refused.pop(entry.topic, None)
            if self.ledger.confirm(entry):
                self._bus.receiver.on_subscribed(entry.topic)
        elif isinstance(error, ReplyError):
            if self.pushes.wire is None:
                self._refused[entry.topic] = error
            else:
                self._note_refused(entry.topic, error)
            self.ledger.refuse(entry, self.sender.refused(error))

    def _note_refused(self, topic: bytes, error: ReplyError) -> None:
        diagnosis = self.connector.remedies.diagnose(str(error))
        self._faults.warn(
            CONNECTION,
            "subscription.refused",
            diagnosis.cause,
            "%s refused a subscription to %s: %s",
            self.connector.address,
            topic.decode(),
            diagnosis.reason,
            level=logging.ERROR,
        )

    def subscribe(self, topic: Topic) -> None:
        entry = self.ledger.want(topic.name, topic.partition)
        wire = self._subscribing
        if not entry.is_sent and wire is not None and not wire.is_lost:
            entry.follows = self._leaving.get(topic.name)
            self._send_subscribe(wire, entry)

    def unsubscribe(self, topic: bytes) -> None:
        wire = self._subscribing
        if self.ledger.give_up(topic) and wire is not None and not wire.is_lost:
            self._leaving[topic] = reply = wire.call(b"UNSUBSCRIBE", topic)
            reply.add_done_callback(partial(self._left, topic))

    def _left(self, topic: bytes, reply: asyncio.Future[Any]) -> None:
        if self._leaving.get(topic) is reply:
            del self._leaving[topic]

    async def confirmed(self, topic: Topic) -> None:
        if not self.commands.was_up:
            # The commands' line compares the layout: nobody joins a namespace that is laid out otherwise.
            await self.commands.with_capacity()
        entry = self.ledger.get(topic.name)
        if entry is None or (entry.is_confirmed and self.pushes.wire is not None):
            return
        if entry.is_confirmed:
            # Confirmed on a connection that is still catching up, or has no position yet.
            await self.pushes.up()
            return
        self.subscribe(topic)  # again, if it was refused
        if self.pushes.wire is None and (refusal := self._refused.get(topic.name)) is not None:
            raise self.sender.refused(refusal) from refusal
        self.pushes.raise_if_overdue()
        self.pushes.start()
        waiter: asyncio.Future[None] = self._bus.loop.create_future()
        entry.waiters.append(waiter)
        try:
            await waiter
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            raise copy_error(exc) from exc
        finally:
            if entry.waiters and waiter in entry.waiters:
                entry.waiters.remove(waiter)
        if self.pushes.wire is None:
            await self.pushes.up()

    def on_message(self, topic: bytes, data: bytes) -> bool:
        log = self.log
        if log.is_reading:
            return False
        receiver = self._bus.receiver
        if data == _WAKE:
            receiver.on_wake(topic)
            return True
        entry = self.ledger.get(topic)
        if entry is None:
            return True  # given up while this was under way
        if entry.follows is not None:
            if not entry.follows.done():
                return True  # the same, and wanted again since: who joined after a message does not get it
            entry.follows = None
        position, end = 0, -1
        is_logged = data.startswith(self._logged)
        try:
            if topic == self._fence_topic.name:
                self._on_fence(data)
                return True
            if topic == self._layouts:
                self._look()
                return True
            if is_logged:
                # The position of the last entry stands before the envelopes; none if the server refused to write.
                end = data.index(b" ")
                position = parse_position(data[2:end]) if end > 2 else 0
                if data.startswith(b"{", end + 1):
                    raise ValueError("JSON from outside is in no log")
                if log.discards:
                    return True
            if position and position <= log.read_until.get(entry.partition, 0):
                return True
        except ValueError as exc:
            receiver.on_unreadable(topic, str(exc))
            return True
        held, self._held = self._held, None
        if held is not None and held[0] is data:
            envelopes = held[1]
        else:
            envelopes = self._bus.open_all(self.index, topic, data[end + 1 :], is_logged=is_logged)
            if not envelopes:
                if self._bus.formats.is_foreign(data):
                    # This session was away for longer than its lease held. It will hear of it, and connect anew.
                    log.note_missed(topic)
                return True  # unreadable, and so may be its position; a log is read there once more
            envelopes.reverse()
        if not log.deliver(entry, envelopes, is_logged=is_logged):
            self._held = (data, envelopes)
            return False
        if position:
            log.passed(entry.partition, position)
        return True

    def resume(self) -> None:
        if self.log.is_reading:
            self.log.resume()
        elif self._subscribing is not None:
            self._subscribing.resume_now()

    async def check(self) -> None:
        """Return when a command was answered and what it published has arrived."""
        while True:
            await self.pushes.up()
            try:
                return await self._first_fence()
            except ConnectionResetError:
                continue

    async def _write(self) -> None:
        """
        Renew the lease: a server that takes no messages refuses this as well.

        Raises:
            ChannelLayerError: it does.
        """
        layout = self.lease.layout
        answer = await self.call(*self._lease_command(layout), is_repeatable=True)
        if isinstance(answer, list) and answer[0] not in (b"in", b"out"):
            raise self.sender.refused(ReplyError(answer[0].decode(errors="replace")))
        self._leased(answer, layout)

    async def health(self, timeout: float) -> HostHealth:  # noqa: ASYNC109
        reason = ""
        try:
            async with asyncio.timeout(timeout) as deadline:
                await self.pushes.up()
                began = monotonic()
                await self.check()
                await self._write()
                return HostHealth(self.connector.address, True, "connected", seconds=monotonic() - began)
        except LayerUnavailable as exc:
            reason = exc.reason
            if reason.startswith(UNWRITABLE):
                reason = f"{reason.removesuffix('.')}. {self._watch.consequence}"
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            reason = str(exc)
        except TimeoutError:
            silence = f"no answer within {timeout:g} s" if deadline.expired() else "a fence did not arrive"
            reason = self.commands.reason or self.pushes.reason or silence
        return HostHealth(self.connector.address, False, self.link().state, reason)

    # Life

    def start(self) -> None:
        self.commands.start()
        self.pushes.start()

    async def answered(self) -> None:
        wire = self.commands.wire
        if wire is not None and not wire.is_lost:
            await asyncio.wait([wire.call("PING")])

    @property
    def is_busy(self) -> bool:
        # Who waits for a confirmation has nothing under way while the connection is set up.
        is_awaited = self._changing is not None or self.ledger.is_awaited
        return self.commands.is_busy or self.pushes.is_busy or is_awaited

    def rest(self) -> Awaitable[object]:
        closing = asyncio.gather(self.commands.rest(), self.pushes.rest())
        # Nor is the lease renewed: it runs out.
        self._stop_renewal()
        return closing

    async def close(self) -> None:
        self._is_closed = True
        self._stop_fence()
        self._stop_renewal()
        await self._leave()
        await asyncio.gather(self.commands.close(), self.pushes.close())

    def abort(self) -> None:
        self._is_closed = True
        self._stop_fence()
        self._stop_renewal()
        self.commands.abort()
        self.pushes.abort()


class RedisBus(Bus):
    """The bus over `hosts`: a name's partition decides which of them holds it."""

    def __init__(
        self,
        options: Options,
        topics: Topics,
        codec: Codec,
        session_id: str,
        receiver: Receiver,
        outages: Outages | None = None,
        formats: Formats = FORMATS,
    ) -> None:
        self.options = options
        self.outages = outages or Outages()
        self.topics = topics
        self.receiver = receiver
        self.formats = formats
        self._unpack = formats.unpack
        self._codec = codec
        self._decode = codec.decode
        self.session_id = bytes.fromhex(session_id)
        keys = options.symmetric_encryption_keys
        self.seal = Seal(keys, self._max_age, self.session_id) if keys else None
        self.loop = asyncio.get_running_loop()
        # Of the sends by stream, and of the pushes by partition.
        self._numbers: defaultdict[int, SequenceNumbers] = defaultdict(SequenceNumbers)
        self._pushes: defaultdict[int, SequenceNumbers] = defaultdict(SequenceNumbers)
        recovery = options.recovery
        self.scripts: tuple[Script, ...] = SCRIPTS
        self._is_logged: Callable[[str], bool] = lambda group: False
        if recovery is not None:
            # Constants in the script are arguments that need not be sent each time.
            send = Script.load(
                "send",
                MOST_ENTRIES=recovery.messages,
                MOST_BYTES=LOG_BYTES,
                IS_REQUIRED=int(recovery.required),
            )
            self.scripts += (send,)
            self._send_sha = send.sha
            self._is_logged = recovery.is_logged
        # By session: its channels share the route to its inbox, and so its commands, while any uses it.
        self._inboxes: weakref.WeakValueDictionary[str, TopicRoute] = weakref.WeakValueDictionary()
        self._is_up = False
        self._is_closed = False
        connect_timeout = max(1.0, options.send_timeout)
        texts = {script.sha.decode(): script.text.decode() for script in self.scripts}
        self._shards = [
            Shard(
                self,
                index,
                Connector(
                    host, connect_timeout=connect_timeout, remedies=Remedies(host, options.prefix, texts)
                ),
            )
            for index, host in enumerate(options.hosts)
        ]

    def start(self) -> None:
        for shard in self._shards:
            shard.start()

    async def answered(self) -> None:
        await asyncio.gather(*(shard.answered() for shard in self._shards))

    def rest(self) -> Awaitable[None] | None:
        if self._is_closed or any(shard.is_busy for shard in self._shards):
            return None
        # It is no outage: nobody is told that it was down.
        self._is_up = False
        return _all_done([shard.rest() for shard in self._shards])

    async def close(self) -> None:
        self._is_closed = True
        try:
            await asyncio.gather(*(shard.close() for shard in self._shards))
        except asyncio.CancelledError:
            for shard in self._shards:
                shard.abort()
            raise

    def let_go(self) -> None:
        self._is_closed = True
        for transport in self.transports():
            let_go(transport)

    def on_change(self) -> None:
        is_up = all(shard.is_up for shard in self._shards)
        if is_up == self._is_up or self._is_closed:
            return
        self._is_up = is_up
        if is_up:
            self.receiver.on_up()
        else:
            self.receiver.on_down()

    # Topics

    def subscribe(self, topic: Topic) -> None:
        self._shards[topic.shard].subscribe(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self._shards[topic.shard].unsubscribe(topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        shard = self._shards[topic.shard]
        entry = shard.ledger.get(topic.name)
        # Without the wire it is catching up, or has no position yet.
        return entry is not None and entry.is_confirmed and shard.pushes.wire is not None

    def confirmed(self, topic: Topic) -> Coroutine[Any, Any, None]:
        return self._shards[topic.shard].confirmed(topic)

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        return Health(tuple(await asyncio.gather(*(shard.health(timeout) for shard in self._shards))))

    async def checked(self, topic: Topic) -> None:
        await self._shards[topic.shard].commands.first_up()

    def open_all(self, shard: int, topic: bytes, data: bytes, *, is_logged: bool) -> list[Envelope]:
        """
        Return the envelopes in the bytes that arrived on a topic, or are in its log, decrypted and decoded.

        What is none, or of somebody without our keys, is left out and told to the receiver.
        """
        try:
            if data.startswith(b"{"):
                return [self._open_external(shard, topic, data)]
            sealed_for = b"" if self.seal is None else place(LOG if is_logged else TOPIC, topic)
            envelopes = self._unpack[data[:1]](data, self.seal, sealed_for)
        except (BadEnvelope, BadPayload) as exc:
            self.receiver.on_unreadable(topic, str(exc))
            if isinstance(exc, Expired):
                late = self._unpack[data[:1]](data, self.seal, sealed_for, is_late=True)
                self._shards[shard].log.note_expired(topic, late, is_logged=is_logged)
            return []
        expires_at = monotonic() + self.options.expiry
        readable = []
        open_one = self._open
        for envelope in envelopes:
            envelope.expires_at = expires_at
            try:
                open_one(envelope)
            except (BadEnvelope, BadPayload) as exc:
                self.receiver.on_unreadable(topic, str(exc))
            else:
                readable.append(envelope)
        return readable

    def unpack_headers(self, topic: bytes, data: bytes, is_late: bool) -> list[Envelope]:
        """
        Return the envelopes in an entry of a log, of which only sender and numbers count.

        Raises:
            BadEnvelope: there are none, or they are of somebody without our keys.
        """
        return self._unpack[data[:1]](data, self.seal, place(LOG, topic), is_late=is_late)

    def open(self, queue: bytes, data: bytes) -> Envelope:
        """
        Return the one envelope in the bytes of an item of this list.

        Raises:
            BadEnvelope, BadPayload: they are none, or of somebody without our keys.
        """
        envelope, *others = self._unpack[data[:1]](data, self.seal, place(QUEUE, queue))
        if others:
            raise BadEnvelope("several messages in one item of a normal channel")
        self._open(envelope)
        envelope.expires_at = monotonic() + self.options.expiry
        return envelope

    def _open(self, envelope: Envelope) -> None:
        if envelope.flags & HEADER_ONLY:
            raise BadEnvelope("the header of a message whose body no log holds")
        envelope.message = self._decode(envelope.payload)

    def _open_external(self, shard: int, topic: bytes, data: bytes) -> Envelope:
        if not self.topics.is_group(shard, topic):
            raise BadEnvelope("JSON from outside is read on the topics of groups only")
        if self.seal is not None:
            raise BadEnvelope("JSON from outside is refused: symmetric_encryption_keys are set")
        if len(data) > self.options.max_message_size:
            raise BadEnvelope(
                f"JSON of {len(data)} bytes; max_message_size is {self.options.max_message_size}"
            )
        allowed = self.options.external
        if allowed is None:
            raise BadEnvelope("JSON from outside is refused: `external` is None")
        message, group = ExternalMessage(decode_json(data)), self.topics.group_named(topic)
        if (refusal := allowed.refusal(message, group, self.options.notices)) is not None:
            raise BadEnvelope(refusal)
        try:
            payload = self._codec.encode(message)
        except TypeError as exc:
            raise BadEnvelope(f"JSON that cannot travel: {exc}") from None
        self.receiver.on_external()
        envelope = Envelope(payload, group, flags=EXTERNAL, expires_at=monotonic() + self.options.expiry)
        envelope.message = message
        return envelope

    # Sends. What all of those to one name have in common is made once.

    def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> Awaitable[int]:
        route = self._make_topic_route(topic, flags)
        return route.sender.send(route, pack_names(target), payload)

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        route = self._make_post_route(topic, flags)
        route.sender.post(route, (pack_names(target), payload))

    def channel_route(self, channel: str) -> QueueRoute | NameRoute:
        session_id = owner_of(channel)
        if session_id is None:
            return QueueRoute(self, channel)
        topic = self.topics.inbox(session_id)
        inbox = self._inboxes.get(session_id)
        if inbox is None:
            inbox = self._inboxes[session_id] = self._make_topic_route(topic, 0)
        return NameRoute(self, channel, topic, inbox)

    def waiting_route(self, channel: str) -> WaitingRoute:
        return WaitingRoute(self, channel)

    def stop_waiting(self, channel: str) -> None:
        queue = self.topics.queue(channel)
        answer = self._shards[queue.topic.shard].ask(b"HDEL", queue.waiting, self.session_id)
        if answer is not None:
            answer.add_done_callback(_forget)

    def group_route(self, group: str) -> NameRoute:
        return NameRoute(self, group, self.topics.group(group).topic)

    def make_group_route(self, group: str) -> TopicRoute:
        topic, members, log = self.topics.group(group)
        if self._is_logged(group):
            return self._route(topic, True, 0, b"EVALSHA", self._send_sha, b"2", log, members, topic.name)
        return self._route(topic, False, 0, b"EVALSHA", GROUP_SEND.sha, b"1", members, topic.name)

    def sender_of(self, topic: Topic) -> Sender:
        return self._shards[topic.shard].sender

    def lease_of(self, topic: Topic) -> Lease:
        return self._shards[topic.shard].lease

    def push_numbers(self, partition: int) -> SequenceNumbers:
        """Return what counts this session's pushes to the normal channels of a partition."""
        return self._pushes[partition]

    def _make_topic_route(self, topic: Topic, flags: int) -> TopicRoute:
        if self.options.recovery is None:
            return self._make_post_route(topic, flags)
        log = self.topics.log(topic.partition)
        return self._route(topic, True, flags, b"EVALSHA", self._send_sha, b"1", log, topic.name)

    def _make_post_route(self, topic: Topic, flags: int) -> TopicRoute:
        return self._route(topic, False, flags, b"PUBLISH", topic.name)

    def _route(self, topic: Topic, is_logged: bool, flags: int, *command: bytes) -> TopicRoute:
        recovery = self.options.recovery
        numbers = self._numbers[stream_of(topic.partition, is_logged=is_logged)]
        return TopicRoute(
            self._shards[topic.shard].sender,
            self._shards[topic.shard].lease,
            numbers,
            command,
            self.session_id,
            flags,
            self.seal,
            place(LOG if is_logged else TOPIC, topic.name),
            logged_bytes=recovery.message_bytes if recovery is not None and is_logged else 0,
            is_alone=flags != 0,
        )

    async def add_member(self, group: str, channel: str, seconds: float | None = None) -> None:
        topic, members_key, _ = self.topics.group(group)
        await self._shards[topic.shard].call(
            b"EVALSHA",
            ADD_MEMBER.sha,
            1,
            members_key,
            channel,
            _milliseconds(self.options.group_expiry if seconds is None else seconds),
            is_repeatable=True,
        )

    async def discard_member(self, group: str, channel: str) -> None:
        topic, members_key, _ = self.topics.group(group)
        await self._shards[topic.shard].call(b"ZREM", members_key, channel, is_repeatable=True)

    # Normal channels

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        topic, taken, *_ = self.topics.queue(channel)
        item = self._shards[topic.shard].ask(
            b"EVALSHA",
            POP.sha,
            2,
            topic.name,
            taken,
            number,
            _milliseconds(self.options.expiry),
            self.formats.oldest,
            self.formats.newest,
        )
        if item is None:
            return None
        envelope: asyncio.Future[Envelope | None] = asyncio.get_running_loop().create_future()
        item.add_done_callback(partial(self._popped, topic, envelope))
        return envelope

    def _popped(
        self, topic: Topic, answer: asyncio.Future[Envelope | None], item: asyncio.Future[Any]
    ) -> None:
        try:
            data = item.result()
            opened = None if data is None else self.open(topic.name, data[_ITEM_EXPIRY_DIGITS:])
        except (OSError, ValueError) as exc:
            answer.set_exception(exc)
        else:
            answer.set_result(opened)

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        topic, taken, *_ = self.topics.queue(channel)
        expiry = _milliseconds(self.options.expiry)
        return self._shards[topic.shard].ask(b"EVALSHA", GIVE_BACK.sha, 2, topic.name, taken, number, expiry)

    async def flush(self) -> None:
        for shard in self._shards:
            for pattern in self.topics.stored(shard.index):
                cursor = b"0"
                while True:
                    cursor, keys = await shard.call(
                        b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_PAGE, is_repeatable=True
                    )
                    stored = [key for key in keys if self.topics.is_stored(shard.index, key)]
                    if stored:
                        await shard.call(b"UNLINK", *stored, is_repeatable=True)
                    if cursor == b"0":
                        break

    # Flow and state

    def options_changed(self) -> None:
        if self.seal is not None:
            self.seal.limit_age(self._max_age)

    @property
    def _max_age(self) -> float:
        # What is unanswered is sent again as it is, and expires so long after that.
        return self.options.expiry + self.options.send_timeout

    def resume(self) -> None:
        for shard in self._shards:
            shard.resume()

    def transports(self) -> list[asyncio.BaseTransport]:
        return [
            transport
            for shard in self._shards
            for line in (shard.commands, shard.pushes)
            for transport in line.transports()
        ]

    def links(self) -> list[Link]:
        if self._is_closed:
            return [Link(shard.connector.address, "closed") for shard in self._shards]
        return [shard.link() for shard in self._shards]


def _packed(*command: bytes | str | int) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return packed


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


async def _all_done(awaitables: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*awaitables)


def _forget(answer: asyncio.Future[Any]) -> None:
    """Take note of an answer that changes nothing, also if it is an error."""
    if not answer.cancelled():
        answer.exception()


def _raise_last_words(replies: Collection[asyncio.Future[Any]]) -> None:
    """Raise why the connection ended, if it did: what the server said before, as that no more clients fit."""
    errors = [reply.exception() for reply in replies]
    ends = [error for error in errors if error is not None and not isinstance(error, ReplyError)]
    if ends:
        # What a user may not do ends no connection.
        words = [
            error
            for error in errors
            if isinstance(error, ReplyError) and not str(error).startswith(("NOPERM", "ERR unknown"))
        ]
        raise words[0] if words else ends[0]


def _raise_refusals(replies: Collection[asyncio.Future[Any]]) -> None:
    """Raise what was refused; where these are rights, all of them."""
    refusals = list(
        dict.fromkeys(str(error) for reply in replies if (error := reply.exception()) is not None)
    )
    if refusals:
        rights = [refusal for refusal in refusals if refusal.startswith("NOPERM")]
        raise ReplyError("; ".join(rights or refusals[:1]))


def _run_id(info: asyncio.Future[bytes]) -> bytes:
    """Return what INFO says of the server's identity; nothing if it may not be asked."""
    if info.exception() is not None:
        return b""
    for line in info.result().splitlines():
        if line.startswith(b"run_id:"):
            return line
    return b""
