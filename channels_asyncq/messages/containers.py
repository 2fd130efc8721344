"""How many containers an encoded message holds: decoding each of them takes time, even if it is empty."""

from __future__ import annotations

import re

#: The most lists, dicts and values of extension types (sets, dates) in one message: decoding millions of them
#: would hold up the event loop. A message of at most as many bytes needs no check: it cannot hold more.
MOST_CONTAINERS = 65_536

TOO_MANY = (
    f"the message holds more than {MOST_CONTAINERS} lists, dicts, sets and values such as dates: decoding them "
    "would hold up the event loop of every receiver. Send it in parts, or encode it and send one str or bytes"
)

# MessagePack: the first byte of a value gives its type. The same bytes also occur inside text and numbers.
_FIRST_BYTES = bytes([*range(0x80, 0xA0), 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9), *range(0xDC, 0xE0)])
_SHORT_TEXTS = b"|".join(b"%b.{%d}" % (re.escape(bytes([0xA0 + size])), size) for size in range(1, 32))
# Values that are no containers and whose first byte gives their size.
_PLAIN = re.compile(
    rb"(?s:[\x00-\x7f\xa0\xc0\xc2\xc3\xe0-\xff]++|[\xcc\xd0].|[\xcd\xd1].{2}|[\xca\xce\xd2].{4}|[\xcb\xcf\xd3].{8}|"
    + _SHORT_TEXTS
    + rb")*+"
)
# By first byte, how many bytes of size follow: for text and bytes, for lists and dicts, for extension types.
_LONG = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {**dict.fromkeys(range(0x80, 0xA0), 0), 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}

_JSON_TEXT = re.compile(rb'"(?s:[^"\\]++|\\.)*+"')


def are_too_many(data: bytes, nested: range) -> bool:
    """
    Tell whether a message in MessagePack holds more containers than `MOST_CONTAINERS`.

    `nested` are the numbers of the extension types whose bytes are MessagePack again. Invalid MessagePack is not
    detected here.
    """
    # A fast upper bound: bytes that could begin a container. Greek text has many that do not.
    if len(data) - len(data.translate(None, _FIRST_BYTES)) <= MOST_CONTAINERS:
        return False
    count = at = 0
    skip = _PLAIN.match
    while count <= MOST_CONTAINERS:
        at = skip(data, at).end()  # type: ignore[union-attr]  # it also matches an empty string
        first = data[at : at + 1]
        at += 1
        kind = first[0] if first else -1
        if (width := _LISTS.get(kind, -1)) >= 0:
            count += 1
            at += width
        elif kind in _LONG:
            width = _LONG[kind]
            at += width + int.from_bytes(data[at : at + width])
        elif kind in _FIXED_EXTENSIONS or kind in _EXTENSIONS:
            count += 1
            width = _EXTENSIONS.get(kind, 0)
            size = int.from_bytes(data[at : at + width]) if width else _FIXED_EXTENSIONS[kind]
            at += width
            is_nested = int.from_bytes(data[at : at + 1]) in nested
            at += 1 if is_nested else 1 + size
        else:
            return False  # the end, or invalid MessagePack
    return True


def are_too_many_in_json(data: bytes) -> bool:
    """Tell whether a message in JSON holds more objects and arrays than `MOST_CONTAINERS`."""
    if data.count(b"[") + data.count(b"{") <= MOST_CONTAINERS:
        return False
    bare = _JSON_TEXT.sub(b"", data)
    return bare.count(b"[") + bare.count(b"{") > MOST_CONTAINERS
