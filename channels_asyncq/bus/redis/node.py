"""One server as a session uses it: two connections, its lease there, and whether it is healthy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ...clock import monotonic
from ...exceptions import ChannelLayerError, LayerUnavailable
from ...settings.hosts import Host
from ...tasks import all_of
from ..base import HostHealth, Link
from ..resp.connector import Connector
from ..resp.handover import let_go
from ..resp.outages import Outage
from ..resp.protocol import WireProtocol
from ..resp.remedies import Remedies, unsupported
from ..resp.replies import InFlight
from ..resp.supervisor import SupervisedConnection
from .batches import Batch
from .checkpoint import Checkpoint
from .commands import CommandReply, Question
from .handshake import raise_last_words, raise_refusals, run_id_in
from .layout import Layout, Lease
from .leasing import Command, LeaseKeeper
from .log_ends import LogScripts
from .log_reading import LogsReader
from .recovery import LogReader
from .refusals import Refusals
from .sender import Sender
from .shared import Shared
from .subscriber import Subscriber, logged_topics
from .watch import UNWRITABLE, Watch

if TYPE_CHECKING:
    from .partition import Partition


class Node:
    """
    A connection for commands, which this owns, and one for pushes, which its `subscriber` owns.

    `partitions` are those whose home it is. They move; their state is in them, and not here.
    """

    def __init__(
        self,
        shared: Shared,
        host: int,
        number: int = 0,
        *,
        at: Host | None = None,
        lease: LeaseKeeper | None = None,
    ) -> None:
        """
        Args:
            host: the index of its host in `hosts`.
            number: distinguishes several nodes of one session at one host.
            at: the host itself, if it is not in `hosts`, as the nodes of a cluster.
            lease: the lease, if it is not one for this node alone.
        """
        options = shared.options
        settings = options.hosts[host] if at is None else at
        self._shared = shared
        self.host = host
        self.number = number
        self.partitions: dict[int, Partition] = {}
        #: Grows when a partition comes here or leaves, when its reading changes, and with its first position.
        self.changes = 0
        #: The senders of partitions that have moved away and wait for replies from here.
        self.leaving: list[Sender] = []
        self.send_timeout = options.send_timeout
        remedies = Remedies(
            settings,
            options.prefix,
            {script.sha.decode(): script.text.decode() for script in shared.scripts},
            shared.topics.is_cluster,
        )
        self.connector = Connector(
            settings, connect_timeout=max(1.0, options.send_timeout), remedies=remedies
        )
        self.address = address = self.connector.address
        self.faults = shared.outages.faults_of(host if at is None else at.address)
        #: The run_id of the server of the connection for commands; empty if it is not known.
        self.run_id = b""
        self.is_closed = False

        if lease is None:
            layout = Layout.of(options, host, shared.formats)
            lease = LeaseKeeper(shared, self, Lease(layout, shared.formats, address, options.prefix))
        self.lease_keeper: LeaseKeeper = lease
        self.lease: Lease = lease.lease
        self._watch = Watch(address, options.recovery)
        self.checkpoint = self._make_checkpoint()
        self.subscriber: Subscriber = Subscriber(shared, self)
        self.log = LogReader(shared, self)
        #: Reads logs for channels that come back.
        self.logs = LogsReader(shared, self, self._make_log_scripts())
        self.commands = SupervisedConnection(
            self.connector,
            "commands",
            options,
            self,
            outage=self._outage("commands"),
            resends=True,
        )
        self.pushes = SupervisedConnection(
            self.connector,
            "pushes",
            options,
            self.subscriber,
            messages=self.subscriber,
            outage=self._outage("pushes"),
        )
        self.refusals = Refusals(self.commands, address, remedies, shared.scripts)
        #: The sender of commands that belong to no partition.
        self.sender = Sender(self)

    def _outage(self, name: str) -> Outage:
        """Return the outage of the connections of this name, which all sessions of the process share."""
        return self._shared.outages.of(self.host, name)

    def _make_checkpoint(self) -> Checkpoint:
        return Checkpoint(self._shared, self, self._watch)

    def _make_log_scripts(self) -> LogScripts:
        return LogScripts(self._shared, self)

    # As the owner of the connection for commands

    async def set_up(self, wire: WireProtocol) -> None:
        """
        Make sure that the server can be used, load the scripts and take the lease.

        Raises:
            LayerUnavailable: the server is a replica, or too old.
            ImproperlyConfigured: another session uses the namespace in an incompatible way.
            ReplyError: the server refused a command.
        """
        role = wire.call("ROLE")
        scripts = self.refusals.load_scripts(wire)
        layout = self.lease.layout
        leased = self._ask_for_lease(wire)
        info, memory = wire.call("INFO", "server"), wire.call("INFO", "memory")
        replies = [role, *scripts, *leased, info, memory]
        await asyncio.wait(replies)
        raise_last_words(replies)
        self._check_server(role, info)
        raise_refusals([*scripts, *leased])
        self.run_id = run_id_in(info)
        if memory.exception() is None:
            self._watch.warn_of_evictions(memory.result())
        for answer in leased:
            if not self.lease_keeper.is_let_in(answer.result(), layout):
                await self.lease_keeper.hold(wire.call)

    def _ask_for_lease(self, wire: WireProtocol) -> list[asyncio.Future[Any]]:
        """Send the request for the lease, if that is kept here."""
        return [wire.call(*self.lease_keeper.command(self.lease.layout))]

    def _check_server(self, role: asyncio.Future[Any], info: asyncio.Future[bytes]) -> None:
        """
        Raise for a server that cannot be used, by its replies to ROLE and INFO.

        It may refuse either: a user without permission for these two may have all the others.
        """
        refusal = role.exception()
        if refusal is not None and not str(refusal).startswith(("NOPERM", "ERR")):
            raise refusal
        problem = None
        if info.exception() is None:
            problem = unsupported(info.result(), is_cluster=self._shared.topics.is_cluster)
        answer = [b"master"] if refusal is not None else role.result()
        if problem is None and (not isinstance(answer, list) or not answer or answer[0] != b"master"):
            problem = "it is a replica; only masters are used"
        if problem is not None:
            raise LayerUnavailable(self.address, problem)

    def on_up(self, wire: WireProtocol) -> None:
        """Resend the commands in flight, and let sends go on."""
        wire.keeps_unanswered = True
        self.subscriber.leave_other_server()
        # The node's own sender last: no message may follow the command that withdraws its format.
        for sender in self._senders():
            sender.on_up(wire)

    def on_lost(self, in_flight: list[InFlight]) -> None:
        """Hand the commands in flight back to the senders that sent them."""
        for sender in self._senders():
            sender.on_lost()
        for command in in_flight:
            sink = command.future
            if isinstance(sink, (Batch, CommandReply, Question)):
                sink.sender.take_back(command)
            else:
                command.fail(ConnectionResetError("the connection was lost"))
        leaving, self.leaving = self.leaving, []
        for sender in leaving:
            sender.on_handed_over()

    def on_overdue(self, error: Exception) -> None:
        """Let everything fail that waits for the connection."""
        for sender in self._senders():
            sender.fail(error)

    def on_silent(self) -> None:
        """Note that the server has not answered for a while. The connection decides when that is too long."""

    def on_change(self) -> None:
        """Note that the connection for commands came up or was lost."""
        if self.commands.wire is not None:
            # Before on_up() of the receiver, which waits for all hosts: another one may be down for long.
            self.on_answerable()
            if self.pushes.wire is None:
                self.lease_keeper.renew_later()
                self._shared.observer.start()  # if the bus was resting
        self.on_links_changed()

    def on_answerable(self) -> None:
        """Notify the session that a partition here accepts commands again."""
        self._shared.receiver.on_answerable()

    def on_links_changed(self) -> None:
        """Notify the bus that one of the connections came up or was lost."""
        self._shared.observer.on_links_changed()

    @property
    def renews_by_timer(self) -> bool:
        """Whether no fence renews the lease now."""
        return self.pushes.wire is None

    @property
    def is_awaited(self) -> bool:
        """Whether something waits for the connection for commands."""
        return any(sender.is_awaited for sender in self._senders())

    def _senders(self) -> Iterator[Sender]:
        for partition in self.partitions.values():
            yield partition.sender
        yield self.sender

    def start_over(self, reason: str) -> None:
        """Connect anew: the set-up waits until this session has a lease again."""
        for wire in (self.commands.wire, self.pushes.wire):
            if wire is not None:
                wire.abort(ConnectionAbortedError(reason))

    # Topics

    def own_topics(self) -> tuple[bytes, bytes]:
        """Return the topic of the fences, and that on which layouts are announced; empty for none."""
        topics = self._shared.topics
        return topics.fence(self.host, self.number), topics.layouts(self.host)

    def partition_of_own(self, topic: bytes) -> Partition | None:
        """Return the partition with which a topic of the node itself moves, None if it never does."""
        return None

    def reads(self, partition: Partition) -> bool:
        """Tell whether a partition here is read."""
        return True

    def on_wanted(self, partition: Partition) -> None:
        """Note that a topic of a partition is wanted that is not read here."""

    def on_unread(self, partition: Partition) -> None:
        """Note that a partition here is not read, as no topic of it is wanted."""

    def leave_unwanted(self) -> None:
        """Stop reading partitions without wanted topics, where that saves something."""

    def on_taken_back(self, partition: Partition) -> None:
        """Note that the server has ended a subscription."""

    def read_again(self, partition: Partition) -> None:
        """Read a partition anew that was not found here, or whose fence was lost."""

    # For catching up: `LogReader` reads pages, `Subscriber` asks the rest

    async def changed_among(self, partitions: Collection[Partition]) -> list[Partition]:
        """Return those whose positions are of another server, or of this one before it was started again."""
        server = self.subscriber.run_id
        # A server whose run_id is not known may be another one.
        return [each for each in partitions if not server or server != each.server]

    def is_at(self, server: bytes) -> bool:
        """Tell whether the connection for commands may be to this server."""
        return not server or not self.run_id or server == self.run_id

    #: The section of INFO with the identity of the server.
    identity_section = "server"

    def identity_in(self, info: asyncio.Future[bytes]) -> bytes:
        """Return the identity of the server; empty if it does not tell."""
        return run_id_in(info)

    async def read_log(
        self, partition: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> Any:
        """Return a page of a log, as read_log.lua does."""
        key = self._shared.topics.log(partition.number)
        command: Command = (b"EVALSHA", self._shared.scripts.read_log.sha, 1, key, start, count, *topics)
        return await self.sender.commands.call(*command, is_repeatable=True)

    async def has_refused(self) -> bool:
        """
        Tell whether the server refused to write since the last fence. Then messages may be in no log.

        Ask after the logs were read: a push without a log entry that waits meanwhile may come after later
        entries, and is dropped.
        """
        try:
            counts = await self.sender.commands.call(b"INFO", b"errorstats", is_repeatable=True)
        except ChannelLayerError as exc:
            if isinstance(exc, LayerUnavailable) or not isinstance(exc.__cause__, ReplyError):
                raise
            counts = b""  # not permitted: then no script of this user publishes without a log entry
        return self._watch.has_refused(counts)

    def logged_topics(self, numbers: Collection[int]) -> set[bytes]:
        """Return the wanted logged topics of those of these partitions whose home this is."""
        return logged_topics([self.partitions[number] for number in numbers if number in self.partitions])

    # Health

    @property
    def is_up(self) -> bool:
        return self.commands.wire is not None and self.pushes.wire is not None

    def link(self) -> Link:
        """Return the state of both connections as one."""
        if self.is_closed:
            return Link(self.address, "closed")
        reason = ""
        if self.is_up:
            state = "connected"
        elif self.commands.is_resting and self.pushes.is_resting:
            state, reason = "closed", self.commands.reason
        else:
            state, reason = "connecting", self.commands.reason or self.pushes.reason
        both = self.commands, self.pushes
        reconnected_at = max(each.reconnected_at for each in both) or None
        return Link(self.address, state, sum(each.reconnects for each in both), reason, reconnected_at)

    async def _check(self) -> None:
        """Return when a fence was published and has arrived."""
        while True:
            await self.pushes.up()
            try:
                return await self.checkpoint.first()
            except ConnectionResetError:
                continue

    async def _write(self) -> None:
        """Return when the server has written something; raises ChannelLayerError if it refuses."""
        await self.lease_keeper.write()

    async def health(self, timeout: float) -> HostHealth:  # noqa: ASYNC109
        """Check whether the server takes writes, and whether a message that is published there arrives here."""
        reason = ""
        try:
            async with asyncio.timeout(timeout) as deadline:
                await self.pushes.up()
                began = monotonic()
                await self._check()
                await self._write()
                return HostHealth(self.address, True, "connected", seconds=monotonic() - began)
        except LayerUnavailable as exc:
            reason = exc.reason
            if reason.startswith(UNWRITABLE):
                reason = f"{reason.removesuffix('.')}. {self._watch.consequence}"
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            reason = str(exc)
        except TimeoutError:
            silence = (
                f"no answer within {timeout:g} s" if deadline.expired() else "a checkpoint did not arrive"
            )
            reason = self.commands.reason or self.pushes.reason or silence
        return HostHealth(self.address, False, self.link().state, reason)

    # Life

    def wake(self) -> None:
        """Begin to make the connection for commands, unless that is done or under way: a command waits."""
        self.commands.start()

    def start(self) -> None:
        """Begin connecting, unless that is done or under way."""
        self.commands.start()
        self.pushes.start()

    async def answered(self) -> None:
        """Return when all commands that were sent before are answered, or have failed."""
        # The commands of all partitions are in front of it, also where they are resent.
        reply = self.sender.commands.ask(b"PING")
        if reply is not None:
            await asyncio.wait([reply])

    def transports(self) -> list[asyncio.BaseTransport]:
        return [*self.commands.transports(), *self.pushes.transports()]

    @property
    def is_busy(self) -> bool:
        """Whether something waits for a reply, a confirmation or a connection."""
        is_awaited = self.lease_keeper.is_changing or self.is_awaited or self.subscriber.is_awaited
        return is_awaited or self.commands.is_busy or self.pushes.is_busy

    def rest(self) -> Awaitable[object]:
        """Close both connections until the next `start()`; the result is done when they are closed."""
        closing = asyncio.gather(self.commands.rest(), self.pushes.rest())
        for sender in self._senders():
            sender.rest()
        # Nor is the lease renewed: it runs out.
        self.lease_keeper.stop_renewal()
        return closing

    async def close(self) -> None:
        """Give the lease back, wait for replies for a bounded time, and end both connections."""
        self._end()
        await self._give_lease_back()
        await all_of([self.commands.close(), self.pushes.close()])

    async def _give_lease_back(self) -> None:
        await self.lease_keeper.leave()

    def abort(self) -> None:
        """End both connections now, after a close() that was cancelled."""
        self._end()
        self.commands.abort()
        self.pushes.abort()

    def let_go(self) -> None:
        """Release both connections, whose loop is closed. From any thread."""
        self.is_closed = True
        for transport in self.transports():
            let_go(transport)

    def _end(self) -> None:
        self.is_closed = True
        self.checkpoint.stop()
        self.lease_keeper.stop_renewal()
        self.subscriber.close()
        self.logs.close()
