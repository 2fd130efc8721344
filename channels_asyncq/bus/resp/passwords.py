"""Keeps the passwords of a host out of messages and tracebacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Passwords", "text_of", "words_of"]

_ARGUMENTS = ("password", "ssl_password")


class Passwords:
    """
    The passwords among arguments of connections.

    A server may quote a command in its error, and so a password.
    """

    def __init__(self, arguments: Iterable[Mapping[str, Any]]) -> None:
        self._passwords = {
            text_of(given[name]) for given in arguments for name in _ARGUMENTS if given.get(name)
        }

    def hide(self, text: str) -> str:
        """Return the text with `***` in place of each password."""
        for password in self._passwords:
            text = text.replace(password, "***")
        return text

    def words_of(self, exc: BaseException) -> str:
        """Return the words of an error without passwords."""
        return self.hide(words_of(exc))

    def are_in(self, exc: BaseException | None) -> bool:
        """Tell whether the error, or one that it came from, quotes a password."""
        while exc is not None:
            if any(password in str(exc) for password in self._passwords):
                return True
            exc = exc.__cause__ or exc.__context__
        return False


def words_of(exc: BaseException) -> str:
    """Return the text of an error on one line, or the name of its class if it has none."""
    return " ".join(str(exc).split()) or type(exc).__name__


def text_of(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
