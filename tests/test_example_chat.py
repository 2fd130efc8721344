"""The chat of the example, within one process: what a page may send, and what it gets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import ApplicationCommunicator, WebsocketCommunicator
from django.db import connections
from django.test import AsyncClient, Client

from channels_asyncq import get_layer
from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

Frame = dict[str, Any]
Open = Callable[..., WebsocketCommunicator]


def layers(prefix: str, host: str = "memory://", send_timeout: float = 2.0) -> dict[str, Any]:
    config = {
        "hosts": [host],
        "prefix": prefix,
        "send_timeout": send_timeout,
        "on_disconnect": "layer.down",
        "on_reconnect": "layer.up",
    }
    return {"default": {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": config}}


async def next_frame(socket: WebsocketCommunicator, kind: str, **values: Any) -> Frame:
    """
    Return the next frame of a type, with these values, leaving out what comes before it.

    Of a message of the room's group it is what the page handles, without the position.
    """
    while True:
        frame = await next_of_any_kind(socket)
        if frame["type"] == kind and frame | values == frame:
            return frame


async def next_of_any_kind(socket: WebsocketCommunicator) -> Frame:
    while True:
        frame: Frame = await socket.receive_json_from(timeout=DEADLINE)
        if frame.keys() != {"id"}:  # a fresh position of a quiet room
            message: Frame = frame.get("m", frame)
            return message


async def next_frame_but(socket: WebsocketCommunicator, *kinds: str) -> Frame:
    """Return the next frame that is of none of these types."""
    while True:
        frame = await next_of_any_kind(socket)
        if frame["type"] not in kinds:
            return frame


async def loaded(room: str = "lobby") -> tuple[str, dict[str, Any]]:
    """Return the position and the stored messages that the page of a room is rendered with."""
    page = (await AsyncClient().get(f"/chat/{room}/")).content.decode()
    since = re.search('data-since="(.*?)"', page)
    stored = re.search('<script id="stored".*?>(.*?)</script>', page)
    assert since is not None and stored is not None
    return since[1], json.loads(stored[1])


def texts(messages: list[Frame]) -> list[str]:
    return [message["text"] for message in messages]


def presence(*more: str) -> tuple[str, ...]:
    return ("roll_call", "here", "left", *more)


@pytest.fixture
async def open_socket(settings: Any, prefix: str) -> AsyncIterator[Open]:
    """Return a WebSocket to a room, not yet connected; all are closed when the test ends."""
    from chat_site.asgi import application

    settings.CHANNEL_LAYERS = layers(prefix)
    sockets: list[WebsocketCommunicator] = []

    def opened(
        room: str = "lobby", query: str = "", origin: str = "http://localhost"
    ) -> WebsocketCommunicator:
        path = f"/ws/chat/{room}/?{query}"
        sockets.append(WebsocketCommunicator(application, path, headers=[(b"origin", origin.encode())]))
        return sockets[-1]

    yield opened
    for socket in sockets:
        if not socket.future.done():
            await socket.disconnect(timeout=DEADLINE)
    await get_layer().close()
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def join(open_socket: Open) -> Callable[..., Any]:
    """Return a WebSocket that has joined a room."""

    async def joined(name: str, room: str = "lobby") -> WebsocketCommunicator:
        socket = open_socket(room, f"name={name}")
        accepted, _ = await socket.connect(timeout=DEADLINE)
        assert accepted
        await next_frame(socket, "welcome", name=name, room=room)
        await next_frame(socket, "resumed", recovered=True)
        return socket

    return joined


async def test_message_reaches_the_room_and_only_it(join: Any) -> None:
    """What one page says comes to all pages of the room, its own included, with author, id and time."""
    ada, grace, elsewhere = await join("Ada"), await join("Grace"), await join("Alan", room="other")
    await next_frame(elsewhere, "here", name="Alan")
    await ada.send_json_to({"message": "Hello <b>there</b>"})
    for socket in (ada, grace):
        frame = await next_frame(socket, "chat.message")
        assert frame["author"] == "Ada"
        assert frame["text"] == "Hello <b>there</b>"
        assert frame["id"] > 0
        assert frame["sent_at"]
    assert await elsewhere.receive_nothing()


async def test_page_has_the_messages_and_the_tally(join: Any) -> None:
    """Whoever comes later gets what was said with the page, oldest first."""
    ada = await join("Ada")
    for text in ("one", "two"):
        await ada.send_json_to({"message": text})
        await next_frame(ada, "chat.message", text=text)
    _, stored = await loaded()
    assert texts(stored["messages"]) == ["one", "two"]
    assert (stored["truncated"], stored["tally"]) == (False, {"messages": 0, "words": 0})


async def test_nothing_is_between_the_page_and_its_socket(join: Any, open_socket: Open) -> None:
    """What is said after the page was rendered, and before its socket is there, comes once and in order."""
    ada = await join("Ada")
    since, _ = await loaded()
    for number in range(5):
        await ada.send_json_to({"message": str(number)})
        await next_frame(ada, "chat.message", text=str(number))
    grace = open_socket(query=f"name=Grace&since={since}")
    await grace.connect(timeout=DEADLINE)
    await next_frame(grace, "welcome")
    for number in range(5):
        assert (await next_of_any_kind(grace))["text"] == str(number)
    assert (await next_of_any_kind(grace)).items() >= {"type": "resumed", "recovered": True}.items()


async def test_who_was_there_is_not_replayed(join: Any, open_socket: Open) -> None:
    """A page that comes back gets the words that it missed, and no typing, roll calls and leaves of before."""
    ada = await join("Ada")
    since, _ = await loaded()
    await (await join("Alan")).disconnect(timeout=DEADLINE)
    await ada.send_json_to({"typing": True})
    await ada.send_json_to({"message": "Hello"})
    await next_frame(ada, "chat.message")
    grace = open_socket(query=f"name=Grace&since={since}")
    await grace.connect(timeout=DEADLINE)
    await next_frame(grace, "welcome")
    assert [(await next_of_any_kind(grace))["type"] for _ in range(2)] == ["chat.message", "resumed"]


async def test_asking_brings_what_is_stored(join: Any) -> None:
    """A page that names the last message it has gets those after it."""
    from chat.models import Message

    first = await Message.objects.acreate(room="lobby", author="Ada", text="one")
    await Message.objects.acreate(room="lobby", author="Ada", text="two")
    ada = await join("Ada")
    for after, expected in ((first.id, ["two"]), (0, ["one", "two"])):
        await ada.send_json_to({"after": after})
        assert texts((await next_frame(ada, "history"))["messages"]) == expected


async def test_history_is_bounded_and_says_so(join: Any) -> None:
    """A long history is cut to its newest messages, and marked, so that a page can start afresh."""
    from chat.models import Message

    for number in range(60):
        await Message.objects.acreate(room="lobby", author="Ada", text=str(number))
    ada = await join("Ada")
    await ada.send_json_to({"after": 0})
    for stored in (await next_frame(ada, "history"), (await loaded())[1]):
        assert texts(stored["messages"]) == [str(number) for number in range(10, 60)]
        assert stored["truncated"] is True


async def test_roll_call_is_answered_by_everybody_present(join: Any) -> None:
    """Asking who is here brings an answer of each member, also of the one who asks."""
    ada, grace = await join("Ada"), await join("Grace")
    await next_frame(ada, "here", name="Grace")
    await ada.send_json_to({"who": True})
    await next_frame(ada, "roll_call")
    assert {(await next_frame(ada, "here"))["name"] for _ in range(2)} == {"Ada", "Grace"}
    await grace.disconnect(timeout=DEADLINE)
    await next_frame(ada, "left")
    await ada.send_json_to({"who": True})
    await next_frame(ada, "roll_call")
    assert (await next_frame(ada, "here"))["name"] == "Ada"
    assert await ada.receive_nothing()


async def test_joining_calls_the_roll(join: Any) -> None:
    """Whoever joins learns who is here without asking, and is announced by it."""
    ada = await join("Ada")
    await next_frame(ada, "here", name="Ada")
    grace = await join("Grace")
    await next_frame(grace, "here", name="Ada")
    await next_frame(ada, "here", name="Grace")


async def test_a_new_name_is_announced_and_used(join: Any) -> None:
    """A page may change its name; the room hears it, and later messages carry it."""
    ada, grace = await join("Ada"), await join("Grace")
    await ada.send_json_to({"name": "  Countess\n of   Lovelace "})
    await next_frame(grace, "here", name="Countess of Lovelace")
    await ada.send_json_to({"message": "Hello"})
    await next_frame(grace, "chat.message", author="Countess of Lovelace")


async def test_typing_reaches_the_others_only(join: Any) -> None:
    """The typing hint is for everybody but the one who types."""
    ada, grace = await join("Ada"), await join("Grace")
    await ada.send_json_to({"typing": True})
    assert await next_frame(grace, "typing") == {"type": "typing", "name": "Ada"}
    await grace.send_json_to({"typing": True})
    # One group has one order: her own hint would have come before this.
    assert (await next_frame_but(ada, *presence()))["name"] == "Grace"


async def test_guest_gets_a_name(open_socket: Open) -> None:
    """Who gives no name, or an impossible one, is given a name."""
    for query in ("", "name=", "name=" + "x" * 31, "name=%00"):
        socket = open_socket(query=query)
        await socket.connect(timeout=DEADLINE)
        assert len((await next_frame(socket, "welcome"))["name"].split()) == 2


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ("not json", "not JSON"),
        ("[" * 10_000, "JSON"),
        ("[1, 2]", "JSON object"),
        ("null", "JSON object"),
        ('"message"', "JSON object"),
        ("{}", "JSON object"),
        ('{"type": "chat.message"}', "JSON object"),
        ('{"message": 5}', "is a text"),
        ('{"message": null}', "is a text"),
        ('{"message": {"a": 1}}', "is a text"),
        ('{"message": "  "}', "empty"),
        (json.dumps({"message": "x" * 1001}), "1001 characters; 1000 is the limit"),
        (json.dumps({"message": "x" * 20_000}), "too long"),
        ('{"message": "\\ud800"}', "cannot be stored"),
        ('{"message": "a\\u0000b"}', "cannot be stored"),
        ('{"name": 7}', "is a text"),
        ('{"name": ""}', "empty"),
        (json.dumps({"name": "x" * 31}), "30 is the limit"),
        ('{"after": "soon"}', "id of a message"),
        ('{"after": -1}', "id of a message"),
        ('{"after": 1e400}', "id of a message"),
        ('{"after": 99999999999999999999}', "id of a message"),
        ('{"message": "x", "key": 7}', "A key is"),
        ('{"message": "x", "key": "short"}', "A key is"),
        ('{"message": "x", "key": "key with spaces"}', "A key is"),
        (json.dumps({"message": "x", "key": "x" * 65}), "A key is"),
    ],
)
async def test_bad_frame_is_refused_and_the_page_stays(join: Any, frame: str, problem: str) -> None:
    """A bad frame is answered with an error that says what is wrong, and the page goes on."""
    ada = await join("Ada")
    await ada.send_to(text_data=frame)
    answer = await next_frame(ada, "error")
    assert answer["code"] == "refused"
    assert problem in answer["text"]
    await ada.send_json_to({"message": "still here"})
    await next_frame(ada, "chat.message", text="still here")


async def test_bytes_are_refused(join: Any) -> None:
    """A binary frame is answered with an error."""
    ada = await join("Ada")
    await ada.send_to(bytes_data=b"\xff\xfe")
    assert "text frame" in (await next_frame(ada, "error"))["text"]


async def test_longest_message_passes(join: Any) -> None:
    """A thousand characters are a message, of any script."""
    ada = await join("Ada")
    await ada.send_json_to({"message": "字" * 1000})
    assert (await next_frame(ada, "chat.message"))["text"] == "字" * 1000


@pytest.mark.parametrize("room", ["", "a%20b", "caf%C3%A9", "x" * 51, "a.b", "lobby%0A"])
async def test_bad_room_is_refused_with_a_close_code(open_socket: Open, room: str) -> None:
    """A WebSocket to an impossible room says why and closes with 4404."""
    socket = open_socket(room)
    await socket.connect(timeout=DEADLINE)
    assert (await next_frame(socket, "error"))["code"] == "room"
    assert await socket.receive_output(timeout=DEADLINE) == {"type": "websocket.close", "code": 4404}


async def test_foreign_origin_is_refused(open_socket: Open) -> None:
    """A page of another site cannot open a WebSocket here."""
    accepted, _ = await open_socket(origin="http://evil.example").connect(timeout=DEADLINE)
    assert not accepted


async def test_unknown_path_is_refused(open_socket: Open) -> None:
    """A WebSocket to a path that is nobody's is refused without an error in the log."""
    accepted, _ = await open_socket("a/b").connect(timeout=DEADLINE)
    assert not accepted


