"""The processes of a group, as /proc has them: a server and its workers."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path


def processes_of_group(group: int) -> Iterator[tuple[Path, list[str]]]:
    """The folders below /proc of the processes of a group, and the values of `stat` from the state on."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The name of a program is in parentheses and may hold spaces.
                values = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(values[2]) == group:
                yield folder, values


def busiest_of_group(group: int) -> int:
    """The id of the process that has used most CPU time: of a server with workers, the one that serves."""
    used = {
        int(folder.name): int(values[11]) + int(values[12]) for folder, values in processes_of_group(group)
    }
    return max(used, key=lambda pid: used[pid])


def cpu_of_threads(group: int) -> float:
    """CPU seconds, to the nanosecond, of all threads of a group that are alive."""
    total = 0
    for folder, _ in processes_of_group(group):
        for task in (folder / "task").iterdir():
            # A thread may end between the two steps.
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory_of_group(group: int) -> int:
    """Bytes in memory of all processes of a group. What they share is counted for each."""
    return sum(int(values[21]) for _, values in processes_of_group(group)) * resource.getpagesize()


def kill_group(group: int) -> None:
    """Kill all processes of a group: workers of a parent that was killed alone would serve on."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
