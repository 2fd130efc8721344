"""docs/encryption.md: its settings, and keys that are changed while processes talk."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.migration import Both
from channels_asyncq.settings.options import Options
from tests import contract
from tests.code_blocks import block
from tests.contract import note
from tests.contract.resume import resumed
from tests.rolling import talk_in_steps
from tests.test_docs import DOCS, code_in, rows
from tests.test_migration import OURS

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")

PAGE = "docs/encryption.md"


def settings(text: str, monkeypatch: pytest.MonkeyPatch, keys: str) -> dict[str, Any]:
    """The CHANNEL_LAYERS of the example that begins with the name of this file, with these keys."""
    monkeypatch.setenv("LAYER_KEYS", keys)
    names: dict[str, Any] = {}
    exec(text, names)
    found: dict[str, Any] = names["CHANNEL_LAYERS"]["default"]
    return found


def deploys() -> list[str]:
    """The values of LAYER_KEYS, deploy by deploy."""
    found = [code_in(row[1])[0] for row in rows(DOCS / "encryption.md", "deploy")]
    assert found == ["old", "old,new", "new,old", "new"]
    return found


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is accepted, with the keys of the environment in their order."""
    config = settings(block(PAGE, "python", having="# settings.py\n"), monkeypatch, "new,old")["CONFIG"]
    assert config["symmetric_encryption_keys"] == ["new", "old"]
    Options.from_config(config)
    Both(**settings(block(PAGE, "python", having="# both.py\n"), monkeypatch, "key")["CONFIG"])


def test_a_key_is_made() -> None:
    """The command of the page prints a key of its own each time."""
    python, *arguments = shlex.split(block(PAGE, "sh"))
    assert python == "python"
    made = {
        subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert len(made) == 2
    for key in made:
        assert len(key) == 43
        Options.from_config({"symmetric_encryption_keys": [key]})


@pytest.mark.processes
@pytest.mark.timeout(900)
async def test_change_a_key(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that change their key in the deploys of the page miss nothing."""
    steps = []
    for keys in deploys():
        step = settings(block(PAGE, "python", having="# settings.py\n"), monkeypatch, keys)
        step["CONFIG"].update(hosts=[redis_url], prefix=prefix)
        steps.append(step)
    await talk_in_steps(steps)


@pytest.mark.processes
@pytest.mark.timeout(900)
async def test_turn_it_on(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `Both`, processes that begin to encrypt miss nothing."""
    step = settings(block(PAGE, "python", having="# both.py\n"), monkeypatch, "key")
    old, new = step["CONFIG"]["old"], step["CONFIG"]["new"]
    assert old["BACKEND"] == new["BACKEND"] == OURS
    old["CONFIG"].update(hosts=[redis_url], prefix=prefix)
    new["CONFIG"].update(hosts=[redis_url], prefix=f"{prefix}-sealed")
    await talk_in_steps([old, step, {**step, "CONFIG": {**step["CONFIG"], "send": "new"}}, new])


async def test_a_step_left_out(make_layer: contract.MakeLayer) -> None:
    """A process that is two steps ahead is refused."""
    before, _, second, _ = deploys()
    first = await make_layer(symmetric_encryption_keys=before.split(","))
    await first.group_send("room", note(1))
    with pytest.raises(ImproperlyConfigured, match="symmetric_encryption_keys"):
        ahead = await make_layer(symmetric_encryption_keys=second.split(","))
        await ahead.group_send("room", note(2))


async def test_what_the_old_key_encrypted(make_layer: contract.MakeLayer) -> None:
    """With the old key beside the new one it is read; without it, a page loads again and a job is dropped."""

    async def make(keys: str) -> AsyncQueueChannelLayer:
        return await make_layer(symmetric_encryption_keys=keys.split(","))

    before, _, second, third = deploys()
    old = await make(before)
    position = await old.position("room")
    await old.group_send("room", note(1))
    for n in range(2):
        await old.send("jobs", note(n))
    await old.close()
    layer = await make(second)
    _, replay = await resumed(layer, "room", position)
    assert replay.messages == [note(1)]
    assert await layer.receive("jobs") == note(0)
    await layer.close()
    layer = await make(third)
    _, replay = await resumed(layer, "room", position)
    assert replay.reason == "unreadable"
    await layer.send("jobs", note(2))
    assert await layer.receive("jobs") == note(2)
    assert layer.statistics().dropped["unreadable"] == 1
