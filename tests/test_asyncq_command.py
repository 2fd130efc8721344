"""`manage.py asyncq` itself: its options, its output and its exit statuses."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from typing import Any

import pytest
from channels.layers import channel_layers
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.core.management.color import color_style

from channels_asyncq import AsyncQueueChannelLayer, Missing
from channels_asyncq.identity import identity
from channels_asyncq.management.asyncq import COMMANDS
from channels_asyncq.management.asyncq.output import Output, duration, missing_as_json, shortened
from channels_asyncq.testing import EmbeddedServer
from tests.buses import NOPERM
from tests.consumers import installed
from tests.contract import DEADLINE, eventually, members_of
from tests.operating import asyncq
from tests.processes.handles import Process
from tests.processes.handles import said as said_by
from tests.resp_server import RespServer

BACKEND = "channels_asyncq.AsyncQueueChannelLayer"


class Screen(StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def output_on(stream: StringIO, *, as_json: bool = False, has_colours: bool = False) -> Output:
    return Output(
        OutputWrapper(stream), color_style(force_color=True), as_json=as_json, has_colours=has_colours
    )


class TestOutput:
    def test_table(self) -> None:
        """The first column is on the left, the others on the right; None is a dash, a fraction has one digit."""
        rows = [["a", 1, None], ["long name", 2.25, "text"]]
        assert output_on(StringIO()).table(["NAME", "COUNT", "X"], rows) == [
            "NAME       COUNT     X",
            "a              1     -",
            "long name    2.2  text",
        ]

    def test_empty_table(self) -> None:
        """It has its head."""
        assert output_on(StringIO()).table(["NAME", "COUNT"], []) == ["NAME      COUNT"]

    @pytest.mark.parametrize("length", [60, 70, 71, 72, 200])
    def test_wide_table(self, length: int) -> None:
        """Names are cut in the middle where the line would have more than 80 characters."""
        head, line = output_on(StringIO()).table(["NAME", "COUNT"], [["a" * length + "z", 123456]])
        assert len(line) == min(80, length + 1 + 2 + 6) and line.endswith("123456") and "z  " in line
        assert (".." in line) is (length > 71) and len(head) == len(line)

    def test_colours(self) -> None:
        """The head and those that are missing are coloured where colours are wanted, and only there."""
        missing = [Missing("web-1:1:daphne", "0" * 16, "no answer")]
        for has_colours in (True, False):
            output = output_on(StringIO(), has_colours=has_colours)
            lines = [*output.table(["NAME", "COUNT"], []), *output.missing(missing)]
            assert all(("\x1b[" in line) is has_colours for line in lines)

    def test_missing(self) -> None:
        """A process has its name, an older release its session."""
        missing = [
            Missing("web-1:1:daphne", "0" * 16, "no answer"),
            Missing("", "1" * 16, "older release"),
            Missing("", "", "no answer"),
        ]
        assert output_on(StringIO()).missing(missing) == [
            "missing: web-1:1:daphne (no answer)",
            "missing: session 1111111111111111 (older release)",
            "missing: one that the server does not name (no answer)",
        ]
        assert missing_as_json(missing)[1] == {
            "process": "",
            "session": "1" * 16,
            "reason": "older release",
        }

    def test_json(self) -> None:
        """With --json there is one line of it, and nothing for people."""
        stream = StringIO()
        output = output_on(stream, as_json=True)
        output.line("for people")
        output.show({"a": [1, None]}, lambda: iter(["for people"]))
        assert json.loads(stream.getvalue()) == {"a": [1, None]} and stream.getvalue().count("\n") == 1

    def test_rounds(self) -> None:
        """A round of --watch begins with an empty screen, in a pipe with an empty line, and in JSON with none."""
        for stream, as_json, begins in ((Screen(), False, "\x1b[H\x1b[2J"), (StringIO(), False, "\n")):
            output_on(stream, as_json=as_json).begin_round()
            assert stream.getvalue() == begins
        stream = StringIO()
        output_on(stream, as_json=True).begin_round()
        assert stream.getvalue() == ""

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0s"), (59.4, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (1e6, "11d")],
    )
    def test_duration(self, seconds: float, text: str) -> None:
        """The largest unit that fits."""
        assert duration(seconds) == text

    def test_wrapped(self) -> None:
        """A long reason goes on in the next line."""
        reason = "word " * 30
        lines = output_on(StringIO()).missing([Missing("web-1:1:daphne", "0" * 16, reason)])
        assert len(lines) == 3 and all(len(line) <= 80 for line in lines)
        assert " ".join(line.strip() for line in lines) == f"missing: web-1:1:daphne ({reason})"

    def test_shortened(self) -> None:
        """Both ends of a text stay."""
        assert shortened("abcdefghij", 10) == "abcdefghij"
        assert shortened("abcdefghijk", 10) == "abcd..hijk"
        assert shortened("abcdefghijk", 9) == "abcd..ijk"


class TestOptions:
    @pytest.mark.parametrize("command", sorted(COMMANDS))
    def test_names(self, command: str) -> None:
        """Each command has the name by which it is called, and says what it does."""
        assert COMMANDS[command].name == command and COMMANDS[command].help

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["status", "--timeout", "soon"], "'soon' is not a number of seconds"),
            (["status", "--watch", "-1"], "expected|unrecognized|not a number"),
            (["groups", "--limit", "0"], "'0' is not a number from 1 on"),
            (["channels", "--limit", "many"], "'many' is not a number from 1 on"),
            (["weather"], "invalid choice: 'weather'"),
            ([], "required"),
        ],
        ids=str,
    )
    def test_wrong_arguments(self, arguments: list[str], words: str) -> None:
        """An error names the value."""
        with pytest.raises(CommandError, match=words):
            call_command("asyncq", *arguments)


@pytest.fixture
def forgets_layers() -> Iterator[None]:
    """The layers of the settings are made anew in the test, and forgotten after it."""
    before = dict(channel_layers.backends)
    channel_layers.backends.clear()
    yield
    channel_layers.backends.clear()
    channel_layers.backends.update(before)


class TestStatus:
    """Exit statuses."""

    async def test_on_memory(self, forgets_layers: None, settings: Any) -> None:
        """On memory:// there is nothing to see, and the command says so: 2."""
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": {"hosts": ["memory://"]}}}
        with pytest.raises(CommandError, match=r"on memory://.*Set `hosts`") as raised:
            await asyncq("status")
        assert raised.value.returncode == 2

    @pytest.mark.parametrize("alias", ["other", "inmemory"])
    async def test_on_another_layer(self, forgets_layers: None, settings: Any, alias: str) -> None:
        """A layer that is not there, or is none of this package, is named: 2."""
        settings.CHANNEL_LAYERS = {"inmemory": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
        with pytest.raises(CommandError, match=rf"CHANNEL_LAYERS\['{alias}'\]") as raised:
            await asyncq("status", "--layer", alias)
        assert raised.value.returncode == 2

    @pytest.mark.server
    async def test_without_a_server(self, own_redis_server: EmbeddedServer) -> None:
        """Where the server cannot be reached, nothing is known: 2."""
        await asyncio.to_thread(own_redis_server.kill)
        async with installed(AsyncQueueChannelLayer(hosts=[own_redis_server.url], send_timeout=0.2)):
            with pytest.raises(CommandError, match="the processes cannot be reached: ") as raised:
                await asyncq("status")
        assert raised.value.returncode == 2

    async def test_refused(self, server: RespServer, prefix: str) -> None:
        """A server that refuses a command is quoted: 2."""
        async with installed(AsyncQueueChannelLayer(hosts=[server.url], prefix=prefix)) as layer:
            await layer.new_channel()
            server.always("XREVRANGE", NOPERM)
            with pytest.raises(CommandError, match="refused: NOPERM") as raised:
                await asyncq("trace", "room")
        assert raised.value.returncode == 2

    async def test_nobody(self, redis_url: str, prefix: str) -> None:
        """A site without a process has a fault: 1. The command's own process is not shown."""
        async with installed(AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)) as layer:
            await members_of(layer, "room", 2)
            said = await asyncq("status", "--timeout", "20")
            assert (said.text, said.status) == ("No process has answered.\n", 1)
            said = await asyncq("groups", "--timeout", "20", "--json")
            assert (said.json["groups"], said.status) == ([], 0)

    async def test_wrong_name(self, redis_url: str, prefix: str) -> None:
        """A name that can be no group's is refused: 2."""
        async with installed(AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)):
            with pytest.raises(CommandError, match="Group name may contain only") as raised:
                await asyncq("groups", "no group")
        assert raised.value.returncode == 2

    async def test_layer_of_the_command(
        self, forgets_layers: None, settings: Any, redis_url: str, prefix: str
    ) -> None:
        """A layer that the command has made is closed at its end; the next one is another."""
        config = {"hosts": [redis_url], "prefix": prefix}
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": config}}
        assert (await asyncq("status", "--timeout", "20")).status == 1
        assert "default" not in channel_layers.backends
        async with installed(AsyncQueueChannelLayer(**config)) as layer:  # type: ignore[arg-type]
            await asyncq("status", "--timeout", "20")
            assert not layer.is_closed


