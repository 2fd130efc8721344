"""What README and docs say, held against the package: snippets run, links lead somewhere, tables are complete."""

import ast
import asyncio
import builtins
import dataclasses
import importlib
import inspect
import json
import logging.config
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from channels.layers import channel_layers
from django.core.exceptions import ImproperlyConfigured

import channels_asyncq
from channels_asyncq import AsyncQueueChannelLayer, Statistics, exceptions
from channels_asyncq.bus.base import Link
from channels_asyncq.identity import identity
from channels_asyncq.migration import Both
from channels_asyncq.session import notices
from channels_asyncq.session.answers import Answers
from channels_asyncq.settings import arguments
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer, server_binaries
from tests.code_blocks import PAGES, ROOT, Block, block, blocks_of, untaken
from tests.example import Program, free_port
from tests.installing import dry_run
from tests.npm import global_packages

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PACKAGE = ROOT / "channels_asyncq"

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def rows(page: Path, *heading: str) -> Iterator[list[str]]:
    """The rows of all tables of a page that begin with these column headings."""
    inside = False
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[: len(heading)] == list(heading):
            inside = True
        elif inside and not set(cells[0]) <= set("- :"):
            yield cells


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Code blocks

#: A site's application for the command that serves it.
ECHO = """
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter

class Echo(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.channel_layer.send(self.channel_name, {"type": "echo"})

    async def echo(self, message):
        await self.send("through the layer")

application = ProtocolTypeRouter({"websocket": Echo.as_asgi()})
"""


