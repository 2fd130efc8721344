"""`channels_asyncq.sync`: sends from code that has no event loop."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import channel_layers, get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test import override_settings

import channels_asyncq
from channels_asyncq import AsyncQueueChannelLayer, LayerClosed, LayerUnavailable, get_layer, sync
from channels_asyncq.testing import EmbeddedServer
from tests.contract import assert_nothing_waits, note, notes, receive, receive_many


@pytest.fixture(params=["memory", "redis"])
def layer(request: pytest.FixtureRequest, prefix: str) -> Iterator[AsyncQueueChannelLayer]:
    """A layer as CHANNEL_LAYERS["default"], on each bus."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    config = {"hosts": [url], "prefix": prefix, "capacity": 5, "max_message_size": 10_000}
    backend = "channels_asyncq.AsyncQueueChannelLayer"
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}}):
        yield get_layer()


class TestSends:
    """What arrives."""

    def test_send_to_a_normal_channel(self, layer: AsyncQueueChannelLayer) -> None:
        """Messages arrive in the order of the calls."""
        for message in notes(5):
            sync.send("jobs", message)
        assert asyncio.run(receive_many(layer, "jobs", 5)) == notes(5)

    async def test_send_to_a_channel_of_a_running_loop(self, layer: AsyncQueueChannelLayer) -> None:
        """A thread reaches a channel of the main loop."""
        channel = await layer.new_channel()
        await asyncio.to_thread(sync.send, channel, note(1))
        assert await receive(layer, channel) == note(1)

    async def test_group_send_and_exclude(self, layer: AsyncQueueChannelLayer) -> None:
        """A thread reaches the members of a group, but for those it excludes."""
        first, second = await layer.new_channel(), await layer.new_channel()
        for channel in (first, second):
            await layer.group_add("room", channel)
        await sync_to_async(sync.group_send)("room", note(1))
        await sync_to_async(sync.group_send)("room", note(2), exclude=[first])
        await sync_to_async(sync.group_send)("room", note(3))
        assert await receive_many(layer, first, 2) == [note(1), note(3)]
        assert await receive_many(layer, second, 3) == [note(1), note(2), note(3)]

    def test_group_with_a_normal_channel(self, layer: AsyncQueueChannelLayer) -> None:
        """Normal channels that are members get their copy."""
        asyncio.run(layer.group_add("room", "jobs"))
        sync.group_send("room", note(1))
        assert asyncio.run(receive(layer, "jobs")) == note(1)

    def test_layer_by_alias_and_itself(self, layer: AsyncQueueChannelLayer) -> None:
        """`layer` is an alias of CHANNEL_LAYERS or a layer."""
        sync.send("jobs", note(1), "default")
        sync.send("jobs", note(2), layer=layer)
        assert asyncio.run(receive_many(layer, "jobs", 2)) == [note(1), note(2)]


