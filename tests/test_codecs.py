"""Messages to bytes and back: what travels arrives equal, what cannot is named, bad bytes are told apart."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import inspect
import json
import math
import sys
import uuid
import zoneinfo
from decimal import Decimal
from typing import Any

import ormsgpack
import pytest
from django.db.models import IntegerChoices, TextChoices
from django.http import QueryDict
from django.utils.functional import lazy
from django.utils.safestring import mark_safe
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.messages.codecs import BadPayload, Codec, JsonCodec, decode_json
from channels_asyncq.messages.extensions import MAX_SET_DEPTH
from channels_asyncq.messages.plain import MAX_DEPTH

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
CODECS = {
    "msgpack": Codec(),
    "json": JsonCodec(),
}


class Colour(TextChoices):
    RED = "r", "Red"


class Size(IntegerChoices):
    BIG = 3, "Big"


class Plain(enum.Enum):
    PAIR = (1, 2)
    DAY = dt.date(2026, 1, 2)


class Letter(enum.StrEnum):
    A = "a"


class Selfish(enum.Enum):
    """An enum whose members say that they are their own value."""

    ONE = 1

    @property
    def value(self) -> Any:
        return self


class Text(str):
    """A str subclass whose str() is not a str, like SafeString."""

    def __str__(self) -> str:
        return self


class Number(int):
    pass


class Share(float):
    pass


class Blob(bytes):
    pass


class Moment(dt.datetime):
    """As freezegun and others make them."""


class Point(tuple[int, int]):
    pass


Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Record:
    name: str = "x"


def travel(value: Any, codec: Codec = CODECS["msgpack"]) -> Any:
    """Return `value` as it arrives."""
    return codec.decode(codec.encode({"value": value}))["value"]


def same(left: Any, right: Any) -> bool:
    """Equal, and of exactly the same types all the way down; NaN is the same as NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (set, frozenset)):
        return left == right and {(type(entry), entry) for entry in left} == {
            (type(entry), entry) for entry in right
        }
    if isinstance(left, (float, Decimal)):
        # Signed zeros, infinities, NaNs and a Decimal's trailing zeros all show here.
        return repr(left) == repr(right)
    if isinstance(left, dt.datetime):
        return bool(left == right) and left.utcoffset() == right.utcoffset() and left.fold == right.fold
    return bool(left == right)


# Arbitrary messages.

text = st.text(st.characters(exclude_categories=["Cs"]))
json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | text
    | st.floats(allow_nan=False).filter(math.isfinite)
)
scalars = (
    json_scalars
    | st.floats()
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.timezones(), allow_imaginary=True)
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals()
)
hashables = st.recursive(
    scalars.filter(lambda value: not value.is_nan() if isinstance(value, Decimal) else value == value),
    lambda inner: st.frozensets(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


def messages(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    nested = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )
    return st.dictionaries(text, nested, max_size=4)


@settings(deadline=None)
@given(message=messages(scalars | st.sets(hashables, max_size=3) | st.frozensets(hashables, max_size=3)))
def test_msgpack_round_trip(message: dict[str, Any]) -> None:
    """Whatever may be in a message arrives equal and of the same type."""
    codec = CODECS["msgpack"]
    assert same(codec.decode(codec.encode(message)), message)


@settings(deadline=None)
@given(message=messages(json_scalars))
def test_json_round_trip(message: dict[str, Any]) -> None:
    """JSON's types arrive equal and of the same type through JSON."""
    codec = CODECS["json"]
    assert same(codec.decode(codec.encode(message)), message)


@settings(deadline=None)
@given(message=messages(json_scalars))
def test_formats_agree(message: dict[str, Any]) -> None:
    """A message that both formats take arrives the same through either."""
    arrived = [codec.decode(codec.encode(message)) for codec in (CODECS["msgpack"], CODECS["json"])]
    assert same(*arrived)


# Types.


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        -(2**63),
        5e-324,
        math.inf,
        -0.0,
        "\x00 \U0001f600 Ελληνικά πσ",
        b"\xcf\xff\xff\xff",
        dt.datetime(2026, 1, 2, 3, 4, 5, 6),
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=7, microseconds=9))),
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN),
        dt.datetime(2026, 3, 29, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(2026, 10, 25, 2, 30, fold=1),
        dt.datetime.min,
        dt.datetime.max,
        dt.date.max,
        dt.time(23, 59, 59, 999999),
        dt.time(1, tzinfo=dt.UTC),
        dt.time(1, tzinfo=BERLIN, fold=1),
        dt.timedelta.min,
        dt.timedelta.max,
        uuid.UUID(int=2**128 - 1),
        Decimal("-0.00"),
        Decimal("sNaN12"),
        Decimal("-Infinity"),
        Decimal("1E+999999"),
        # Ids by hand where repr() has an address or the order of a set, which each worker sees otherwise.
        pytest.param({1, "a", b"b", None, (1, ("x",), frozenset({2.5}))}, id="set of several types"),
        frozenset(),
        {(dt.date(2026, 1, 2), Decimal("1.50"), uuid.UUID(int=0))},
        {"set": {1}, "list": [{frozenset({1})}]},
    ],
    ids=repr,
)
def test_value_arrives_equal(value: Any) -> None:
    """Each of these arrives equal, of the same type, fold and zone included."""
    assert same(travel(value), value)


