"""The workflows, tox.ini, pyproject.toml and the pages name the same environments, versions and platforms."""

import configparser
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels_asyncq.bus.resp.remedies import OLDEST, OLDEST_OF_CLUSTERS
from channels_asyncq.messages.framing import FORMATS
from tests import grid
from tests.code_blocks import ROOT, block

WORKFLOWS = ROOT / ".github" / "workflows"

pytestmark = pytest.mark.skipif(not WORKFLOWS.is_dir(), reason="the workflows are in the repository only")


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())
    return loaded


def workflow_files() -> list[Path]:
    return sorted(WORKFLOWS.glob("*.yml")) if WORKFLOWS.is_dir() else []


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in workflow(path.stem)["jobs"].values():
        yield from job.get("steps", ())


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = pyproject()["project"]
    return loaded


def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


def env_list() -> list[str]:
    """The environments that `tox` runs, with their braces written out."""
    found = []
    for line in tox()["tox"]["env_list"].split("\n"):
        if line.strip():
            parts = re.split(r"\{([^}]*)\}", line.strip())
            choices = [
                [choice.strip() for choice in part.split(",")] if index % 2 else [part]
                for index, part in enumerate(parts)
            ]
            found += ["".join(parts) for parts in itertools.product(*choices)]
    return found


def matrix() -> dict[str, str]:
    """The Python of each environment that has a job of its own in CI."""
    return {
        entry["env"]: entry["python"]
        for entry in workflow("ci")["jobs"]["tox"]["strategy"]["matrix"]["include"]
    }


def versions_of(what: str) -> set[str]:
    """The versions that the classifiers name, such as those of `Framework :: Django`."""
    pattern = re.compile(rf"{re.escape(what)} :: (\d+\.\d+)")
    return {match[1] for line in project()["classifiers"] if (match := pattern.fullmatch(line))}


def in_order(versions: set[str]) -> list[str]:
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


# Environments


def test_every_environment_has_a_job() -> None:
    """CI has one job for each environment that `tox` runs; `coverage` is a job that needs the others."""
    assert set(matrix()) | {"coverage"} == set(env_list())
    assert workflow("ci")["jobs"]["coverage"]["needs"] == "tox"


def test_each_job_has_the_python_of_its_environment() -> None:
    """`py312-...` runs on Python 3.12, and what names no Python on one that tox.ini asks for."""
    newest = tox()["testenv:newest"]["base_python"]
    for environment, python in matrix().items():
        match = re.match(r"py(\d)(\d+)", environment)
        if match:
            assert python == f"{match[1]}.{match[2]}", environment
        else:
            assert f"python{python}" in newest, environment


def test_the_gate_needs_every_job() -> None:
    """One job waits for all others of CI, runs whatever became of them, and is red unless all are green."""
    jobs = workflow("ci")["jobs"]
    gate = jobs.pop("gate")
    assert set(gate["needs"]) == set(jobs)
    assert gate["if"] == "always()"
    (step,) = gate["steps"]
    assert step["env"]["RESULTS"] == "${{ join(needs.*.result, ' ') }}"
    assert step["run"] == f'test "$RESULTS" = "{" ".join(["success"] * len(jobs))}"'
    assert not any(job.get("continue-on-error") for job in jobs.values())


def test_the_night_tries_the_main_branches() -> None:
    """Each night one environment installs Django, Channels and redis-py from their repositories."""
    assert "main-branches" not in env_list()
    installed = tox()["testenv:main-branches"]["commands_pre"]
    assert set(re.findall(r"github\.com/(\S+?)/archive", installed)) == {
        "django/django",
        "django/channels",
        "redis/redis-py",
    }
    # `on` is a boolean of YAML 1.1.
    assert "schedule" in workflow("nightly")[True]  # type: ignore[index]
    runs = [step.get("run", "") for step in steps(WORKFLOWS / "nightly.yml")]
    assert any("tox run -e main-branches" in run for run in runs)


def test_environments_of_the_night() -> None:
    """What the night runs is an environment of tox.ini; `links` and `suites` ask other hosts: no gates."""
    runs = [step.get("run", "") for step in steps(WORKFLOWS / "nightly.yml")]
    named = {match[1] for run in runs if (match := re.search(r"tox run -e (\S+)", run))}
    assert named <= {section.removeprefix("testenv:") for section in tox().sections()} | set(env_list())
    assert {"links", "suites"} <= named - set(env_list())


def test_the_night_tries_free_threaded_python() -> None:
    """Its Python is the first that the environment asks for, and nothing may turn the lock on again."""
    environment = tox()["testenv:free-threaded"]
    of_job = list(workflow("nightly")["jobs"]["free-threaded"]["steps"])
    pythons = [step["with"]["python-version"] for step in of_job if "setup-python" in step.get("uses", "")]
    assert pythons == [environment["base_python"].partition(",")[0].removeprefix("python")]
    assert pythons[0].endswith("t")
    assert "PYTHON_GIL = 0" in environment["set_env"]
    assert "tests/test_free_threading.py" in environment["commands"]
    assert any("tox run -e free-threaded " in step.get("run", "") for step in of_job)


