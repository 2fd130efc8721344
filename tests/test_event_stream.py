"""Event streams in one process: what is on the wire, what is resumed, and what is left when a client goes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.utils import timezone

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.events import Faults
from channels_asyncq.http import EventStream, frames, stream
from channels_asyncq.http.wakeups import Wakeups
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.code_blocks import block
from tests.sse import Client, Comment, Event, Parser
from tests.test_docs import DOCS

Message = dict[str, Any]
HEARTBEAT = 0.05


@pytest.fixture(params=["redis", "memory"])
def make_any(
    request: pytest.FixtureRequest, make_redis: contract.MakeLayer, make_memory: contract.MakeLayer
) -> contract.MakeLayer:
    """Make layers on the shared server, and on `memory://`."""
    return make_redis if request.param == "redis" else make_memory


def request(path: str = "/", **headers: str) -> HttpRequest:
    found: HttpRequest = AsyncRequestFactory().get(path, headers=headers)
    return found


def opened(layer: AsyncQueueChannelLayer, *groups: str, since: str | None = None, **options: Any) -> Client:
    """Return the client of a stream."""
    return Client(aiter(EventStream(request(), groups, since=since, layer=layer, **options)))


async def live(layer: AsyncQueueChannelLayer, *groups: str, **options: Any) -> Client:
    """Return the client of a stream to which everything comes that is sent from now on."""
    client = opened(layer, *groups, **options)
    await client.here()
    return client


def message(number: int, kind: str = "test.message") -> Message:
    return {"type": kind, "n": number}


async def send(layer: AsyncQueueChannelLayer, group: str, *numbers: int) -> None:
    for number in numbers:
        await layer.group_send(group, message(number))


def numbers(events: list[Event]) -> list[int]:
    return [event.json["n"] for event in events]


async def take(client: Client, count: int) -> list[int]:
    return numbers([await client.event() for _ in range(count)])


# On the wire


async def test_lines(make_any: contract.MakeLayer) -> None:
    """A stream begins with `retry:`, then says that nothing is missing; an event has an id, a type and JSON."""
    layer = await make_any()
    chunks = aiter(EventStream(request(), ["room"], layer=layer, retry=(1, 3)))
    first = await anext(chunks)
    assert first.startswith(b"retry: ") and first.endswith(b"\n\n")
    assert 1000 <= int(first[7:]) <= 3000
    identity, comment = (await anext(chunks)).removesuffix(b"\n\n").split(b"\n")
    assert identity.startswith(b"id: 1~") and comment == b": here"
    await layer.group_send("room", {"type": "chat.message", "text": "über\n", "at": [1, {"b": None}]})
    chunk = await anext(chunks)
    lines = chunk.decode().split("\n")
    assert lines[0].startswith("id: 1~") and lines[0] != identity.decode()
    assert lines[1:] == [
        "event: chat.message",
        r'data: {"type":"chat.message","text":"\u00fcber\n","at":[1,{"b":null}]}',
        "",
        "",
    ]
    await chunks.aclose()  # type: ignore[attr-defined]


@pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")
async def test_lines_of_the_page(make_any: contract.MakeLayer) -> None:
    """A stream that resumes has the lines of docs/event-streams.md, but for the times and positions."""
    shown = re.sub(r" {2,}.*", "", block("docs/event-streams.md", "text"))
    layer = await make_any()
    position = await layer.position("orders")
    await layer.group_send("orders", {"type": "order.paid", "id": 7})
    chunks = aiter(EventStream(request(), ["orders"], since=position, layer=layer, heartbeat=0.1))
    sent = b"".join([await anext(chunks) for _ in range(4)]).decode().removesuffix("\n")
    await chunks.aclose()  # type: ignore[attr-defined]
    shapes = [
        re.sub(r"^(retry|id): \S+$|(?<=^:) $", r"\1", text, flags=re.MULTILINE) for text in (sent, shown)
    ]
    assert shapes[0] == shapes[1]


async def test_retry_is_spread(make_redis: contract.MakeLayer) -> None:
    """Streams do not all get the same time: their clients would come back at once."""
    layer = await make_redis()
    times = set()
    for _ in range(10):
        async with opened(layer, "room", retry=(0.5, 9)) as client:
            await client.here()
            times.add(client.parser.retry)
    assert len(times) > 5 and all(time is not None and 500 <= time <= 9000 for time in times)


async def test_headers(make_redis: contract.MakeLayer) -> None:
    """Nothing on the way stores, changes or holds back a stream, and its length is unknown."""
    response = EventStream(request(), ["room"], layer=await make_redis())
    assert dict(response.items()) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "Content-Encoding": "identity",
    }


async def test_gzip_middleware_leaves_it_alone(make_redis: contract.MakeLayer) -> None:
    """GZipMiddleware changes no byte, though the browser takes gzip."""
    layer = await make_redis()
    asked = request(**{"Accept-Encoding": "gzip"})

    async def view(asked: HttpRequest) -> HttpResponse:
        return EventStream(asked, ["room"], layer=layer)  # type: ignore[return-value]

    response: Any = await GZipMiddleware(view)(asked)  # type: ignore[misc]
    assert response["Content-Encoding"] == "identity"
    async with Client(aiter(response)) as client:
        assert await client.here() == []


async def test_head_request_ends(make_redis: contract.MakeLayer) -> None:
    """The response to a HEAD request has the headers, and ends."""
    layer = await make_redis()
    head = AsyncRequestFactory().head("/")
    response = EventStream(head, ["room"], layer=layer)
    assert response["Content-Type"].startswith("text/event-stream")
    assert [chunk async for chunk in response] == []
    assert layer.statistics().channels == 0


async def test_content_that_was_replaced(make_redis: contract.MakeLayer) -> None:
    """As Django's test client does for a HEAD request."""
    response = EventStream(AsyncRequestFactory().head("/"), ["room"], layer=await make_redis())
    response.streaming_content = []
    assert [chunk async for chunk in response] == []


