from __future__ import annotations

from channels.exceptions import ChannelFull
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import aget_object_or_404, get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from channels_asyncq import ChannelLayerError, sync
from channels_asyncq.http import EventStream
from tokens.models import QUESTION_LENGTH, Answer


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """A form for a question, and the newest answers."""
    return form(request)


@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    """Have a worker answer, and lead to the page of the answer."""
    question = request.POST.get("question", "").strip()
    if not question or len(question) > QUESTION_LENGTH or "\0" in question:
        return form(request, f"A question has 1 to {QUESTION_LENGTH} characters.", 400)
    answer = Answer.objects.create(question=question)
    try:
        # Before the worker begins: from here on, a page gets every word.
        answer.since = sync.position(answer.group)
        answer.save(update_fields=["since"])
        sync.send("tokens", {"type": "tokens.answer", "answer": answer.pk})
    except (ChannelFull, ChannelLayerError):
        answer.delete()
        return form(request, "The worker cannot be reached. Try again later.", 503)
    return redirect("tokens:answer", pk=answer.pk)


def form(request: HttpRequest, error: str = "", status: int = 200) -> HttpResponse:
    context = {
        "answers": Answer.objects.all()[:10],
        "question_length": QUESTION_LENGTH,
        "error": error,
        "question": request.POST.get("question", ""),
    }
    return render(request, "tokens/index.html", context, status=status)


@require_safe
def answer(request: HttpRequest, pk: int) -> HttpResponse:
    """The page of an answer: the whole text, or a place for the words that come."""
    return render(request, "tokens/answer.html", {"answer": get_object_or_404(Answer, pk=pk)})


@require_safe
def whole(request: HttpRequest, pk: int) -> HttpResponse:
    """The stored text of an answer as JSON, for a page that lacks some of its words."""
    answer = get_object_or_404(Answer, pk=pk)
    return JsonResponse({"is_whole": answer.is_whole, "text": answer.text})


@require_safe
async def events(request: HttpRequest, pk: int) -> EventStream:
    """
    The words of an answer as server-sent events.

    A page that is loaded in the middle gets them from the first on. An EventSource that comes back sends the last
    id that it has got, and gets those after it.
    """
    answer = await aget_object_or_404(Answer, pk=pk)
    return EventStream(request, [answer.group], since=answer.since)
