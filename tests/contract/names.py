"""What may be the name of a channel or a group."""

import re
from typing import Any

import pytest

from channels_asyncq import ChannelLayerError
from tests.contract import (
    MakeLayer,
    MakeSpecifiedLayer,
    assert_nothing_waits,
    calls,
    member_of,
    note,
    receive,
    started,
)

NO_CHANNELS = ["", " ", "a b", "raum:1", "a/b", "räume", "a!b!c", "!", "!a", "a?b", "a*", "a\tb", "a{b}"]
NO_GROUPS = ["", "a b", "raum:1", "räume", "a!b", "a!", "a?", "a*", "a{b}"]
NO_STRINGS = [None, 5, 1.5, b"room", ["room"], ("room",), pytest.param(object(), id="object")]


class SpecifiedNames:
    """What may be the name of a channel or a group."""

    @pytest.mark.parametrize("name", ["room", "a", "A9", "chat-room_1.x", "0", "-", ".", "_", "n" * 99])
    async def test_valid_names(self, make_layer: MakeSpecifiedLayer, name: str) -> None:
        """ASCII letters, digits, hyphens, underscores and periods make a channel name and a group name."""
        layer = await make_layer()
        await layer.send(name, note(1))
        assert await receive(layer, name) == note(1)
        member = await layer.new_channel()
        await layer.group_add(name, member)
        await layer.group_send(name, note(2))
        assert await receive(layer, member) == note(2)
        await layer.group_discard(name, member)

    @pytest.mark.parametrize("name", [*NO_CHANNELS, *NO_STRINGS], ids=repr)
    async def test_invalid_channel_names(self, make_layer: MakeSpecifiedLayer, name: Any) -> None:
        """Any other channel name is a TypeError, whatever one tries to do with it."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.send(name, note(1))
        with pytest.raises(TypeError):
            await receive(layer, name)
        with pytest.raises(TypeError):
            await layer.group_add("room", name)
        with pytest.raises(TypeError):
            await layer.group_discard("room", name)
        await assert_nothing_waits(layer, member)

    @pytest.mark.parametrize("name", [*NO_GROUPS, *NO_STRINGS], ids=repr)
    async def test_invalid_group_names(self, make_layer: MakeSpecifiedLayer, name: Any) -> None:
        """Any other group name is a TypeError, and so is one with an exclamation mark."""
        layer = await make_layer()
        member = await layer.new_channel()
        with pytest.raises(TypeError):
            await layer.group_add(name, member)
        with pytest.raises(TypeError):
            await layer.group_discard(name, member)
        with pytest.raises(TypeError):
            await layer.group_send(name, note(1))

    async def test_new_channel_names(self, make_layer: MakeSpecifiedLayer) -> None:
        """new_channel() gives valid names with one exclamation mark, never the same twice."""
        layer = await make_layer()
        names = [await layer.new_channel() for _ in range(50)]
        assert len(set(names)) == 50
        for name in names:
            assert re.fullmatch(r"[A-Za-z0-9._-]+![A-Za-z0-9._-]+", name)
            assert len(name) <= 100


class Names(SpecifiedNames):
    """Where the regular expressions of Channels are laxer or stricter than the specification."""

    @pytest.mark.parametrize(
        "name", ["room\n", "room\u0661", "raum\u0967", "room!x\n", "room!\u0661", "room!ä"]
    )
    async def test_names_that_only_look_valid(self, make_layer: MakeLayer, name: str) -> None:
        """A trailing newline, digits of other alphabets and letters beyond ASCII, also after the `!`."""
        layer = await make_layer()
        member = await layer.new_channel()
        for attempt in calls(
            lambda: layer.send(name, note(1)),
            lambda: receive(layer, name),
            lambda: layer.group_add("room", name),
            lambda: layer.group_add(name, member),
            lambda: layer.group_send(name, note(1)),
        ):
            with pytest.raises(TypeError):
                await attempt()

    @pytest.mark.parametrize(
        "name", ["x!y", "x!", "specific.inmemory!abc", "specific.0123456789abcde!1", "0123456789ABCDEF!1"]
    )
    async def test_a_specific_name_that_no_session_made(self, make_layer: MakeLayer, name: str) -> None:
        """
        To receive from it is an error at once that says why. To all else it is a channel of a process that is
        gone: what is sent to it is dropped, and it is in no group.
        """
        layer = await make_layer()
        member = await member_of(layer)
        reader = await started(layer.receive(name))
        assert reader.done()
        with pytest.raises(ChannelLayerError, match=f"'{name}' was not made by new_channel"):
            await reader
        await layer.send(name, note(1))
        joining = await started(layer.group_add("room", name))
        assert joining.done()
        assert layer.statistics().dropped == {"dead_owner": 1}
        await layer.group_send("room", note(2))
        assert await receive(layer, member) == note(2)
        await layer.group_discard("room", name)
        assert layer.statistics().dropped == {"dead_owner": 1}
        for attempt in calls(lambda: layer.send_wait(name, note(1)), lambda: layer.close_channel(name)):
            with pytest.raises(ChannelLayerError, match="not made by new_channel"):
                await attempt()

    async def test_names_of_100_bytes(self, make_layer: MakeLayer) -> None:
        """100 bytes are a name, as the specification wants."""
        layer = await make_layer()
        name = "n" * 100
        await layer.send(name, note(1))
        assert await receive(layer, name) == note(1)
        member = await layer.new_channel()
        await layer.group_add(name, member)
        await layer.group_send(name, note(2))
        assert await receive(layer, member) == note(2)

    async def test_a_name_too_long_is_reported_as_too_long(self, make_layer: MakeLayer) -> None:
        """The error for a name of valid characters but wrong length speaks of the length."""
        layer = await make_layer()
        member = await layer.new_channel()
        for attempt in calls(
            lambda: layer.send("n" * 2000, note(1)),
            lambda: layer.group_send("n" * 2000, note(1)),
            lambda: layer.group_add("n" * 2000, member),
        ):
            with pytest.raises(TypeError, match=r"2000|long|length"):
                await attempt()

    async def test_an_invalid_name_is_quoted(self, make_layer: MakeLayer) -> None:
        """The error for invalid characters names the value."""
        layer = await make_layer()
        with pytest.raises(TypeError, match="so bad"):
            await layer.send("so bad", note(1))

    @pytest.mark.parametrize("exclude", ["room", [5], [None], 5], ids=repr)
    async def test_exclude_that_is_no_list_of_names(self, make_layer: MakeLayer, exclude: Any) -> None:
        """`exclude` is an iterable of channel names: anything else, a single str too, is a TypeError."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.group_send("room", note(1), exclude=exclude)