async def test_heartbeat(make_any: contract.MakeLayer) -> None:
    """In silence a comment comes, with an id that the busy neighbours of a quiet group have moved."""
    layer = await make_any(partitions=1)
    async with await live(layer, "quiet", heartbeat=HEARTBEAT) as client:
        first = client.last_id
        assert await client.next() == Comment("")
        await send(layer, "busy", 1)
        busy = await layer.open_channel()
        await layer.group_add("busy", busy.name)
        async with asyncio.timeout(contract.DEADLINE):
            while client.last_id == first:
                await send(layer, "busy", 2)
                assert await client.next() == Comment("")
        busy.close()


async def test_events_put_off_the_heartbeat() -> None:
    """A heartbeat is due after that much silence: what is sent meanwhile puts it off."""
    wakeups = Wakeups(10)
    wakeups._spoke_at -= 9
    wakeups._timer.cancel()
    wakeups._on_timer()
    assert not wakeups.is_due and wakeups._timer.when() == wakeups._spoke_at + 10
    wakeups._spoke_at -= 1.5
    wakeups._timer.cancel()
    wakeups._on_timer()
    assert wakeups.is_due
    wakeups.spoke()
    assert not wakeups.is_due
    wakeups.close()


@pytest.mark.parametrize("kind", ["a\nb", "a\rb", "a\r\nb", "a\n\ndata: 1"])
async def test_type_with_line_breaks(make_redis: contract.MakeLayer, kind: str) -> None:
    """A line break in a type ends no line: no sender can make lines of its own."""
    layer = await make_redis()
    async with await live(layer, "room") as client:
        await layer.group_send("room", {"type": kind, "n": 1})
        event = await client.event()
        assert "\n" not in event.type and event.json == {"type": kind, "n": 1}


async def test_message_without_type(make_redis: contract.MakeLayer) -> None:
    """A message without a type is an event without a name: `onmessage` gets it."""
    layer = await make_redis()
    async with await live(layer, "room") as client:
        await layer.group_send("room", {"n": 1})
        event = await client.event()
        assert (event.type, event.json) == ("message", {"n": 1})


