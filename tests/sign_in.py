"""What the tests about signing out share: users, their sessions, and connections that come by them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from channels.auth import logout as channels_logout
from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import AsyncRequestFactory, override_settings
from django.utils.module_loading import import_string

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.generic.websocket import AsyncWebsocketConsumer, AuthGroups
from channels_asyncq.messages.closing import CLOSE
from tests.consumers import Message, Talk

in_thread = database_sync_to_async
BACKEND = "django.contrib.auth.backends.ModelBackend"


def new_user(name: str) -> Any:
    return User.objects.create_user(name, password="secret")


def session_store(key: str | None = None) -> Any:
    return import_string(f"{settings.SESSION_ENGINE}.SessionStore")(key)


def request_with(key: str | None, user: Any = None) -> HttpRequest:
    """A request as it is behind the middleware for sessions and users."""
    request: HttpRequest = AsyncRequestFactory().get("/")
    request.session = session_store(key)
    if user is not None:
        request.user = user

        async def auser() -> Any:
            return user

        request.auser = auser
    return request


def sign_in(user: Any) -> str:
    """Return the key of a new session."""
    request = request_with(None)
    login(request, user, BACKEND)
    request.session.save()
    key = request.session.session_key
    assert key is not None
    return key


def sign_out(key: str, user: Any) -> None:
    logout(request_with(key, user))


def handshake(key: str | None) -> Message:
    cookie = f"{settings.SESSION_COOKIE_NAME}={key}".encode()
    return {"type": "websocket", "path": "/", "headers": [(b"cookie", cookie)] if key else []}


def comes(consumer: Any, key: str | None) -> Talk:
    """A WebSocket of a browser with this session."""
    return Talk(AuthMiddlewareStack(consumer.as_asgi()), handshake(key))


@pytest.fixture(autouse=True)
async def quick_passwords() -> AsyncIterator[None]:
    """A test that makes users does not wait for their passwords, and leaves no connection open in its thread."""
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        yield
    await in_thread(connections.close_all)()


def set_password(user: Any) -> None:
    user.set_password("another secret")
    user.save()


def deactivate(user: Any) -> None:
    user.is_active = False
    user.save()


# WebSockets

SIGNED_OUT = {"type": CLOSE, "code": 4401, "reason": "signed out"}
CHANGED = {"type": CLOSE, "code": 3000, "reason": "the password has changed"}
ENDED = {"type": CLOSE, "code": 3000, "reason": "the session has ended"}


class Room(AuthGroups, AsyncWebsocketConsumer):
    """Answers, so that a test knows that it is still there."""

    log: list[str]

    async def connect(self) -> None:
        self.log.append("connect")
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "log me out":
            await channels_logout(self.scope)
        else:
            await self.send(text_data="here")


@pytest.fixture(autouse=True)
def log() -> list[str]:
    Room.log = []
    return Room.log


@pytest.fixture
async def user(layer: AsyncQueueChannelLayer) -> Any:
    return await in_thread(new_user)("ada")


Begin = Callable[..., Talk]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    begun: list[Talk] = []

    def begin(key: str | None, consumer: Any = Room) -> Talk:
        begun.append(comes(consumer, key))
        return begun[-1]

    yield begin
    for talk in begun:
        await talk.stop()


async def is_here(talk: Talk) -> None:
    """Nothing has closed it: it answers."""
    talk.say("websocket.receive", text="?")
    assert (await talk.hears())["text"] == "here"


class Rechecks(Room):
    recheck = 0.05


class Kept(Room):
    """Its guards, for the test to look at."""

    guards: list[Any]

    async def connect(self) -> None:
        self.guards.append(self._guard)
        await super().connect()


@pytest.fixture(autouse=True)
def no_guards() -> None:
    Kept.guards = []
