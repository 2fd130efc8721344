"""The figures for Prometheus: of this process, and of all by the command; and the alerts of docs/metrics.md."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from channels.layers import channel_layers
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.prometheus import LayerCollector
from channels_asyncq.session.figures import Figures
from tests.code_blocks import block
from tests.contract import DEADLINE, MakeLayer, eventually, layers, members_of, note
from tests.processes.handles import Process
from tests.test_servers import site

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
# Seconds for a process to start or to end, on a machine that is busy with other tests.
PATIENCE = 60.0

needs_page = pytest.mark.skipif(not PAGE.is_file(), reason="only the package is here, without its pages")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="there is no promtool on PATH: install Debian's package prometheus"
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(params=["memory", "redis"])
async def layer(
    request: pytest.FixtureRequest, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncQueueChannelLayer]:
    """The layer of the alias "default"."""
    url = "memory://" if request.param == "memory" else redis_url
    async with layers(hosts=[url], prefix=prefix, capacity=2) as make:
        layer = await make()
        monkeypatch.setattr(channel_layers, "backends", {"default": layer})
        yield layer


def scraped(registry: CollectorRegistry | None = None) -> str:
    if registry is None:
        registry = CollectorRegistry()
        registry.register(LayerCollector())
    return generate_latest(registry).decode()


def samples(text: str) -> Samples:
    """Every sample by its name, without the prefix, and its labels; the label `layer` is left out."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((key, value) for key, value in sample.labels.items() if key != "layer")
            assert (sample.name, labels) not in found
            found[sample.name.removeprefix("channels_asyncq_"), labels] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


async def test_figures_of_a_process(layer: AsyncQueueChannelLayer) -> None:
    """A scrape has the figures of `statistics()`, at the moment of the scrape."""
    registry = CollectorRegistry()
    registry.register(LayerCollector())
    text = scraped(registry)
    assert value(text, "channels") == 0
    # There before the first loss: Prometheus sees no increase in a counter that begins with it.
    assert value(text, "told_channels_total", reason="trimmed") == 0
    assert value(text, "dropped_messages_total", reason="overflow") == 0
    first, second = await members_of(layer, "room", 2)
    for number in range(3):
        await layer.group_send("room", note(number))
    await eventually(lambda: layer.statistics().dropped.get("overflow") == 2, "the drops")
    await layer.receive(first)
    await layer.send(first, note(4))
    await layer.send("jobs", note(5))
    text = scraped(registry)
    assert value(text, "channels") == layer.statistics().channels
    assert value(text, "groups") == 1
    assert value(text, "queued_messages") == 4
    assert value(text, "queued_messages_max") == 2
    assert value(text, "delivered_messages_total") == layer.statistics().delivered
    assert value(text, "dropped_messages_total", reason="overflow") == 2
    sent = {
        kind: value(text, "sent_messages_total", kind=kind)
        for kind in ("group", "normal", "channel", "local")
    }
    assert sent == {"group": 3, "normal": 1, "channel": 0, "local": 1}
    [link] = layer.statistics().links
    assert value(text, "connected", address=link.address) == 1
    assert value(text, "reconnects_total", address=link.address) == 0
    assert "room" not in text and second not in text and "jobs" not in text


