"""The bound on the containers of one message: honest data passes, and both ends refuse what takes too long."""

from __future__ import annotations

import datetime
import json
from typing import Any

import ormsgpack
import pytest
from channels.exceptions import MessageTooLarge
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.messages import containers
from channels_asyncq.messages.codecs import BadPayload, Codec, JsonCodec, decode_json
from channels_asyncq.messages.containers import MOST_CONTAINERS, are_too_many, are_too_many_in_json

MSGPACK, JSON = Codec(), JsonCodec()
NESTED = range(7, 10)
DATE = datetime.date(2026, 1, 2)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=70)
    | st.text("\u0400\u0410\u0420", max_size=70)
)
BEYOND_JSON = st.binary(max_size=300) | st.dates() | st.times() | st.timedeltas() | st.uuids() | st.decimals()
SETS = st.frozensets(
    st.dates() | st.integers(0, 300) | st.frozensets(st.integers(0, 3), max_size=3), max_size=5
)


def nested(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    trees = st.recursive(
        values,
        lambda inner: (
            st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20)
        ),
        max_leaves=40,
    )
    return st.fixed_dictionaries({"type": st.just("a.b"), "value": trees})


def count(value: Any) -> int:
    """Lists, dicts, sets and what else travels as an extension type."""
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    if isinstance(value, (list, frozenset)):
        # A set is an extension whose bytes are a list.
        return (1 if isinstance(value, list) else 2) + sum(map(count, value))
    return int(not isinstance(value, (type(None), bool, int, float, str, bytes)))


@given(nested(SCALARS | BEYOND_JSON | SETS))
def test_count_of_messagepack(message: dict[str, Any]) -> None:
    """Whatever stands in the message, exactly its containers count."""
    data, number = MSGPACK.encode(message), count(message)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "MOST_CONTAINERS", number)
        assert not are_too_many(data, NESTED)
        patch.setattr(containers, "MOST_CONTAINERS", number - 1)
        assert are_too_many(data, NESTED)


@given(nested(st.none() | st.integers(-9, 9) | st.text() | st.just('[{"a\\"[[{')))
def test_count_of_json(message: dict[str, Any]) -> None:
    """Brackets in text do not count."""
    data, number = JSON.encode(message), count(message)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "MOST_CONTAINERS", number)
        assert not are_too_many_in_json(data)
        patch.setattr(containers, "MOST_CONTAINERS", number - 1)
        assert are_too_many_in_json(data)


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    """Bytes that are no message are counted without an error: decoding refuses them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "MOST_CONTAINERS", 3)
        are_too_many(data, NESTED)
        are_too_many_in_json(data)


@pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=["msgpack", "json"])
@pytest.mark.parametrize("item", [[], {}, [1], {"a": {}}], ids=repr)
def test_too_many_are_refused_by_the_sender(codec: Codec, item: object) -> None:
    """The error says how many there may be, and what to do."""
    with pytest.raises(MessageTooLarge, match=rf"{MOST_CONTAINERS} lists.*in parts"):
        codec.encode({"type": "a.b", "value": [item] * MOST_CONTAINERS})


@pytest.mark.parametrize("value", [{1}, DATE, datetime.timedelta(1)], ids=["sets", "dates", "timedeltas"])
def test_too_many_values_of_extension_types(value: object) -> None:
    """Each of them is a call of Python at the receiver: they count too."""
    with pytest.raises(MessageTooLarge):
        MSGPACK.encode({"type": "a.b", "value": [value] * MOST_CONTAINERS})


def test_too_many_are_refused_by_the_receiver() -> None:
    """Bytes of somebody who did not ask are refused before they are decoded, with the same words."""
    value: list[list[int]] = [[]] * MOST_CONTAINERS
    with pytest.raises(BadPayload, match=f"{MOST_CONTAINERS} lists"):
        MSGPACK.decode(ormsgpack.packb({"type": "a.b", "value": value}))
    with pytest.raises(BadPayload, match=f"{MOST_CONTAINERS} lists"):
        decode_json(json.dumps({"type": "a.b", "value": value}).encode())


@pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=["msgpack", "json"])
def test_large_honest_messages_pass(codec: Codec) -> None:
    """Tens of thousands of rows, Cyrillic text, and long lists of numbers are no matter."""
    values: list[object] = [
        [{"id": number, "name": "Привет"} for number in range(MOST_CONTAINERS - 2)],
        "Привет, мир. [{ " * 50_000,
        ["Привет"] * 300_000,
        list(range(500_000)),
    ]
    for value in values:
        message = {"type": "a.b", "value": value}
        assert codec.decode(codec.encode(message)) == message
