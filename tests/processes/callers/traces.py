"""A Celery application whose tasks are traced; `report` sends the spans of the process that runs it."""

import os
from typing import Any

import django
from celery import Celery
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.callers.settings")
django.setup()

from channels_asyncq import sync  # noqa: E402
from channels_asyncq.opentelemetry import ChannelsAsyncqInstrumentor  # noqa: E402

app = Celery("traces", broker=os.environ["CELERY_BROKER"])
app.conf.worker_hijack_root_logger = False
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True
app.conf.broker_transport_options = {"global_keyprefix": os.environ["CELERY_PREFIX"]}
exporter = InMemorySpanExporter()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def in_each_child(**_: Any) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    ChannelsAsyncqInstrumentor().instrument()


@app.task  # type: ignore[untyped-decorator]
def tell(room: str) -> None:
    with trace.get_tracer(__name__).start_as_current_span("the task"):
        sync.group_send(room, {"type": "room.message", "text": "from the task"})


@app.task  # type: ignore[untyped-decorator]
def report(room: str) -> None:
    spans = {}
    for span in exporter.get_finished_spans():
        assert span.context is not None
        parent = 0 if span.parent is None else span.parent.span_id
        # As text: an id may be beyond the integers that travel.
        spans[span.name] = [str(n) for n in (span.context.trace_id, span.context.span_id, parent)]
    sync.group_send(room, {"type": "room.report", "spans": spans})
