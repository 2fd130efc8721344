"""However a loop, a process or a server ends: soon, without a word, and with what was sent on its way."""

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.asyncio.client import connect

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE, assert_nothing_waits, note, notes, receive, receive_many
from tests.processes.handles import END_TIMEOUT, EXPECTED, run, said
from tests.test_servers import Served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

# What the layer may take, and what an interpreter in development mode on a busy machine may.
LAYER_SECONDS = 2.0
INTERPRETER_SECONDS = 3.0


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    return {"hosts": [redis_url], "prefix": prefix}


async def ends(config: dict[str, Any], way: str) -> None:
    """Run the program; it must end clean and soon."""
    code, output, errors = await run("endings", json.dumps(config), way)
    at = time.monotonic()
    complaints = [line for line in errors.splitlines() if not EXPECTED.search(line)]
    assert (code, complaints) == (0, [])
    assert at - json.loads(output)["end"] < LAYER_SECONDS + INTERPRETER_SECONDS


class TestProcesses:
    """A program comes to its end."""

    @pytest.mark.parametrize(
        "way",
        [
            "sends_and_ends",
            "sends_and_vanishes",
            "async_sends_and_ends",
            "daemon_threads",
            "threads",
            "at_exit",
            "finally_sends",
            "finally_sends_of_a_sender",
        ],
    )
    async def test_what_was_sent_has_left(self, config: dict[str, Any], way: str) -> None:
        """Every send that returned is with the server, the process ends soon and says nothing."""
        await ends(config, way)
        layer = AsyncQueueChannelLayer(**config)
        try:
            arrived = await receive_many(layer, "jobs", 20)
            assert sorted(message["n"] for message in arrived) == list(range(20))
            if not way.startswith("finally"):
                assert arrived == notes(20)
            await assert_nothing_waits(layer, "jobs")
        finally:
            await layer.close()

    @pytest.mark.parametrize("bus", ["memory", "redis"])
    @pytest.mark.parametrize(
        "way", ["interrupted", "loops_in_daemon_threads", "finally_sends", "daemon_threads"]
    )
    async def test_ends_clean(self, config: dict[str, Any], bus: str, way: str) -> None:
        """Loops that are interrupted, or never told to end, leave no traceback and hold nothing up."""
        if bus == "memory":
            config["hosts"] = ["memory://"]
        await ends(config, way)

    @pytest.mark.parametrize("way", ["silent_server", "silent_names", "interrupted_wait"])
    async def test_ends_with_a_silent_server(
        self, own_redis_server: EmbeddedServer, prefix: str, way: str
    ) -> None:
        """A server, or a name server, that does not answer holds the end up for two seconds at most."""
        own_redis_server.pause()
        try:
            await ends({"hosts": [own_redis_server.url], "prefix": prefix, "send_timeout": 60}, way)
        finally:
            own_redis_server.resume()


class Stopped(Served):
    """The callers' site under a server."""

    def command(self) -> Sequence[str]:
        return [
            part.replace("tests.processes.site:", "tests.processes.callers.asgi:")
            for part in super().command()
        ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_server_is_stopped(config: dict[str, Any], kind: str, number: signal.Signals) -> None:
    """
    Daphne and uvicorn with an open WebSocket: the process ends soon and complains of nothing; under uvicorn
    the consumer's `finally` still sends. (Daphne drops its consumers without cancelling them.)
    """
    server = Stopped(kind)
    layer = AsyncQueueChannelLayer(**config)
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.processes.callers.settings",
        "TEST_LAYER_CONFIG": json.dumps(config),
    }
    await server.start(server.command(), **environment)
    try:
        await server.answers()
        async with connect(f"ws://127.0.0.1:{server.port}/ws/room/") as visit:
            await layer.group_send("room", {"type": "room.message", "message": "hi"})
            async with asyncio.timeout(DEADLINE):
                assert json.loads(await visit.recv()) == {"message": "hi"}
            server.signal(number)
            at = time.monotonic()
            async with asyncio.timeout(END_TIMEOUT):
                await server.ended()
            took = time.monotonic() - at
        for complaint in ("Traceback", "Task was destroyed", "never retrieved", "never awaited"):
            if (kind, number, complaint) != ("uvicorn", signal.SIGINT, "Traceback"):
                assert complaint not in server.errors, server.errors
        # Nothing of ours: transports and loops that nobody closed. (Slow steps of a busy machine name files.)
        assert "channels_asyncq" not in said(server.errors), server.errors
        if kind == "uvicorn":
            assert await receive(layer, "goodbyes") == note(1)
        assert took < LAYER_SECONDS + INTERPRETER_SECONDS
    finally:
        if server.process.returncode is None:
            await server.kill()
        await layer.close()


def test_loop_per_test_with_one_layer(config: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    """Fifty loops in turn use one layer, as the loops of pytest do: each is closed without a word."""
    layer = AsyncQueueChannelLayer(**config)
    complaints: list[dict[str, Any]] = []

    async def use(n: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.group_send("room", note(n))
        assert await receive(layer, channel) == note(n)

    for n in range(50):
        asyncio.run(use(n))
    layer.close_from_thread()
    assert not complaints
    assert not [str(warning.message) for warning in recwarn]
