"""One session on one or more Redis or Valkey servers: two connections to each, made again when they are lost."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from time import monotonic
from typing import Any, NamedTuple

from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError, pack_command

from ..codecs import BadPayload, Codec, decode_json
from ..envelopes import ENCRYPTED, WIRE_VERSION, BadEnvelope, Envelope, header_size, pack, unpack
from ..exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from ..journal import CONNECTION, WIRE, Throttle, record
from ..options import Options
from ..topics import NOT_LOGGED, Topic, Topics
from .base import Bus, Health, HostHealth, Link, Receiver
from .connections import Connector
from .delivery import Outbox, parse_position, stream_of
from .lines import Line, own
from .recovery import LogReader
from .subscriptions import Subscription, SubscriptionLedger
from .wire import NoAnswer, NotSent, WireProtocol

_WAKE = b"+"
_LOGGED = bytes([WIRE_VERSION]) + b"#"
_ITEM_EXPIRY_DIGITS = 13
_SCAN_PAGE = 1000
# Of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# A listener is deaf when a fence does not arrive; looked at every so many seconds, and at each connection.
_FENCE_EVERY = 5.0
_LONGEST_FENCE = 3.0
_PAGE = 500
# A log holds envelopes of up to 16 KiB whole. One of s > 1024 bytes trims it to LOG_BYTES / s entries, so that a
# log takes at most LOG_BYTES for those and `messages` times 1 KiB for the others.
_LARGEST_LOGGED = 16 * 1024
LOG_BYTES = 8 * 2**20
_UNUSED_LOG_EXPIRES = 900
_READ_SECONDS = 0.005
_CACHED_ROUTES = 8192
# Errors of a server that is there and cannot serve now: the connection is given up, and made again.
_UNSERVING = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOREPLICAS")


Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str, **constants: int) -> Script:
        text = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_bytes()
        for word, value in constants.items():
            text = text.replace(word.encode(), b"%d" % value)
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


PUSH = Script.load("push")
POP = Script.load("pop")
GIVE_BACK = Script.load("give_back")
GROUP_SEND = Script.load("group_send")
ADD_MEMBER = Script.load("add_member")
FENCE = Script.load("fence")
READ_LOG = Script.load("read_log")
SCRIPTS = (PUSH, POP, GIVE_BACK, GROUP_SEND, ADD_MEMBER, FENCE, READ_LOG)


class Route(NamedTuple):
    """
    Where sends to one topic go: the command, packed up to the `$` before the envelope's length; and the same for
    an envelope that is logged as header only, whose command has an argument more.
    """

    shard: Shard
    topic: bytes
    numbers: Iterator[int]
    is_logged: bool
    opened: bytes
    opened_large: bytes


class Written:
    """A command that was written and that nobody awaits: tells what came of it as soon as the reply is read."""

    __slots__ = ("_is_over", "_on_done", "_on_failed", "arguments", "pack", "shard", "wire")

    def __init__(
        self,
        shard: Shard,
        wire: WireProtocol,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        is_over: Callable[[], bool] | None,
        pack: Callable[..., bytes],
        arguments: tuple[Any, ...],
    ) -> None:
        self.shard = shard
        self.wire = wire
        self._on_done = done
        self._on_failed = failed
        self._is_over = is_over
        self.pack = pack
        self.arguments = arguments

    # As an Answer

    def done(self) -> bool:
        """Whether nobody wants to know any more: it is not sent again then."""
        return self._is_over is not None and self._is_over()

    def set_result(self, reply: Any, /) -> None:
        if self.shard.commands.is_refusing:
            self.shard.commands.serves()
        self.succeed(reply)

    def set_exception(self, error: Exception, /) -> None:
        try:
            self.shard.not_done(self, error)
        except Exception as exc:
            self._complain(exc)

    def exception(self) -> None:
        return None

    # What came of it

    def succeed(self, reply: Any) -> None:
        try:
            self._on_done(reply)
        except Exception as exc:
            self._complain(exc)

    def fail(self, error: Exception) -> None:
        try:
            self._on_failed(error)
        except Exception as exc:
            self._complain(exc)

    def _complain(self, error: Exception) -> None:
        # As for the callback of a future; say, of a handler of logs. The connection is not to blame.
        asyncio.get_running_loop().call_exception_handler(
            {"message": "what came of a send could not be told", "exception": error}
        )


class Shard:
    """One host: a line for commands, a line for pushes, and what this session is subscribed to there."""

    def __init__(self, bus: RedisBus, index: int, connector: Connector) -> None:
        self._bus = bus
        self.index = index
        self.connector = connector
        self.ledger = SubscriptionLedger()
        self._subscribing: WireProtocol | None = None
        self._held: tuple[bytes, Envelope] | None = None
        self.log = LogReader(bus.options, bus.receiver, self.ledger, self._read_log, partial(bus.open, index))
        # The servers that the lines reached when they connected: a server's run_id is another after a restart.
        self._commands_run_id = self._pushes_run_id = b""
        self._fence_topic = bus.topics.fence(index)
        partitions = bus.topics.partitions_of(index) if bus.options.recovery is not None else ()
        self._logs = [bus.topics.log(partition) for partition in partitions]
        self._fence_number = 0
        # The fences that were sent for the present connection for pushes and have not arrived.
        self._fences: dict[int, asyncio.Future[None]] = {}
        self._fence_timer: asyncio.TimerHandle | None = None
        self._context = contextvars.Context()
        # Unconfirmed sends that the server did not execute.
        self._again: set[asyncio.Task[None]] = set()
        self._throttle = Throttle()
        options = bus.options
        self.commands = Line(
            connector, "commands", options, self._set_up_commands, self._commands_changed, resends=True
        )
        self.pushes = Line(
            connector,
            "pushes",
            options,
            self._set_up_pushes,
            bus.on_change,
            on_lost=self._pushes_lost,
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
        scripts = [wire.call("SCRIPT", "LOAD", script.text) for script in self._bus.scripts]
        layout_key = self._bus.topics.layout_key(self.index)
        written = wire.call("SET", layout_key, self._bus.layout, "NX")
        layout = wire.call("GET", layout_key)
        info = wire.call("INFO", "server")
        await asyncio.wait([role, *scripts, written, layout, info])
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
        self._commands_run_id = _run_id(info)
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
        return await self.send(_packed, *command, is_repeatable=is_repeatable)

    async def send(self, pack: Callable[..., bytes], *arguments: Any, is_repeatable: bool = False) -> Any:
        """
        Return the reply to a command that is packed when the line is up and has room.

        Not earlier: what is numbered first must be written first.
        """
        while True:
            wire = self.commands.open_wire
            if wire is None or wire.is_lost or not wire.has_room:
                wire = await self.commands.with_room()
            try:
                reply = await wire.call_packed(pack(*arguments))
                if self.commands.is_refusing:
                    self.commands.serves()
                return reply
            except NotSent:
                continue
            except NoAnswer as exc:
                if is_repeatable:
                    continue
                raise self._unknown(exc) from exc
            except ReplyError as exc:
                if not self._may_go_on(wire, exc):
                    raise self._refused(exc) from exc

    def write_at_once(
        self,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        is_over: Callable[[], bool] | None,
        pack: Callable[..., bytes],
        *arguments: Any,
    ) -> bool:
        """Write a command now and tell later what came of it; False if the line is down or has no room."""
        wire = self.commands.open_wire
        if wire is None or wire.is_lost or not wire.has_room:
            return False
        wire.call_packed(pack(*arguments), Written(self, wire, done, failed, is_over, pack, arguments))
        return True

    async def write(
        self,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        pack: Callable[..., bytes],
        *arguments: Any,
    ) -> None:
        """Do the same when the line is up and has room."""
        if not self.write_at_once(done, failed, None, pack, *arguments):
            wire = await self.commands.with_room()
            wire.call_packed(pack(*arguments), Written(self, wire, done, failed, None, pack, arguments))

    def not_done(self, written: Written, error: Exception) -> None:
        """Deal with the error of a command that was written: send it again, or tell."""
        if isinstance(error, NoAnswer):
            written.fail(self._unknown(error))
        elif isinstance(error, NotSent) or (
            isinstance(error, ReplyError) and self._may_go_on(written.wire, error)
        ):
            task = self._bus.loop.create_task(
                self._write_again(written),
                name=f"channels_asyncq sending again to {self.connector.address}",
                context=self._context,
            )
            self._again.add(task)
            task.add_done_callback(self._again.discard)
        else:
            written.fail(self._refused(error))

    async def _write_again(self, written: Written) -> None:
        if written.done():
            return
        try:
            reply = await self.send(written.pack, *written.arguments)
        except asyncio.CancelledError:
            written.fail(LayerClosed())
            raise
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            written.fail(exc)
        else:
            written.succeed(reply)

    def _unknown(self, exc: NoAnswer) -> DeliveryUnknown:
        return DeliveryUnknown(
            f"{self.connector.address} was sent the message and did not answer: {exc.__cause__ or exc}"
        )

    def _may_go_on(self, wire: WireProtocol, exc: ReplyError) -> bool:
        """Deal with an error that says that a command was not executed; True if it should be sent again."""
        text = str(exc)
        if text.startswith("NOSCRIPT"):
            for script in self._bus.scripts:
                wire.call("SCRIPT", "LOAD", script.text)
            return True
        if text.startswith(_UNSERVING):
            self.commands.give_up(wire, text)
            return True
        return False

    def _refused(self, exc: BaseException) -> ChannelLayerError:
        text = str(exc)
        if text.startswith(("OOM", "MISCONF", "BUSY")):
            return LayerUnavailable(self.connector.address, text)
        if text.startswith("NOPERM"):
            prefix = self._bus.options.prefix
            text += f" (the user needs the patterns ~{prefix}:* and &{prefix}:*, and the commands of scripts)"
        return ChannelLayerError(f"{self.connector.address} refused: {text}")

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | str | int) -> Any:
        return await self.call(b"EVALSHA", script.sha, len(keys), *keys, *arguments)

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any] | None:
        """Send a command without waiting; None if the line is down. The future fails with ConnectionError."""
        wire = self.commands.wire
        if wire is None or wire.is_lost:
            return None
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
        """
        Subscribe to everything wanted, and catch up with what was missed since the connection was lost.

        What is logged and arrives before the server has confirmed all of it is discarded: it is in the logs.
        Then the connection is paused while they are read. Nothing is buffered.
        """
        log = self.log
        self.ledger.disconnect()
        # One that was sent earlier may be executed now: it would vouch for what is discarded.
        self._drop_fences()
        self.ledger.want(self._fence_topic.name, NOT_LOGGED)
        self._held = None
        log.discards = log.has_positions
        self._subscribing = wire
        info = wire.call("INFO", "server")
        replies = [self._send_subscribe(wire, entry) for entry in self.ledger]
        await asyncio.wait([info, *replies])
        for reply in replies:
            # A refused topic was told to those who want it; the others must not suffer.
            if not isinstance(reply.exception(), ReplyError):
                reply.result()
        run_id, last_run_id = _run_id(info), self._pushes_run_id
        await self.commands.up()
        if run_id != self._commands_run_id:
            raise LayerUnavailable(self.connector.address, "commands and pushes reached two servers")
        if log.has_positions:
            log.is_reading = True
            try:
                await log.catch_up(has_changed=run_id != last_run_id)
            finally:
                log.is_reading = log.discards = False
                wire.resume()
            self._fence_in(0.0)
        else:
            await self._first_fence()
            self._fence_in(_FENCE_EVERY)
        self._pushes_run_id = run_id

    def _pushes_lost(self) -> None:
        self.ledger.disconnect()
        self._stop_fence()
        self._drop_fences()

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

    # The fence: what arrives before it has arrived

    def _new_fence(self) -> tuple[Command, asyncio.Future[None]]:
        """Return the command that publishes a fence, and what is done when that has arrived."""
        self._fence_number += 1
        arrived = self._fences[self._fence_number] = asyncio.get_running_loop().create_future()
        recovery = self._bus.options.recovery
        keep = math.ceil(recovery.seconds) if recovery else 0
        arguments = (self._fence_topic.name, self._fence_number, keep, _UNUSED_LOG_EXPIRES + keep)
        return (b"EVALSHA", FENCE.sha, len(self._logs), *self._logs, *arguments), arrived

    async def _first_fence(self) -> None:
        """
        Give every partition a position.

        Raises:
            TimeoutError: the fence did not arrive.
            ConnectionResetError: the connection on which it should have was lost.
        """
        command, arrived = self._new_fence()
        await self.call(*command, is_repeatable=True)
        async with asyncio.timeout(_LONGEST_FENCE):
            await arrived

    def _fence_in(self, seconds: float) -> None:
        seconds *= _jitter.uniform(0.8, 1.2)
        loop = asyncio.get_running_loop()
        self._fence_timer = loop.call_later(seconds, self._send_fence, context=self._context)

    def _send_fence(self) -> None:
        command, arrived = self._new_fence()
        answer = self.ask(*command)
        if answer is None:
            self._fence_in(_FENCE_EVERY)
        else:
            answer.add_done_callback(partial(self._fence_sent, arrived))

    def _fence_sent(self, arrived: asyncio.Future[None], answer: asyncio.Future[Any]) -> None:
        failed = answer.cancelled() or answer.exception() is not None
        wire = self.pushes.wire
        if wire is None or (arrived.done() and arrived.exception() is not None):
            return  # the next connection has its own fences
        if failed or arrived.done():
            self._fence_in(_FENCE_EVERY)
            return
        loop = asyncio.get_running_loop()
        self._fence_timer = loop.call_later(
            _LONGEST_FENCE, self._is_deaf, wire, arrived, True, context=self._context
        )

    def _is_deaf(self, wire: WireProtocol, arrived: asyncio.Future[None], is_patient: bool) -> None:
        if arrived.done():
            self._fence_in(_FENCE_EVERY)
        elif is_patient:
            # This loop may have been blocked, and the fence be there unread: one turn more.
            loop = asyncio.get_running_loop()
            self._fence_timer = loop.call_later(
                _LONGEST_FENCE / 10, self._is_deaf, wire, arrived, False, context=self._context
            )
        else:
            wire.abort(TimeoutError("what is published does not arrive"))

    def _on_fence(self, data: bytes) -> None:
        number, *ends = data.split(b" ")
        if int(number) not in self._fences:
            return  # it vouches for an earlier connection
        self.log.move_to(dict(zip(self._bus.topics.partitions_of(self.index), ends, strict=False)))
        # Those before it may have been refused, and never come.
        for earlier in [earlier for earlier in self._fences if earlier <= int(number)]:
            arrived = self._fences.pop(earlier)
            if not arrived.done():
                arrived.set_result(None)

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

    def subscribe(self, topic: Topic) -> None:
        entry = self.ledger.want(topic.name, topic.partition)
        wire = self._subscribing
        if not entry.is_sent and wire is not None and not wire.is_lost:
            self._send_subscribe(wire, entry)

    def unsubscribe(self, topic: bytes) -> None:
        wire = self._subscribing
        if self.ledger.give_up(topic) and wire is not None and not wire.is_lost:
            wire.call(b"UNSUBSCRIBE", topic)

    def is_confirmed(self, topic: bytes) -> bool:
        entry = self.ledger.get(topic)
        # Without the wire it is catching up, or has no position yet.
        return entry is not None and entry.is_confirmed and self.pushes.wire is not None

    async def confirmed(self, topic: Topic) -> None:
        if not self.commands.was_up:
            # The commands' line compares the layout: nobody joins a namespace that is laid out otherwise.
            await self.commands.with_room()
        entry = self.ledger.get(topic.name)
        if entry is None or (entry.is_confirmed and self.pushes.wire is not None):
            return
        if entry.is_confirmed:
            # Confirmed on a connection that is still catching up, or has no position yet.
            await self.pushes.up()
            return
        self.subscribe(topic)  # again, if it was refused
        self.pushes.raise_if_overdue()
        self.pushes.start()
        waiter: asyncio.Future[None] = self._bus.loop.create_future()
        entry.waiters.append(waiter)
        try:
            await waiter
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            raise own(exc) from exc
        finally:
            if entry.waiters and waiter in entry.waiters:
                entry.waiters.remove(waiter)
        if self.pushes.wire is None:
            await self.pushes.up()

    def _on_message(self, topic: bytes, data: bytes) -> bool:
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
        position = 0
        try:
            if topic == self._fence_topic.name:
                self._on_fence(data)
                return True
            if data.startswith(_LOGGED):
                # The position of its entry stands before the envelope.
                end = data.index(b" ")
                position = parse_position(data[len(_LOGGED) : end])
                if log.discards:
                    return True
            if self._held is not None and self._held[0] is data:
                envelope = self._held[1]
            else:
                envelope = self._bus.open(self.index, topic, data[end + 1 :] if position else data)
        except (BadEnvelope, BadPayload, ValueError) as exc:
            receiver.on_unreadable(topic, str(exc))
            return True
        if position and position <= log.read_until.get(entry.partition, 0):
            return True
        if not log.deliver(entry, envelope, position):
            self._held = (data, envelope)
            return False
        self._held = None
        return True

    def resume(self) -> None:
        if self.log.is_reading:
            self.log.resume()
        elif self._subscribing is not None:
            self._subscribing.resume()

    async def check(self) -> None:
        """Return when a command was answered and what it published has arrived."""
        while True:
            await self.pushes.up()
            try:
                return await self._first_fence()
            except ConnectionResetError:
                continue

    async def health(self, timeout: float) -> HostHealth:  # noqa: ASYNC109
        layout_key = self._bus.topics.layout_key(self.index)
        reason = ""
        try:
            async with asyncio.timeout(timeout) as deadline:
                await self.pushes.up()
                began = monotonic()
                # It is there and stays as it is; a server that takes no messages refuses this as well.
                await self.call(b"SET", layout_key, self._bus.layout, b"NX", is_repeatable=True)
                await self.check()
                return HostHealth(self.connector.address, True, "connected", seconds=monotonic() - began)
        except LayerUnavailable as exc:
            reason = exc.reason
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

    async def close(self) -> None:
        self._stop_fence()
        await asyncio.gather(self.commands.close(), self.pushes.close())

    def abort(self) -> None:
        self._stop_fence()
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
            {
                "hosts": len(options.hosts),
                "logged": options.recovery is not None,
                "partitions": options.partitions,
                "wire": WIRE_VERSION,
            }
        ).encode()
        self._codec = codec
        # A payload is encrypted once, however often it is sent.
        self._flags = ENCRYPTED if codec.encrypted else 0
        self._sealed: Callable[[bytes], bytes] = codec.encrypt
        self._node = bytes.fromhex(node)
        self.loop = asyncio.get_running_loop()
        self._outbox = Outbox()
        self._pushes = Outbox()
        recovery = options.recovery
        self.scripts: tuple[Script, ...] = SCRIPTS
        self._is_logged: Callable[[str], bool] = lambda group: False
        if recovery is not None:
            # Constants in the script are arguments that need not be sent each time.
            send = Script.load("send", MOST_ENTRIES=recovery.messages, MOST_BYTES=LOG_BYTES)
            self.scripts += (send,)
            self._send_sha = send.sha
            self._is_logged = recovery.is_logged
        self._group_route = lru_cache(_CACHED_ROUTES)(self._make_group_route)
        self._topic_route = lru_cache(_CACHED_ROUTES)(self._make_topic_route)
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
        self._shards[topic.shard].subscribe(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self._shards[topic.shard].unsubscribe(topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        return self._shards[topic.shard].is_confirmed(topic.name)

    def confirmed(self, topic: Topic) -> Coroutine[Any, Any, None]:
        return self._shards[topic.shard].confirmed(topic)

    async def check(self) -> None:
        await asyncio.gather(*(shard.check() for shard in self._shards))

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        return Health(tuple(await asyncio.gather(*(shard.health(timeout) for shard in self._shards))))

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

    # Sends. What all of those to one topic have in common is made once.

    def publish(self, topic: Topic, target: str, payload: bytes, flags: int = 0) -> Awaitable[int]:
        route = self._topic_route(topic)
        return route.shard.send(self._pack_send, route, target, self._sealed(payload), flags, ())

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        wire = self._shards[topic.shard].commands.wire
        if wire is not None:
            number = self._outbox.next(stream_of(topic.partition, is_logged=False))
            data = pack(target, self._sealed(payload), self._node, number, flags | self._flags)
            wire.call(b"PUBLISH", topic.name, data)

    def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        route = self._group_route(group)
        # nil, which is None here, stands for no members.
        return route.shard.send(self._pack_send, route, group, self._sealed(payload), 0, excluded)

    def publish_unconfirmed(self, topic: Topic, target: str, payload: bytes) -> Awaitable[None]:
        route = self._topic_route(topic)
        failed = partial(self.receiver.on_unsent, topic.name, target)
        sealed = self._sealed(payload)
        return route.shard.write(_nothing, failed, self._pack_send, route, target, sealed, 0, ())

    def group_send_unconfirmed(
        self, group: str, payload: bytes, excluded: tuple[str, ...]
    ) -> Awaitable[None]:
        route = self._group_route(group)
        failed = partial(self.receiver.on_unsent, route.topic, group)
        done = partial(self._group_written, payload, excluded)
        sealed = self._sealed(payload)
        return route.shard.write(done, failed, self._pack_send, route, group, sealed, 0, excluded)

    def group_send_at_once(
        self,
        done: Callable[[list[bytes] | None], None],
        failed: Callable[[Exception], None],
        is_over: Callable[[], bool],
        group: str,
        payload: bytes,
        excluded: tuple[str, ...],
    ) -> bool:
        route = self._group_route(group)
        write, sealed = route.shard.write_at_once, self._sealed(payload)
        return write(done, failed, is_over, self._pack_send, route, group, sealed, 0, excluded)

    def _group_written(self, payload: bytes, excluded: tuple[str, ...], members: list[bytes] | None) -> None:
        if members:
            self.receiver.on_members(members, payload, excluded)

    async def answered(self) -> None:
        # Answers come in the order of the commands.
        for shard in self._shards:
            if (pong := shard.ask("PING")) is not None:
                await asyncio.wait([pong])

    def _make_topic_route(self, topic: Topic) -> Route:
        if self.options.recovery is None:
            return self._route(topic, False, b"PUBLISH", topic.name)
        log = self.topics.log(topic.partition)
        return self._route(topic, True, b"EVALSHA", self._send_sha, b"1", log, topic.name)

    def _make_group_route(self, group: str) -> Route:
        topic, members, log = self.topics.group(group)
        if not self._is_logged(group):
            return self._route(topic, False, b"EVALSHA", GROUP_SEND.sha, b"1", members, topic.name)
        return self._route(topic, True, b"EVALSHA", self._send_sha, b"2", log, members, topic.name)

    def _route(self, topic: Topic, is_logged: bool, *command: bytes) -> Route:
        numbers = self._outbox.numbers(stream_of(topic.partition, is_logged=is_logged))
        opened, opened_large = _opened(command), _opened(command, 1)
        return Route(self._shards[topic.shard], topic.name, numbers, is_logged, opened, opened_large)

    def _pack_send(
        self, route: Route, target: str, payload: bytes, flags: int, excluded: tuple[str, ...]
    ) -> bytes:
        """Return the command that sends a message; its number is the stream's next."""
        data = pack(target, payload, self._node, next(route.numbers), flags | self._flags, excluded)
        if route.is_logged and len(data) > _LARGEST_LOGGED:
            # Not by hiredis, which would copy all of it twice.
            size = b"%d" % header_size(target, excluded)
            return b"%b%d\r\n%b\r\n$%d\r\n%b\r\n" % (route.opened_large, len(data), data, len(size), size)
        return b"%b%d\r\n%b\r\n" % (route.opened, len(data), data)

    async def add_member(self, group: str, channel: str) -> None:
        topic, members_key, _ = self.topics.group(group)
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
        topic, members_key, _ = self.topics.group(group)
        await self._shards[topic.shard].call(b"ZREM", members_key, channel, is_repeatable=True)

    # Normal channels

    async def push(self, channel: str, payload: bytes, capacity: int) -> None:
        send = self._shards[self.topics.queue(channel).topic.shard].send
        has_room = await send(self._pack_push, channel, self._sealed(payload), capacity)
        if not has_room:
            raise ChannelFull(
                f"channel {channel!r} holds {capacity} messages, its capacity; start more readers, "
                "raise `capacity` or `channel_capacity`, or use send_wait()"
            )

    def push_unconfirmed(self, channel: str, payload: bytes, capacity: int) -> Awaitable[None]:
        topic = self.topics.queue(channel).topic
        failed = partial(self.receiver.on_unsent, topic.name, channel)
        done = partial(self._pushed, channel)
        write = self._shards[topic.shard].write
        return write(done, failed, self._pack_push, channel, self._sealed(payload), capacity)

    def _pushed(self, channel: str, has_room: int) -> None:
        if not has_room:
            self.receiver.on_full(channel)

    def _pack_push(self, channel: str, payload: bytes, capacity: int) -> bytes:
        topic, _, seen, partition = self.topics.queue(channel)
        # Its own number too: a command that is executed twice is taken in once.
        number, expiry = self._pushes.next(partition), _milliseconds(self.options.expiry)
        data = pack(channel, payload, self._node, number, self._flags)
        return _packed(b"EVALSHA", PUSH.sha, 2, topic.name, seen, data, capacity, expiry, number)

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        topic, taken, _, _ = self.topics.queue(channel)
        item = self._shards[topic.shard].ask(
            b"EVALSHA", POP.sha, 2, topic.name, taken, number, _milliseconds(self.options.expiry)
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
        topic, taken, _, _ = self.topics.queue(channel)
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


def _nothing(reply: object) -> None:
    pass


def _packed(*command: bytes | str | int) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return packed


def _opened(command: tuple[bytes, ...], more: int = 0) -> bytes:
    """Return the bytes of a command with one argument, and then `more`, up to the length of that one."""
    return _packed(*command, b"", *[b""] * more).removesuffix(b"0\r\n\r\n" + b"$0\r\n\r\n" * more)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _described(layout: bytes) -> str:
    return layout.decode(errors="replace").strip("{}").replace('"', "")


def _run_id(info: asyncio.Future[bytes]) -> bytes:
    """Return what INFO says of the server's identity; nothing if it may not be asked."""
    if info.exception() is not None:
        return b""
    for line in info.result().splitlines():
        if line.startswith(b"run_id:"):
            return line
    return b""
