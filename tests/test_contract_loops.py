"""Loops and threads: one layer object in a process that runs many loops, as Django does."""

import asyncio
import contextlib
import contextvars
import gc
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, sync
from channels_asyncq.local import mailbox
from channels_asyncq.session.session import Session
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError
from tests.contract import (
    DEADLINE,
    assert_nothing_waits,
    eventually,
    every,
    members_of,
    note,
    notes,
    receive,
    receive_many,
    started,
    steps,
)

MakeLayerAnywhere = Callable[..., AsyncQueueChannelLayer]


@pytest.fixture(params=["memory", "redis"])
def make_layer(request: pytest.FixtureRequest, prefix: str) -> Iterator[MakeLayerAnywhere]:
    """Make layers outside of any loop; all are closed at the end, from a loop of its own."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    made: list[AsyncQueueChannelLayer] = []

    def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        made.append(AsyncQueueChannelLayer(**{"hosts": [url], "prefix": prefix, **config}))
        return made[-1]

    yield make_layer

    async def close() -> None:
        async with asyncio.timeout(DEADLINE):
            for layer in made:
                await layer.close()

    asyncio.run(close())


@pytest.fixture
def make_redis_layer(redis_url: str, prefix: str) -> Iterator[MakeLayerAnywhere]:
    """The same on the server alone."""
    made: list[AsyncQueueChannelLayer] = []

    def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        made.append(AsyncQueueChannelLayer(**{"hosts": [redis_url], "prefix": prefix, **config}))
        return made[-1]

    yield make_layer
    for layer in made:
        asyncio.run(layer.close())


def run_in_thread(main: Callable[[], Any]) -> "threading.Thread":
    """A thread that is started; joined by the test."""
    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def switching_within(*functions: str) -> Iterator[None]:
    """Let other threads run after each step of these functions, in this thread and those that are started."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name not in functions:
            return None
        frame.f_trace_opcodes = True
        time.sleep(0)
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(before)


