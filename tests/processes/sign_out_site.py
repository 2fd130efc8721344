"""
A site whose users sign in and out, with a WebSocket and an event stream for each.

As a program it makes the database, with the users `ada` and `bob`. The environment has the CONFIG of the layer
(TEST_LAYER_CONFIG) and the file of the database (TEST_DATABASE).
"""

import json
import os
from typing import Any

import django
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    USE_TZ=True,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
        "channels",
        "channels_asyncq",
        "channels_asyncq.auth",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    STATIC_URL="static/",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["TEST_DATABASE"],
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    },
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
            "CONFIG": json.loads(os.environ["TEST_LAYER_CONFIG"]),
        }
    },
)
django.setup()

from django.contrib.auth import login, logout, update_session_auth_hash  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402

from channels_asyncq.auth import disconnect_user, logout_everywhere  # noqa: E402
from channels_asyncq.generic.websocket import AuthGroups, ResumableWebsocketConsumer  # noqa: E402
from channels_asyncq.http import EventStream  # noqa: E402

PAGE = """<!doctype html><title>A page</title>
<script type="module">
import { ResumableSocket } from "/static/channels_asyncq/resume.js";
window.told = [];
const tell = (what, more) => told.push({ what, at: Date.now(), ...more });
const socket = new ResumableSocket("/ws/");
socket.addEventListener("close", ({ detail }) => tell("socket closed", detail));
socket.addEventListener("recovered", ({ detail }) => tell("socket open", detail));
socket.addEventListener("message", ({ data }) => tell("socket message", { data }));
const events = window.events = new EventSource("/events/");
events.addEventListener("websocket.close", ({ data }) => tell("stream closed", JSON.parse(data)));
events.addEventListener("open", () => tell("stream open"));
events.addEventListener("error", () => {
  if (events.readyState === EventSource.CLOSED) tell("stream gave up");
});
events.addEventListener("site.said", ({ data }) => tell("stream message", { data: JSON.parse(data) }));
</script>"""


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


def sign_in(request: HttpRequest, name: str) -> HttpResponse:
    login(request, User.objects.get(username=name))
    return HttpResponse("signed in")


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("signed out")


def password(request: HttpRequest) -> HttpResponse:
    """Change the password, as Django's own view does: the browser that asks stays signed in."""
    user: Any = request.user
    user.set_password("another")
    user.save()
    update_session_auth_hash(request, user)
    return HttpResponse("changed")


def rolled_back(request: HttpRequest) -> HttpResponse:
    """Sign out, change the password and end all sessions, and take it all back."""
    user: Any = request.user
    key = request.session.session_key
    with transaction.atomic():
        user.set_password("another")
        user.save()
        logout_everywhere(user)
        logout(request)
        transaction.set_rollback(True)
    # The transaction brought the row back; the request must not forget it.
    request.session = type(request.session)(key)
    return HttpResponse("taken back")


def everywhere(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    return JsonResponse({"sessions": logout_everywhere(user)})


def kick(request: HttpRequest) -> HttpResponse:
    """Close the connections of the user, whose session stays."""
    disconnect_user(request.user, 4403, "kicked")
    return HttpResponse("kicked")


async def events(request: HttpRequest) -> HttpResponseBase:
    user = await request.auser()
    if not user.is_authenticated:
        return HttpResponse(status=204)
    return EventStream(request, ["news"], auth=True, retry=(0.2, 0.3))


class Socket(AuthGroups, ResumableWebsocketConsumer):
    """Follows the news."""

    def resumable_groups(self) -> list[str]:
        return ["news"]

    async def connect(self) -> None:
        await self.accept()
        if not self.scope["user"].is_authenticated:
            await self.close(4401)


urlpatterns = [
    path("", page),
    path("sign-in/<name>/", sign_in),
    path("sign-out/", sign_out),
    path("password/", password),
    path("rolled-back/", rolled_back),
    path("everywhere/", everywhere),
    path("kick/", kick),
    path("events/", events),
]

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(get_asgi_application()),
        "websocket": AuthMiddlewareStack(URLRouter([path("ws/", Socket.as_asgi())])),  # type: ignore[arg-type, list-item]
    }
)

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for name in ("ada", "bob"):
        User.objects.create_user(name, password="secret")
