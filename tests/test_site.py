"""
The site that Sphinx makes of docs/, and the list of the pages from which it is made.

`tox -e docs` builds the site, and names its folder in SITE.
"""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.test_public_names import PUBLIC

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages")


@pytest.fixture(scope="module")
def conf() -> Any:
    """The module docs/conf.py. It needs Sphinx only when Sphinx uses it."""
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def index() -> str:
    return (DOCS / "index.md").read_text()


# The list of the pages


def test_every_page_is_listed_once(conf: Any, index: str) -> None:
    """Each page of docs/ has one line of index.md, below one kind of page, which has a text."""
    kinds = conf.entries(index)
    assert list(kinds) == [
        kind for kind in ("Tutorial", "How-to", "Reference", "Explanation", "Project") if kind in kinds
    ]
    assert all(kinds.values())
    listed = Counter(entry.target for entries in kinds.values() for entry in entries)
    pages = {target: count for target, count in listed.items() if not target.startswith("../")}
    assert pages == {f"{page}.md": 1 for page in PAGES if page != "index"}
    assert sum(listed.values()) == len(re.findall(r"^- ", index, re.MULTILINE))


def test_navigation_has_every_entry(conf: Any, index: str) -> None:
    """There is one table of contents for each kind, with the titles of index.md."""
    navigation = conf.navigation(index)
    assert re.findall(r":caption: (.+)", navigation) == list(conf.entries(index))
    found = re.findall(r"^(.+) <(.+)>$", navigation, re.MULTILINE)
    assert found == [entry[:2] for entries in conf.entries(index).values() for entry in entries]


def test_llms_names_every_page(conf: Any, index: str) -> None:
    """llms.txt begins with name and summary, and has one line with the address of each page and its text."""
    lines = conf.llms(conf.with_addresses(DOCS / "index.md", index), "https://pages.example/en/").splitlines()
    assert lines[0] == "# channels_asyncq"
    assert re.fullmatch(r"> A channel layer for Django Channels: .+\.", lines[2])
    found = [match for line in lines if (match := re.fullmatch(r"- \[.+\]\((https://\S+)\): .+", line))]
    addresses = [match[1] for match in found]
    ours = [address for address in addresses if address.startswith("https://pages.example/")]
    assert sorted(ours) == sorted(
        f"https://pages.example/en/{page}.html" for page in PAGES if page != "index"
    )
    assert set(addresses) - set(ours) == {
        f"{conf.SOURCE}/blob/main/{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")
    }


# The sources of the pages


@pytest.mark.parametrize(
    ("page", "link", "address"),
    [
        ("index", "../README.md", "blob/main/README.md"),
        ("index", "../README.md#install", "blob/main/README.md#install"),
        ("index", "../example_project", "tree/main/example_project"),
        ("benchmarks/results", "../../CHANGELOG.md", "blob/main/CHANGELOG.md"),
        ("benchmarks/results", "../performance.md", None),
        ("index", "settings.md#capacity", None),
        ("index", "#how-to", None),
        ("index", "https://example.com/README.md", None),
        # Sphinx says that it is missing.
        ("index", "../NOWHERE.md", None),
    ],
)
def test_links_out_of_the_pages(conf: Any, page: str, link: str, address: str | None) -> None:
    """A link to a file outside docs/ becomes its address in the repository; no other link is changed."""
    expected = link if address is None else f"{conf.SOURCE}/{address}"
    assert conf.with_addresses(DOCS / f"{page}.md", f"[text]({link})") == f"[text]({expected})"


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Words.\n\n    code()\n    more()\n\nWords.", "Words.\n\n::\n\n    code()\n    more()\n\nWords."),
        ("Words.\n\n    code()\n\n    more()", "Words.\n\n::\n\n    code()\n\n    more()"),
        ("Words.\n\nArgs:\n    name: words,\n        and more.", None),
        ("- an item,\n  and more.\n\n- another one", None),
        ("Words.", None),
    ],
)
def test_code_in_docstrings(conf: Any, docstring: str, expected: str | None) -> None:
    """An indented paragraph is code; the sections of Google's style and lists stay as they are."""
    assert "\n".join(conf.with_code_blocks(docstring.split("\n"))) == (expected or docstring)


# The site


class Page(HTMLParser):
    """What a page of the site links to, what it loads, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(filter(None, [given.get("id")]))
        self.classes.update(given.get("class", "").split())
        if tag == "a":
            self.links.update(filter(None, [given.get("href")]))
        else:
            self.loads.update(filter(None, (given.get(name) for name in ("href", "src", "data"))))


@pytest.fixture(scope="module")
def site() -> Path:
    if "SITE" not in os.environ:
        pytest.skip("`tox -e docs` builds the site")
    return Path(os.environ["SITE"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_pages_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    """Every page of docs/ is there, and none shows an error of Sphinx."""
    assert {site / f"{page}.html" for page in PAGES} <= set(pages)
    for path, page in pages.items():
        assert not page.classes & {"problematic", "system-message"}, path


def test_links_of_the_site(pages: dict[Path, Page]) -> None:
    """Every link within the site leads to a page that is there, and to an anchor on it."""
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), (path, link)
            if anchor and target in pages:
                assert anchor in pages[target].ids, (path, link)
            followed += 1
    assert followed > 1000


def test_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Scripts, styles, fonts and pictures are files of the site."""
    for path, page in pages.items():
        assert page.loads
        for loaded in page.loads:
            name = unquote(loaded).partition("?")[0].partition("#")[0]
            assert not re.match(r"(\w+:)?//", loaded), (path, loaded)
            assert loaded.startswith("data:") or not name or (path.parent / name).exists(), (path, loaded)
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style


def test_the_reference_has_every_public_name(site: Path, pages: dict[Path, Page]) -> None:
    """Each name of each public module has an entry of its own on the page API."""
    ids = pages[site / "api.html"].ids
    for place in PUBLIC:
        module = importlib.import_module(f"channels_asyncq{place}")
        for name in module.__all__:
            wanted = f"{module.__name__}.{name}"
            # A module has an anchor with a prefix.
            assert wanted in ids or f"module-{wanted}" in ids, wanted


def test_llms_of_the_site(site: Path) -> None:
    """It is in the root, and the pages that it names are there."""
    targets = re.findall(r"\]\((?!https:)(\S+)\)", (site / "llms.txt").read_text())
    assert len(targets) == len(PAGES) - 1
    assert all((site / target).is_file() for target in targets)


def test_index_of_the_search(site: Path) -> None:
    """It knows all pages, and the words of headings and of texts; words are cut to their stems."""
    found = re.fullmatch(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(), re.DOTALL)
    assert found is not None
    index = json.loads(found[1])
    assert sorted(index["docnames"]) == PAGES

    def pages_with(kind: str, word: str) -> set[str]:
        numbers = index[kind][word]
        return {index["docnames"][number] for number in (numbers if isinstance(numbers, list) else [numbers])}

    assert "settings" in pages_with("titleterms", "capac")
    assert {"delivery", "errors-and-events"} <= pages_with("terms", "capac")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_search_without_a_network(site: Path, tmp_path: Path) -> None:
    """From the files alone, without a server, a browser finds the page that explains a setting."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            # Nothing but files: no name has an address.
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}"),
            *("--virtual-time-budget=20000", "--dump-dom", f"{(site / 'search.html').as_uri()}?q=capacity"),
        ],
        capture_output=True,
        text=True,
        timeout=50,
    )
    results = re.findall(r'<li class="kind-\w+"><a href="([^"?]+)', done.stdout)
    assert any(link.endswith("settings.html") for link in results), done.stdout[-3000:] + done.stderr[-1000:]
