"""The block driver on qcow2 images: what a change costs, limits, processes, hard times."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.driver.blocks import Blocks, wait_until
from unionfs.driver.api import Info, Kind
from unionfs.driver.attach import detach
from unionfs.driver.block import loop
from unionfs.driver.block.driver import BlockDriver
from unionfs.errors import (
    FailedPreconditionError,
    FaultyError,
    InvalidArgumentError,
    UnsupportedError,
    UsageError,
)

pytestmark = pytest.mark.needs_root

MIB = 1 << 20


@pytest.fixture(params=["ext4", "xfs"])
def blocks(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Blocks]:
    made = Blocks(scratch, fs=request.param)
    yield made
    made.end()


@pytest.fixture
def ext4(scratch: Path) -> Iterator[Blocks]:
    """For what has nothing to do with the file system."""
    made = Blocks(scratch)
    yield made
    made.end()


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def nothing(_root: Path) -> None:
    """Make a snapshot that changes nothing."""


def writes(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def filled(size: int) -> Callable[[Path], object]:
    return lambda root: fill(root / "file", size)


def is_whole(image: Path) -> bool:
    """Say whether an image has no errors; space that nobody uses is none."""
    command = ["qemu-img", "check", "-f", "qcow2", str(image)]
    return subprocess.run(command, check=False, capture_output=True).returncode in {0, 3}


def change(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"x" * 4096)
        os.fsync(file.fileno())


# Costs


def test_a_sibling_costs_what_it_changes(blocks: Blocks) -> None:
    blocks.commit("base", "", lambda root: fill(root / "large", 256 * MIB))
    blocks.driver.prepare("untouched", "base")
    blocks.driver.prepare("small", "base")
    blocks.driver.prepare("in large", "base")
    with blocks.at("small") as root:
        (root / "new").write_text("new")
    with blocks.at("in large") as root:
        change(root / "large", 100 * MIB)
    assert blocks.driver.usage("untouched").size <= MIB // 16
    assert blocks.driver.usage("small").size <= 8 * MIB
    assert blocks.driver.usage("in large").size <= 16 * MIB
    du = subprocess.check_output(["du", "-k", blocks.image("small")])
    assert blocks.driver.usage("small").size == int(du.split()[0]) * 1024


def test_a_change_costs_the_same_in_files_of_every_size(ext4: Blocks) -> None:
    costs = []
    for size in (MIB, 64 * MIB, 512 * MIB):
        ext4.commit(f"of {size}", "", filled(size))
        ext4.driver.prepare(f"on {size}", f"of {size}")
        with ext4.at(f"on {size}") as root:
            change(root / "file", size // 2)
        costs.append(ext4.driver.usage(f"on {size}").size)
    assert max(costs) - min(costs) <= MIB, costs


def test_what_is_deleted_gives_its_space_back(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    with blocks.at("key") as root:
        fill(root / "file", 128 * MIB)
        before = blocks.driver.usage("key").size
        assert before >= 128 * MIB
        (root / "file").unlink()
        fd = os.open(root, os.O_RDONLY)
        try:
            # The file system discards in the background, after its transaction.
            os.fsync(fd)
            os.sync()
            wait_until(lambda: blocks.driver.usage("key").size <= before - 120 * MIB, 40)
        finally:
            os.close(fd)


# What is seen


def test_nothing_of_the_file_system_is_seen(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    with blocks.at("key") as root:
        assert os.listdir(root) == []
        status = root.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o755)


def test_the_size_is_a_limit(ext4: Blocks) -> None:
    ext4.driver.prepare("key", size=64 * MIB)
    with ext4.at("key") as root:
        with pytest.raises(OSError, match="No space"):
            fill(root / "file", 65 * MIB)
        assert (root / "file").stat().st_size >= 32 * MIB, "most of it is for files"
        (root / "file").write_text("short")
    assert ext4.driver.commit("small", "key").size_limit == 64 * MIB


def test_a_child_may_be_larger(blocks: Blocks) -> None:
    blocks.commit("base", "", writes("file", "kept"))
    blocks.driver.prepare("larger", "base", size=2 << 30)
    with blocks.at("larger") as root:
        status = os.statvfs(root)
        assert status.f_blocks * status.f_frsize > 1.8 * (1 << 30)
        assert (root / "file").read_text() == "kept"
    assert blocks.driver.usage("larger").size <= 8 * MIB
    with pytest.raises(InvalidArgumentError, match="parent"):
        blocks.driver.prepare("smaller", "base", size=512 * MIB)


def test_a_size_that_the_file_system_cannot_have(blocks: Blocks) -> None:
    with pytest.raises(InvalidArgumentError, match="at least"):
        blocks.driver.prepare("tiny", size=MIB)
    assert list(blocks.driver.walk()) == []


# Processes and devices


def test_what_nobody_mounted_owns_nothing(ext4: Blocks) -> None:
    ext4.commit("base", "", nothing)
    ext4.driver.prepare("key", "base")
    ext4.driver.view("view", "base")
    assert ext4.daemons() == []
    assert os.listdir(ext4.home / "run") == []
    ext4.driver.release("key")


def test_mounts_tells_the_same_again(ext4: Blocks) -> None:
    ext4.driver.prepare("key")
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(ext4.open().mounts("key"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(mounts == found[0] for mounts in found)
    assert len(ext4.daemons()) == 1
    ext4.driver.release("key")
    assert ext4.daemons() == []


def test_what_is_mounted_is_not_released(ext4: Blocks) -> None:
    ext4.driver.prepare("key")
    target = ext4.mount("key")
    for verb in (
        lambda: ext4.driver.release("key"),
        lambda: ext4.driver.remove("key"),
        lambda: ext4.driver.commit("name", "key"),
    ):
        with pytest.raises(FailedPreconditionError, match="mounted"):
            verb()
    (target / "file").write_text("still there")
    detach(str(target))
    ext4.driver.commit("name", "key")
    assert ext4.daemons() == []


def test_the_process_is_nobodys_child(ext4: Blocks) -> None:
    ext4.driver.prepare("key")
    code = (
        "import sys; from unionfs.driver.block.driver import BlockDriver as D\n"
        "D.open(sys.argv[1], {}).mounts('key'); print('told', flush=True)"
    )
    # Were its output held open, this would not end.
    done = subprocess.run(
        [sys.executable, "-c", code, str(ext4.home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")
    (pid,) = ext4.daemons()
    assert os.getsid(pid) != os.getsid(0)
    for number in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{number}")
        assert int(number) > 2 or link == "/dev/null"
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    own = [line for line in groups if line.startswith(("0::", "1:name=systemd:"))]
    assert all(line.endswith(":/") for line in own)
    with ext4.at("key") as root:
        (root / "file").write_text("it serves")


def test_a_loop_device_that_somebody_took_away(ext4: Blocks) -> None:
    ext4.driver.prepare("key")
    path = ext4.driver.mounts("key")[0].source
    with loop.detaching(path, force=False):
        pass
    with ext4.at("key") as root:
        (root / "file").write_text("on another one")
    assert ext4.daemons() == []


#: Mounts the device of a snapshot and writes to it, says so, and is killed.
HOLDS = """
import os, subprocess, sys
from unionfs.driver.attach import attach
from unionfs.driver.block.driver import BlockDriver
driver = BlockDriver.open(sys.argv[1], {"size": "1G"})
os.mkdir(sys.argv[2])
attach(driver.mounts("before"), sys.argv[2])
os.mkdir(sys.argv[3])
attach(driver.mounts("key"), sys.argv[3])
with open(sys.argv[3] + "/file", "w") as file:
    file.write("not synced")
