"""Surveys on a server: who is named as missing, releases without surveys, and what they leave on the server."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, Missing
from channels_asyncq.bus.redis import leasing
from channels_asyncq.identity import identity
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL
from channels_asyncq.messages.framing import pack, pack_names
from channels_asyncq.session.answers import Answers
from channels_asyncq.session.session import Session
from channels_asyncq.session.surveys import QUESTION
from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE, MakeLayer, eventually
from tests.processes.handles import agents
from tests.resp_server import RespServer, after, error

#: Long enough for processes on a busy machine: only those that are missing make a survey take it.
TIMEOUT = 4.0


def session_of(layer: AsyncQueueChannelLayer) -> Session:
    [session] = layer._registry.sessions.values()
    return session


def name_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:agent"


async def both(make_layer: MakeLayer) -> tuple[AsyncQueueChannelLayer, AsyncQueueChannelLayer]:
    """Two layers with a session each, on this loop."""
    layer, other = await make_layer(), await make_layer()
    await layer.new_channel()
    await other.new_channel()
    return layer, other


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
@pytest.mark.parametrize("config", [{}, {"recovery": None}, {"symmetric_encryption_keys": ["key"]}], ids=repr)
async def test_stopped_process(
    make_layer: MakeLayer, redis_url: str, prefix: str, config: dict[str, Any]
) -> None:
    """
    A process under SIGSTOP is named within the timeout. One that was killed is gone, and not missing. When the
    first runs again it answers, and nobody has logged anything.
    """
    layer = await make_layer(**config)
    await layer.new_channel()
    async with agents(3, hosts=[redis_url], prefix=prefix, **config) as (first, second, third):
        pids = [await each.do("ready") for each in (first, second, third)]
        for each in (first, second, third):
            await each.do("new_channel")
        survey = await layer.survey("status", timeout=DEADLINE)
        assert {each.process for each in survey.answers} == {identity(), *map(name_of, pids)}
        assert not survey.missing

        second.signal(signal.SIGSTOP)
        await third.kill()
        try:
            async with asyncio.timeout(TIMEOUT + DEADLINE):
                survey = await layer.survey("status", timeout=TIMEOUT)
        finally:
            second.signal(signal.SIGCONT)
        assert [each.process for each in survey.answers] == sorted([identity(), name_of(pids[0])])
        [missing] = survey.missing
        assert (missing.process, missing.reason) == (name_of(pids[1]), "no answer")
        survey = await layer.survey("status", timeout=DEADLINE)
        assert len(survey.answers) == 3 and not survey.missing


async def test_lease_that_has_run_out(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was stopped for longer than its lease holds is named all the same."""
    layer, stopped = await both(make_layer)
    [key] = redis_server.command("KEYS", f"{prefix}:0:layouts:????????????????")
    member = f"{session_of(stopped).session_id} {identity()}".encode()
    assert redis_server.command("ZADD", key, 1000 * (int(redis_server.command("TIME")[0]) - 60), member) == 0
    session_of(layer)._bus.router.nodes[0].lease_keeper.look()  # type: ignore[attr-defined]
    await layer.survey("status", timeout=DEADLINE)  # behind the renewal
    assert member in redis_server.command("ZRANGE", key, 0, -1)
    monkeypatch.setattr(Answers, "begin", lambda self, *arguments: None)
    survey = await layer.survey("status", timeout=0.2)
    assert [each.session for each in survey.missing] == sorted(
        session_of(each).session_id for each in (layer, stopped)
    )
    # After an hour it is forgotten.
    redis_server.command("ZADD", key, 1000 * (int(redis_server.command("TIME")[0]) - 3700), member)
    session_of(layer)._bus.router.nodes[0].lease_keeper.look()  # type: ignore[attr-defined]
    await eventually(lambda: member not in redis_server.command("ZRANGE", key, 0, -1), "its end")
    survey = await layer.survey("status", timeout=0.2)
    assert Missing("", "", "no answer") in survey.missing and len(survey.missing) == 2


async def test_older_release(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that tells no process is of a release without surveys: it is named, and not waited for."""
    layer = await make_layer()
    await layer.new_channel()
    with monkeypatch.context() as patch:
        patch.setattr(leasing, "member_of", lambda session_id: session_id.hex().encode())
        older = await make_layer()
        await older.new_channel()
    session_id = session_of(older).session_id
    begin = Answers.begin

    def answer(self: Answers, asker: str, *arguments: Any) -> None:
        if self._pieces.session_id != session_id:
            begin(self, asker, *arguments)

    monkeypatch.setattr(Answers, "begin", answer)
    async with asyncio.timeout(DEADLINE):
        survey = await layer.survey("status", timeout=10.0)
    assert survey.missing == (Missing("", session_id, "older release"),) and len(survey.answers) == 1


async def test_question_as_older_releases_read_it(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """Without what is new in it, a question is a message that is dropped, neither counted nor logged."""
    layer = await make_layer()
    await layer.new_channel()
    body = Codec().encode({**QUESTION, "reply": "0" * 16})
    redis_server.command("PUBLISH", f"{prefix}:0:all", pack([(pack_names(""), body)], bytes(8), 0, CONTROL))
    assert len((await layer.survey("status", timeout=DEADLINE)).answers) == 1
    assert not layer.statistics().dropped


async def test_nothing_stays(make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
    """A survey is in no log and leaves no key."""
    layer, _ = await both(make_layer)

    def stored() -> dict[bytes, object]:
        keys = redis_server.command("KEYS", f"{prefix}:*")
        return {
            key: redis_server.command("XLEN", key) if b":log:" in key else None
            for key in keys
            if b":layouts" not in key
        }

    before = stored()
    await layer.survey("status", timeout=DEADLINE)
    assert stored() == before


async def test_one_command_where_all_answer(make_layer: MakeLayer, server: RespServer) -> None:
    """Where nobody is missing, one PUBLISH asks all, and each answers by one."""
    layer, other = await make_layer(hosts=[server.url]), await make_layer(hosts=[server.url])
    await layer.new_channel()
    await other.new_channel()
    before = len(server.commands)
    await layer.survey("status", timeout=DEADLINE)
    kinds = [server.kind_of(name, arguments) for name, *arguments in server.commands[before:]]
    # The one that asks answers itself. A fence may be due meanwhile.
    assert [kind for kind in kinds if kind != "FENCE"] == ["PUBLISH"] * 2


async def test_without_the_right_to_set_a_name(make_layer: MakeLayer, server: RespServer) -> None:
    """A server that refuses CLIENT SETNAME is used as any other, without a word in the log."""
    server.always("CLIENT", error("NOPERM this user has no permissions to run the 'client|setname' command"))
    layer = await make_layer(hosts=[server.url])
    await layer.new_channel()
    assert (await layer.survey("status", timeout=DEADLINE)).answers
    assert {arguments for arguments in server.received("CLIENT")} == {(b"SETNAME", identity().encode())}
    assert layer.statistics().reconnects == 0


async def test_name_costs_no_round_trip(make_layer: MakeLayer, server: RespServer) -> None:
    """The name is not waited for: what follows is sent before its reply."""
    gate = asyncio.Event()
    server.script("CLIENT", after(gate))
    layer = await make_layer(hosts=[server.url])
    opening = asyncio.ensure_future(layer.new_channel())
    await eventually(lambda: server.received("ROLE"), "the next command")
    assert not opening.done()
    gate.set()
    async with asyncio.timeout(DEADLINE):
        await opening
