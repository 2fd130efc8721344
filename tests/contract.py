"""
The contract of a channel layer: every rule that a bus must keep, as classes of tests.

A bus's own test module supplies the fixture `make_layer` (see `MakeLayer`) and binds the rules by
subclassing::

    class TestGroups(contract.Groups): ...

Classes named `Specified...` hold what the Channel Layer Specification leaves no choice about; they also run
on `InMemoryChannelLayer`. Their subclasses without that prefix add what this project's design promises on
every bus. Classes named `Shared...` need two processes that share a prefix, which in one loop are two layers.
"""

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import itertools
import random
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import ChannelClosed, ChannelLayerError, LayerClosed, StillFull

Message = dict[str, Any]
T = TypeVar("T")
Call = Callable[[], Awaitable[object]]

DEADLINE = 20.0
"""Seconds after which something that should have happened is called missing."""

POLL = 0.01
"""Seconds between two looks at something of which only time can tell."""


class SpecifiedLayer(Protocol):
    """What the specification asks of any channel layer."""

    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...
    async def flush(self) -> None: ...


class MakeSpecifiedLayer(Protocol):
    """
    Make a layer of the bus under test with `config` on top of the test's own; it is closed when the test
    ends.
    """

    async def __call__(self, **config: Any) -> SpecifiedLayer: ...


class MakeLayer(Protocol):
    """The same for this project's layer: every layer made in one test shares one prefix of the test's own."""

    async def __call__(self, **config: Any) -> AsyncQueueChannelLayer: ...


class Publish(Protocol):
    """PUBLISH bytes on a topic of the test's prefix; returns how many connections got them."""

    def __call__(self, topic: str, payload: str | bytes) -> int: ...


@asynccontextmanager
async def layers(**defaults: Any) -> AsyncGenerator[MakeLayer, None]:
    """The fixture `make_layer` of a bus whose CONFIG is `defaults`; every layer made is closed at the end."""
    made: list[AsyncQueueChannelLayer] = []

    async def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        layer = AsyncQueueChannelLayer(**{**defaults, **config})
        made.append(layer)
        return layer

    try:
        yield make_layer
    finally:
        async with asyncio.timeout(DEADLINE):
            for layer in made:
                await layer.close()


# What the rules are written with.

MARKER: Message = {"type": "test.marker"}


def note(n: int) -> Message:
    """A small message that can be told from its neighbours."""
    return {"type": "test.note", "n": n}


def notes(count: int) -> list[Message]:
    """The messages `note(0)` to `note(count - 1)`."""
    return [note(n) for n in range(count)]


async def receive(layer: SpecifiedLayer, channel: str) -> Message:
    """The next message on `channel`; a failure if none comes."""
    async with asyncio.timeout(DEADLINE):
        return await layer.receive(channel)


async def receive_many(layer: SpecifiedLayer, channel: str, count: int) -> list[Message]:
    """The next `count` messages on `channel`, in order."""
    return [await receive(layer, channel) for _ in range(count)]


async def assert_nothing_waits(layer: SpecifiedLayer, channel: str) -> None:
    """Assert that `channel` is empty: the next message out of it is the one put in now."""
    await layer.send(channel, MARKER)
    assert await receive(layer, channel) == MARKER


async def steps(count: int) -> None:
    """Let the event loop turn `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def started(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of `coroutine` that has run up to where it waits."""
    task = asyncio.create_task(coroutine)
    await steps(5)
    return task


async def ended(task: asyncio.Task[T]) -> T | None:
    """The result of `task`, or None if it was cancelled."""
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([task])
    return None if task.cancelled() else task.result()


async def eventually(predicate: Callable[[], object], what: str = "it", within: float = DEADLINE) -> None:
    """Return when `predicate()` is true; fail after `within` seconds. For what no event announces."""
    deadline = asyncio.get_running_loop().time() + within
    while not predicate():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"{what} did not happen within {within} s")
        await asyncio.sleep(POLL)


async def time_passes(seconds: float) -> None:
    """For expiry alone, where the passing of time is the event."""
    await asyncio.sleep(seconds)


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The codes of what the package logged, in order; asyncio's own lines are none of our concern."""
    records = [record for record in caplog.records if record.name.startswith("channels_asyncq")]
    return [record.__dict__["code"] for record in records]


def calls(*each: Call) -> tuple[Call, ...]:
    """The calls one rule holds for, as they are; it gives lambdas their type."""
    return each


