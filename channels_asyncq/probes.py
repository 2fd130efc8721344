"""The views by which an orchestrator finds out whether this process lives, and is to get requests."""

from __future__ import annotations

from collections.abc import AsyncIterator

from channels.exceptions import InvalidChannelLayerError
from channels.layers import channel_layers, get_channel_layer
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .exceptions import LayerClosed
from .layer import AsyncQueueChannelLayer
from .stopping.connections import is_ready

Reason = dict[str, str]


@login_not_required
@require_safe
@never_cache
async def live(request: HttpRequest) -> JsonResponse:
    """Answer 200: the process serves requests. An outage of the message server is no reason to restart it."""
    return JsonResponse({"live": True})


@login_not_required
@require_safe
@never_cache
async def ready(request: HttpRequest) -> JsonResponse:
    """
    Answer 200 if this process is to get requests, else 503 with the reasons.

    No server is asked: the answer is what the process knows of its connections.
    """
    # Under WSGI the loop of this view ends with it.
    reasons = [reason async for reason in _reasons(is_lasting=isinstance(request, ASGIRequest))]
    response = JsonResponse({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)
    # Django would log an error for each question in an outage.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


async def _reasons(*, is_lasting: bool) -> AsyncIterator[Reason]:
    if not is_ready():
        yield {"reason": "the process is told to stop, and its clients leave"}
    for alias in channel_layers.configs:
        try:
            layer = get_channel_layer(alias)
            if isinstance(layer, AsyncQueueChannelLayer):
                for address, reason in (await layer.faults(is_lasting=is_lasting)).items():
                    yield {"layer": alias, "address": address, "reason": reason}
        except (ImproperlyConfigured, InvalidChannelLayerError, LayerClosed) as error:
            yield {"layer": alias, "reason": str(error)}
