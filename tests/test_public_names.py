"""What public signatures name can be imported from a public place. How it is used, `tests/typed.py` shows."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import channels_asyncq
from channels_asyncq import Config, ExternalConfig, OpenChannel, RecoveryConfig
from channels_asyncq.messages.external import External
from channels_asyncq.settings.keys import Recovery
from channels_asyncq.settings.options import Options

PUBLIC = [
    "",
    ".asgi",
    ".auth",
    ".consumers",
    ".generic.websocket",
    ".http",
    ".migration",
    ".opentelemetry",
    ".prometheus",
    ".pytest_plugin",
    ".sync",
    ".testing",
]


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(channels_asyncq.__path__, "channels_asyncq."):
        yield importlib.import_module(found.name)


def own_classes() -> set[str]:
    """The names of all classes of the package."""
    return {
        name
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__.startswith("channels_asyncq")
    }


def public_names() -> dict[str, Any]:
    """Every public name, and what it stands for."""
    places = [importlib.import_module(f"channels_asyncq{name}") for name in PUBLIC]
    return {name: getattr(place, name) for place in places for name in place.__all__}


def annotations(thing: Any) -> Iterator[str]:
    """The annotations of a function, or of the public attributes and methods of a class, as text."""
    if isinstance(thing, property):
        thing = thing.fget
    owners: list[Any]
    if isinstance(thing, type):
        owners = [owner for owner in thing.__mro__ if owner.__module__.startswith("channels_asyncq")]
        members = [(name, member) for owner in owners for name, member in vars(owner).items()]
    elif inspect.isfunction(thing):
        owners, members = [thing], []
    else:
        return
    for owner in owners:
        for name, value in inspect.get_annotations(owner).items():
            if not name.startswith("_"):
                yield value if isinstance(value, str) else inspect.formatannotation(value)
    for name, member in members:
        if not name.startswith("_") or (name == "__init__" and thing is not OpenChannel):  # made by the layer
            yield from annotations(member)


# Of `OpenChannel.take_envelope()` and the layer's `open_follower()`, which are for other modules of the package.
INTERNAL = {"Envelope", "Follower"}


def test_signatures() -> None:
    """Every class of the package that an annotation of a public name names is itself public."""
    public, own = public_names(), own_classes()
    named = {
        word: name
        for name, thing in public.items()
        for annotation in annotations(thing)
        for word in re.findall(r"\w+", annotation)
    }
    assert {"Statistics", "Link", "HostHealth"} <= set(named)  # or this looks at the wrong things
    assert {word for word in named if word in own - set(public)} == INTERNAL


def test_config() -> None:
    """The TypedDicts have the keys that are accepted, and no others."""
    for typed, options in ((Config, Options), (RecoveryConfig, Recovery), (ExternalConfig, External)):
        accepted = {field.name for field in fields(options)}
        if typed is Config:
            accepted.add("random_prefix_length")
        assert set(typed.__annotations__) == accepted
        assert not typed.__required_keys__