async def every(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """All results; a failure if one does not come."""
    async with asyncio.timeout(DEADLINE):
        return list(await asyncio.gather(*awaitables))


async def channel_of(layer: SpecifiedLayer, kind: str) -> str:
    """
    A channel to read from: one of the layer's own (`specific`), or one that any process may read
    (`normal`).
    """
    return await layer.new_channel() if kind == "specific" else "jobs"


async def members_of(layer: SpecifiedLayer, group: str, count: int) -> list[str]:
    """`count` new channels, all in `group`."""
    channels = [await layer.new_channel() for _ in range(count)]
    await every(layer.group_add(group, channel) for channel in channels)
    return channels


def dropped(layer: AsyncQueueChannelLayer) -> int:
    """How many messages the layer dropped in all, whatever the reason."""
    return sum(layer.statistics().dropped.values())


def queued(layer: AsyncQueueChannelLayer, channel: str) -> int:
    """How many messages wait in one of the layer's channels."""
    queues: dict[str, int] = dict(layer.statistics().queued)
    return queues.get(channel, 0)


def short(value: object) -> str:
    """A test's id for a value."""
    return repr(value)[:40]


both_kinds = pytest.mark.parametrize("kind", ["specific", "normal"])


# Names


class SpecifiedNames:
    """What may be the name of a channel or a group."""

    @pytest.mark.parametrize("name", ["room", "a", "A9", "chat-room_1.x", "0", "-", ".", "_", "n" * 99])
    async def test_valid_names(self, make_layer: MakeSpecifiedLayer, name: str) -> None:
        """ASCII letters, digits, hyphens, underscores and periods make a channel name and a group name."""
        layer = await make_layer()
        await layer.send(name, note(1))
        assert await receive(layer, name) == note(1)
        member = await layer.new_channel()
        await layer.group_add(name, member)
        await layer.group_send(name, note(2))
        assert await receive(layer, member) == note(2)
        await layer.group_discard(name, member)

    @pytest.mark.parametrize(
        "name", ["", " ", "a b", "raum:1", "a/b", "räume", "a!b!c", "!", "!a", "a?b", "a*", "a\tb", "a{b}"]
    )
    async def test_invalid_channel_names(self, make_layer: MakeSpecifiedLayer, name: str) -> None:
        """Any other channel name is a TypeError, whatever one tries to do with it."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.send(name, note(1))
        with pytest.raises(TypeError):
            await receive(layer, name)
        with pytest.raises(TypeError):
            await layer.group_add("room", name)
        with pytest.raises(TypeError):
            await layer.group_discard("room", name)
        await assert_nothing_waits(layer, member)

    @pytest.mark.parametrize("name", ["", "a b", "raum:1", "räume", "a!b", "a!", "a?", "a*", "a{b}"])
    async def test_invalid_group_names(self, make_layer: MakeSpecifiedLayer, name: str) -> None:
        """Any other group name is a TypeError, and so is one with an exclamation mark."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.group_add(name, member)
        with pytest.raises(TypeError):
            await layer.group_discard(name, member)
        with pytest.raises(TypeError):
            await layer.group_send(name, note(1))

    @pytest.mark.parametrize("name", [None, 5, 1.5, b"room", ["room"], ("room",), object()], ids=repr)
    async def test_names_that_are_no_str(self, make_layer: MakeSpecifiedLayer, name: Any) -> None:
        """A name of another type is a TypeError."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.send(name, note(1))
        with pytest.raises(TypeError):
            await receive(layer, name)
        with pytest.raises(TypeError):
            await layer.group_add(name, member)
        with pytest.raises(TypeError):
            await layer.group_add("room", name)
        with pytest.raises(TypeError):
            await layer.group_send(name, note(1))

    async def test_new_channel_names(self, make_layer: MakeSpecifiedLayer) -> None:
        """new_channel() gives valid names with one exclamation mark, never the same twice."""
        layer = await make_layer()
        names = [await layer.new_channel() for _ in range(50)]
        assert len(set(names)) == 50
        for name in names:
            assert re.fullmatch(r"[A-Za-z0-9._-]+![A-Za-z0-9._-]+", name)
            assert len(name) <= 100


class Names(SpecifiedNames):
    """Where the regular expressions of Channels are laxer or stricter than the specification."""

    @pytest.mark.parametrize(
        "name", ["room\n", "room\u0661", "raum\u0967", "room!x\n", "room!\u0661", "room!ä"]
    )
    async def test_channel_names_that_only_look_valid(self, make_layer: MakeLayer, name: str) -> None:
        """
        A trailing newline, digits of other alphabets and letters beyond ASCII are refused, also after the
        `!`.
        """
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.send(name, note(1))
        with pytest.raises(TypeError):
            await receive(layer, name)
        with pytest.raises(TypeError):
            await layer.group_add("room", name)

    @pytest.mark.parametrize("name", ["room\n", "room\u0661", "raum\u0967"])
    async def test_group_names_that_only_look_valid(self, make_layer: MakeLayer, name: str) -> None:
        """The same for groups."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.group_add(name, member)
        with pytest.raises(TypeError):
            await layer.group_send(name, note(1))

    async def test_names_of_100_bytes(self, make_layer: MakeLayer) -> None:
        """100 bytes are a name, as the specification wants."""
        layer = await make_layer()
        name = "n" * 100
        await layer.send(name, note(1))
        assert await receive(layer, name) == note(1)
        member = await layer.new_channel()
        await layer.group_add(name, member)
        await layer.group_send(name, note(2))
        assert await receive(layer, member) == note(2)

    async def test_a_name_too_long_is_reported_as_too_long(self, make_layer: MakeLayer) -> None:
        """The error for a name of valid characters but wrong length speaks of the length."""
        layer = await make_layer()
        member = await layer.new_channel()
        for attempt in calls(
            lambda: layer.send("n" * 2000, note(1)),
            lambda: layer.group_send("n" * 2000, note(1)),
            lambda: layer.group_add("n" * 2000, member),
        ):
            with pytest.raises(TypeError, match=r"2000|long|length"):
                await attempt()

    async def test_an_invalid_name_is_quoted(self, make_layer: MakeLayer) -> None:
        """The error for invalid characters names the value."""
        layer = await make_layer()
        with pytest.raises(TypeError, match="so bad"):
            await layer.send("so bad", note(1))

    @pytest.mark.parametrize("exclude", ["room", [5], [None], 5], ids=repr)
    async def test_exclude_that_is_no_list_of_names(self, make_layer: MakeLayer, exclude: Any) -> None:
        """`exclude` is an iterable of channel names: anything else, a single str too, is a TypeError."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.group_send("room", note(1), exclude=exclude)


# Messages


class Plain:
    """An object that cannot travel."""


@dataclasses.dataclass
class Point:
    """A dataclass is such an object too: nobody could say what it arrives as."""

    x: int = 1


class Colour(enum.Enum):
    """Enum members travel as their value."""

    RED = "red"


class Level(enum.IntEnum):
    """So do members that are ints themselves."""

    HIGH = 3


Pair = collections.namedtuple("Pair", "left right")


class SpecifiedMessages:
    """What the specification allows in a message arrives."""

    @pytest.mark.parametrize(
        "value",
        [
            "text",
            "",
            "ünïcödé \U0001f600",
            b"bytes \x00\xff",
            b"",
            0,
            -1,
            2**63 - 1,
            -(2**63),
            1.5,
            -0.0,
            float("inf"),
            True,
            False,
            None,
            [],
            {},
            [1, [2, ["three"]], {"four": 4.0}],
            {"deep": {"deeper": [{"deepest": None}]}},
        ],
        ids=repr,
    )
    async def test_values_arrive_equal(self, make_layer: MakeSpecifiedLayer, value: object) -> None:
        """Every type the specification lists arrives equal, by send and by group_send."""
        layer = await make_layer()
        channel = await layer.new_channel()
        message = {"type": "test.value", "value": value}
        await layer.send(channel, message)
        assert await receive(layer, channel) == message
        await layer.group_add("room", channel)
        await layer.group_send("room", message)
        arrived = await receive(layer, channel)
        assert arrived == message
        assert type(arrived["value"]) is type(value)

    async def test_one_megabyte(self, make_layer: MakeSpecifiedLayer) -> None:
        """A message of 1 MB travels, on every path."""
        layer = await make_layer()
        channel = await layer.new_channel()
        message = {"type": "test.value", "value": "x" * 1_000_000}
        await layer.group_add("room", channel)
        for send in calls(
            lambda: layer.send(channel, message),
            lambda: layer.group_send("room", message),
        ):
            await send()
            assert await receive(layer, channel) == message
        await layer.send("jobs", message)
        assert await receive(layer, "jobs") == message

    async def test_sender_may_change_its_message_afterwards(self, make_layer: MakeSpecifiedLayer) -> None:
        """What the sender does to its dict after send() has returned does not reach the receiver."""
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        message = {"type": "test.value", "value": [1]}
        await layer.send(channel, message)
        await layer.group_send("room", message)
        message["value"] = [2]
        message["type"] = "changed"
        assert await receive_many(layer, channel, 2) == [{"type": "test.value", "value": [1]}] * 2

    async def test_each_receiver_owns_its_message(self, make_layer: MakeSpecifiedLayer) -> None:
        """What one member does to its dict does not reach another's."""
        layer = await make_layer()
        first, second = await members_of(layer, "room", 2)
        await layer.group_send("room", {"type": "test.value", "value": {"list": [1]}})
        mine = await receive(layer, first)
        mine["value"]["list"].append(2)
        mine.clear()
        assert await receive(layer, second) == {"type": "test.value", "value": {"list": [1]}}


BEYOND_THE_SPECIFICATION: list[tuple[object, object]] = [
    ((1, 2), [1, 2]),
    (((1,), {"a": (2,)}), [[1], {"a": [2]}]),
    (Pair(1, 2), [1, 2]),
    (datetime.datetime(2024, 2, 29, 12, 30, 1, 5), datetime.datetime(2024, 2, 29, 12, 30, 1, 5)),
    (
        datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
        datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
    ),
    (
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    ),
    (datetime.date(2024, 2, 29), datetime.date(2024, 2, 29)),
    (datetime.time(12, 30, 1, 5), datetime.time(12, 30, 1, 5)),
    (datetime.timedelta(days=-1, microseconds=1), datetime.timedelta(days=-1, microseconds=1)),
    (uuid.UUID(int=5), uuid.UUID(int=5)),
    (decimal.Decimal("1.10"), decimal.Decimal("1.10")),
    (decimal.Decimal("-Infinity"), decimal.Decimal("-Infinity")),
    ({1, 2}, {1, 2}),
    (set(), set()),
    (frozenset({"a"}), frozenset({"a"})),
    (lazystr("lazy"), "lazy"),
    (mark_safe("<b>"), "<b>"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    ({uuid.UUID(int=5), (1, 2)}, None),
]

CANNOT_TRAVEL: list[object] = [
    Plain(),
    Plain,
    Point(),
    print,
    1j,
    2**64,
    -(2**63) - 1,
    10**40,
    {1: "int key"},
    {b"bytes": "key"},
    {None: "key"},
    {("a",): "key"},
    {1.5: "key"},
    (number for number in (1, 2)),
    "half a surrogate pair: \ud800",
]


class Messages(SpecifiedMessages):
    """What else arrives, and what is refused at the sender with a word about where it is."""

    @pytest.mark.parametrize(
        ("value", "arrives_as"),
        [case for case in BEYOND_THE_SPECIFICATION if case[1] is not None],
        ids=short,
    )
    async def test_values_of_django_code_arrive_equal(
        self, make_layer: MakeLayer, value: object, arrives_as: object
    ) -> None:
        """
        Tuples become lists; dates, UUIDs, Decimals, sets and lazy strings arrive equal, on every path, at
        any depth.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        message = {"type": "test.value", "value": value, "deep": [{"value": value}]}
        expected = {"type": "test.value", "value": arrives_as, "deep": [{"value": arrives_as}]}
        await layer.send(channel, message)
        await layer.group_send("room", message)
        await layer.send("jobs", message)
        for source in (channel, channel, "jobs"):
            arrived = await receive(layer, source)
            assert arrived == expected
            assert type(arrived["value"]) is type(arrives_as)
            assert type(arrived["deep"][0]["value"]) is type(arrives_as)

    @pytest.mark.parametrize("value", CANNOT_TRAVEL, ids=short)
    async def test_what_cannot_travel_is_refused_at_the_sender(
        self, make_layer: MakeLayer, value: object
    ) -> None:
        """
        The TypeError names the path of keys to what cannot travel, on every path, and the layer goes on.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        message = {"type": "test.value", "user": {"id": value}}
        for send in calls(
            lambda: layer.send(channel, message),
            lambda: layer.send("jobs", message),
            lambda: layer.group_send("room", message),
            lambda: layer.group_send("empty", message),
        ):
            with pytest.raises(TypeError, match=r"\[?'?\"?user'?\"?\]?.*id"):
                await send()
        await layer.group_send("room", note(1))
        assert await receive(layer, channel) == note(1)
        await assert_nothing_waits(layer, channel)

    async def test_what_cannot_travel_in_a_list_is_named_by_its_index(self, make_layer: MakeLayer) -> None:
        """Places in lists are part of the path."""
        layer = await make_layer()
        with pytest.raises(TypeError, match=r"rows.*\[1\].*owner"):
            await layer.group_send("room", {"type": "test.value", "rows": [{"owner": 1}, {"owner": Plain()}]})

    async def test_ints_between_signed_and_unsigned(self, make_layer: MakeLayer) -> None:
        """
        An int that only an unsigned 64-bit number holds is refused by the sender or arrives equal: never
        another.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        message = {"type": "test.value", "value": 2**63}
        try:
            await layer.send(channel, message)
        except TypeError:
            await assert_nothing_waits(layer, channel)
        else:
            assert await receive(layer, channel) == message

    async def test_a_message_inside_itself(self, make_layer: MakeLayer) -> None:
        """A message without end is an error at the sender, and the layer goes on."""
        layer = await make_layer()
        channel = await layer.new_channel()
        endless: Message = {"type": "test.value"}
        endless["again"] = endless
        deep: list[Any] = []
        for _ in range(50_000):
            deep = [deep]
        for message in (endless, {"type": "test.value", "deep": deep}):
            with pytest.raises((TypeError, ValueError)):
                await layer.send(channel, message)
        await assert_nothing_waits(layer, channel)

    @pytest.mark.parametrize(
        "message",
        [None, "text", b"bytes", 5, [("type", "test")], ["type"], object()],
        ids=short,
    )
    async def test_messages_that_are_no_dict(self, make_layer: MakeLayer, message: Any) -> None:
        """A message is a dict; anything else is a TypeError, on every path."""
        layer = await make_layer()
        channel = await layer.new_channel()
        for send in calls(
            lambda: layer.send(channel, message),
            lambda: layer.send("jobs", message),
            lambda: layer.group_send("room", message),
        ):
            with pytest.raises(TypeError, match="dict"):
                await send()
        await assert_nothing_waits(layer, channel)

    async def test_a_message_without_keys(self, make_layer: MakeLayer) -> None:
        """An empty dict is a message like any other."""
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.send(channel, {})
        assert await receive(layer, channel) == {}

    async def test_twenty_megabytes(self, make_layer: MakeLayer) -> None:
        """
        A message beyond `max_message_size` raises MessageTooLarge at the sender on every path; the layer
        goes on.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        message = {"type": "test.value", "value": "x" * 20_000_000}
        for send in calls(
            lambda: layer.send(channel, message),
            lambda: layer.send("jobs", message),
            lambda: layer.group_send("room", message),
            lambda: layer.group_send("empty", message),
        ):
            with pytest.raises(MessageTooLarge):
                await send()
        await layer.group_send("room", note(1))
        assert await receive(layer, channel) == note(1)

    async def test_max_message_size(self, make_layer: MakeLayer) -> None:
        """`max_message_size` is what decides."""
        layer = await make_layer(max_message_size=2000)
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "test.value", "value": "x" * 1000})
        await receive(layer, channel)
        with pytest.raises(layer.MessageTooLarge):
            await layer.send(channel, {"type": "test.value", "value": "x" * 2000})

    async def test_json_keeps_to_the_types_of_json(self, make_layer: MakeLayer) -> None:
        """
        `serializer_format="json"` carries what JSON has and refuses the rest at the sender, naming its
        path.
        """
        layer = await make_layer(serializer_format="json")
        channel = await layer.new_channel()
        message = {"type": "test.value", "value": ["ü", 1, 1.5, True, None, {"a": []}]}
        await layer.group_add("room", channel)
        await layer.send(channel, message)
        await layer.group_send("room", message)
        assert await receive_many(layer, channel, 2) == [message, message]
        with pytest.raises(TypeError, match="value"):
            await layer.send(channel, {"type": "test.value", "value": Plain()})