@pytest.fixture
async def others(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncQueueChannelLayer]:
    """A layer whose sessions are those of another process, as far as the command can tell."""
    monkeypatch.setattr("channels_asyncq.session.answers.identity", lambda: "web-1:4711:daphne")
    async with installed(AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix, capacity=2)) as layer:
        yield layer


class TestText:
    """What the samples of the page do not have."""

    async def test_names_have_their_place(self, others: AsyncQueueChannelLayer) -> None:
        """Lines have at most 80 characters with the longest names that there are; JSON has the whole of them."""
        group = "g" * 100
        channel = await others.new_channel("p" * 46)
        await others.group_add(group, channel)
        await others.group_add(group, "w" * 100)
        for _ in range(2):
            await others.send(channel, {"type": "test.note"})
        for command in (["status"], ["groups"], ["groups", group], ["channels"], ["channels", "--slow"]):
            said = await asyncq(*command, "--timeout", "20")  # asserts it
            assert said.status == 0
        said = await asyncq("groups", group, "--json", "--timeout", "20")
        assert [row["channel"] for row in said.json["members"]] == [channel]

    async def test_more_than_the_limit(self, others: AsyncQueueChannelLayer) -> None:
        """What is left out is said."""
        for group in ("a", "b", "c"):
            await members_of(others, group, 2)
        said = await asyncq("groups", "--limit", "2", "--timeout", "20")
        assert "and more: each process told its 2 largest groups" in said.lines[-1]
        said = await asyncq("groups", "--limit", "3", "--timeout", "20", "--json")
        assert said.json["is_complete"]
        said = await asyncq("groups", "a", "--limit", "1", "--timeout", "20")
        assert said.lines[-1] == "and 1 more: --limit shows more of them"
        said = await asyncq("channels", "--limit", "5", "--timeout", "20")
        assert said.lines[0] == "6 channels in all"
        assert said.lines[-1] == "and 1 more: --limit shows more of them"

    async def test_groups_without_a_log(
        self, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their messages per second are not known."""
        monkeypatch.setattr("channels_asyncq.session.answers.identity", lambda: "web-1:4711:daphne")
        config: Any = {"hosts": [redis_url], "prefix": prefix, "recovery": {"exclude": ["u*"]}}
        async with installed(AsyncQueueChannelLayer(**config)) as layer:
            await members_of(layer, "unlogged", 1)
            await members_of(layer, "room", 2)
            said = await asyncq("groups", "--timeout", "20")
        assert [line.split() for line in said.lines[1:]] == [
            ["room", "2", "1", "0.0"],
            ["unlogged", "1", "1", "-"],
        ]

    async def test_reconnects(self, others: AsyncQueueChannelLayer, redis_server: EmbeddedServer) -> None:
        """The line of the server has the last reconnect, and how many there were."""
        await others.new_channel()
        for line in redis_server.command("CLIENT", "LIST").decode().splitlines():
            client = dict(word.partition("=")[::2] for word in line.split(" "))
            if client["name"] == identity():
                redis_server.command("CLIENT", "KILL", "ID", client["id"])
        await eventually(lambda: others.statistics().reconnects >= 2 and others.statistics().connected)
        said = await asyncq("status", "--timeout", "20")
        assert re.search(r"redis://\S+, last reconnect \d+s ago \(\d in all\)", said.text), said.text
        said = await asyncq("status", "--timeout", "20", "--json")
        [process] = said.json["processes"]
        # The command has a link of its own in this process.
        [link] = [link for link in process["links"] if link["reconnected_at"] is not None]
        assert link["reconnects"] >= 2 and link["reconnected_at"] > 1.7e9


@pytest.mark.processes
async def test_watch(redis_url: str, prefix: str) -> None:
    """`--watch` goes on until Ctrl-C, which is its regular end. With `--json` there is a line for each round."""
    command = Process("asyncq status")
    config = {"hosts": [redis_url], "prefix": prefix}
    await command.start(
        [sys.executable, "-m", "django", "asyncq", "status", "--json", "--watch", "0.1", "--timeout", "1"],
        DJANGO_SETTINGS_MODULE="tests.processes.operated_settings",
        TEST_LAYER_CONFIG=json.dumps(config),
    )
    try:
        await eventually(
            lambda: command.errors.count('"processes"') >= 3, "three rounds", within=3 * DEADLINE
        )
        command.signal(signal.SIGINT)
        assert await command.ended() == 0
        lines = said_by(command.errors).splitlines()
        assert all(json.loads(line)["processes"] == [] for line in lines), command.errors
    finally:
        await command.kill()
