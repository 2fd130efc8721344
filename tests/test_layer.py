"""The layer as Channels sees it: attributes, names, options passed on, get_layer()."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

import channels_asyncq
from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, LayerClosed, Statistics, get_layer
from channels_asyncq.session.statistics import Statistics as SessionStatistics
from tests.contract import note, receive


def layer(**config: Any) -> AsyncQueueChannelLayer:
    return AsyncQueueChannelLayer(**{"hosts": ["memory://"], **config})


def test_what_channels_looks_at() -> None:
    """The attributes of the specification, with the values of CONFIG."""
    one = layer(prefix="p", capacity=7, expiry=9, group_expiry=11)
    assert one.extensions == ["groups", "flush"]
    assert (one.prefix, one.capacity, one.expiry, one.group_expiry) == ("p", 7, 9, 11)
    assert one.ChannelFull is ChannelFull and one.MessageTooLarge is MessageTooLarge
    assert one.statistics() == Statistics() and Statistics is SessionStatistics


def test_channel_capacity() -> None:
    """Patterns decide a channel's capacity, the first that matches, also by Channels' own method."""
    one = layer(capacity=7, channel_capacity={"big.*": 20, "big.small*": 3})
    assert [one.get_capacity(name) for name in ("big.x", "big.small", "other")] == [20, 20, 7]


def test_patched_settings() -> None:
    """`mock.patch.object()` on a setting gives way to CONFIG; a list that is no list of pairs is told."""
    one = layer(capacity=7, expiry=9)
    with mock.patch.object(one, "capacity", 3), mock.patch.object(one, "expiry", 1):
        assert (one.get_capacity("x"), one.capacity, one.expiry) == (3, 3, 1)
    assert (one.get_capacity("x"), one.capacity, one.expiry) == (7, 7, 9)
    with pytest.raises(ImproperlyConfigured, match=r"channel_capacity = \['x'\]: must be a dict"):
        one.channel_capacity = ["x"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "asgi:0:group:chat"),
        ({"hosts": ["redis://h/3"], "prefix": "shop"}, "shop:3:group:chat"),
        ({"hosts": [("h", 1), {"host": "h", "db": 7}]}, "asgi:0:group:chat"),
        ({"hosts": [("h", 1), {"host": "h", "db": 7}], "partitions": 3}, "asgi:7:group:chat"),
        ({"hosts": ["redis+cluster://h"]}, "asgi:0:{70}:group:chat"),
        ({"hosts": ["redis+cluster://h"], "partitions": 16}, "asgi:0:{63}:group:chat"),
    ],
)
def test_topic_of_a_group(config: dict[str, Any], name: str) -> None:
    """The name on which another program publishes, for the settings of the layer; it needs no connection."""
    one = AsyncQueueChannelLayer(**config)
    assert one.topic_of_group("chat") == name
    with pytest.raises(TypeError, match="Group name may contain only"):
        one.topic_of_group("chat!")


def test_topic_of_a_group_without_a_server() -> None:
    """On memory:// no other program could publish: the error says so, with the remedy."""
    with pytest.raises(ChannelLayerError, match=r"group 'chat': the layer is on memory://.*Set `hosts`"):
        layer().topic_of_group("chat")


@pytest.mark.parametrize(
    "config", [{"capacity": 0}, {"capasity": 1}, {"hosts": ["http://x"]}, {"expiry": "x"}]
)
def test_a_bad_config(config: dict[str, Any]) -> None:
    """A CONFIG that is wrong is refused when the layer is made."""
    with pytest.raises(ImproperlyConfigured):
        layer(**config)


ALLOWED = "abcXYZ019-_."


@given(name=st.text(ALLOWED, min_size=1, max_size=100))
def test_valid_names(name: str) -> None:
    """ASCII letters, digits, hyphens, underscores and periods, 1 to 100; a channel may have one mark."""
    one = layer()
    assert one.require_valid_channel_name(name) and one.require_valid_group_name(name)
    assert one.require_valid_channel_name(name, receive=True)
    if len(name) < 100:
        assert one.require_valid_channel_name(name + "!")
        assert one.require_valid_channel_name(name + "!", receive=True)


@given(name=st.text(max_size=110))
def test_any_name(name: str) -> None:
    """Whatever else is a TypeError that quotes it; never another error."""
    one = layer()
    is_valid = 0 < len(name) <= 100 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in name)
    if is_valid:
        assert one.require_valid_group_name(name)
        return
    with pytest.raises(TypeError) as raised:
        one.require_valid_group_name(name)
    assert repr(name) in str(raised.value)


