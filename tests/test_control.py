"""Requests of other sessions: bad ones, repeated ones, and which of them are done."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

import pytest
import redis

from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL
from channels_asyncq.messages.framing import pack, pack_names, unpack
from channels_asyncq.names import owner_of
from channels_asyncq.session import control
from channels_asyncq.session.control import RequestHistory
from channels_asyncq.testing import EmbeddedServer
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    members_of,
    note,
    receive,
)
from tests.resp_server import Answer, RespServer, error


class TestMessages:
    @pytest.mark.parametrize(
        "body",
        [
            {"do": "add", "group": 5, "channel": 5, "request": 1, "reply": "x"},
            {"do": "add", "group": "bad name", "channel": "<own>", "request": 1, "reply": "0" * 16},
            {"do": "add", "group": "", "channel": "<own>", "request": 1, "reply": "0" * 16},
            {"do": "add", "group": "room", "channel": "<own>bad name", "request": 1, "reply": "0" * 16},
            {"do": "flush", "request": 1, "reply": 5},
            {"do": "flush", "request": [1], "reply": "x"},
            {"do": "confirm", "request": [1], "reply": "x"},
            {"do": "confirm", "request": None, "reply": None},
            {"do": "refuse", "request": 1, "reply": "0" * 16},
            {"do": "refuse", "request": 1, "reply": "0" * 16, "limit": 5},
            {"do": "refuse", "request": 1, "reply": "0" * 16, "limit": ["<own>"]},
            {"do": 7, "request": 1, "reply": "x"},
            {},
        ],
        ids=repr,
    )
    async def test_control_messages(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str, body: dict[str, object]
    ) -> None:
        """A control message that is none is counted and dropped; nobody joins anything by it."""
        layer = await make_redis()
        (member,) = await members_of(layer, "room", 1)
        session_id = member.split("!")[0].rpartition(".")[2]
        body = {
            key: value.replace("<own>", member) if isinstance(value, str) else value
            for key, value in body.items()
        }
        data = pack([(pack_names(member), Codec().encode(body))], bytes(8), 0, CONTROL)
        redis_server.command("PUBLISH", f"{prefix}:0:inbox:{session_id}", data)
        await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the count")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)
        assert layer.statistics().reconnects == 0
        assert layer.statistics().groups == 1

    async def test_control_messages_to_everybody(
        self, make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """On the topic of all sessions, such a message is counted and dropped too."""
        layer = await make_redis()
        (member,) = await members_of(layer, "room", 1)
        data = pack(
            [(pack_names(""), Codec().encode({"do": "flush", "request": 1, "reply": b"x"}))],
            bytes(8),
            0,
            CONTROL,
        )
        redis_server.command("PUBLISH", f"{prefix}:0:all", data)
        await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the count")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)


class TestHistory:
    async def test_group_add_of_a_closed_channel(self, make_redis: MakeLayer) -> None:
        """The owner of a closed channel says so by its confirmation: nobody waits for a dead owner."""
        layer, owner = await make_redis(), await make_redis()
        channel = await owner.new_channel()
        await owner.close_channel(channel)
        async with asyncio.timeout(DEADLINE):
            await layer.group_add("room", channel)
        assert "dead_owner" not in layer.statistics().dropped

    @pytest.mark.parametrize(
        ("requests", "is_member"),
        [
            (["a add 1", "a discard 2", "a add 1"], False),
            (["a discard 1", "a add 2", "a discard 1"], True),
            (["a add 1", "a discard 2", "a add 1", "a add 3"], True),
            (["a add 1", "b discard 1", "a add 1"], False),
            (["a add 1", "b discard 1", "a add 1", "a add 2"], True),
            (["a add 1", "b add 1", "b discard 2", "a add 1", "b add 1"], False),
            (["a discard 2", "a add 1"], False),
            (["a add 1", "a add 1", "a add 1"], True),
        ],
        ids=str,
    )
    async def test_requests_that_are_repeated(
        self,
        make_redis: MakeLayer,
        redis_server: EmbeddedServer,
        prefix: str,
        requests: list[str],
        is_member: bool,
    ) -> None:
        """
        Every request is confirmed each time that it is made, and done once, and not after a later one of the same
        session for the same group and channel. Sessions do not concern each other.
        """
        layer = await make_redis()
        channel = await layer.new_channel()
        askers = {name: Asker(redis_server, prefix, name * 16) for name in ("a", "b")}
        with contextlib.ExitStack() as stack:
            for asker in askers.values():
                stack.enter_context(asker)
            for name, action, number in map(str.split, requests):
                askers[name].ask(action, "room", channel, int(number))
                assert await askers[name].confirmed() == int(number)
        (witness,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1))
        assert await receive(layer, witness) == note(1)
        if is_member:
            assert await receive(layer, channel) == note(1)
        await assert_nothing_waits(layer, channel)

    async def test_requests_that_are_under_way(
        self, make_scripted: MakeLayer, server: RespServer, prefix: str
    ) -> None:
        """A request that is repeated before it is done is done once, and confirmed when it is."""
        layer = await make_scripted(send_timeout=60)
        channel = await layer.new_channel()
        server.script("SUBSCRIBE", Answer(data=b""))
        with Asker(server.real, prefix, "a" * 16) as asker:
            for number in (1, 1, 2, 1, 2):
                asker.ask("add", "room", channel, number)
            asker.ask("add", "", channel, 3)
            await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the last request")
            server.cut()
            assert sorted([await asker.confirmed(), await asker.confirmed()]) == [1, 2]
            asker.ask("discard", "room", channel, 4)
            assert await asker.confirmed() == 4
        assert layer.statistics().groups == 0

    async def test_request_that_fails_is_done_when_it_is_repeated(
        self, make_redis: MakeLayer, make_scripted: MakeLayer, server: RespServer
    ) -> None:
        """What the owner could not do is not taken for done."""
        owner, asker = await make_scripted(), await make_redis()
        channel = await owner.new_channel()
        server.script("SUBSCRIBE", error("NOPERM No permissions to access a channel"))
        async with asyncio.timeout(DEADLINE):
            await asker.group_add("room", channel)
        await asker.group_send("room", note(1))
        assert await receive(owner, channel) == note(1)

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the memberships that were asked for last it is known what was done; of earlier ones nothing."""
        monkeypatch.setattr(control, "_MAX_REMEMBERED", 3)
        history = RequestHistory()
        for group, number in (("one", 5), ("two", 5), ("three", 5), ("one", 6), ("four", 5)):
            what = "a" * 16, group, "channel"
            assert history.begin(what, number)
            history.end(what, number, is_done=True)
            assert history.was_done(what, number)
        groups = ("one", "two", "three", "four")
        done = {group: history.was_done(("a" * 16, group, "channel"), 5) for group in groups}
        assert done == {"one": True, "two": False, "three": True, "four": True}
        history.end(("a" * 16, "two", "channel"), 5, is_done=True)  # forgotten while it was under way