async def test_words_are_counted(join: Any) -> None:
    """Each message goes to the worker; its tally comes back to the room, and to those who join later."""
    from chat_site.routing import workers

    ada = await join("Ada")
    scope = {"type": "channel", "channel": "wordcount"}
    worker = ApplicationCommunicator(workers, scope)  # type: ignore[no-untyped-call]
    for text, words in (("one two three", 3), ("four\nfive", 5)):
        await ada.send_json_to({"message": text})
        job = await get_layer().receive("wordcount")
        assert job["room"] == "lobby"
        await worker.send_input(job)
        tally = await next_frame(ada, "chat.tally", words=words)
    assert tally["messages"] == 2
    await worker.send_input({"type": "count.words"})
    await worker.send_input({"type": "count.words", "room": "no room"})
    assert await worker.receive_nothing()
    assert (await loaded())[1]["tally"] == {"messages": 2, "words": 5}
    worker.stop(exceptions=False)


async def test_each_stored_word_counts_once(join: Any) -> None:
    """A job that comes twice counts nothing twice, and what no job was sent for is counted with the next."""
    from chat.models import Message
    from chat_site.routing import workers

    await Message.objects.acreate(room="lobby", author="Ada", text="one two three")
    ada = await join("Ada")
    job = await get_layer().receive("wordcount")  # whoever calls the roll sees that it is not counted
    scope = {"type": "channel", "channel": "wordcount"}
    worker = ApplicationCommunicator(workers, scope)  # type: ignore[no-untyped-call]
    await worker.send_input(job)
    await next_frame(ada, "chat.tally", messages=1, words=3)
    await worker.send_input(job)
    assert (await next_frame(ada, "chat.tally"))["words"] == 3
    await ada.send_json_to({"who": True})
    await ada.send_json_to({"after": 0})
    await next_frame(ada, "chat.tally", words=3)
    assert "wordcount" not in dict(get_layer().statistics().queued)
    worker.stop(exceptions=False)