async def test_never_used(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not used its layer has noughts, and a scrape opens no connection."""
    async with layers(hosts=[redis_url], prefix=prefix) as make:
        layer = await make()
        monkeypatch.setattr(channel_layers, "backends", {"default": layer})
        text = scraped()
        assert value(text, "sent_messages_total", kind="group") == 0
        assert not layer.statistics().links


async def test_registered_twice() -> None:
    """prometheus-client says so, as for everything."""
    registry = CollectorRegistry()
    registry.register(LayerCollector())
    with pytest.raises(ValueError, match="channels_asyncq_channels"):
        registry.register(LayerCollector())


async def test_layers_of_others_are_left_out(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    assert samples(scraped()) == {}


async def test_kinds_of_sends(make_layer: MakeLayer) -> None:
    """Each message counts once, by what it was sent to; jobs that are refused do not count."""
    one, two = await make_layer(), await make_layer()
    own, other = await one.new_channel(), await two.new_channel()
    await one.group_add("room", "jobs")
    for _ in range(40):
        await one.group_send("room", note(1))
    for _ in range(3):
        await one.send(own, note(2))
        await one.send(other, note(3))
    await one.send_wait(own, note(4))
    copies = min(40, one.options.capacity_of("jobs"))
    assert one.statistics().sent == {"group": 40, "channel": 3, "normal": copies, "local": 4}
    assert two.statistics().sent == {}


async def test_latency_and_lag(make_layer: MakeLayer) -> None:
    """A checkpoint tells both: its round trip, and its way through the server."""
    layer = await make_layer()
    await layer.new_channel()
    assert layer.statistics().latency.count == 0
    async with asyncio.timeout(DEADLINE):
        await eventually(lambda: layer.statistics().lag is not None, "a checkpoint")
    figures = layer.statistics()
    assert figures.latency.count >= 1
    assert 0 < figures.latency.seconds < DEADLINE
    assert figures.lag is not None and 0 < figures.lag < DEADLINE
    [host] = Figures.of(figures).hosts.values()
    assert host.latency == figures.latency and host.lag == figures.lag


def test_figures_as_a_message() -> None:
    """Figures survive the way through a message, and those of event loops are added."""
    figures = Figures(1, 2, 3, 3, 4, {"group": 1, "channel": 2, "normal": 3, "local": 4}, {"overflow": 5})
    assert Figures.from_plain(json.loads(json.dumps(figures.to_plain()))) == figures
    both = figures + figures
    assert (both.channels, both.groups, both.queued, both.fullest) == (2, 4, 6, 3)
    assert both.sent["local"] == 8 and both.dropped == {"overflow": 10}


# The command


def documented() -> list[list[str]]:
    """The commands of docs/operating.md: without a port, and with one, as it is in docs/metrics.md."""
    text = block("docs/operating.md", "sh", having="asyncq metrics")
    assert text.splitlines()[1:] == block("docs/metrics.md", "sh", having="asyncq metrics").splitlines()
    return [[sys.executable, "-m", "django", *shlex.split(line)[2:]] for line in text.splitlines()]


class Command(Process):
    """`manage.py asyncq metrics --port 0`."""

    def __init__(self) -> None:
        super().__init__("metrics")
        self.url = asyncio.get_running_loop().create_future()

    def on_line(self, line: bytes) -> None:
        if not self.url.done():
            self.url.set_result(line.decode().strip())

    def on_end(self) -> None:
        if not self.url.done():
            self.url.set_exception(EOFError(self.errors))


async def fetch(url: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            text: str = response.read().decode()
            return text

    return await asyncio.to_thread(get)


@needs_page
@pytest.mark.processes
@pytest.mark.timeout(300)
async def test_command(make_layer: MakeLayer, redis_url: str, prefix: str, tmp_path: Path) -> None:
    """The figures of all other processes, with the process as a label; scraped again and again, until SIGTERM."""
    layer = await make_layer()
    await members_of(layer, "room", 2)
    await layer.group_send("room", note(1))
    process = layer.statistics().process
    environment = site({"hosts": [redis_url], "prefix": prefix})
    environment["DJANGO_SETTINGS_MODULE"] = "tests.processes.command_settings"
    manage = ["0" if word == "9200" else word for word in documented()[1]]
    command = Command()
    try:
        await command.start([*manage, "--timeout", "20"], **environment)
        async with asyncio.timeout(PATIENCE):
            url = await command.url
        for sent in (1, 2):
            text = await fetch(url)
            assert value(text, "survey_success") == 1
            assert value(text, "processes") == 1 and value(text, "missing") == 0
            assert value(text, "channels", process=process) == 2
            assert value(text, "sent_messages_total", process=process, kind="group") == sent
            await layer.group_send("room", note(2))
        check_metrics(text)
        command.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await command.process.wait() == 0, command.errors
    finally:
        if command.process.returncode is None:
            command.process.kill()
        async with asyncio.timeout(PATIENCE):
            await command.process.wait()


@needs_page
@pytest.mark.processes
@pytest.mark.timeout(300)
async def test_command_once(make_layer: MakeLayer, redis_url: str, prefix: str) -> None:
    """Without a port the figures are written once; without a server the exit status says so."""
    layer = await make_layer()
    await members_of(layer, "room", 3)
    manage = [*documented()[0], "--timeout", "20"]
    for url, status in ((redis_url, 0), ("redis://127.0.0.1:1", 1)):
        config = {"hosts": [url], "prefix": prefix, "send_timeout": 1.0 if status else 20.0}
        process = Process("metrics")
        environment = site(config)
        environment["DJANGO_SETTINGS_MODULE"] = "tests.processes.command_settings"
        await process.start(manage, **environment)
        async with asyncio.timeout(PATIENCE):
            assert await process.process.wait() == status, process.errors
        await process.kill()
        text = "".join(f"{line}\n" for line in process.errors.splitlines() if "channels_asyncq_" in line)
        text = re.sub(r"^(?!#|channels_asyncq_).*\n", "", text, flags=re.MULTILINE)
        assert value(text, "survey_success") == 1 - status
        if status == 0:
            assert value(text, "channels", process=layer.statistics().process) == 3


# The alerts


def rules() -> str:
    return block("docs/metrics.md", "yaml", having="groups:")


def promtool(*arguments: str, given: str | None = None) -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_metrics(text: str) -> None:
    """Have promtool look at the names, types and texts of all metrics."""
    if shutil.which("promtool"):
        assert promtool("check", "metrics", given=text) == ""


@needs_page
def test_documented_figures() -> None:
    """docs/metrics.md has each metric with its labels, and no other."""
    named = dict(
        re.findall(r"^\| `([a-z_]+)` \| (gauge|counter|histogram) \|", PAGE.read_text(), re.MULTILINE)
    )
    described = {family.name: family.type for family in LayerCollector().describe()}
    names = {
        f"{name.removeprefix('channels_asyncq_')}{'_total' if kind == 'counter' else ''}": kind
        for name, kind in described.items()
    }
    of_the_command = dict.fromkeys(("survey_success", "processes", "missing"), "gauge")
    assert named == names | of_the_command


@needs_page
@needs_promtool
def test_alerts_are_valid(tmp_path: Path) -> None:
    """promtool finds no fault in the alerts."""
    path = tmp_path / "alerts.yml"
    path.write_text(rules())
    said = promtool("check", "rules", str(path))
    assert f"{len(alerts())} rules found" in said


@needs_page
@needs_promtool
def test_the_job_is_valid(tmp_path: Path) -> None:
    """Prometheus takes the configuration, and asks at the port that the command above it serves."""
    text = block("docs/metrics.md", "yaml", having="scrape_configs:")
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    assert "is valid prometheus config" in promtool("check", "config", str(path))
    (job,) = yaml.safe_load(text)["scrape_configs"]
    port = block("docs/metrics.md", "sh", having="asyncq metrics").split()[-1]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]


def alerts() -> list[str]:
    return [rule["alert"] for rule in yaml.safe_load(rules())["groups"][0]["rules"]]


def series() -> Iterator[tuple[str, str, str]]:
    """Yield for each alert the figures of a site that is well, and of one that is not, for 20 minutes."""
    at = 'layer="default",process="web-1:1:daphne"'
    host = f'{at},address="redis://db/0"'
    bucket = f"channels_asyncq_send_latency_seconds_bucket{{{host}"
    yield "ChannelsUnreachable", 'channels_asyncq_survey_success{layer="default"}', "1x20|0x20"
    yield "ChannelsNotConnected", f"channels_asyncq_connected{{{host}}}", "1x20|0x20"
    yield "ChannelsProcessMissing", 'channels_asyncq_missing{layer="default"}', "0x20|1x20"
    yield "ChannelsReconnecting", f"channels_asyncq_reconnects_total{{{host}}}", "0x20|0+1x20"
    drops = f'channels_asyncq_dropped_messages_total{{{at},reason="overflow"}}'
    yield "ChannelsDropping", drops, "0x20|0+10x20"
    told = f'channels_asyncq_told_channels_total{{{at},reason="trimmed"}}'
    yield "ChannelsLosing", told, "0x20|0+1x20"
    yield "ChannelsSlow", f'{bucket},le="0.25"}}', "0+12x20|0+1x20"
    yield "ChannelsSlow", f'{bucket},le="1.0"}}', "0+12x20|0+12x20"
    yield "ChannelsSlow", f'{bucket},le="+Inf"}}', "0+12x20|0+12x20"
    yield "ChannelsBehind", f"channels_asyncq_delivery_lag_seconds{{{host}}}", "0.01x20|3x20"


@needs_page
@needs_promtool
@pytest.mark.parametrize("alert", alerts() if PAGE.is_file() else [])
def test_alert(alert: str, tmp_path: Path) -> None:
    """It is silent on a site that is well, and is raised where the figures say so."""
    (tmp_path / "alerts.yml").write_text(rules())
    mine = [(name, values.split("|")) for each, name, values in series() if each == alert]
    assert mine
    for index, is_raised in enumerate((False, True)):
        tests = {
            "rule_files": ["alerts.yml"],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values[index]} for name, values in mine],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                            "eval_time": "15m",
                            "exp_samples": [{"labels": "{}", "value": int(is_raised)}],
                        }
                    ],
                }
            ],
        }
        path = tmp_path / "test.yml"
        path.write_text(yaml.safe_dump(tests))
        assert "SUCCESS" in promtool("test", "rules", str(path))
