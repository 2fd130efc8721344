"""Traces: the spans of sends and of handlers, how they are linked, and that nothing is there when it is off."""

import asyncio
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import channels.consumer
import channels.generic.websocket
import pytest
from channels.exceptions import ChannelFull, StopConsumer
from django.db import connection, transaction
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import channels_asyncq.consumers
import channels_asyncq.generic.websocket
from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.messages.framing import pack_names
from channels_asyncq.opentelemetry import ChannelsAsyncqInstrumentor, processing
from channels_asyncq.opentelemetry.carrying import with_traceparent
from channels_asyncq.opentelemetry.instrumentor import _WRAPPED
from channels_asyncq.testing import EmbeddedServer
from tests.consumers import Begin, Message, begin, installed, layer, make
from tests.contract import DEADLINE, MakeLayer, eventually, note, receive
from tests.processes.handles import ROOT, Process, agents, environment

__all__ = ["begin", "layer"]


class Spans:
    """What was exported."""

    def __init__(self, provider: TracerProvider) -> None:
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer(__name__)

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]

    def one(self, kind: SpanKind) -> ReadableSpan:
        [span] = self.of(kind)
        return span

    def clear(self) -> None:
        self._exporter.clear()


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Tracing is on; it is off after the test."""
    provider = TracerProvider()
    spans = Spans(provider)
    ChannelsAsyncqInstrumentor().instrument(tracer_provider=provider)
    yield spans
    ChannelsAsyncqInstrumentor().uninstrument()
    provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def linked(span: ReadableSpan) -> tuple[int, int]:
    [link] = span.links
    return link.context.trace_id, link.context.span_id


# Sends


@pytest.fixture(params=["memory", "redis"])
def make_any(request: pytest.FixtureRequest) -> MakeLayer:
    make_layer: MakeLayer = request.getfixturevalue(f"make_{request.param}")
    return make_layer


async def test_attributes_and_names(make_any: MakeLayer, spans: Spans) -> None:
    """
    The names of the conventions. Groups and specific channels are temporary, so span names do not have them.

    What receivers get equals what was sent, whichever way it went.
    """
    sender, reader = await make_any(), await make_any()
    channel = await reader.new_channel()
    await reader.group_add("room", channel)
    common = {
        "messaging.system": "channels_asyncq",
        "messaging.operation.type": "send",
        "messaging.message.body.size": 19,
        "messaging.channels_asyncq.message.type": "test.note",
    }
    temporary = {"messaging.destination.temporary": True}
    anonymous = {**temporary, "messaging.destination.anonymous": True}
    for one, operation, target, where, more in (
        (sender, "group_send", "room", channel, temporary),
        (sender, "send", channel, channel, anonymous),
        (reader, "send", channel, channel, anonymous),  # never leaves the process
        (reader, "send_wait", channel, channel, anonymous),
        (sender, "send", "jobs", "jobs", {}),
        (sender, "send_wait", "jobs", "jobs", {}),
    ):
        spans.clear()
        with spans.tracer.start_as_current_span("around") as around:
            await getattr(one, operation)(target, note(1))
        message = await receive(reader, where)
        assert message == note(1)
        sent = spans.one(SpanKind.PRODUCER)
        assert sent.name == (operation if more else f"{operation} jobs")
        names = {"messaging.operation.name": operation, "messaging.destination.name": target}
        assert dict(sent.attributes or {}) == {**common, **names, **more}
        assert sent.parent is not None
        assert sent.parent.span_id == around.get_span_context().span_id
        # Code that calls receive() itself.
        for _ in range(2):
            with processing(message):
                inner = trace.get_current_span().get_span_context()
        taken = spans.one(SpanKind.CONSUMER)
        assert linked(taken) == ids(sent)
        assert taken.name == ("process" if more else "process jobs")
        assert dict(taken.attributes or {}) == {
            "messaging.system": "channels_asyncq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": target,
            "messaging.channels_asyncq.message.type": "test.note",
            **more,
        }
        assert inner.span_id != ids(taken)[1]  # the second time there was none


async def test_normal_channel_of_a_group(make_any: MakeLayer, spans: Spans) -> None:
    """A copy for a normal channel is linked to the send to the group, and names the channel."""
    layer = await make_any()
    await layer.group_add("room", "jobs")
    await layer.group_send("room", note(1))
    with processing(await receive(layer, "jobs")):
        pass
    span = spans.one(SpanKind.CONSUMER)
    assert span.name == "process jobs"
    assert linked(span) == ids(spans.one(SpanKind.PRODUCER))


async def test_exclude(make_any: MakeLayer, spans: Spans) -> None:
    """An excluded channel gets nothing, and the others get the context too."""
    sender, reader = await make_any(), await make_any()
    first, second = [await reader.new_channel() for _ in range(2)]
    for channel in (first, second):
        await reader.group_add("room", channel)
    await sender.group_send("room", note(1), exclude=[first])
    await sender.group_send("room", note(2))
    assert await receive(reader, first) == note(2)
    with processing(await receive(reader, second)):
        pass
    assert linked(spans.one(SpanKind.CONSUMER)) == ids(spans.of(SpanKind.PRODUCER)[0])


async def test_sends_at_the_same_time(make_any: MakeLayer, spans: Spans) -> None:
    """Each message has the context of its own send, also where several share a command."""
    sender, reader = await make_any(capacity=200), await make_any(capacity=200)
    channel = await reader.new_channel()
    await reader.group_add("room", channel)
    await asyncio.gather(*(sender.group_send("room", {"type": f"n.{n}"}) for n in range(100)))
    for _ in range(100):
        with processing(await receive(reader, channel)):
            pass
    kind = "messaging.channels_asyncq.message.type"
    sent = {ids(span): (span.attributes or {})[kind] for span in spans.of(SpanKind.PRODUCER)}
    taken = {linked(span): (span.attributes or {})[kind] for span in spans.of(SpanKind.CONSUMER)}
    assert len(sent) == 100
    assert taken == sent


async def test_encrypted(make_redis: MakeLayer, spans: Spans) -> None:
    """The context is sealed with the names."""
    keys = {"symmetric_encryption_keys": ["a key of this test"]}
    sender, reader = await make_redis(**keys), await make_redis(**keys)
    channel = await reader.new_channel()
    await sender.send(channel, note(1))
    with processing(await receive(reader, channel)):
        pass
    assert linked(spans.one(SpanKind.CONSUMER)) == ids(spans.one(SpanKind.PRODUCER))


async def test_replayed(make_any: MakeLayer, spans: Spans) -> None:
    """A message that a reader gets from the log has its context."""
    layer = await make_any()
    since = await layer.position("room")
    await layer.group_send("room", note(1))
    replay = await layer.group_resume("room", await layer.new_channel(), since=since)
    [message] = replay.messages
    with processing(message):
        pass
    assert linked(spans.one(SpanKind.CONSUMER)) == ids(spans.one(SpanKind.PRODUCER))


async def test_refused_send(make_memory: MakeLayer, spans: Spans) -> None:
    """An error of a send is an error of its span, with its type."""
    layer = await make_memory(capacity=1)
    channel = await layer.new_channel()
    await layer.send(channel, note(1))
    with pytest.raises(ChannelFull):
        await layer.send(channel, note(2))
    failed = spans.of(SpanKind.PRODUCER)[1]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "channels.exceptions.ChannelFull"
    [event] = failed.events
    assert event.name == "exception"
    with pytest.raises(TypeError):
        await layer.send(None, note(1))  # type: ignore[arg-type]
    assert len(spans.of(SpanKind.PRODUCER)) == 3


@pytest.mark.django_db(transaction=True)
async def test_sync_send_after_the_commit(make_memory: MakeLayer, spans: Spans) -> None:
    """A send of sync code has its span when it is sent: after the commit, in the span that commits."""
    layer = await make_memory()
    await layer.group_add("room", channel := await layer.new_channel())

    def view() -> None:
        with spans.tracer.start_as_current_span("the view"), transaction.atomic():
            sync.group_send("room", note(1), layer, on_commit=True)
            assert not spans.of(SpanKind.PRODUCER)
        sync.send(channel, note(2), layer)
        connection.close()

    await asyncio.to_thread(view)
    with processing(await receive(layer, channel)):
        pass
    in_the_view, outside = spans.of(SpanKind.PRODUCER)
    around = spans.one(SpanKind.INTERNAL)
    assert in_the_view.parent is not None
    assert in_the_view.parent.span_id == ids(around)[1]
    assert outside.parent is None
    assert (in_the_view.name, outside.name) == ("group_send", "send")
    assert linked(spans.one(SpanKind.CONSUMER)) == ids(in_the_view)


# Consumers


class Noting:
    """Handlers that note the span they run in."""

    async def room_message(self, event: Message) -> None:
        seen.append(trace.get_current_span())
        await self.send(text_data=event["text"])  # type: ignore[attr-defined]

    async def room_fault(self, event: Message) -> None:
        raise LookupError("the handler's")

    async def room_end(self, event: Message) -> None:
        raise StopConsumer


class Ours(Noting, channels_asyncq.generic.websocket.AsyncWebsocketConsumer):
    groups = ["room"]  # noqa: RUF012


class Channels(Noting, channels.generic.websocket.AsyncWebsocketConsumer):
    groups = ["room"]  # noqa: RUF012


class NotingSync:
    def room_message(self, event: Message) -> None:
        seen.append(trace.get_current_span())
        self.send(text_data=event["text"])  # type: ignore[attr-defined]

    def room_fault(self, event: Message) -> None:
        raise LookupError("the handler's")

    def room_end(self, event: Message) -> None:
        raise StopConsumer


class Sync(NotingSync, channels.generic.websocket.WebsocketConsumer):
    groups = ["room"]  # noqa: RUF012


class OursSync(NotingSync, channels_asyncq.generic.websocket.WebsocketConsumer):
    groups = ["room"]  # noqa: RUF012


class Resumable(Noting, channels_asyncq.generic.websocket.ResumableWebsocketConsumer):
    async def resumable_groups(self) -> list[str]:
        return ["room"]


seen: list[trace.Span] = []


@pytest.fixture(autouse=True)
def _begin_anew() -> None:
    seen.clear()


@pytest.mark.parametrize("consumer", [Ours, OursSync, Channels, Sync])
async def test_consumer(consumer: Any, layer: AsyncQueueChannelLayer, begin: Begin, spans: Spans) -> None:
    """A handler runs in a CONSUMER span, and so do sends in it. What the client sends has no such span."""
    talk = begin(consumer)
    await talk.accepted()
    talk.say("websocket.receive", text="from the client")
    await layer.group_send("room", {"type": "room.message", "text": "hi"})
    assert (await talk.hears())["text"] == "hi"
    await eventually(lambda: bool(spans.of(SpanKind.CONSUMER)), "the span")
    span = spans.one(SpanKind.CONSUMER)
    assert linked(span) == ids(spans.one(SpanKind.PRODUCER))
    assert seen[0].get_span_context().span_id == ids(span)[1]
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET

    await layer.group_send("room", {"type": "room.end"})
    await talk.ends()
    assert [each.status.status_code for each in spans.of(SpanKind.CONSUMER)] == [StatusCode.UNSET] * 2


@pytest.mark.parametrize("consumer", [Ours, OursSync, Channels, Sync])
async def test_fault_of_a_handler(
    consumer: Any, layer: AsyncQueueChannelLayer, begin: Begin, spans: Spans
) -> None:
    """An error of a handler is an error of its span."""
    talk = begin(consumer)
    await talk.accepted()
    await layer.group_send("room", {"type": "room.fault"})
    with pytest.raises(LookupError):
        await talk.ends()
    span = spans.one(SpanKind.CONSUMER)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "builtins.LookupError"


async def test_many_members(layer: AsyncQueueChannelLayer, begin: Begin, spans: Spans) -> None:
    """Each member of a group has a span of its own, of a message that they share."""
    crowd = [begin(Ours) for _ in range(5)]
    for talk in crowd:
        await talk.accepted()
    await layer.group_send("room", {"type": "room.message", "text": "hi"})
    for talk in crowd:
        await talk.hears()
    await eventually(lambda: len(spans.of(SpanKind.CONSUMER)) == 5, "the spans")
    assert {linked(span) for span in spans.of(SpanKind.CONSUMER)} == {ids(spans.one(SpanKind.PRODUCER))}


async def test_passed_on(layer: AsyncQueueChannelLayer, begin: Begin, spans: Spans) -> None:
    """A `websocket.send` message that goes to the client without a handler has its span too."""
    talk = begin(Ours)
    await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", "text": "hi"})
    assert (await talk.hears()) == {"type": "websocket.send", "text": "hi"}
    await eventually(lambda: bool(spans.of(SpanKind.CONSUMER)), "the span")
    span = spans.one(SpanKind.CONSUMER)
    assert (span.attributes or {})["messaging.channels_asyncq.message.type"] == "websocket.send"


async def test_resumable_consumer(layer: AsyncQueueChannelLayer, begin: Begin, spans: Spans) -> None:
    """The handler of a consumer whose clients come back runs in a span."""
    talk = begin(Resumable, {"type": "websocket", "query_string": b""})
    await talk.accepted()
    await layer.group_send("room", {"type": "room.message", "text": "hi"})
    while not seen:
        await talk.hears()
    await eventually(lambda: bool(spans.of(SpanKind.CONSUMER)), "the span")
    assert linked(spans.one(SpanKind.CONSUMER)) == ids(spans.one(SpanKind.PRODUCER))
    await talk.leaves()


# On the wire


def test_names() -> None:
    """The context stands among the excluded channels, under a name that no channel can have."""
    assert with_traceparent(pack_names("room"), "00-1-2-01") == pack_names("room", ("traceparent=00-1-2-01",))
    assert with_traceparent(pack_names("room", ("a!b",)), "00-1-2-01") == pack_names(
        "room", ("a!b", "traceparent=00-1-2-01")
    )


async def test_context_travels_only_with_a_recorded_span(
    make_redis: MakeLayer, redis_server: EmbeddedServer, prefix: str, spans: Spans
) -> None:
    """Where the sampler drops the span, and where tracing is off, a message is as it was."""
    layer = await make_redis()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)

    async def sent() -> tuple[bool, bool]:
        """Whether the context was on the wire, and whether the receiver got it."""
        await layer.group_send("room", note(1))
        message = await receive(layer, channel)
        assert message == note(1)
        entries = [
            entry
            for key in redis_server.command("KEYS", f"{prefix}*log*")
            for entry in redis_server.command("XRANGE", key, "-", "+")
        ]
        [newest] = sorted(entries)[-1:]
        return b"traceparent=" in b"".join(newest[1]), type(message) is not dict

    assert await sent() == (True, True)
    ChannelsAsyncqInstrumentor().uninstrument()
    assert await sent() == (False, False)
    ChannelsAsyncqInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    assert await sent() == (False, False)


@pytest.mark.processes
async def test_process_that_does_not_trace(
    make_redis: MakeLayer, redis_url: str, prefix: str, spans: Spans
) -> None:
    """A process without tracing gets the same messages."""
    layer = await make_redis()
    async with agents(1, hosts=[redis_url], prefix=prefix) as [agent]:
        channel = await agent.do("new_channel")
        await agent.do("group_add", "room", channel)
        await layer.group_send("room", note(1), exclude=["specific.another!one"])
        await layer.send(channel, note(2))
        await layer.send("jobs", note(3))
        for n, where in ((1, channel), (2, channel), (3, "jobs")):
            assert await agent.do("receive", where) == note(n)
    assert len(spans.of(SpanKind.PRODUCER)) == 3


# On and off


async def test_switched_off_while_messages_wait(make_any: MakeLayer, spans: Spans) -> None:
    """What was sent before is read after."""
    layer = await make_any()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.send(channel, note(1))
    await layer.group_send("room", note(2))
    await layer.send("jobs", note(3))
    ChannelsAsyncqInstrumentor().uninstrument()
    messages = [await receive(layer, each) for each in (channel, channel, "jobs")]
    ChannelsAsyncqInstrumentor().instrument()
    assert messages == [note(1), note(2), note(3)]
    with processing(messages[0]):
        pass
    assert not spans.of(SpanKind.CONSUMER)


def test_off_is_as_it_was() -> None:
    """Off, every function is the one of its module: there is nothing that could cost anything."""
    before = [vars(owner)[name] for owner, name, _ in _WRAPPED]
    ChannelsAsyncqInstrumentor().instrument()
    assert not any(vars(owner)[name] is one for (owner, name, _), one in zip(_WRAPPED, before, strict=True))
    ChannelsAsyncqInstrumentor().uninstrument()
    assert [vars(owner)[name] for owner, name, _ in _WRAPPED] == before


def test_off_imports_nothing() -> None:
    """Nothing else imports the part that traces. (redis-py imports OpenTelemetry where it finds it.)"""
    code = (
        "import sys, channels_asyncq, channels_asyncq.sync, channels_asyncq.generic.websocket, "
        "channels_asyncq.http, channels_asyncq.checks; "
        "assert not [name for name in sys.modules if 'asyncq.opentelemetry' in name]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True, timeout=DEADLINE)


def test_entry_point() -> None:
    """`opentelemetry-instrument` finds the instrumentor by its entry point."""
    project = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]
    [(name, target)] = project["entry-points"]["opentelemetry_instrumentor"].items()
    assert (name, target) == ("channels_asyncq", "channels_asyncq.opentelemetry:ChannelsAsyncqInstrumentor")
    assert not ChannelsAsyncqInstrumentor().instrumentation_dependencies()


# From a task to a handler


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_from_a_celery_task(
    own_redis_server: EmbeddedServer, prefix: str, begin: Begin, spans: Spans
) -> None:
    """A task in a worker's child, and the handler of a consumer here: one link joins their traces."""

    class Member(Ours):
        async def room_report(self, event: Message) -> None:
            reports.append(event["spans"])

    reports: list[dict[str, list[str]]] = []
    url = own_redis_server.url
    async with installed(make("asyncq.redis", url, prefix)):
        talk = begin(Member)
        await talk.accepted()
        more = {
            "DJANGO_SETTINGS_MODULE": "tests.processes.callers.settings",
            "TEST_LAYER_CONFIG": f'{{"hosts": ["{url}"], "prefix": "{prefix}"}}',
            "CELERY_BROKER": url,
            "CELERY_PREFIX": f"{prefix}.celery.",
            "PYTHONDEVMODE": "",
        }
        celery = [sys.executable, "-m", "celery", "-A", "tests.processes.callers.traces"]
        worker = Process("celery")
        try:
            pool = ["--pool", "prefork", "--concurrency", "1", "--loglevel", "WARNING", "--without-mingle"]
            await worker.start([*celery, "worker", *pool], **more)
            for task in ("tell", "report"):
                name = f"tests.processes.callers.traces.{task}"
                call = await asyncio.create_subprocess_exec(
                    *celery,
                    "call",
                    name,
                    "--args",
                    '["room"]',
                    cwd=ROOT,
                    env=environment(**more),
                    stdout=asyncio.subprocess.DEVNULL,
                )
                assert await call.wait() == 0
            assert (await talk.hears())["text"] == "from the task"
            await eventually(lambda: bool(reports), "the report")
        finally:
            await worker.kill()
    [report] = reports
    task_trace, task_id, _ = map(int, report["the task"])
    trace_id, producer_id, parent = map(int, report["group_send"])
    assert (trace_id, parent) == (task_trace, task_id)
    handled = spans.of(SpanKind.CONSUMER)[0]
    assert linked(handled) == (trace_id, producer_id)
    assert seen[0].get_span_context().span_id == ids(handled)[1]