async def test_a_message_with_a_key_is_stored_once(join: Any) -> None:
    """What a page sends again, because it heard nothing, is stored and answered as the message that it is."""
    from chat.models import Message

    ada, grace = await join("Ada"), await join("Grace", room="other")
    for _ in range(2):
        await ada.send_json_to({"message": "Hello", "key": "0123456789abcdef"})
    frames = [await next_frame(ada, "stored") for _ in range(2)]
    assert frames[0] == frames[1]
    assert frames[0]["key"] == "0123456789abcdef"
    client = AsyncClient()
    data = {"message": "Hello", "name": "Ada", "key": "0123456789abcdef"}
    assert (await client.post("/chat/lobby/send/", data)).json()["id"] == frames[0]["id"]
    assert await Message.objects.acount() == 1
    await grace.send_json_to({"message": "Hello", "key": "0123456789abcdef"})
    assert (await next_frame(grace, "stored"))["id"] != frames[0]["id"]


async def test_a_refused_message_is_named_by_its_key(join: Any) -> None:
    """The page learns which of its messages is refused, so that it can give the words back."""
    ada = await join("Ada")
    await ada.send_json_to({"message": "x" * 1001, "key": "0123456789abcdef"})
    assert (await next_frame(ada, "error"))["key"] == "0123456789abcdef"


