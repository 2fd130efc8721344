"""
The code blocks of the pages, and the tests that take them.

A test gets the text of a block by `block()`, `blocks()` or `files()`. The arguments are literals, so `takings()`
can read in the programs of the tests which test takes which block. tests/test_code_blocks.py demands that each is
taken.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FILE = re.compile(r"(?:#|//|<!--) ([\w./-]+)(?: -->)?\n")


class Block(NamedTuple):
    page: str  # from the root of the repository
    line: int
    language: str  # all that stands behind the fence; empty for code that is indented
    text: str
    heading: str  # of its section
    lead: str  # the paragraph above it, on one line


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """All blocks of a page, fenced and indented, in lists too; none if there is no such page here."""
    path = ROOT / page
    found, heading, lead = [], "", ""
    last = "paragraph_open"
    for token in MarkdownIt().parse(path.read_text()) if path.is_file() else ():
        if token.type == "inline":
            text = " ".join(token.content.split())
            heading, lead = (text, "") if last == "heading_open" else (heading, text)
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, heading, lead))
            lead = ""
        last = token.type
    return tuple(found)


def blocks(page: str, *languages: str, having: str = "") -> list[Block]:
    """The blocks of a page in one of these languages, or in any, that have these words."""
    return [
        block
        for block in blocks_of(page)
        if (not languages or block.language in languages) and having in block.text
    ]


def block(page: str, *languages: str, having: str = "") -> str:
    """The text of the only such block."""
    (found,) = blocks(page, *languages, having=having)
    return found.text


def files(page: str, *languages: str, having: str = "") -> dict[str, str]:
    """The texts of such blocks, each of which begins with the name of its file, by these names."""
    found = {}
    for each in blocks(page, *languages, having=having):
        name = _FILE.match(each.text)
        assert name is not None, each.text
        assert name[1] not in found, name[1]
        found[name[1]] = each.text
    return found


_TAKING = {function.__name__ for function in (block, blocks, files)}
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Taking(NamedTuple):
    """A call by which a test takes blocks."""

    where: str  # module:line
    function: str  # at the top of the module, or the class; empty outside of these
    by: str  # the name of what is called
    blocks: tuple[Block, ...]


@cache
def takings() -> tuple[Taking, ...]:
    """All calls in the modules of tests."""
    return tuple(
        taking for path in sorted(ROOT.joinpath("tests").rglob("test_*.py")) for taking in _takings(path)
    )


def _takings(path: Path) -> Iterator[Taking]:
    text = path.read_text()
    if "from tests.code_blocks import" not in text:
        return
    tree = ast.parse(text)
    names = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "tests.code_blocks"
        for alias in node.names
    } & _TAKING
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }

    def literal(node: ast.expr, where: str) -> str:
        value = constants.get(node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)
        assert isinstance(value, str), f"{where}: which block is taken must be written there"
        return value

    for top in tree.body:
        for node in ast.walk(top):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                where = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                page, *languages = (literal(each, where) for each in node.args)
                having = "".join(literal(keyword.value, where) for keyword in node.keywords)
                found = tuple(blocks(page, *languages, having=having))
                function = top.name if isinstance(top, _DEFINITION) else ""
                yield Taking(where, function, node.func.id, found)


def all_blocks() -> list[Block]:
    """Those of all pages."""
    return [each for page in PAGES for each in blocks_of(page.relative_to(ROOT).as_posix())]


def untaken(*languages: str) -> list[Block]:
    """The blocks in these languages that no test takes."""
    taken = {each for taking in takings() for each in taking.blocks}
    return [each for each in all_blocks() if each.language in languages and each not in taken]
