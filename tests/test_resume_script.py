"""The file resume.js as it is served, and its types; tests/test_resume_browser.py runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders

import channels_asyncq
from tests.code_blocks import block

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(channels_asyncq.__file__).parent / "static" / "channels_asyncq"
SCRIPT = (FOLDER / "resume.js").read_text()
TYPES = (FOLDER / "resume.d.ts").read_text()

PAGE = "docs/browser-client.md"
TSC = shutil.which("tsc")
#: How a page uses it; each marked line is one that the compiler must refuse.
USAGE = """
import { ResumableSocket, type Recovered } from "./resume.js";

const socket = new ResumableSocket("/ws/room/", { since: "1~d5d1f30d~b.mx15hghh.0", silence: 30_000 });
socket.addEventListener("message", ({ data, lastEventId }) => {
  const id: string = lastEventId;
  console.log(id, data.text);
});
socket.addEventListener("recovered", function ({ detail }) {
  const { recovered, reason, first }: Recovered = detail;
  if (!recovered && !first) console.log(reason, this.position);
});
socket.addEventListener("close", ({ detail }) => detail.delay === null || detail.delay.toFixed());
socket.addEventListener("anything", { handleEvent(event) { console.log(event.type) } }, { once: true });
const accepted: boolean = socket.send(new Uint8Array(1));
socket.position = "";
socket.close();
// @ts-expect-error: no url
new ResumableSocket();
// @ts-expect-error: no such option
new ResumableSocket("/ws/", { after: "" });
// @ts-expect-error: an object is no frame
socket.send({});
// @ts-expect-error: the delay may be null
socket.addEventListener("close", ({ detail }) => detail.delay + 1);
// @ts-expect-error: no such detail
socket.addEventListener("recovered", ({ detail }) => detail.missed);

// The script itself, with the types that the compiler finds in it, is what the types say.
import { ResumableSocket as Actual } from "./actual.js";
const actual: typeof ResumableSocket = Actual;
export { accepted, actual };
"""


def test_found_by_staticfiles() -> None:
    """With the application installed, staticfiles serve the file of the package."""
    found = finders.find("channels_asyncq/resume.js")
    assert found is not None and Path(found) == FOLDER / "resume.js"


def test_size() -> None:
    """As it is served the file is smaller than 3 KB."""
    assert len(SCRIPT.encode()) < 3 * 1024


def test_needs_no_exception_of_a_policy() -> None:
    """Nothing in the file needs `unsafe-eval` or `unsafe-inline`, or loads another file."""
    assert not re.search(
        r"\b(eval|Function|innerHTML|outerHTML|insertAdjacentHTML|import|document\.write)\b", SCRIPT
    )
    assert not re.search(r"set(Timeout|Interval)\(\s*[\"'`]", SCRIPT)


def names(pattern: str, text: str) -> set[str]:
    return set(re.findall(pattern, text, re.MULTILINE))


def body(start: str) -> str:
    """The lines of an interface or class of the types."""
    return TYPES.partition(f"{start} {{\n")[2].partition("\n}\n")[0]


def test_types_name_what_there_is() -> None:
    """Members, options, events and their details are the same in script and types."""
    inherited = {"addEventListener", "removeEventListener"}
    members = names(r"^  (\w+)\(.*\{", SCRIPT) | {"position"}
    assert names(r"^  (\w+)[<(:]", body("class ResumableSocket extends EventTarget")) == members | inherited
    options = re.search(r"constructor\(url, \{ (.*) \} = \{\}\)", SCRIPT)
    assert options is not None
    assert names(r"^  (\w+)\?:", body("interface ResumableSocketOptions")) == names(r"(\w+) =", options[1])
    events = names(r"Event\(\"(\w+)\"", SCRIPT)
    assert names(r"^  (\w+):", body("interface ResumableSocketEvents")) == events
    closed = re.search(r"detail: \{ (.*) \} \}\)", SCRIPT)
    assert closed is not None
    assert names(r"^  (\w+):", body("interface Closed")) == set(closed[1].split(", "))
    # `recovered` and `reason` come from the frame.
    assert names(r"^  (\w+):", body("interface Recovered")) == names(r"detail\.(\w+) =", SCRIPT) | {
        "recovered",
        "reason",
    }


@pytest.mark.slow
@pytest.mark.skipif(TSC is None, reason="no TypeScript compiler on PATH: npm install -g typescript")
def test_types_with_the_compiler(tmp_path: Path) -> None:
    """In strict mode the types compile, fit the script, take what they should, and refuse the rest."""
    assert TSC is not None
    (tmp_path / "resume.d.ts").write_text(TYPES)
    (tmp_path / "actual.js").write_text(SCRIPT)
    (tmp_path / "usage.ts").write_text(USAGE)
    options = ["--strict", "--noEmit", "--allowJs", "--target", "es2022", "--module", "es2022"]
    command = [TSC, *options, "--moduleResolution", "bundler", "usage.ts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(TSC is None, reason="no TypeScript compiler on PATH: npm install -g typescript")
def test_documented_options_of_the_compiler(tmp_path: Path) -> None:
    """With the options of the page, the compiler finds the types, and holds the page's own module to them."""
    assert TSC is not None
    options = json.loads(block(PAGE, "json"))
    mine, ours = options["compilerOptions"]["rootDirs"]
    shutil.copytree(FOLDER, tmp_path / ours / FOLDER.name)
    script = tmp_path / mine / "myapp" / "room.ts"
    script.parent.mkdir(parents=True)
    begin, _, _ = block(PAGE, "js", having="// myapp/static/myapp/room.js").partition("const { since }")
    script.write_text(f"{begin}\nnew ResumableSocket(7);\n")
    # For a browser; the page is silent about what every project sets.
    options["compilerOptions"] |= {"target": "es2022", "module": "es2022", "moduleResolution": "bundler"}
    (tmp_path / "tsconfig.json").write_text(json.dumps(options))
    done = subprocess.run([TSC, "--noEmit"], cwd=tmp_path, capture_output=True, text=True)
    assert re.findall(r"error (TS\d+)", done.stdout) == ["TS2345"], done.stdout  # 7 is no URL


def test_documented_reader_of_events() -> None:
    """The example for other clients, cut at any byte and resumed at its id, has everything once."""
    if not ROOT.joinpath("docs").is_dir():
        pytest.skip("only the package is here, without its pages")
    names: dict[str, Any] = {}
    exec(block(PAGE, "python"), names)
    stream = {
        "p~1": 'event: said\ndata: {\ndata: "n": 1}\n',
        "p~2": "",
        "p~3": "data:three\n",
        "p~4": "data: four\n",
    }
    whole = "retry: 50\n\n" + "".join(f": here\n{rest}id: {id_}\n\n" for id_, rest in stream.items())
    expected = [("p~1", "said", '{\n"n": 1}'), ("p~3", "message", "three"), ("p~4", "message", "four")]

    def read(text: str, since: str) -> tuple[str, list[tuple[str, str, str]]]:
        *lines, _ = text.split("\n")
        found = list(names["events"](lines, since))
        return (found[-1][0] if found else since), [event for event in found if event[2]]

    for cut in range(len(whole) + 1):
        since, first = read(whole[:cut], "")
        _, *later = whole.partition(f"id: {since}\n\n") if since else ("", "", whole)
        assert first + read(later[1], since)[1] == expected, cut