async def test_roll_call_names_the_newest_messages(join: Any) -> None:
    """What was stored and never sent to the room is named by the next roll call; who lacks it asks for it."""
    from chat.models import Message

    ada, grace = await join("Ada"), await join("Grace")
    await next_frame(ada, "here", name="Grace")
    message = await Message.objects.acreate(room="lobby", author="Alan", text="one")
    await Message.objects.acreate(room="other", author="Alan", text="two")
    await grace.send_json_to({"who": True})
    await next_frame(ada, "roll_call", recent=[message.id])
    for number in range(30):
        await Message.objects.acreate(room="lobby", author="Alan", text=str(number))
    await grace.send_json_to({"who": True})
    assert len((await next_frame(ada, "roll_call"))["recent"]) == 20


async def test_a_page_that_comes_back_is_the_same_member(open_socket: Open, join: Any) -> None:
    """A page has one place among those who are here, also when its last connection ends after the next began."""
    grace = await join("Grace")
    members = []
    for query in ("name=Ada&page=0123456789abcdef", "name=Ada&page=0123456789abcdef", "name=Ada"):
        socket = open_socket(query=query)
        await socket.connect(timeout=DEADLINE)
        members.append((await next_frame(socket, "welcome"))["member"])
    assert members[0] == members[1] != members[2]
    assert members[0] not in ("0123456789abcdef", "")
    await get_layer().group_send("chat.lobby", {"type": "chat.left", "member": members[0]})
    await next_frame(grace, "left", member=members[0])
    await next_frame(grace, "here", member=members[0])