class Name(str):
    """A str of somebody's own, as Django's SafeString is."""


@pytest.mark.parametrize("name", [None, 5, b"room", ["room"], ("room",), {}])
def test_names_of_another_type(name: object) -> None:
    """A TypeError says which type it was, for what can and what cannot be looked up in a cache."""
    one = layer()
    for require in (one.require_valid_channel_name, one.require_valid_group_name):
        with pytest.raises(TypeError, match=type(name).__name__):
            require(name)


def test_names_of_a_subclass() -> None:
    """A str is a str."""
    one = layer()
    assert one.require_valid_channel_name(Name("room")) and one.require_valid_group_name(Name("room"))
    with pytest.raises(TypeError):
        one.require_valid_group_name(Name("a b"))
    with pytest.raises(TypeError, match="received from"):
        one.require_valid_channel_name(Name(f"specific.{'0' * 16}!"))


def test_a_wrong_length_is_reported_as_a_length() -> None:
    """The text has the limit and the length."""
    with pytest.raises(TypeError, match="1 to 100 characters, not 101"):
        layer().require_valid_group_name("n" * 101)


@override_settings(
    CHANNEL_LAYERS={
        "default": {"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": {"hosts": ["memory://"]}},
        "other": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
    }
)
def test_get_layer() -> None:
    """get_layer() is Channels' get_channel_layer() for this backend, the same object."""
    one = get_layer()
    assert isinstance(one, AsyncQueueChannelLayer)
    assert one is get_layer("default") is get_channel_layer()
    with pytest.raises(ImproperlyConfigured, match=r"'other'.*InMemoryChannelLayer"):
        get_layer("other")
    with pytest.raises(ImproperlyConfigured, match=r"'third'.*not configured"):
        get_layer("third")


def test_the_package_has_what_it_names() -> None:
    """Every public name is there, and others are an AttributeError."""
    for name in channels_asyncq.__all__:
        assert getattr(channels_asyncq, name)
    with pytest.raises(AttributeError):
        getattr(channels_asyncq, "no_such_" + "name")


async def test_the_prefix_of_new_channels(prefix: str) -> None:
    """A prefix stands before the session, with one period; one that makes no channel name is a TypeError."""
    one = layer(prefix=prefix)
    for given_prefix, start in (("jobs", "jobs."), ("jobs.", "jobs."), ("specific.", "specific.")):
        assert (await one.new_channel(given_prefix)).startswith(start)
    name = await one.new_channel("")
    assert "!" in name
    await one.send(name, note(1))
    assert await receive(one, name) == note(1)
    for wrong in ("a b", "a!b", "x" * 90):
        with pytest.raises(TypeError):
            await one.new_channel(wrong)
    await one.close()


async def test_too_large(prefix: str) -> None:
    """The encoded size counts, and the text has both figures."""
    one = layer(prefix=prefix, max_message_size=1000)
    channel = await one.new_channel()
    await one.send(channel, {"type": "x", "text": "y" * 900})
    for attempt in (one.send(channel, {"text": "y" * 1001}), one.group_send("g", {"text": "y" * 1001})):
        with pytest.raises(MessageTooLarge, match=r"10\d\d bytes.*1000"):
            await attempt
    await one.close()


async def test_closed_before_it_was_used(prefix: str) -> None:
    """A layer that was closed makes no session any more."""
    one = layer(prefix=prefix)
    await one.close()
    for attempt in (one.new_channel(), one.receive("jobs"), one.send("jobs", note(1)), one.flush()):
        with pytest.raises(LayerClosed):
            await attempt
    assert one.statistics() == Statistics()


async def test_statistics_add_up() -> None:
    """Two sessions' figures: counts are added, channels are sorted by what waits, links are all there."""
    one = Statistics(1, 2, (("a", 1),), 3, dropped={"expired": 1})
    two = Statistics(10, 20, (("b", 5),), 30, dropped={"expired": 2, "overflow": 4})
    both = one + two
    assert (both.channels, both.groups, both.delivered) == (11, 22, 33)
    assert both.queued == (("b", 5), ("a", 1)) and both.dropped == {"expired": 3, "overflow": 4}
    assert not both.connected and both.reconnects == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
