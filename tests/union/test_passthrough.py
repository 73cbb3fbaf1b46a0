"""Files that the kernel reads and writes itself: what must hold all the same."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import build, system
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt, fallocate, in_child
from tests.tree import assert_same, snapshot
from tests.union.client import opened
from tests.union.test_ranges import CAP_NET_RAW
from unionfs.fuse.interface import Changes
from unionfs.layer.xattrs import CAPABILITY

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.device_session,
    pytest.mark.since(*system.PASSTHROUGH, "passthrough"),
]

Mount = Callable[..., Any]
Make = Callable[..., Pair]

LOWER = b"lower content " * 1000
USER = 1000


@pytest.fixture
def files(layers: Layers) -> Layers:
    for number, lower in enumerate(layers.lowers):
        build.write(lower / f"lower{number}", LOWER, mode=0o666)
    assert layers.upper is not None
    build.write(layers.lowers[0] / "file", LOWER, mode=0o666)
    build.write(layers.upper / "upper", b"upper content " * 1000, mode=0o666)
    return layers


@contextmanager
def held(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def on_disk(layers: Layers, name: str) -> bytes:
    assert layers.upper is not None
    return (layers.upper / name).read_bytes()


def requests(mounted: Any) -> dict[str, int]:
    """What the kernel asked, of a mount with `debug` that is at its end."""
    mounted.allow_log("DEBUG")
    mounted.unmount()
    counted = mounted.log.rpartition("requests: ")[2].split()
    return {name: int(count) for name, _, count in (word.partition("=") for word in counted)}


# What goes through, and what does not


def test_the_kernel_reads_and_writes_upper_files_itself(files: Layers, union: Mount) -> None:
    mounted = union("debug")
    with held(mounted.root / "upper", os.O_RDWR) as fd:
        for number in range(100):
            assert os.pwrite(fd, b"x" * 4096, number * 4096) == 4096
        assert os.pread(fd, 4096, 4096) == b"x" * 4096
    counted = requests(mounted)
    assert not {"READ", "WRITE"} & set(counted), counted
    assert on_disk(files, "upper") == b"x" * 409_600


def test_the_kernel_reads_lower_files_itself_where_nothing_is_written(
    files: Layers, union: Mount
) -> None:
    files.upper = files.work = None
    mounted = union("debug")
    assert (mounted.root / "file").read_bytes() == LOWER
    assert "READ" not in requests(mounted)


def test_new_files_go_through(files: Layers, union: Mount) -> None:
    mounted = union("debug")
    with held(mounted.root / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"new")
        os.fsync(fd)
        assert os.fstat(fd).st_size == 3
    assert "WRITE" not in requests(mounted)
    assert on_disk(files, "new") == b"new"


def test_off_is_off(files: Layers, union: Mount) -> None:
    mounted = union("passthrough=off,debug")
    with held(mounted.root / "upper", os.O_RDWR) as fd:
        os.write(fd, b"new")
    counted = requests(mounted)
    assert counted["WRITE"] == 1


# Lower files


@pytest.mark.parametrize("option", ["auto", "on"])
@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY])
@pytest.mark.parametrize("second", [os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND])
def test_a_lower_is_never_written(
    files: Layers, union: Mount, option: str, first: int, second: int
) -> None:
    root = union(f"passthrough={option}").root
    busy = option == "on" and first == os.O_RDONLY
    with held(root / "file", first) as one:
        outcome = attempt(lambda: os.open(root / "file", second))
        assert outcome.error == ("ETXTBSY" if busy else None)
        if outcome.error is None:
            os.write(outcome.value, b"changed")
            os.close(outcome.value)
            appends = second & os.O_APPEND
            expected = LOWER + b"changed" if appends else b"changed" + LOWER[7:]
            if first != os.O_WRONLY:
                assert os.pread(one, 1 << 20, 0) == expected
            assert on_disk(files, "file") == expected
        else:
            assert os.pread(one, 1 << 20, 0) == LOWER
    assert (files.lowers[0] / "file").read_bytes() == LOWER
    with held(root / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"again", 0)
    assert (root / "file").read_bytes().startswith(b"again")


@pytest.mark.parametrize("option", ["auto", "on"])
@pytest.mark.parametrize("truncate", ["open", "truncate", "ftruncate"])
def test_a_lower_is_never_truncated(
    files: Layers, union: Mount, option: str, truncate: str
) -> None:
    path = union(f"passthrough={option}").root / "file"
    changes: dict[str, Callable[[], Any]] = {
        "open": lambda: os.close(os.open(path, os.O_RDWR | os.O_TRUNC)),
        "truncate": lambda: os.truncate(path, 0),
        "ftruncate": lambda: in_child(lambda: _truncate(path)),
    }
    with held(path) as fd:
        outcome = attempt(changes[truncate])
        assert outcome.error == ("ETXTBSY" if option == "on" else None)
        assert os.pread(fd, 100_000, 0) == (LOWER if option == "on" else b"")
    changes[truncate]()
    assert path.read_bytes() == b""
    assert (files.lowers[0] / "file").read_bytes() == LOWER


async def test_who_has_just_closed_a_lower_is_in_nobodys_way(files: Layers) -> None:
    """close(2) does not wait until the daemon knows."""
    with opened(files, passthrough="on") as client:
        client.fs.connect(_Backs())
        async with client.node("file") as node:
            reader = (await client.fs.open(node, os.O_RDONLY)).handle

            async def release() -> None:
                await trio.sleep(0.003)
                client.fs.release(reader)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(release)
                writer = (await client.fs.open(node, os.O_RDWR)).handle
            client.fs.release(writer)


def _truncate(path: Path) -> None:
    with held(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 0)


@pytest.mark.parametrize("kind", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_a_mapped_reader_sees_what_is_written(files: Layers, union: Mount, kind: int) -> None:
    path = union().root / "file"
    with held(path) as fd:
        mapped = mmap.mmap(fd, 0, kind, mmap.PROT_READ)
    assert mapped[:5] == b"lower"
    with held(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"UPPER", 0)
        assert mapped[:5] == b"UPPER"
        assert os.pread(fd, 5, 0) == b"UPPER"
    mapped.close()
    assert on_disk(files, "file")[:5] == b"UPPER"


def test_with_lower_files_on_a_mapping_keeps_writers_out(files: Layers, union: Mount) -> None:
    path = union("passthrough=on").root / "file"
    with held(path) as fd:
        mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    assert attempt(os.open, path, os.O_RDWR).error == "ETXTBSY"
    assert mapped[:5] == b"lower"
    mapped.close()
    with held(path, os.O_RDWR) as fd:
        os.write(fd, b"UPPER")
    assert path.read_bytes()[:5] == b"UPPER"


def test_with_lower_files_on_they_are_read_by_the_kernel(files: Layers, union: Mount) -> None:
    mounted = union("passthrough=on,debug")
    assert (mounted.root / "file").read_bytes() == LOWER
    assert "READ" not in requests(mounted)


def test_what_copies_up_beside_a_reader_changes_nothing_for_it(files: Layers, union: Mount) -> None:
    root = union("passthrough=on").root
    with held(root / "file") as fd:
        (root / "file").chmod(0o600)
        assert on_disk(files, "file") == LOWER
        assert attempt(os.open, root / "file", os.O_RDWR).error == "ETXTBSY"
        with held(root / "file") as second:
            assert os.pread(second, 5, 0) == os.pread(fd, 5, 0) == b"lower"
        os.rename(root / "file", root / "renamed")
        os.link(root / "renamed", root / "linked")
        assert os.pread(fd, 5, 0) == b"lower"
    with held(root / "renamed", os.O_RDWR) as fd:
        os.write(fd, b"UPPER")
    assert (root / "linked").read_bytes()[:5] == b"UPPER"


def test_nobody_gets_a_lower_while_it_is_copied_up(layers: Layers, union: Mount) -> None:
    """Who comes while O_TRUNC copies up would keep reading what is gone, or write it below."""
    content = LOWER * 100
    for number in range(30):
        build.write(layers.lowers[0] / str(number), content)
    root = union("passthrough=on").root
    stop = threading.Event()
    outcome = system.Outcome()

    def read(path: Path) -> None:
        while not stop.is_set():
            with held(path) as fd:
                os.pread(fd, 10, 0)
            time.sleep(0.001)

    for number in range(30):
        stop.clear()
        path = root / str(number)
        readers = [threading.Thread(target=read, args=(path,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            outcome = attempt(_write_anew, path)
            if outcome.error is None:
                break
            assert outcome.error == "ETXTBSY"
        stop.set()
        for reader in readers:
            reader.join()
        if outcome.error is None:
            assert path.read_bytes() == b"anew"
    # The lowers are looked at when the test is over.


def _write_anew(path: Path) -> None:
    with held(path, os.O_RDWR | os.O_TRUNC) as fd:
        os.write(fd, b"anew")


# Programs


@contextmanager
def running(command: list[Any]) -> Iterator[int]:
    """A process, and all that it starts, for as long as the context lasts."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def program(path: Path) -> Path:
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_a_running_program_is_not_written(layers: Layers, union: Mount, where: str) -> None:
    assert layers.upper is not None
    holder = layers.upper if where == "upper" else layers.lowers[0]
    original = program(holder / "program").read_bytes()
    root = union().root
    with running([root / "program", "60"]):
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            assert attempt(os.open, root / "program", flags).error == "ETXTBSY"
        assert (root / "program").read_bytes() == original
    with held(root / "program", os.O_RDWR) as fd:
        assert attempt(os.execv, root / "program", ["sleep", "0"]).error == "ETXTBSY"
        os.pwrite(fd, b"\x7fELF", 0)
    subprocess.run([root / "program", "0"], check=True)