async def test_a_page_learns_which_server_it_is_on(join: Any, open_socket: Open) -> None:
    """The welcome names the process, and the port where the server tells one."""
    socket = open_socket(query="name=Ada")
    socket.scope["server"] = ("127.0.0.1", 8001)
    await socket.connect(timeout=DEADLINE)
    assert (await next_frame(socket, "welcome"))["server"] == {"port": 8001, "pid": os.getpid()}


async def test_chat_goes_on_without_a_worker(join: Any) -> None:
    """When the worker's channel is full, messages are still stored and shown."""
    ada = await join("Ada")
    for number in range(100):
        await get_layer().send("wordcount", {"type": "count.words", "number": number})
    await ada.send_json_to({"message": "hello"})
    await next_frame(ada, "chat.message", text="hello")
    await ada.send_json_to({"message": "again"})
    await next_frame(ada, "chat.message", text="again")


async def test_json_from_outside_is_shown(join: Any) -> None:
    """What another program publishes to the room, without the keys of our own messages, harms nobody."""
    ada = await join("Ada")
    await get_layer().group_send("chat.lobby", {"type": "chat.message", "text": "hi"})
    assert (await next_frame(ada, "chat.message"))["text"] == "hi"
    await get_layer().group_send("chat.lobby", {"type": "chat.notice", "text": "Restart at noon"})
    assert (await next_frame(ada, "chat.notice"))["text"] == "Restart at noon"


async def test_a_restart_of_the_server_is_told(
    own_redis_server: EmbeddedServer, open_socket: Open, join: Any, settings: Any, prefix: str
) -> None:
    """A page that may lack messages is told so while it is connected, and when it comes back."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url)
    ada = await join("Ada")
    since, _ = await loaded()
    own_redis_server.kill()
    await next_frame(ada, "layer", up=False)
    own_redis_server.restart()
    await next_frame(ada, "resumed", recovered=False, reason="server_changed")
    grace = open_socket(query=f"name=Grace&since={since}")
    await grace.connect(timeout=DEADLINE)
    await next_frame(grace, "resumed", recovered=False, reason="server_changed")


async def test_outage_is_told_and_survived(
    own_redis_server: EmbeddedServer, open_socket: Open, join: Any, settings: Any, prefix: str
) -> None:
    """Without its server the chat keeps messages, says so and stays connected; later it goes on."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url)
    ada, grace = await join("Ada"), await join("Grace")
    await next_frame(grace, "here", name="Grace")
    own_redis_server.kill()
    await next_frame(ada, "layer", up=False)
    await ada.send_json_to({"message": "anybody?"})
    assert (await next_frame(ada, "stored"))["text"] == "anybody?"
    own_redis_server.restart()
    for socket in (ada, grace):
        await next_frame(socket, "layer", up=True)
    await grace.send_json_to({"after": 0})
    assert [message["text"] for message in (await next_frame(grace, "history"))["messages"]] == ["anybody?"]
    await ada.send_json_to({"message": "back"})
    await next_frame(grace, "chat.message", text="back")


async def test_an_outage_holds_up_no_page(
    own_redis_server: EmbeddedServer, join: Any, settings: Any, prefix: str
) -> None:
    """While sends wait for the server, for an hour if need be, the page is served: what it says and asks."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=3600)
    ada = await join("Ada")
    await next_frame(ada, "here", name="Ada")
    own_redis_server.kill()
    await next_frame(ada, "layer", up=False)
    for _ in range(200):  # more than are sent at once
        await ada.send_json_to({"typing": True})
    await ada.send_json_to({"message": "anybody?"})
    assert (await next_frame(ada, "stored"))["text"] == "anybody?"
    await ada.send_json_to({"after": 0})
    assert [message["text"] for message in (await next_frame(ada, "history"))["messages"]] == ["anybody?"]
    own_redis_server.restart()
    await next_frame(ada, "layer", up=True)


async def test_joining_during_an_outage_closes_with_try_again(
    open_socket: Open, settings: Any, prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """A page that cannot join is told so, and closed with 4013, so that it tries again."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=0.2)
    own_redis_server.kill()
    socket = open_socket()
    await socket.connect(timeout=DEADLINE)
    await next_frame(socket, "error", code="unavailable")
    assert await socket.receive_output(timeout=DEADLINE) == {"type": "websocket.close", "code": 4013}


