"""The socket of a plugin: made or passed on, replaced when it is dead, removed at the end."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from tests import system
from tests.plugin.client import Client, connected
from tests.plugin.conftest import PluginGround
from tests.plugin.process import PluginProcess, refused
from unionfs.errors import PluginError
from unionfs.plugin.socket import activated, listening, made
from unionfs.plugin.supervisor import Supervisor


def test_it_is_for_its_owner_alone(scratch: Path) -> None:
    """Whatever the umask; its directory is made, and stays."""
    path = scratch / "run/plugins/p.sock"
    before = os.umask(0)
    try:
        with made(str(path)) as listener:
            status = path.lstat()
            assert stat.S_ISSOCK(status.st_mode)
            assert status.st_mode & 0o7777 == 0o600
            assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
            assert path.parent.stat().st_mode & 0o7777 == 0o700
            assert not listener.get_inheritable()
            connected(path).close()
    finally:
        assert os.umask(before) == 0
    assert os.listdir(path.parent) == []


@pytest.mark.needs_root
def test_others_may_not_connect(scratch: Path) -> None:
    path = scratch / "p.sock"
    with made(str(path)), pytest.raises(PermissionError):
        system.in_child(lambda: connected(path), uid=1234, gid=1234)


def test_a_live_one_is_in_use(scratch: Path) -> None:
    path = str(scratch / "p.sock")
    said = rf"p\.sock: in use by process {os.getpid()}; is the plugin running already\?"
    with made(path) as listener:
        with pytest.raises(PluginError, match=said), made(path):
            pass
        listener.accept()[0].close()
        connected(path).close()


def test_a_live_one_with_a_full_queue_is_in_use(scratch: Path) -> None:
    path = str(scratch / "p.sock")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(path)
        other.listen(0)
        waiting.connect(path)
        with pytest.raises(PluginError, match="in use"), made(path):
            pass
    assert Path(path).exists()


def test_a_dead_one_is_replaced(scratch: Path) -> None:
    path = str(scratch / "p.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with made(path):
        connected(path).close()


def test_a_directory_that_somebody_keeps_locked(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can read it may, and keeps nobody from starting and from ending."""
    monkeypatch.setattr("unionfs.plugin.socket._PATIENCE", 0.1)
    path = scratch / "p.sock"
    holder = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with made(str(path)):
            connected(str(path)).close()
        assert not path.exists()
    finally:
        os.close(holder)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(scratch: Path, kind: str) -> None:
    path = scratch / "p.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("precious")
    before = path.lstat()
    with pytest.raises(PluginError, match=r"p\.sock: is there, and is no socket"), made(str(path)):
        pass
    assert path.lstat() == before


def test_paths_that_cannot_be(scratch: Path) -> None:
    with pytest.raises(PluginError, match="--socket: an empty path"), listening("", "/x", {}):
        pass
    long = str(scratch / ("p" * 200))
    with pytest.raises(PluginError, match="longer than the 107 bytes"), made(long):
        pass
    longest = str(scratch / ("p" * 200))[:107]
    with made(longest):
        connected(longest).close()
    (scratch / "file").touch()
    with pytest.raises(PluginError, match=r"file/p: (Not a directory|File exists)"):
        made(str(scratch / "file/p")).__enter__()


def test_another_ones_is_not_removed(scratch: Path) -> None:
    """Ours was removed by somebody, and one of his is there when we end."""
    path = scratch / "p.sock"
    with made(str(path)):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists()
    other.close()


def test_of_many_that_start_at_once_one_has_it(scratch: Path) -> None:
    """Also where a dead one was: nobody takes a fresh socket for it."""
    path = str(scratch / "p.sock")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        outcomes: list[str] = []
        gate, done = threading.Barrier(6), threading.Barrier(6)

        def attempt(
            outcomes: list[str] = outcomes,
            gate: threading.Barrier = gate,
            done: threading.Barrier = done,
        ) -> None:
            gate.wait(10)
            try:
                with made(path):
                    outcomes.append("made")
                    done.wait(10)
            except PluginError:
                outcomes.append("in use")
                done.wait(10)

        threads = [threading.Thread(target=attempt) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["in use"] * 5 + ["made"]
        assert not Path(path).exists()


# Passed on by systemd


def test_nothing_is_passed_on() -> None:
    """Not to us: the variables were meant for our parent."""
    for variables in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}):
        assert activated(variables) is None
        assert variables == {}


def test_too_many_are_passed_on() -> None:
    variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    with pytest.raises(PluginError, match="systemd passes on 2 sockets; a plugin has one"):
        activated(variables)
    assert variables == {}


