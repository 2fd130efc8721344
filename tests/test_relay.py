"""The relay: what callers without a lasting loop get, and what they cost."""

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, LayerClosed, LayerUnavailable, sync
from channels_asyncq.process import loops
from channels_asyncq.process import relay as relay_module
from channels_asyncq.process.jobs import Job
from channels_asyncq.process.relay import Relay, relay
from channels_asyncq.process.relay_loop import RelayLoop
from channels_asyncq.testing import EmbeddedServer
from tests.contract import (
    DEADLINE,
    assert_nothing_waits,
    eventually,
    note,
    notes,
    receive_many,
)

MakeLayer = Callable[..., AsyncQueueChannelLayer]


@pytest.fixture
def make_layer(redis_url: str, prefix: str) -> Iterator[MakeLayer]:
    """Make layers on the shared server, outside of any loop; all are closed at the end."""
    made: list[AsyncQueueChannelLayer] = []

    def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        made.append(AsyncQueueChannelLayer(**{"hosts": [redis_url], "prefix": prefix, **config}))
        return made[-1]

    yield make_layer
    for layer in made:
        layer.close_from_thread()


@pytest.fixture
def own_relay() -> Iterator[Relay]:
    """A relay beside the process's own; stopped at the end."""
    own = Relay()
    yield own
    own.stop()


def connections_made(server: EmbeddedServer) -> int:
    """How many connections the server has ever accepted, without those that ask for it."""
    server_asks.append(None)
    for line in server.command("INFO", "stats").decode().splitlines():
        if line.startswith("total_connections_received:"):
            return int(line.partition(":")[2]) - len(server_asks)
    raise AssertionError("no such figure")


server_asks: list[None] = []


