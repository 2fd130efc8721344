"""One session on one or more Redis or Valkey servers: two connections to each, made again when they are lost."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import hashlib
import json
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from time import monotonic
from typing import Any

from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ..codecs import BadPayload, Codec, decode_json
from ..envelopes import ENCRYPTED, WIRE_VERSION, BadEnvelope, Envelope, pack, unpack
from ..exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from ..journal import CONNECTION, WIRE, Throttle, record
from ..options import Options
from ..topics import Topic, Topics
from .base import Bus, Link, Receiver
from .connections import Connector
from .subscriptions import Subscription, SubscriptionLedger
from .wire import NoAnswer, NotSent, WireProtocol

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 2.0
_WAKE = b"+"
_ITEM_EXPIRY_DIGITS = 13
_SCAN_PAGE = 1000
# Errors of a server that is there and cannot serve now: the connection is given up, and made again.
_UNSERVING = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOREPLICAS")


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str) -> Script:
        text = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_bytes()
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


PUSH = Script.load("push")
POP = Script.load("pop")
GIVE_BACK = Script.load("give_back")
GROUP_SEND = Script.load("group_send")
ADD_MEMBER = Script.load("add_member")
_GROUP_SEND = GROUP_SEND.sha
SCRIPTS = (PUSH, POP, GIVE_BACK, GROUP_SEND, ADD_MEMBER)


class Line:
    """
    One connection that is made again whenever it is lost.

    `wire` is there while it is up: connected, and `set_up(wire)` done. There is a task only while connecting.
    Who waits for the line waits until `send_timeout` after its loss; after that, waiting fails at once.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        options: Options,
        set_up: Callable[[WireProtocol], Awaitable[None]],
        on_change: Callable[[], None],
        on_lost: Callable[[], None] | None = None,
        on_overdue: Callable[[Exception], None] | None = None,
        on_message: Callable[[bytes, bytes], bool] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._name = name
        self._send_timeout = options.send_timeout
        self._set_up = set_up
        self._on_change = on_change
        self._on_lost = on_lost
        self._on_overdue = on_overdue
        self._on_message = on_message
        self._throttle = Throttle()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # In the order in which they came, which is the order in which they will write.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._delay = _FIRST_DELAY
        self._overdue: Exception | None = None
        self._is_closed = False
        self.wire: WireProtocol | None = None
        self.reconnects = 0
        self.was_up = False
        self.is_refusing = False  # the last connection was given up for what the server answered
        self.reason = "not connected yet"

    # Up and down

    def start(self) -> None:
        """Begin connecting, unless that is under way, done, or the line is closed."""
        if self._is_closed or self.wire is not None or (self._task is not None and not self._task.done()):
            return
        if self._timer is None and self._overdue is None:
            self._timer = self._loop.call_later(
                self._send_timeout, self._is_overdue, context=contextvars.Context()
            )
        self._task = self._loop.create_task(
            self._connect(),
            name=f"channels_asyncq connecting {self._name} to {self._connector.address}",
            context=contextvars.Context(),
        )

    async def _connect(self) -> None:
        delay = self._delay if self.was_up else 0.0
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            try:
                wire = await self._connector.connect(self._make_wire)
                try:
                    await self._set_up(wire)
                except BaseException as exc:
                    wire.abort(ConnectionAbortedError(f"{exc}"))
                    if self._on_lost is not None:
                        self._on_lost()
                    raise
            except ImproperlyConfigured as exc:
                self._note_failure(exc)
                self._stop_timer()
                self._give_up_waiting(exc)
            except Exception as exc:
                # Whatever it is, a server that answers nonsense included: the next attempt may succeed.
                self._note_failure(exc)
            else:
                # An end of the connection that came in between has set is_lost; on_lost() found no `wire`.
                if not wire.is_lost:
                    self._came_up(wire)
                    return
                self.reason = "the connection was lost while it was being set up"
                if self._on_lost is not None:
                    self._on_lost()
            delay = min(_LONGEST_DELAY, max(delay, _FIRST_DELAY / 2) * 2)

    def _make_wire(self) -> WireProtocol:
        wire: WireProtocol = WireProtocol(
            on_lost=lambda error: self._lost(wire, error),
            on_message=self._on_message,
            timeout=self._send_timeout,
        )
        return wire

    def _note_failure(self, exc: Exception) -> None:
        self.reason = exc.reason if isinstance(exc, LayerUnavailable) else str(exc) or type(exc).__name__
        self._throttle.warn(
            CONNECTION,
            "connection.failed",
            "cannot connect %s to %s: %s",
            self._name,
            self._connector.address,
            self.reason,
        )

    def _came_up(self, wire: WireProtocol) -> None:
        self.wire = wire
        if not self.is_refusing:
            self.serves()
        if self.was_up:
            self.reconnects += 1
            record(
                CONNECTION,
                logging.INFO,
                "connection.restored",
                "%s to %s are connected again",
                self._name,
                self._connector.address,
            )
        self.was_up = True
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._on_change()

    def serves(self) -> None:
        """Note that the outage is over: the connection is there, and the server does what it is told."""
        self.is_refusing = False
        self._delay = _FIRST_DELAY
        self._stop_timer()
        self._overdue = None
        self.reason = ""

    def give_up(self, wire: WireProtocol, reason: str) -> None:
        """End a connection whose server cannot serve. The outage lasts until `serves()`, not until the next one."""
        if not wire.is_lost:
            self._delay = min(_LONGEST_DELAY, 2 * self._delay)
        self.is_refusing = True
        self.reason = reason
        wire.abort(ConnectionAbortedError(reason))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self, wire: WireProtocol, error: Exception | None) -> None:
        if self.wire is not wire:
            return
        self.wire = None
        if self._on_lost is not None:
            self._on_lost()
        if self._is_closed:
            return
        self.reason = str(error) or type(error).__name__
        self._throttle.warn(
            CONNECTION,
            "connection.lost",
            "lost the connection for %s to %s: %s",
            self._name,
            self._connector.address,
            self.reason,
        )
        self.start()
        self._on_change()

    def _is_overdue(self) -> None:
        self._timer = None
        self._give_up_waiting(self.unavailable())

    def _give_up_waiting(self, error: Exception) -> None:
        self._overdue = error
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        if self._on_overdue is not None:
            self._on_overdue(error)

    def unavailable(self) -> LayerUnavailable:
        return LayerUnavailable(self._connector.address, self.reason)

    # For those who need it

    def raise_if_overdue(self) -> None:
        """Raise what sends fail with by now, if waiting is over."""
        if self._is_closed:
            raise LayerClosed()
        if self.wire is None and self._overdue is not None:
            if isinstance(self._overdue, LayerUnavailable):
                raise self.unavailable()
            raise _own(self._overdue)

    async def with_room(self) -> WireProtocol:
        """
        Return the wire when it is up and may be written to.

        Raises:
            LayerUnavailable: `send_timeout` seconds have passed since the loss of the connection.
            ImproperlyConfigured: the server holds another layout of this namespace.
        """
        while True:
            wire = self.wire
            if wire is not None and not wire.is_lost:
                try:
                    await wire.room()
                    return wire
                except NotSent:
                    continue
            self.raise_if_overdue()
            self.start()
            waiter = self._loop.create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            except (ChannelLayerError, ImproperlyConfigured) as exc:
                raise _own(exc) from exc
            finally:
                self._waiters.pop(waiter, None)

    async def first_up(self) -> None:
        """
        Return when the line was up once, however long that takes.

        Raises:
            ImproperlyConfigured: the server holds another layout of this namespace.
            LayerClosed: the line was closed.
        """
        while not self.was_up:
            if self._overdue is not None and not isinstance(self._overdue, LayerUnavailable):
                raise _own(self._overdue)
            self.start()
            waiter = self._loop.create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            except LayerUnavailable:
                pass
            except (ChannelLayerError, ImproperlyConfigured) as exc:
                raise _own(exc) from exc
            finally:
                self._waiters.pop(waiter, None)

    async def close(self) -> None:
        """End the connection and the attempts at one. Safe to call twice."""
        self._is_closed = True
        self._stop_timer()
        self._give_up_waiting(LayerClosed())
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        wire, self.wire = self.wire, None
        if wire is not None:
            await wire.close()

    def abort(self) -> None:
        """End the connection and the attempts at one now, after a close() that was cancelled."""
        self._is_closed = True
        self._stop_timer()
        self._give_up_waiting(LayerClosed())
        if self._task is not None:
            self._task.cancel()
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.abort(ConnectionAbortedError("closing was cancelled"))