class TestLoopAfterLoop:
    """`asyncio.run` after `asyncio.run`, as tests and scripts do."""

    def test_one_layer_on_loop_after_loop(self, make_layer: MakeLayerAnywhere) -> None:
        """Each loop gets a session of its own that works; what was the last loop's is gone with it."""
        layer = make_layer()

        async def main(n: int) -> str:
            members = await members_of(layer, "room", 2)
            await layer.group_send("room", note(n))
            for member in members:
                assert await receive(layer, member) == note(n)
                await assert_nothing_waits(layer, member)
            return members[0]

        channels = [asyncio.run(main(n)) for n in range(4)]
        assert len({channel.split("!")[0] for channel in channels}) == 4

    def test_a_channel_of_a_loop_that_has_ended(self, make_layer: MakeLayerAnywhere) -> None:
        """
        An `async_to_sync()` for each step makes and ends a loop for each: to join a group with its channel, or to
        receive from it, is an error that says so, and nobody is asked.
        """
        layer = make_layer()
        channel = async_to_sync(layer.new_channel)()
        with pytest.raises(ChannelLayerError, match="has ended: nobody can receive"):
            async_to_sync(layer.group_add)("room", channel)
        with pytest.raises(ChannelLayerError, match="has ended: nobody can receive"):
            async_to_sync(layer.receive)(channel)
        async_to_sync(layer.group_discard)("room", channel)
        async_to_sync(layer.send)(channel, note(1))
        assert not layer.statistics().dropped

    def test_loops_end_clean(self, make_layer: MakeLayerAnywhere) -> None:
        """
        No pending task, no ResourceWarning, nothing printed by a loop that closed without the layer's
        close().
        """
        layer = make_layer()
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            (member,) = await members_of(layer, "room", 1)
            await layer.group_send("room", note(1))
            await receive(layer, member)
            await layer.send("jobs", note(1))
            await receive(layer, "jobs")
            await layer.group_add("room", "jobs")
            await started(layer.receive(member))
            await started(layer.receive("jobs"))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(main())
            gc.collect()
        assert not complaints
        assert not [str(warning.message) for warning in caught if warning.category is ResourceWarning]

    def test_a_loop_stopped_without_a_word(self, make_layer: MakeLayerAnywhere) -> None:
        """A loop that is closed without shutdown_asyncgens() prints nothing about the layer either."""
        layer = make_layer()
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            (member,) = await members_of(layer, "room", 1)
            await layer.group_send("room", note(1))
            await receive(layer, member)
            await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        loop.run_until_complete(main())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.close()
            del loop
            asyncio.run(main())
            gc.collect()
        assert not complaints
        assert not [str(warning.message) for warning in caught if warning.category is ResourceWarning]

    def test_sends_in_finally_blocks_at_the_loops_end(self, make_layer: MakeLayerAnywhere) -> None:
        """A consumer that is cancelled by the loop's end can still leave its group and say goodbye."""
        layer = make_layer()
        ended: list[BaseException | None] = []

        async def consumer(channel: str) -> None:
            try:
                await layer.receive(channel)
            finally:
                try:
                    await layer.group_discard("room", channel)
                    await layer.group_send("room", note(1))
                    await layer.send("goodbyes", note(2))
                    ended.append(None)
                except BaseException as error:
                    ended.append(error)
                    raise

        tasks: list[asyncio.Task[None]] = []

        async def main() -> None:
            (member,) = await members_of(layer, "room", 1)
            tasks.append(await started(consumer(member)))

        asyncio.run(main())
        assert ended == [None]

        async def next_loop() -> None:
            assert await receive(layer, "goodbyes") == note(2)

        asyncio.run(next_loop())

    def test_channel_of_a_loop_that_is_gone(self, make_layer: MakeLayerAnywhere) -> None:
        """To send to it and to discard it is no error, to add it is one, and nobody is held up."""
        layer = make_layer()

        async def first() -> str:
            return (await members_of(layer, "room", 1))[0]

        gone = asyncio.run(first())

        async def second() -> None:
            async with asyncio.timeout(DEADLINE):
                await layer.send(gone, note(1))
                await layer.group_send("room", note(2))
                with pytest.raises(ChannelLayerError, match="has ended"):
                    await layer.group_add("room", gone)
                await layer.group_discard("room", gone)
            (member,) = await members_of(layer, "room", 1)
            await layer.group_send("room", note(3))
            assert await receive(layer, member) == note(3)

        asyncio.run(second())

    def test_settings_that_are_changed_between_two_steps(self, make_layer: MakeLayerAnywhere) -> None:
        """What is set while no loop runs holds for the channels that a loop has already, and for the relay."""
        layer = make_layer()
        with asyncio.Runner() as runner:
            channel = runner.run(layer.new_channel())
            async_to_sync(layer.send)("jobs", note(0))
            layer.capacity = 1
            for name, waits in ((channel, 0), ("jobs", 1)):
                for n in range(waits, 1):
                    runner.run(layer.send(name, note(n)))
                with pytest.raises(ChannelFull):
                    runner.run(layer.send(name, note(1)))
            with pytest.raises(ChannelFull):
                async_to_sync(layer.send)("jobs", note(1))

    def test_sessions_of_closed_loops_are_freed(self, make_layer: MakeLayerAnywhere) -> None:
        """Loops that came and went are not kept alive by the layer."""
        layer = make_layer()
        loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

        async def main() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            (member,) = await members_of(layer, "room", 1)
            await layer.group_send("room", note(1))
            await receive(layer, member)

        for _ in range(5):
            asyncio.run(main())
        asyncio.run(main())
        gc.collect()
        assert sum(loop() is not None for loop in loops[:-1]) <= 1

    def test_context_of_the_first_user_is_not_kept(self, make_layer: MakeLayerAnywhere) -> None:
        """
        What the layer leaves running does not hold the context variables of the request that started it.
        """
        layer = make_layer()
        variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")

        class Request:
            pass

        async def request() -> "weakref.ref[Request]":
            value = Request()
            variable.set(value)
            # No timeout around it: the timer of one, though cancelled, would be what holds the context.
            await layer.group_add("room", await layer.new_channel())
            return weakref.ref(value)

        async def main() -> None:
            reference = await asyncio.create_task(request())
            # The turn of the loop in which a task ends still holds it.
            await steps(3)
            await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")
            gc.collect()
            assert reference() is None

        asyncio.run(main())


def close_alone(layer: AsyncQueueChannelLayer, loop: asyncio.AbstractEventLoop | None = None) -> str:
    """The channel of a loop that was ended by `loop.close()` and nothing else."""
    loop = loop or asyncio.new_event_loop()

    async def main() -> str:
        (member,) = await members_of(layer, "room", 1)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")
        return member

    member = loop.run_until_complete(main())
    loop.close()
    return member


