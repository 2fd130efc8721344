"""A Celery application whose tasks send; the worker's parent has sent before it forks."""

import os
from typing import Any

import django
from celery import Celery
from celery.signals import worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.callers.settings")
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402

from channels_asyncq import get_layer, sync  # noqa: E402

app = Celery("callers", broker=os.environ["CELERY_BROKER"])
app.conf.worker_hijack_root_logger = False
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True
app.conf.broker_transport_options = {"global_keyprefix": os.environ["CELERY_PREFIX"]}


@worker_init.connect  # type: ignore[untyped-decorator]
def before_the_fork(**_: Any) -> None:
    sync.group_send(os.environ["PRELOAD_ROOM"], {"type": "room.message", "message": "preload"})


@app.task  # type: ignore[untyped-decorator]
def tell(room: str, message: str) -> None:
    sync.group_send(room, {"type": "room.message", "message": f"{message} from {os.getpid()}"})


@app.task  # type: ignore[untyped-decorator]
def say(room: str, message: str) -> None:
    send = async_to_sync(get_layer().group_send)
    send(room, {"type": "room.message", "message": f"{message} from {os.getpid()}"})


@app.task  # type: ignore[untyped-decorator]
def order_told(room: str, count: int) -> None:
    """Tasks by the sync API alone: `asgiref` refuses several of its loops at once where threads are greenlets."""
    for n in range(count):
        tell.delay(room, str(n))


@app.task  # type: ignore[untyped-decorator]
def order(room: str, count: int) -> None:
    """Tasks in turn of both kinds, spread over the pool."""
    for n in range(count):
        (say if n % 2 else tell).delay(room, str(n))