class Shard:
    """One host: a line for commands, a line for pushes, and what this session is subscribed to there."""

    def __init__(self, bus: RedisBus, index: int, connector: Connector) -> None:
        self._bus = bus
        self.index = index
        self.connector = connector
        self.ledger = SubscriptionLedger()
        self._subscribing: WireProtocol | None = None
        self._held: tuple[bytes, Envelope] | None = None
        self._throttle = Throttle()
        options = bus.options
        self.commands = Line(connector, "commands", options, self._set_up_commands, self._commands_changed)
        self.pushes = Line(
            connector,
            "pushes",
            options,
            self._set_up_pushes,
            bus.on_change,
            on_lost=self.ledger.disconnect,
            on_overdue=self.ledger.fail_waiters,
            on_message=self._on_message,
        )

    @property
    def is_up(self) -> bool:
        return self.commands.wire is not None and self.pushes.wire is not None

    def link(self) -> Link:
        reconnects = self.commands.reconnects + self.pushes.reconnects
        if self.is_up:
            return Link(self.connector.address, "connected", reconnects)
        reason = self.commands.reason or self.pushes.reason
        return Link(self.connector.address, "connecting", reconnects, reason)

    # Commands

    def _commands_changed(self) -> None:
        if self.commands.wire is not None:
            # Not with on_up(): another host may be down for long.
            self._bus.receiver.on_answerable()
        self._bus.on_change()

    async def _set_up_commands(self, wire: WireProtocol) -> None:
        role = wire.call("ROLE")
        scripts = [wire.call("SCRIPT", "LOAD", script.text) for script in SCRIPTS]
        layout_key = self._bus.topics.layout_key(self.index)
        written = wire.call("SET", layout_key, self._bus.layout, "NX")
        layout = wire.call("GET", layout_key)
        await asyncio.wait([role, *scripts, written, layout])
        try:
            answer = role.result()
        except ReplyError as exc:
            # A user without permission for ROLE may well have all the others.
            if not str(exc).startswith(("NOPERM", "ERR")):
                raise
        else:
            if not isinstance(answer, list) or not answer or answer[0] != b"master":
                raise LayerUnavailable(self.connector.address, "it is a replica; only masters are used")
        for script in scripts:
            script.result()
        found = layout.result()
        if found is None:
            written.result()
        elif found != self._bus.layout:
            raise ImproperlyConfigured(
                f"The namespace of prefix {self._bus.options.prefix!r} on {self.connector.address} was laid out "
                f"with {_described(found)}, and this process has {_described(self._bus.layout)}. Use the same "
                "settings in every process, or another `prefix`; when no process uses the old layout any more, "
                f"delete the key {layout_key.decode()!r}."
            )

    async def call(self, *command: bytes | str | int, is_repeatable: bool = False) -> Any:
        """
        Return the reply to a command, waiting for the line if it is down.

        A repeatable command is sent again when the connection ended without an answer.
        """
        while True:
            wire = self.commands.wire
            if wire is None or wire.is_lost or not wire.has_room:
                wire = await self.commands.with_room()
            try:
                reply = await wire.call(*command)
                if self.commands.is_refusing:
                    self.commands.serves()
                return reply
            except NotSent:
                continue
            except NoAnswer as exc:
                if is_repeatable:
                    continue
                raise DeliveryUnknown(
                    f"{self.connector.address} was sent the message and did not answer: {exc.__cause__ or exc}"
                ) from exc
            except ReplyError as exc:
                if not self._may_go_on(wire, exc):
                    raise self._refused(exc) from exc

    def _may_go_on(self, wire: WireProtocol, exc: ReplyError) -> bool:
        """Deal with an error that says that a command was not executed; True if it should be sent again."""
        text = str(exc)
        if text.startswith("NOSCRIPT"):
            for script in SCRIPTS:
                wire.call("SCRIPT", "LOAD", script.text)
            return True
        if text.startswith(_UNSERVING):
            self.commands.give_up(wire, text)
            return True
        return False

    def _refused(self, exc: ReplyError) -> ChannelLayerError:
        text = str(exc)
        if text.startswith(("OOM", "MISCONF", "BUSY")):
            return LayerUnavailable(self.connector.address, text)
        if text.startswith("NOPERM"):
            prefix = self._bus.options.prefix
            text += f" (the user needs the patterns ~{prefix}:* and &{prefix}:*, and the commands of scripts)"
        return ChannelLayerError(f"{self.connector.address} refused: {text}")

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | str | int) -> Any:
        return await self.call(b"EVALSHA", script.sha, len(keys), *keys, *arguments)

    def ask(
        self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | str | int
    ) -> asyncio.Future[Any] | None:
        """Send a script without waiting; None if the line is down. The future fails with ConnectionError."""
        wire = self.commands.wire
        if wire is None or wire.is_lost:
            return None
        command = (b"EVALSHA", script.sha, len(keys), *keys, *arguments)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wire.call(*command).add_done_callback(partial(self._asked, wire, command, answer))
        return answer

    def _asked(
        self,
        wire: WireProtocol,
        command: tuple[bytes | str | int, ...],
        answer: asyncio.Future[Any],
        reply: asyncio.Future[Any],
    ) -> None:
        if answer.done():
            return
        error = reply.exception()
        if error is None:
            if self.commands.is_refusing:
                self.commands.serves()
            answer.set_result(reply.result())
        elif isinstance(error, ReplyError):
            if self._may_go_on(wire, error) and not wire.is_lost:
                wire.call(*command).add_done_callback(partial(self._asked, wire, command, answer))
            else:
                self._throttle.warn(
                    WIRE, "command.refused", "%s refused a command: %s", self.connector.address, error
                )
                answer.set_exception(ConnectionAbortedError(str(error)))
        else:
            answer.set_exception(error)

    # Pushes

    async def _set_up_pushes(self, wire: WireProtocol) -> None:
        """Subscribe to everything wanted and return when the server has confirmed all of it."""
        self.ledger.disconnect()
        self._held = None
        self._subscribing = wire
        replies = [self._send_subscribe(wire, entry) for entry in self.ledger]
        if replies:
            await asyncio.wait(replies)
        for reply in replies:
            # A refused topic was told to those who want it; the others must not suffer.
            if not isinstance(reply.exception(), ReplyError):
                reply.result()

    def _send_subscribe(self, wire: WireProtocol, entry: Subscription) -> asyncio.Future[Any]:
        entry.is_sent = True
        reply = wire.call(b"SUBSCRIBE", entry.topic)
        reply.add_done_callback(partial(self._subscribed, entry))
        return reply

    def _subscribed(self, entry: Subscription, reply: asyncio.Future[Any]) -> None:
        error = reply.exception()
        if error is None:
            if self.ledger.confirm(entry):
                self._bus.receiver.on_subscribed(entry.topic)
        elif isinstance(error, ReplyError):
            record(
                CONNECTION,
                logging.ERROR,
                "subscription.refused",
                "%s refused a subscription to %s: %s",
                self.connector.address,
                entry.topic.decode(),
                error,
            )
            self.ledger.refuse(entry, self._refused(error))

    def subscribe(self, topic: bytes) -> None:
        entry = self.ledger.want(topic)
        wire = self._subscribing
        if not entry.is_sent and wire is not None and not wire.is_lost:
            self._send_subscribe(wire, entry)

    def unsubscribe(self, topic: bytes) -> None:
        wire = self._subscribing
        if self.ledger.give_up(topic) and wire is not None and not wire.is_lost:
            wire.call(b"UNSUBSCRIBE", topic)

    def is_confirmed(self, topic: bytes) -> bool:
        entry = self.ledger.get(topic)
        return entry is not None and entry.is_confirmed

    async def confirmed(self, topic: bytes) -> None:
        if not self.commands.was_up:
            # The commands' line compares the layout: nobody joins a namespace that is laid out otherwise.
            await self.commands.with_room()
        entry = self.ledger.get(topic)
        if entry is None or entry.is_confirmed:
            return
        self.subscribe(topic)  # again, if it was refused
        self.pushes.raise_if_overdue()
        self.pushes.start()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        try:
            await waiter
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            raise _own(exc) from exc
        finally:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)

    def _on_message(self, topic: bytes, data: bytes) -> bool:
        receiver = self._bus.receiver
        if data == _WAKE:
            receiver.on_wake(topic)
            return True
        if self._held is not None and self._held[0] is data:
            envelope = self._held[1]
        else:
            try:
                envelope = self._bus.open(self.index, topic, data)
            except (BadEnvelope, BadPayload) as exc:
                receiver.on_unreadable(topic, str(exc))
                return True
        if receiver.on_envelope(topic, envelope):
            self._held = None
            return True
        self._held = (data, envelope)
        return False

    def resume(self) -> None:
        wire = self._subscribing
        if wire is not None:
            wire.resume()

    # Life

    def start(self) -> None:
        self.commands.start()
        self.pushes.start()

    async def close(self) -> None:
        await asyncio.gather(self.commands.close(), self.pushes.close())

    def abort(self) -> None:
        self.commands.abort()
        self.pushes.abort()


