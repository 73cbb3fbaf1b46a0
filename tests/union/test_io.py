"""Reading, writing, mapping and running files; sockets, fifos and many open files."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import resource
import select
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests import build
from tests.oracle import Pair
from tests.system import attempt, in_child

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounts import Layers

pytestmark = pytest.mark.needs_root
#: How files are opened matters here.
OPENLESS_TOO = True

Mount = Callable[..., Any]
Make = Callable[..., Pair]

WHERE = ["lower", "upper"]


def prepare(layers: Layers, where: str, content: bytes = b"content" * 3000) -> None:
    holder = layers.lowers[0] if where == "lower" else layers.upper
    assert holder is not None
    build.write(holder / "file", content)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("seed", range(4))
def test_random_reads_and_writes(layers: Layers, union: Mount, where: str, seed: int) -> None:
    rng = random.Random(seed)
    model = bytearray(rng.randbytes(300_000))
    prepare(layers, where, bytes(model))
    mounted = union()
    fds = [os.open(mounted.root / "file", os.O_RDWR) for _ in range(3)]
    for _ in range(300):
        fd = rng.choice(fds)
        offset, length = rng.randrange(400_000), rng.choice([1, 100, 4096, 70_000, 200_000])
        verb = rng.choice(["read", "read", "write", "truncate", "stat"])
        if verb == "read":
            assert os.pread(fd, length, offset) == model[offset : offset + length]
        elif verb == "write":
            data = rng.randbytes(length)
            assert os.pwrite(fd, data, offset) == length
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + length] = data
        elif verb == "truncate":
            os.ftruncate(fd, offset)
            model = model[:offset] + bytes(max(0, offset - len(model)))
        else:
            assert os.fstat(fd).st_size == len(model)
    for fd in fds:
        os.close(fd)
    assert (mounted.root / "file").read_bytes() == model
    mounted.unmount()
    assert layers.upper is not None
    assert (layers.upper / "file").read_bytes() == model


@pytest.mark.parametrize("where", WHERE)
def test_append_by_several_processes(layers: Layers, union: Mount, where: str) -> None:
    prepare(layers, where, b"begin\n")
    path = union().root / "file"

    def write(letter: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(200):
            os.write(fd, letter * 20 + b"\n")

    children = []
    for letter in (b"a", b"b", b"c"):
        pid = os.fork()
        if pid == 0:
            try:
                write(letter)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    lines = path.read_bytes().splitlines()
    assert lines[0] == b"begin"
    assert len(lines) == 601
    for letter in (b"a", b"b", b"c"):
        assert lines.count(letter * 20) == 200


@pytest.mark.parametrize("where", WHERE)
def test_direct_io(layers: Layers, union: Mount, where: str) -> None:
    prepare(layers, where, b"x" * 65536)
    path = union().root / "file"
    buffer = mmap.mmap(-1, 8192)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [buffer], 4096) == 8192
    buffer[:] = b"y" * 8192
    assert os.pwritev(fd, [buffer], 8192) == 8192
    os.close(fd)
    assert path.read_bytes() == b"x" * 8192 + b"y" * 8192 + b"x" * 49152
    with open(path, "r+b") as cached:
        cached.write(b"z" * 4096)
        cached.flush()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        assert os.preadv(fd, [buffer], 0) == 8192
        assert buffer[:4097] == b"z" * 4096 + b"x"
        os.close(fd)


@pytest.mark.parametrize("where", WHERE)
def test_fsync_of_files_and_directories(layers: Layers, union: Mount, where: str) -> None:
    prepare(layers, where)
    root = union().root
    for path, flags in ((root / "file", os.O_RDONLY), (root / "file", os.O_RDWR), (root, 0)):
        fd = os.open(path, flags)
        if flags == os.O_RDWR:
            os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)


@pytest.mark.parametrize("where", WHERE)
def test_sparse_files(layers: Layers, union: Mount, where: str) -> None:
    prepare(layers, where, b"begin")
    path = union().root / "file"
    with open(path, "r+b") as file:
        file.seek(5 << 30)
        file.write(b"far")
    assert path.stat().st_size == (5 << 30) + 3
    assert path.stat().st_blocks < 1000
    with open(path, "rb") as file:
        assert file.read(10) == b"begin" + bytes(5)
        file.seek(5 << 30)
        assert file.read() == b"far"


@pytest.mark.parametrize("where", WHERE)
def test_private_mapping_changes_nothing(layers: Layers, union: Mount, where: str) -> None:
    prepare(layers, where, b"x" * 8192)
    path = union().root / "file"
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    view[:5] = b"mine!"
    view.close()
    assert path.read_bytes() == b"x" * 8192


def test_shared_mapping_between_processes(layers: Layers, union: Mount) -> None:
    prepare(layers, "upper", b"x" * 8192)
    path = union().root / "file"

    def write() -> None:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[4096:4100] = b"seen"

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        in_child(write)
        assert view[4096:4100] == b"seen"


def test_truncation_below_a_mapping(layers: Layers, union: Mount) -> None:
    prepare(layers, "lower", b"x" * 20_000)
    path = union().root / "file"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 20_000) as view:
        os.truncate(path, 100)
        os.truncate(path, 20_000)
        assert view[:100] == b"x" * 100
        assert view[100:20_000] == bytes(19_900)


@pytest.mark.parametrize("where", WHERE)
def test_programs_run(layers: Layers, union: Mount, where: str) -> None:
    holder = layers.lowers[0] if where == "lower" else layers.upper
    assert holder is not None
    shutil.copy("/bin/true", holder / "true")
    build.write(holder / "script", "#!/bin/sh\necho ran $0\n", 0o755)
    root = union().root
    subprocess.run([root / "true"], check=True)
    ran = subprocess.run([root / "script"], check=True, capture_output=True)
    assert ran.stdout.decode() == f"ran {root / 'script'}\n"
    (root / "true").chmod(0o644)
    assert attempt(subprocess.run, [root / "true"]).error == "EACCES"


@pytest.mark.kernel_overlay
@pytest.mark.parametrize("where", WHERE)
def test_running_program_is_busy(pair: Make, where: str) -> None:
    def make(layers: Layers) -> None:
        holder = layers.lowers[0] if where == "lower" else layers.upper
        assert holder is not None
        shutil.copy("/bin/sleep", holder / "sleep")

    both = pair(make)

    def change(root: Path) -> list[str]:
        program = subprocess.Popen([root / "sleep", "60"])
        try:
            outcomes = [
                attempt(os.open, root / "sleep", os.O_WRONLY),
                attempt(os.open, root / "sleep", os.O_RDWR),
                attempt(os.truncate, root / "sleep", 1),
            ]
        finally:
            program.kill()
            program.wait()
        return [outcome.error or "ok" for outcome in outcomes]

    assert both.same(change).value == ["ETXTBSY"] * 3

    def run_while_writing(root: Path) -> str | None:
        with open(root / "sleep", "r+b"):
            return attempt(subprocess.run, [root / "sleep", "0"]).error

    both.same(run_while_writing)


def test_library_replaced_while_in_use(layers: Layers, union: Mount) -> None:
    shutil.copy("/bin/sleep", layers.lowers[0] / "sleep")
    root = union().root
    program = subprocess.Popen([root / "sleep", "60"])
    try:
        shutil.copy("/bin/true", root / "new")
        (root / "new").rename(root / "sleep")
        subprocess.run([root / "sleep"], check=True)
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("where", WHERE)
def test_fifos(layers: Layers, union: Mount, where: str) -> None:
    if where == "lower":
        build.lower_fifo(layers, "fifo")
    root = union().root
    if where == "upper":
        os.mkfifo(root / "fifo")
    reader = os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    in_child(lambda: (root / "fifo").write_text("through"))
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_sockets(layers: Layers, union: Mount) -> None:
    build.lower_socket(layers, "dead")
    root = union().root
    listener = build.listen(root / "socket")
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(root / "socket"))
    client.sendall(b"hello")
    server, _ = listener.accept()
    assert server.recv(100) == b"hello"
    for one in (client, server, listener):
        one.close()
    client = socket.socket(socket.AF_UNIX)
    assert attempt(client.connect, str(root / "dead")).error == "ECONNREFUSED"
    client.close()
    assert stat.S_ISSOCK((root / "socket").stat().st_mode)


def test_devices(layers: Layers, union: Mount) -> None:
    build.lower_device(layers, "null")
    root = union().root
    os.mknod(root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert (root / "null").read_bytes() == b""
    with open(root / "zero", "rb") as zero:
        assert zero.read(4) == bytes(4)


def test_locks_between_processes(layers: Layers, union: Mount) -> None:
    prepare(layers, "lower")
    path = union().root / "file"

    def try_locks() -> list[str | None]:
        with open(path, "r+b") as file:
            flags = fcntl.LOCK_EX | fcntl.LOCK_NB
            return [
                attempt(fcntl.flock, file, flags).error,
                attempt(fcntl.lockf, file, flags, 10, 0).error,
                attempt(fcntl.lockf, file, flags, 10, 100).error,
            ]

    assert in_child(try_locks) == [None, None, None]
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        assert in_child(try_locks) == ["EAGAIN", "EAGAIN", None]
        file.write(b"copied up while locked")
        file.flush()
        assert in_child(try_locks) == ["EAGAIN", "EAGAIN", None]
    assert in_child(try_locks) == [None, None, None]


@pytest.mark.slow
@pytest.mark.usefixtures("ours_only")
def test_ten_thousand_files_open_at_once(layers: Layers, union: Mount) -> None:
    (layers.lowers[0] / "d").mkdir()
    for index in range(10_000):
        (layers.lowers[0] / "d" / f"{index}").write_text(f"{index}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"the limit here is {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    fds = []
    try:
        root = union(seconds=200.0).root
        for index in range(10_000):
            flags = os.O_RDWR if index % 2 else os.O_RDONLY
            fds.append(os.open(root / "d" / f"{index}", flags))
        for index in range(1, 10_000, 50):
            os.pwrite(fds[index], b"+", 0)
        for index in range(0, 10_000, 33):
            expected = f"{index}".encode()
            if index % 50 == 1:
                expected = b"+" + expected[1:]
            assert os.pread(fds[index], 100, 0) == expected
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_large_file_streams(layers: Layers, union: Mount) -> None:
    root = union().root
    block = random.Random(7).randbytes(1 << 20)
    with open(root / "large", "wb") as file:
        file.writelines(block for _ in range(48))
    shutil.copyfile(root / "large", root / "copy")
    with open(root / "copy", "rb") as file:
        for _ in range(48):
            assert file.read(1 << 20) == block
        assert file.read(1) == b""


def test_python_works_in_it(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "module.py", "value = 41\n")
    root = union().root
    (root / "module.py").write_text("value = 42\n")
    code = "import module; print(module.value)"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(root)}
    for _ in range(2):
        ran = subprocess.run(command, check=True, capture_output=True, env=environment)
        assert ran.stdout == b"42\n"