async def test_sync_view_sends_to_the_room(join: Any) -> None:
    """The sync view stores a message, shows it to the room and has it counted; it wants a CSRF token."""
    ada = await join("Ada")
    client = AsyncClient(enforce_csrf_checks=True)
    data = {"message": "from a view", "name": "Grace"}
    assert (await client.post("/chat/lobby/send/", data)).status_code == 403
    await client.get("/chat/lobby/")
    data["csrfmiddlewaretoken"] = client.cookies["csrftoken"].value
    assert (await client.post("/chat/lobby/send/", data)).status_code == 201
    await next_frame(ada, "chat.message", text="from a view", author="Grace")
    assert (await get_layer().receive("wordcount"))["room"] == "lobby"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "is a text"),
        ({"message": "x", "name": " "}, "name is empty"),
        ({"message": "x" * 1001, "name": "Ada"}, "1000 is the limit"),
    ],
)
def test_sync_view_refuses_bad_input(client: Client, data: dict[str, str], problem: str) -> None:
    """The sync view answers 400 and says what is wrong; nothing is stored."""
    from chat.models import Message

    response = client.post("/chat/lobby/send/", data)
    assert response.status_code == 400
    assert problem in response.json()["error"]
    assert not Message.objects.exists()


def test_page_in_an_outage(
    client: Client, settings: Any, prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """During an outage the page is served without a position: it asks for the messages when it is connected."""
    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=0.2)
    own_redis_server.kill()
    response = client.get("/chat/lobby/")
    assert response.status_code == 200
    assert b'data-since=""' in response.content


def test_sync_view_in_an_outage(
    client: Client, settings: Any, prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """During an outage the sync view stores the message and says so: no error, which people would repeat."""
    from chat.models import Message

    settings.CHANNEL_LAYERS = layers(prefix, own_redis_server.url, send_timeout=0.2)
    own_redis_server.kill()
    data = {"message": "kept", "name": "Ada", "key": "0123456789abcdef"}
    for _ in range(2):
        response = client.post("/chat/lobby/send/", data)
        assert response.status_code == 202
        assert response.json()["text"] == "kept"
    assert Message.objects.get().text == "kept"


def test_index_lists_rooms(client: Client) -> None:
    """The first page says that there are no rooms, then lists those with messages."""
    from chat.models import Message

    assert b"No rooms yet" in client.get("/").content
    Message.objects.create(room="lobby", author="Ada", text="hello")
    page = client.get("/").content
    assert b'href="/chat/lobby/"' in page
    assert b"1 message " in page


def test_index_opens_a_room_or_says_why_not(client: Client) -> None:
    """The form leads to a room; a bad name is a 400 that states the rule, with the name escaped."""
    response = client.get("/", {"room": " lobby "})
    assert (response.status_code, response["Location"]) == (302, "/chat/lobby/")
    response = client.get("/", {"room": "<script>"})
    assert response.status_code == 400
    assert b"1 to 50 letters" in response.content
    assert b"<script>" not in response.content


@pytest.mark.parametrize(
    "path", ["/chat/a%20b/", "/chat/caf%C3%A9/", f"/chat/{'x' * 51}/", "/chat/a%0A/", "/nowhere/"]
)
def test_bad_room_is_a_404_that_states_the_rule(client: Client, path: str) -> None:
    """A page for an impossible room is a 404 that says what a room name is."""
    response = client.get(path)
    assert response.status_code == 404
    assert b"1 to 50 letters" in response.content


def test_room_page_loads_nothing_from_elsewhere(client: Client) -> None:
    """The page needs no other host."""
    page = client.get("/chat/lobby/").content.decode()
    assert "csrfmiddlewaretoken" in page
    assert "://" not in page
