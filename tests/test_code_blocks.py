"""Every code block of every page is run by a test, or is drawn by the site, or says that nothing runs it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.code_blocks import PAGES, ROOT, all_blocks, blocks_of, takings, untaken
from tests.test_docs import DOCS

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")

#: What `tox -e docs` makes pictures and references of: a fault there is a warning, which fails the build.
DRAWN = {"mermaid", "{eval-rst}"}


def test_every_block_has_an_owner() -> None:
    """A test takes it, test_python_snippet runs it, or the site draws it."""
    taken = {each for taking in takings() for each in taking.blocks}
    alone = set(untaken("python"))
    for each in all_blocks():
        owners = [
            each in taken,
            each in alone,
            each.language in DRAWN,
        ]
        assert sum(owners) == 1, f"{each.page}:{each.line} ({each.language or 'indented'}): {owners}"
    assert len(all_blocks()) > 200


def test_every_taking_finds_its_block() -> None:
    """The program of no test names a block that is not there, or two of them for one."""
    for taking in takings():
        assert len(taking.blocks) == 1 or (taking.blocks and taking.by != "block"), taking.where


def test_owners_are_tests() -> None:
    """Blocks are taken by a test, or by a function that some test of its module calls."""
    reached: dict[str, set[str]] = {}
    for taking in takings():
        module = taking.where.partition(":")[0]
        if module not in reached:
            reached[module] = called_by_tests(module)
        assert taking.function in reached[module], f"{taking.where}: no test calls {taking.function}()"


def called_by_tests(module: str) -> set[str]:
    """The tests of a module, and the functions, classes and fixtures at its top that these name, and so on."""
    tree = ast.parse((ROOT / module).read_text())
    names = {
        node.name: {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        | {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    found: set[str] = set()
    following = {name for name in names if name.lower().startswith("test")}
    while following:
        found |= following
        following = {name for each in following for name in names[each] & names.keys()} - found
    return found


WRITTEN = """
# A page

Do this:

~~~sh
one
~~~

- In a list:

  ``` {.python title="a file"}
  two
  ```

> ```
> three
> ```

    four
"""


def test_every_way_to_write_a_block_is_seen(tmp_path: Path) -> None:
    """Fences of both kinds, with any words behind them, in lists and quotations, and code that is indented."""
    page = tmp_path / "page.md"
    page.write_text(WRITTEN)
    found = [(each.language, each.text.strip(), each.lead) for each in blocks_of(str(page))]
    assert found == [
        ("sh", "one", "Do this:"),
        ('{.python title="a file"}', "two", "In a list:"),
        ("", "three", ""),
        ("", "four", ""),
    ]


def test_no_block_is_hidden() -> None:
    """No block stands in HTML, where a parser of Markdown does not see it."""
    for page in PAGES:
        kinds = {token.type for token in MarkdownIt().parse(page.read_text())}
        assert "html_block" not in kinds, page.name