# Channels


class SpecifiedChannels:
    """First in, first out, at most once."""

    @both_kinds
    async def test_a_message_waits_for_its_reader(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """What is sent before anybody reads is received."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        assert await receive(layer, channel) == note(1)

    @both_kinds
    async def test_a_reader_waits_for_its_message(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """What is sent while somebody waits is received."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive(layer, channel))
        assert not reader.done()
        await layer.send(channel, note(1))
        assert await reader == note(1)

    @both_kinds
    async def test_order(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """One writer, one reader: as sent."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for message in notes(80):
            await layer.send(channel, message)
        assert await receive_many(layer, channel, 80) == notes(80)

    @both_kinds
    async def test_order_while_reading(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """The same when the reader reads meanwhile."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive_many(layer, channel, 80))
        for message in notes(80):
            await layer.send(channel, message)
        assert await reader == notes(80)

    @both_kinds
    async def test_each_message_goes_to_one_reader(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """Readers that wait together get one message each, none twice."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        readers = [await started(receive(layer, channel)) for _ in range(8)]
        for message in notes(8):
            await layer.send(channel, message)
        arrived = await every(readers)
        assert sorted(message["n"] for message in arrived) == list(range(8))
        await assert_nothing_waits(layer, channel)

    async def test_channels_are_apart(self, make_layer: MakeSpecifiedLayer) -> None:
        """A message is received on the channel it was sent to and on no other."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        await layer.send(first, note(1))
        await layer.send("jobs", note(3))
        await layer.send(second, note(2))
        assert await receive(layer, second) == note(2)
        assert await receive(layer, first) == note(1)
        assert await receive(layer, "jobs") == note(3)
        for channel in (first, second, "jobs"):
            await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_capacity(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """A send to a channel that holds its capacity raises ChannelFull; each read makes room for one."""
        layer = await make_layer(capacity=3)
        channel = await channel_of(layer, kind)
        for message in notes(3):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(3))
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(4))
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(5))
        assert [message["n"] for message in await receive_many(layer, channel, 3)] == [1, 2, 4]

    @both_kinds
    async def test_expiry(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """A message that nobody read for `expiry` seconds is never delivered."""
        layer = await make_layer(expiry=0.8)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        await time_passes(1.0)
        reader = await started(receive(layer, channel))
        await layer.send(channel, note(2))
        assert await reader == note(2)

    @both_kinds
    async def test_receive_cancelled_leaves_the_channel(
        self, make_layer: MakeSpecifiedLayer, kind: str
    ) -> None:
        """A cancelled receive() does not end the channel: what comes later is received by the next one."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for n in range(3):
            reader = await started(layer.receive(channel))
            reader.cancel()
            assert await ended(reader) is None
            await layer.send(channel, note(n))
            assert await receive(layer, channel) == note(n)


class Channels(SpecifiedChannels):
    """What the design adds: names in two forms, cancellation at every point, expiry that frees places."""

    async def test_attributes(self, make_layer: MakeLayer) -> None:
        """The attributes of the specification are there."""
        layer = await make_layer(expiry=30, group_expiry=900, capacity=7)
        assert sorted(layer.extensions) == ["flush", "groups"]
        assert layer.ChannelFull is ChannelFull
        assert layer.MessageTooLarge is MessageTooLarge
        assert (layer.expiry, layer.group_expiry, layer.capacity) == (30, 900, 7)

    async def test_names_of_new_channels(self, make_layer: MakeLayer) -> None:
        """`<prefix>.<node>!<local>`: the channels of one session share what is before the `!`."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        assert first.split("!")[0] == second.split("!")[0]
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.[A-Za-z0-9_-]+![A-Za-z0-9._-]+", first)

    async def test_new_channel_by_eight_at_once(self, make_layer: MakeLayer) -> None:
        """
        Concurrent first calls of new_channel() on a fresh layer give eight channels that deliver once each.
        """
        layer = await make_layer()
        channels = await every(layer.new_channel() for _ in range(8))
        assert len(set(channels)) == 8
        await every(layer.group_add("room", channel) for channel in channels)
        await layer.group_send("room", note(1))
        for n, channel in enumerate(channels):
            await layer.send(channel, note(100 + n))
        for n, channel in enumerate(channels):
            arrived = await receive_many(layer, channel, 2)
            assert sorted(message["n"] for message in arrived) == [1, 100 + n]
            await assert_nothing_waits(layer, channel)

    async def test_receive_by_the_part_up_to_the_mark(self, make_layer: MakeLayer) -> None:
        """receive() with the name up to and including the `!` gets the messages of every channel under it."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        process = first[: first.index("!") + 1]
        await layer.send(first, note(1))
        assert await receive(layer, process) == note(1)
        reader = await started(receive(layer, process))
        await layer.send(second, note(2))
        assert await reader == note(2)
        await layer.send(process + "own.local-part", note(3))
        assert await receive(layer, process) == note(3)
        await layer.send(first, note(4))
        await layer.send(second, note(5))
        arrived = await receive_many(layer, process, 2)
        assert sorted(message["n"] for message in arrived) == [4, 5]

    async def test_both_forms_of_receive_at_once(self, make_layer: MakeLayer) -> None:
        """A reader by full name and one by the part up to `!` never both get a message."""
        layer = await make_layer()
        channel = await layer.new_channel()
        by_name = await started(layer.receive(channel))
        by_process = await started(layer.receive(channel[: channel.index("!") + 1]))
        await layer.send(channel, note(1))
        await layer.send(channel, note(2))
        arrived = await every([by_name, by_process])
        assert sorted(message["n"] for message in arrived) == [1, 2]

    async def test_a_local_part_of_ones_own(self, make_layer: MakeLayer) -> None:
        """
        The local part is the process's to choose: a name never given by new_channel() works under its
        prefix.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        own = channel[: channel.index("!") + 1] + "mine"
        await layer.send(own, note(1))
        assert await receive(layer, own) == note(1)
        await layer.group_add("room", own)
        await layer.group_send("room", note(2))
        assert await receive(layer, own) == note(2)

    async def test_full_channel_does_not_starve_its_neighbour(self, make_layer: MakeLayer) -> None:
        """Capacity counts per full name: a full channel leaves the others of its process alone."""
        layer = await make_layer(capacity=2)
        full, neighbour = await layer.new_channel(), await layer.new_channel()
        for message in notes(2):
            await layer.send(full, message)
        with pytest.raises(ChannelFull):
            await layer.send(full, note(2))
        await layer.send(neighbour, note(1))
        assert await receive(layer, neighbour) == note(1)

    @both_kinds
    async def test_capacity_by_glob_and_by_pattern(self, make_layer: MakeLayer, kind: str) -> None:
        """`channel_capacity` takes globs and compiled patterns; the first that matches decides."""
        layer = await make_layer(
            capacity=4,
            channel_capacity={re.compile(r"jo.s$"): 1, "jobs*": 3, "*!*": 2, re.compile(r".*!.*"): 3},
        )
        channel = await channel_of(layer, kind)
        capacity = 2 if kind == "specific" else 1
        for message in notes(capacity):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, MARKER)
        for message in notes(3):
            await layer.send("jobs.more", message)
        with pytest.raises(ChannelFull):
            await layer.send("jobs.more", MARKER)
        for message in notes(4):
            await layer.send("others", message)
        with pytest.raises(ChannelFull):
            await layer.send("others", MARKER)

    async def test_full_channel_names_itself(self, make_layer: MakeLayer) -> None:
        """ChannelFull says which channel is full."""
        layer = await make_layer(capacity=1)
        channel = await layer.new_channel()
        await layer.send(channel, note(1))
        with pytest.raises(ChannelFull, match=re.escape(channel)):
            await layer.send(channel, note(2))

    @both_kinds
    async def test_expired_messages_free_their_places(self, make_layer: MakeLayer, kind: str) -> None:
        """A channel full of expired messages takes new ones."""
        layer = await make_layer(capacity=2, expiry=0.8)
        channel = await channel_of(layer, kind)
        for message in notes(2):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(2))
        await time_passes(1.0)
        for message in (note(3), note(4)):
            await layer.send(channel, message)
        assert await receive_many(layer, channel, 2) == [note(3), note(4)]

    @both_kinds
    async def test_expiry_counts_from_the_send(self, make_layer: MakeLayer, kind: str) -> None:
        """Of two messages the older one expires first."""
        layer = await make_layer(expiry=1.6)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        await time_passes(1.0)
        await layer.send(channel, note(2))
        await time_passes(0.7)
        assert await receive(layer, channel) == note(2)

    @both_kinds
    async def test_receive_cancelled_at_every_step(self, make_layer: MakeLayer, kind: str) -> None:
        """
        Wherever receive() is cancelled while its message is on the way, it or the next receive() gets it,
        once.
        """
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(60):
            reader = asyncio.create_task(layer.receive(channel))
            sender = asyncio.create_task(layer.send(channel, note(turns)))
            await steps(turns)
            reader.cancel()
            await sender
            arrived = await ended(reader)
            if arrived is None:
                arrived = await receive(layer, channel)
            assert arrived == note(turns)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_waiting_receive_cancelled_at_every_step(self, make_layer: MakeLayer, kind: str) -> None:
        """The same for a receive() that has waited for long when its message is sent."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(60):
            reader = await started(layer.receive(channel))
            await steps(30)
            await layer.send(channel, note(turns))
            await steps(turns)
            reader.cancel()
            arrived = await ended(reader)
            if arrived is None:
                arrived = await receive(layer, channel)
            assert arrived == note(turns)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_one_of_two_waiting_is_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A message meant for a reader that was cancelled meanwhile goes to the other one that waits."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(40):
            first = await started(layer.receive(channel))
            second = await started(layer.receive(channel))
            await layer.send(channel, note(turns))
            await steps(turns)
            first.cancel()
            arrived = await ended(first)
            if arrived is None:
                arrived = await ended(second)
            else:
                second.cancel()
                assert await ended(second) is None
            assert arrived == note(turns)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_polling_reader_under_load(self, make_layer: MakeLayer, kind: str) -> None:
        """
        A reader that polls with wait_for() loses nothing and gets nothing twice, however the timeouts fall.
        """
        layer = await make_layer(capacity=20)
        channel = await channel_of(layer, kind)
        count = 400
        arrived: list[int] = []
        timeouts = itertools.cycle([0.0002, 0.0005, 0.001, 0.0015, 0.003])
        pauses = itertools.cycle([0, 7, 1, 25, 3, 60])

        async def poll() -> None:
            while len(arrived) < count:
                try:
                    message = await asyncio.wait_for(layer.receive(channel), next(timeouts))
                except TimeoutError:
                    continue
                arrived.append(message["n"])

        async def write() -> None:
            for message in notes(count):
                while True:
                    try:
                        await layer.send(channel, message)
                        break
                    except ChannelFull:
                        await steps(5)
                await steps(next(pauses))

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(poll(), write())
        assert arrived == list(range(count))
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_send_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A cancelled send() has sent its message once or not at all, and the layer goes on."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(0, 30, 3):
            sender = asyncio.create_task(layer.send(channel, note(turns)))
            await steps(turns)
            sender.cancel()
            await ended(sender)
            await layer.send(channel, MARKER)
            arrived = await receive(layer, channel)
            if arrived != MARKER:
                assert arrived == note(turns)
                assert await receive(layer, channel) == MARKER
        await assert_nothing_waits(layer, channel)


# Groups


class SpecifiedGroups:
    """A message to a group reaches each of its members once."""

    async def test_members_get_the_message(self, make_layer: MakeSpecifiedLayer) -> None:
        """What is sent after group_add() has returned is received by every member, once."""
        layer = await make_layer()
        members = await members_of(layer, "room", 40)
        for message in notes(3):
            await layer.group_send("room", message)
        for member in members:
            assert await receive_many(layer, member, 3) == notes(3)
            await assert_nothing_waits(layer, member)

    async def test_joining_twice_delivers_once(self, make_layer: MakeSpecifiedLayer) -> None:
        """A channel that is in the group already stays in it once."""
        layer = await make_layer()
        member = await layer.new_channel()
        await layer.group_add("room", member)
        await layer.group_add("room", member)
        await layer.group_send("room", note(1))
        await layer.group_send("room", note(2))
        assert await receive_many(layer, member, 2) == [note(1), note(2)]
        await assert_nothing_waits(layer, member)
        await layer.group_discard("room", member)
        witness = await layer.new_channel()
        await layer.group_add("room", witness)
        await layer.group_send("room", note(3))
        assert await receive(layer, witness) == note(3)
        await assert_nothing_waits(layer, member)

    async def test_discard(self, make_layer: MakeSpecifiedLayer) -> None:
        """Who has left the group gets nothing more; who stays does."""
        layer = await make_layer()
        stays, leaves = await members_of(layer, "room", 2)
        await layer.group_discard("room", leaves)
        await layer.group_send("room", note(1))
        assert await receive(layer, stays) == note(1)
        await assert_nothing_waits(layer, leaves)

    async def test_discard_of_who_is_not_there(self, make_layer: MakeSpecifiedLayer) -> None:
        """Leaving a group one is not in, or that nobody is in, does nothing."""
        layer = await make_layer()
        member, other = await layer.new_channel(), await layer.new_channel()
        await layer.group_discard("room", member)
        await layer.group_add("room", member)
        await layer.group_discard("room", other)
        await layer.group_discard("room", "jobs")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)

    async def test_coming_back(self, make_layer: MakeSpecifiedLayer) -> None:
        """Who leaves as the last one and joins again is a member again, each time."""
        layer = await make_layer()
        member = await layer.new_channel()
        for n in range(5):
            await layer.group_add("room", member)
            await layer.group_send("room", note(n))
            assert await receive(layer, member) == note(n)
            await layer.group_discard("room", member)
            await layer.group_send("room", note(100))
        await assert_nothing_waits(layer, member)

    async def test_empty_group(self, make_layer: MakeSpecifiedLayer) -> None:
        """A message to a group without members is nobody's, also not of who joins later."""
        layer = await make_layer()
        await layer.group_send("room", note(1))
        member = await layer.new_channel()
        await layer.group_add("room", member)
        await assert_nothing_waits(layer, member)

    async def test_groups_are_apart(self, make_layer: MakeSpecifiedLayer) -> None:
        """A channel in two groups gets each group's messages, a channel in one only its own's."""
        layer = await make_layer()
        first, both = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("first", first)
        await layer.group_add("first", both)
        await layer.group_add("second", both)
        await layer.group_send("first", note(1))
        assert await receive(layer, both) == note(1)
        await layer.group_send("second", note(2))
        assert await receive(layer, both) == note(2)
        assert await receive(layer, first) == note(1)
        await assert_nothing_waits(layer, first)

    async def test_group_and_channel_of_one_name(self, make_layer: MakeSpecifiedLayer) -> None:
        """A group and a channel may have the same name and nothing else in common."""
        layer = await make_layer()
        member = await layer.new_channel()
        await layer.group_add("same", member)
        await layer.send("same", note(1))
        await layer.group_send("same", note(2))
        assert await receive(layer, member) == note(2)
        assert await receive(layer, "same") == note(1)

    async def test_order_within_a_group(self, make_layer: MakeSpecifiedLayer) -> None:
        """One sender to one group: as sent, for every member."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        for message in notes(60):
            await layer.group_send("room", message)
        for member in members:
            assert await receive_many(layer, member, 60) == notes(60)

    async def test_a_full_member_is_not_the_senders_concern(self, make_layer: MakeSpecifiedLayer) -> None:
        """group_send() never raises ChannelFull: the full member misses the message, the others get it."""
        layer = await make_layer(capacity=3)
        full, empty = await members_of(layer, "room", 2)
        for message in notes(3):
            await layer.send(full, message)
        await layer.group_send("room", note(3))
        assert await receive(layer, empty) == note(3)
        assert await receive_many(layer, full, 3) == notes(3)
        await assert_nothing_waits(layer, full)

    async def test_normal_channel_as_member(self, make_layer: MakeSpecifiedLayer) -> None:
        """A normal channel may join and leave; as a member it gets one copy."""
        layer = await make_layer()
        witness = await layer.new_channel()
        await layer.group_add("room", "jobs")
        await layer.group_add("room", witness)
        await layer.group_send("room", note(1))
        assert await receive(layer, "jobs") == note(1)
        assert await receive(layer, witness) == note(1)
        await layer.group_discard("room", "jobs")
        await layer.group_send("room", note(2))
        assert await receive(layer, witness) == note(2)
        await assert_nothing_waits(layer, "jobs")

    async def test_membership_without_reading(self, make_layer: MakeSpecifiedLayer) -> None:
        """A member need not wait in receive() to be one: its messages wait for it."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for message in notes(5):
            await layer.group_send("room", message)
        assert await receive_many(layer, member, 5) == notes(5)


