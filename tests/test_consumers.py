"""What is only ours: how our consumers wait, what they pass on, and what they make of losses and lost clients."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from channels.exceptions import StopConsumer
from channels.layers import channel_layers

from channels_asyncq import AsyncQueueChannelLayer, ChannelClosed, LayerClosed
from channels_asyncq.consumers import conversation
from tests.clock import Clock
from tests.consumers import OURS, OURS_SYNC, Begin, Kind, Message, begin, installed, layer, make
from tests.contract import eventually, steps
from tests.handlers import Steps, on_loop
from tests.sessions import session_of

__all__ = ["begin", "layer"]

OTHERS = ("inmemory", "asyncq.traced")


members: dict[int, list[Any]] = {}
# In which a handler of Busy waits: how many do, and until when.
waiting: asyncio.Semaphore
go_on: asyncio.Event


@pytest.fixture(autouse=True)
def _begin_anew() -> None:
    global waiting, go_on
    members.clear()
    waiting = asyncio.Semaphore(0)
    go_on = asyncio.Event()


async def _wait() -> None:
    waiting.release()
    await go_on.wait()


@pytest.fixture(params=[OURS, OURS_SYNC], ids=lambda kind: str(kind.name))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def Member(kind: Kind) -> Any:
    class Member(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """In the room; notes what it handles, and when it goes."""

        groups = ["room"]  # noqa: RUF012

        def __init__(self) -> None:
            self.log: list[Any] = members.setdefault(len(members), [])

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            self.log.append(text_data)

        def layer_message(self, event: Message) -> None:
            self.log.append(event["n"])

        def layer_reply(self, event: Message) -> Steps:
            yield self.send(text_data=event["text"])

        def disconnect(self, code: int) -> None:
            self.log.append(("disconnect", code))

    return Member


@pytest.fixture
def Busy(Member: Any) -> Any:
    class Busy(Member):  # type: ignore[misc]
        """Stays in `layer_wait` until the test lets it go on."""

        def layer_wait(self, event: Message) -> Steps:
            yield _wait()

    return Busy


# Turns


async def test_turns(layer: AsyncQueueChannelLayer, begin: Begin, Busy: Any) -> None:
    """Where the client and the layer both have something, they take turns."""
    talk = begin(Busy)
    await talk.accepted()
    await layer.group_send("room", {"type": "layer.wait"})
    await waiting.acquire()
    for n in range(10):
        await layer.group_send("room", {"type": "layer.message", "n": n})
        talk.say("websocket.receive", text=str(n))
    go_on.set()
    log = members[0]
    await eventually(lambda: len(log) == 20, "all")
    kinds = [type(entry) for entry in log]
    # The client's next event has to come from the server, which may take a turn.
    assert max(len(run) for run in _runs(kinds)) <= 3
    assert kinds[:2].count(str) == 1
    await talk.leaves()


def _runs(kinds: list[type]) -> list[list[type]]:
    runs: list[list[type]] = []
    for kind in kinds:
        if not runs or runs[-1][0] is not kind:
            runs.append([])
        runs[-1].append(kind)
    return runs


async def test_disconnect_goes_first(layer: AsyncQueueChannelLayer, begin: Begin, Busy: Any) -> None:
    """A disconnect does not wait behind the messages of a flood; what is left is dropped and counted."""
    talk = begin(Busy)
    await talk.accepted()
    await layer.group_send("room", {"type": "layer.wait"})
    await waiting.acquire()
    for n in range(90):
        await layer.group_send("room", {"type": "layer.message", "n": n})
    talk.say("websocket.disconnect", code=1001)
    await eventually(talk.events.empty, "the server's word")
    go_on.set()
    await talk.ends()
    assert members[0] == [("disconnect", 1001)]
    assert layer.statistics().dropped == {"closed": 90}


async def test_disconnect_during_a_flood(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """A disconnect that comes while the layer never pauses is handled after few more messages."""
    talk = begin(Member)
    await talk.accepted()
    log = members[0]

    async def flood() -> None:
        n = 0
        while True:
            for _ in range(5):
                await layer.group_send("room", {"type": "layer.message", "n": n})
                n += 1
            await steps(1)  # without members a send on memory:// waits for nothing

    flooding = asyncio.create_task(flood())
    await eventually(lambda: len(log) > 50, "the flood")
    before = len(log)
    await talk.leaves()
    flooding.cancel()
    assert log[-1] == ("disconnect", 1000)
    assert len(log) - before < 10


async def test_others_have_their_turn(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """A consumer with a full channel, whose handlers wait for nothing, does not keep the loop for itself."""
    talk = begin(Member)
    await talk.accepted()
    for n in range(90):
        await layer.group_send("room", {"type": "layer.message", "n": n})
    turns = 0
    while len(members[0]) < 90:
        await steps(1)
        turns += 1
    assert turns >= 80
    await talk.leaves()


# The channel


async def test_channel_is_closed_at_the_end(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """When a consumer ends, however it ends, its channel is gone, and with it its memberships."""
    names: list[str] = []

    class Ends(Member):  # type: ignore[misc]
        def connect(self) -> Steps:
            names.append(self.channel_name)
            yield self.accept()

        def disconnect(self, code: int) -> None:
            if code == 1:
                raise ZeroDivisionError

    for how in ("leaves", "fails", "killed"):
        talk = begin(Ends)
        await talk.accepted()
        assert (layer.statistics().channels, layer.statistics().groups) == (1, 1)
        if how == "leaves":
            await talk.leaves()
        elif how == "fails":
            with pytest.raises(ZeroDivisionError):
                await talk.leaves(1)
        else:
            await talk.stop()
        assert (layer.statistics().channels, layer.statistics().groups) == (0, 0)
        with pytest.raises(ChannelClosed):
            await layer.send(names[-1], {"type": "too.late"})
    assert layer.statistics().dropped == {}


@pytest.mark.parametrize("name", ["inmemory", "asyncq.traced"])
async def test_other_layers_are_read_one_message_at_a_time(
    name: str, prefix: str, begin: Begin, Member: Any
) -> None:
    """A layer whose receive() must be called has one call under way, and none after the end."""
    async with installed(make(name, "", prefix)) as layer:
        asked = 0
        original = layer.receive

        async def receive(channel: str) -> Any:
            nonlocal asked
            asked += 1
            return await original(channel)

        layer.receive = receive
        talk = begin(Member)
        await talk.accepted()
        for n in range(5):
            await layer.group_send("room", {"type": "layer.message", "n": n})
        await eventually(lambda: len(members[0]) == 5, "all")
        await eventually(lambda: asked == 6, "the next call")
        await talk.leaves()
        assert asked == 6
        assert asyncio.all_tasks() == {asyncio.current_task()}  # nobody is left who could call again
        if isinstance(layer, AsyncQueueChannelLayer):
            assert layer.statistics().channels == 0


async def test_error_while_stopping_is_not_the_consumers(prefix: str, begin: Begin, Member: Any) -> None:
    """A layer that raises while its receive() is cancelled does not replace the consumer's own error."""
    async with installed(make("inmemory", "", prefix)) as layer:

        async def receive(channel: str) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("the layer's")

        layer.receive = receive

        class Fails(Member):  # type: ignore[misc]
            def receive(self, *_: Any, **__: Any) -> None:
                raise ZeroDivisionError

        talk = begin(Fails)
        await talk.accepted()
        talk.say("websocket.receive", text="x")
        with pytest.raises(ZeroDivisionError):
            await talk.ends()