async def test_message_of_another_program(make_redis: contract.MakeLayer, publish: contract.Publish) -> None:
    """It is an event that has no id of its own: no log has it."""
    layer = await make_redis()
    async with await live(layer, "room") as client:
        before = client.last_id
        publish("group:room", '{"type": "news", "text": "hi"}')
        assert await client.event() == Event("news", '{"type":"news","text":"hi"}', before)


@pytest.mark.chaos
async def test_notices_are_no_events(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """The layer's notices of an outage are not for browsers."""
    async with contract.layers(hosts=[own_redis_server.url], prefix=prefix) as make_layer:
        layer = await make_layer(on_disconnect="went.away", on_reconnect="came.back")
        channel = await layer.new_channel()
        async with await live(layer, "room", heartbeat=60) as client:
            own_redis_server.kill()
            assert (await layer.receive(channel))["type"] == "went.away"
            own_redis_server.restart()
            assert (await layer.receive(channel))["type"] == "came.back"
            await send(layer, "room", 1)
            # A server without persistence has lost the log: the stream says so before it goes on.
            kinds = []
            while "test.message" not in kinds:
                kinds.append((await client.event()).type)
            assert not {"went.away", "came.back"} & set(kinds)


# Coming back


async def test_missed_messages_come_first(make_any: contract.MakeLayer) -> None:
    """Who comes back gets what was missed, in order and once, then what is sent."""
    layer = await make_any()
    async with await live(layer, "a", "b") as client:
        await send(layer, "a", 1)
        assert await take(client, 1) == [1]
    await send(layer, "a", 2)
    await send(layer, "b", 3)
    await send(layer, "a", 4)
    async with opened(layer, "a", "b", since=client.last_id) as back:
        # In the order of the server's clock, and each group in its own.
        assert sorted(missed := numbers(await back.here())) == [2, 3, 4]
        assert missed.index(2) < missed.index(4)
        await send(layer, "b", 5)
        assert await take(back, 1) == [5]


async def test_each_id_resumes_exactly(make_any: contract.MakeLayer) -> None:
    """From each id of a stream over several partitions, exactly the rest comes."""
    layer = await make_any()
    groups = [f"group.{number}" for number in range(6)]
    async with await live(layer, *groups) as client:
        ids = [client.last_id]
        sent = [(groups[number % 6], message(number)) for number in range(24)]
        await asyncio.gather(*(layer.group_send(*each) for each in sent))
        events = [await client.event() for _ in sent]
        ids += [event.id for event in events]
    assert sorted(numbers(events)) == list(range(24))
    for count, identity in enumerate(ids):
        async with opened(layer, *groups, since=identity) as back:
            assert sorted(numbers(await back.here())) == sorted(numbers(events[count:]))
            assert back.last_id


async def test_cut_at_every_byte(make_any: contract.MakeLayer) -> None:
    """Wherever the connection breaks, the events before and after it are all there, each once."""
    layer = await make_any()
    position = await layer.position("room")
    await send(layer, "room", *range(5))
    whole = b""
    chunks = aiter(EventStream(request(), ["room"], since=position, layer=layer))
    while not whole.endswith(b": here\n\n"):
        whole += await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]
    wanted = list(range(5))
    for cut in range(len(whole) + 1):
        parser = Parser()
        seen = numbers([found for found in parser.feed(whole[:cut]) if isinstance(found, Event)])
        async with opened(layer, "room", since=parser.last_id or position) as back:
            assert seen + numbers(await back.here()) == wanted, cut


async def test_group_that_was_left_before(make_any: contract.MakeLayer) -> None:
    """A group is read from its log also if this process had left it since the partition's last read."""
    layer = await make_any(partitions=1)
    position = await layer.position("a", "b")
    async with opened(layer, "a", since=position) as client:
        await client.here()
        async with await live(layer, "b"):
            pass
        await send(layer, "b", 1)
        async with opened(layer, "b", since=position) as back:
            assert numbers(await back.here()) == [1]