class Groups(SpecifiedGroups):
    """What the design adds: exclude, cancellation, races of joining and leaving, lapse."""

    async def test_exclude(self, make_layer: MakeLayer) -> None:
        """The channels in `exclude` are left out of one message, specific and normal ones alike."""
        layer = await make_layer()
        first, second, third = await members_of(layer, "room", 3)
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(1), exclude=[first, "jobs", third])
        await layer.group_send("room", note(2), exclude={second})
        await layer.group_send("room", note(3), exclude=[])
        assert await receive_many(layer, second, 2) == [note(1), note(3)]
        for member in (first, third, "jobs"):
            assert await receive_many(layer, member, 2) == [note(2), note(3)]

    async def test_exclude_of_who_is_not_there(self, make_layer: MakeLayer) -> None:
        """Excluding a channel that is no member changes nothing."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1), exclude=["elsewhere", await layer.new_channel()])
        assert await receive(layer, member) == note(1)

    async def test_a_full_normal_member_is_not_the_senders_concern(self, make_layer: MakeLayer) -> None:
        """group_send() does not raise ChannelFull for a normal channel either."""
        layer = await make_layer(capacity=2)
        (witness,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        for message in notes(2):
            await layer.send("jobs", message)
        await layer.group_send("room", note(2))
        assert await receive(layer, witness) == note(2)
        assert await receive_many(layer, "jobs", 2) == notes(2)
        await assert_nothing_waits(layer, "jobs")

    async def test_group_add_cancelled_leaves_no_half_member(self, make_layer: MakeLayer) -> None:
        """
        Wherever group_add() is cancelled, the channel is no member, and the next one to join is a whole
        one.
        """
        layer = await make_layer()
        member, witness = await layer.new_channel(), await layer.new_channel()
        for turns in range(40):
            group = f"room.{turns}"
            joining = asyncio.create_task(layer.group_add(group, member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await layer.group_add(group, witness)
            await layer.group_send(group, note(turns))
            assert await receive(layer, witness) == note(turns)
            if not joining.cancelled():
                assert await receive(layer, member) == note(turns)
            await assert_nothing_waits(layer, member)
            await layer.group_discard(group, witness)

    async def test_group_add_cancelled_and_repeated(self, make_layer: MakeLayer) -> None:
        """After a cancelled group_add() the same channel can join, and gets each message once."""
        layer = await make_layer()
        member = await layer.new_channel()
        for turns in range(40):
            group = f"room.{turns}"
            joining = asyncio.create_task(layer.group_add(group, member))
            await steps(turns)
            joining.cancel()
            await layer.group_add(group, member)
            await ended(joining)
            await layer.group_send(group, note(turns))
            assert await receive(layer, member) == note(turns)
            await assert_nothing_waits(layer, member)

    async def test_group_add_cancelled_for_a_member(self, make_layer: MakeLayer) -> None:
        """Cancelling a second group_add() does not undo the first."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for turns in range(20):
            joining = asyncio.create_task(layer.group_add("room", member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await layer.group_send("room", note(turns))
            assert await receive(layer, member) == note(turns)

    async def test_one_of_two_joins_is_cancelled(self, make_layer: MakeLayer) -> None:
        """Two concurrent group_add() of one channel: cancelling one leaves the other's promise as it is."""
        layer = await make_layer()
        member = await layer.new_channel()
        for turns, which in itertools.product(range(20), range(2)):
            group = f"room.{turns}.{which}"
            joins = [asyncio.create_task(layer.group_add(group, member)) for _ in range(2)]
            await steps(turns)
            joins[which].cancel()
            await every([joins[1 - which]])
            await layer.group_send(group, note(turns))
            assert await receive(layer, member) == note(turns)
            await ended(joins[which])
            await layer.group_send(group, note(turns + 1))
            assert await receive(layer, member) == note(turns + 1)
            await assert_nothing_waits(layer, member)

    async def test_one_joins_as_the_last_one_leaves(self, make_layer: MakeLayer) -> None:
        """
        group_add() of one channel and group_discard() of the only other at once: the group has its new
        member.
        """
        layer = await make_layer()
        leaves, joins = await layer.new_channel(), await layer.new_channel()
        for turns, first in itertools.product(range(15), range(2)):
            group = f"room.{turns}.{first}"
            await layer.group_add(group, leaves)
            calls = [layer.group_discard(group, leaves), layer.group_add(group, joins)]
            earlier = asyncio.create_task(calls[first])
            await steps(turns)
            later = asyncio.create_task(calls[1 - first])
            await every([earlier, later])
            await layer.group_send(group, note(turns))
            assert await receive(layer, joins) == note(turns)
            await assert_nothing_waits(layer, leaves)

    async def test_the_last_word_wins(self, make_layer: MakeLayer) -> None:
        """Joining and leaving in quick succession ends as the last call says."""
        layer = await make_layer()
        member, witness = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("room", witness)
        for last in ("add", "discard") * 5:
            calls = [asyncio.create_task(layer.group_add("room", member))]
            await steps(1)
            calls.append(asyncio.create_task(layer.group_discard("room", member)))
            await steps(1)
            if last == "add":
                calls.append(asyncio.create_task(layer.group_add("room", member)))
            await every(calls)
            await layer.group_send("room", note(1))
            assert await receive(layer, witness) == note(1)
            if last == "add":
                assert await receive(layer, member) == note(1)
            await assert_nothing_waits(layer, member)

    async def test_many_join_at_once(self, make_layer: MakeLayer) -> None:
        """Hundreds of joins of new groups and of one group in flight together all hold when they return."""
        layer = await make_layer()
        members = [await layer.new_channel() for _ in range(100)]
        await every(
            layer.group_add(group, member)
            for n, member in enumerate(members)
            for group in ("room", f"own.{n}")
        )
        await layer.group_send("room", note(1000))
        await every(layer.group_send(f"own.{n}", note(n)) for n in range(100))
        for n, member in enumerate(members):
            arrived = await receive_many(layer, member, 2)
            assert sorted(message["n"] for message in arrived) == [n, 1000]

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_order_of_joining_leaving_and_cancelling(
        self, make_layer: MakeLayer, seed: int
    ) -> None:
        """
        Whatever was joined, left and cancelled meanwhile: in the end a channel is where its last call put
        it.
        """
        layer = await make_layer()
        chance = random.Random(seed)
        channels = [await layer.new_channel() for _ in range(3)]
        groups = [f"room.{n}" for n in range(3)]

        async def wander(group: str, channel: str) -> bool:
            """
            Join and leave at random, one call after the other; True if the channel is a member in the end.
            """
            is_member = False
            for _ in range(25):
                is_join = chance.random() < 0.6
                call = asyncio.create_task(
                    (layer.group_add if is_join else layer.group_discard)(group, channel)
                )
                if chance.random() < 0.4:
                    await steps(chance.randrange(30))
                    call.cancel()
                await ended(call)
                if not call.cancelled():
                    is_member = is_join
                elif not is_join:
                    # A cancelled group_discard() may have come to pass or not.
                    await layer.group_discard(group, channel)
                    is_member = False
            return is_member

        pairs = list(itertools.product(groups, channels))
        members = dict(zip(pairs, await every(wander(*pair) for pair in pairs), strict=True))
        for n, group in enumerate(groups):
            await layer.group_send(group, note(n))
            witness = await layer.new_channel()
            await layer.group_add(group, witness)
            await layer.group_send(group, note(100 + n))
            await receive(layer, witness)
        for channel in channels:
            expected = [n for n, group in enumerate(groups) if members[group, channel]]
            arrived = await receive_many(layer, channel, 2 * len(expected))
            assert sorted(message["n"] for message in arrived) == expected + [100 + n for n in expected]
            await assert_nothing_waits(layer, channel)

    async def test_group_expiry(self, make_layer: MakeLayer) -> None:
        """Membership lapses `group_expiry` after the last group_add() when nothing is received."""
        layer = await make_layer(group_expiry=1.4)
        forgotten, renewed = await members_of(layer, "room", 2)
        await layer.group_add("room", "jobs")
        await time_passes(0.9)
        await layer.group_add("room", renewed)
        await time_passes(0.6)
        await layer.group_send("room", note(1))
        assert await receive(layer, renewed) == note(1)
        await assert_nothing_waits(layer, forgotten)
        await assert_nothing_waits(layer, "jobs")

    async def test_receiving_keeps_membership(self, make_layer: MakeLayer) -> None:
        """A member that receives does not lapse, however long ago it joined."""
        layer = await make_layer(group_expiry=1.5)
        (member,) = await members_of(layer, "room", 1)
        for n in range(3):
            await time_passes(0.6)
            await layer.group_send("room", note(n))
            assert await receive(layer, member) == note(n)

    async def test_group_send_cancelled(self, make_layer: MakeLayer) -> None:
        """A cancelled group_send() has sent its message once or not at all, and the layer goes on."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for turns in range(0, 30, 3):
            sender = asyncio.create_task(layer.group_send("room", note(turns)))
            await steps(turns)
            sender.cancel()
            await ended(sender)
            await layer.group_send("room", MARKER)
            arrived = await receive(layer, member)
            if arrived != MARKER:
                assert arrived == note(turns)
                assert await receive(layer, member) == MARKER

    async def test_burst_with_readers_that_keep_up(self, make_layer: MakeLayer) -> None:
        """32 sends in flight to 40 members of capacity 100 who read: of 1000 messages nobody misses one."""
        asyncio.get_running_loop().set_debug(False)
        layer = await make_layer(capacity=100)
        await burst(layer, layer)


async def burst(writer: AsyncQueueChannelLayer, reader: AsyncQueueChannelLayer, count: int = 1000) -> None:
    """
    Send `count` messages, 32 in flight, to 40 members who read; assert that all got all, in order per
    sender.
    """
    members = await members_of(reader, "room", 40)
    readers = [asyncio.create_task(receive_many(reader, member, count)) for member in members]
    numbers = iter(range(count))

    async def write() -> None:
        for n in numbers:
            await writer.group_send("room", note(n))

    await asyncio.gather(*(write() for _ in range(32)))
    arrived = await asyncio.gather(*readers)
    assert all(sorted(message["n"] for message in messages) == list(range(count)) for messages in arrived)
    assert all(messages == arrived[0] for messages in arrived), "one order per group"
    assert dropped(reader) == 0


# Flush


class SpecifiedFlush:
    """A blank state."""

    async def test_flush(self, make_layer: MakeSpecifiedLayer) -> None:
        """After flush() there are no messages and no groups."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(1))
        await layer.send("jobs", note(2))
        await layer.send(member, note(3))
        await layer.flush()
        await layer.group_send("room", note(4))
        await assert_nothing_waits(layer, member)
        await assert_nothing_waits(layer, "jobs")

    async def test_usable_after_flush(self, make_layer: MakeSpecifiedLayer) -> None:
        """Old and new channels, groups and normal channels work after flush()."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for n in range(3):
            await layer.flush()
            for channel in (member, await layer.new_channel(), "jobs"):
                await layer.group_add("room", channel)
                await layer.group_send("room", note(n))
                assert await receive(layer, channel) == note(n)
                await layer.group_discard("room", channel)


class Flush(SpecifiedFlush):
    """What the design adds."""

    async def test_flush_of_a_fresh_layer(self, make_layer: MakeLayer) -> None:
        """flush() is fine as the first call of all."""
        layer = await make_layer()
        await layer.flush()
        await layer.send("jobs", note(1))
        assert await receive(layer, "jobs") == note(1)

    @both_kinds
    async def test_waiting_reader_survives_flush(self, make_layer: MakeLayer, kind: str) -> None:
        """A receive() that waits during flush() goes on waiting and gets the next message."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive(layer, channel))
        await layer.flush()
        assert not reader.done()
        await layer.send(channel, note(1))
        assert await reader == note(1)

    async def test_flush_leaves_nothing_in_the_statistics(self, make_layer: MakeLayer) -> None:
        """Nothing is queued and no group has members after flush()."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.send(member, note(1))
        await layer.flush()
        assert queued(layer, member) == 0
        assert layer.statistics().groups == 0


# Closed queues


class Closing:
    """`close()` and `close_channel()`: waiting receivers end, nothing new is accepted."""

    @both_kinds
    async def test_close_ends_waiting_receivers(self, make_layer: MakeLayer, kind: str) -> None:
        """
        Everybody who waits in receive() when the layer closes gets LayerClosed, which is a ChannelClosed.
        """
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        readers = [await started(layer.receive(channel)) for _ in range(3)]
        async with asyncio.timeout(DEADLINE):
            await layer.close()
            for reader in readers:
                with pytest.raises(LayerClosed) as raised:
                    await reader
                assert isinstance(raised.value, ChannelClosed)
                assert isinstance(raised.value, ChannelLayerError)

    async def test_close_twice(self, make_layer: MakeLayer) -> None:
        """A second close() is fine, also a concurrent one, also on a layer that was never used."""
        unused = await make_layer()
        await unused.close()
        await unused.close()
        layer = await make_layer()
        await layer.new_channel()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(layer.close(), layer.close(), layer.close())
            await layer.close()

    async def test_use_after_close(self, make_layer: MakeLayer) -> None:
        """A closed layer accepts nothing: every call raises LayerClosed."""
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.close()
        for call in calls(
            lambda: layer.send(channel, note(1)),
            lambda: layer.send("jobs", note(1)),
            lambda: layer.send_wait(channel, note(1)),
            lambda: layer.receive(channel),
            lambda: layer.receive("jobs"),
            lambda: layer.new_channel(),
            lambda: layer.group_add("room", channel),
            lambda: layer.group_send("room", note(1)),
            lambda: layer.flush(),
        ):
            with pytest.raises(LayerClosed):
                async with asyncio.timeout(DEADLINE):
                    await call()

    async def test_close_leaves_no_task(self, make_layer: MakeLayer) -> None:
        """When close() has returned, nothing of the layer runs any more."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1))
        await receive(layer, member)
        before = asyncio.current_task()
        await layer.close()
        await eventually(lambda: asyncio.all_tasks() == {before}, "the end of all tasks")

    async def test_close_channel(self, make_layer: MakeLayer) -> None:
        """A closed channel ends its receivers with ChannelClosed that names it; its neighbours go on."""
        layer = await make_layer()
        closed, neighbour = await members_of(layer, "room", 2)
        readers = [await started(layer.receive(closed)) for _ in range(2)]
        other = await started(receive(layer, neighbour))
        await layer.close_channel(closed)
        for reader in readers:
            with pytest.raises(ChannelClosed) as raised:
                await reader
            assert raised.value.channel == closed
            assert not isinstance(raised.value, LayerClosed)
        await layer.group_send("room", note(1))
        assert await other == note(1)

    async def test_close_channel_accepts_nothing_new(self, make_layer: MakeLayer) -> None:
        """
        Sending to a closed channel, reading it and joining with it raise ChannelClosed; closing it again is
        fine.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.close_channel(channel)
        await layer.close_channel(channel)
        for call in calls(
            lambda: layer.send(channel, note(1)),
            lambda: layer.send_wait(channel, note(1)),
            lambda: layer.receive(channel),
            lambda: layer.group_add("room", channel),
        ):
            with pytest.raises(ChannelClosed):
                async with asyncio.timeout(DEADLINE):
                    await call()
        await layer.group_discard("room", channel)

    async def test_closed_channel_leaves_its_groups(self, make_layer: MakeLayer) -> None:
        """A closed channel is in no group any more."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.close_channel(member)
        await layer.group_send("room", note(1))
        assert layer.statistics().groups == 0

    async def test_close_channel_that_is_invalid(self, make_layer: MakeLayer) -> None:
        """The name is checked like any other."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.close_channel("so bad")

    async def test_listen(self, make_layer: MakeLayer) -> None:
        """`async for` gives the messages in order and ends when the channel closes."""
        layer = await make_layer()
        channel = await layer.new_channel()
        arrived: list[Message] = []

        async def listen() -> None:
            async for message in layer.listen(channel):
                arrived.append(message)

        listener = await started(listen())
        for message in notes(5):
            await layer.send(channel, message)
        await eventually(lambda: len(arrived) == 5, "the fifth message")
        await layer.close_channel(channel)
        async with asyncio.timeout(DEADLINE):
            await listener
        assert arrived == notes(5)

    @both_kinds
    async def test_listen_ends_with_the_layer(self, make_layer: MakeLayer, kind: str) -> None:
        """`async for` ends without an error when the layer closes."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)

        async def listen() -> int:
            return len([message async for message in layer.listen(channel)])

        listener = await started(listen())
        await layer.close()
        async with asyncio.timeout(DEADLINE):
            assert await listener == 0

    async def test_listen_left_early(self, make_layer: MakeLayer) -> None:
        """Leaving the loop leaves the channel: what comes next is received."""
        layer = await make_layer()
        channel = await layer.new_channel()
        for message in notes(3):
            await layer.send(channel, message)
        messages: AsyncIterator[Message] = layer.listen(channel)
        async for message in messages:
            assert message == note(0)
            break
        assert await receive(layer, channel) == note(1)


class Waiting:
    """`send_wait()`: the bounded queue whose put waits for room."""

    @both_kinds
    async def test_room_is_taken_at_once(self, make_layer: MakeLayer, kind: str) -> None:
        """Where there is room, send_wait() is send()."""
        layer = await make_layer(capacity=2)
        channel = await channel_of(layer, kind)
        for message in notes(2):
            async with asyncio.timeout(DEADLINE):
                await layer.send_wait(channel, message)
        assert await receive_many(layer, channel, 2) == notes(2)

    @both_kinds
    async def test_waits_for_room(self, make_layer: MakeLayer, kind: str) -> None:
        """With the channel full it waits until a message is read, then its own is queued."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        await steps(50)
        assert not writer.done()
        assert await receive(layer, channel) == note(0)
        async with asyncio.timeout(DEADLINE):
            await writer
        assert await receive(layer, channel) == note(1)

    @both_kinds
    async def test_many_writers(self, make_layer: MakeLayer, kind: str) -> None:
        """Ten writers through one place: every message arrives once."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        writers = [asyncio.create_task(layer.send_wait(channel, message)) for message in notes(10)]
        arrived = await receive_many(layer, channel, 10)
        await every(writers)
        assert sorted(message["n"] for message in arrived) == list(range(10))
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_timeout(self, make_layer: MakeLayer, kind: str) -> None:
        """When no place came in time it raises StillFull, and the message is not sent."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        with pytest.raises(StillFull) as raised:
            async with asyncio.timeout(DEADLINE):
                await layer.send_wait(channel, note(1), timeout=0.1)
        # Both those who know send() and those who know asyncio.timeout() catch it.
        assert isinstance(raised.value, ChannelFull)
        assert isinstance(raised.value, TimeoutError)
        assert await receive(layer, channel) == note(0)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A cancelled send_wait() sends nothing and leaves its place in the line to the next."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        cancelled = await started(layer.send_wait(channel, note(1)))
        waits = await started(layer.send_wait(channel, note(2)))
        cancelled.cancel()
        await ended(cancelled)
        assert cancelled.cancelled()
        assert await receive(layer, channel) == note(0)
        await every([waits])
        assert await receive(layer, channel) == note(2)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_close_ends_who_waits(self, make_layer: MakeLayer, kind: str) -> None:
        """Closing the layer ends a waiting send_wait() with LayerClosed."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        await layer.close()
        with pytest.raises(LayerClosed):
            async with asyncio.timeout(DEADLINE):
                await writer

    async def test_close_channel_ends_who_waits(self, make_layer: MakeLayer) -> None:
        """Closing the channel ends a waiting send_wait() with ChannelClosed."""
        layer = await make_layer(capacity=1)
        channel = await layer.new_channel()
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        await layer.close_channel(channel)
        with pytest.raises(ChannelClosed):
            async with asyncio.timeout(DEADLINE):
                await writer

    @both_kinds
    async def test_expiry_makes_room(self, make_layer: MakeLayer, kind: str) -> None:
        """The place of a message that expires is a place."""
        layer = await make_layer(capacity=1, expiry=1.0)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        async with asyncio.timeout(DEADLINE):
            await layer.send_wait(channel, note(1))
        assert await receive(layer, channel) == note(1)

    async def test_bad_input(self, make_layer: MakeLayer) -> None:
        """Names and messages are checked as by send()."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.send_wait("so bad", note(1))
        with pytest.raises(TypeError, match="user"):
            await layer.send_wait("jobs", {"type": "test.value", "user": Plain()})


# Statistics


class Statistics:
    """`statistics()`: a typed snapshot."""

    async def test_fresh_layer(self, make_layer: MakeLayer) -> None:
        """A layer that was never used has figures too: noughts."""
        layer = await make_layer()
        figures = layer.statistics()
        assert (figures.channels, figures.groups, figures.delivered, figures.reconnects) == (0, 0, 0, 0)
        assert not figures.queued
        assert dropped(layer) == 0

    async def test_channels_groups_and_queues(self, make_layer: MakeLayer) -> None:
        """It counts channels, groups with members, and what waits, the longest queue first."""
        layer = await make_layer()
        first, second, third = [await layer.new_channel() for _ in range(3)]
        await layer.group_add("room", first)
        await layer.group_add("lobby", first)
        await layer.group_add("room", second)
        for channel, count in ((first, 1), (second, 3), (third, 2)):
            for message in notes(count):
                await layer.send(channel, message)
        figures = layer.statistics()
        assert figures.channels == 3
        assert figures.groups == 2
        assert list(dict(figures.queued).items()) == [(second, 3), (third, 2), (first, 1)]

    async def test_delivered(self, make_layer: MakeLayer) -> None:
        """It counts each copy that was put into a channel."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        await layer.group_send("room", note(1))
        for member in members:
            await receive(layer, member)
        await layer.send(members[0], note(2))
        await receive(layer, members[0])
        assert layer.statistics().delivered == 4

    async def test_dropped(self, make_layer: MakeLayer) -> None:
        """It counts what was dropped, by reason."""
        layer = await make_layer(capacity=1)
        members = await members_of(layer, "room", 2)
        await layer.group_send("room", note(1))
        await layer.group_send("room", note(2))
        await eventually(lambda: dropped(layer) == 2, "the second drop")
        reasons = layer.statistics().dropped
        assert set(reasons.values()) >= {2}
        assert all(isinstance(reason, str) for reason in reasons)
        assert [await receive(layer, member) for member in members] == [note(1)] * 2

    async def test_a_snapshot_stays_as_it_is(self, make_layer: MakeLayer) -> None:
        """What happens afterwards does not change it."""
        layer = await make_layer()
        channel = await layer.new_channel()
        before = layer.statistics()
        await layer.send(channel, note(1))
        assert not before.queued
        assert dict(layer.statistics().queued) == {channel: 1}


class Idle:
    """A connected session is callbacks and timers."""

    async def test_no_standing_task(self, make_layer: MakeLayer) -> None:
        """A layer in use, with members and nothing to do, runs no task."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        await layer.group_send("room", note(1))
        for member in members:
            await receive(layer, member)
        await layer.send("jobs", note(1))
        await receive(layer, "jobs")
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")


# Two processes


class SharedChannels:
    """Channels across processes."""

    async def test_send_to_a_channel_of_another_process(self, make_layer: MakeLayer) -> None:
        """A specific channel is reached from any process, in order."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        for message in notes(50):
            await writer.send(channel, message)
        assert await receive_many(reader, channel, 50) == notes(50)

    async def test_a_channel_is_reached_as_soon_as_it_has_a_name(self, make_layer: MakeLayer) -> None:
        """The first channel of a fresh process is reachable when new_channel() has returned."""
        writer = await make_layer()
        for n in range(10):
            reader = await make_layer()
            channel = await reader.new_channel()
            await writer.send(channel, note(n))
            assert await receive(reader, channel) == note(n)

    @pytest.mark.parametrize(
        ("value", "arrives_as"),
        [case for case in BEYOND_THE_SPECIFICATION if case[1] is not None],
        ids=short,
    )
    async def test_values_arrive_as_they_do_locally(
        self, make_layer: MakeLayer, value: object, arrives_as: object
    ) -> None:
        """Local and remote delivery give equal values of equal types."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        await reader.group_add("room", channel)
        message = {"type": "test.value", "value": value}
        await writer.send(channel, message)
        remote = await receive(reader, channel)
        await writer.group_send("room", message)
        remote_group = await receive(reader, channel)
        await writer.send("jobs", message)
        remote_normal = await receive(reader, "jobs")
        await reader.send(channel, message)
        local = await receive(reader, channel)
        for arrived in (remote, remote_group, remote_normal, local):
            assert arrived == {"type": "test.value", "value": arrives_as}
            assert type(arrived["value"]) is type(arrives_as)

    async def test_normal_channel_has_one_reader_per_message(self, make_layer: MakeLayer) -> None:
        """Of all readers in all processes exactly one gets each message."""
        layers = [await make_layer() for _ in range(3)]
        arrived: list[int] = []

        async def work(layer: AsyncQueueChannelLayer) -> None:
            while True:
                arrived.append((await layer.receive("jobs"))["n"])

        workers = [await started(work(layer)) for layer in layers for _ in range(2)]
        for n in range(200):
            await layers[n % 3].send_wait("jobs", note(n))
        await eventually(lambda: len(arrived) >= 200, "the last job")
        for worker in workers:
            worker.cancel()
            await ended(worker)
        assert sorted(arrived) == list(range(200))
        await assert_nothing_waits(layers[0], "jobs")

    async def test_normal_channel_waits_for_its_reader(self, make_layer: MakeLayer) -> None:
        """What was sent before the reader's process came is received by it, in order."""
        writer = await make_layer()
        for message in notes(20):
            await writer.send("jobs", message)
        await writer.close()
        reader = await make_layer()
        assert await receive_many(reader, "jobs", 20) == notes(20)

    async def test_normal_channel_expires_for_all(self, make_layer: MakeLayer) -> None:
        """A message expires for every process."""
        writer, reader = await make_layer(expiry=0.3), await make_layer(expiry=0.3)
        await writer.send("jobs", note(1))
        await time_passes(0.5)
        await assert_nothing_waits(reader, "jobs")

    async def test_normal_channel_is_full_for_all(self, make_layer: MakeLayer) -> None:
        """The capacity of a normal channel counts the messages of every process; expiry frees the places."""
        first, second = await make_layer(capacity=3, expiry=1.0), await make_layer(capacity=3, expiry=1.0)
        for layer in (first, second, first):
            await layer.send("jobs", note(1))
        for layer in (first, second):
            with pytest.raises(ChannelFull):
                await layer.send("jobs", note(2))
        await time_passes(1.2)
        for message in notes(3):
            await second.send("jobs", message)
        assert await receive_many(first, "jobs", 3) == notes(3)

    async def test_capacity_is_counted_at_once(self, make_layer: MakeLayer) -> None:
        """Concurrent sends of two processes to a channel of capacity 10: exactly ten are taken."""
        layers = [await make_layer(capacity=10) for _ in range(2)]
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(
                *(layers[n % 2].send("jobs", note(n)) for n in range(40)), return_exceptions=True
            )
        taken = [n for n, result in enumerate(results) if result is None]
        assert len(taken) == 10
        assert all(isinstance(result, ChannelFull) for result in results if result is not None)
        arrived = await receive_many(layers[0], "jobs", 10)
        assert sorted(message["n"] for message in arrived) == taken

    async def test_waiting_for_room_made_by_another_process(self, make_layer: MakeLayer) -> None:
        """send_wait() to a normal channel sees the room that another process's reader makes."""
        writer, reader = await make_layer(capacity=1), await make_layer(capacity=1)
        await writer.send("jobs", note(0))
        waits = await started(writer.send_wait("jobs", note(1)))
        assert await receive(reader, "jobs") == note(0)
        await every([waits])
        assert await receive(reader, "jobs") == note(1)

    async def test_send_wait_for_a_channel_of_another_process(self, make_layer: MakeLayer) -> None:
        """Nobody can wait for room in another process's channel: an error that says so."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        with pytest.raises(ChannelLayerError, match="another"):
            async with asyncio.timeout(DEADLINE):
                await writer.send_wait(channel, note(1))
        await assert_nothing_waits(reader, channel)

    async def test_polling_workers_in_two_processes(self, make_layer: MakeLayer) -> None:
        """Workers that poll with wait_for() lose no job and do none twice."""
        layers = [await make_layer() for _ in range(2)]
        count = 300
        arrived: list[int] = []
        timeouts = itertools.cycle([0.0002, 0.0007, 0.001, 0.002, 0.004, 0.0015, 0.003])

        async def poll(layer: AsyncQueueChannelLayer) -> None:
            while len(arrived) < count:
                try:
                    message = await asyncio.wait_for(layer.receive("jobs"), next(timeouts))
                except TimeoutError:
                    continue
                arrived.append(message["n"])

        async def write() -> None:
            for n in range(count):
                await layers[n % 2].send_wait("jobs", note(n))
                await steps(n % 40)

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(write(), *(poll(layer) for layer in layers for _ in range(2)))
        assert sorted(arrived) == list(range(count))
        await assert_nothing_waits(layers[0], "jobs")

    @pytest.mark.parametrize(("overflow", "kept"), [("drop_newest", [0, 1, 2]), ("drop_oldest", [7, 8, 9])])
    async def test_overflow_of_a_channel_of_another_process(
        self, make_layer: MakeLayer, overflow: str, kept: list[int]
    ) -> None:
        """The sender sees nothing; the receiver keeps the oldest or the newest and counts the rest."""
        reader, writer = await make_layer(capacity=3, overflow=overflow), await make_layer()
        channel = await reader.new_channel()
        for message in notes(10):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) == 7, "the seventh drop")
        assert [message["n"] for message in await receive_many(reader, channel, 3)] == kept
        await assert_nothing_waits(reader, channel)

    async def test_a_flood_of_drops_is_not_one_of_log_lines(
        self, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Hundreds of messages dropped for one reason are a few lines in the log, with an event code."""
        reader, writer = await make_layer(capacity=1), await make_layer()
        channel = await reader.new_channel()
        for message in notes(300):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) == 299, "the last drop")
        lines = [record for record in caplog.records if record.name == "channels_asyncq.loss"]
        assert 1 <= len(lines) <= 5
        assert all(getattr(line, "code", "").startswith("loss.") for line in lines)

    async def test_overflow_closes_the_channel(self, make_layer: MakeLayer) -> None:
        """With `overflow="close"` a channel that would lose a message is closed instead."""
        reader, writer = await make_layer(capacity=3, overflow="close"), await make_layer()
        channel, neighbour = await members_of(reader, "room", 2)
        for message in notes(4):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) > 0, "the overflow")
        with pytest.raises(ChannelClosed):
            await receive_many(reader, channel, 4)
        with pytest.raises(ChannelClosed):
            await reader.send(channel, note(5))
        await writer.group_send("room", note(6))
        assert await receive(reader, neighbour) == note(6)

    @both_kinds
    async def test_burst_to_one_channel(self, make_layer: MakeLayer, kind: str) -> None:
        """32 sends in flight to one channel of capacity 100 whose reader keeps up: it misses none of 2000."""
        asyncio.get_running_loop().set_debug(False)
        reader, writer = await make_layer(capacity=100), await make_layer(capacity=100)
        channel = await channel_of(reader, kind)
        numbers = iter(range(2000))

        async def read() -> list[int]:
            arrived = []
            for _ in range(2000):
                arrived.append((await receive(reader, channel))["n"])
                await steps(1)
            return arrived

        async def write() -> None:
            for n in numbers:
                if kind == "specific":
                    await writer.send(channel, note(n))
                else:
                    await writer.send_wait(channel, note(n))

        reading = asyncio.create_task(read())
        await asyncio.gather(*(write() for _ in range(32)))
        (arrived,) = await every([reading])
        assert sorted(arrived) == list(range(2000))
        assert dropped(reader) == 0

    async def test_a_channel_whose_process_is_gone(self, make_layer: MakeLayer) -> None:
        """A send to a channel that nobody reads any more is no error."""
        gone, writer = await make_layer(), await make_layer()
        channel = await gone.new_channel()
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await writer.send(channel, note(1))


