"""Sealed batches: who can open them, where, and for how long."""

from __future__ import annotations

import hmac
import sys
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.messages import sealing
from channels_asyncq.messages.envelopes import CONTROL, ENCRYPTED, HEADER_ONLY
from channels_asyncq.messages.framing import ITEM_SIZE, BadEnvelope, batch_size, pack, pack_names, unpack
from channels_asyncq.messages.sealing import (
    ANY_AGE,
    CLOCK_ALLOWANCE,
    FUTURE_ALLOWANCE,
    LOG,
    QUEUE,
    TOPIC,
    Seal,
    place,
)

NODE, OTHER = b"a" * 8, b"b" * 8
ROOM = place(LOG, b"asgi:0:group:room")
CHAT = pack_names("chat")
TEXT = b"the body of a message"


def seal_of(*keys: bytes, session_id: bytes = NODE, max_age: float = 60.0) -> Seal:
    return Seal(keys or (b"key",), max_age, session_id)


MINE, THEIRS = seal_of(), seal_of(session_id=OTHER)


def one(seal: Seal = MINE, where: bytes = ROOM, first: int = 5, flags: int = 0) -> bytes:
    return pack([(CHAT, TEXT)], NODE, first, flags, seal, where)


# Made in each test: a batch that is made when the module is imported is too old in a long run.


def two() -> bytes:
    return pack([(CHAT, b"x")] * 2, NODE, 1, 0, MINE, ROOM)


def row() -> bytes:
    return two() + pack([(CHAT, b"y")], NODE, 3, 0, MINE, ROOM)


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([CHAT, pack_names("hall", ("a!1", "b!2"))]), st.binary(max_size=60)),
        min_size=1,
        max_size=5,
    ),
    first=st.integers(1, 2**63),
    flags=st.sampled_from([0, CONTROL, HEADER_ONLY]),
)
def test_there_and_back(messages: list[tuple[bytes, bytes]], first: int, flags: int) -> None:
    """Another session with the same key gets what it would get unsealed, and the flag that says that it was."""
    data = pack(messages, NODE, first, flags, MINE, ROOM)
    found, plain = unpack(data, THEIRS, ROOM), unpack(pack(messages, NODE, first, flags))
    for sealed, envelope in zip(found, plain, strict=True):
        assert sealed.flags == envelope.flags | ENCRYPTED
        for name in ("payload", "target", "excluded", "session_id", "seq"):
            assert getattr(sealed, name) == getattr(envelope, name)
    assert len(data) <= batch_size(MINE) + sum(ITEM_SIZE + len(names) + len(body) for names, body in messages)
    assert not data.startswith(b"{")


def test_the_layout() -> None:
    """The bytes are those that other processes of this version read, 36 more than without a seal."""
    data = one(flags=CONTROL)
    assert len(data) == len(pack([(CHAT, TEXT)], NODE, 5, CONTROL)) + 36
    root = hmac.digest(b"key", b"channels_asyncq AES-256-GCM 1", "sha256")
    key_id = hmac.digest(root, b"id", "sha256")[:4]
    lengths = (5).to_bytes(4) + len(TEXT).to_bytes(4)
    header = bytes([1, 3]) + key_id + NODE + (5).to_bytes(8) + (1).to_bytes(2) + lengths
    assert data.startswith(header)
    rest = data[len(header) :]
    cipher = AESGCM(hmac.digest(root, b"session" + NODE, "sha256"))
    associated = b"log asgi:0:group:room\0" + header + rest[:8]
    assert cipher.decrypt(rest[8:20], rest[20:], associated) == CHAT + TEXT


def test_what_can_be_seen() -> None:
    """Neither names nor bodies, and equal messages do not look equal."""
    data = one()
    assert b"chat" not in data
    assert TEXT not in data
    assert data[-len(TEXT) :] != one()[-len(TEXT) :]


def test_keys_rotate() -> None:
    """The first key seals, all open: processes with the old key, both and the new one go on beside each other."""
    old, both, new = seal_of(b"old"), seal_of(b"new", b"old"), seal_of(b"new")
    for sender, receiver in ((old, both), (both, both), (new, both), (both, new)):
        assert unpack(one(sender), receiver, ROOM)[0].payload == TEXT
    with pytest.raises(
        BadEnvelope, match=r"a key that this process does not have.*symmetric_encryption_keys"
    ):
        unpack(one(both), old, ROOM)


