from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.views.decorators.http import require_POST, require_safe

from channels_asyncq import LayerUnavailable, sync
from channels_asyncq.http import EventStream
from orders.models import GROUP, Order

MOST = 100  # orders in the table


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The table of orders, and the position from which its stream goes on."""
    # Position first, orders second: a change in between is in both, and shown once, because a row has the id of
    # its order. In the other order it would be in neither.
    try:
        since = sync.position(GROUP)
    except LayerUnavailable:
        since = "none"  # This is no position, so the stream will tell the page to load the table again.
    orders = [order.as_dict() for order in Order.objects.all()[:MOST]]
    return render(request, "orders/index.html", {"since": since, "orders": orders})


@require_safe
async def events(request: HttpRequest) -> EventStream:
    """The changes of orders as server-sent events, with rows of the table as HTML."""
    return EventStream(request, [GROUP], render=row)


def row(message: dict[str, Any]) -> str:
    """
    Render the row of an order for htmx.

    A changed row takes the place of its former self (`hx-swap-oob`). A new one comes to the top of the table.
    """
    return render_to_string("orders/event.html", {"order": message, "is_new": message["type"] == "order.new"})


@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    Order.receive()
    return done(request)


@require_POST
def advance(request: HttpRequest) -> HttpResponse:
    Order.advance()
    return done(request)


def done(request: HttpRequest) -> HttpResponse:
    """Nothing for htmx, because the row comes with the stream; the table for a browser without scripts."""
    return HttpResponse(status=204) if "HX-Request" in request.headers else redirect("orders:index")
