"""The wire of version 1.0, as recorded in tests/wire: later versions read it, and it reads what they write."""

from __future__ import annotations

import datetime
import json
import re
import sys
import uuid
import zoneinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.bus.redis.layout import Layout
from channels_asyncq.messages.codecs import codec_for
from channels_asyncq.messages.envelopes import CONTROL, HEADER_ONLY, Envelope
from channels_asyncq.messages.framing import FORMATS, pack_names
from channels_asyncq.messages.positions import Place, Position
from channels_asyncq.messages.sealing import ANY_AGE, LOG, QUEUE, TOPIC, Seal, place
from channels_asyncq.names import Topics
from channels_asyncq.settings.options import Options
from tests.wire import reader_1_0

RECORD = Path(__file__).parent / "wire" / "1.0.json"
KEY = b"only for tests"
SESSION = bytes(range(8))
PLACES = {kind.decode(): place(kind, b"asgi:0:group:room") for kind in (TOPIC, LOG, QUEUE)}

ROOM, ALONE = pack_names("room", ("specific.a!b", "specific.c!d")), pack_names("x" * 100)
#: Batches: their messages as names and body, the number of the first one, and flags.
BATCHES: dict[str, tuple[list[tuple[bytes, bytes]], int, int]] = {
    "one": ([(pack_names("room"), b"body")], 1, 0),
    "one with excluded channels": ([(ROOM, b"body")], 2, 0),
    "one of control": ([(pack_names(""), b"body")], 3, CONTROL),
    "one header of a large message": ([(pack_names("room"), b"")], 4, HEADER_ONLY),
    "the highest number": ([(ALONE, bytes(range(256)))], 2**64 - 1, 0),
    "several to a group": ([(ROOM, b"first"), (ROOM, b""), (ROOM, b"third")], 5, 0),
    "several to channels": ([(ROOM, b"first"), (ALONE, b"second"), (ALONE, b"third")], 8, 0),
}
ZURICH = zoneinfo.ZoneInfo("Europe/Zurich")
#: Messages of every type that travels, as they arrive.
MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {
        "type": "chat.message",
        "text": "Zürich ✓",
        "n": [0, -1, 2**63 - 1, -(2**63)],
        "x": None,
        "y": True,
    },
    "floats": {"type": "a", "f": [0.5, -1e300]},
    "nested": {"type": "a", "a": {"b": [{"c": []}, {}]}},
}
#: Those of MessagePack alone.
EXTENDED: dict[str, dict[str, Any]] = {
    "bytes": {"type": "a", "b": b"\0\xff"},
    "times": {
        "type": "a",
        "naive": datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        "utc": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "zone": datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZURICH, fold=1),
        "date": datetime.date(2026, 1, 2),
        "time": datetime.time(3, 4, 5),
        "delta": datetime.timedelta(days=-1, seconds=2, microseconds=3),
    },
    "others": {
        "type": "a",
        "id": uuid.UUID(int=5),
        "price": Decimal("1.50"),
        "set": {7},
        "frozen": frozenset(),
    },
    "in a set": {"type": "a", "set": {(1, frozenset({2}))}},
}
POSITIONS = {
    "one place": Position({3: Place("00c0ffee", 1764522000123 << 64 | 5)}),
    "two epochs, a part of an entry, a channel": Position(
        {0: Place("00c0ffee", 1 << 64), 15: Place("deadbeef", 2 << 64 | 36, 7)}, ("specific.a!b",)
    ),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "by default": {},
    "with everything": {
        "hosts": ["redis://one", "redis://two"],
        "serializer_format": "json",
        "symmetric_encryption_keys": ["a", "b"],
        "history": {re.compile("room.*"): {"seconds": 60}},
    },
    "a cluster without logs": {"hosts": ["redis+cluster://one"], "recovery": None},
}


TOPICS = {
    "on plain servers": Topics("asgi", 16, [0, 3], SESSION.hex()),
    "in a cluster": Topics("asgi", 64, [0], SESSION.hex(), is_cluster=True),
}


def names_of(topics: Topics) -> list[str]:
    """The names on the server by which processes meet; those of a session itself are its own affair."""
    queue, group = topics.queue("jobs"), topics.group("room")
    names = [
        queue.topic.name,
        queue.waiting,
        group.topic.name,
        group.members,
        group.log,
        topics.history("room"),
    ]
    names += [topics.inbox("0" * 16).name, topics.everybody.name, *topics.lease_keys(0, b"layout")]
    names += [name(topics.partitions - 1) for name in (topics.log, topics.epoch, topics.mark)]
    return [name.decode() for name in names]


def written() -> dict[str, dict[str, Any]]:
    """What this version writes of all of these, in hex or as text."""
    formats = FORMATS[1]
    return {
        "batches": {
            name: formats.pack(messages, SESSION, first, flags).hex()
            for name, (messages, first, flags) in BATCHES.items()
        },
        "sealed": {
            f"{name}, {kind}": formats.pack(
                messages, SESSION, first, flags, Seal([KEY], 60, SESSION), PLACES[kind]
            ).hex()
            for name, (messages, first, flags) in BATCHES.items()
            for kind in PLACES
        },
        "msgpack": {
            name: codec_for("msgpack").encode(message).hex()
            for name, message in (MESSAGES | EXTENDED).items()
        },
        "json": {name: codec_for("json").encode(message).hex() for name, message in MESSAGES.items()},
        "positions": {name: str(position) for name, position in POSITIONS.items()},
        "names": {name: names_of(topics) for name, topics in TOPICS.items()},
        "layouts": {name: layout_of(name).text().decode() for name in LAYOUTS},
    }


