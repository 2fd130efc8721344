"""The record in which a message travels: its bytes there and back, and bytes that are none."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq import envelopes
from channels_asyncq.envelopes import (
    CONTROL,
    ENCRYPTED,
    JOINED,
    WIRE_VERSION,
    BadEnvelope,
    Envelope,
    pack,
    pack_all,
    pack_named,
    pack_names,
    unpack,
    unpack_all,
)

NODE = bytes(range(8))

names = st.text("abcXYZ019-_.!", min_size=1, max_size=100)


def raw(target_length: int, excluded_length: int, names: bytes) -> bytes:
    """An envelope whose checksum is right and whose lengths are anything."""
    rest = struct.pack(">8sQHI", NODE, 0, target_length, excluded_length) + names
    return struct.pack(">BBI", 1, 0, zlib.crc32(rest)) + rest


def fields(envelope: Envelope) -> tuple[object, ...]:
    return (
        envelope.payload,
        envelope.target,
        envelope.node,
        envelope.seq,
        envelope.flags,
        envelope.excluded,
    )


@given(
    target=st.one_of(st.just(""), names),
    body=st.binary(max_size=300),
    node=st.binary(min_size=8, max_size=8),
    seq=st.integers(0, 2**64 - 1),
    flags=st.sampled_from([0, ENCRYPTED, CONTROL, ENCRYPTED | CONTROL]),
    excluded=st.lists(names, max_size=5).map(tuple),
)
def test_there_and_back(
    target: str, body: bytes, node: bytes, seq: int, flags: int, excluded: tuple[str, ...]
) -> None:
    """Everything that is packed is unpacked equal, whatever the payload begins with."""
    data = pack(target, body, node, seq, flags, excluded)
    assert fields(unpack(data)) == (body, target, node, seq, flags, excluded)
    assert not data.startswith(b"{")


def test_the_layout_of_version_1() -> None:
    """The bytes of an envelope are those that other processes of this version read."""
    data = pack("chat", b"payload", NODE, 5, CONTROL, ("a!1", "b!2"))
    rest = NODE + (5).to_bytes(8) + (4).to_bytes(2) + (7).to_bytes(4) + b"chat" + b"a!1,b!2" + b"payload"
    assert data == bytes([1, 2]) + zlib.crc32(rest, 2).to_bytes(4) + rest
    assert WIRE_VERSION == 1


def test_every_truncation() -> None:
    """Bytes that end early are refused; without their payload they are a header, for those who know."""
    data = pack("chat", b"payload", NODE, 5, 0, ("a!1", "b!2"))
    for length in range(len(data)):
        with pytest.raises(BadEnvelope, match=r"too few|truncated"):
            unpack(data[:length])
    size = len(pack("chat", b"", excluded=("a!1", "b!2")))
    for length in range(size):
        with pytest.raises(BadEnvelope, match=r"too few|truncated"):
            unpack(data[:length], is_whole=False)
    header = unpack(data[:size], is_whole=False)
    assert (header.payload, header.target, header.node, header.seq) == (b"", "chat", NODE, 5)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are too few"),
        (b"\x01" * 27, "27 bytes are too few"),
        (b"\x02" + pack("chat", b"x")[1:], "wire version 2; this release reads 1"),
        (b"\x00" + pack("chat", b"x")[1:], "wire version 0"),
        (b'{"type": "chat.message"} and more of it', "wire version 123"),
        (pack("chat", b"x", flags=4), "unknown flags 0x04"),
        (pack("chat", b"x", flags=0x81), "unknown flags 0x81"),
        (raw(5, 0, b"chat"), "announces 33 bytes of names, 32"),
        (raw(0, 2**32 - 1, b""), "truncated"),
        (raw(2, 0, "ä".encode()), "not ASCII"),
        (raw(0, 2, "ä".encode()), "not ASCII"),
        (pack("chat", b"x")[:-1] + b"y", "changed"),
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
        envelope = unpack(data)
    except BadEnvelope:
        return
    again = pack(
        envelope.target, envelope.payload, envelope.node, envelope.seq, envelope.flags, envelope.excluded
    )
    assert again == data


@given(
    data=st.binary(min_size=1, max_size=40).map(lambda rest: pack("chat", rest, NODE, 1)),
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
    node=st.binary(min_size=8, max_size=8),
    first=st.integers(0, 2**63),
    flags=st.sampled_from([0, ENCRYPTED, CONTROL]),
)
def test_several_there_and_back(
    messages: list[tuple[bytes, bytes]], node: bytes, first: int, flags: int
) -> None:
    """Each is what it would be alone, with the numbers in a row; names that repeat are sent once."""
    data = pack_all(messages, node, first, flags)
    alone = [
        unpack(pack_named(names, body, node, first + index, flags))
        for index, (names, body) in enumerate(messages)
    ]
    assert list(map(fields, unpack_all(data))) == list(map(fields, alone))
    assert not data.startswith(b"{")


def test_one_of_them_is_read_alone() -> None:
    """What is read by `unpack_all()` may be a single envelope; `unpack()` refuses several."""
    data = pack("chat", b"payload", NODE, 5, CONTROL, ("a!1",))
    assert [fields(envelope) for envelope in unpack_all(data)] == [fields(unpack(data))]
    with pytest.raises(BadEnvelope, match="unknown flags 0x08"):
        unpack(pack_all([(pack_names("chat"), b"x")] * 2, NODE, 1))


def test_the_layout_of_several() -> None:
    """The bytes are those that other processes of this version read."""
    chat, room = pack_names("chat"), pack_names("room")
    data = pack_all([(chat, b"a"), (chat, b"bc"), (room, b"")], NODE, 7, ENCRYPTED)
    lengths = b"\0\x0a\0\x01" + b"\0\0\0\x02" + b"\0\x0a\0\0"
    rest = NODE + (7).to_bytes(8) + b"\0\x03" + lengths + chat + b"a" + b"bc" + room
    assert data == bytes([1, 9]) + zlib.crc32(rest, 9).to_bytes(4) + rest


TWO = pack_all([(pack_names("chat"), b"x")] * 2, NODE, 1)


def test_several_times_several() -> None:
    """What `pack_all()` returned may follow each other, and begins with names each time."""
    room = pack_names("room")
    data = TWO + pack_all([(room, b"y")], NODE, 3) + pack_all([(room, b"z")] * 3, NODE, 4)
    found = [(envelope.seq, envelope.target, envelope.payload) for envelope in unpack_all(data)]
    assert found[:2] == [(1, "chat", b"x"), (2, "chat", b"x")]
    assert found[2:] == [(3, "room", b"y"), (4, "room", b"z"), (5, "room", b"z"), (6, "room", b"z")]


def several(rest: bytes) -> bytes:
    """Several envelopes whose checksum is right and whose lengths are anything."""
    rest = NODE + bytes(8) + rest
    return struct.pack(">BBI", 1, JOINED, zlib.crc32(rest, JOINED)) + rest


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x01\x08" + bytes(22), "lengths of 0 messages"),
        (b"\x01\x08" + bytes(16) + b"\0\0\0\0\0\1\0\1\0\0x", "checksum"),
        (b"\x01\x08" + bytes(19), "too few"),
        (several(b""), "22 bytes are too few"),
        (several(b"\0"), "23 bytes are too few"),
        (several(bytes(2)), "24 bytes are not what the lengths of 0 messages come to"),
        (several(b"\0\1\x0f\xe5\0\0" + bytes(4069)), "4097 bytes are not what the lengths of 1 messages"),
        (several(b"\0\0x"), "25 bytes are not what the lengths of 0 messages come to"),
        (several(b"\0\1\0\0\0\1x"), "no names"),
        (several(b"\0\1\0\0\0"), "27 bytes cannot be 1 messages"),
        (several(b"\0\2\0\7\0\0" + pack_names("a")), "not what the lengths of 2 messages"),
        (several(b"\0\1\0\7\0\1" + pack_names("a")), "not what the lengths of 1 messages"),
        (several(b"\xff\xff" + bytes(40)), "cannot be 65535 messages"),
        (several(b"\0\1\0\3\0\0abc"), "without their lengths"),
        (several(b"\0\1\0\7\0\0" + pack_names("ab")[:-1]), "of other lengths"),
        (several(b"\0\1\0\x08\0\0" + pack_names("ab")[:-2] + "ä".encode()), "not ASCII"),
        (b"\x02" + several(b"xx")[1:], "wire version 2"),
        (b"\x01\x0c" + several(b"xx")[2:], "unknown flags 0x0c"),
        # Behind others that are well.
        (TWO + TWO, "numbers in a row"),
        (TWO + pack_all([(pack_names("chat"), b"x")], b"another.", 3), "one sender"),
        (TWO * 200, "there are 8192 at most"),
        (TWO + b"x", "1 bytes are too few"),
        (TWO + TWO[:-1], "not what the lengths of 2 messages"),
        (TWO + TWO[:-1] + b"y", "checksum"),
        (TWO + pack("chat", b"\0" * 20, NODE), "cannot be"),
        (TWO + b"\x02" + TWO[1:], "wire version 2"),
    ],
)
def test_bytes_that_are_not_several(data: bytes, problem: str) -> None:
    """BadEnvelope says what is wrong, and none of them is delivered."""
    with pytest.raises(BadEnvelope, match=problem):
        unpack_all(data)


@given(data=st.binary(max_size=80), is_checked=st.booleans())
def test_any_bytes_of_several(data: bytes, is_checked: bool) -> None:
    """Whatever arrives gives envelopes or BadEnvelope, and no more of them than the bytes can hold."""
    try:
        found = unpack_all(several(data) if is_checked else data)
    except BadEnvelope:
        return
    assert 4 * len(found) <= max(4, len(data))


@given(messages=messages, flip=st.integers(0, 10**6))
def test_a_flipped_bit_of_several(messages: list[tuple[bytes, bytes]], flip: int) -> None:
    """One bit changed on the way is noticed, wherever it is."""
    changed = bytearray(pack_all(messages, NODE, 1))
    changed[flip % len(changed)] ^= 1 << flip % 8
    with pytest.raises(BadEnvelope):
        unpack_all(bytes(changed))


def test_who_is_excluded_is_not_remembered() -> None:
    """Long lists of names fill no cache, at neither end."""
    excluded = tuple(f"specific.{number:016x}!{number}" for number in range(100))
    before = envelopes.pack_target.cache_info().currsize, envelopes._read_short_names.cache_info().currsize
    data = pack("a-group-of-this-test-only", b"x", excluded=excluded)
    assert unpack_all(data)[0].excluded == excluded
    assert before == (
        envelopes.pack_target.cache_info().currsize,
        envelopes._read_short_names.cache_info().currsize,
    )


def test_an_envelope_is_small() -> None:
    """No envelope has a dict of its own, and a fresh one has nothing decoded."""
    envelope = Envelope(b"x", "chat")
    assert not hasattr(envelope, "__dict__")
    assert envelope.message is None


def test_repr() -> None:
    """An envelope in a traceback tells its way and its size, never what is in it."""
    text = repr(Envelope(b"secret text", "chat", NODE, 7))
    assert text == "<Envelope 0001020304050607/7 to 'chat', 11 bytes>"
