"""The two pages about settings have an entry for each, with its anchor, and the type and default of the code."""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import pytest

from channels_asyncq import Config
from channels_asyncq.messages.external import External
from channels_asyncq.settings.config import ExternalConfig, HistoryConfig, RecoveryConfig
from channels_asyncq.settings.keys import CLUSTER_PARTITIONS, Keeping, Recovery
from channels_asyncq.settings.options import Options
from tests.test_docs import DOCS, code_in, rows

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")

PAGES = [DOCS / "settings.md", DOCS / "settings-advanced.md"]
TYPES = {
    each.__name__: each for each in (Mapping, Sequence, RecoveryConfig, HistoryConfig, ExternalConfig)
} | {"Any": Any, "Literal": Literal, "re": re}


class Entry(NamedTuple):
    """What stands below the heading of a setting."""

    type: str
    default: str
    since: str


def entries() -> dict[str, Entry]:
    """The settings by their headings. A heading is an anchor, and no two are equal."""
    found = [
        match.groups()
        for page in PAGES
        for match in re.finditer(
            r"^## (\w+)\n\nType: `(.+?)`\. (Default: .+|No default)\. Since ([\d.]+)\.$",
            page.read_text(),
            re.MULTILINE,
        )
    ]
    assert len({key for key, *_ in found}) == len(found)
    return {key: Entry(*values) for key, *values in found}


def type_of(text: str) -> Any:
    """The type that a page writes: keys of a Mapping are invariant, so the code has Any for those of patterns."""
    text = text.replace("\\|", "|").replace("Mapping[str | re.Pattern[str], ", "Mapping[Any, ")
    return eval(text, {}, TYPES)


def default_of(text: str) -> Any:
    return ast.literal_eval(code_in(text)[0])


def test_every_setting_has_an_entry() -> None:
    """Each key of CONFIG has one, with the type of `Config` and the version that first had it."""
    found = entries()
    types = get_type_hints(Config)
    assert set(found) == set(types)
    assert {key: type_of(entry.type) for key, entry in found.items()} == types
    assert {entry.since for entry in found.values()} == {"1.0"}


def test_every_setting_is_in_the_table() -> None:
    """The table of its page leads to the entry, and has the same default."""
    found = entries()
    listed = {}
    for page in PAGES:
        for key, default, _ in rows(page, "key", "default"):
            (name,) = code_in(key)
            assert key == f"[`{name}`](#{name})"
            listed[name] = default
    assert listed == {
        key: "" if entry.default == "No default" else entry.default.removeprefix("Default: ")
        for key, entry in found.items()
    }


def test_defaults_of_the_entries() -> None:
    """A default is what a CONFIG without the key means. Only the key that has no effect has none."""
    found = entries()
    assert [key for key, entry in found.items() if entry.default == "No default"] == ["random_prefix_length"]
    empty = Options.from_config({})
    for field in dataclasses.fields(Options):
        config = {field.name: default_of(found[field.name].default)}
        assert getattr(Options.from_config(config), field.name) == getattr(empty, field.name), field.name


def test_default_of_a_cluster() -> None:
    """The one that differs there is written beside the other."""
    text = entries()["partitions"].default
    assert text == "Default: `16`, in a Redis Cluster `64`"
    assert (
        Options.from_config({"hosts": ["redis+cluster://localhost"]}).partitions == CLUSTER_PARTITIONS == 64
    )
    options = Options.from_config({"hosts": ["redis+cluster://localhost"]})
    for key, entry in entries().items():
        if key not in ("hosts", "partitions", "recovery", "random_prefix_length"):
            config = {"hosts": ["redis+cluster://localhost"], key: default_of(entry.default)}
            assert Options.from_config(config) == options, key


@pytest.mark.parametrize(
    ("key", "config", "value"),
    [
        ("recovery", RecoveryConfig, Recovery()),
        ("history", HistoryConfig, Keeping()),
        ("external", ExternalConfig, External()),
    ],
)
def test_parts_of_a_setting(key: str, config: type, value: Any) -> None:
    """A setting that is a dict has a table of its parts, with their types and defaults."""
    page = PAGES[key == "external"]
    parts = {code_in(row[0])[0]: row[1:3] for row in rows(page, f"in `{key}`", "type", "default")}
    types = get_type_hints(config)
    assert set(parts) == set(types) == {field.name for field in dataclasses.fields(value)}
    for name, (kind, default) in parts.items():
        assert type_of(kind.strip("`")) == types[name], name
        found = getattr(value, name)
        if default == "all":
            assert found is None, name
        else:
            assert (list(found) if isinstance(found, tuple) else found) == default_of(default), name


def test_default_of_recovery_is_that_of_its_parts() -> None:
    """What the entry shows of `recovery` are defaults of parts."""
    shown = default_of(entries()["recovery"].default)
    parts = {code_in(row[0])[0]: default_of(row[2]) for row in rows(PAGES[0], "in `recovery`", "type")}
    assert shown.items() <= parts.items()


def test_defaults_of_the_page_about_histories() -> None:
    """It has the same table as the reference."""
    named = {code_in(row[0])[0]: row[1] for row in rows(DOCS / "history.md", "key", "default")}
    assert {name: float(default) for name, default in named.items()} == dataclasses.asdict(Keeping())


@pytest.mark.parametrize("key", ["overflow", "serializer_format"])
def test_values_of_a_setting(key: str) -> None:
    """The section of a setting with a choice of values says what each of them does."""
    section = PAGES[0].read_text().partition(f"\n## {key}\n")[2].partition("\n## ")[0]
    text = section.partition("Since 1.0.\n")[2]
    assert get_args(get_type_hints(Config)[key])
    for value in get_args(get_type_hints(Config)[key]):
        assert f'`"{value}"`' in text, value