def layout_of(name: str) -> Layout:
    return Layout.of(Options.from_config(LAYOUTS[name]), 0)


def recorded(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text())[kind]
    return found


def fields(envelope: Envelope) -> reader_1_0.Message:
    session = envelope.session_id.hex()
    return reader_1_0.Message(
        session, envelope.seq, envelope.flags, envelope.target, list(envelope.excluded), envelope.payload
    )


def messages_of(name: str, more_flags: int = 0) -> list[reader_1_0.Message]:
    """The messages of a batch above, in full."""
    messages, first, flags = BATCHES[name]
    return [
        reader_1_0.Message(
            SESSION.hex(),
            first + index,
            flags | more_flags,
            names[1 : 1 + names[0]].decode(),
            names[1 + names[0] :].decode().split(",") if len(names) > 1 + names[0] else [],
            body,
        )
        for index, (names, body) in enumerate(messages)
    ]


# What 1.0 has written is read


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    """Batches of 1.0 are read, each message as it was."""
    data = bytes.fromhex(recorded("batches")[name])
    assert list(map(fields, FORMATS.unpack[data[:1]](data))) == messages_of(name)
    header = FORMATS.header_of(data)
    assert (header.first, header.last) == (messages_of(name)[0].number, messages_of(name)[-1].number)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", BATCHES)
def test_sealed_batches(name: str, kind: str) -> None:
    """Sealed batches of 1.0 are opened with the same setting, at the same place."""
    data = bytes.fromhex(recorded("sealed")[f"{name}, {kind}"])
    unpack = FORMATS.unpack[data[:1]]
    assert list(
        map(fields, unpack(data, Seal([KEY], 60, SESSION), PLACES[kind], max_age=ANY_AGE))
    ) == messages_of(name, 1)


@pytest.mark.parametrize(
    ("codec", "name"),
    [("msgpack", name) for name in MESSAGES | EXTENDED] + [("json", name) for name in MESSAGES],
)
def test_messages(codec: Any, name: str) -> None:
    """Messages of 1.0 are read, with every type that travels."""
    message = codec_for(codec).decode(bytes.fromhex(recorded(codec)[name]))
    assert message == (MESSAGES | EXTENDED)[name]
    assert repr(message) == repr((MESSAGES | EXTENDED)[name])


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(name: str) -> None:
    """The positions that pages have from 1.0 are understood."""
    assert Position.parse(recorded("positions")[name]) == POSITIONS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """A process of 1.0 with the same settings is no stranger: both read what the other one writes."""
    layout = layout_of(name)
    other, objections = layout.compare(recorded("layouts")[name].encode())
    assert other is not None
    assert objections == [] and other.objections(layout) == []
    assert other.place() == layout.place()
    assert (other.oldest, other.newest) == (1, 1)


# What is written now, 1.0 reads


def test_the_same_is_written() -> None:
    """Where all bytes are determined, they are those of 1.0, and so are the names under which it finds them."""
    now = written()
    for kind in ("batches", "msgpack", "json", "positions", "names"):
        assert now[kind] == recorded(kind), kind


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_read(name: str) -> None:
    """The fields that 1.0 reads of a layout are there, with its values but for the formats."""
    now, then = json.loads(written()["layouts"][name]), json.loads(recorded("layouts")[name])
    assert now.keys() >= then.keys()
    assert now["oldest"] <= 1 <= now["newest"]
    assert {key for key in then if now[key] != then[key]} <= {"oldest", "newest", "writes"}


names_on_the_wire = st.text("abcXYZ019-_.!", min_size=1, max_size=100)


@given(
    messages=st.lists(
        st.tuples(
            st.builds(pack_names, names_on_the_wire, st.lists(names_on_the_wire, max_size=3).map(tuple)),
            st.binary(max_size=100),
        ),
        min_size=1,
        max_size=5,
    ),
    first=st.integers(0, 2**63),
    flags=st.sampled_from([0, CONTROL, HEADER_ONLY]),
    kind=st.sampled_from([None, *PLACES]),
)
def test_any_batch_is_read(
    messages: list[tuple[bytes, bytes]], first: int, flags: int, kind: str | None
) -> None:
    """Any batch that this version writes in format 1 is read by the reader of 1.0, sealed or not."""
    sealed = (Seal([KEY], 60, SESSION), PLACES[kind]) if kind else ()
    data = FORMATS[1].pack(messages, SESSION, first, flags, *sealed)
    found = reader_1_0.read(data, KEY, PLACES[kind] if kind else b"")
    assert [pack_names(one.target, tuple(one.excluded)) for one in found] == [names for names, _ in messages]
    assert [(one.number, one.flags, one.body) for one in found] == [
        (first + index, flags | bool(kind), body) for index, (_, body) in enumerate(messages)
    ]


@pytest.mark.parametrize("name", BATCHES)
def test_the_reader_reads_the_record(name: str) -> None:
    """The reader of 1.0 is one: it reads what was recorded."""
    assert reader_1_0.read(bytes.fromhex(recorded("batches")[name])) == messages_of(name)
    for kind, where in PLACES.items():
        data = bytes.fromhex(recorded("sealed")[f"{name}, {kind}"])
        assert reader_1_0.read(data, KEY, where) == messages_of(name, 1)


if __name__ == "__main__":
    # Once, for a new format: `python -m tests.test_wire > tests/wire/<version>.json`
    json.dump(written(), sys.stdout, indent=1, ensure_ascii=False)
