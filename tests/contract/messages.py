"""What may be in a message, how it arrives, and what is refused at the sender."""

import collections
import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Any

import pytest
from channels.exceptions import MessageTooLarge
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe

from tests.contract import (
    MakeLayer,
    MakeSpecifiedLayer,
    Message,
    assert_nothing_waits,
    calls,
    members_of,
    note,
    receive,
    receive_many,
    short,
)


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
    pytest.param(Plain(), id="object"),
    pytest.param(Plain, id="class"),
    pytest.param(Point(), id="dataclass"),
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
    pytest.param((number for number in (1, 2)), id="generator"),
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
        [None, "text", b"bytes", 5, [("type", "test")], ["type"], pytest.param(object(), id="object")],
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
