"""How often the streams of one client may come back with a position."""

from __future__ import annotations

from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from ..layer import AsyncQueueChannelLayer
from ..rates import ClientMeters, Rate, checked_rate, network_of

_NAME = "EventStream"
_resumes = ClientMeters()


@dataclass(frozen=True, slots=True)
class ResumeLimit:
    """A rate, and the client that it is for. Without a client it is the address of a request."""

    rate: Rate
    client: str | None

    def wait(self, request: HttpRequest, layer: AsyncQueueChannelLayer) -> float:
        """
        Count a resume, and return 0.0. If it is too early, return the seconds to wait.

        Raises:
            ImproperlyConfigured: the server knows no address of the client.
        """
        client = self.client
        if client is None:
            host = request.META.get("REMOTE_ADDR")
            if not host:
                raise ImproperlyConfigured(
                    f"resume_rate of {_NAME} needs the address of a client, and the server knows none: have it "
                    "take the address from a header of the proxy, or pass resume_key, such as the key of the user"
                )
            client = f"address {network_of(host)}"
        wait = _resumes.take(_NAME, client, self.rate)
        if wait:
            layer.note_limited("resume_rate", _NAME, "it is to come back later")
        return wait


def checked_resume_limit(rate: str | None, burst: int | None, client: str | None) -> ResumeLimit | None:
    """
    Return the limit of these arguments of an `EventStream`, None if there is none.

    Raises:
        TypeError, ValueError: an argument is wrong, or has no effect.
    """
    checked = checked_rate(_NAME, "resume_rate", rate, "resume_burst", burst)
    if client is not None and (not isinstance(client, str) or not client):
        raise TypeError(f"resume_key of {_NAME} is {client!r}, and must be a str that is not empty, or None")
    if checked is not None:
        return ResumeLimit(checked, client)
    for name, value in (("resume_burst", burst), ("resume_key", client)):
        if value is not None:
            raise ValueError(
                f"{name} of {_NAME} is {value!r} and has no effect, because resume_rate is None: pass "
                f'resume_rate="2/s", for instance, or leave {name} out'
            )
    return None
