"""The example in several processes: the demo command, Daphne, uvicorn and the worker, for real."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.example import HOST, PROJECT, Demo, Page, Program, free_port, get, is_listening, is_running

pytest.importorskip("daphne")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform == "win32", reason="the demo's server and its signals want POSIX"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that runs."""
    with Demo(tmp_path) as started:
        started.wait_until_ready()
        yield started


async def test_demo_joins_two_servers_and_a_worker(demo: Demo) -> None:
    """Messages, typing hints and the roll cross from one Daphne to the other; the worker counts the words."""
    async with Page(demo.first, "Ada") as ada, Page(demo.second, "Grace") as grace:
        assert await ada.is_here("Ada", "Grace") == {"Ada", "Grace"}
        await ada.send(typing=True)
        await grace.frame("typing", name="Ada")
        await ada.send(message="one two three")
        await grace.frame("chat.message", author="Ada", text="one two three")
        await grace.frame("chat.tally", words=3, messages=1)
        await grace.send(message="four")
        await ada.frame("chat.message", author="Grace", text="four")
        await ada.frame("chat.tally", words=4, messages=2)


def test_demo_serves_pages_and_static_files(demo: Demo) -> None:
    """Each Daphne serves pages and static files by itself, and a bad room is a 404."""
    for port in (demo.first, demo.second):
        assert get(port, "/")[0] == 200
        status, page = get(port, "/chat/lobby/")
        assert (status, 'src="/static/chat/room.js"' in page) == (200, True)
        assert get(port, "/static/chat/room.js")[0] == 200
        assert get(port, "/static/chat/chat.css")[0] == 200
        assert get(port, "/chat/not%20a%20room/")[0] == 404
        for name, path in (("Chat", "/chat/lobby/"), ("Orders", "/orders/"), ("Tokens", "/tokens/")):
            demo.wait_for(rf"{name} +http://127\.0\.0\.1:{port}{path}\n")
            assert get(port, path)[0] == 200
    assert demo.stop() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_demo_stops_everything(demo: Demo, how: signal.Signals) -> None:
    """Ctrl-C, or SIGTERM, ends all processes, with people connected, and the exit code is 0."""
    pids = [demo.pid_of(what) for what in ("first Daphne", "worker", "message server")]
    async with Page(demo.first, "Ada"), Page(demo.second, "Grace"):
        assert demo.stop(how) == 0
    assert not any(is_running(pid) for pid in pids)
    assert not is_listening(demo.first)
    assert not is_listening(demo.second)
    assert "Everything has been stopped." in demo.output
    assert "Traceback" not in demo.output


@pytest.mark.slow
async def test_killed_server_is_noticed_and_comes_back(demo: Demo) -> None:
    """
    After kill -9 of one Daphne the roll is right at once, the demo names it, and it is started again.

    The numbers are those of the processes that answer, before and after.
    """
    async with Page(demo.second, "Grace") as grace:
        async with Page(demo.first, "Ada") as ada:
            assert ada.server == {"port": demo.first, "pid": demo.pid_of("first Daphne")}
            assert await grace.is_here("Ada", "Grace") == {"Ada", "Grace"}
            os.kill(demo.pid_of("first Daphne"), signal.SIGKILL)
            assert await grace.is_here("Grace") == {"Grace"}
        demo.wait_for(rf"Daphne on port {demo.first} was killed by SIGKILL")
        await grace.send(message="still here")
        await grace.frame("chat.message", text="still here")
        again = demo.wait_for(rf"Daphne on port {demo.first} answers again \(pid (\d+)\)")
        async with Page(demo.first, "Ada") as ada:
            assert ada.server == {"port": demo.first, "pid": int(again[1])}
            assert await ada.is_here("Ada", "Grace") == {"Ada", "Grace"}
    assert demo.stop() == 0


@pytest.mark.slow
async def test_messages_wait_for_a_killed_worker(demo: Demo) -> None:
    """What is said while the worker is dead is counted when it is back."""
    async with Page(demo.first, "Ada") as ada:
        os.kill(demo.pid_of("worker"), signal.SIGKILL)
        demo.wait_for(r"The worker was killed by SIGKILL")
        await ada.send(message="one two")
        await ada.frame("chat.message", text="one two")
        await ada.frame("chat.tally", words=2, within=40)


@pytest.mark.slow
async def test_pages_survive_a_killed_message_server(demo: Demo) -> None:
    """The pages hear of the outage, keep what is said, and hear of each other again afterwards."""
    async with Page(demo.first, "Ada") as ada, Page(demo.second, "Grace") as grace:
        os.kill(demo.pid_of("message server"), signal.SIGKILL)
        await ada.frame("layer", up=False)
        await grace.frame("layer", up=False)
        await ada.send(message="anybody?")
        await ada.frame("stored", text="anybody?")
        for page in (ada, grace):
            await page.frame("layer", up=True, within=40)
        await grace.send(after=0)
        assert [message["text"] for message in (await grace.frame("history"))["messages"]] == ["anybody?"]
        await ada.send(message="back")
        await grace.frame("chat.message", text="back")
    assert demo.stop() == 0
    _, _, lines = demo.output.partition("Ctrl-C stops everything.\n\n")
    assert "channels_asyncq.connection" in lines
    for line in lines.splitlines():
        assert re.match(r" *(demo|worker|daphne \d+) \| ", line) or line == "Everything has been stopped."