class TestErrors:
    """The errors are those of the layer's own methods."""

    def test_on_a_running_loop(self, layer: AsyncQueueChannelLayer) -> None:
        """A clear error says what to await instead, with on_commit too."""

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"await layer\.send\("):
                sync.send("jobs", note(1))
            with pytest.raises(RuntimeError, match=r"await layer\.group_send\("):
                sync.group_send("room", note(1), on_commit=True)

        asyncio.run(main())

    def test_bad_input(self, layer: AsyncQueueChannelLayer) -> None:
        """Wrong names and messages are refused by the call, before anything is sent."""
        with pytest.raises(TypeError, match="no channel"):
            sync.send("no channel", note(1))
        with pytest.raises(TypeError, match="no group"):
            sync.group_send("no group", note(1))
        with pytest.raises(TypeError, match="value"):
            sync.send("jobs", {"type": "x", "value": object()})
        with pytest.raises(TypeError, match="value"):
            sync.group_send("room", {"type": "x", "value": object()}, on_commit=True)
        with pytest.raises(TypeError, match="exclude"):
            sync.group_send("room", note(1), exclude="channel")
        with pytest.raises(MessageTooLarge):
            sync.send("jobs", {"type": "x", "text": "x" * 10_001})
        with pytest.raises(TypeError, match="on_commit=True is missing"):
            sync.send("jobs", note(1), using="default")
        asyncio.run(assert_nothing_waits(layer, "jobs"))

    def test_channel_full(self, layer: AsyncQueueChannelLayer) -> None:
        """A normal channel at its capacity raises ChannelFull, time after time."""
        for message in notes(5):
            sync.send("jobs", message)
        for _ in range(3):
            with pytest.raises(ChannelFull, match="jobs"):
                sync.send("jobs", note(6))
        assert asyncio.run(receive_many(layer, "jobs", 5)) == notes(5)

    def test_another_backend(self) -> None:
        """An alias of another backend, or of none, is ImproperlyConfigured."""
        with override_settings(
            CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
        ):
            with pytest.raises(ImproperlyConfigured, match="InMemoryChannelLayer"):
                sync.send("jobs", note(1))
            with pytest.raises(ImproperlyConfigured, match="'other'"):
                sync.send("jobs", note(1), layer="other")

    def test_closed_layer(self, layer: AsyncQueueChannelLayer) -> None:
        """A closed layer raises LayerClosed."""
        layer.close_from_thread()
        with pytest.raises(LayerClosed):
            sync.send("jobs", note(1))
        with pytest.raises(LayerClosed):
            sync.group_send("room", note(1))


