"""After a fork the child starts clean, and the parent goes on: sending, and above all receiving."""

import json
import os
import sys
from typing import Any

import pytest

from tests.processes.forking import CHILDREN, SENDS
from tests.processes.handles import EXPECTED, run

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]

WAYS = [
    "exits",
    "collects",
    "multiprocessing_fork",
    "multiprocessing_spawn",
    "multiprocessing_forkserver",
    "grandchildren",
    pytest.param(
        "in_c", marks=pytest.mark.skipif(sys.platform != "linux", reason="asks the C library to fork")
    ),
]


async def fork(config: dict[str, Any], way: str) -> dict[str, Any]:
    """Run the program; its result, after what holds for every way."""
    code, output, errors = await run("forking", json.dumps(config), way)
    complaints = [line for line in errors.splitlines() if not EXPECTED.search(line)]
    assert (code, complaints) == (0, [])
    result: dict[str, Any] = json.loads(output)
    assert result["codes"] == [0] * CHILDREN
    assert result["arrived_all"]
    sent = {f"child {n}": SENDS for n in range(CHILDREN)} | result.get("sent", {})
    assert result["arrived"] == {who: list(range(count)) for who, count in sent.items()}
    return result


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    return {"hosts": [redis_url], "prefix": prefix, "capacity": 100_000}


@pytest.mark.parametrize("way", WAYS)
async def test_parent_and_children_send(config: dict[str, Any], way: str) -> None:
    """
    Four children send, and the parent before and after: each message arrives once, in order per sender; all
    end by themselves with nothing on stderr.
    """
    await fork(config, way)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_nobody_shares_a_connection(config: dict[str, Any]) -> None:
    """A child holds none of its parent's connections, from the fork on, and opens two of its own."""
    result = await fork(config, "shares_nothing")
    assert result["ours"] == 4
    assert result["shared"] == [0, 0, 2] * CHILDREN


@pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="asyncio keeps such a child in its loop: it has to leave by os._exit()",
)
async def test_child_leaves_through_the_loop_it_was_forked_in(config: dict[str, Any]) -> None:
    """
    A SystemExit in a coroutine of the child runs asyncio's clean-up over what it inherited: the parent's loop
    goes on receiving.
    """
    await fork(config, "unwinds")


async def test_child_inherits_a_loop_that_stands_still(config: dict[str, Any]) -> None:
    """When the child ends, the parent's loop still hears its connections and the threads that wake it."""
    await fork(config, "stands_still")


async def test_fork_with_a_memory_layer(prefix: str) -> None:
    """With `memory://` there is nothing to share: a child that sends reaches nobody and hangs nowhere."""
    config = {"hosts": ["memory://"], "prefix": prefix, "capacity": 100_000}
    code, output, errors = await run("forks", json.dumps(config), "after_the_loop")
    complaints = [line for line in errors.splitlines() if not EXPECTED.search(line)]
    assert (code, complaints) == (0, [])
    heard = {line["who"]: line["heard"] for line in map(json.loads, output.splitlines())}
    assert heard == {"child": ["child"] * 5, "parent": ["parent"] * 5}


async def test_outage_that_the_parent_knows_of() -> None:
    """A child finds out by itself whether a server is there: what its parent knows may be over."""
    code, output, errors = await run("knowing")
    assert (code, json.loads(output)) == (0, ["LayerUnavailable", 0]), errors