def test_every_cell_of_the_grid_has_a_job() -> None:
    """Once a week each cell runs on its Python, in no gate, and the page is made of what they have left."""
    jobs = workflow("grid")["jobs"]
    entries = {entry["env"]: entry["python"] for entry in jobs["cell"]["strategy"]["matrix"]["include"]}
    assert entries == {cell.name: f"3.{cell.versions[0][3:]}" for cell in grid.cells().values()}
    assert not set(entries) & set(env_list())
    assert jobs["page"]["needs"] == "cell" and jobs["page"]["if"] == "always()"
    assert any("python -m tests.grid_page" in step.get("run", "") for step in jobs["page"]["steps"])
    assert "schedule" in workflow("grid")[True]  # type: ignore[index]


def test_read_the_docs_builds_the_same_site() -> None:
    """It has the configuration, the packages and a Python of `tox -e docs`, and a warning fails there too."""
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert config["sphinx"] == {"configuration": "docs/conf.py", "fail_on_warning": True}
    assert (ROOT / "docs" / "conf.py").is_file()
    environment = tox()["testenv:docs"]
    assert f"pip install --group {environment['dependency_groups']} ." in config["build"]["jobs"]["install"]
    assert config["build"]["tools"]["python"] == matrix()["docs"]


# Supply


@pytest.mark.parametrize("path", workflow_files(), ids=lambda path: path.stem)
def test_actions_are_pinned(path: Path) -> None:
    """Every action is a commit with its version beside it, the same everywhere; Dependabot renews it."""
    text = path.read_text()
    used = re.findall(r"uses: (?!\./)(\S+)(.*)", text)
    assert used or path.stem == "nightly"
    for action, comment in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    every = re.findall(
        r"uses: (?!\./)(\S+)@(\S+) # (\S+)", "".join(file.read_text() for file in workflow_files())
    )
    assert len({name for name, *_ in every}) == len(set(every))
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}


