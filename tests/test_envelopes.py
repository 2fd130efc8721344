"""The record in which a message travels: its bytes there and back, and bytes that are none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.envelopes import (
    CONTROL,
    ENCRYPTED,
    WIRE_VERSION,
    BadEnvelope,
    Envelope,
    pack,
    unpack,
)

NODE = bytes(range(8))

names = st.text("abcXYZ019-_.!", min_size=1, max_size=100)


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
    header = bytes([1, 2]) + NODE + (5).to_bytes(8) + (4).to_bytes(2) + (7).to_bytes(4)
    assert data == header + b"chat" + b"a!1,b!2" + b"payload"
    assert WIRE_VERSION == 1


def test_every_truncation() -> None:
    """Bytes that end within the header or the names are refused with the figures; the payload may be short."""
    data = pack("chat", b"payload", NODE, 5, 0, ("a!1", "b!2"))
    names_end = len(data) - len(b"payload")
    for length in range(names_end):
        with pytest.raises(BadEnvelope, match=r"too few|truncated"):
            unpack(data[:length])
    assert unpack(data[:names_end]).payload == b""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are too few"),
        (b"\x01" * 23, "23 bytes are too few"),
        (b"\x02" + pack("chat", b"x")[1:], "wire version 2; this release reads 1"),
        (b"\x00" + pack("chat", b"x")[1:], "wire version 0"),
        (b'{"type": "chat.message"} and more of it', "wire version 123"),
        (pack("chat", b"x", flags=4), "unknown flags 0x04"),
        (pack("chat", b"x", flags=0x81), "unknown flags 0x81"),
        (struct.pack(">BB8sQHI", 1, 0, NODE, 0, 5, 0) + b"chat", "announces 29 bytes of names, 28"),
        (struct.pack(">BB8sQHI", 1, 0, NODE, 0, 0, 2**32 - 1), "truncated"),
        (struct.pack(">BB8sQHI", 1, 0, NODE, 0, 2, 0) + "ä".encode(), "not ASCII"),
        (struct.pack(">BB8sQHI", 1, 0, NODE, 0, 0, 2) + "ä".encode(), "not ASCII"),
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
    """One bit changed on the way gives an envelope or BadEnvelope, nothing else."""
    changed = bytearray(data)
    changed[flip % len(data)] ^= 1 << flip % 8
    try:
        unpack(bytes(changed))
    except BadEnvelope:
        pass


def test_an_envelope_is_small() -> None:
    """No envelope has a dict of its own, and a fresh one has nothing decoded."""
    envelope = Envelope(b"x", "chat")
    assert not hasattr(envelope, "__dict__")
    assert envelope.message is None


def test_repr() -> None:
    """An envelope in a traceback tells its way and its size, never what is in it."""
    text = repr(Envelope(b"secret text", "chat", NODE, 7))
    assert text == "<Envelope 0001020304050607/7 to 'chat', 11 bytes>"