class TestLoopsThatWereClosedAlone:
    """Loops that were ended by `loop.close()` and nothing else: no hook of asyncio tells of that."""

    @pytest.mark.parametrize("way", ["in a loop", "in a loop with a session", "by async_to_sync"])
    def test_flush_waits_for_none(
        self, make_layer: MakeLayerAnywhere, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """flush() expects no answer of a loop that was closed."""
        monkeypatch.setattr("channels_asyncq.session.requests._FLUSH_WAIT", 10 * DEADLINE)
        layer = make_layer()

        async def flush() -> None:
            if way == "in a loop with a session":
                await layer.new_channel()
            async with asyncio.timeout(DEADLINE):
                await layer.flush()

        for _ in range(2):
            close_alone(layer)
            if way == "by async_to_sync":
                async_to_sync(flush)()
            else:
                asyncio.run(flush())

    def test_flush_by_another_process(
        self, make_redis_layer: MakeLayerAnywhere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process may wait for it once: the order to flush has this one look for closed loops."""
        layer, other = make_redis_layer(), make_redis_layer()
        with asyncio.Runner() as runner:
            runner.run(layer.new_channel())
            close_alone(layer)
            monkeypatch.setattr("channels_asyncq.session.requests._FLUSH_WAIT", 0.01)
            runner.run(other.flush())
            monkeypatch.setattr("channels_asyncq.session.requests._FLUSH_WAIT", 10 * DEADLINE)
            runner.run(asyncio.wait_for(other.flush(), DEADLINE))

    def test_its_channel_is_refused(self, make_layer: MakeLayerAnywhere) -> None:
        """To join a group with its channel, or to receive from it, is an error that says so at once."""
        layer = make_layer(send_timeout=10 * DEADLINE)
        with asyncio.Runner() as runner:
            runner.run(layer.new_channel())
            for attempt in (layer.receive, partial(layer.group_add, "room")):
                channel = close_alone(layer)
                with pytest.raises(ChannelLayerError, match="has ended"):
                    runner.run(asyncio.wait_for(attempt(channel), DEADLINE))
            channel = close_alone(layer)
            runner.run(asyncio.wait_for(layer.group_discard("room", channel), DEADLINE))
            assert not layer.statistics().dropped

    def test_nothing_of_it_is_shown(self, make_layer: MakeLayerAnywhere) -> None:
        """Its channels are not in the views of the layer."""
        layer = make_layer()
        close_alone(layer)
        assert layer.channels == {} and layer.groups == {}

    @pytest.mark.parametrize("way", ["flush", "new session", "send", "sweep", "close", "close_from_thread"])
    def test_its_connections_end(self, own_redis_server: EmbeddedServer, prefix: str, way: str) -> None:
        """Both connections of its session are closed by whatever the layer does next, on any loop."""
        layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix, expiry=0.2)
        with asyncio.Runner() as runner:
            if way == "sweep":
                runner.run(layer.new_channel())
            before = clients_of(own_redis_server)
            close_alone(layer)
            of_the_closed = clients_of(own_redis_server) - before
            assert len(of_the_closed) == 2
            if way == "flush":
                async_to_sync(layer.flush)()
            elif way == "new session":
                runner.run(layer.new_channel())
            elif way == "send":
                async_to_sync(layer.send)("jobs", note(1))
            elif way == "close":
                runner.run(layer.close())
            elif way == "close_from_thread":
                layer.close_from_thread()
            runner.run(
                eventually(lambda: not of_the_closed & clients_of(own_redis_server), "the end of both")
            )
            runner.run(layer.close())

    def test_connections_that_were_being_made_end(self, prefix: str) -> None:
        """A connection is closed too that the server has not answered yet, whoever holds the loop's tasks."""
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)  # of the task that will not end
        with socket.create_server(("127.0.0.1", 0)) as server:
            layer = AsyncQueueChannelLayer(
                hosts=[f"redis://127.0.0.1:{server.getsockname()[1]}"], prefix=prefix
            )

            async def asked() -> tuple[socket.socket, asyncio.Task[str]]:
                task = asyncio.create_task(layer.new_channel())
                server.setblocking(False)
                while True:
                    peer, _ = await asyncio.get_running_loop().sock_accept(server)
                    if b"SCRIPT" in await asyncio.get_running_loop().sock_recv(peer, 4096):
                        return peer, task
                    peer.close()

            peer, task = loop.run_until_complete(asked())
            loop.close()
            layer.look_for_ended_sessions()
            with peer:
                peer.settimeout(DEADLINE)
                while peer.recv(65536):
                    pass
            assert not task.done()

    @pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "uvloop"])
    def test_its_sockets_are_closed_without_a_warning(
        self, prefix: str, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """Nobody is told of unclosed transports that the layer has let go of. (uvloop tells, of closed ones.)"""
        loop = asyncio.new_event_loop()
        if kind == "uvloop":
            loop.close()
            loop = pytest.importorskip("uvloop").new_event_loop()
        options: dict[str, Any] = {}
        query = ""
        if kind == "tls":
            path, key = map(str, request.getfixturevalue("certificate"))
            options = {
                "tls_cert_file": path,
                "tls_key_file": key,
                "tls_ca_cert_file": path,
                "tls_auth_clients": "no",
            }
            query = f"?ssl_ca_certs={path}"
        server = EmbeddedServer(external=False, unix=kind == "unix", **options)
        try:
            server.start()
        except EmbeddedServerError as error:
            loop.close()
            pytest.skip(f"no server that does {kind}: {error}")
        with server, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = AsyncQueueChannelLayer(hosts=[server.url + query], prefix=prefix)
            before = clients_of(server)
            close_alone(layer, loop)
            del loop
            of_the_closed = clients_of(server) - before
            asyncio.run(layer.flush())
            assert not of_the_closed & clients_of(server)
            asyncio.run(layer.close())
            gc.collect()
        told = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
        assert not told or (kind == "uvloop" and all("TCPTransport" in text for text in told))


class TestLayersThatAreDropped:
    """Layers that nobody holds any more, and that nobody has closed."""

    def test_their_connections_end(self, own_redis_server: EmbeddedServer, prefix: str) -> None:
        """
        Twenty layers that the relay has sent for leave no connection when they are collected, and neither does
        one whose channels belong to a loop that runs, or that was closed.
        """
        config: dict[str, Any] = {"hosts": [own_redis_server.url], "prefix": prefix}
        with asyncio.Runner() as runner, warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            before = clients_of(own_redis_server)
            for n in range(20):
                async_to_sync(AsyncQueueChannelLayer(**config).send)("jobs", note(n))
            runner.run(members_of(AsyncQueueChannelLayer(**config), "room", 1))
            close_alone(AsyncQueueChannelLayer(**config))
            gc.collect()
            runner.run(
                eventually(lambda: clients_of(own_redis_server) <= before, "the end of all connections")
            )

    @pytest.mark.parametrize("bus", ["memory", "redis"])
    def test_their_sessions_end(self, bus: str, prefix: str, request: pytest.FixtureRequest) -> None:
        """Nothing is left of their sessions, on the relay's loop and on others."""
        url = "memory://" if bus == "memory" else request.getfixturevalue("redis_url")

        def layer() -> AsyncQueueChannelLayer:
            return AsyncQueueChannelLayer(hosts=[url], prefix=prefix)

        def sessions() -> int:
            gc.collect()
            return sum(type(thing) is Session for thing in gc.get_objects())

        with asyncio.Runner() as runner:
            before = sessions()
            for n in range(3):
                async_to_sync(layer().send)("jobs", note(n))
                runner.run(members_of(layer(), "room", 1))
                close_alone(layer())
            runner.run(eventually(lambda: sessions() <= before, "the end of all sessions"))

    # The collector may come to a transport before it comes to the layer that would have let go of it.
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_a_layer_that_a_closed_loop_refers_to(
        self, make_layer: MakeLayerAnywhere, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A receive() that waits on a loop that was closed alone holds no layer: they go together."""
        url = make_layer().options.hosts[0].url

        def use_and_close() -> "weakref.ref[AsyncQueueChannelLayer]":
            layer = AsyncQueueChannelLayer(hosts=[url or ""], prefix="dropped")
            loop = asyncio.new_event_loop()

            async def main() -> None:
                await started(layer.receive(await layer.new_channel()))
                await eventually(lambda: len(asyncio.all_tasks()) == 2, "the end of all other tasks")

            loop.run_until_complete(main())
            loop.close()
            return weakref.ref(layer)

        reference = use_and_close()
        gc.collect()
        assert reference() is None
        # Of asyncio: the task of somebody who closes his loop so.
        assert "Task was destroyed" in caplog.text

    def test_a_layer_in_use_is_not_dropped(self, make_layer: MakeLayerAnywhere) -> None:
        """Whoever waits in receive(), or holds an open channel, holds the layer."""
        other = make_layer()
        prefix = other.prefix
        [host] = other.options.hosts

        async def main() -> None:
            layer = AsyncQueueChannelLayer(hosts=[host.url or ""], prefix=prefix)
            (member,) = await members_of(layer, "room", 1)
            opened = await layer.open_channel()
            await layer.group_add("room", opened.name)
            reader = await started(layer.receive(member))
            reference = weakref.ref(layer)
            del layer
            gc.collect()
            await other.group_send("room", note(1))
            async with asyncio.timeout(DEADLINE):
                assert await reader == note(1)
            del reader
            woken = asyncio.get_running_loop().create_future()
            if opened.empty():
                opened.wake(woken)
                async with asyncio.timeout(DEADLINE):
                    await woken
            assert opened.take() == note(1)
            opened.close()
            del opened
            await eventually(lambda: gc.collect() >= 0 and reference() is None, "the end of the layer")

        asyncio.run(main())


def clients_of(server: EmbeddedServer) -> set[str]:
    """The ids of the connections to a server, but for the one that asks."""
    lines = server.command("CLIENT", "LIST").decode().splitlines()
    return {line.split()[0] for line in lines if "cmd=client" not in line}


class TestLoopsTogether:
    """Loops in several threads at the same time."""

    def test_one_layer_in_four_threads(self, make_layer: MakeLayerAnywhere) -> None:
        """A message to a group reaches the members of every loop once, in the same order."""
        layer = make_layer()
        threads = 4
        ready, done = threading.Barrier(threads), threading.Barrier(threads)
        arrived: dict[int, list[int]] = {}

        def main(n: int) -> None:
            async def run() -> None:
                members = await members_of(layer, "room", 2)
                await asyncio.to_thread(ready.wait, DEADLINE)
                for m in range(10):
                    await layer.group_send("room", note(n * 100 + m))
                received = [await receive_many(layer, member, threads * 10) for member in members]
                assert received[0] == received[1]
                arrived[n] = [message["n"] for message in received[0]]
                await asyncio.to_thread(done.wait, DEADLINE)
                for member in members:
                    await assert_nothing_waits(layer, member)

            asyncio.run(run())

        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(main, n) for n in range(threads)]:
                future.result(DEADLINE)
        expected = sorted(n * 100 + m for n in range(threads) for m in range(10))
        assert all(sorted(numbers) == expected for numbers in arrived.values())
        assert all(numbers == arrived[0] for numbers in arrived.values())

    def test_send_to_a_channel_of_another_loop(self, make_layer: MakeLayerAnywhere) -> None:
        """A channel made on one loop is reached from another of the process, in order."""
        layer = make_layer()
        names: list[str] = []
        has_name = threading.Event()
        arrived: list[dict[str, Any]] = []

        def read() -> None:
            async def run() -> None:
                names.append(await layer.new_channel())
                has_name.set()
                arrived.extend(await receive_many(layer, names[0], 30))

            asyncio.run(run())

        async def write() -> None:
            for message in notes(30):
                await layer.send(names[0], message)

        thread = run_in_thread(read)
        assert has_name.wait(DEADLINE)
        asyncio.run(write())
        thread.join(DEADLINE)
        assert arrived == notes(30)

    def test_normal_channel_read_on_two_loops(self, make_layer: MakeLayerAnywhere) -> None:
        """Each job of a normal channel goes to one reader of all loops."""
        layer = make_layer()
        count = 60
        arrived: list[int] = []
        lock = threading.Lock()
        enough = threading.Event()

        def work() -> None:
            async def one(message: dict[str, Any]) -> None:
                with lock:
                    arrived.append(message["n"])
                    if len(arrived) >= count:
                        enough.set()

            async def read() -> None:
                while True:
                    await one(await layer.receive("jobs"))

            async def run() -> None:
                reader = asyncio.create_task(read())
                await asyncio.to_thread(enough.wait, DEADLINE)
                reader.cancel()
                await asyncio.wait([reader])

            asyncio.run(run())

        async def write() -> None:
            for message in notes(count):
                await layer.send_wait("jobs", message)

        threads = [run_in_thread(work) for _ in range(2)]
        asyncio.run(write())
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(arrived) == list(range(count))

        async def rest() -> None:
            await assert_nothing_waits(layer, "jobs")

        asyncio.run(rest())

    def test_what_threads_drop_is_counted(
        self, make_layer: MakeLayerAnywhere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        Three loops overrun a fourth, which drops messages for its full channel at the same time: each message is
        delivered or counted, whenever the threads are switched.
        """
        monkeypatch.setattr(mailbox, "LIMIT", 3)
        layer = make_layer(capacity=5, recovery=None)
        senders, each = 3, 100

        async def send() -> None:
            await layer.new_channel()  # so that it has a session of its own
            for message in notes(each):
                await layer.group_send("room", message)

        async def overrun() -> None:
            await members_of(layer, "room", 1)
            sending = [asyncio.to_thread(asyncio.run, send()) for _ in range(senders)]
            await every([send(), *sending])
            await eventually(lambda: arrived() == (senders + 1) * each)

        def arrived() -> int:
            counts = layer.statistics()
            return counts.delivered + sum(counts.dropped.values())

        with switching_within("on_overrun", "_overflow"):
            asyncio.run(overrun())

    async def test_threads_that_are_told(
        self, make_layer: MakeLayerAnywhere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Four threads send to a channel of a loop that stands still: what is not received is a ChannelFull."""
        monkeypatch.setattr(mailbox, "LIMIT", 10)
        layer = make_layer(capacity=1000)
        channel = await layer.new_channel()
        refused: list[ChannelFull] = []

        def send() -> None:
            for message in notes(50):
                try:
                    sync.send(channel, message, layer)
                except ChannelFull as exc:
                    refused.append(exc)

        threads = [run_in_thread(send) for _ in range(4)]
        for thread in threads:
            thread.join()  # and this loop stands still
        await receive_many(layer, channel, 4 * 50 - len(refused))
        await assert_nothing_waits(layer, channel)
        assert len(refused) >= 4 * 50 - 10 - len(threads)
        assert layer.statistics().dropped == {}


class TestSyncSenders:
    """`async_to_sync(layer.send)` from views, threads and scripts."""

    async def test_from_a_plain_thread(self, make_layer: MakeLayerAnywhere) -> None:
        """Sends from a thread without a loop reach the consumers of the main loop, in order."""
        layer = make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)

        def view() -> None:
            for message in notes(20):
                async_to_sync(layer.group_send)("room", message)
            async_to_sync(layer.send)(channel, note(100))
            async_to_sync(layer.send)("jobs", note(200))

        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(view)
        arrived = await receive_many(layer, channel, 21)
        assert [message for message in arrived if message != note(100)] == notes(20)
        assert await receive(layer, "jobs") == note(200)
        await assert_nothing_waits(layer, channel)

    async def test_from_a_sync_view_under_asgi(self, make_layer: MakeLayerAnywhere) -> None:
        """Inside sync_to_async, async_to_sync() comes back to the main loop; that works too."""
        layer = make_layer()
        (member,) = await members_of(layer, "room", 1)

        def view(n: int) -> None:
            async_to_sync(layer.group_send)("room", note(n))

        for n in range(10):
            await sync_to_async(view)(n)
        assert await receive_many(layer, member, 10) == notes(10)

    async def test_from_many_threads(self, make_layer: MakeLayerAnywhere) -> None:
        """Every send of every thread arrives once; each thread's in its order."""
        layer = make_layer(capacity=1000)
        (member,) = await members_of(layer, "room", 1)

        def view(thread: int) -> None:
            for n in range(20):
                async_to_sync(layer.group_send)("room", note(thread * 100 + n))

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(asyncio.to_thread(view, thread) for thread in range(6)))
        numbers = [message["n"] for message in await receive_many(layer, member, 120)]
        for thread in range(6):
            assert [n for n in numbers if n // 100 == thread] == [thread * 100 + n for n in range(20)]
        await assert_nothing_waits(layer, member)

    def test_a_script_without_a_loop(self, make_layer: MakeLayerAnywhere) -> None:
        """Call after call works, each in a loop of its own: no "Event loop is closed" on the second."""
        layer = make_layer()
        for message in notes(10):
            async_to_sync(layer.send)("jobs", message)
        for message in notes(10):
            assert async_to_sync(layer.receive)("jobs") == message

    async def test_errors_reach_the_sync_sender(self, make_layer: MakeLayerAnywhere) -> None:
        """ChannelFull and TypeError come back to the caller in the thread."""
        layer = make_layer(capacity=1)

        def view() -> None:
            async_to_sync(layer.send)("jobs", note(1))
            with pytest.raises(layer.ChannelFull):
                async_to_sync(layer.send)("jobs", note(2))
            with pytest.raises(TypeError, match="value"):
                async_to_sync(layer.group_send)("room", {"type": "x", "value": object()})
            with pytest.raises(TypeError):
                async_to_sync(layer.group_send)("no room", note(1))

        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(view)

    async def test_group_add_from_a_sync_caller(self, make_layer: MakeLayerAnywhere) -> None:
        """A sync caller may add and discard a channel of the main loop, and a normal one."""
        layer = make_layer()
        channel = await layer.new_channel()

        def view(call: Callable[..., Any]) -> None:
            async_to_sync(call)("room", channel)
            async_to_sync(call)("room", "jobs")

        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(view, layer.group_add)
            await layer.group_send("room", note(1))
            assert await receive(layer, channel) == note(1)
            assert await receive(layer, "jobs") == note(1)
            await asyncio.to_thread(view, layer.group_discard)
            await layer.group_send("room", note(2))
        await assert_nothing_waits(layer, channel)
        await assert_nothing_waits(layer, "jobs")

    async def test_flush_from_a_sync_caller(self, make_layer: MakeLayerAnywhere) -> None:
        """flush() from a thread empties the main loop's channels too."""
        layer = make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.send(member, note(1))
        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(async_to_sync(layer.flush))
        await layer.group_send("room", note(2))
        await assert_nothing_waits(layer, member)

    async def test_connections_do_not_grow(
        self, make_redis_layer: MakeLayerAnywhere, redis_server: EmbeddedServer
    ) -> None:
        """However many sync sends there are: the session's two connections and the relay's."""

        def connections() -> int:
            return len(redis_server.command("CLIENT", "LIST").splitlines())

        before = connections()
        layer = make_redis_layer()
        (member,) = await members_of(layer, "room", 1)
        seen: list[int] = []

        def view() -> None:
            for n in range(15):
                async_to_sync(layer.group_send)("room", note(n))
                seen.append(connections())

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(asyncio.to_thread(view) for _ in range(4)))
        # Each thread that asks is a connection itself while it does.
        assert max(seen) <= before + 4 + 3
        assert connections() <= before + 4
        await receive_many(layer, member, 60)

    def test_two_kinds_of_loop_at_once(self, make_layer: MakeLayerAnywhere) -> None:
        """Consumers on one loop, sync senders on others, while loops come and go beside them."""
        layer = make_layer(capacity=1000)
        ready = threading.Event()
        arrived: list[int] = []

        def consume() -> None:
            async def run() -> None:
                (member,) = await members_of(layer, "room", 1)
                ready.set()
                arrived.extend(message["n"] for message in await receive_many(layer, member, 40))

            asyncio.run(run())

        async def come_and_go(n: int) -> None:
            (member,) = await members_of(layer, f"own.{n}", 1)
            await layer.group_send("room", note(n))
            await layer.group_send(f"own.{n}", note(n))
            assert await receive(layer, member) == note(n)

        consumer = run_in_thread(consume)
        assert ready.wait(DEADLINE)

        def send_sync() -> None:
            for n in range(20):
                async_to_sync(layer.group_send)("room", note(100 + n))

        sender = run_in_thread(send_sync)
        for n in range(20):
            asyncio.run(come_and_go(n))
        sender.join(DEADLINE)
        consumer.join(DEADLINE)
        assert sorted(arrived) == [*range(20), *range(100, 120)]


class TestLayersOfDjango:
    """How Channels makes and forgets layers."""

    async def test_a_layer_forgotten_without_closing(self, make_layer: MakeLayerAnywhere) -> None:
        """
        Changing CHANNEL_LAYERS drops the layer: a new one with the same CONFIG works beside what is left.
        """
        for n in range(3):
            layer = make_layer()
            (member,) = await members_of(layer, "room", 1)
            await every(layer.group_send("room", note(n)) for _ in range(2))
            assert await receive_many(layer, member, 2) == [note(n)] * 2
            del layer
            gc.collect()
