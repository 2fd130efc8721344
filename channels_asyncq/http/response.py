"""The response of a view that streams."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from datetime import datetime
from typing import NoReturn

from channels import DEFAULT_CHANNEL_LAYER
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, StreamingHttpResponse
from django.utils.timezone import is_naive, make_aware

from .. import get_layer
from ..auth.guard import RECHECK, checked_recheck, require_app
from ..layer import AsyncQueueChannelLayer
from ..rates import require_positive_int
from .frames import Render, Renderer
from .resumes import checked_resume_limit
from .stream import ENDED, Stream, Wishes

_REMEDY = "make the view `async def` and serve it by an ASGI server such as uvicorn, Daphne or granian"


class EventStream(StreamingHttpResponse):
    """
    The messages of groups as server-sent events, for `EventSource` and all that speaks its format.

        async def orders(request):
            if not await may_see_orders(request):
                return HttpResponse(status=204)
            return EventStream(request, ["orders"])

    Who may follow a group is the view's decision, made before it returns this response: the groups come from
    the view, and a position that a client sends cannot add one. An `EventSource` never comes back after a status
    other than 200; 204 and 403 end it for good.

    Each event has its message's type as `event:`, and a position in all groups as `id:`. A browser that lost its
    connection sends the last id as `Last-Event-ID`, and gets what it has missed. Where that is not possible, an
    event `reset` with `{"reason": ..., "groups": [...]}` comes instead: the page loads its data anew. The
    comment `: here` follows what was missed. A message of another program has no id.

    When the first chunk is asked for, after the view and all middleware have returned, Django's thread for this
    request ends, and its database connections are closed. Sync code that is called later on behalf of the
    request, as in middleware that wraps the content, gets a new thread.

    A message of type `websocket.close` ends the stream, with an event of that name. If its code is final, as 4401
    is, the next request of the same EventSource is answered with 204, so it does not come back.

    The stream ends with a `retry:` line when the layer is closed, when the server cannot be reached after a
    loss, and when the process gets SIGTERM or SIGINT. When the client leaves, its channel is closed.

    Args:
        request: the request of an ASGI server.
        groups: the names of the groups, at least one.
        since: a position, for a client without a `Last-Event-ID`, which comes first. The third is `?since=`.
        not_before: since when this client may read. What was sent before is left out, whatever position the
            client sends. A naive datetime is in Django's current timezone.
        heartbeat: seconds of silence after which a comment and an id are sent.
        retry: the client comes back after a time between these two, in seconds.
        render: a function from a message to a str, sent as it is (an HTML fragment); to a dict or a list, sent
            as JSON; or to None: nothing is sent. The default is JSON of the whole message. It is called once for
            all streams of the process, so what it returns must depend on the message alone. It runs on the event
            loop: no I/O, no query. An exception in it ends the stream, and is logged as `stream.failed`.
        max_groups: the most groups of one stream, None for any number.
        resume_rate: how often the streams of one `resume_key` may come back with a position, such as "2/s". One
            that comes back more often gets `retry:` and the end, and comes later with the same position.
        resume_burst: how many may come back at once after a quiet time. None: those of one second, at least one.
        resume_key: the client that `resume_rate` is for, such as the key of its user. The default is its address,
            of an IPv6 address the network, of 64 bits.
        auth: whether the stream ends with the session of the request: when its user signs out, changes the
            password or is deleted, as the page about signing out says. The client comes back to the view, unless
            it has signed out. A view that also serves anonymous users passes `auth=user.is_authenticated`.
        recheck: with `auth`, seconds after which the session is looked at again; None for never.
        layer: an alias, or a layer.

    Raises:
        ImproperlyConfigured: the request is not of an ASGI server; the alias names no layer of this package;
            `resume_rate` needs a `resume_key`, because the server knows no address; or with `auth`,
            "channels_asyncq.auth" is not in INSTALLED_APPS, or the request has no session.
        TypeError, ValueError: another argument is wrong.
    """

    def __init__(
        self,
        request: HttpRequest,
        groups: Iterable[str],
        *,
        since: str | None = None,
        not_before: datetime | None = None,
        heartbeat: float = 15.0,
        retry: tuple[float, float] = (1, 3),
        render: Render | None = None,
        max_groups: int | None = 1000,
        resume_rate: str | None = None,
        resume_burst: int | None = None,
        resume_key: str | None = None,
        auth: bool = False,
        recheck: float | None = RECHECK,
        layer: str | AsyncQueueChannelLayer = DEFAULT_CHANNEL_LAYER,
    ) -> None:
        if not hasattr(request, "scope"):
            raise ImproperlyConfigured(f"a WSGI server cannot keep event streams open: {_REMEDY}")
        layer = layer if isinstance(layer, AsyncQueueChannelLayer) else get_layer(layer)
        wishes = Wishes(
            _checked_groups(groups, layer, max_groups),
            _since(request, since),
            _milliseconds(not_before),
            _checked_seconds("heartbeat", heartbeat),
            _checked_retry(retry),
            _session(request) if auth else None,
            checked_recheck("EventStream", recheck),
        )
        stream = Stream(layer, wishes, Renderer(render))
        limit = checked_resume_limit(resume_rate, resume_burst, resume_key)
        is_ended = request.headers.get("Last-Event-ID") == ENDED
        # A HEAD request asks for the headers of a response that would never end.
        if is_ended or request.method == "HEAD":
            self._chunks = _chunks_of()
        elif limit is not None and wishes.since is not None and (wait := limit.wait(request, layer)):
            self._chunks = _chunks_of(stream.retry(wait))
        else:
            self._chunks = stream.chunks()
        super().__init__(
            self._chunks, status=204 if is_ended else 200, content_type="text/event-stream; charset=utf-8"
        )
        self.headers["Cache-Control"] = "no-store, no-transform"
        # nginx would hold chunks back.
        self.headers["X-Accel-Buffering"] = "no"
        # GZipMiddleware leaves a response alone that has an encoding. Django 5.2 compresses each chunk by itself,
        # and of such a stream a browser shows the first event only.
        self.headers["Content-Encoding"] = "identity"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # Closed here: Django closes the iterator that it uses, and those below only when they are collected.
        async with aclosing(self._chunks):
            if self.is_async:
                async for chunk in self.streaming_content:  # type: ignore[union-attr]
                    yield chunk
            else:  # replaced, as Django's test client does for HEAD
                for chunk in self.streaming_content:  # type: ignore[union-attr]
                    yield chunk

    def __iter__(self) -> NoReturn:
        raise RuntimeError(
            f"an EventStream cannot be iterated by sync code, because it never ends: {_REMEDY}"
        )


async def _chunks_of(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


def _since(request: HttpRequest, since: str | None) -> str | None:
    if since is not None and not isinstance(since, str):
        raise TypeError(f"since must be a position, a str, not {since!r}")
    return request.headers.get("Last-Event-ID") or since or request.GET.get("since") or None


def _session(request: HttpRequest) -> SessionBase:
    require_app()
    session: SessionBase | None = getattr(request, "session", None)
    if session is None:
        raise ImproperlyConfigured(
            "EventStream(auth=True) needs the session of the request: add "
            "'django.contrib.sessions.middleware.SessionMiddleware' to MIDDLEWARE"
        )
    return session


def _checked_groups(
    groups: Iterable[str], layer: AsyncQueueChannelLayer, max_groups: int | None
) -> tuple[str, ...]:
    if max_groups is not None:
        require_positive_int("EventStream", "max_groups", max_groups, "groups")
    if isinstance(groups, str):
        raise TypeError(f"groups must be a list of group names, not the str {groups!r}: use [{groups!r}]")
    checked = tuple(dict.fromkeys(groups))
    if not checked:
        raise TypeError("groups is empty: name at least one group")
    if max_groups is not None and len(checked) > max_groups:
        raise ValueError(
            f"groups has {len(checked)} names, and max_groups of EventStream is {max_groups}: have one group for "
            "what many have in common, or pass a higher max_groups"
        )
    for group in checked:
        layer.require_valid_group_name(group)
    return checked


def _milliseconds(not_before: datetime | None) -> int:
    if not_before is None:
        return 0
    if not isinstance(not_before, datetime):
        raise TypeError(f"not_before must be a datetime, not {not_before!r}")
    aware = make_aware(not_before) if is_naive(not_before) else not_before
    return math.ceil(aware.timestamp() * 1000)


def _checked_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    return value


def _checked_retry(retry: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(retry, (tuple, list)) or len(retry) != 2:
        raise TypeError(f"retry must be a pair of seconds such as (1, 3), not {retry!r}")
    low, high = (_checked_seconds("retry", value) for value in retry)
    if low > high:
        raise ValueError(f"retry must be a pair (shortest, longest), not {retry!r}")
    return low, high