def test_zone_arrives_by_name() -> None:
    """A datetime keeps its zone, so that arithmetic at the receiver crosses clock changes alike."""
    assert travel(dt.datetime(2026, 10, 25, 1, tzinfo=BERLIN)).tzinfo is BERLIN
    assert travel(dt.time(1, tzinfo=BERLIN)).tzinfo is BERLIN


@pytest.mark.parametrize("zone", ["Nowhere/Else", "America/New_York", "../../etc/passwd", "Europe"])
def test_zone_unknown_or_different_here_keeps_the_moment(zone: str) -> None:
    """Where the receiver has no such zone, or another offset for it, the moment is right all the same."""
    body = f"2026-01-02T00:00:00+01:00[{zone}]".encode()
    data = ormsgpack.packb({"value": ormsgpack.Ext(1, body)})
    assert Codec().decode(data)["value"] == dt.datetime(2026, 1, 1, 23, tzinfo=dt.UTC)


@pytest.mark.parametrize("name", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (Point((1, 2)), [1, 2]),
        (mark_safe("<b>"), "<b>"),
        (Text("a"), "a"),
        (Number(7), 7),
        (Share(0.5), 0.5),
        (Colour.RED, "r"),
        (Size.BIG, 3),
        (Letter.A, "a"),
        (Plain.PAIR, [1, 2]),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.Counter("aa"), {"a": 2}),
        (QueryDict("a=1&a=2&b=3"), {"a": "2", "b": "3"}),
        ({Text("key"): 1, mark_safe("safe"): {Text("deep"): 2}}, {"key": 1, "safe": {"deep": 2}}),
        ({Letter.A: 1, "b": {Colour.RED: 2}}, {"a": 1, "b": {"r": 2}}),
        (lazy(lambda: "later", str)(), "later"),
        ([lazy(lambda: mark_safe("<i>"), str)()], ["<i>"]),
    ],
    ids=repr,
)
def test_value_arrives_as_its_base(sent: Any, arrives: Any, name: str) -> None:
    """Subclasses, enum members and lazy strings arrive as the plain value they stand for, in both formats."""
    assert same(travel(sent, CODECS[name]), arrives)


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (bytearray(b"ab"), b"ab"),
        pytest.param(memoryview(b"ab"), b"ab", id="memoryview"),
        pytest.param(memoryview(b"abcd")[::2], b"ac", id="memoryview of every second byte"),
        (Blob(b"ab"), b"ab"),
        (Plain.DAY, dt.date(2026, 1, 2)),
        (Moment(2026, 1, 2, tzinfo=BERLIN), dt.datetime(2026, 1, 2, tzinfo=BERLIN)),
        pytest.param({Point((1, 2)), Pair(3, 4)}, {(1, 2), (3, 4)}, id="set of tuples"),
        pytest.param(
            {Letter.A, mark_safe("b"), lazy(lambda: "c", str)()}, {"a", "b", "c"}, id="set of strings"
        ),
    ],
    ids=repr,
)
def test_value_arrives_as_its_base_in_msgpack(sent: Any, arrives: Any) -> None:
    """The same for what JSON does not have."""
    assert same(travel(sent), arrives)