def test_another_key_of_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is known by 4 bytes, and these open nothing."""
    monkeypatch.setattr(sealing, "_key_id", lambda root: 7)
    with pytest.raises(BadEnvelope, match="its tag does not fit"):
        unpack(one(seal_of(b"another")), seal_of(), ROOM)


@pytest.mark.parametrize(
    "where",
    [
        place(LOG, b"asgi:0:group:hall"),
        place(LOG, b"asgi:1:group:room"),
        place(LOG, b"site:0:group:room"),
        place(LOG, b"asgi:0:inbox:room"),
        place(TOPIC, b"asgi:0:group:room"),
        place(QUEUE, b"asgi:0:group:room"),
        b"",
    ],
)
def test_another_place(where: bytes) -> None:
    """What was sealed for one place is refused in another, by whomever."""
    for data in (one(), two(), row()):
        for seal in (MINE, THEIRS):
            with pytest.raises(BadEnvelope, match="sealed for another topic"):
                unpack(data, seal, where)


def test_unsealed_and_sealed() -> None:
    """A process with keys reads nothing unsealed, one without keys nothing sealed, wherever in a row."""
    plain = pack([(CHAT, b"x")], NODE, 3)
    for data in (plain, two() + plain):
        with pytest.raises(BadEnvelope, match="not encrypted, and symmetric_encryption_keys are set"):
            unpack(data, MINE, ROOM)
    for data in (one(), pack([(CHAT, b"x")], NODE, 4) + one()):
        with pytest.raises(BadEnvelope, match="this process has no symmetric_encryption_keys"):
            unpack(data)


@pytest.mark.parametrize(
    "make", [one, two, row, lambda: one(flags=HEADER_ONLY)], ids=["one", "two", "row", "header"]
)
def test_every_flipped_bit_and_every_truncation(make: Callable[[], bytes]) -> None:
    """Bytes that are changed or cut off anywhere are refused, all of them, and with no other error."""
    data = make()
    seal = seal_of(session_id=OTHER)
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(BadEnvelope):
            unpack(bytes(changed), seal, ROOM)
    for length in range(len(data)):
        if make is not row or length != len(two()):
            with pytest.raises(BadEnvelope):
                unpack(data[:length], seal, ROOM)
    assert unpack(data, seal, ROOM)


@given(data=st.binary(max_size=120), is_announced=st.booleans())
def test_any_bytes(data: bytes, is_announced: bool) -> None:
    """Whatever somebody without a key makes is refused."""
    if is_announced:
        data = one()[:6] + data
    with pytest.raises(BadEnvelope):
        unpack(data, THEIRS, ROOM)


@pytest.mark.parametrize(
    ("age", "problem"),
    [
        (0, None),
        (30 + CLOCK_ALLOWANCE, None),
        (30.002 + CLOCK_ALLOWANCE, "sealed 40 s ago.*limit is 40 s: set the clocks.*or raise `expiry`"),
        (10**6, "sealed 1000000 s ago"),
        (-FUTURE_ALLOWANCE, None),
        (-FUTURE_ALLOWANCE - 0.002, "sealed 60 s from now: set the clocks"),
    ],
)
def test_age(age: float, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is good for `max_age` and what clocks may differ; of a log's old entry any age will do."""
    seal = seal_of(max_age=29.5)
    data = one()
    made = int.from_bytes(data[32:40]) * 1_000_000
    monkeypatch.setattr("channels_asyncq.messages.sealing.time_ns", lambda: made + round(age * 10**9))
    if problem is None:
        assert unpack(data, seal, ROOM)
    else:
        with pytest.raises(BadEnvelope, match=problem):
            unpack(data, seal, ROOM)
    if age >= 0:
        assert unpack(data, seal, ROOM, max_age=ANY_AGE)


def test_what_a_receiver_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of so many senders are kept, none of those that only say that they are one."""
    monkeypatch.setattr(sealing, "_MOST_CIPHERS", 3)
    receiver = seal_of(session_id=OTHER)
    for number in range(10):
        session_id = number.to_bytes(8)
        data = pack([(CHAT, TEXT)], session_id, 1, 0, seal_of(session_id=session_id), ROOM)
        assert unpack(data, receiver, ROOM)
        assert 0 < len(receiver._ciphers) <= 3
        with pytest.raises(BadEnvelope):
            unpack(data[:6] + b"x" * 8 + data[14:], receiver, ROOM)
        assert all(known != b"x" * 8 for _, known in receiver._ciphers)


def test_cryptography_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys, the package is not needed."""
    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    assert unpack(pack([(CHAT, TEXT)], NODE, 1))[0].payload == TEXT
    with pytest.raises(ImportError):
        seal_of()