class Asker:
    """A session played by the test: it makes requests of its own numbers, and hears the confirmations."""

    def __init__(self, server: EmbeddedServer, prefix: str, session_id: str) -> None:
        self._server, self._prefix, self._session_id = server, prefix, session_id

    def __enter__(self) -> Self:
        self._client = redis.Redis(host=self._server.host, port=self._server.port)
        self._inbox: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._inbox.subscribe(f"{self._prefix}:0:inbox:{self._session_id}")
        self._inbox.get_message(timeout=DEADLINE)
        return self

    def __exit__(self, *error: object) -> None:
        self._inbox.close()
        self._client.close()

    def ask(self, action: str, group: str, channel: str, number: int) -> None:
        body = {
            "do": action,
            "group": group,
            "channel": channel,
            "request": number,
            "reply": self._session_id,
        }
        data = pack([(pack_names(channel), Codec().encode(body))], bytes(8), 0, CONTROL)
        self._client.publish(f"{self._prefix}:0:inbox:{owner_of(channel)}", data)

    async def confirmed(self) -> int:
        """The number of the next request that is confirmed."""
        message = await asyncio.to_thread(self._inbox.get_message, timeout=DEADLINE)
        body = Codec().decode(unpack(message["data"])[0].payload)
        assert body["do"] == "confirm"
        number: int = body["request"]
        return number
