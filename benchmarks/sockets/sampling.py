"""
A look at the stack of this process, each few milliseconds of the CPU time that it uses.

The timer is one of CPU time, so waiting is not counted; the kernel looks at it with each tick, 100 to 1,000 times
a second. Python calls the handler when the function of C that runs has returned, on the line that called it.
"""

import json
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL = 0.001
#: The signals to begin and to end.
BEGIN, END = signal.SIGUSR1, signal.SIGUSR2
#: Files that tell that it has begun, and what it saw.
BEGAN, STACKS = "began", "stacks.json"

#: The innermost first: function, file and line.
Stack = tuple[tuple[str, str, int], ...]


def obey_signals(folder: Path) -> None:
    """Begin and end at the signals; write what was seen into the folder. Call it in the main thread."""
    stacks: Counter[Stack] = Counter()

    def look(_: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append((frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        stacks[tuple(stack)] += 1

    def begin(*_: object) -> None:
        stacks.clear()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        folder.joinpath(BEGAN).touch()

    def end(*_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        new = folder / "stacks.new"
        new.write_text(json.dumps(list(stacks.items())))
        new.rename(folder / STACKS)

    signal.signal(signal.SIGPROF, look)
    signal.signal(BEGIN, begin)
    signal.signal(END, end)