#: Run first in the process of a plugin: what systemd has done when it starts one.
_PASS_ON = """
import os, socket
kind, path = {kind!r}, {path!r}
given = open(path, "w") if kind == "file" else socket.socket(socket.AF_UNIX, getattr(socket, kind))
if kind != "file":
    given.bind(path)
if kind == "SOCK_STREAM":
    given.listen()
if given.fileno() != 3:
    os.dup2(given.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="p.socket")
"""


@pytest.mark.needs_root
def test_the_one_that_systemd_opens_is_served(scratch: Path) -> None:
    """It is systemd's, and is not removed."""
    path = scratch / "s.sock"
    patch = _PASS_ON.format(kind="SOCK_STREAM", path=str(path))
    plugin = PluginProcess(scratch / "log", "volume", f"--root={scratch / 'store'}", patch=patch)
    client = Client(path)
    assert client.ask("/Plugin.Activate").status == 200
    assert plugin.end() == 0
    client.close()
    assert path.exists()


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("SOCK_DGRAM", "the socket that systemd passes on is not by ListenStream=/PATH"),
        ("file", "what systemd passes on is no socket: Socket operation on non-socket"),
    ],
)
def test_what_systemd_opens_and_cannot_be_served(scratch: Path, kind: str, said: str) -> None:
    patch = _PASS_ON.format(kind=kind, path=str(scratch / "s.sock"))
    assert refused("volume", f"--root={scratch / 'store'}", patch=patch) == said


@pytest.mark.needs_root
def test_systemd_opens_another(scratch: Path) -> None:
    path, asked = scratch / "s.sock", scratch / "p.sock"
    patch = _PASS_ON.format(kind="SOCK_STREAM", path=str(path))
    said = refused("volume", f"--socket={asked}", f"--root={scratch / 'store'}", patch=patch)
    assert said == f"{asked}: systemd has opened {path} for us; leave --socket out"
    assert path.exists()


# What is heard and said


def test_what_systemd_is_told(scratch: Path) -> None:
    path = scratch / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        variables = {"NOTIFY_SOCKET": str(path)}
        with Supervisor(variables) as supervisor:
            supervisor.ready()
            supervisor.stopping()
        assert (systemd.recv(99), systemd.recv(99)) == (b"READY=1", b"STOPPING=1")
    assert variables == {}


def test_systemd_does_not_listen(scratch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody is told, the log has it, and the plugin serves."""
    with Supervisor({"NOTIFY_SOCKET": str(scratch / "gone")}) as supervisor:
        supervisor.ready()
    assert "gone: could not be told READY=1: No such file" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_wait(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Supervisor({}) as supervisor:
        assert not supervisor.wait(0)
        for _ in range(70_000 if number == signal.SIGTERM else 1):  # more than a pipe holds
            os.kill(os.getpid(), number)
        assert supervisor.wait(5)
        assert supervisor.wait(5)
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Supervisor({}) as supervisor:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not supervisor.wait(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


# The plugin itself


def test_started_twice(ground: PluginGround) -> None:
    said = refused("volume", f"--socket={ground.socket}", f"--root={ground.root}")
    pid = ground.plugin.process.pid
    assert said == f"{ground.socket}: in use by process {pid}; is the plugin running already?"
    ground.client.create("still")


def test_killed_and_started_again(ground: PluginGround) -> None:
    ground.plugin.kill()
    assert ground.socket.exists()
    ground.start()
    ground.connect().create("again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(ground: PluginGround, number: signal.Signals) -> None:
    """Cleanly, with connections that are open and say nothing."""
    ground.client.create("vol")
    with connected(ground.socket):
        assert ground.plugin.end(number) == 0
    assert not ground.socket.exists()


def test_the_end_is_told(ground: PluginGround) -> None:
    ground.plugin.process.terminate()
    assert ground.plugin.told() == "STOPPING=1"
    assert ground.plugin.wait() == 0


def test_no_store_can_be_had(scratch: Path) -> None:
    """Before there is a socket."""
    (scratch / "store").mkdir()
    (scratch / "store/store.db").write_text("no database")
    said = refused("volume", f"--socket={scratch / 'p.sock'}", f"--root={scratch / 'store'}")
    assert "store.db: file is not a database" in said
    assert not (scratch / "p.sock").exists()


def test_a_signal_that_another_thread_gets() -> None:
    """The kernel chooses among those of a plugin, and nothing else wakes the one that waits."""

    def get() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    with Supervisor({}) as told:
        thread = threading.Thread(target=get)
        thread.start()
        assert told.wait(5)
        thread.join()


def test_bad_words(scratch: Path) -> None:
    assert refused("dentist") == "plugin dentist: unknown; there are volume, snapshotter"
    assert refused("volume", "extra") == "plugin volume: see unionfs plugin --help"
    assert refused("volume", "--socket") == "--socket needs a value"