@pytest.mark.django_db(transaction=True)
class TestOnCommit:
    """on_commit=True: after the transaction, and never a reason for an error."""

    def test_sent_after_the_commit(self, layer: AsyncQueueChannelLayer) -> None:
        """Nothing is sent before the transaction has committed; what was committed is sent in order."""
        with transaction.atomic():
            for n in range(2):
                sync.send("jobs", note(n), on_commit=True)
            with transaction.atomic():
                sync.send("jobs", note(2), on_commit=True, using="default")
            asyncio.run(assert_nothing_waits(layer, "jobs"))
        assert asyncio.run(receive_many(layer, "jobs", 3)) == notes(3)

    def test_message_as_it_was(self, layer: AsyncQueueChannelLayer) -> None:
        """What changes in the dict after the call is not sent."""
        message = {"type": "test.note", "state": ["before"]}
        with transaction.atomic():
            sync.send("jobs", message, on_commit=True)
            message["state"] = ["after"]
        assert asyncio.run(receive(layer, "jobs"))["state"] == ["before"]

    def test_never_sent_after_a_rollback(self, layer: AsyncQueueChannelLayer) -> None:
        """A transaction, or a savepoint, that is rolled back sends nothing."""
        with transaction.atomic():
            try:
                with transaction.atomic():
                    sync.send("jobs", note(1), on_commit=True)
                    raise KeyError
            except KeyError:
                pass
            sync.send("jobs", note(2), on_commit=True)
        try:
            with transaction.atomic():
                sync.group_send("room", note(3), on_commit=True)
                raise KeyError
        except KeyError:
            pass
        assert asyncio.run(receive(layer, "jobs")) == note(2)
        asyncio.run(assert_nothing_waits(layer, "jobs"))

    def test_sent_at_once_outside_of_a_transaction(self, layer: AsyncQueueChannelLayer) -> None:
        """In autocommit there is nothing to wait for."""
        sync.send("jobs", note(1), on_commit=True)
        assert asyncio.run(receive(layer, "jobs")) == note(1)

    def test_dead_server_is_logged_and_raises_nothing(
        self, own_redis_server: EmbeddedServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        The committed request goes on, with the other callbacks; one log line per message names the event code,
        the target, the error and the address.
        """
        layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix, send_timeout=0.2)
        own_redis_server.kill()
        ran: list[str] = []
        caplog.set_level(logging.ERROR)
        with transaction.atomic():
            sync.group_send("room", note(1), layer, on_commit=True)
            transaction.on_commit(lambda: ran.append("after"))
            sync.send("jobs", note(2), layer, on_commit=True)
        assert ran == ["after"]
        lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.name for record in lines] == ["channels_asyncq.loss"] * 2
        assert [record.__dict__["code"] for record in lines] == ["commit.unsent"] * 2
        assert "group 'room'" in lines[0].getMessage()
        assert f"127.0.0.1:{own_redis_server.port}" in lines[0].getMessage()
        with pytest.raises(LayerUnavailable):
            sync.send("jobs", note(2), layer)
        layer.close_from_thread()

    async def test_from_a_view_of_a_running_server(self, layer: AsyncQueueChannelLayer) -> None:
        """A sync view in a thread beside the main loop commits, and the loop's consumer receives."""
        channel = await layer.new_channel()
        await layer.group_add("room", channel)

        def view() -> None:
            with transaction.atomic():
                sync.group_send("room", note(1), on_commit=True)
            connection.close()

        await sync_to_async(view)()
        assert await receive(layer, channel) == note(1)


class TestChangedSettings:
    """CHANNEL_LAYERS changes: what Channels drops is closed."""

    @staticmethod
    def settings(url: str, prefix: str) -> dict[str, Any]:
        config = {"hosts": [url], "prefix": prefix}
        return {"default": {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": config}}

    def test_sync_senders_layer(self, own_redis_server: EmbeddedServer, prefix: str) -> None:
        """The relay's connections of a dropped layer are closed when override_settings() returns."""

        def connections() -> int:
            return len(own_redis_server.command("CLIENT", "LIST").splitlines()) - 1

        for _ in range(3):
            with override_settings(CHANNEL_LAYERS=self.settings(own_redis_server.url, prefix)):
                sync.group_send("room", note(1))
                dropped = get_layer()
                assert 1 <= connections() <= 2
            assert dropped.is_closed
            assert connections() == 0
        assert get_layer() is not dropped

    async def test_layer_of_the_running_loop(self, redis_url: str, prefix: str) -> None:
        """Receivers of a dropped layer end with LayerClosed; the new layer works, the old comes back anew."""
        with override_settings(CHANNEL_LAYERS=self.settings(redis_url, prefix)):
            layer = get_layer()
            channel = await layer.new_channel()
            receiving = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            with pytest.raises(LayerClosed):
                await receiving
        with pytest.raises(LayerClosed):
            await layer.send(channel, note(1))
        again = get_layer()
        await again.send("jobs", note(1))
        assert await receive(again, "jobs") == note(1)

    def test_layers_of_others_are_left_alone(self, prefix: str) -> None:
        """Layers that Channels did not make, or has handed back, stay open; so do other backends' settings."""
        own = AsyncQueueChannelLayer(hosts=["memory://"], prefix=prefix)
        before = get_channel_layer()
        assert before is not None
        old = channel_layers.set("default", own)
        assert old is before
        channel_layers.set("default", old)
        with override_settings(ALLOWED_HOSTS=["elsewhere"]):
            assert get_channel_layer() is before
        with override_settings(
            CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
        ):
            sync.send("jobs", note(1), own)
        assert asyncio.run(receive(own, "jobs")) == note(1)
        own.close_from_thread()


class TestImports:
    """What importing costs."""

    def test_package_imports_its_parts_when_asked(self) -> None:
        """Importing the package, or its pytest plugin, imports neither Django nor Channels nor redis-py."""
        text = (
            "import sys, channels_asyncq.pytest_plugin as plugin\n"
            "loaded = {name.partition('.')[0] for name in sys.modules}\n"
            "print(sorted(loaded & {'django', 'channels', 'redis', 'hiredis', 'ormsgpack', 'asgiref'}))\n"
            "import channels_asyncq\n"
            "print(channels_asyncq.AsyncQueueChannelLayer.__name__, channels_asyncq.sync.send.__name__)\n"
        )
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("[]\nAsyncQueueChannelLayer send\n", "")

    def test_every_name_is_there(self) -> None:
        """`__all__`, dir() and attribute access agree; other names are AttributeErrors."""
        assert set(channels_asyncq.__all__) <= set(dir(channels_asyncq))
        for name in channels_asyncq.__all__:
            assert getattr(channels_asyncq, name) is not None
        with pytest.raises(AttributeError, match="nonsense"):
            _ = channels_asyncq.nonsense
