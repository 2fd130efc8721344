from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


@sync_and_async_middleware
def content_security_policy(get_response: Any) -> Callable[[HttpRequest], Any]:
    """
    Let pages load scripts, styles and connections of this site only. Nothing within a page runs.

    Django 6.0 has a middleware for this; the example runs with older versions too.
    """
    if iscoroutinefunction(get_response):

        async def handle(request: HttpRequest) -> HttpResponse:
            waiting: Awaitable[HttpResponse] = get_response(request)
            response = await waiting
            response.headers["Content-Security-Policy"] = POLICY
            return response

        return handle

    def handle_in_thread(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = get_response(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return handle_in_thread
