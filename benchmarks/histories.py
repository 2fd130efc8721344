"""`python -m benchmarks.histories`: what a history adds to a send at the server, its memory, and its reads."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import redis

from channels_asyncq.bus.redis.scripts import Script, Scripts
from channels_asyncq.messages.framing import pack, pack_names
from channels_asyncq.settings.keys import Keeping, Recovery
from channels_asyncq.testing import EmbeddedServer, server_binaries

KEEPING = Keeping(seconds=300, messages=100)
SCRIPTS = Scripts.of(Recovery(), keepings={KEEPING})
LOG, MEMBERS = "bench:0:log:3", "bench:0:members:room"
SESSION = bytes(range(8))
# Commands in one write.
PIPELINE = 200
READS = 500
NAMES = pack_names("room")


class Case(NamedTuple):
    """What is sent: the bytes of a message, how many share a command, and to how many groups in turn."""

    size: int
    together: int
    groups: int

    def __str__(self) -> str:
        messages = f"{self.together} of {self.size} B" if self.together > 1 else f"{self.size} B"
        return f"{messages}, {self.groups} group{'s' if self.groups > 1 else ''}"


CASES = [
    *(Case(size, 1, groups) for size in (200, 1000) for groups in (1, 1000)),
    Case(200, 16, 1),
]


def entries(case: Case, number: int) -> list[bytes]:
    """The envelopes of one command: each of up to 1 KiB, as a sender packs them."""
    body = (b"%08d" % number).ljust(case.size, b"x")
    in_one = max(1, 1024 // (case.size + 8)) if case.together > 1 else 1
    sizes = [min(in_one, case.together - begin) for begin in range(0, case.together, in_one)]
    return [pack([(NAMES, body)] * count, SESSION, 16 * number + 1) for count in sizes]


def cpu_time(client: Any) -> float:
    """Return the CPU time that the server has used, in microseconds: unlike time by the clock, it is its own."""
    used: dict[str, float] = client.info("cpu")
    return 1e6 * (used["used_cpu_user"] + used["used_cpu_sys"])


def send(client: Any, case: Case, commands: int, *, has_history: bool) -> float:
    """Return the CPU time of the server for a send, in microseconds."""
    script = SCRIPTS.keep[KEEPING] if has_history else SCRIPTS.send
    assert script is not None
    client.flushdb()
    numbers = itertools.count()
    _write(client, script, case, numbers, 2000, has_history=has_history)  # until logs and histories are full
    began = cpu_time(client)
    _write(client, script, case, numbers, commands, has_history=has_history)
    return (cpu_time(client) - began) / commands


def _write(
    client: Any, script: Script, case: Case, numbers: Iterator[int], commands: int, *, has_history: bool
) -> None:
    for _ in range(commands // PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for _ in range(PIPELINE):
            number = next(numbers)
            history = [f"bench:0:history:{number % case.groups}"] if has_history else []
            keys = [LOG, MEMBERS, *history]
            pipeline.evalsha(script.sha, len(keys), *keys, "bench:0:group:room", "", *entries(case, number))
        pipeline.execute()


def read(client: Any, count: int) -> float:
    """Return the CPU time of the server for a page of a history that is full, in microseconds."""
    assert SCRIPTS.history is not None
    began = cpu_time(client)
    for _ in range(READS):
        client.evalsha(SCRIPTS.history.sha, 1, "bench:0:history:0", "+", "-", count, 0)
    return (cpu_time(client) - began) / READS


def main(argv: Sequence[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.histories", description=__doc__)
    command.add_argument("--rounds", type=int, default=7, help="how often each case is measured, in turn")
    command.add_argument("--binary", help="the server to start; the newest that is installed by default")
    command.add_argument("--commands", type=int, default=20_000, help="the commands of one measurement")
    arguments = command.parse_args(argv)
    figures: dict[tuple[Case, bool], list[float]] = {}
    reads: dict[tuple[Case, int], list[float]] = {}
    taken: dict[Case, tuple[int, int]] = {}
    with EmbeddedServer(external=False, binary=arguments.binary or server_binaries()[-1]) as server:
        client: Any = redis.Redis.from_url(server.url, protocol=2)
        facts = client.info("server")
        print(facts.get("server_name", "redis"), facts.get("valkey_version") or facts["redis_version"])
        for script in SCRIPTS:
            client.script_load(script.text)
        for _ in range(arguments.rounds):
            for case in CASES:
                for has_history in (False, True):
                    figure = send(client, case, arguments.commands, has_history=has_history)
                    figures.setdefault((case, has_history), []).append(figure)
                taken[case] = (
                    client.xlen("bench:0:history:0"),
                    client.memory_usage("bench:0:history:0", samples=0),
                )
                if case.groups == case.together == 1:
                    for count in (51, 101):
                        reads.setdefault((case, count), []).append(read(client, count))
        client.close()
    print(f"us of CPU time of the server for a send, medians of {arguments.rounds} rounds (least to most)")
    for case in CASES:
        without, kept = figures[case, False], figures[case, True]
        middle = [statistics.median(each) for each in (without, kept)]
        count, size = taken[case]
        print(
            f"{case}: without {middle[0]:.2f} ({min(without):.2f} to {max(without):.2f}), "
            f"with {middle[1]:.2f} ({min(kept):.2f} to {max(kept):.2f}): "
            f"+{middle[1] - middle[0]:.2f}; a history has {count} entries and {size:,} bytes"
        )
    for (case, count), each in reads.items():
        print(f"{case}: {count} entries of a history are read in {statistics.median(each):.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