class RedisBus(Bus):
    """The bus over `hosts`: a name's partition decides which of them holds it."""

    def __init__(
        self,
        options: Options,
        topics: Topics,
        codec: Codec,
        node: str,
        receiver: Receiver,
    ) -> None:
        self.options = options
        self.topics = topics
        self.receiver = receiver
        self.layout = json.dumps(
            {"hosts": len(options.hosts), "partitions": options.partitions, "wire": WIRE_VERSION}
        ).encode()
        self._codec = codec
        self._node = bytes.fromhex(node)
        self._seq = 0
        self._is_up = False
        self._is_closed = False
        connect_timeout = max(1.0, options.send_timeout)
        self._shards = [
            Shard(self, index, Connector(host, connect_timeout=connect_timeout))
            for index, host in enumerate(options.hosts)
        ]

    def start(self) -> None:
        for shard in self._shards:
            shard.start()

    async def close(self) -> None:
        self._is_closed = True
        try:
            await asyncio.gather(*(shard.close() for shard in self._shards))
        except asyncio.CancelledError:
            for shard in self._shards:
                shard.abort()
            raise

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
        self._shards[topic.shard].subscribe(topic.name)

    def unsubscribe(self, topic: Topic) -> None:
        self._shards[topic.shard].unsubscribe(topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        return self._shards[topic.shard].is_confirmed(topic.name)

    async def confirmed(self, topic: Topic) -> None:
        await self._shards[topic.shard].confirmed(topic.name)

    async def checked(self, topic: Topic) -> None:
        await self._shards[topic.shard].commands.first_up()

    def open(self, shard: int, topic: bytes, data: bytes) -> Envelope:
        """
        Return the envelope in the bytes that arrived on a topic, decrypted.

        Raises:
            BadEnvelope, BadPayload: they are none, or of somebody without our keys.
        """
        if data.startswith(b"{"):
            envelope = self._open_external(shard, topic, data)
        else:
            envelope = unpack(data)
            if envelope.flags & ENCRYPTED:
                if not self._codec.encrypted:
                    raise BadEnvelope("encrypted, and this process has no symmetric_encryption_keys")
                envelope.payload = self._codec.decrypt(envelope.payload)
            elif self._codec.encrypted:
                raise BadEnvelope("not encrypted, and symmetric_encryption_keys are set")
            envelope.message = self._codec.decode(envelope.payload)
        envelope.expires_at = monotonic() + self.options.expiry
        return envelope

    def _open_external(self, shard: int, topic: bytes, data: bytes) -> Envelope:
        if not self.topics.is_group(shard, topic):
            raise BadEnvelope("JSON from outside is read on the topics of groups only")
        if self._codec.encrypted:
            raise BadEnvelope("JSON from outside is refused: symmetric_encryption_keys are set")
        if len(data) > self.options.max_message_size:
            raise BadEnvelope(
                f"JSON of {len(data)} bytes; max_message_size is {self.options.max_message_size}"
            )
        message = decode_json(data)
        kind = message.get("type")
        if not isinstance(kind, str) or not kind:
            raise BadEnvelope("JSON without a `type`")
        try:
            payload = self._codec.encode(message)
        except TypeError as exc:
            raise BadEnvelope(f"JSON that cannot travel: {exc}") from None
        self.receiver.on_external()
        return Envelope(payload, self.topics.group_named(topic))

    def _pack(self, target: str, payload: bytes, flags: int = 0, excluded: tuple[str, ...] = ()) -> bytes:
        """Return the wire form of a message; sequence numbers grow in the order of these calls."""
        self._seq += 1
        if self._codec.encrypted:
            flags |= ENCRYPTED
            payload = self._codec.encrypt(payload)
        return pack(target, payload, self._node, self._seq, flags, excluded)

    async def publish(self, topic: Topic, target: str, payload: bytes, flags: int = 0) -> int:
        data = self._pack(target, payload, flags)
        receivers: int = await self._shards[topic.shard].call(b"PUBLISH", topic.name, data)
        return receivers

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        wire = self._shards[topic.shard].commands.wire
        if wire is not None:
            wire.call(b"PUBLISH", topic.name, self._pack(target, payload, flags))

    def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        topic, members_key = self.topics.group(group)
        data = self._pack(group, payload, 0, excluded)
        # nil, which is None here, stands for no members.
        return self._shards[topic.shard].call(b"EVALSHA", _GROUP_SEND, b"1", members_key, topic.name, data)

    async def add_member(self, group: str, channel: str) -> None:
        topic, members_key = self.topics.group(group)
        await self._shards[topic.shard].call(
            b"EVALSHA",
            ADD_MEMBER.sha,
            1,
            members_key,
            channel,
            _milliseconds(self.options.group_expiry),
            is_repeatable=True,
        )

    async def discard_member(self, group: str, channel: str) -> None:
        topic, members_key = self.topics.group(group)
        await self._shards[topic.shard].call(b"ZREM", members_key, channel, is_repeatable=True)

    # Normal channels

    async def push(self, channel: str, payload: bytes, capacity: int) -> None:
        topic = self.topics.queue(channel).topic
        has_room = await self._shards[topic.shard].run(
            PUSH, (topic.name,), self._pack(channel, payload), capacity, _milliseconds(self.options.expiry)
        )
        if not has_room:
            raise ChannelFull(
                f"channel {channel!r} holds {capacity} messages, its capacity; start more readers, "
                "raise `capacity` or `channel_capacity`, or use send_wait()"
            )

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        topic, taken = self.topics.queue(channel)
        item = self._shards[topic.shard].ask(
            POP, (topic.name, taken), number, _milliseconds(self.options.expiry)
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
            opened = None if data is None else self.open(topic.shard, topic.name, data[_ITEM_EXPIRY_DIGITS:])
        except (OSError, ValueError) as exc:
            answer.set_exception(exc)
        else:
            answer.set_result(opened)

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        topic, taken = self.topics.queue(channel)
        return self._shards[topic.shard].ask(
            GIVE_BACK, (topic.name, taken), number, _milliseconds(self.options.expiry)
        )

    async def flush(self) -> None:
        for shard in self._shards:
            for pattern in self.topics.stored(shard.index):
                cursor = b"0"
                while True:
                    cursor, keys = await shard.call(
                        b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_PAGE, is_repeatable=True
                    )
                    if keys:
                        await shard.call(b"UNLINK", *keys, is_repeatable=True)
                    if cursor == b"0":
                        break

    # Flow and state

    def resume(self) -> None:
        for shard in self._shards:
            shard.resume()

    def transports(self) -> list[asyncio.BaseTransport]:
        return [
            wire.transport
            for shard in self._shards
            for wire in (shard.commands.wire, shard.pushes.wire)
            if wire is not None and wire.transport is not None
        ]

    def links(self) -> list[Link]:
        if self._is_closed:
            return [Link(shard.connector.address, "closed") for shard in self._shards]
        return [shard.link() for shard in self._shards]


def _own(error: Exception) -> Exception:
    """Return an error of the caller's own: one object raised in many tasks would mix their tracebacks."""
    return copy.copy(error)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _described(layout: bytes) -> str:
    return layout.decode(errors="replace").strip("{}").replace('"', "")