print("mounted", flush=True)
sys.stdin.read()
"""


def test_a_mount_namespace_ends_though_it_had_disks_mounted(ext4: Blocks) -> None:
    """A process that serves one must not be what keeps it mounted: its kill would never end."""
    ext4.driver.prepare("before")
    ext4.driver.prepare("key")
    targets = [str(ext4.base / "one"), str(ext4.base / "two")]
    with subprocess.Popen(
        ["unshare", "-m", sys.executable, "-c", HOLDS, ext4.home, *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        try:
            for pid in ext4.daemons():
                mounts = Path(f"/proc/{pid}/mountinfo").read_text()
                assert not any(target in mounts for target in targets)
        finally:
            process.kill()
    # The kernel unmounts in its own time; nobody but it had them.
    with ext4.at("key") as root:
        assert (root / "file").read_text() == "not synced"
    wait_until(lambda: _is_released(ext4, "before"))
    assert ext4.daemons() == []


def test_what_others_unmount_is_not_kept(ext4: Blocks, tmp_path: Path) -> None:
    """The memory of a tmpfs, say, or a disk that is to be pulled out."""
    ext4.driver.prepare("key")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        with ext4.at("key"):
            for pid in ext4.daemons():
                targets = [
                    line.split()[4]
                    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                ]
                assert str(tmp_path) not in targets
                assert "/" in targets
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def _is_released(ext4: Blocks, key: str) -> bool:
    try:
        ext4.driver.release(key)
    except FailedPreconditionError:
        return False
    return True


def test_a_loop_device_that_cannot_be_asked_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="open files"):
        loop.tag_of("/dev/loop0")


def test_depth(ext4: Blocks) -> None:
    """The suite of all drivers goes to 128."""
    parent = ""
    for level in range(12):
        ext4.commit(f"{level}", parent, writes(f"{level}", ""))
        parent = f"{level}"
    ext4.driver.view("look", parent)
    with ext4.at("look") as root:
        assert len(os.listdir(root)) == 12


# Hard times


def test_the_process_is_killed_under_a_mount(blocks: Blocks) -> None:
    blocks.commit("base", "", writes("old", "old"))
    blocks.driver.prepare("key", "base")
    target = blocks.mount("key")
    fill(target / "synced", MIB)
    kept = (target / "synced").read_bytes()
    blocks.kill_daemons()
    # The first one may still find room in memory.
    with pytest.raises(OSError, match=r"Input/output|Read-only"):
        fill(target / "lost", 200 * MIB)
    assert is_whole(blocks.image("key"))
    # Again, beside the dead mount that somebody still has.
    other = blocks.mount("key")
    assert (other / "synced").read_bytes() == kept
    assert (other / "old").read_text() == "old"
    detach(str(target))
    detach(str(other))
    blocks.driver.commit("name", "key")
    blocks.driver.view("look", "name")
    with blocks.at("look") as root:
        assert (root / "synced").read_bytes() == kept


def test_a_crash_before_the_commit(blocks: Blocks) -> None:
    """What is in the journal is in its place in what was committed."""
    blocks.driver.prepare("key")
    target = blocks.mount("key")
    fill(target / "synced", MIB)
    kept = (target / "synced").read_bytes()
    blocks.kill_daemons()
    detach(str(target))
    blocks.driver.commit("name", "key")
    assert blocks.daemons() == []
    blocks.driver.view("look", "name")
    with blocks.at("look") as root:
        assert (root / "synced").read_bytes() == kept


def test_the_disk_is_full(scratch: Path) -> None:
    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", disk], check=True)
    try:
        blocks = Blocks(disk)
        blocks.commit("base", "", writes("old", "old"))
        blocks.driver.prepare("key", "base")
        target = blocks.mount("key")
        with pytest.raises(OSError, match=r"No space|Input/output|Read-only"):
            fill(target / "large", 200 * MIB)
        assert (target / "old").read_text() == "old", "the mount is still there"
        detach(str(target))
        blocks.driver.release("key")
        blocks.driver.remove("key")
        blocks.driver.prepare("key", "base")
        with blocks.at("key") as root:
            assert os.listdir(root) == ["old"]
            (root / "new").write_text("there is room again")
        blocks.end()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_image_that_is_broken_is_faulty(ext4: Blocks) -> None:
    ext4.commit("base", "", nothing)
    ext4.driver.prepare("key", "base")
    target = ext4.mount("key")
    (target / "file").write_text("x")
    number, image = ext4.device("key"), ext4.image("key")
    ext4.kill_daemons()
    detach(str(target))
    with image.open("r+b") as file:
        file.write(b"\0" * 4096)
    for _ in range(2):
        with pytest.raises(FaultyError, match="key"):
            ext4.driver.mounts("key")
        with pytest.raises(FaultyError, match="key"):
            ext4.driver.commit("name", "key")
    assert ext4.driver.stat("key").kind is Kind.ACTIVE
    ext4.driver.remove("key")
    ext4.driver.prepare("key", "base")
    assert ext4.device("key") > number, "numbers are not used again"
    with ext4.at("key") as root:
        assert os.listdir(root) == []


# Capturing


def test_captured_while_it_is_written(blocks: Blocks) -> None:
    blocks.commit("base", "", writes("old", "old"))
    blocks.driver.prepare("key", "base")
    target = blocks.mount("key")
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            path = target / f"{written[0]:06}"
            path.write_text(f"{written[0]}")
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken: list[tuple[Info, int, int]] = []
        for number in range(3):
            wait_until(lambda: written[0] > len(taken) * 20 + 10)
            before = written[0]
            info = blocks.driver.capture(f"state {number}", "key")
            taken.append((info, before, written[0]))
    finally:
        stop.set()
        writer.join()
    assert [info.kind for info, _, _ in taken] == [Kind.COMMITTED] * 3
    assert blocks.driver.stat("key").parent == "state 2"
    (target / "last").write_text("last")
    detach(str(target))
    for number, (info, before, after) in enumerate(taken):
        blocks.driver.view(f"look {number}", info.key)
        with blocks.at(f"look {number}") as root:
            names = sorted(name for name in os.listdir(root) if name != "old")
            assert before <= len(names) <= after + 1
            assert names == [f"{n:06}" for n in range(len(names))], "one point in time"
            assert all((root / f"{n:06}").read_text() == f"{n}" for n in range(before))
    with blocks.at("key") as root:
        assert len(os.listdir(root)) == written[0] + 2


def test_captured_while_it_is_not_mounted(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    blocks.driver.mounts("key")
    blocks.driver.capture("empty", "key")
    with blocks.at("key") as root:
        (root / "file").write_text("x")
    blocks.driver.capture("one", "key")
    assert blocks.driver.stat("one").parent == "empty"
    blocks.driver.view("look", "empty")
    with blocks.at("look") as root:
        assert os.listdir(root) == []


# What cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "thick"}, "engine=thick: it is qcow2 or thin"),
        ({"fs": "fat"}, "fs=fat: it is ext4 or xfs"),
        ({"size": "big"}, "size=big: not a size"),
        ({"size": "1k"}, "size=1k: ext4 has 16M at least"),
        ({"colour": "red"}, "unknown option colour"),
    ],
)
def test_options_that_cannot_be(scratch: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BlockDriver.open(str(scratch / "home"), options)


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("qemu-storage-daemon", "qemu-system-common .Debian 12. or qemu-utils .Debian 13."),
        ("qemu-img", "qemu-utils"),
        ("mkfs.ext4", "e2fsprogs"),
        ("unshare", "util-linux"),
    ],
)
def test_a_missing_program_names_its_package(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    only = scratch / "bin"
    only.mkdir()
    for directory in ("/usr/sbin", "/usr/bin"):
        for name in os.listdir(directory):
            if name != program and not (only / name).is_symlink():
                (only / name).symlink_to(f"{directory}/{name}")
    monkeypatch.setenv("PATH", str(only))
    with pytest.raises(UnsupportedError, match=f"{program} is not in PATH.*{package}"):
        BlockDriver.open(str(scratch / "home"), {})


def _never(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("operation", ["create", "snap", "attach", "seal"])
def test_an_operation_that_fails_changes_nothing(
    ext4: Blocks, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    ext4.commit("base", "", writes("file", "x"))
    ext4.driver.prepare("key", "base")
    verbs: dict[str, Callable[[], object]] = {
        "create": lambda: ext4.driver.prepare("new", size=2 << 30),
        "snap": lambda: ext4.driver.prepare("new", "base"),
        "attach": lambda: ext4.driver.mounts("key"),
        "seal": lambda: ext4.driver.commit("new", "key"),
    }
    before = list(ext4.driver.walk())
    with monkeypatch.context() as patch:
        patch.setattr(f"unionfs.driver.block.qcow2.Qcow2Engine.{operation}", _never)
        with pytest.raises(OSError, match="Input/output"):
            verbs[operation]()
    assert list(ext4.driver.walk()) == before
    assert ext4.driver.cleanup() == []
    verbs[operation]()
    if operation == "attach":
        ext4.driver.release("key")