@pytest.mark.parametrize("path", workflow_files(), ids=lambda path: path.stem)
def test_jobs_may_do_little(path: Path) -> None:
    """A job may read the repository, keeps no credentials of it, and ends; only publishing may do more."""
    loaded = workflow(path.stem)
    assert loaded["permissions"] == {"contents": "read"}
    for name, job in loaded["jobs"].items():
        may = {"id-token": "write"} if (path.stem, name) == ("release", "publish") else None
        assert job.get("permissions") == may
        assert "timeout-minutes" in job or "uses" in job
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_release_publishes_what_was_tested() -> None:
    """PyPI gets the files that were inspected and tested, with attestations and without a password."""
    jobs = workflow("release")["jobs"]
    assert workflow("release")[True] == {"push": {"tags": ["v[0-9]*"]}}  # type: ignore[index]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["publish"]["needs"] == ["ci", "test"]
    assert jobs["test"]["needs"] == "build"
    kept = next(step for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", ""))
    for job in ("test", "publish"):
        taken = next(step for step in jobs[job]["steps"] if "download-artifact" in step.get("uses", ""))
        assert taken["with"]["name"] == kept["with"]["name"]
    kinds = {entry["kind"]: entry["env"] for entry in jobs["test"]["strategy"]["matrix"]["include"]}
    assert kinds == {"wheel": "newest", "sdist": "py311-lowest"}
    publishing = jobs["publish"]["steps"][-1]
    assert publishing["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert publishing["with"] == {"packages-dir": "dist", "attestations": True}
    assert jobs["publish"]["environment"]["name"] == "pypi"


# Versions and platforms


def test_pythons_agree() -> None:
    """The classifiers, requires-python, tox.ini and CI name the same Pythons."""
    pythons = versions_of("Programming Language :: Python")
    assert project()["requires-python"] == f">={in_order(pythons)[0]}"
    of_tox = {f"{match[1]}.{match[2]}" for env in env_list() if (match := re.match(r"py(\d)(\d+)", env))}
    assert of_tox == pythons
    assert set(matrix().values()) == pythons


def test_djangos_agree() -> None:
    """The classifiers, the lower bound and tox.ini name the same Djangos."""
    djangos = versions_of("Framework :: Django")
    assert f"Django>={in_order(djangos)[0]}" in project()["dependencies"]
    of_tox = {f"{match[1]}.{match[2]}" for env in env_list() if (match := re.search(r"django(\d)(\d)", env))}
    assert of_tox == djangos


def platforms() -> dict[str, str]:
    """What the table of platforms says of each, on whichever page it is."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for page in pages
        for line in page.read_text().splitlines()
        if re.match(r"\| (Linux|macOS|Windows)\b", line)
    ]
    assert len(rows) == 4
    return {row[0]: row[1] for row in rows}


def test_the_table_of_platforms_names_the_versions() -> None:
    """What is tested on Linux begins and ends where the classifiers and the dependencies do."""
    tested = platforms()["Linux, glibc"]
    pythons, djangos = versions_of("Programming Language :: Python"), versions_of("Framework :: Django")
    named = set(re.findall(r"\b3\.\d+\b", tested.partition("Django")[0]))
    assert named <= pythons
    assert {in_order(pythons)[0], in_order(pythons)[-1]} <= named
    assert f"Django {in_order(djangos)[0]} to {in_order(djangos)[-1]}" in tested
    bounds = next(
        re.fullmatch(r"redis>=([\d.]+),<(\d+)", line)
        for line in project()["dependencies"]
        if line.startswith("redis>")
    )
    assert bounds is not None
    assert f"redis-py {bounds[1]} to {int(bounds[2]) - 1}" in tested


def test_the_policies_name_the_versions() -> None:
    """What the page calls supported is what pip accepts, what it says of the wire is so, its tests exist."""
    page = (ROOT / "docs" / "policies.md").read_text()
    supported = dict(re.findall(r"^\| (\S+) \| (.+) \|$", page, re.MULTILINE))
    assert supported["Python"].split(", ") == in_order(versions_of("Programming Language :: Python"))
    assert supported["Django"].split(", ") == in_order(versions_of("Framework :: Django"))
    lowest = dict(re.findall(r"^(\w+)>=([\d.]+)", "\n".join(project()["dependencies"]), re.MULTILINE))
    assert supported["Channels"] == f"{lowest['channels']} or newer"
    assert supported["redis-py"].startswith(f"{lowest['redis']} to ")
    oldest, of_clusters = (".".join(map(str, version)) for version in (OLDEST, OLDEST_OF_CLUSTERS))
    assert supported["server"].startswith(f"Redis {oldest} or newer ({of_clusters} as a cluster)")
    assert f"format {FORMATS.newest}. There is no other one" in page and len(FORMATS.versions) == 1
    tests = re.findall(r"`(tests/[\w./]+)`", page)
    assert len(tests) == 4 and all((ROOT / test).is_file() for test in tests)


def test_nothing_is_deprecated() -> None:
    """The page about policies says so until something in the package warns."""
    warns = any("DeprecationWarning" in path.read_text() for path in (ROOT / "channels_asyncq").rglob("*.py"))
    page = (ROOT / "docs" / "policies.md").read_text()
    assert ("Nothing is deprecated at\npresent" in page) is not warns


def test_platforms_agree() -> None:
    """Every job of CI and of a release runs on Linux; other systems are for the night, and promised nowhere."""
    systems = {line for line in project()["classifiers"] if line.startswith("Operating System")}
    assert systems == {"Operating System :: POSIX :: Linux"}
    for name in ("ci", "release"):
        for job in workflow(name)["jobs"].values():
            assert job.get("runs-on", "ubuntu-latest") == "ubuntu-latest"
    assert {job["runs-on"] for job in workflow("nightly")["jobs"].values()} == {
        "ubuntu-latest",
        "macos-latest",
        "windows-latest",
    }
    said = platforms()
    assert "nightly" in said["macOS"]
    assert said["Windows"].startswith("not tested")
    assert said["Linux, musl (Alpine)"].startswith("not tested")
    assert said["Linux, glibc"].startswith("tested")


def test_the_command_of_the_readme_runs_the_gates() -> None:
    """`tox` without arguments, which README and .ci/run call, runs what CI runs, and `coverage` last."""
    environments = env_list()
    assert environments[-1] == "coverage"
    assert len(environments) == len(set(environments))
    command = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox\n"
    assert block("README.md", "sh", having="tox") == command
    assert block("CONTRIBUTING.md", "console", having="pip install tox") == f"$ {command}"


def test_commands_of_a_checkout() -> None:
    """What README and CONTRIBUTING have one type names what is there: address, extras, groups, environments."""
    texts = [
        block("README.md", "sh", having="manage.py demo"),
        block("CONTRIBUTING.md", "console", having="git clone"),
        block("CONTRIBUTING.md", "console", having="tox -e"),
    ]
    lines = [line.removeprefix("$ ") for text in texts for line in text.splitlines()]
    for command in (shlex.split(part) for line in lines for part in line.split(" && ")):
        match command:
            case ["git", "clone", address]:
                assert address == project()["urls"]["Source"]
            case ["cd", folder]:
                assert project()["urls"]["Source"].endswith(f"/{folder}")
            case ["python3", "-m", "venv", ".venv"] | [".venv/bin/pip", "install", "--upgrade", "pip"]:
                pass  # tests/test_tutorial.py makes such an environment
            case [".venv/bin/pip", "install", "-e", ".[demo]", *more]:
                assert "demo" in project()["optional-dependencies"]
                assert more in ([], ["--group", "dev"]) and "dev" in pyproject()["dependency-groups"]
            case [".venv/bin/python", program, name]:
                commands = (ROOT / program).parent.glob(f"*/management/commands/{name}.py")
                assert (ROOT / program).is_file() and len(list(commands)) == 1
            case [".venv/bin/pytest", *options]:
                asked = [
                    sys.executable,
                    "-m",
                    "pytest",
                    *options,
                    "--collect-only",
                    "-q",
                    "tests/test_names.py",
                ]
                done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stdout + done.stderr
            case [".venv/bin/tox", "-e", environment]:
                assert f"testenv:{environment}" in tox()
            case _:
                raise AssertionError(command)