async def test_idle_consumer_keeps_its_channel(
    prefix: str, begin: Begin, monkeypatch: pytest.MonkeyPatch, Busy: Any
) -> None:
    """A consumer that is in a handler for longer than `expiry` reads the same channel afterwards."""
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "session.sending", "session.views"])
    async with installed(make("asyncq.memory", "", prefix, expiry=0.1)) as layer:
        name: list[str] = []

        class Slow(Busy):  # type: ignore[misc]
            groups: list[str] = []  # noqa: RUF012

            def connect(self) -> Steps:
                name.append(self.channel_name)
                yield self.accept()

        talk = begin(Slow)
        await talk.accepted()
        await layer.send(name[0], {"type": "layer.wait"})
        await waiting.acquire()
        await layer.new_channel()  # which nobody reads
        clock.turn(1.0)
        await eventually(lambda: layer.statistics().channels == 1, "a sweep")
        await layer.send(name[0], {"type": "layer.message", "n": 1})
        go_on.set()
        await eventually(lambda: members[0] == [1], "the message")
        await talk.leaves()


@pytest.mark.parametrize("is_refused", [False, True])
async def test_consumer_is_freed(
    layer: AsyncQueueChannelLayer, begin: Begin, is_refused: bool, Member: Any, kind: Kind
) -> None:
    """A consumer that has ended is freed at once, with its scope: nothing of ours makes a circle."""
    if is_refused and kind.is_sync:
        pytest.skip("the error of a send goes round in the frames of asgiref")
    references: list[Any] = []

    class Light(Member):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            references.append(weakref.ref(self))

    gc.disable()
    try:
        talk = begin(Light)
        await talk.accepted()
        await layer.group_send("room", {"type": "layer.message", "n": 1})
        await eventually(lambda: members[0] == [1], "the message")
        if is_refused:
            talk.refuse = ClientDisconnected()
            await layer.group_send("room", {"type": "layer.reply", "text": "x"})
            await eventually(lambda: talk.refused, "the refusal")
            talk.refuse = None
        await talk.leaves()
        del talk.task
        await eventually(lambda: references[0]() is None, "its end, by counting references alone")
    finally:
        gc.enable()
        talk.task = asyncio.create_task(asyncio.sleep(0))