async def run(snippet: Block) -> dict[str, Any]:
    """Run a snippet as it would in an asynchronous shell; return its names."""
    code = compile(snippet.text, snippet.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {}
    result = eval(code, names)
    if inspect.isawaitable(result):
        await asyncio.wait_for(result, 20)
    return names


@pytest.mark.parametrize("snippet", untaken("python"), ids=lambda each: f"{each.page}:{each.line}")
@pytest.mark.usefixtures("stop_signals")  # of which drained() has one for the process
async def test_python_snippet(snippet: Block, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that no other test takes runs as it stands, and its settings are accepted."""
    if "from celery" in snippet.text:
        pytest.importorskip("celery")
    layer = AsyncQueueChannelLayer(hosts=["memory://"], prefix=prefix)
    monkeypatch.setattr(channel_layers, "backends", {"default": layer})
    names = await run(snippet)
    for entry in names.get("CHANNEL_LAYERS", {}).values():
        if entry["BACKEND"] == "channels_asyncq.migration.Both":
            pytest.importorskip("channels_redis")
            Both(**entry["CONFIG"])
            entry = entry["CONFIG"]["new"]
        assert entry["BACKEND"] == "channels_asyncq.AsyncQueueChannelLayer"
        Options.from_config(entry["CONFIG"])
    if "LOGGING" in names:
        assert logging.config.DictConfigurator(names["LOGGING"]).configure_formatter(
            names["LOGGING"]["formatters"]["coded"]
        )
    if "ChannelsAsyncqInstrumentor" in names:
        names["ChannelsAsyncqInstrumentor"]().uninstrument()
    await layer.close()


@pytest.mark.processes
def test_proof_of_the_readme(redis_url: str, prefix: str, tmp_path: Path) -> None:
    """With the settings of the README, its one line prints what it says."""
    settings = block("README.md", "python", having="CHANNEL_LAYERS")
    assert "redis://localhost:6379/0" in settings
    settings = settings.replace("redis://localhost:6379/0", redis_url)
    settings = settings.replace('"CONFIG": {', f'"CONFIG": {{"prefix": "{prefix}", ')
    (tmp_path / "proof_settings.py").write_text(settings)
    python, manage, *arguments = shlex.split(block("README.md", "sh", having="manage.py shell"))
    assert (python, manage) == ("python", "manage.py")
    done = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        cwd=tmp_path,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "proof_settings",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDEVMODE": "",  # it would tell that the machine is slow
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines()[-1] == "{'type': 'hello.world'}"
    assert "prints `{'type': 'hello.world'}`" in README.read_text()


def test_size_of_the_readme() -> None:
    """It is short, with one picture, and leads to the pages: more than half of its links are to docs/."""
    text = README.read_text()
    assert len(text.split()) < 900
    assert text.count("![") == 1
    links = targets(text)
    assert sum(link.startswith("docs/") for link in links) > len(links) / 2


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(ROOT.joinpath("example_project").rglob("*.py"))], ids=name_of
)
def test_uvicorn_is_told_not_to_compress(page: Path) -> None:
    """Each command that has uvicorn serve an application turns compression off, on one line or on several."""
    text = page.read_text().replace("\\\n", " ")
    for command in re.findall(r'^.*\buvicorn\b["\s].*\w+:application.*$', text, re.MULTILINE):
        assert re.search(r'--ws-per-message-deflate[", ]+false', command), command


def test_commands_of_uvicorn_are_found() -> None:
    """The README and the recipe for Docker have one: the test above looks at something."""
    for page in (README, DOCS / "deployment.md", ROOT / "example_project" / "chat_site" / "asgi.py"):
        assert "--ws-per-message-deflate" in page.read_text(), page


#: Where Debian's packages put the sources of Go's libraries.
GO_SOURCES = Path("/usr/share/gocode")


class TestPublishing:
    """docs/publishing.md"""

    async def receive_from(self, server: EmbeddedServer, publish: Any) -> dict[str, Any]:
        layer = AsyncQueueChannelLayer(hosts=[server.url])
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await publish()
        message = await asyncio.wait_for(layer.receive(channel), 20)
        assert layer.statistics().external == 1
        await layer.close()
        return message

    async def test_python(self, own_redis_server: EmbeddedServer) -> None:
        """The program in Python reaches the members of the group."""
        text = block("docs/publishing.md", "python")
        assert "redis://localhost:6379" in text
        text = text.replace("redis://localhost:6379", own_redis_server.url)
        message = await self.receive_from(own_redis_server, lambda: asyncio.to_thread(exec, text, {}))
        assert message == {"type": "chat.message", "text": "hi"}

    @pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH")
    async def test_redis_cli(self, own_redis_server: EmbeddedServer) -> None:
        """So does the line for a shell."""
        command, *arguments = shlex.split(block("docs/publishing.md", "sh", having="redis-cli PUBLISH"))

        async def publish() -> None:
            process = await asyncio.create_subprocess_exec(
                command, "-p", str(own_redis_server.port), *arguments, stdout=asyncio.subprocess.PIPE
            )
            assert (await process.communicate())[0].strip() == b"1"

        message = await self.receive_from(own_redis_server, publish)
        assert message == {"type": "chat.message", "text": "hi"}

    async def test_node(self, own_redis_server: EmbeddedServer, tmp_path: Path) -> None:
        """So does the program in JavaScript, by node."""
        tmp_path.joinpath("node_modules").symlink_to(global_packages("redis"))
        await self.publishes(own_redis_server, block("docs/publishing.md", "js"), "node", tmp_path / "a.mjs")

    async def test_php(self, own_redis_server: EmbeddedServer, tmp_path: Path) -> None:
        """So does the program in PHP."""
        php = shutil.which("php")
        if (
            php is None
            or b"redis" not in (await asyncio.to_thread(subprocess.check_output, [php, "-m"])).split()
        ):
            pytest.skip("no php with phpredis (Debian: apt install php-cli php-redis)")
        text = f"<?php\n{block('docs/publishing.md', 'php')}"
        await self.publishes(own_redis_server, text, "php", tmp_path / "a.php")

    @pytest.mark.skipif(
        shutil.which("go") is None or not GO_SOURCES.joinpath("src/github.com/gomodule/redigo").is_dir(),
        reason="no go with redigo (Debian: apt install golang-go golang-github-gomodule-redigo-dev)",
    )
    async def test_go(
        self, own_redis_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So does the program in Go."""
        environment = {"GO111MODULE": "off", "GOPATH": str(GO_SOURCES), "GOCACHE": f"{tmp_path}/cache"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        text = block("docs/publishing.md", "go")
        await self.publishes(own_redis_server, text, "go run", tmp_path / "a.go")

    async def publishes(self, server: EmbeddedServer, text: str, command: str, path: Path) -> None:
        """Run a program that publishes to localhost:6379, on this server: its message arrives."""
        assert text.count("6379") == 1
        await asyncio.to_thread(path.write_text, text.replace("6379", str(server.port)))

        async def publish() -> None:
            process = await asyncio.create_subprocess_exec(*command.split(), path)
            assert await asyncio.wait_for(process.wait(), 60) == 0

        message = await self.receive_from(server, publish)
        assert message == {"type": "chat.message", "text": "hi"}

    def test_programs_say_the_same(self) -> None:
        """All programs publish to the same name."""
        languages = ("python", "sh", "js", "go", "php")
        programs = [each.text for each in blocks_of("docs/publishing.md") if each.language in languages]
        assert len(programs) == 6
        name, in_cluster = (
            AsyncQueueChannelLayer(hosts=[url]).topic_of_group("chat")
            for url in ("redis://localhost", "redis+cluster://localhost")
        )
        of_cluster = [text for text in programs if in_cluster in text]
        assert len(of_cluster) == 1 and "SPUBLISH" in of_cluster[0]
        assert all(name in text for text in programs if text not in of_cluster)
        assert all("chat.message" in text for text in programs)

    @pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH")
    def test_redis_cli_in_a_cluster(self) -> None:
        """The line for a cluster reaches a subscriber of the name, from a user with the rights of the page."""
        rights = re.search(r"has `(&\S+)` and `(\+spublish)`", (ROOT / "docs/publishing.md").read_text())
        assert rights is not None
        command, *arguments = shlex.split(block("docs/publishing.md", "sh", having="redis-cli -c"))
        with EmbeddedServer(external=False, cluster_enabled="yes") as server:
            server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
                pass
            with redis.Redis.from_url(server.url) as client, client.pubsub() as subscriber:
                subscriber.ssubscribe("asgi:0:{70}:group:chat")
                assert subscriber.get_sharded_message(timeout=20)["type"] == "ssubscribe"
                server.command(
                    "ACL", "SETUSER", "reporter", "on", ">secret", "resetchannels", *rights.groups()
                )
                given = ["-p", str(server.port), "--user", "reporter", "--pass", "secret"]
                found = subprocess.run([command, *given, *arguments], capture_output=True, check=True)
                assert found.stdout.strip() == b"1"
                message = subscriber.get_sharded_message(timeout=20)
        assert json.loads(message["data"]) == {"type": "chat.message", "text": "hi"}


@pytest.mark.server
@pytest.mark.parametrize("binary", server_binaries(), ids=lambda path: Path(path).parent.name)
async def test_access_control(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The users of the pages may do all that the layer and an outside program need, and no more is asked for."""
    lines = [
        block("docs/publishing.md", "text", having="user reporter "),
        block("docs/settings-advanced.md", "text", having="user site "),
    ]
    users = [line.strip().removeprefix("user ") for line in lines]
    server = EmbeddedServer(
        external=False, binary=binary, requirepass="all", user=["default on >all ~* &* +@all", *users]
    )
    with server:
        layer = AsyncQueueChannelLayer(hosts=[f"redis://site:secret@{server.host}:{server.port}/3"])
        channel = await layer.new_channel()
        for member in (channel, "worker"):
            await layer.group_add("chat", member)
        await layer.group_send("chat", {"type": "a"})
        assert await layer.receive(channel) == await layer.receive("worker") == {"type": "a"}
        waiting = asyncio.create_task(layer.receive("worker"))
        await asyncio.sleep(0)
        waiting.cancel()
        await layer.send("worker", {"type": "b"})
        assert await layer.receive("worker") == {"type": "b"}
        await layer.group_discard("chat", "worker")
        position = await layer.position("chat")
        await layer.group_send("chat", {"type": "d"})
        replay = await layer.group_resume("chat", channel, since=position)
        assert replay.recovered and replay.messages == [{"type": "d"}]
        assert (await layer.group_resume("chat", channel, since=replay.position)).recovered
        assert (await layer.survey("status", timeout=20)).answers
        assert list(await layer.message_rates()) == ["chat"]
        assert await layer.normal_members("chat") == []
        # Those that are silent are named, by the same rights; the connections have no name without another one.
        with monkeypatch.context() as patch:
            patch.setattr(Answers, "begin", lambda self, *arguments: None)
            missing = (await layer.survey("status", timeout=0.2)).missing
        assert {each.process for each in missing} == {identity()}
        assert identity().encode() not in server.command("CLIENT", "LIST")
        await layer.flush()
        await layer.close()

        layer = AsyncQueueChannelLayer(hosts=[f"redis://:all@{server.host}:{server.port}"])
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        reporter = await asyncio.open_connection(server.host, server.port)
        reporter[1].write(b'AUTH reporter secret\r\nPUBLISH asgi:0:group:chat \'{"type":"c"}\'\r\n')
        assert await layer.receive(channel) == {"type": "c"}
        reporter[1].close()
        await reporter[1].wait_closed()
        await layer.close()


def test_hosts_of_a_cluster() -> None:
    """Both URLs of docs/migrating.md are accepted."""
    for line in block("docs/migrating.md", "text", having="redis+cluster://").splitlines():
        Options.from_config(ast.literal_eval(f"{{{line}}}"))


@pytest.mark.parametrize(
    "line",
    [
        block("README.md", "sh", having="pip install channels_asyncq"),
        block("docs/metrics.md", "sh", having="pip install"),
    ]
    if DOCS.is_dir()
    else [],
)
def test_pip_install(line: str) -> None:
    """pip takes the line, and finds what it names installed here; the extra is one of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"\[(\w+)\]", line)) <= project["optional-dependencies"].keys()
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("pip", "install")
    dry_run(*arguments)


@pytest.mark.processes
async def test_server_of_the_readme(tmp_path: Path) -> None:
    """The command serves a site with the settings of the README, whose WebSockets are not compressed."""
    client = pytest.importorskip("websockets.asyncio.client")
    site = tmp_path / "mysite"
    site.mkdir()
    settings = block("README.md", "python", having="CHANNEL_LAYERS").replace(
        "redis://localhost:6379/0", "memory://"
    )
    (site / "settings.py").write_text(f"SECRET_KEY = 'only for tests'\nUSE_TZ = True\n{settings}")
    (site / "asgi.py").write_text(ECHO)
    program, *arguments = shlex.split(block("README.md", "sh", having="uvicorn "))
    port = free_port()
    environment = {"DJANGO_SETTINGS_MODULE": "mysite.settings", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["-m", program, "--port", str(port), *arguments]
    with Program(*command, environment=environment, folder=tmp_path) as server:
        await asyncio.to_thread(server.wait_for, "Uvicorn running on")
        async with client.connect(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
            assert await asyncio.wait_for(socket.recv(), 20) == "through the layer"
            assert "Sec-WebSocket-Extensions" not in socket.response.headers


# Tables


def test_arguments_of_hosts() -> None:
    """Every argument of a connection that is named exists."""
    named = {
        name.partition("=")[0]
        for row in rows(DOCS / "settings-advanced.md", "arguments")
        for name in code_in(row[0])
    }
    assert len(named) > 15
    assert named <= {*arguments.ARGUMENTS, *arguments.TLS_ARGUMENTS}


def test_keys_of_migrating() -> None:
    """The table of docs/migrating.md has every key of channels_redis, and each is accepted."""
    named = [key for row in rows(DOCS / "migrating.md", "key", "core") for key in code_in(row[0])]
    assert len(named) == 11
    for key in named:
        assert key in {field.name for field in dataclasses.fields(Options)} | {"random_prefix_length"}


def event_codes() -> set[str]:
    """Every literal that the package gives to `record()` or `Throttle.warn()` as a code."""
    found = set()
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                position = {"warn": 1, "record": 2}.get(name)
                if position is None or len(node.args) <= position:
                    continue
                code = node.args[position]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    found.add(code.value)
    return found | {code for code, _ in notices.REASONS.values()}


def test_every_event_code_is_documented() -> None:
    """docs/errors-and-events.md has a line for every event code, and no other."""
    documented = {code_in(row[0])[0] for row in rows(DOCS / "errors-and-events.md", "code", "logger")}
    assert documented == event_codes() and len(documented) >= 7


def test_every_exception_is_documented() -> None:
    """docs/errors-and-events.md has a line for every exception."""
    documented = {code_in(row[0])[0] for row in rows(DOCS / "errors-and-events.md", "", "from")}
    assert set(exceptions.__all__) <= documented


def test_tree_of_exceptions() -> None:
    """The tree of docs/errors-and-events.md has all of them, each below its base, with what it carries."""
    tree: list[type[BaseException]] = []
    named = set()
    for line in block("docs/errors-and-events.md", "text").splitlines():
        found = re.fullmatch(r"([│ └├─]*)([\w.]+) *([\w. ]*?) *(?:\(also a (\w+)\))?", line)
        assert found is not None, line
        indent, name, carried, other = found.groups()
        kind = pkgutil.resolve_name(name) if "." in name else getattr(exceptions, name, None)
        kind = kind or getattr(builtins, name)
        depth = len(indent) // 4
        assert depth == 0 or issubclass(kind, tree[depth - 1]), line
        assert other is None or issubclass(kind, getattr(builtins, other)), line
        if carried:
            assert set(carried.replace(".", "").split()) <= set(inspect.signature(kind).parameters), line
        tree[depth:] = [kind]
        named.add(kind.__name__)
    assert set(exceptions.__all__) <= named


def test_statistics_are_documented() -> None:
    """Every figure, every reason of a drop and every attribute of a link is documented."""
    page = DOCS / "errors-and-events.md"
    figures = {code_in(row[0])[0]: row[1] for row in rows(page, "field")}
    assert set(figures) == {field.name for field in dataclasses.fields(Statistics)} | {
        "reconnects",
        "connected",
        "latency",
        "lag",
    }
    assert {field.name for field in dataclasses.fields(Link)} <= set(code_in(figures["links"]))
    counted = {
        reason
        for module in PACKAGE.rglob("*.py")
        for reason in re.findall(r'(?:dropped\[|\.drop\(|\.drop_all\()"(\w+)"', module.read_text())
    }
    assert {code_in(row[0])[0] for row in rows(page, "dropped")} == counted


def test_checks_are_documented() -> None:
    """docs/settings.md has a line for every check."""
    ids = set(re.findall(r'id="(channels_asyncq\.[EW]\d{3})"', (PACKAGE / "checks.py").read_text()))
    assert {code_in(row[0])[0] for row in rows(DOCS / "settings.md", "id")} == ids


def test_modules_of_the_design() -> None:
    """docs/design.md has a rank for every module there is."""
    named = {name for row in rows(DOCS / "design.md", "rank", "module") for name in code_in(row[1])}
    present = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in present if not name.endswith("__init__.py")} - named == set()
    assert {name for name in named if "*" not in name and not (PACKAGE / name).exists()} == set()


# Names and links


def test_public_names_are_documented() -> None:
    """Every name of `channels_asyncq.__all__` is on a page, and what the layer has beyond the specification."""
    text = "\n".join(page.read_text() for page in PAGES)
    beyond = ["send_wait", "listen", "close_channel", "close", "close_pools", "statistics", "exclude"]
    for name in [*channels_asyncq.__all__, *beyond]:
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_exist(page: Path) -> None:
    """Every dotted name below channels_asyncq is there, or a check, a logger, an extra or a span's attribute."""
    text = page.read_text()
    others = {"connection", "drain", "loss", "message", "wire"}
    for name in set(re.findall(r"\bchannels_asyncq((?:\.[A-Za-z_]\w*)+)", text)):
        first, *rest = name.removeprefix(".").split(".")
        if first in others or re.fullmatch(r"[EW]\d{3}", first):
            continue
        try:
            thing: Any = importlib.import_module(f"channels_asyncq.{first}")
        except ModuleNotFoundError:
            thing = getattr(channels_asyncq, first)
        path = f"channels_asyncq.{first}"
        for attribute in rest:
            path += f".{attribute}"
            # A module within a package is there only when somebody has imported it.
            thing = getattr(thing, attribute) if hasattr(thing, attribute) else importlib.import_module(path)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: of equal ones the later have a number."""
    text = FENCED.sub("", page.read_text())
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def targets(text: str) -> list[str]:
    """Where the links and pictures of a page lead: `[](target)`, `[]: target` and `<target>`."""
    text = FENCED.sub("", text)
    return [
        *re.findall(r"\]\(<?([^)\s>]+)", text),
        *re.findall(r"^\[[^]]+\]: *(\S+)", text, re.MULTILINE),
        *re.findall(r"<(https?:[^>]*)>", text),
    ]


def is_there(path: Path, anchor: str) -> bool:
    """Whether a file is there, and a heading in it if one is named."""
    return path.exists() and (not anchor or anchor in anchors(path))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    """
    Every relative link leads to a file that is there, and to a heading in it.

    An address is one of https with a host; whether somebody answers there is not asked.
    """
    for target in targets(page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "https", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
        else:
            assert is_there(page.parent / path if path else page, anchor), target


def test_addresses_of_our_files() -> None:
    """Addresses of this repository's files, in pages, settings and issue forms, are of files that are there."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    sources = [*PAGES, ROOT / "pyproject.toml", *(ROOT / ".github").rglob("*.yml"), *PACKAGE.rglob("*.py")]
    found = [
        match
        for source in sources
        for match in re.findall(
            rf"{re.escape(ours)}/(?:blob|tree)/main/([\w./-]+)(?:#([\w-]+))?", source.read_text()
        )
    ]
    assert found
    for path, anchor in found:
        assert is_there(ROOT / path, anchor), (path, anchor)


def test_links_of_the_readme_lead_somewhere_on_pypi() -> None:
    """In the package's long description every link and picture has an address, ours that of what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert [fragment["path"] for fragment in hook["fragments"]] == ["README.md"]
    text = README.read_text()
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    link, picture = (
        f"{project['project']['urls']['Source']}/blob/main/",
        "https://raw.githubusercontent.com/channels-asyncq/channels-asyncq/main/",
    )
    found = re.findall(r"(!?)\[[^]]*\]\(([^)\s]+)\)", FENCED.sub("", text))
    assert all(re.match("https://|#", target) for _, target in found)
    assert all(target.startswith(picture) for mark, target in found if mark)
    ours = [target.removeprefix(link).removeprefix(picture) for _, target in found if "asyncq/" in target]
    assert len(ours) > 15
    for target in ours:
        assert (ROOT / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_text_keeps_to_the_project(page: Path) -> None:
    """No path of somebody's machine."""
    assert not re.search(r"(?<![\w.])/(home|tmp|root|work|Users)/", page.read_text())


def test_unknown_key_names_the_remedy() -> None:
    """What docs/settings.md says of unknown keys is so."""
    with pytest.raises(ImproperlyConfigured, match=r"capacty = 5.*Did you mean 'capacity'"):
        Options.from_config({"capacty": 5})