def test_sender_keeps_its_message() -> None:
    """Encoding changes nothing in the message, also where it has to be brought into another form."""
    message = {Text("key"): [mark_safe("a"), (1,)], "set": {1}}
    Codec().encode(message)
    assert [type(key) for key in message] == [Text, str]
    assert message == {"key": ["a", (1,)], "set": {1}}


def test_each_decode_gives_its_own_message() -> None:
    """Two receivers of the same bytes share nothing."""
    data = Codec().encode({"list": [1]})
    first, second = Codec().decode(data), Codec().decode(data)
    first["list"].append(2)
    assert second == {"list": [1]}


def test_plain_message_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of usual values costs one call of ormsgpack; no Python looks at its values."""
    monkeypatch.setattr("channels_asyncq.messages.codecs.plain", None)
    message = {
        "type": "chat.message",
        "id": 2**40,
        "at": dt.datetime(2026, 1, 2),
        "tags": {"a"},
        "n": [1.5, None],
    }
    assert same(travel(message), message)


# What cannot travel.


def cyclic() -> dict[str, Any]:
    message: dict[str, Any] = {"a": []}
    message["a"].append(message)
    return message


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def nested_set(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = frozenset({value})
    return value


class HashableList(list[int]):
    __hash__ = object.__hash__  # type: ignore[assignment]


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def failing() -> str:
    raise LookupError("no translation")


BAD_EVERYWHERE: list[tuple[Any, str]] = [
    ({"user": {"id": object()}}, 'message["user"]["id"]: <object object'),
    ({"a": [0, {"b": Record()}]}, 'message["a"][1]["b"]: Record(name=\'x\') (Record): Record cannot travel'),
    ({"a": (0, 1j)}, 'message["a"][1]: 1j (complex)'),
    ({"n": 2**63}, 'message["n"]: 9223372036854775808 (int): an int must fit into 64 bits'),
    ({"n": 2**64 - 1}, 'message["n"]'),
    ({"n": 2**64}, 'message["n"]'),
    ({"n": -(2**63) - 1}, 'message["n"]'),
    ({"n": [1, Number(2**63)]}, 'message["n"][1]'),
    ({1: 2}, "message: 1 (int): a key must be a str"),
    ({"a": {"b": {None: 2}}}, 'message["a"]["b"]: None (NoneType): a key must be a str'),
    ({"a": [{b"k": 2}]}, "message[\"a\"][0]: b'k' (bytes): a key must be a str"),
    ({"a": {(1, 2): 3}}, 'message["a"]: (1, 2) (tuple): a key must be a str'),
    ({"a": {True: 3}}, 'message["a"]: True (bool): a key must be a str'),
    ({Plain.DAY: 3}, "message: <Plain.DAY: datetime.date(2026, 1, 2)> (Plain): a key must be a str"),
    ({"a": {lazy(lambda: "x", str)(): 3}}, 'message["a"]'),
    ({"a": collections.defaultdict(int, {1: 2})}, 'message["a"]: 1 (int): a key must be a str'),
    ({"a": "x\ud800"}, "message[\"a\"]: 'x\\ud800' (str): a str with a lone surrogate"),
    ({"a": {"x\udfff": 1}}, 'message["a"]'),
    ({"a": lazy(failing, str)()}, 'message["a"]'),
    ({"a": lazy(lambda: [1], list)()}, 'message["a"]: [1]'),
    ({"a": Unspeakable()}, 'message["a"]: <'),
    ({"a": Selfish.ONE}, 'message["a"]: <Selfish.ONE: 1> (Selfish)'),
    ({"a" * 1000: 1j}, 'message["aaaaa'),
    ({"a\n": 1j}, 'message["a\\n"]: 1j'),
    ({"a": range(3)}, 'message["a"]: range(0, 3) (range)'),
    (cyclic(), 'message["a"][0]["a"][0]["a"][0]["a"][0]["a"]...'),
    ({"a": nested(MAX_DEPTH)}, "nested more than"),
    ({"a": nested(5000)}, "nested more than"),
]
BAD_IN_MSGPACK: list[tuple[Any, str]] = [
    ({"a": {1, (2, 2**63)}}, 'message["a"]{...}[1]: 9223372036854775808'),
    ({"a": {"x\ud800"}}, 'message["a"]{...}'),
    ({"a": frozenset({object})}, "message[\"a\"]{...}: <class 'object'> (type)"),
    ({"a": {HashableList([1])}}, 'message["a"]{...}: [1] (HashableList): is not hashable when it arrives'),
    ({"a": {nested_set(MAX_SET_DEPTH + 2)}}, 'message["a"]'),
    ({"a": {nested_set(500)}}, 'message["a"]'),
]
BAD_IN_JSON: list[tuple[Any, str]] = [
    ({"a": b"x"}, "message[\"a\"]: b'x' (bytes): JSON has no bytes"),
    ({"a": [bytearray(b"x")]}, 'message["a"][0]'),
    ({"a": memoryview(b"x")}, 'message["a"]'),
    ({"a": Blob(b"x")}, 'message["a"]'),
    ({"a": math.nan}, 'message["a"]: nan (float): JSON has no such number'),
    ({"a": -math.inf}, 'message["a"]'),
    (
        {"a": dt.datetime(2026, 1, 2)},
        'message["a"]: datetime.datetime(2026, 1, 2, 0, 0) (datetime): JSON has no such type',
    ),
    ({"a": {"b": Plain.DAY}}, 'message["a"]["b"]'),
    ({"a": dt.date(2026, 1, 2)}, 'message["a"]'),
    ({"a": dt.time(1)}, 'message["a"]'),
    ({"a": dt.timedelta(1)}, 'message["a"]'),
    ({"a": uuid.UUID(int=1)}, 'message["a"]'),
    ({"a": Decimal(1)}, 'message["a"]'),
    ({"a": {1}}, 'message["a"]'),
    ({"a": frozenset({1})}, 'message["a"]'),
]


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        *(("msgpack", *case) for case in BAD_EVERYWHERE + BAD_IN_MSGPACK),
        *(("json", *case) for case in BAD_EVERYWHERE + BAD_IN_JSON),
    ],
)
def test_what_cannot_travel_is_named(name: str, message: Any, expected: str) -> None:
    """The sender gets a TypeError with the path to the culprit, the value and its type."""
    with pytest.raises(TypeError) as caught:
        CODECS[name].encode(message)
    assert str(caught.value).startswith("message")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["msgpack", "json"])
@pytest.mark.parametrize(
    "message",
    [None, "text", b"bytes", 1, [], [("type", "x")], pytest.param(object(), id="object()")],
    ids=repr,
)
def test_message_that_is_no_dict(message: Any, name: str) -> None:
    """A message that is no dict is refused with its type."""
    with pytest.raises(TypeError, match=r"must be a dict, not .*\("):
        CODECS[name].encode(message)


def test_cycle_is_called_a_cycle() -> None:
    """A message that contains itself is told apart from one that is deep."""
    with pytest.raises(TypeError, match="contains itself"):
        Codec().encode(cyclic())


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_deepest_message_arrives(name: str) -> None:
    """The deepest message that a sender may send is one that a receiver can read, in subclasses too."""
    message = {"a": nested(MAX_DEPTH - 1)}
    assert CODECS[name].decode(CODECS[name].encode(message)) == message
    deep: Any = {}
    for _ in range(MAX_DEPTH - 1):
        deep = collections.defaultdict(list, a=deep)
    assert CODECS[name].decode(CODECS[name].encode(deep)) == deep


def test_deepest_set_arrives() -> None:
    """The deepest set that a sender may send is one that a receiver can read."""
    value = {nested_set(MAX_SET_DEPTH)}
    assert travel(value) == value


def test_sender_deep_in_its_own_stack() -> None:
    """Where the sender has used up the stack, the error is the TypeError that senders expect."""

    def deeper(frames: int) -> bytes:
        return deeper(frames - 1) if frames else CODECS["json"].encode({"a": nested(MAX_DEPTH - 1)})

    with pytest.raises(TypeError, match="nested too deep"):
        deeper(sys.getrecursionlimit() - len(inspect.stack(0)) - 100)


# Bad bytes.


def packed(value: Any) -> bytes:
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


GOOD = Codec().encode({"type": "a", "when": dt.datetime(2026, 1, 2), "tags": {1}, "n": [1.5]})
BAD_MSGPACK = {
    "empty": b"",
    "reserved": b"\xc1",
    "text": b"garbage",
    "trailing nil": GOOD + b"\xc0",
    "trailing dict": GOOD + GOOD,
    "trailing half": GOOD + b"\xcf",
    "trailing start of bytes": GOOD + b"\xc4\x09",
    "list": packed([1]),
    "nil": packed(None),
    "int key": packed({1: 2}),
    "bad utf-8": b"\x81\xa1\xff\x01",
    "huge list": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "deep": b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01",
    "unknown extension": packed({"a": ormsgpack.Ext(99, b"")}),
    "timestamp extension": b"\x81\xa1a\xd6\xff\0\0\0\0",
    "bad datetime": packed({"a": ormsgpack.Ext(1, b"yesterday")}),
    "bad date": packed({"a": ormsgpack.Ext(2, b"2026-02-30")}),
    "bad time": packed({"a": ormsgpack.Ext(3, b"25:00")}),
    "bad timedelta": packed({"a": ormsgpack.Ext(4, b"\0")}),
    "bad uuid": packed({"a": ormsgpack.Ext(5, b"\0")}),
    "bad decimal": packed({"a": ormsgpack.Ext(6, b"1.2.3")}),
    "set of nothing": packed({"a": ormsgpack.Ext(7, b"")}),
    "set of a dict": packed({"a": ormsgpack.Ext(7, packed({"a": 1}))}),
    "set of lists": packed({"a": ormsgpack.Ext(8, packed([[1]]))}),
    "set with trailing bytes": packed({"a": ormsgpack.Ext(7, packed([1]) + b"\xc0")}),
}
BAD_JSON = {
    "empty": b"",
    "garbage": b"garbage",
    "half": b'{"type": "a"',
    "trailing": b'{"type": "a"} 1',
    "list": b"[1]",
    "string": b'"type"',
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "beyond a double": b'{"a": 1e999}',
    "beyond 64 bits": b'{"a": 9223372036854775808}',
    "very long int": b'{"a": ' + b"9" * 100_000 + b"}",
    "lone surrogate": rb'{"a": "\ud800"}',
    "lone surrogate in a key": rb'{"\uDfff": 1}',
    "bad utf-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep": b'{"a": ' + b"[" * 200_000,
}


@pytest.mark.parametrize("data", BAD_MSGPACK.values(), ids=BAD_MSGPACK.keys())
def test_bad_msgpack(data: bytes) -> None:
    """Bytes that are not exactly one message raise BadPayload and nothing else."""
    with pytest.raises(BadPayload):
        CODECS["msgpack"].decode(data)


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json(data: bytes) -> None:
    """Text that is not exactly one message raises BadPayload and nothing else, whoever wrote it."""
    with pytest.raises(BadPayload):
        CODECS["json"].decode(data)
    with pytest.raises(BadPayload):
        decode_json(data)


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_every_cut_is_noticed(name: str) -> None:
    """A message cut off anywhere is not mistaken for a shorter one."""
    data = CODECS[name].encode({"type": "chat.message", "n": [1, 300, 1.5], "d": {"a": None}})
    for end in range(len(data)):
        with pytest.raises(BadPayload):
            CODECS[name].decode(data[:end])


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_bad(data: bytes) -> None:
    """Whatever bytes arrive: a dict with str keys, or BadPayload."""
    for codec in CODECS.values():
        try:
            message = codec.decode(data)
        except BadPayload:
            continue
        assert type(message) is dict
        assert all(type(key) is str for key in message)


def test_hostile_sets_within_sets() -> None:
    """Sets nested deeper than Python can follow are bad input, not a crash."""
    data = packed([1])
    for _ in range(5000):
        data = packed([ormsgpack.Ext(8, data)])
    with pytest.raises(BadPayload):
        Codec().decode(packed({"a": ormsgpack.Ext(8, data)}))


def test_decode_json_takes_what_others_write() -> None:
    """JSON of other clients, spaced and escaped, is read: half surrogates only where they are a pair."""
    data = json.dumps({"type": "a", "text": "\U0001f600 é", "n": [-1.5e3, 2**63 - 1]}, indent=1).encode()
    assert decode_json(data) == {"type": "a", "text": "\U0001f600 é", "n": [-1500.0, 2**63 - 1]}