async def test_header_wins(make_any: contract.MakeLayer) -> None:
    """`Last-Event-ID` comes before `since`, and that before `?since=`; an empty one is none."""
    layer = await make_any()
    positions = []
    for number in range(3):
        positions.append(await layer.position("room"))
        await send(layer, "room", number)

    async def missed(path: str, since: str | None, **headers: str) -> list[int]:
        response = EventStream(request(path, **headers), ["room"], since=since, layer=layer)
        async with Client(aiter(response)) as client:
            return numbers(await client.here())

    header, argument, query = positions[2], positions[1], f"/?since={positions[0]}"
    assert await missed(query, argument, **{"Last-Event-ID": header}) == [2]
    assert await missed(query, argument, **{"Last-Event-ID": ""}) == [1, 2]
    assert await missed(query, "") == await missed(query, None) == [0, 1, 2]
    assert await missed("/?since=", None) == []


@pytest.mark.parametrize(("since", "reason"), [("nonsense", "bad_token"), ("1~00000000~0.1.0", None)])
async def test_reset(make_any: contract.MakeLayer, since: str, reason: str | None) -> None:
    """Where it cannot be resumed the page is told, with an id; then come the live events."""
    layer = await make_any()
    async with opened(layer, "a", "b", since=since) as client:
        (reset,) = await client.here()
        assert reset.type == "reset" and reset.id
        assert reset.json["groups"] == ["a", "b"] and reset.json["reason"]
        assert reason is None or reset.json["reason"] == reason
        await send(layer, "b", 1)
        assert await take(client, 1) == [1]
    await send(layer, "a", 2)
    async with opened(layer, "a", "b", since=reset.id) as back:
        assert sorted(numbers(await back.here())) == [1, 2]


async def test_group_that_was_added_since(make_any: contract.MakeLayer) -> None:
    """A position that does not know a group of the stream is refused, not passed over in silence."""
    layer = await make_any(partitions=64)
    async with await live(layer, "a") as client:
        pass
    async with opened(layer, "a", "b", since=client.last_id) as back:
        (reset,) = await back.here()
        assert reset.json == {"reason": "unknown_position", "groups": ["a", "b"]}


async def test_loss_in_the_middle(make_any: contract.MakeLayer) -> None:
    """Messages that a stream has lost, and that no log has, are told by a reset."""
    layer = await make_any(capacity=2, recovery=None)
    async with await live(layer, "room") as client:
        await send(layer, "room", *range(20))
        await contract.eventually(lambda: layer.statistics().dropped.get("overflow") == 18)
        found = [await client.event() for _ in range(3)]
        assert [event.type for event in found] == ["test.message", "test.message", "reset"]
        assert found[-1].json == {"reason": "overflow", "groups": ["room"]}
        await send(layer, "room", 20)
        assert await take(client, 1) == [20]


async def test_client_that_does_not_read(make_any: contract.MakeLayer) -> None:
    """What does not fit into the channel of a slow client is read from the log: it gets all of it, in order."""
    layer = await make_any(capacity=2)
    async with await live(layer, "room") as client:
        for first in range(0, 60, 20):
            await send(layer, "room", *range(first, first + 20))
            await contract.eventually(lambda: bool(layer.statistics().dropped.get("overflow")))
            assert await take(client, 20) == list(range(first, first + 20))
    assert layer.statistics().refused == {}


# Since when


def clock_of(event_id: str) -> datetime:
    milliseconds = int(event_id.split("~")[-1].split(".")[1], 36)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