class SharedGroups:
    """Groups across processes."""

    async def test_members_in_two_processes(self, make_layer: MakeLayer) -> None:
        """A message reaches the members of every process once, in one order for all."""
        layers = [await make_layer() for _ in range(3)]
        members = [(layer, member) for layer in layers for member in await members_of(layer, "room", 3)]
        await every(layers[n % 3].group_send("room", note(n)) for n in range(60))
        arrived = [await receive_many(layer, member, 60) for layer, member in members]
        assert sorted(message["n"] for message in arrived[0]) == list(range(60))
        assert all(messages == arrived[0] for messages in arrived)
        for layer, member in members:
            await assert_nothing_waits(layer, member)

    async def test_group_add_is_confirmed(self, make_layer: MakeLayer) -> None:
        """What another process sends after group_add() has returned is received."""
        reader, writer = await make_layer(), await make_layer()
        member = await reader.new_channel()
        for n in range(50):
            await reader.group_add(f"room.{n}", member)
            await writer.group_send(f"room.{n}", note(n))
            assert await receive(reader, member) == note(n)

    async def test_exclude_in_another_process(self, make_layer: MakeLayer) -> None:
        """`exclude` names channels of any process."""
        reader, writer = await make_layer(), await make_layer()
        left_out, member = await members_of(reader, "room", 2)
        (own,) = await members_of(writer, "room", 1)
        await writer.group_send("room", note(1), exclude=[left_out, own])
        await writer.group_send("room", note(2))
        assert await receive_many(reader, member, 2) == [note(1), note(2)]
        assert await receive(reader, left_out) == note(2)
        assert await receive(writer, own) == note(2)

    async def test_normal_member_gets_one_copy_in_all(self, make_layer: MakeLayer) -> None:
        """
        A normal channel in a group gets one copy of each message, however many processes read or added it.
        """
        layers = [await make_layer() for _ in range(3)]
        for layer in layers:
            await layer.group_add("room", "jobs")
        arrived: list[int] = []

        async def work(layer: AsyncQueueChannelLayer) -> None:
            while True:
                arrived.append((await layer.receive("jobs"))["n"])

        workers = [await started(work(layer)) for layer in layers]
        for n in range(30):
            await layers[n % 3].group_send("room", note(n))
        await eventually(lambda: len(arrived) >= 30, "the last job")
        for worker in workers:
            worker.cancel()
            await ended(worker)
        await assert_nothing_waits(layers[0], "jobs")
        assert sorted(arrived) == list(range(30))

    async def test_normal_member_discarded_by_another_process(self, make_layer: MakeLayer) -> None:
        """Membership of a normal channel is everybody's."""
        first, second = await make_layer(), await make_layer()
        await first.group_add("room", "jobs")
        await second.group_discard("room", "jobs")
        await first.group_send("room", note(1))
        await assert_nothing_waits(second, "jobs")

    async def test_group_add_of_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """Its owner has confirmed it when group_add() returns; group_discard() likewise."""
        owner, other, third = [await make_layer() for _ in range(3)]
        member = await owner.new_channel()
        (witness,) = await members_of(owner, "room", 1)
        await other.group_add("room", member)
        await third.group_send("room", note(1))
        assert await receive(owner, member) == note(1)
        assert await receive(owner, witness) == note(1)
        await third.group_discard("room", member)
        await other.group_send("room", note(2))
        assert await receive(owner, witness) == note(2)
        await assert_nothing_waits(owner, member)

    async def test_group_add_for_an_owner_that_is_gone(self, make_layer: MakeLayer) -> None:
        """
        A channel whose process is gone may be added and discarded: no error, after send_timeout at the
        latest.
        """
        gone, layer = await make_layer(), await make_layer(send_timeout=0.5)
        channel = await gone.new_channel()
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await layer.group_add("room", channel)
            await layer.group_discard("room", channel)
            await layer.group_send("room", note(1))

    async def test_burst_from_another_process(self, make_layer: MakeLayer) -> None:
        """32 sends in flight to 40 members of capacity 100 who read: of 2000 messages nobody misses one."""
        asyncio.get_running_loop().set_debug(False)
        await burst(await make_layer(capacity=100), await make_layer(capacity=100), count=2000)

    async def test_a_stuck_member_loses_only_its_own(self, make_layer: MakeLayer) -> None:
        """A member that does not read holds its neighbours up little, and its capacity is what it keeps."""
        reader, writer = await make_layer(capacity=50), await make_layer()
        stuck, *members = await members_of(reader, "room", 6)
        readers = [asyncio.create_task(receive_many(reader, member, 500)) for member in members]
        began = asyncio.get_running_loop().time()
        for message in notes(500):
            await writer.group_send("room", message)
        for messages in await every(readers):
            assert messages == notes(500)
        assert asyncio.get_running_loop().time() - began < 5
        await eventually(lambda: dropped(reader) == 450, "the last drop")
        assert await receive_many(reader, stuck, 50) == notes(50)
        await assert_nothing_waits(reader, stuck)

    async def test_flush_is_for_everybody(self, make_layer: MakeLayer) -> None:
        """When flush() returns, no process has a message or a group left, and every process goes on."""
        first, second = await make_layer(), await make_layer()
        (member,) = await members_of(first, "room", 1)
        await first.group_add("room", "jobs")
        await first.send(member, note(1))
        await first.send("jobs", note(2))
        await second.flush()
        await second.group_send("room", note(3))
        await assert_nothing_waits(first, member)
        await assert_nothing_waits(first, "jobs")
        await first.group_add("room", member)
        await second.group_send("room", note(4))
        assert await receive(first, member) == note(4)

    async def test_flush_returns_when_it_is_done(self, make_layer: MakeLayer) -> None:
        """The other processes are empty when flush() returns, not a moment later."""
        layers = [await make_layer() for _ in range(4)]
        members = [(layer, (await members_of(layer, "room", 1))[0]) for layer in layers]
        for _ in range(5):
            for layer, member in members:
                await layer.group_add("room", member)
                await layer.send(member, note(1))
            await layers[0].flush()
            assert [queued(layer, member) for layer, member in members] == [0] * 4
            assert [layer.statistics().groups for layer in layers] == [0] * 4

    async def test_flush_amid_traffic(self, make_layer: MakeLayer) -> None:
        """flush() returns while others send and join, and what joins after it is a member."""
        first, second = await make_layer(), await make_layer()
        member = await first.new_channel()
        is_over = False

        async def traffic() -> None:
            n = 0
            while not is_over:
                n += 1
                await first.group_add("room", member)
                await second.group_send("room", note(n))
                with contextlib.suppress(ChannelFull):
                    await second.send("jobs", note(n))

        busy = await started(traffic())
        for _ in range(10):
            async with asyncio.timeout(DEADLINE):
                await second.flush()
                await first.flush()
        is_over = True
        await every([busy])
        await first.flush()
        await first.group_add("room", member)
        await second.group_send("room", MARKER)
        assert await receive(first, member) == MARKER
        await assert_nothing_waits(second, "jobs")

    async def test_cancelled_group_add_of_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """Cancelled on its way to the owner it may have come to pass; the next word about it holds."""
        owner, other = await make_layer(), await make_layer()
        (witness,) = await members_of(owner, "room", 1)
        member = await owner.new_channel()
        for turns, last in itertools.product(range(0, 40, 4), ("add", "discard")):
            joining = asyncio.create_task(other.group_add("room", member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await (other.group_add if last == "add" else other.group_discard)("room", member)
            await other.group_send("room", note(turns))
            assert await receive(owner, witness) == note(turns)
            if last == "add":
                assert await receive(owner, member) == note(turns)
            await assert_nothing_waits(owner, member)

    async def test_sending_again_to_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """What is remembered of a name changes nothing: the order, the errors, the end of the layer."""
        here, there = await make_layer(max_message_size=2000), await make_layer()
        channels = [await there.new_channel() for _ in range(3)]
        for n in range(4):
            for channel in channels:
                await here.send(channel, note(n))
        await every(here.send(channel, note(n)) for n in range(4, 50) for channel in channels)
        for channel in channels:
            assert await receive_many(there, channel, 50) == notes(50)
        with pytest.raises(TypeError, match="value"):
            await here.send(channels[0], {"type": "test.value", "value": object()})
        with pytest.raises(here.MessageTooLarge):
            await here.send(channels[0], {"type": "test.value", "value": "x" * 2000})
        wrong: list[Any] = [[channels[0]], channels[0].encode(), channels[0] + "\ud800"]
        for name in wrong:
            with pytest.raises(TypeError, match="Channel name m"):
                await here.send(name, note(50))
        await here.close()
        with pytest.raises(LayerClosed):
            await here.send(channels[0], note(50))
        for channel in channels:
            await assert_nothing_waits(there, channel)

    async def test_names_of_another_type_beside_known_ones(self, make_layer: MakeLayer) -> None:
        """Names that were right do not let wrong ones pass."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for group, channel in (
            (["room"], member),
            (b"room", member),
            ("room\ud800", member),
            ("room", [member]),
            ("room", member.encode()),
            ("room", None),
        ):
            for attempt in (layer.group_add, layer.group_discard):
                with pytest.raises(TypeError, match="name m"):
                    await attempt(group, channel)  # type: ignore[arg-type]
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)

    async def test_prefixes_are_apart(self, make_layer: MakeLayer) -> None:
        """Layers of another prefix share nothing."""
        ours, theirs = await make_layer(), await make_layer(prefix="another-prefix")
        (own,), (foreign,) = await members_of(ours, "room", 1), await members_of(theirs, "room", 1)
        await ours.group_send("room", note(1))
        await ours.send("jobs", note(2))
        await ours.flush()
        await theirs.group_send("room", note(3))
        assert await receive(theirs, foreign) == note(3)
        await assert_nothing_waits(theirs, "jobs")
        await assert_nothing_waits(theirs, foreign)
        await assert_nothing_waits(ours, own)


ENCRYPTION = {"symmetric_encryption_keys": ["new key", "old key"]}


class SharedEncryption:
    """`symmetric_encryption_keys`: the first encrypts, all decrypt."""

    async def test_keys_rotate(self, make_layer: MakeLayer) -> None:
        """Processes with the old key, both, and the new key understand each other as far as their keys go."""
        old = await make_layer(symmetric_encryption_keys=["old key"])
        both = await make_layer(**ENCRYPTION)
        new = await make_layer(symmetric_encryption_keys=["new key"])
        (member,) = await members_of(both, "room", 1)
        for writer in (old, both, new):
            await writer.group_send("room", note(1))
            assert await receive(both, member) == note(1)
            await writer.send(member, note(2))
            assert await receive(both, member) == note(2)
            await writer.send("jobs", note(3))
            assert await receive(both, "jobs") == note(3)

    async def test_unknown_key(self, make_layer: MakeLayer) -> None:
        """What no key opens is dropped and counted; the member and the normal channel's reader live on."""
        reader = await make_layer(**ENCRYPTION)
        stranger = await make_layer(symmetric_encryption_keys=["another key"])
        (member,) = await members_of(reader, "room", 1)
        waits = await started(receive(reader, member))
        await stranger.group_send("room", note(1))
        await stranger.send(member, note(2))
        await eventually(lambda: dropped(reader) == 2, "the second drop")
        await reader.group_send("room", note(3))
        assert await waits == note(3)
        jobs = await started(receive(reader, "jobs"))
        await stranger.send("jobs", note(4))
        await eventually(lambda: dropped(reader) == 3, "the third drop")
        await reader.send("jobs", note(5))
        assert await jobs == note(5)

    async def test_unencrypted(self, make_layer: MakeLayer) -> None:
        """A process without keys is not understood by one with keys, nor the other way round; nobody dies."""
        closed, open_ = await make_layer(**ENCRYPTION), await make_layer()
        (sealed,), (plain,) = await members_of(closed, "room", 1), await members_of(open_, "room", 1)
        await open_.group_send("room", note(1))
        await eventually(lambda: dropped(closed) == 1, "the drop")
        await closed.group_send("room", note(2))
        await eventually(lambda: dropped(open_) == 1, "the drop")
        assert await receive(closed, sealed) == note(2)
        assert await receive(open_, plain) == note(1)
