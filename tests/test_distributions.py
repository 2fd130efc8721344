"""
The files of a release: the wheel and the sdist.

`tox -e package` builds both, installs the sdist, and names their folder in DISTRIBUTIONS.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import channels_asyncq

ROOT = Path(__file__).resolve().parent.parent
NAME = f"channels_asyncq-{channels_asyncq.__version__}"
#: What the repository has for its own upkeep.
NOT_RELEASED = (".ci/", ".github/", ".pre-commit-config.yaml", ".readthedocs.yaml")

pytestmark = pytest.mark.skipif("DISTRIBUTIONS" not in os.environ, reason="`tox -e package` builds them")


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the two files are, and nothing else."""
    folder = Path(os.environ["DISTRIBUTIONS"])
    assert {file.name for file in folder.iterdir()} == {f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"}
    return folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(folder / f"{NAME}-py3-none-any.whl") as wheel:
        yield wheel


@pytest.fixture(scope="module")
def unpacked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the unpacked sdist."""
    target = tmp_path_factory.mktemp("sdist")
    with tarfile.open(folder / f"{NAME}.tar.gz") as sdist:
        sdist.extractall(target, filter="data")
    (root,) = target.iterdir()
    assert root.name == NAME
    return root


def in_the_repository(*options: str) -> set[str]:
    """The files that git knows in this checkout, or with `--others` those that it neither knows nor ignores."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only a checkout says which files there are")
    # Whoever builds need not be the owner of the checkout.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--exclude-standard", *options]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_files_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    """The wheel holds the package with its types and scripts, what describes it, and no tests and no example."""
    names = set(wheel.namelist())
    package = {name for name in names if name.startswith("channels_asyncq/")}
    about = {name.removeprefix(f"{NAME}.dist-info/") for name in names - package}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert "channels_asyncq/py.typed" in package
    assert {f"channels_asyncq/static/channels_asyncq/resume.{kind}" for kind in ("js", "d.ts")} <= package
    assert sum(name.endswith(".lua") for name in package) >= 10
    assert {name for name in in_the_repository() if name.startswith("channels_asyncq/")} <= package
    assert package <= in_the_repository() | in_the_repository("--others")


def test_metadata_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    """The description has addresses in place of relative links, and every extra is named."""
    metadata = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "cryptography",
        "demo",
        "opentelemetry",
        "prometheus",
    }
    text = metadata.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)


def test_files_of_the_sdist(unpacked: Path) -> None:
    """The sdist holds what the repository holds, but for what only the repository needs."""
    files = {file.relative_to(unpacked).as_posix() for file in unpacked.rglob("*") if file.is_file()}
    assert {name for name in in_the_repository() if not name.startswith(NOT_RELEASED)} <= files
    assert files - {"PKG-INFO"} <= in_the_repository() | in_the_repository("--others")


def test_the_installed_package_is_that_of_the_sdist(unpacked: Path) -> None:
    """What is installed has the bytes of the sdist, and is not the folder beside these tests."""
    installed = Path(channels_asyncq.__file__).parent
    assert installed != ROOT / "channels_asyncq"
    for file in (unpacked / "channels_asyncq").rglob("*"):
        if file.is_file():
            name = file.relative_to(unpacked / "channels_asyncq")
            assert (installed / name).read_bytes() == file.read_bytes(), name


@pytest.mark.timeout(240)
def test_the_tests_of_the_sdist(unpacked: Path) -> None:
    """Its own tests pass on what is installed: on memory, on a server, of the pages and of the example."""
    modules = ("contract_memory", "docs", "example_chat", "public_names", "scripts", "site", "sync")
    # Not `-m pytest`, which would put the package of the folder before the installed one.
    pytest_script = Path(sys.executable).with_name("pytest")
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [
            *(pytest_script, "-q", "-p", "no:cacheprovider", "-n", "auto"),
            *("-m", "not (slow or browser or chaos or processes)"),
            *(f"tests/test_{module}.py" for module in modules),
        ],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b[1-9]\d\d passed", done.stdout), done.stdout[-1000:]