@pytest.mark.parametrize("option", ["auto", "on"])
def test_an_interpreter_can_be_replaced_but_not_below(
    layers: Layers, union: Mount, option: str
) -> None:
    """Its write denial ends when the program is loaded; its mapping stays."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if not loader.exists():
        pytest.skip("no such loader here")
    lower = layers.lowers[0]
    content = loader.read_bytes()
    build.write(lower / "lib64" / loader.name, content, mode=0o755)
    build.write(lower / "sleep", Path("/bin/sleep").read_bytes(), mode=0o755)
    libraries = subprocess.run(["ldd", "/bin/sleep"], check=True, capture_output=True, text=True)
    for word in libraries.stdout.split():
        if word.startswith("/") and "ld-linux" not in word:
            build.write(lower / word.lstrip("/"), Path(word).read_bytes(), mode=0o755)
    root = union(f"passthrough={option}").root
    command = ["chroot", root, "/sleep", "60"]
    with running(command) as pid:
        _wait_for_program(pid, "sleep")
        # Of a mapping the kernel keeps the backing file open, not the file that is backed.
        with held(root / "lib64" / loader.name, os.O_RDWR) as fd:
            os.pwrite(fd, b"\x7fELF", 0)
        assert on_disk(layers, f"lib64/{loader.name}") == content
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert subprocess.run(["chroot", root, "/sleep", "0"], check=False).returncode == 0


def _wait_for_program(pid: int, name: str) -> None:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        mapped = Path(f"/proc/{pid}/maps").read_text()
        if Path(f"/proc/{pid}/comm").read_text().strip() == name and "libc" in mapped:
            return
        time.sleep(0.01)
    raise AssertionError(f"{name} does not run")


def test_a_script_can_be_written_while_it_runs(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "script", "#!/bin/sh\nsleep 60\n", mode=0o755)
    root = union().root
    with running([root / "script"]), held(root / "script", os.O_RDWR) as fd:
        os.pwrite(fd, b"#!/bin/sh\nexit 7\n#", 0)
    assert subprocess.run([root / "script"], check=False).returncode == 7


# Read-only unions


@pytest.mark.parametrize("option", ["auto", "on", "off"])
@pytest.mark.parametrize("remounted", [False, True])
def test_a_union_without_an_upper_refuses_every_change(
    layers: Layers, union: Mount, option: str, remounted: bool
) -> None:
    build.write(layers.lowers[0] / "file", LOWER)
    build.write(layers.lowers[0] / "directory" / "inner", b"inner")
    layers.upper = layers.work = None
    root = union(f"passthrough={option}").root
    if remounted:
        system.mount("unionfs", root, None, system.MS_REMOUNT)
    file = root / "file"
    changes: dict[str, Callable[[], Any]] = {
        "open": lambda: os.open(file, os.O_RDWR),
        "write only": lambda: os.open(file, os.O_WRONLY),
        "append": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        "truncate by open": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: os.open(root / "new", os.O_RDWR | os.O_CREAT),
        "nameless": lambda: os.open(root, os.O_RDWR | os.O_TMPFILE),
        "mkdir": lambda: os.mkdir(root / "new"),
        "mkfifo": lambda: os.mkfifo(root / "new"),
        "symlink": lambda: os.symlink("file", root / "new"),
        "link": lambda: os.link(file, root / "new"),
        "unlink": lambda: os.unlink(file),
        "rmdir": lambda: os.rmdir(root / "directory"),
        "rename": lambda: os.rename(file, root / "new"),
        "chmod": lambda: os.chmod(file, 0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "utime": lambda: os.utime(file),
        "setxattr": lambda: os.setxattr(file, "user.a", b"a"),
        "removexattr": lambda: os.removexattr(file, "user.a"),
    }
    if option == "off" and remounted:
        # No file is opened there: the write is what finds out.
        for name in ("open", "write only", "append"):
            del changes[name]
        changes["write"] = lambda: _write(file, b"x")
    with held(file) as fd, held(file) as second:
        found = {name: attempt(change).error for name, change in changes.items()}
        assert set(found.values()) == {"EROFS"}, found
        assert os.pread(fd, 1 << 20, 0) == os.pread(second, 1 << 20, 0) == LOWER
        # A descriptor that may not write cannot be made one that may.
        assert attempt(_write, Path(f"/proc/self/fd/{fd}"), b"x").error == "EROFS"
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
            assert mapped[:5] == b"lower"
    if remounted:
        system.mount("unionfs", root, None, system.MS_REMOUNT | system.MS_RDONLY)


# Opens in all orders


@pytest.mark.parametrize("option", ["auto", "on", "off"])
@pytest.mark.parametrize("seed", range(3))
def test_opens_in_any_order_are_never_an_input_output_error(
    files: Layers, union: Mount, option: str, seed: int
) -> None:
    """Cached, then upper, then passed through; mapped or not; by many at once."""
    root = union(f"passthrough={option}").root
    names = ["file", "lower1", "upper", "made"]

    def client(number: int) -> list[str]:
        rng = random.Random(f"{seed}/{number}")
        fds: list[int] = []
        maps: list[mmap.mmap] = []
        errors: list[str] = []
        for _ in range(400):
            path = root / rng.choice(names)
            flags = rng.choice(
                [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_TRUNC]
            )
            if path.name == "made":
                flags = os.O_CREAT | os.O_RDWR
            outcome = attempt(_use, path, flags, rng, maps)
            if outcome.error is None:
                fds.append(outcome.value)
            else:
                errors.append(outcome.error)
            if path.name == "made" and rng.random() < 0.3:
                attempt(os.unlink, path)
            if path.name != "made" and rng.random() < 0.1:
                attempt(os.chmod, path, rng.choice([0o666, 0o4666]))
            while fds and (len(fds) > 8 or rng.random() < 0.5):
                os.close(fds.pop(rng.randrange(len(fds))))
            while maps and rng.random() < 0.5:
                maps.pop().close()
        return errors

    with ExitStack() as stack:
        found: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(in_child(lambda: client(n))))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    errors = {error for one in found for error in one}
    assert len(found) == 4
    assert errors <= ({"ETXTBSY"} if option == "on" else set()), errors
    for lower in files.lowers:
        assert all(path.read_bytes() == LOWER for path in lower.iterdir())


def _use(path: Path, flags: int, rng: random.Random, maps: list[mmap.mmap]) -> int:
    fd = os.open(path, flags, 0o666)
    try:
        if flags & os.O_ACCMODE == os.O_RDWR:
            os.pwrite(fd, rng.randbytes(rng.choice([1, 5000])), rng.choice([0, 3, 8192]))
        if flags & os.O_ACCMODE != os.O_WRONLY:
            os.pread(fd, 4096, 0)
            if os.fstat(fd).st_size and rng.random() < 0.3:
                with suppress(ValueError):  # another has truncated it
                    maps.append(mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_READ))
    except BaseException:
        os.close(fd)
        raise
    return fd


def test_copied_up_while_open_then_closed_then_passed_through(files: Layers, union: Mount) -> None:
    mounted = union("debug")
    path = mounted.root / "file"
    with held(path) as reader, held(path, os.O_RDWR) as writer:
        os.pwrite(writer, b"first", 0)
        assert os.pread(reader, 5, 0) == b"first"
        with held(path) as third:
            assert os.pread(third, 5, 0) == b"first"
    time.sleep(0.3)  # close(2) waits for no RELEASE
    with held(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"third", 0)
        assert os.pread(fd, 1 << 20, 0) == b"third" + LOWER[5:]
    with held(path) as fd:
        assert os.pread(fd, 1 << 20, 0) == b"third" + LOWER[5:]
    assert requests(mounted)["WRITE"] == 1
    assert on_disk(files, "file") == b"third" + LOWER[5:]


def test_pages_of_before_are_not_shown_after(files: Layers, union: Mount) -> None:
    """Cached, then written past the cache, then cached again: a program that became setuid."""
    path = union().root / "file"
    assert path.read_bytes() == LOWER
    with held(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"first", 0)
    assert path.read_bytes()[:5] == b"first"
    for content, mode in ((b"1st", 0o4755), (b"2nd", 0o755), (b"3rd", 0o4755), (b"4th", 0o755)):
        path.chmod(0o755)
        with held(path, os.O_RDWR) as fd:
            os.pwrite(fd, content, 0)
        path.chmod(mode)
        with held(path) as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            assert os.pread(fd, 3, 0) == mapped[:3] == content


# Setuid, setgid, capabilities


def suid(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o2767])
@pytest.mark.parametrize("where", ["upper", "file"])
def test_who_may_not_keep_set_ids_takes_them_away_by_writing(
    files: Layers, union: Mount, when: str, mode: int, where: str
) -> None:
    """By a descriptor from before or after the chmod, as on any file system."""
    path = union().root / where
    if when == "before":
        with held(path, os.O_RDWR) as fd:
            path.chmod(mode)
            in_child(lambda: os.pwrite(fd, b"evil", 0), uid=USER)
    else:
        path.chmod(mode)
        in_child(lambda: _write(path, b"evil"), uid=USER)
    expected = mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)
    _soon(lambda: suid(path), expected)
    assert files.upper is not None
    assert suid(files.upper / where) == expected
    assert path.read_bytes()[:4] == b"evil"


def _write(path: Path, data: bytes) -> None:
    with held(path, os.O_RDWR) as fd:
        os.write(fd, data)


def _soon(look: Callable[[], Any], expected: Any) -> None:
    """A RELEASE is not waited for by close(2)."""
    end = time.monotonic() + 2
    while look() != expected and time.monotonic() < end:
        time.sleep(0.01)
    assert look() == expected


LAUNDRIES: dict[str, Callable[[Path], Any]] = {
    "touch": os.utime,
    "an attribute": lambda path: os.setxattr(path, "user.a", b"a"),
    "no new owner": lambda path: os.chown(path, -1, -1),
    "another reader": lambda path: os.close(os.open(path, os.O_RDONLY)),
}


@pytest.mark.parametrize("laundry", LAUNDRIES)
def test_what_was_written_is_not_forgotten(files: Layers, union: Mount, laundry: str) -> None:
    """Nothing that a writer may do keeps setuid on what he wrote."""
    path = union().root / "upper"
    with held(path, os.O_RDWR) as fd:
        path.chmod(0o4777)

        def attack() -> None:
            os.pwrite(fd, b"evil", 0)
            LAUNDRIES[laundry](path)

        in_child(attack, uid=USER)
    _soon(lambda: suid(path), 0o777)


class _Backs:
    """A kernel that takes every file."""

    def open_backing(self, fd: int) -> int:
        assert fd >= 0
        return 1

    def close_backing(self, backing: int) -> None: ...

    def attributes_changed(self, node: int) -> None: ...


#: Of an open(2) by execve(2), as FUSE_OPEN has it.
FMODE_EXEC = 0x20


async def test_who_runs_it_before_the_release_of_a_writer_looks_again(files: Layers) -> None:
    """Else the kernel runs the program with the mode that it knows."""
    assert files.upper is not None
    path = files.upper / "upper"
    with opened(files) as client:
        client.fs.connect(_Backs())
        async with client.node("upper") as node:
            writer = (await client.fs.open(node, os.O_RDWR)).handle
            await client.fs.setattr(node, Changes(mode=0o4777))
            reader = (await client.fs.open(node, os.O_RDONLY)).handle
            path.write_bytes(b"evil")  # as the kernel does it
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                await client.fs.open(node, os.O_RDONLY | FMODE_EXEC)
            assert suid(path) == 0o777
            again = (await client.fs.open(node, os.O_RDONLY)).handle
            for handle in (writer, reader, again):
                client.fs.release(handle)


async def test_who_was_let_in_to_run_it_before_the_release_looks_again(files: Layers) -> None:
    """The kernel asks for OPEN when it has looked at the mode, and RELEASE may be between."""
    assert files.upper is not None
    path = files.upper / "upper"
    with opened(files) as client:
        client.fs.connect(_Backs())
        async with client.node("upper") as node:
            writer = (await client.fs.open(node, os.O_RDWR)).handle
            await client.fs.setattr(node, Changes(mode=0o4777))
            path.write_bytes(b"evil")  # as the kernel does it
            client.fs.release(writer)
            assert suid(path) == 0o777
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                await client.fs.open(node, os.O_RDONLY | FMODE_EXEC)
            client.fs.release((await client.fs.open(node, os.O_RDONLY | FMODE_EXEC)).handle)


async def test_what_is_written_during_a_chmod_is_seen(
    files: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.upper is not None
    path = files.upper / "upper"
    original = os.chmod

    def chmod(name: bytes, mode: int) -> None:
        original(name, mode)
        path.write_bytes(b"evil")

    with opened(files) as client:
        client.fs.connect(_Backs())
        async with client.node("upper") as node:
            writer = (await client.fs.open(node, os.O_RDWR)).handle
            with monkeypatch.context() as patch:
                patch.setattr(os, "chmod", chmod)
                await client.fs.setattr(node, Changes(mode=0o4777))
            client.fs.release(writer)
    assert suid(path) == 0o777


def test_writes_that_go_on_during_a_chmod_are_seen(files: Layers, union: Mount) -> None:
    path = union().root / "upper"
    for _ in range(100):
        with held(path, os.O_RDWR) as fd:
            reader, writer = os.pipe()

            def attack(fd: int = fd, reader: int = reader) -> None:
                os.set_blocking(reader, False)
                while attempt(os.read, reader, 1).error is not None:
                    os.pwrite(fd, b"evil", 0)

            attacker = threading.Thread(target=attack)
            attacker.start()
            path.chmod(0o4777)
            os.pwrite(fd, b"last", 0)
            os.write(writer, b"x")
            attacker.join()
            os.close(reader)
            os.close(writer)
        _soon(lambda: suid(path), 0o777)


def test_nobody_runs_what_was_written_with_the_owners_rights(layers: Layers, union: Mount) -> None:
    """close(2) does not wait for its RELEASE, and exec may come before it."""
    assert layers.upper is not None
    path = program(layers.upper / "program")
    content = path.read_bytes()
    path.chmod(0o777)
    path = union().root / "program"

    def attack(fd: int, alone: int) -> int:
        os.read(alone, 1)  # while the other has it open for writing, nobody runs it
        os.pwrite(fd, content[:4], 0)
        os.close(fd)
        child = subprocess.Popen([path, "1"])
        uids = Path(f"/proc/{child.pid}/status").read_text().partition("Uid:")[2].split()[:4]
        child.kill()
        child.wait()
        return int(uids[1])

    for _ in range(40):
        path.chmod(0o777)
        fd = os.open(path, os.O_RDWR)
        path.chmod(0o4777)
        reader, writer = os.pipe()
        alone, others = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                os.close(others)
                os.setgid(USER)
                os.setuid(USER)
                os.write(writer, b"%d" % attack(fd, alone))
            finally:
                os._exit(0)
        for one in (fd, writer, alone, others):
            os.close(one)
        os.waitpid(pid, 0)
        answer = os.read(reader, 10)
        os.close(reader)
        assert answer == b"%d" % USER, answer


@pytest.mark.parametrize("when", ["before", "after"])
def test_capabilities_go_with_the_first_write(files: Layers, union: Mount, when: str) -> None:
    path = union().root / "upper"
    with ExitStack() as stack:
        fd = stack.enter_context(held(path, os.O_RDWR))
        os.pwrite(fd, b"first", 0)
        os.setxattr(path, CAPABILITY, CAP_NET_RAW)
        if when == "after":
            fd = stack.enter_context(held(path, os.O_RDWR))
        os.pwrite(fd, b"evil", 0)
        assert CAPABILITY.decode() not in os.listxattr(path)
    assert files.upper is not None
    assert CAPABILITY.decode() not in os.listxattr(files.upper / "upper")


def test_a_program_is_installed_as_install_does(files: Layers, union: Mount) -> None:
    """Written, then given its mode by the descriptor, then closed: the mode stays."""
    root = union().root
    with held(root / "program", os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, b"program")
        os.fchown(fd, USER, USER)
        os.fchmod(fd, 0o4755)
        os.utime(fd, (5, 5))
    with held(root / "program"):
        pass
    time.sleep(0.2)
    assert suid(root / "program") == 0o4755
    assert (root / "program").stat().st_mtime == 5


# What writes show


FLAGS = {
    "plain": 0,
    "append": os.O_APPEND,
    "sync": os.O_SYNC,
    "dsync": os.O_DSYNC,
    "direct": os.O_DIRECT,
    "truncate": os.O_TRUNC,
}


def layers_for_pair(layers: Layers) -> None:
    assert layers.upper is not None
    for name in FLAGS:
        build.write(layers.upper / name, b"begin " * 10_000)
    build.write(layers.upper / "source", random.Random(1).randbytes(200_000))
    build.write(layers.upper / "target", b"t" * 100_000)
    build.write(layers.lowers[0] / "below", b"below " * 10_000)
    build.write(layers.lowers[0] / "linked", b"linked " * 1000)
    os.link(layers.lowers[0] / "linked", layers.lowers[0] / "other name")


def write_blocks(where: Path, name: str) -> tuple[Any, ...]:
    """Two blocks written at the position of the descriptor, and what is seen at once."""
    block = mmap.mmap(-1, 8192)  # as aligned as O_DIRECT wants it
    block.write(b"0123456789abcdef" * 512)
    with held(where / name, os.O_RDWR | FLAGS[name]) as fd:
        seen = [os.fstat(fd).st_size]
        for _ in range(2):
            os.write(fd, block)
            seen += [os.fstat(fd).st_size, (where / name).stat().st_size]
        seen.append(os.lseek(fd, 0, os.SEEK_CUR))
        content = mmap.mmap(-1, 1 << 17)
        seen.append(os.preadv(fd, [content], 0))
        return *seen, content[:]


def sparse(where: Path) -> tuple[Any, ...]:
    with held(where / "sparse", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 10_000_000)
        os.pwrite(fd, b"x" * 4096, 5_001_216)
        status = os.fstat(fd)
        found = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 5_001_216, os.SEEK_HOLE)
        return status.st_size, status.st_blocks < 100, found, os.pread(fd, 3, 5_001_215)


def allocate(where: Path) -> tuple[Any, ...]:
    path = where / "target"
    with held(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"y" * 5000, 90_000)
        fallocate(path, 0, 0, 200_000)
        sizes = [os.fstat(fd).st_size]
        fallocate(path, 3, 4096, 8192)
        sizes.append(os.fstat(fd).st_size)
        os.ftruncate(fd, 150_000)
        sizes.append(os.fstat(fd).st_size)
        return sizes, hash(os.pread(fd, 1 << 20, 0)), hash(path.read_bytes())


def copy(where: Path) -> tuple[Any, ...]:
    with held(where / "source") as one, held(where / "target", os.O_RDWR) as two:
        os.pwrite(two, b"z" * 100, 0)
        copied = os.copy_file_range(one, two, 150_000, 1000, 50)
        return copied, os.fstat(two).st_size, hash(os.pread(two, 1 << 20, 0))


def by_mapping(where: Path) -> tuple[Any, ...]:
    with held(where / "target", os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        before = os.pread(fd, 3, 5000)
        mapped[5000:5003] = b"map"
        return before, os.pread(fd, 3, 5000), (where / "target").read_bytes()[5000:5003]


def by_names(where: Path) -> tuple[Any, ...]:
    """Renamed, linked and removed while it is open."""
    with held(where / "source", os.O_RDWR) as fd:
        os.rename(where / "source", where / "renamed")
        os.pwrite(fd, b"1", 0)
        os.link(where / "renamed", where / "link")
        os.pwrite(fd, b"2", 1)
        os.unlink(where / "renamed")
        os.pwrite(fd, b"3", 2)
        first = (where / "link").read_bytes()[:4]
        os.unlink(where / "link")
        os.pwrite(fd, b"4", 3)
        return first, os.pread(fd, 5, 0), os.fstat(fd).st_nlink, os.fstat(fd).st_size


def by_other_name(where: Path) -> tuple[Any, ...]:
    """A lower file of two names, changed under the one and written under the other."""
    (where / "linked").chmod(0o600)
    with held(where / "other name", os.O_RDWR) as fd:
        os.pwrite(fd, b"written", 0)
    return (where / "linked").read_bytes()[:10], (where / "other name").read_bytes()[:10]


def flags_later(where: Path) -> tuple[Any, ...]:
    with held(where / "target", os.O_RDWR) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"appended")
        return os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 100, 99_995)


@pytest.mark.parametrize("option", ["auto", "on", "off"])
def test_the_tree_is_the_kernels(pair: Make, option: str) -> None:
    """At once, after a remount, and with the uppers exchanged."""
    both = pair(layers_for_pair, options=f"passthrough={option}")
    for name in FLAGS:
        both.same(lambda where, name=name: write_blocks(where, name))  # type: ignore[misc]
    for operation in (sparse, allocate, copy, by_mapping, by_names, by_other_name, flags_later):
        both.same(operation)
    both.same_everywhere()


@pytest.mark.parametrize("option", ["auto", "off"])
def test_the_upper_is_the_kernels(pair: Make, option: str) -> None:
    """What another program finds in it, not only what a union shows."""
    both = pair(layers_for_pair, options=f"passthrough={option}")
    for operation in (by_other_name, by_names, copy):
        both.same(operation)
    both.unmount()
    for layers in (both.ours_layers, both.theirs_layers):
        assert layers.upper is not None
    ours, theirs = (
        {path.name: path.read_bytes() for path in (layers.upper or Path()).iterdir()}
        for layers in (both.ours_layers, both.theirs_layers)
    )
    assert ours == theirs


def test_times_are_right_at_once(files: Layers, union: Mount) -> None:
    path = union().root / "upper"
    os.utime(path, (5, 5))
    with held(path, os.O_RDWR) as fd:
        os.write(fd, b"x")
        for status in (os.fstat(fd), path.stat()):
            assert status.st_mtime > 1_000_000_000
            assert status.st_ctime >= status.st_mtime
    os.utime(path, (5, 5))
    with held(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 0)
    mapped[:1] = b"y"
    mapped.close()
    _soon(lambda: path.stat().st_mtime > 1_000_000_000, True)
    assert path.read_bytes()[:1] == b"y"


def test_reading_a_lower_leaves_its_access_time(files: Layers, union: Mount) -> None:
    """As the kernel's overlayfs does, also where the kernel reads it itself."""
    lower = files.lowers[0] / "file"
    files.lower_may_change = True  # before the mount: looking at it is reading it
    files.upper = files.work = None
    root = union().root
    os.utime(lower, (5, lower.stat().st_mtime))
    assert (root / "file").read_bytes() == LOWER
    assert lower.stat().st_atime == 5


