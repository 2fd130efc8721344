"""The error tree: who catches what, what each error carries and says."""

from __future__ import annotations

import copy
import pickle

import pytest

from channels_asyncq.exceptions import (
    ChannelClosed,
    ChannelLayerError,
    DeliveryUnknown,
    LayerClosed,
    LayerUnavailable,
)


def test_tree_is_caught_by_its_root_and_by_builtin() -> None:
    """One except clause catches every error of the layer; an outage is also a builtin ConnectionError."""
    for error in (ChannelClosed, LayerClosed, LayerUnavailable, DeliveryUnknown):
        assert issubclass(error, ChannelLayerError)
    assert issubclass(LayerClosed, ChannelClosed)
    assert issubclass(LayerUnavailable, ConnectionError)


def test_channel_closed_names_channel() -> None:
    """The error carries the channel and names it in its text."""
    error = ChannelClosed("specific.abc!x")
    assert error.channel == "specific.abc!x"
    assert str(error) == "Channel 'specific.abc!x' is closed."


def test_layer_closed_with_and_without_channel() -> None:
    """A closed layer says that it is the layer, and names the channel where there is one."""
    assert str(LayerClosed()) == "The channel layer is closed."
    assert str(LayerClosed("chat")) == "The channel layer is closed; channel 'chat' cannot be used any more."


def test_layer_unavailable_says_where_and_why() -> None:
    """The text of an outage holds the address and the reason, not an errno."""
    error = LayerUnavailable("redis://localhost:6379/0", "Connection refused")
    assert (error.address, error.reason) == ("redis://localhost:6379/0", "Connection refused")
    assert str(error) == "No connection to redis://localhost:6379/0: Connection refused"
    assert error.errno is None


@pytest.mark.parametrize(
    "error",
    [
        ChannelClosed("chat"),
        ChannelClosed("chat", "Channel 'chat' was swept."),
        LayerClosed("chat"),
        LayerClosed(),
        LayerUnavailable("redis://localhost", "gone"),
        LayerUnavailable("redis://localhost", "OOM", is_refusal=True),
        DeliveryUnknown("no answer in 5 s"),
    ],
    ids=str,
)
def test_errors_survive_pickle_and_copy(error: ChannelLayerError) -> None:
    """An error crosses process pools and copies with its data and text."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__