async def test_not_before(make_any: contract.MakeLayer) -> None:
    """What was sent before is left out, whatever the id says, and the position moves past it."""
    layer = await make_any()
    position = await layer.position("room")
    ids = []
    async with await live(layer, "room") as client:
        for number in range(3):
            await send(layer, "room", number)
            ids.append((await client.event()).id)
            await asyncio.sleep(0.005)  # the next one has a later millisecond
    times = [clock_of(each) for each in ids]
    for since in (None, position, ids[0]):
        async with opened(layer, "room", since=since, not_before=times[2]) as client:
            assert numbers(await client.here()) == ([] if since is None else [2])
            assert since is None or clock_of(client.last_id) >= times[2]
    async with opened(
        layer, "room", since=position, not_before=times[0] + timedelta(milliseconds=1)
    ) as client:
        assert numbers(await client.here()) == [1, 2]
        await send(layer, "room", 3)
        assert await take(client, 1) == [3]


async def test_not_before_in_the_future(make_redis: contract.MakeLayer, publish: contract.Publish) -> None:
    """Live messages are left out too until then, also those without a place in a log."""
    layer = await make_redis()
    later = datetime.now(UTC) + timedelta(hours=1)
    async with await live(layer, "room", not_before=later, heartbeat=HEARTBEAT) as client:
        before = client.last_id
        await send(layer, "room", 1)
        publish("group:room", '{"type": "news", "n": 2}')
        while client.last_id == before:
            assert await client.next() == Comment("")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
async def test_naive_not_before(make_any: contract.MakeLayer, zone: str) -> None:
    """A naive datetime is in Django's current timezone."""
    layer = await make_any()
    position = await layer.position("room")
    await send(layer, "room", 1)
    with override_settings(TIME_ZONE=zone):
        now = timezone.make_naive(timezone.now())
        early, late = now - timedelta(seconds=10), now + timedelta(seconds=10)
        async with opened(layer, "room", since=position, not_before=early) as client:
            assert numbers(await client.here()) == [1]
        async with opened(layer, "room", since=position, not_before=late) as client:
            assert numbers(await client.here()) == []


# Rendering


async def test_text_is_sent_as_it_is(make_redis: contract.MakeLayer) -> None:
    """A str is the data of the event, with a line of data for each of its lines."""
    layer = await make_redis()

    def fragment(found: Message) -> str:
        return f"<p>\r\n  {found['n']}\r&amp;\n</p>\n"

    async with await live(layer, "room", render=fragment) as client:
        await send(layer, "room", 1)
        event = await client.event()
        assert (event.type, event.data) == ("test.message", "<p>\n  1\n&amp;\n</p>\n")


async def test_dict_list_and_nothing(make_redis: contract.MakeLayer) -> None:
    """A dict and a list are sent as JSON, nothing for None: the position moves on with the next id."""
    layer = await make_redis()

    def chosen(found: Message) -> dict[str, Any] | list[Any] | None:
        number: int = found["n"]
        if number == 3:
            return None
        return {"double": 2 * number} if number == 1 else [number]

    async with await live(layer, "room", render=chosen, heartbeat=HEARTBEAT) as client:
        await send(layer, "room", 1, 3, 2, 3)
        assert [(await client.event()).json for _ in range(2)] == [{"double": 2}, [2]]
        while not isinstance(await client.next(), Comment):
            pass
    async with opened(layer, "room", since=client.last_id) as back:
        assert await back.here() == []