def test_ports_and_progress_come_first(tmp_path: Path) -> None:
    """The ports are said before anything is started, and each process when it answers."""
    with Demo(tmp_path) as demo:
        demo.wait_until_ready()
        steps = (
            rf"starting on ports {demo.first} and {demo.second}\n",
            r"message server: .* at 127\.0\.0\.1:\d+\n",
            rf"Daphne on port {demo.first} answers \(pid \d+\)\.\n",
            r"The example runs\.",
        )
        found = [demo.wait_for(step).start() for step in steps]
        assert found == sorted(found)
        demo.wait_for(rf"Daphne on port {demo.second} answers \(pid \d+\)\.\n")
        demo.wait_for(r"The worker answers \(pid \d+\)\.\n")


def test_reader_of_the_output_that_goes_stops_everything(tmp_path: Path) -> None:
    """In `manage.py demo | head` the demo ends with its reader, leaves nothing behind, and does not complain."""
    errors = tmp_path / "errors"
    demo = Demo(tmp_path)
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *demo.arguments],
            cwd=PROJECT,
            env=demo.environment,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
    assert process.stdout is not None
    assert b"starting on ports" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert errors.read_bytes() == b""
    assert not is_listening(demo.first)
    assert not is_listening(demo.second)


def test_process_that_ends_by_itself_ends_the_demo(demo: Demo) -> None:
    """A Daphne that ends of its own accord is named with its exit code, and the demo fails."""
    os.kill(demo.pid_of("first Daphne"), signal.SIGTERM)
    assert demo.end() == 1
    assert f"Daphne on port {demo.first} ended by itself with exit code 0." in demo.output
    assert not is_listening(demo.second)


@pytest.mark.parametrize("option", ["--port", "--second-port"])
def test_taken_port_is_named_with_the_option(tmp_path: Path, option: str) -> None:
    """When a port is taken, the demo says which, and which option chooses another."""
    demo = Demo(tmp_path)
    with socket.socket() as other:
        port = demo.first if option == "--port" else demo.second
        other.bind((HOST, port))
        other.listen()
        with demo:
            assert demo.end() == 1
    assert f"Port {port} is taken by another program" in demo.output
    assert f"choose another port with {option}." in demo.output


def test_one_port_for_both_servers_is_refused(tmp_path: Path) -> None:
    """Two servers cannot share a port, and the demo says so."""
    port = free_port()
    with Program("manage.py", "demo", f"--port={port}", f"--second-port={port}", environment={}) as demo:
        assert demo.end() == 1
    assert f"cannot share port {port}" in demo.output


def test_message_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """When REDIS_URL leads nowhere, the demo says so before it starts anything."""
    port = free_port()
    with Demo(tmp_path, REDIS_URL=f"redis://{HOST}:{port}/0") as demo:
        assert demo.end() == 1
    assert f"The server of REDIS_URL at {HOST}:{port} does not answer" in demo.output


@pytest.mark.parametrize("server", ["uvicorn", "daphne"])
async def test_chat_under_a_server_of_its_own(
    tmp_path: Path, redis_server: EmbeddedServer, server: str
) -> None:
    """Either server runs the application as it is: pages, static files, WebSockets, clean and abrupt ends."""
    port = free_port()
    environment = {
        "REDIS_URL": redis_server.url_for(9),
        "CHAT_DATABASE": str(tmp_path / "chat.sqlite3"),
    }
    command = {
        "uvicorn": ["-m", "uvicorn", "--host", HOST, "--port", str(port), "chat_site.asgi:application"],
        "daphne": ["-m", "daphne", "-b", HOST, "-p", str(port), "chat_site.asgi:application"],
    }[server]
    with Program("manage.py", "migrate", environment=environment) as migrate:
        assert migrate.end() == 0
    with Program(*command, environment=environment) as program:
        program.wait_for(r"Uvicorn running|Listening on TCP address")
        assert get(port, "/chat/lobby/")[0] == 200
        assert get(port, "/static/chat/room.js")[0] == 200
        async with Page(port, "Ada") as ada, Page(port, "Grace") as grace:
            await ada.send(message="hello")
            await grace.frame("chat.message", text="hello")
            async with Page(port, "Alan") as alan:
                await ada.frame("here", name="Alan")
                alan.socket.transport.abort()
            # Whether the consumer could still say that it leaves, or died writing to a socket that was gone:
            # he is not there any more, and a roll call knows.
            for _ in range(20):
                here = await ada.is_here("Ada", "Grace")
                if here == {"Ada", "Grace"}:
                    break
            assert here == {"Ada", "Grace"}
        program.stop(signal.SIGINT)
    assert "Traceback" not in program.output
