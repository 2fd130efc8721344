"""Where gevent or eventlet has made greenlets of threads: in processes of their own, as they patch everything."""

import importlib.util
import json
import re
from typing import Any

import pytest

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


async def result_of(config: dict[str, Any], kind: str, what: str, *, logs: int = 0) -> Any:
    """Run the program; its result, if it ended well and with so many log lines."""
    # They warn of asyncio, of their own end and of what others patched: that is not about the layer.
    code, output, errors = await run(
        "greenlets", json.dumps(config), kind, what, PYTHONDEVMODE="", PYTHONWARNINGS="ignore"
    )
    lines = errors.splitlines()
    assert (code, len(lines)) == (0, logs), errors[:5000]
    assert all(re.search(r"\[connection\.failed\]$", line) for line in lines), errors
    return json.loads(output)


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


async def test_outage(kind: str, prefix: str) -> None:
    """
    Without a server each send fails, the first one after `send_timeout`: other greenlets run while it waits, and
    its two connections log one line together.
    """
    config = {"hosts": ["redis://127.0.0.1:1"], "prefix": prefix, "send_timeout": 0.5}
    result = await result_of(config, kind, "outage", logs=1)
    assert result["errors"] == ["LayerUnavailable"] * 3
    assert result["turns"] > 10