async def test_dates_and_decimals(make_redis: contract.MakeLayer) -> None:
    """The forms of values are those of Django's JSON."""
    layer = await make_redis()
    async with await live(layer, "room") as client:
        await layer.group_send("room", {"type": "x", "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)})
        assert (await client.event()).json["at"] == "2026-01-02T03:04:05Z"


def broken(found: Message) -> str:
    raise ZeroDivisionError("a fault in render")


def a_number(found: Message) -> str:
    return 5  # type: ignore[return-value]


def bytes_in_json(found: Message) -> dict[str, Any]:
    return {"picture": b"GIF89a"}


@pytest.mark.parametrize(
    ("render", "text"),
    [
        (broken, "a fault in render"),
        (a_number, "render=a_number returned int: it must be a str, a dict, a list or None"),
        (bytes_in_json, "bytes is not JSON serializable"),
    ],
)
async def test_error_in_render(
    make_redis: contract.MakeLayer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    render: Any,
    text: str,
) -> None:
    """It ends the stream and is logged with its traceback; the client comes back to the same message."""
    monkeypatch.setattr(stream, "_faults", Faults())
    layer = await make_redis()
    async with await live(layer, "room", render=render) as client:
        await send(layer, "room", 1)
        client.parser.retry = None
        assert await client.end() == []
        assert client.parser.retry is not None
    (line,) = [line for line in caplog.records if getattr(line, "code", "") == "stream.failed"]
    assert line.levelno == logging.ERROR and text in line.getMessage()
    assert "Traceback" in line.getMessage() and "room" in line.getMessage()
    assert layer.statistics().channels == 0
    async with opened(layer, "room", since=client.last_id) as back:
        assert numbers(await back.here()) == [1]


class Counting:
    """A renderer that counts its calls."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.calls = 0

    def __call__(self, found: Message) -> str:
        self.calls += 1
        return f"{self.mark} {found['n']}"


async def test_rendered_once_for_all_streams(make_any: contract.MakeLayer) -> None:
    """Streams with one function share its work, live or missed, and share nothing with another function."""
    layer = await make_any()
    position = await layer.position("room", "other")
    one, other = Counting("one"), Counting("other")
    clients = [await live(layer, "room", "other", render=render) for render in (one, one, other)]
    await send(layer, "room", 1)
    await send(layer, "other", 1)
    data = [[(await client.event()).data for _ in range(2)] for client in clients]
    assert data == [["one 1", "one 1"], ["one 1", "one 1"], ["other 1", "other 1"]]
    late = opened(layer, "room", "other", since=position, render=one)
    assert [event.data for event in await late.here()] == ["one 1", "one 1"]
    assert (one.calls, other.calls) == (2, 2)
    for client in (*clients, late):
        await client.leave()


class Unhashable(Counting):
    __hash__ = None  # type: ignore[assignment]


async def test_what_cannot_be_kept_is_made_each_time(
    make_redis: contract.MakeLayer, publish: contract.Publish
) -> None:
    """An event without a position is made for each stream, and so is everything by an unhashable function."""
    layer = await make_redis()
    for render, external in ((Counting("a"), True), (Unhashable("b"), False)):
        clients = [await live(layer, "room", render=render) for _ in range(2)]
        if external:
            publish("group:room", '{"type": "news", "n": 1}')
        else:
            await send(layer, "room", 1)
        assert [(await client.event()).data for client in clients] == [f"{render.mark} 1"] * 2
        assert render.calls == 2
        for client in clients:
            await client.leave()


async def test_layers_share_no_events(
    make_redis: contract.MakeLayer, own_redis_server: EmbeddedServer
) -> None:
    """Two servers may give two messages of one group name the same position."""
    one = await make_redis()
    other = AsyncQueueChannelLayer(hosts=[own_redis_server.url])
    render = Counting("x")
    clients = [await live(layer, "room", render=render) for layer in (one, other)]
    for number, layer in enumerate((one, other)):
        await send(layer, "room", number)
    assert [(await client.event()).data for client in clients] == ["x 0", "x 1"]
    assert render.calls == 2
    for client in clients:
        await client.leave()
    await other.close()


async def test_kept_events_are_bounded(
    make_redis: contract.MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first, by their number and by their bytes."""
    monkeypatch.setattr(frames, "MOST_EVENTS", 3)
    layer = await make_redis()
    position = await layer.position("room")
    render = Counting("x")
    async with await live(layer, "room", render=render) as client:
        await send(layer, "room", *range(5))
        for _ in range(5):
            await client.event()
    assert render.calls == 5
    monkeypatch.setattr(frames, "MOST_BYTES", 1)
    async with opened(layer, "room", since=position, render=render) as back:
        assert len(await back.here()) == 5
    # The last three were kept until the first of those before them took their place.
    assert render.calls == 10


# Ends


async def test_closed_layer(make_any: contract.MakeLayer) -> None:
    """A stream whose layer is closed ends with `retry:`."""
    layer = await make_any()
    client = await live(layer, "room")
    client.parser.retry = None
    await layer.close()
    assert await client.end() == [] and client.parser.retry is not None


async def test_server_that_cannot_be_reached(prefix: str) -> None:
    """A stream that cannot join ends with `retry:`, and its client comes back."""
    layer = AsyncQueueChannelLayer(hosts=["redis://127.0.0.1:1"], prefix=prefix, send_timeout=0.3)
    client = opened(layer, "room", since="1~00000000~0.1.0")
    assert await client.end() == [] and client.parser.retry is not None
    await layer.close()


async def test_client_leaves(make_any: contract.MakeLayer, caplog: pytest.LogCaptureFixture) -> None:
    """No channel and no member is left, and nothing is logged: not while it waits, not while it sends."""
    layer = await make_any()
    waiting = await live(layer, "room")
    task = asyncio.create_task(waiting.next())
    sending = await live(layer, "room")
    assert len(layer.groups["room"]) == 2
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await sending.leave()
    assert layer.groups == {} and layer.statistics().channels == 0
    unasked = opened(layer, "room")
    await anext(unasked.chunks)
    await unasked.leave()
    never = EventStream(request(), ["room"], layer=layer)
    never.close()
    assert layer.statistics().channels == 0 and caplog.records == []


async def test_cancelled_at_every_turn(make_any: contract.MakeLayer) -> None:
    """However far a stream has come when its client leaves, it leaves nothing behind."""
    layer = await make_any()
    position = await layer.position("a", "b")
    await send(layer, "a", 1)
    for turns in range(40):
        client = opened(layer, "a", "b", since=position)
        task = asyncio.create_task(client.here())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await client.leave()
        assert layer.groups == {} and layer.statistics().channels == 0, turns
    async with opened(layer, "a", "b", since=position) as back:
        assert numbers(await back.here()) == [1]


# Arguments


async def test_wsgi_request_is_refused(make_redis: contract.MakeLayer) -> None:
    """A WSGI server cannot stream; the error says what can."""
    layer = await make_redis()
    with pytest.raises(ImproperlyConfigured, match=r"async def.*uvicorn"):
        EventStream(RequestFactory().get("/"), ["room"], layer=layer)


async def test_sync_iteration_is_refused(make_redis: contract.MakeLayer) -> None:
    """Sync code that iterates the response would never end."""
    response = EventStream(request(), ["room"], layer=await make_redis())
    with pytest.raises(RuntimeError, match="never ends"):
        list(response)


async def a_coroutine(found: Message) -> str:
    return ""


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"groups": "room"}, TypeError, r"the str 'room'"),
        ({"groups": []}, TypeError, "at least one"),
        ({"groups": ["a b"]}, TypeError, "a b"),
        ({"groups": [5]}, TypeError, "5"),
        ({"since": 5}, TypeError, "since"),
        ({"not_before": time.time()}, TypeError, "not_before must be a datetime"),
        ({"heartbeat": 0}, ValueError, "heartbeat"),
        ({"heartbeat": "15"}, TypeError, "heartbeat"),
        ({"heartbeat": float("nan")}, ValueError, "heartbeat"),
        ({"retry": 3}, TypeError, "pair"),
        ({"retry": (3, 1)}, ValueError, "shortest"),
        ({"retry": (0, 1)}, ValueError, "retry"),
        ({"render": "json"}, TypeError, "render must be a function"),
        ({"render": a_coroutine}, TypeError, "a_coroutine is async"),
        ({"layer": "nowhere"}, ImproperlyConfigured, "nowhere"),
    ],
)
async def test_wrong_arguments(
    make_redis: contract.MakeLayer, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """A wrong argument is refused when the response is made, by name and value."""
    given: dict[str, Any] = {"groups": ["room"], "layer": await make_redis(), **arguments}
    groups = given.pop("groups")
    with pytest.raises(error, match=text):
        EventStream(request(), groups, **given)


async def test_default_layer() -> None:
    """Without an argument it is the layer of the default alias."""
    assert isinstance(EventStream(request(), ["room"]), EventStream)