async def test_nothing_is_left_in_the_channel(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """A consumer that hears of its client only leaves nothing behind in its channel each time."""
    names: list[str] = []

    class Named(Member):  # type: ignore[misc]
        def connect(self) -> Steps:
            names.append(self.channel_name)
            yield self.accept()

    talk = begin(Named)
    await talk.accepted()
    for n in range(20):
        talk.say("websocket.receive", text=str(n))
        await eventually(lambda: len(members[0]) == n + 1, "the event")  # noqa: B023
    session = session_of(layer)
    await eventually(lambda: session.hub.channels.buffers[names[0]].waiting == 1, "the only waiter")
    await talk.leaves()


# websocket.send


async def test_frames_go_to_the_client(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """A `websocket.send` message goes to each client of the group as it stands, text or bytes, in order."""
    room = [begin(Member) for _ in range(3)]
    for talk in room:
        await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", "text": '{"a": 1}'})
    await layer.group_send("room", {"type": "layer.reply", "text": "between"})
    await layer.group_send("room", {"type": "websocket.send", "bytes": b"\x00\xff", "text": None})
    await layer.group_send("room", {"type": "websocket.send", "text": "", "extra": "not for the server"})
    for talk in room:
        assert [await talk.hears() for _ in range(4)] == [
            {"type": "websocket.send", "text": '{"a": 1}'},
            {"type": "websocket.send", "text": "between"},
            {"type": "websocket.send", "bytes": b"\x00\xff"},
            {"type": "websocket.send", "text": ""},
        ]
        await talk.leaves()


@pytest.mark.parametrize("name", OTHERS)
async def test_frames_from_other_layers(name: str, prefix: str, begin: Begin, Member: Any) -> None:
    """They come from any layer."""
    async with installed(make(name, "", prefix)) as layer:
        talk = begin(Member)
        await talk.accepted()
        await layer.group_send("room", {"type": "websocket.send", "text": "x"})
        assert await talk.hears() == {"type": "websocket.send", "text": "x"}
        await talk.leaves()


async def test_frames_before_accept_and_after_close(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """Before accept() and after close() there is nobody to send to: such a message is dropped."""

    class Late(Member):  # type: ignore[misc]
        def connect(self) -> None:
            pass

        def layer_open(self, event: Message) -> Steps:
            yield self.accept()

        def layer_close(self, event: Message) -> Steps:
            yield self.close(4000)

    talk = begin(Late)
    talk.say("websocket.connect")
    await eventually(lambda: layer.statistics().groups, "the membership")
    for message in ("websocket.send", "layer.open", "websocket.send", "layer.close", "websocket.send"):
        await layer.group_send("room", {"type": message, "text": "x"})
    await layer.group_send("room", {"type": "layer.message", "n": 1})
    await eventually(lambda: members[0] == [1], "the last")
    kinds = [(await talk.hears())["type"] for _ in range(3)]
    assert kinds == ["websocket.accept", "websocket.send", "websocket.close"]
    assert talk.sent.empty()
    await talk.leaves()


async def test_frames_are_the_consumers_if_it_wants_them(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """A consumer that defines websocket_send() handles them itself."""

    class Translates(Member):  # type: ignore[misc]
        def websocket_send(self, event: Message) -> Steps:
            yield self.send(text_data=event["text"].upper())

    talk = begin(Translates)
    await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", "text": "x"})
    assert (await talk.hears())["text"] == "X"
    await talk.leaves()


async def test_frames_pass_a_dispatch_of_the_consumers_own(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """A consumer that overrides dispatch() sees them there."""

    class Sees(Member):  # type: ignore[misc]
        async def dispatch(self, message: Message) -> None:
            self.log.append(message["type"])
            await super().dispatch(message)

    talk = begin(Sees)
    await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", "text": "x"})
    assert (await talk.hears())["text"] == "x"
    await talk.leaves()
    types = ["websocket.connect", "websocket.send", "websocket.disconnect"]
    assert [entry for entry in members[0] if isinstance(entry, str)] == types


@pytest.mark.parametrize("content", [{}, {"text": {"a": 1}}, {"bytes": "x"}, {"text": b"x"}])
async def test_frames_of_wrong_types(
    layer: AsyncQueueChannelLayer, begin: Begin, content: Message, Member: Any
) -> None:
    """Neither text nor bytes is an error that says what came."""
    talk = begin(Member)
    await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", **content})
    with pytest.raises(TypeError, match='needs "text", a str, or "bytes"'):
        await talk.ends()


# What the layer says


async def test_loss_without_a_handler(prefix: str, begin: Begin, Busy: Any, kind: Kind) -> None:
    """A loss is told to those who have a handler for it; the others go on."""
    async with installed(
        make("asyncq.memory", "", prefix, capacity=3, on_loss="layer.loss", on_reconnect="layer.up")
    ) as layer:

        class Told(Busy):  # type: ignore[misc]
            def layer_loss(self, event: Message) -> None:
                self.log.append(event["reason"])

        room = [begin(Busy), begin(Told)]
        for talk in room:
            await talk.accepted()
        await layer.group_send("room", {"type": "layer.wait"})
        for _ in room[: 1 if kind.is_sync else 2]:  # sync handlers have one thread
            await waiting.acquire()
        for n in range(8):
            await layer.group_send("room", {"type": "layer.message", "n": n})
        await eventually(lambda: layer.statistics().told, "the loss")
        go_on.set()
        await eventually(lambda: "overflow" in members[1], "the word")
        await layer.group_send("room", {"type": "layer.message", "n": 99})
        await layer.group_send("room", {"type": "layer.up"})
        await layer.group_send("room", {"type": "layer.message", "n": 100})
        await eventually(lambda: all(members[n][-1] == 100 for n in range(2)), "life after it")
        for talk in room:
            await talk.leaves()


@pytest.mark.parametrize("name", ["asyncq.memory", "asyncq.traced"])
async def test_overflow_closes_the_websocket(name: str, prefix: str, begin: Begin, Busy: Any) -> None:
    """overflow="close": the client gets what was in the channel, then 1013, and disconnect() runs."""
    async with installed(make(name, "", prefix, capacity=3, overflow="close")) as layer:
        talk = begin(Busy)
        await talk.accepted()
        await layer.group_send("room", {"type": "layer.wait"})
        await waiting.acquire()
        for n in range(6):
            await layer.group_send("room", {"type": "layer.message", "n": n})
        await eventually(lambda: layer.statistics().told, "the overflow")
        go_on.set()
        assert await talk.hears() == {"type": "websocket.close", "code": 1013}
        await talk.leaves(1013)
        log = members[0]
        assert log[-1] == ("disconnect", 1013)
        assert log[:-1] == list(range(3))


async def test_overflow_of_what_is_no_websocket(prefix: str, begin: Begin, kind: Kind) -> None:
    """A consumer that is not a WebSocket's gets ChannelClosed, as receive() raises it."""

    class Listens(kind.Consumer):  # type: ignore[misc, name-defined]
        async def end(self) -> None:
            await self.channel_layer.close_channel(self.channel_name)

        def begin_now(self, event: Message) -> Steps:
            yield self.end()

    async with installed(make("asyncq.memory", "", prefix)):
        talk = begin(Listens, {"type": "channel"})
        talk.say("begin.now")
        with pytest.raises(ChannelClosed):
            await talk.ends()


async def test_layer_closed_under_a_websocket(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """A layer that is closed closes the WebSocket with 1013; disconnect() runs."""

    class Alone(Member):  # type: ignore[misc]
        groups: list[str] = []  # noqa: RUF012

    talk = begin(Alone)
    await talk.accepted()
    await layer.close()
    assert await talk.hears() == {"type": "websocket.close", "code": 1013}
    await talk.leaves()
    assert members[0] == [("disconnect", 1000)]
    with pytest.raises(LayerClosed):
        await layer.new_channel()


# A client that has gone


class ClientDisconnected(OSError):
    """What uvicorn raises."""


class Disconnected(RuntimeError):
    """What autobahn raises under Daphne, between the client's goodbye and the end of the connection."""


@pytest.mark.parametrize("refusal", [ClientDisconnected, Disconnected])
@pytest.mark.parametrize("by", ["handler", "frame", "event"])
async def test_client_gone_while_sending(
    layer: AsyncQueueChannelLayer, begin: Begin, by: str, refusal: type[Exception], Member: Any
) -> None:
    """
    A server that refuses to send because the client has gone: the handler ends with that error, as ever, and
    then disconnect() runs, before anything else of the layer.
    """

    class Answers(Member):  # type: ignore[misc]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            self.log.append(text_data)
            if text_data != "quiet":
                yield self.send(text_data="x")
                self.log.append("never")

    events = ["first", "second", "quiet"] if by == "event" else []
    talk = begin(Answers)
    await talk.accepted()
    await eventually(lambda: talk.asked == 2, "the end of connect()")
    talk.refuse = refusal()
    if by == "event":
        for text in events:
            talk.say("websocket.receive", text=text)
        await layer.group_send("room", {"type": "layer.message", "n": 1})
        await eventually(lambda: members[0] == events, "the events")
    else:
        kind = "layer.reply" if by == "handler" else "websocket.send"
        await layer.group_send("room", {"type": kind, "text": "x"})
        await layer.group_send("room", {"type": "layer.message", "n": 1})
        await eventually(lambda: talk.refused, "the refusal")
    talk.say("websocket.disconnect", code=1006)
    await talk.ends()
    assert members[0] == [*events, ("disconnect", 1006)]
    assert layer.statistics().channels == 0


async def test_client_gone_during_connect(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """accept() for a client that has gone already leads to disconnect() too."""
    talk = begin(Member)
    talk.refuse = ClientDisconnected()
    talk.say("websocket.connect")
    talk.say("websocket.disconnect", code=1006)
    await talk.ends()
    assert members[0] == [("disconnect", 1006)]


async def test_client_gone_and_sent_to_in_disconnect(
    layer: AsyncQueueChannelLayer, begin: Begin, Member: Any
) -> None:
    """What disconnect() itself sends to nobody reaches the server as its error."""

    class Waves(Member):  # type: ignore[misc]
        def disconnect(self, code: int) -> Steps:
            yield self.send(text_data="bye")

    talk = begin(Waves)
    await talk.accepted()
    talk.refuse = ClientDisconnected()
    with pytest.raises(ClientDisconnected):
        await talk.leaves()


async def test_error_of_send_that_is_none_of_the_client(
    layer: AsyncQueueChannelLayer, begin: Begin, monkeypatch: pytest.MonkeyPatch, Member: Any
) -> None:
    """An OSError of something between us and the server, while the client is there, ends the consumer."""
    monkeypatch.setattr(conversation, "GRACE", 0.05)
    refusal = ConnectionResetError("the session store")
    talk = begin(Member)
    await talk.accepted()
    talk.refuse = refusal
    await layer.group_send("room", {"type": "layer.reply", "text": "x"})
    with pytest.raises(ConnectionResetError) as caught:
        await talk.ends()
    assert caught.value is refusal
    assert members[0] == []


async def test_error_of_send_that_passes(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """An error of send() after which something goes through was no word about the client: it is raised."""

    class Answers(Member):  # type: ignore[misc]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.send(text_data="x")

    refusal = ConnectionResetError("once")
    talk = begin(Answers)
    await talk.accepted()
    talk.refuse = refusal
    talk.say("websocket.receive", text="x")
    await eventually(lambda: talk.refused, "the refusal")
    talk.refuse = None
    talk.say("websocket.receive", text="y")
    assert (await talk.hears())["text"] == "x"
    with pytest.raises(ConnectionResetError) as caught:
        await talk.ends()
    assert caught.value is refusal


async def test_mistake_before_accept(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """Sending before accept() is the consumer's mistake too."""

    class Hasty(Member):  # type: ignore[misc]
        def connect(self) -> Steps:
            yield self.send(text_data="x")

    talk = begin(Hasty)
    talk.refuse = RuntimeError("expected 'websocket.accept'")
    talk.say("websocket.connect")
    talk.say("websocket.disconnect", code=1006)
    with pytest.raises(RuntimeError, match="expected"):
        await talk.ends()


async def test_mistake_after_close(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """Sending after close() is the consumer's mistake: disconnect() runs, and the server gets the error."""

    class Careless(Member):  # type: ignore[misc]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.close()
            talk.refuse = RuntimeError("after sending 'websocket.close'")
            yield on_loop(lambda: talk.say("websocket.disconnect", code=1000))
            yield self.send(text_data="x")

    talk = begin(Careless)
    await talk.accepted()
    talk.say("websocket.receive", text="x")
    with pytest.raises(RuntimeError, match="after sending"):
        await talk.ends()
    assert members[0] == [("disconnect", 1000)]


async def test_errors_of_others_are_raised(layer: AsyncQueueChannelLayer, begin: Begin, Member: Any) -> None:
    """An OSError of the handler's own doing ends the consumer at once."""

    class Fails(Member):  # type: ignore[misc]
        def layer_fail(self, event: Message) -> None:
            raise FileNotFoundError("mine")

    talk = begin(Fails)
    await talk.accepted()
    await layer.group_send("room", {"type": "layer.fail"})
    with pytest.raises(FileNotFoundError):
        await talk.ends()


@pytest.mark.parametrize("by", ["layer", "client"])
async def test_disconnect_comes_before_messages_after_close(
    layer: AsyncQueueChannelLayer, begin: Begin, by: str, Busy: Any
) -> None:
    """A server that answers close() with the disconnect at once (uvicorn): no handler sends after the close."""

    class Closes(Busy):  # type: ignore[misc]
        def layer_close(self, event: Message) -> Steps:
            yield self.layer_wait(event)
            yield self.close()
            yield on_loop(lambda: talk.say("websocket.disconnect", code=1000))
            talk.refuse = RuntimeError("after sending 'websocket.close'")

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.layer_close({})

    talk = begin(Closes)
    await talk.accepted()
    if by == "client":
        talk.say("websocket.receive", text="close")
    else:
        await layer.group_send("room", {"type": "layer.close"})
    await waiting.acquire()
    for n in range(5):
        await layer.group_send("room", {"type": "layer.reply", "text": str(n)})
    go_on.set()
    await talk.ends()
    assert members[0] == [("disconnect", 1000)]


async def test_stop_consumer_without_conversation(kind: Kind) -> None:
    """dispatch() can be called by hand, as tests of consumers do."""

    class Plain(kind.Consumer):  # type: ignore[misc, name-defined]
        def stop_now(self, event: Message) -> None:
            raise StopConsumer()

    with pytest.raises(StopConsumer):
        await Plain().dispatch({"type": "stop.now"})
    with pytest.raises(ValueError, match="No handler"):
        await Plain().dispatch({"type": "websocket.send", "text": "x"})
    assert channel_layers is not None
