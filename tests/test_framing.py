"""Envelopes on the wire: batches there and back, and bytes that are none."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.messages.envelopes import CONTROL, HEADER_ONLY, Envelope
from channels_asyncq.messages.framing import (
    BATCH_SIZE,
    ITEM_SIZE,
    WIRE_VERSION,
    BadEnvelope,
    pack,
    pack_names,
    unpack,
)

NODE = bytes(range(8))

names = st.text("abcXYZ019-_.!", min_size=1, max_size=100)


def batch(rest: bytes) -> bytes:
    """A batch whose checksum is right and whose lengths are anything."""
    rest = NODE + bytes(8) + rest
    return struct.pack(">BBI", 1, 0, zlib.crc32(rest)) + rest


def one(names: bytes, body: bytes = b"", flags: int = 0) -> bytes:
    return pack([(names, body)], NODE, 5, flags)


def fields(envelope: Envelope) -> tuple[object, ...]:
    return (
        envelope.payload,
        envelope.target,
        envelope.session_id,
        envelope.seq,
        envelope.flags,
        envelope.excluded,
    )


@given(
    target=st.one_of(st.just(""), names),
    body=st.binary(max_size=300),
    session_id=st.binary(min_size=8, max_size=8),
    seq=st.integers(0, 2**64 - 1),
    flags=st.sampled_from([0, CONTROL, HEADER_ONLY, CONTROL | HEADER_ONLY]),
    excluded=st.lists(names, max_size=5).map(tuple),
)
def test_there_and_back(
    target: str, body: bytes, session_id: bytes, seq: int, flags: int, excluded: tuple[str, ...]
) -> None:
    """Everything that is packed is unpacked equal, whatever the payload begins with."""
    data = pack([(pack_names(target, excluded), body)], session_id, seq, flags)
    [envelope] = unpack(data)
    assert fields(envelope) == (body, target, session_id, seq, flags, excluded)
    assert not data.startswith(b"{")


def test_the_layout_of_version_1() -> None:
    """The bytes of a message are those that other processes of this version read."""
    data = one(pack_names("chat", ("a!1", "b!2")), b"payload", CONTROL)
    lengths = (12).to_bytes(4) + (7).to_bytes(4)
    rest = NODE + (5).to_bytes(8) + (1).to_bytes(2) + lengths + b"\x04chata!1,b!2" + b"payload"
    assert data == bytes([1, 2]) + zlib.crc32(rest, 2).to_bytes(4) + rest
    assert WIRE_VERSION == 1


def test_every_truncation() -> None:
    """Bytes that end early are refused."""
    data = one(pack_names("chat", ("a!1", "b!2")), b"payload")
    for length in range(len(data)):
        with pytest.raises(BadEnvelope, match=r"too few|truncated"):
            unpack(data[:length])


CHAT = pack_names("chat")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"", "0 bytes are too few", id="nothing"),
        pytest.param(b"\x01" * 31, "31 bytes are too few", id="short"),
        pytest.param(b"\x02" + one(CHAT, b"x")[1:], "wire version 2; this release reads 1", id="newer"),
        pytest.param(b"\x00" + one(CHAT, b"x")[1:], "wire version 0", id="older"),
        pytest.param(b'{"type": "chat.message"} and more of it', "wire version 123", id="json"),
        pytest.param(one(CHAT, b"x", 4), "unknown flags 0x04", id="flag"),
        pytest.param(one(CHAT, b"x", 8), "unknown flags 0x08", id="another flag"),
        pytest.param(one(CHAT, b"x", 0x82), "unknown flags 0x82", id="flags"),
        pytest.param(one(CHAT, b"x", 1), "no symmetric_encryption_keys", id="encrypted"),
        pytest.param(batch(struct.pack(">HII", 1, 6, 0) + CHAT), "announces 38", id="longer names"),
        pytest.param(batch(struct.pack(">HII", 1, 5, 2**32 - 1) + CHAT), "truncated", id="longer body"),
        pytest.param(batch(struct.pack(">HII", 1, 5, 0) + b"\x05chat"), "name ends at 6", id="longer target"),
        pytest.param(one(b"\x02" + "ä".encode()), "not ASCII", id="target"),
        pytest.param(one(b"\x00" + "ä".encode()), "not ASCII", id="excluded"),
        pytest.param(one(b""), "no names", id="no names"),
        pytest.param(batch(bytes(10)), "no names|batch of 0", id="no messages"),
        pytest.param(one(CHAT, b"x")[:-1] + b"y", "changed", id="changed"),
    ],
)
def test_bytes_that_are_no_envelope(data: bytes, problem: str) -> None:
    """BadEnvelope, a ValueError, says what is wrong; never another error."""
    with pytest.raises(BadEnvelope, match=problem) as raised:
        unpack(data)
    assert isinstance(raised.value, ValueError)


@given(data=st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """Whatever arrives is an envelope that packs to the same bytes, or BadEnvelope."""
    try:
        [envelope] = unpack(data)
    except BadEnvelope:
        return
    names = pack_names(envelope.target, envelope.excluded)
    assert pack([(names, envelope.payload)], envelope.session_id, envelope.seq, envelope.flags) == data


@given(
    data=st.binary(min_size=1, max_size=40).map(lambda rest: one(CHAT, rest)),
    flip=st.integers(0, 10**6),
)
def test_a_flipped_bit(data: bytes, flip: int) -> None:
    """One bit changed on the way is noticed, wherever it is."""
    changed = bytearray(data)
    changed[flip % len(data)] ^= 1 << flip % 8
    with pytest.raises(BadEnvelope):
        unpack(bytes(changed))


# Several in one


short_names = st.text("abc-_.!", min_size=1, max_size=30)
messages = st.lists(
    st.tuples(
        st.builds(
            pack_names, st.one_of(st.just(""), short_names), st.lists(short_names, max_size=3).map(tuple)
        ),
        st.binary(max_size=60),
    ),
    min_size=1,
    max_size=5,
)


@given(
    messages=messages,
    session_id=st.binary(min_size=8, max_size=8),
    first=st.integers(0, 2**63),
    flags=st.sampled_from([0, CONTROL]),
)
def test_several_there_and_back(
    messages: list[tuple[bytes, bytes]], session_id: bytes, first: int, flags: int
) -> None:
    """Each is what it would be alone, with the numbers in a row; names that repeat are sent once."""
    data = pack(messages, session_id, first, flags)
    alone = [
        fields(unpack(pack([message], session_id, first + index, flags))[0])
        for index, message in enumerate(messages)
    ]
    assert list(map(fields, unpack(data))) == alone
    assert not data.startswith(b"{")
    assert len(data) <= BATCH_SIZE + sum(ITEM_SIZE + len(names) + len(body) for names, body in messages)


def test_the_layout_of_several() -> None:
    """The bytes are those that other processes of this version read."""
    room = pack_names("room")
    data = pack([(CHAT, b"a"), (CHAT, b"bc"), (room, b"")], NODE, 7, CONTROL)
    lengths = struct.pack(">6I", 5, 1, 0, 2, 5, 0)
    rest = NODE + (7).to_bytes(8) + b"\0\x03" + lengths + CHAT + b"a" + b"bc" + room
    assert data == bytes([1, 2]) + zlib.crc32(rest, 2).to_bytes(4) + rest


TWO = pack([(CHAT, b"x")] * 2, NODE, 1)


def test_batches_in_a_row() -> None:
    """Batches may follow each other; each begins with names."""
    room = pack_names("room")
    data = TWO + pack([(room, b"y")], NODE, 3) + pack([(room, b"z")] * 3, NODE, 4)
    found = [(envelope.seq, envelope.target, envelope.payload) for envelope in unpack(data)]
    assert found[:2] == [(1, "chat", b"x"), (2, "chat", b"x")]
    assert found[2:] == [(3, "room", b"y"), (4, "room", b"z"), (5, "room", b"z"), (6, "room", b"z")]


def test_a_large_message_is_alone() -> None:
    """A batch of one has any size; one of several, and several in a row, are bounded."""
    large = one(CHAT, bytes(2**20))
    assert len(unpack(large)[0].payload) == 2**20
    with pytest.raises(BadEnvelope, match="there are 8192 at most"):
        unpack(large + pack([(CHAT, b"x")], NODE, 6))
    with pytest.raises(BadEnvelope, match="there are 4096 at most"):
        unpack(pack([(CHAT, bytes(4000)), (CHAT, bytes(100))], NODE, 1))


def table(*lengths: int) -> bytes:
    return struct.pack(f">H{len(lengths)}I", len(lengths) // 2, *lengths)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(batch(table(5, 0, 0, 2) + CHAT), "announces", id="longer than it is"),
        pytest.param(batch(table(5, 0, 0, 4090) + CHAT), "there are 4096 at most", id="too long"),
        pytest.param(batch(table(0, 5, 5, 0) + CHAT * 2), "no names", id="first without names"),
        pytest.param(batch(b"\xff\xff" + bytes(40)), "batch of 65535 messages", id="too many"),
        pytest.param(batch(b"\x00\x03" + bytes(20)), "batch of 3 messages", id="half a table"),
        pytest.param(batch(table(5, 0, 1, 0) + CHAT + b"\x01"), "name ends at 2", id="second names"),
        # Behind others that are well.
        pytest.param(TWO + TWO, "numbers in a row", id="numbers"),
        pytest.param(TWO + pack([(CHAT, b"x")], b"another.", 3), "one sender", id="sender"),
        pytest.param(TWO * 200, "there are 8192 at most", id="many batches"),
        pytest.param(TWO + b"x", "1 bytes are too few", id="a byte behind"),
        pytest.param(TWO + TWO[:-1], "truncated", id="truncated behind"),
        pytest.param(TWO + TWO[:-1] + b"y", "changed", id="changed behind"),
        pytest.param(TWO + b"\x02" + TWO[1:], "wire version 2", id="newer behind"),
    ],
)
def test_bytes_that_are_not_several(data: bytes, problem: str) -> None:
    """BadEnvelope says what is wrong, and none of them is delivered."""
    with pytest.raises(BadEnvelope, match=problem):
        unpack(data)


@given(data=st.binary(max_size=80), is_checked=st.booleans())
def test_any_bytes_of_several(data: bytes, is_checked: bool) -> None:
    """Whatever arrives gives envelopes or BadEnvelope, and no more of them than the bytes can hold."""
    try:
        found = unpack(batch(data) if is_checked else data)
    except BadEnvelope:
        return
    assert ITEM_SIZE * len(found) <= len(data)


@given(messages=messages, flip=st.integers(0, 10**6))
def test_a_flipped_bit_of_several(messages: list[tuple[bytes, bytes]], flip: int) -> None:
    """One bit changed on the way is noticed, wherever it is."""
    changed = bytearray(pack(messages, NODE, 1))
    changed[flip % len(changed)] ^= 1 << flip % 8
    with pytest.raises(BadEnvelope):
        unpack(bytes(changed))


def test_an_envelope_is_small() -> None:
    """No envelope has a dict of its own, and a fresh one has nothing decoded."""
    envelope = Envelope(b"x", "chat")
    assert not hasattr(envelope, "__dict__")
    assert envelope.message is None


def test_repr() -> None:
    """An envelope in a traceback tells its way and its size, never what is in it."""
    text = repr(Envelope(b"secret text", "chat", NODE, 7))
    assert text == "<Envelope 0001020304050607/7 to 'chat', 11 bytes>"
