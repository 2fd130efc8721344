"""
Batches that only the holder of a key can read or make, each for one place and for a limited time.

docs/design.md ("Sealed batches") explains what is bound to a place, and how keys and nonces are derived.
"""

from __future__ import annotations

import hmac
import math
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..clock import time_ns

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Seconds by which the clocks of two machines may differ before a sealed batch counts as too old.
CLOCK_ALLOWANCE = 10
#: The limit for batches of which only the header counts: it tells which messages were lost.
ANY_AGE = math.inf
#: Seconds by which a sender's clock may be ahead.
FUTURE_ALLOWANCE = 60

# The kinds of places. A topic and a list may have the same name, and a topic may have a log.
TOPIC = b"topic"
LOG = b"log"
QUEUE = b"queue"

# Keys are derived for this purpose only: channels_redis derives other keys from the same setting.
_PURPOSE = b"channels_asyncq AES-256-GCM 1"
_KEY_ID = struct.Struct(">I")
# The time of sealing, in ms since 1970
_TIME = struct.Struct(">Q")
_NONCE_SIZE = 12
_TAG_SIZE = 16
#: Bytes that sealing adds to a batch.
SEAL_SIZE = _TIME.size + _NONCE_SIZE + _TAG_SIZE
# Ciphers of other sessions that are kept; beyond this all are made anew.
_MOST_CIPHERS = 4096


class BadSeal(ValueError):
    """Bytes that were not sealed with a known key for this place, or that are too old or of the future."""


class TooOld(BadSeal):
    """A batch that was sealed with a known key for this place, but too long ago."""


def place(kind: bytes, name: bytes) -> bytes:
    """Return the place that a batch is sealed for: a topic, its log, or a list, by its name on the server."""
    # Names have neither spaces nor zeros: no other place and header give the same bytes when they are joined.
    return b"%b %b\0" % (kind, name)


class Seal:
    """
    The keys with which one session seals and opens batches.

    A sealed batch is its header (in the clear, and authenticated), the time (likewise), a nonce, the encrypted
    content and a tag.

    Args:
        keys: the first one seals, all of them open.
        max_age: seconds after which a batch is refused, plus `CLOCK_ALLOWANCE`.
        session_id: the identity of this session, which is in the header of its batches.
    """

    __slots__ = ("_ciphers", "_invalid", "_max_age", "_own", "_roots", "key_id")

    def __init__(self, keys: Sequence[bytes], max_age: float, session_id: bytes) -> None:
        # Imported here because the package is an extra.
        from cryptography.exceptions import InvalidTag

        self._invalid = InvalidTag
        # By id. If two keys have the same id, the first counts.
        self._roots: dict[int, bytes] = {}
        for key in keys:
            root = root_of(key)
            self._roots.setdefault(_key_id(root), root)
        #: It is in the header of each batch that this session seals.
        self.key_id = next(iter(self._roots))
        self.limit_age(max_age)
        self._own = self._make_cipher(self.key_id, session_id)
        # By key id and session id, only those that have opened a batch.
        self._ciphers: dict[tuple[int, bytes], AESGCM] = {}

    def limit_age(self, max_age: float) -> None:
        """Refuse batches from now on that are older than this, plus `CLOCK_ALLOWANCE`."""
        self._max_age = 1000 * (math.ceil(max_age) + CLOCK_ALLOWANCE)

    def seal(self, header: bytes, content: bytes, place: bytes) -> bytes:
        """Return header and content, sealed for this place. The header must hold the session id and `key_id`."""
        header += _TIME.pack(time_ns() // 1_000_000)
        nonce = os.urandom(_NONCE_SIZE)
        return b"%b%b%b" % (header, nonce, self._own.encrypt(nonce, content, place + header))

    def open(
        self,
        key_id: int,
        session_id: bytes,
        data: bytes,
        header_size: int,
        place: bytes,
        *,
        max_age: float | None = None,
    ) -> bytes:
        """
        Return the content of a sealed batch that arrived at this place.

        Args:
            max_age: the limit of its age in ms, in place of that of `limit_age()`.

        Raises:
            BadSeal: another key, sender or place, changed bytes, or a time in the future.
            TooOld: it is valid, but too old.
        """
        cipher = self._ciphers.get((key_id, session_id)) or self._make_cipher(key_id, session_id)
        nonce_at = header_size + _TIME.size
        sealed_at = nonce_at + _NONCE_SIZE
        try:
            content = cipher.decrypt(data[nonce_at:sealed_at], data[sealed_at:], place + data[:nonce_at])
        except self._invalid:
            raise BadSeal("forged, changed, or sealed for another topic: its tag does not fit") from None
        if (key_id, session_id) not in self._ciphers:
            if len(self._ciphers) >= _MOST_CIPHERS:
                self._ciphers.clear()
            self._ciphers[key_id, session_id] = cipher
        age = time_ns() // 1_000_000 - _TIME.unpack_from(data, header_size)[0]
        if max_age is None:
            max_age = self._max_age
        if age > max_age:
            raise TooOld(
                f"sealed {age / 1000:.0f} s ago by its sender's clock, and the limit is "
                f"{max_age / 1000:.0f} s: set the clocks of both machines, or raise `expiry` "
                "if this process may stand still for so long"
            )
        if age < -1000 * FUTURE_ALLOWANCE:
            raise BadSeal(f"sealed {-age / 1000:.0f} s from now: set the clocks of both machines")
        return content

    def _make_cipher(self, key_id: int, session_id: bytes) -> AESGCM:
        """Return the cipher with which the session of this id seals under one of the keys."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        root = self._roots.get(key_id)
        if root is None:
            raise BadSeal(
                "sealed with a key that this process does not have: all processes need the sender's first key in "
                "their symmetric_encryption_keys"
            )
        return AESGCM(hmac.digest(root, b"session" + session_id, "sha256"))


def root_of(key: bytes) -> bytes:
    """Derive the root of a key of the setting, from which all else is derived. It is as secret as the key."""
    return hmac.digest(key, _PURPOSE, "sha256")


def fingerprint_of(root: bytes) -> bytes:
    """Return 32 bytes that identify a key to processes that have it. They allow guessing a key that is a word."""
    return hmac.digest(root, b"id", "sha256")


def _key_id(root: bytes) -> int:
    """Return the first bytes of the fingerprint as a number, for the headers of batches."""
    number: int = _KEY_ID.unpack_from(fingerprint_of(root))[0]
    return number
