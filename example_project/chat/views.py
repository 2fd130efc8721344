from __future__ import annotations

from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from channels_asyncq import DeliveryUnknown, LayerUnavailable, get_layer, sync
from chat.models import Message, Tally
from chat.rules import (
    AUTHOR_LENGTH,
    ROOM_RULE,
    TEXT_LENGTH,
    Refused,
    clean_author,
    clean_key,
    clean_text,
    group_of,
    is_room,
)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The rooms with messages, and a form that opens any room."""
    wanted = request.GET.get("room", "").strip()
    if is_room(wanted):
        return redirect("chat:room", room=wanted)
    rooms = Message.objects.order_by().values("room").annotate(count=Count("id"), last=Max("sent_at"))
    context = {"rooms": rooms.order_by("-last")[:100], "wanted": wanted, "error": ROOM_RULE if wanted else ""}
    return render(request, "chat/index.html", context, status=400 if wanted else 200)


@require_safe
def room(request: HttpRequest, room: str) -> HttpResponse:
    """The page of one room, with its messages, and the position from which its WebSocket goes on."""
    # Position first, messages second: a message in between is in both, and the page drops the repeat by its id.
    # In the other order it would be in neither.
    try:
        since = sync.position(group_of(room))
    except LayerUnavailable:
        since = ""  # The page asks for the messages again when it is connected.
    messages, truncated = Message.history(room)
    state = {"messages": messages, "truncated": truncated, "tally": Tally.of(room).as_dict()}
    context = {
        "room": room,
        "since": since,
        "state": state,
        "author_length": AUTHOR_LENGTH,
        "text_length": TEXT_LENGTH,
    }
    return render(request, "chat/room.html", context)


@require_POST
def send(request: HttpRequest, room: str) -> HttpResponse:
    """
    Send a message from synchronous code. Sync views, signal handlers and commands need only `async_to_sync`.

    The answer is the stored message, with status 201. The status is 202 if the channel layer is out: then the
    other pages see the message when the layer is back.
    """
    try:
        text = clean_text(request.POST.get("message"))
        author = clean_author(request.POST.get("name"))
        key = clean_key(request.POST.get("key"))
    except Refused as refusal:
        return JsonResponse({"error": str(refusal)}, status=400)
    message = Message.store(room, author, text, key).as_dict()
    layer = get_layer()
    try:
        async_to_sync(layer.group_send)(group_of(room), {"type": "chat.message", **message})
        async_to_sync(layer.send)("wordcount", {"type": "count.words", "room": room})
    except (LayerUnavailable, DeliveryUnknown):
        return JsonResponse(message, status=202)  # No error: it is stored, and must not be sent again.
    except ChannelFull:
        pass  # No worker reads. The message itself is delivered.
    return JsonResponse(message, status=201)
