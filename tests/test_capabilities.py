"""docs/capabilities.md: each claim has a page that explains it and tests that exist; each guarantee has a row."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.code_blocks import ROOT
from tests.test_docs import DOCS, README, anchors, code_in, is_there, rows

TESTS = ROOT / "tests"
PAGE = DOCS / "capabilities.md"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


def claims() -> list[list[str]]:
    return list(rows(PAGE, "claim", "what holds, and its bound", "page", "tests"))


@cache
def defined_in(module: Path) -> set[str]:
    """The tests that a module defines, and those of its classes as `Class::test`."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        inner = [(f"{node.name}::", each) for each in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, each in [("", node), *inner]:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_"):
                found.add(prefix + each.name)
    return found


@cache
def collected_classes() -> set[tuple[str, str]]:
    """The classes of the contract, by module and name, that a module of tests imports to have them collected."""
    return {
        (match[1], match[2])
        for module in TESTS.glob("test_contract_*.py")
        for match in re.finditer(
            r"^from tests\.contract\.(\w+) import (\w+) as Test\w+$", module.read_text(), re.MULTILINE
        )
    }


def test_every_claim_has_a_test() -> None:
    """The tests that a row names are there, and pytest collects them."""
    assert len(claims()) > 60
    for claim, _, _, named in claims():
        assert code_in(named), claim
        assert re.sub(r"`[^`]+`", "", named).replace(", ", "") == "", claim
        for name in code_in(named):
            path, _, test = name.partition("::")
            assert test in defined_in(TESTS / path), (claim, name)
            if path.startswith("contract/"):
                assert (Path(path).stem, test.partition("::")[0]) in collected_classes(), (claim, name)
            else:
                assert Path(path).name.startswith("test_"), (claim, name)
                assert "::" not in test or test.startswith("Test"), (claim, name)


def test_every_claim_has_a_page() -> None:
    """The page of a row, and each other one that it links to, is there, with the heading that is named."""
    for claim, guarantee, page, _ in claims():
        assert guarantee, claim
        assert re.fullmatch(r"\[[^]]+\]\([^)]+\)", page), claim
        for target in re.findall(r"\]\(([^)]+)\)", page + guarantee):
            path, _, anchor = target.partition("#")
            assert is_there(DOCS / path, anchor), (claim, target)


def test_every_claim_is_made_once() -> None:
    """Within its group no claim has two rows, so a name finds one."""
    counts = Counter(claim for claim, *_ in claims())
    assert [claim for claim, count in counts.items() if count > 1] == []


def test_every_guarantee_of_the_readme_has_a_row() -> None:
    """The README has the guarantees in short: each is a claim of this page."""
    promised = [row[0] for row in rows(README, "guarantee")]
    assert len(promised) >= 10
    assert set(promised) <= {claim for claim, *_ in claims()}


def test_every_promise_of_the_page_about_delivery_has_a_row() -> None:
    """Each promise there is a claim of this page, and each section there that promises something is linked to."""
    text = (DOCS / "delivery.md").read_text()
    promises = text.partition("## What is promised\n")[2].partition("\n## ")[0]
    named = re.findall(r"^- \*\*([^*]+?)\.?\*\*", promises, re.MULTILINE)
    assert len(named) == len(re.findall(r"^- ", promises, re.MULTILINE)) >= 5
    assert {name.lower() for name in named} <= {claim for claim, *_ in claims()}
    linked = {page.partition("#")[2].rstrip(")") for _, _, page, _ in claims() if "(delivery.md#" in page}
    assert linked == anchors(DOCS / "delivery.md") - {"delivery"}