@pytest.fixture
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a relay made after this is woken: an eventfd, or without one, refused or unknown to the system."""

    def refuse(*arguments: Any) -> int:
        raise PermissionError("not here")

    if request.param == "refused":
        monkeypatch.setattr("os.eventfd", refuse, raising=False)
    elif request.param == "none":
        monkeypatch.delattr("os.eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("this system has none")
    return str(request.param)


class TestRelay:
    """The thread itself."""

    def test_result_and_error_of_a_job(self, own_relay: Relay) -> None:
        """wait() returns and raises what the coroutine does, on the relay's own thread."""

        async def where() -> str:
            return threading.current_thread().name

        async def fail() -> None:
            raise KeyError("what")

        assert own_relay.wait(where()) == "channels_asyncq relay"
        with pytest.raises(KeyError, match="what"):
            own_relay.wait(fail())

    async def test_run_from_a_loop(self, own_relay: Relay) -> None:
        """run() does the same for a coroutine."""

        async def answer() -> int:
            await asyncio.sleep(0)
            return 42

        async def fail() -> None:
            await asyncio.sleep(0)
            raise KeyError("what")

        assert await own_relay.run(answer()) == 42
        with pytest.raises(KeyError, match="what"):
            await own_relay.run(fail())

    async def test_cancelling_run_cancels_the_job(self, own_relay: Relay) -> None:
        """The coroutine on the relay is cancelled with the one that waits for it."""
        loop = asyncio.get_running_loop()
        began, ended = asyncio.Event(), asyncio.Event()

        async def long() -> None:
            loop.call_soon_threadsafe(began.set)
            try:
                await asyncio.Event().wait()
            finally:
                loop.call_soon_threadsafe(ended.set)

        task = asyncio.create_task(own_relay.run(long()))
        async with asyncio.timeout(DEADLINE):
            await began.wait()
            task.cancel()
            await asyncio.wait([task])
            await ended.wait()
        assert task.cancelled()

    @pytest.mark.parametrize("bell", ["eventfd", "none"], indirect=True)
    def test_jobs_begin_in_the_order_in_which_they_were_posted(self, bell: str, own_relay: Relay) -> None:
        """Those that wait for a busy relay are begun one after the other; one that fails holds up none."""
        begun: list[int] = []
        go_on = threading.Event()

        async def be_busy() -> None:
            is_busy.set()
            go_on.wait(DEADLINE)

        async def begin(n: int) -> None:
            begun.append(n)
            if n == 3:
                raise SystemExit(n)

        is_busy = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(own_relay.wait, be_busy())
            assert is_busy.wait(DEADLINE)
            jobs = [Job(begin(n)) for n in range(10)]
            for job in jobs:
                own_relay._post(job)
            go_on.set()
            busy.result(DEADLINE)
        for job in jobs:
            job.wait()
        assert begun == list(range(10))
        for n, job in enumerate(jobs):
            if n == 3:
                with pytest.raises(SystemExit):
                    job.outcome()
            else:
                job.outcome()

    @pytest.mark.parametrize("bell", ["eventfd", "refused", "none"], indirect=True)
    def test_jobs_leave_the_loop_its_turns(self, bell: str, own_relay: Relay) -> None:
        """While jobs are posted without a pause, the loop does its other work; none of them is forgotten."""
        count, had_a_turn, over = 0, False, threading.Event()

        def turn() -> None:
            nonlocal had_a_turn
            had_a_turn = True

        async def begin() -> None:
            nonlocal count
            count += 1
            if count == 1:
                asyncio.get_running_loop().call_soon(turn)
            if had_a_turn or count == 10_000:
                over.set()
            else:
                # The bell rings while jobs are begun.
                own_relay._post(Job(begin()))

        own_relay.wait(begin())
        assert over.wait(DEADLINE)
        assert had_a_turn and 1 < count < 10_000

    @pytest.mark.parametrize("bell", ["eventfd", "none"], indirect=True)
    def test_interrupted_while_it_is_posted(
        self, bell: str, own_relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C while the relay is woken: the job is never begun, and nothing of it stays."""
        begun: list[str] = []

        async def note_it(name: str) -> None:
            begun.append(name)

        async def pass_by() -> None:
            pass

        def interrupt(*arguments: Any, **more: Any) -> None:
            raise KeyboardInterrupt

        own_relay.wait(pass_by())
        loop = own_relay.loop
        assert isinstance(loop, RelayLoop)
        with monkeypatch.context() as patch:
            if bell == "eventfd":
                patch.setattr("os.eventfd_write", interrupt)
            else:
                call_soon = loop.call_soon_threadsafe
                patch.setattr(loop, "call_soon_threadsafe", interrupt)
                # The cancellation goes the same way, and is not interrupted.
                patch.setattr(own_relay, "_cancel", lambda job: restore(job))

                def restore(job: Job[None]) -> None:
                    patch.setattr(loop, "call_soon_threadsafe", call_soon)
                    Relay._cancel(own_relay, job)

            with pytest.raises(KeyboardInterrupt):
                own_relay.wait(note_it("interrupted"))
        own_relay.wait(note_it("next"))
        assert begun == ["next"]
        own_relay.wait(pass_by())
        assert not loop.jobs

    def test_posting_from_a_signal_handler(self, own_relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a thread posts while it is just posting, as a signal's handler may, is done as well."""
        if not hasattr(os, "eventfd"):
            pytest.skip("this system has none")
        ring = os.eventfd_write
        done: list[str] = []

        async def do(what: str) -> None:
            done.append(what)

        def interrupted(descriptor: int, value: int) -> None:
            if not inner:
                inner.append(Job(do("of the handler")))
                own_relay._post(inner[0])
            ring(descriptor, value)

        inner: list[Job[None]] = []
        monkeypatch.setattr("os.eventfd_write", interrupted)
        own_relay.wait(do("of the thread"))
        inner[0].wait()
        assert sorted(done) == ["of the handler", "of the thread"]

    def test_a_selector_that_takes_no_bell(self, own_relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relay that cannot have its bell does without."""

        def refuse(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        async def answer() -> int:
            return 42

        monkeypatch.setattr(RelayLoop, "add_reader", refuse)
        assert own_relay.wait(answer()) == 42

    def test_posting_to_a_loop_that_ends(self, own_relay: Relay) -> None:
        """Whoever posts to a loop that was closed goes to its successor; descriptors do not add up."""
        own_relay.wait(asyncio.sleep(0))
        ended = own_relay.loop
        assert isinstance(ended, RelayLoop)
        own_relay.stop()
        late = Job(asyncio.sleep(0))
        with pytest.raises(RuntimeError, match="closed"):
            ended.post(late)
        late.close_unstarted()
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        for _ in range(5):
            # As if it had been closed between the look for it and the post.
            own_relay._loop = ended
            own_relay.wait(asyncio.sleep(0))
            assert own_relay.loop is not ended
            own_relay.stop()
        gc.collect()
        if descriptors:
            assert len(os.listdir("/proc/self/fd")) <= descriptors

    async def test_cancelling_before_it_begins(self, own_relay: Relay) -> None:
        """What is cancelled before the relay has begun it leaves nothing there, whichever comes first."""

        async def answer() -> int:
            await asyncio.sleep(0)
            return 42

        own_relay.wait(answer())
        for _ in range(200):
            task = asyncio.create_task(own_relay.run(answer()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert own_relay.wait(answer()) == 42
        loop = own_relay.loop
        assert isinstance(loop, RelayLoop)
        await eventually(lambda: not loop.jobs, "the end of all jobs")

    def test_stop_lets_go_of_everybody(self, own_relay: Relay) -> None:
        """Whoever waits when the relay stops gets LayerClosed, soon; the relay starts again when asked."""
        threads = 8
        began = threading.Semaphore(0)

        async def long() -> None:
            began.release()
            await asyncio.Event().wait()

        async def answer() -> int:
            return 42

        with ThreadPoolExecutor(threads) as pool:
            waiting = [pool.submit(own_relay.wait, long()) for _ in range(threads)]
            for _ in range(threads):
                assert began.acquire(timeout=DEADLINE)
            thread = own_relay._thread
            assert isinstance(thread, threading.Thread)
            own_relay.stop()
            thread.join(DEADLINE)
            assert not thread.is_alive()
            for future in waiting:
                with pytest.raises(LayerClosed, match="process is ending"):
                    future.result(DEADLINE)
        assert own_relay.wait(answer()) == 42

    def test_second_stop_waits_for_the_first(self, own_relay: Relay) -> None:
        """Whoever stops the relay while another thread does returns when the relay's thread has ended, too."""
        began = threading.Event()

        async def long() -> None:
            # It is waited for when the relay stops, and then cancelled.
            began.set()
            await asyncio.Event().wait()

        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(own_relay.wait, long())
            assert began.wait(DEADLINE)
            thread = own_relay._thread
            assert isinstance(thread, threading.Thread)
            stopping = pool.submit(own_relay.stop)
            while own_relay.loop is not None:
                pass
            own_relay.stop()
            assert not thread.is_alive()
            stopping.result(DEADLINE)
            with pytest.raises(LayerClosed):
                waiting.result(DEADLINE)

    def test_stop_waits_for_what_has_begun(self, own_relay: Relay) -> None:
        """What was written when the relay stops may still be answered: its caller is not told otherwise."""
        began = threading.Event()

        async def answer_at_the_end() -> int:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, RelayLoop)
            began.set()
            while not loop.is_leaving:  # noqa: ASYNC110  (no event tells)
                await asyncio.sleep(0)
            return 42

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(own_relay.wait, answer_at_the_end())
            assert began.wait(DEADLINE)
            own_relay.stop()
            assert waiting.result(DEADLINE) == 42

    def test_stopping_under_load(self, own_relay: Relay) -> None:
        """Jobs that race with stop() are done or get LayerClosed: nobody waits for ever."""

        async def answer() -> int:
            await asyncio.sleep(0)
            return 42

        def ask() -> int:
            done = 0
            for _ in range(100):
                try:
                    done += own_relay.wait(answer()) == 42
                except LayerClosed:
                    pass
            return done

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            while not all(future.done() for future in asking):
                own_relay.stop()
            assert sum(future.result(DEADLINE) for future in asking) > 0

    def test_a_job_that_does_not_end_when_cancelled(self, own_relay: Relay) -> None:
        """stop() takes two seconds at most, and whoever waited is told."""
        let_go: list[asyncio.Event] = []
        began = threading.Event()

        async def stubborn() -> None:
            let_go.append(asyncio.Event())
            began.set()
            while True:
                try:
                    await let_go[0].wait()
                    return
                except asyncio.CancelledError:
                    pass

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(own_relay.wait, stubborn())
            assert began.wait(DEADLINE)
            loop = own_relay.loop
            assert loop is not None
            # It ends in the end, or its task would be destroyed pending, rightly complained of.
            loop.call_soon_threadsafe(loop.call_later, 0.3, let_go[0].set)
            assert relay_module._LEAVE_SECONDS < relay_module._STOP_SECONDS <= 2
            at = time.monotonic()
            own_relay.stop()
            assert time.monotonic() - at < DEADLINE / 2
            assert waiting.result(DEADLINE) is None

    def test_errors_leave_no_cycles(self, own_relay: Relay) -> None:
        """What a failed call held is freed without the garbage collector."""

        class Payload:
            pass

        async def fail(payload: Payload) -> None:
            raise KeyError(id(payload))

        def call() -> "weakref.ref[Payload]":
            payload = Payload()
            try:
                own_relay.wait(fail(payload))
            except KeyError:
                pass
            return weakref.ref(payload)

        own_relay.wait(asyncio.sleep(0))
        gc.disable()
        try:
            reference = call()
            # The relay's thread lets go of the job a moment after it has told its caller.
            own_relay.wait(asyncio.sleep(0))
            own_relay.wait(asyncio.sleep(0))
            assert reference() is None
        finally:
            gc.enable()

    def test_look_up_of_a_name(self, own_relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        """Names are looked up on daemon threads; errors come as they are."""
        threads: list[threading.Thread] = []
        real = socket.getaddrinfo

        def look_up(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            if arguments[0] == "nowhere.invalid":
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return real(*arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

        async def ask(name: str) -> Any:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, RelayLoop)
            return await loop.getaddrinfo(name, 80, type=socket.SOCK_STREAM)

        assert own_relay.wait(ask("localhost"))[0][4][1] == 80
        with pytest.raises(socket.gaierror):
            own_relay.wait(ask("nowhere.invalid"))
        assert len(threads) == 2
        assert all(thread.daemon for thread in threads)


class TestConnections:
    """However a process sends, the relay's two connections carry it."""

    @pytest.fixture
    def counted(
        self, own_redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator["Counted"]:
        # However slow the machine is, what makes a loop one that stays is the number of its sends.
        monkeypatch.setattr(loops, "_RELAYED_SECONDS", 3600.0)
        layer = AsyncQueueChannelLayer(
            hosts=[own_redis_server.url], prefix=prefix, capacity=10_000, send_timeout=20
        )
        with Counted(own_redis_server, layer) as counted:
            yield counted
        layer.close_from_thread()

    def test_400_calls(self, counted: "Counted") -> None:
        """400 `async_to_sync(group_send)` calls: two connections in all; all arrive, in order."""
        group_send = async_to_sync(counted.layer.group_send)
        for message in notes(400):
            group_send("room", message)
        assert counted.connections() <= 2
        assert [message["n"] for message in counted.arrived(400)] == list(range(400))

    @pytest.mark.parametrize("how", ["async_to_sync", "sync"])
    def test_32_threads_of_20_calls(self, counted: "Counted", how: str) -> None:
        """32 threads send 20 each: two connections; all arrive, each thread's in its order."""

        def view(thread: int) -> None:
            for n in range(20):
                message = {"type": "test.note", "thread": thread, "n": n}
                if how == "sync":
                    sync.group_send("room", message, counted.layer)
                else:
                    async_to_sync(counted.layer.group_send)("room", message)

        with ThreadPoolExecutor(32) as pool:
            for future in [pool.submit(view, thread) for thread in range(32)]:
                future.result(DEADLINE)
        assert counted.connections() <= 2
        arrived = counted.arrived(640)
        for thread in range(32):
            assert [message["n"] for message in arrived if message["thread"] == thread] == list(range(20))

    def test_50_runs(self, counted: "Counted") -> None:
        """50 `asyncio.run(group_send)`: two connections; all arrive, in order."""
        for message in notes(50):
            asyncio.run(counted.layer.group_send("room", message))
        assert counted.connections() <= 2
        assert [message["n"] for message in counted.arrived(50)] == list(range(50))

    @pytest.mark.parametrize("how", ["async_to_sync", "sync"])
    def test_scripts_are_flushed(self, counted: "Counted", how: str) -> None:
        """SCRIPT FLUSH by somebody else is no loss, and no concern of the caller."""
        for n in range(5):
            if how == "sync":
                sync.group_send("room", note(n), counted.layer)
            else:
                async_to_sync(counted.layer.group_send)("room", note(n))
            counted.server.command("SCRIPT", "FLUSH")
        assert [message["n"] for message in counted.arrived(5)] == list(range(5))

    def test_killed_connections(self, counted: "Counted") -> None:
        """Connections that are killed between and during calls cost time, and no message."""
        stop = threading.Event()
        sent, sent_before = 0, -1

        def kill() -> None:
            nonlocal sent_before
            while not stop.wait(0.02):
                # Only when something was sent since the last time: on a slow machine nothing ever would be.
                if sent != sent_before:
                    sent_before = sent
                    counted.server.command("CLIENT", "KILL", "TYPE", "normal")

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for message in notes(300):
                sync.group_send("room", message, counted.layer)
                sent += 1
        finally:
            stop.set()
            killer.join()
        assert [message["n"] for message in counted.arrived(300)] == list(range(300))

    def test_10_calls_of_30_sends(self, counted: "Counted") -> None:
        """10 calls of 30 sends each, one after the other: two connections; all arrive, in order."""

        async def many(call: int) -> None:
            for n in range(30):
                await counted.layer.group_send("room", note(30 * call + n))

        for call in range(10):
            async_to_sync(many)(call)
        assert counted.connections() <= 2
        assert [message["n"] for message in counted.arrived(300)] == list(range(300))

    def test_10_calls_of_30_sends_at_once(self, counted: "Counted") -> None:
        """The same with the 30 sends gathered."""

        async def many(call: int) -> None:
            await asyncio.gather(*(counted.layer.group_send("room", note(30 * call + n)) for n in range(30)))

        for call in range(10):
            async_to_sync(many)(call)
        assert counted.connections() <= 2
        assert sorted(message["n"] for message in counted.arrived(300)) == list(range(300))

    def test_loops_that_stay_close_what_they_opened(self, counted: "Counted") -> None:
        """A call that sends more than a moment's worth has a session of its own, closed with its loop."""

        async def many() -> None:
            for message in notes(150):
                await counted.layer.group_send("room", message)

        for _ in range(3):
            asyncio.run(many())
        numbers = [message["n"] for message in counted.arrived(450)]
        assert numbers == list(range(150)) * 3
        assert counted.connections() == 2 + 3 * 2

        def open_now() -> int:
            return len(counted.server.command("CLIENT", "LIST").splitlines()) - 1

        async def closed() -> None:
            # The relay's two, and the two of whoever counts.
            await eventually(lambda: open_now() <= 4, "the end of their connections")

        asyncio.run(closed())


class Counted:
    """A layer whose connections are counted, and what a member of the group `room` gets."""

    def __init__(self, server: EmbeddedServer, layer: AsyncQueueChannelLayer) -> None:
        self.server, self.layer = server, layer
        self._reader = AsyncQueueChannelLayer(
            hosts=[server.url], prefix=layer.prefix, capacity=10_000, send_timeout=20
        )
        self._runner = asyncio.Runner()

    def __enter__(self) -> "Counted":
        self._member = self._runner.run(self._join())
        self._before = connections_made(self.server)
        return self

    async def _join(self) -> str:
        channel = await self._reader.new_channel()
        await self._reader.group_add("room", channel)
        await eventually(lambda: self._reader.statistics().connected, "both connections")
        return channel

    def connections(self) -> int:
        return connections_made(self.server) - self._before

    def arrived(self, count: int) -> list[dict[str, Any]]:
        async def read() -> list[dict[str, Any]]:
            messages = await receive_many(self._reader, self._member, count)
            await assert_nothing_waits(self._reader, self._member)
            return messages

        return self._runner.run(read())

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._reader.close())
        self._runner.close()


class TestNoServer:
    """A relay that cannot reach its server."""

    def test_error_within_send_timeout_with_the_address(
        self, own_redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """The sync caller gets LayerUnavailable that names the server; the next one at once."""
        layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix, send_timeout=2)
        own_redis_server.kill()
        calls: list[Callable[[], None]] = [
            lambda: sync.group_send("room", note(1), layer),
            lambda: async_to_sync(layer.group_send)("room", note(1)),
        ]
        # The second would take two seconds if it waited anew.
        for call, most in zip(calls, [4.5, 1.8], strict=True):
            at = time.monotonic()
            with pytest.raises(LayerUnavailable, match=f"127.0.0.1:{own_redis_server.port}"):
                call()
            assert time.monotonic() - at < most
        layer.close_from_thread()

    def test_a_hundred_threads(self, own_redis_server: EmbeddedServer, prefix: str) -> None:
        """
        A hundred threads send while the server is down: each gets its error in time, the relay holds no more
        than a job for each, none afterwards, and all recover when the server is back.
        """
        threads = 100
        layer = AsyncQueueChannelLayer(
            hosts=[own_redis_server.url], prefix=prefix, send_timeout=1, capacity=1000
        )
        sync.group_send("room", note(0), layer)
        loop = relay().loop
        assert isinstance(loop, RelayLoop)
        own_redis_server.kill()
        most = 0
        gate = threading.Barrier(threads)

        def view(thread: int) -> float:
            nonlocal most
            gate.wait(DEADLINE)
            at = time.monotonic()
            with pytest.raises(LayerUnavailable, match=f"127.0.0.1:{own_redis_server.port}"):
                # The first may have been written as the connection broke.
                while True:
                    try:
                        sync.group_send("room", {**note(thread), "text": "x" * 10_000}, layer)
                    except LayerUnavailable:
                        raise
                    except Exception as error:
                        if "DeliveryUnknown" not in repr(error):
                            raise
            most = max(most, len(loop.jobs))
            return time.monotonic() - at

        def again(thread: int) -> None:
            until = time.monotonic() + DEADLINE
            while True:
                try:
                    return sync.send("jobs", note(thread), layer)
                except LayerUnavailable:
                    assert time.monotonic() < until

        with ThreadPoolExecutor(threads) as pool:
            took = [future.result(DEADLINE) for future in [pool.submit(view, n) for n in range(threads)]]
            assert max(took) < 4.5
            assert most <= threads
            assert not loop.jobs
            own_redis_server.restart()
            for future in [pool.submit(again, n) for n in range(threads)]:
                future.result(DEADLINE)
        arrived = asyncio.run(receive_many(layer, "jobs", threads))
        assert sorted(message["n"] for message in arrived) == list(range(threads))
        layer.close_from_thread()