# Descriptors


@pytest.mark.parametrize("option", ["auto", "on", "off"])
def test_descriptors_and_backings_are_given_back(files: Layers, union: Mount, option: str) -> None:
    mounted = union(f"passthrough={option}")
    directory = f"/proc/{mounted.process.pid}/fd"

    def use(rounds: int) -> None:
        for number in range(rounds):
            name = ("upper", "file", "lower1")[number % 3]
            with held(mounted.root / name, os.O_RDONLY if number % 2 else os.O_RDWR) as fd:
                os.read(fd, 1)
            with held(mounted.root / "new", os.O_RDWR | os.O_CREAT) as fd:
                os.write(fd, b"x")
            os.unlink(mounted.root / "new")

    use(20)
    _soon(lambda: len(os.listdir(directory)), _settled(directory))
    before = len(os.listdir(directory))
    use(1000)
    _soon(lambda: len(os.listdir(directory)) <= before + 2, True)


def _settled(directory: str) -> int:
    time.sleep(0.3)
    return len(os.listdir(directory))


def test_space_of_removed_files_is_given_back(scratch: Path, union: Mount, mounts: Any) -> None:
    """Neither we nor the kernel may keep a file that nobody can reach."""
    (scratch / "small").mkdir()
    system.mount("none", scratch / "small", "tmpfs", 0, "size=32m")
    mounted = union(layers=Layers(scratch / "small"))
    for option in ("one", "two", "three"):
        path = mounted.root / option
        with held(path, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, bytes(24 << 20))
        os.unlink(path)
        _soon(lambda: os.statvfs(scratch / "small").f_bfree > 7000, True)


def test_many_files_at_once(files: Layers, union: Mount) -> None:
    root = union().root
    with ExitStack() as stack:
        for number in range(500):
            fd = stack.enter_context(held(root / f"new{number}", os.O_RDWR | os.O_CREAT))
            os.write(fd, b"%d" % number)
    for number in range(500):
        assert (root / f"new{number}").read_bytes() == b"%d" % number


def test_a_snapshot_of_all_is_the_same_without(files: Layers, union: Mount) -> None:
    mounted = union()
    for name in ("file", "upper", "lower1"):
        with held(mounted.root / name, os.O_RDWR) as fd:
            os.pwrite(fd, b"changed", 100)
    shown = snapshot(mounted.root)
    mounted.unmount()
    assert_same(shown, snapshot(union("passthrough=off").root))


def test_below_the_python_that_tests(layers: Layers, union: Mount) -> None:
    """A whole interpreter, mapped and run from upper files."""
    assert layers.upper is not None
    script = "import sys; sys.stdout.write('fine')"
    build.write(layers.upper / "script.py", script)
    root = union().root
    run = subprocess.run([sys.executable, root / "script.py"], check=True, capture_output=True)
    assert run.stdout == b"fine"
