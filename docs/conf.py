"""
How Sphinx makes a site of these pages: `tox -e docs`.

index.md has the only list of the pages. The navigation of the site and its llms.txt are made from it.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE: str = PROJECT["urls"]["Source"]

project = PROJECT["name"]
author = copyright = PROJECT["authors"][0]["name"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

# The anchors that GitHub gives to headings: links to them work in both places.
myst_heading_anchors = 4

# Docstrings quote code with single backticks.
default_role = "code"
# A quoted value is to be copied as it is.
smartquotes = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# Whether a name of another project exists, its own pages say.
nitpick_ignore_regex = [("py:.*", r"(?!channels_asyncq\b).*")]

# That our own files are there, tests/test_docs.py says.
linkcheck_ignore = [re.escape(SOURCE)]
# GitHub adds the anchors of lines and comments only in a browser.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]

html_theme = "furo"
html_title = project
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
# The page API has all names in order, and the search finds them.
html_use_index = html_domain_indices = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": SOURCE, "source_branch": "main", "source_directory": "docs/"}


class Entry(NamedTuple):
    """A line of index.md."""

    title: str
    target: str
    text: str


def entries(index: str) -> dict[str, list[Entry]]:
    """The entries of each kind of page: the list items below the headings of index.md."""
    _, *parts = re.split(r"^## (.+)\n", index, flags=re.MULTILINE)
    return {
        heading: [Entry(*found) for found in re.findall(r"^- \[(.+?)\]\((.+?)\): (.+)$", text, re.MULTILINE)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def navigation(index: str) -> str:
    """A table of contents for each kind of page, which only the sidebar shows."""
    return "\n".join(
        "\n".join(
            [
                *("```{toctree}", ":hidden:", f":caption: {heading}", ""),
                *(f"{entry.title} <{entry.target}>" for entry in found),
                "```\n",
            ]
        )
        for heading, found in entries(index).items()
    )


def with_addresses(page: Path, text: str) -> str:
    """The text of a page whose links to files outside docs/ are addresses in the repository."""

    def address(link: re.Match[str]) -> str:
        path, mark, anchor = link[1].partition("#")
        file = (page.parent / path).resolve()
        if re.match(r"\w+:", path) or not path or file.is_relative_to(DOCS) or not file.exists():
            return link[0]
        kind = "tree" if file.is_dir() else "blob"
        return f"]({SOURCE}/{kind}/main/{file.relative_to(ROOT).as_posix()}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", address, text)


def llms(index: str, base: str) -> str:
    """The list of index.md with the addresses of the site, for programs that read: https://llmstxt.org."""
    title, summary, _ = re.sub(r"\[(.+?)\]\(https:.+?\)", r"\1", index).split("\n\n", 2)
    lines = [title, "", "> " + " ".join(summary.splitlines())]
    for heading, found in entries(index).items():
        lines += ["", f"## {heading}", ""]
        for entry in found:
            page = entry.target if ":" in entry.target else entry.target.removesuffix(".md") + ".html"
            lines.append(f"- [{entry.title}]({urljoin(base, page)}): {entry.text}")
    return "\n".join(lines) + "\n"


def with_code_blocks(lines: list[str]) -> list[str]:
    """The lines of a docstring in which an indented paragraph is code, as it is in Markdown."""
    found: list[str] = []
    for line in lines:
        above = next(filter(None, reversed(found)), "")
        if line and found and not found[-1] and indent(line) >= indent(above) + 4 and "::" not in found[-2:]:
            found += [" " * indent(above) + "::", ""]
        found.append(line)
    return found


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Prepare the source of a page for the parser."""
    source[0] = with_addresses(DOCS / f"{name}.md", source[0])
    if name == "index":
        source[0] += navigation(source[0])


def prepare_docstring(app: Sphinx, kind: Any, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Prepare a docstring in Google's style for the parser."""
    from sphinx.ext.napoleon import Config
    from sphinx.ext.napoleon.docstring import GoogleDocstring

    # Of a property napoleon would take what is before a colon in the first line for its type.
    what: Any = "object" if kind in ("attribute", "property") else kind
    lines[:] = GoogleDocstring(with_code_blocks(lines), Config(), app, what, name, thing).lines()


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write llms.txt into the root of the site."""
    if error is None and app.builder.name == "html":
        index = with_addresses(DOCS / "index.md", (DOCS / "index.md").read_text())
        (Path(app.outdir) / "llms.txt").write_text(llms(index, html_baseurl))


def setup(app: Sphinx) -> None:
    import django
    from django.conf import settings
    from pygments.lexers import TextLexer

    # The modules of consumers and sessions want an application of Django around them.
    settings.configure(INSTALLED_APPS=["channels_asyncq"])
    django.setup()
    # GitHub draws these blocks; the site shows their text.
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", prepare_docstring)
    app.connect("build-finished", write_llms)
