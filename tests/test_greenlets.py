"""Where gevent or eventlet has made greenlets of threads: in processes of their own, as they patch everything."""

import importlib.util
import json
import re
import sys
import threading
from typing import Any

import pytest

from channels_asyncq import threads
from tests.processes.handles import run

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

# In the program.
MESSAGES = 200


@pytest.fixture(params=["gevent", "eventlet"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of them; looked for without importing it here."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(params=["memory", "redis"])
def config(request: pytest.FixtureRequest, prefix: str) -> dict[str, Any]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    return {"hosts": [url], "prefix": prefix, "capacity": 1000}


async def played(config: dict[str, Any], kind: str, what: str) -> tuple[Any, list[str]]:
    """Run the program to a good end; its result and its log lines."""
    # They warn of asyncio, of their own end and of what others patched: that is not about the layer.
    code, output, errors = await run(
        "greenlets", json.dumps(config), kind, what, PYTHONDEVMODE="", PYTHONWARNINGS="ignore"
    )
    assert code == 0, errors[:5000]
    return json.loads(output), errors.splitlines()


async def result_of(config: dict[str, Any], kind: str, what: str) -> Any:
    """Run the program; its result, if it ended well and logged nothing."""
    result, lines = await played(config, kind, what)
    assert lines == []
    return result


@pytest.mark.parametrize("what", ["many", "late", "sockets"])
async def test_many_greenlets_send(config: dict[str, Any], kind: str, what: str) -> None:
    """
    Fifty greenlets send at once by `sync`, while another one runs an event loop by `async_to_sync`: every message
    arrives once, and nothing is logged. Also where they came to be after the layer, or where only
    sockets and the like were replaced.
    """
    assert await result_of(config, kind, what) == {"heard": list(range(MESSAGES))}


async def test_one_call_after_the_other(config: dict[str, Any], kind: str) -> None:
    """`async_to_sync` and `sync` in turn, from one greenlet."""
    assert await result_of(config, kind, "alone") == {"sent": 5}


async def test_a_thread_leaves_no_hub(kind: str) -> None:
    """The hub that a patched socket makes in a thread of ours is taken apart: as garbage it may crash all."""
    assert await result_of({"hosts": ["memory://"]}, kind, "hub") == {"holds": False}


async def test_outage(kind: str, prefix: str) -> None:
    """
    Without a server each send fails, the first one after `send_timeout`: other greenlets run while it waits, and
    its two connections log the same line once.
    """
    config = {"hosts": ["redis://127.0.0.1:1"], "prefix": prefix, "send_timeout": 0.5}
    result, lines = await played(config, kind, "outage")
    assert result["errors"] == ["LayerUnavailable"] * 3
    # A send that blocks its thread leaves none; how many there are in half a second depends on the machine.
    assert result["turns"] > 1
    # A slow machine may add an attempt that took too long, or the count of those after ten seconds: other lines.
    assert lines
    assert len(set(lines)) == len(lines), lines
    assert all(re.search(r"\[connection\.failed\]$", line) for line in lines), lines


def test_a_hub_that_cannot_be_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread counts as ended all the same: nobody waits for it for ever."""

    def fails() -> None:
        raise RuntimeError("no hub")

    told = threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.set())
    monkeypatch.setattr(threads, "_leave_hub", fails)
    thread = threads._RealThread(lambda: None)
    thread.join(20)
    assert not thread._runs.locked()
    assert told.wait(20)
