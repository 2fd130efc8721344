"""A reader of batches of version 1, as the processes of version 1.0 read them. It uses nothing of the package."""

import hmac
import struct
import zlib
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Message(NamedTuple):
    """One message of a batch."""

    session: str
    number: int
    flags: int
    target: str
    excluded: list[str]
    body: bytes


def read(data: bytes, key: bytes = b"", place: bytes = b"") -> list[Message]:
    """The messages of batches in a row; with a key, of sealed batches at this place."""
    messages: list[Message] = []
    while data:
        found, data = _read_batch(data, key, place)
        messages += found
    return messages


def _read_batch(data: bytes, key: bytes, place: bytes) -> tuple[list[Message], bytes]:
    version, flags, check, session, first, count = struct.unpack_from(">BBI8sQH", data)
    assert version == 1
    lengths = struct.unpack_from(f">{2 * count}I", data, 24)
    begin = 24 + 8 * count
    if flags & 1:
        # Of the time, a nonce and a tag.
        end = begin + sum(lengths) + 36
        root = hmac.digest(key, b"channels_asyncq AES-256-GCM 1", "sha256")
        assert check == int.from_bytes(hmac.digest(root, b"id", "sha256")[:4])
        cipher = AESGCM(hmac.digest(root, b"session" + session, "sha256"))
        content = cipher.decrypt(
            data[begin + 8 : begin + 20], data[begin + 20 : end], place + data[: begin + 8]
        )
    else:
        end = begin + sum(lengths)
        assert zlib.crc32(data[6:end], flags) == check
        content = data[begin:end]
    messages = []
    names: Any = b""
    for index in range(count):
        names_length, body_length = lengths[2 * index : 2 * index + 2]
        names = content[:names_length] or names
        body = content[names_length : names_length + body_length]
        content = content[names_length + body_length :]
        target = names[1 : 1 + names[0]].decode("ascii")
        rest = names[1 + names[0] :].decode("ascii")
        excluded = rest.split(",") if rest else []
        messages.append(Message(session.hex(), first + index, flags, target, excluded, body))
    return messages, data[end:]
