"""How a mount is made: mount(2) and fusermount3, words that reach the kernel, reasons when not."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import system
from tests.cli.conftest import PATIENCE, Command, command, wait_for_end
from tests.cli.test_mount_command import entry_of, mount_flags
from tests.mounts import REPOSITORY
from tests.system import in_child
from unionfs.errors import MountError
from unionfs.fuse import mounting

__all__ = ["command"]

pytestmark = pytest.mark.needs_root

WORDS = ("default_permissions", "allow_other")


def raw_mount(target: Path, *words: str) -> int:
    return mounting.mount(os.fsencode(target), "SRC,with\\\\a", words)


def by_program(target: Path, *words: str) -> int:
    return mounting._mount_by_program(os.fsencode(target), "SRC,with\\\\a", words)


def flags_after(target: Path, mount: object, *words: str) -> tuple[set[str], set[str]]:
    """What mountinfo shows of a mount and of its file system, which nobody serves."""
    assert callable(mount)
    fd = mount(target, *words)
    try:
        entry = entry_of(target)
        assert (entry.kind, entry.source) == ("fuse.unionfs", b"SRC,with\\\\a")
        assert not os.get_inheritable(fd)
        return mount_flags(target), set(entry.super_options.split(","))
    finally:
        system.umount(target, system.MNT_DETACH)
        os.close(fd)


@pytest.mark.parametrize("mount", [raw_mount, by_program])
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("dev", "suid"), {"rw", "relatime"}),
        (("nodev", "nosuid", "noexec"), {"rw", "nodev", "nosuid", "noexec", "relatime"}),
        (("noatime",), {"rw", "noatime"}),
        (("ro",), {"ro", "relatime"}),
    ],
)
def test_words_reach_the_mount(
    tmp_path: Path, mount: object, words: tuple[str, ...], shown: set[str]
) -> None:
    flags, options = flags_after(tmp_path, mount, *WORDS, *words)
    # fusermount3 leaves these two out only when it is told.
    assert flags - shown <= ({"nodev", "nosuid"} if mount is by_program else set())
    assert flags >= shown
    assert set(WORDS) <= options
    assert "user_id=0" in options


@pytest.mark.parametrize("mount", [raw_mount, by_program])
@pytest.mark.parametrize("word", ["sync", "dirsync"])
def test_words_reach_the_file_system(tmp_path: Path, mount: object, word: str) -> None:
    assert word in flags_after(tmp_path, mount, *WORDS, word)[1]


def test_access_times_as_mount_has_them(tmp_path: Path) -> None:
    assert flags_after(tmp_path, raw_mount, "nodiratime")[0] == {"rw", "nodiratime", "relatime"}
    assert flags_after(tmp_path, raw_mount, "strictatime")[0] == {"rw"}
    # Which fusermount3 does not know; they mean nothing to a FUSE file system.
    words = ("dev", "suid", "nodiratime", "strictatime")
    assert flags_after(tmp_path, by_program, *words)[0] == {"rw", "relatime"}


@pytest.mark.parametrize("session", ["device", "pyfuse3"])
def test_all_words_with_each_session(command: Command, session: str) -> None:
    command.mount(f"session={session},nodiratime,strictatime,nodev,nosuid,noexec,sync,dirsync")
    assert {"nodev", "nosuid", "noexec", "rw"} <= mount_flags(command.target)
    assert {"sync", "dirsync"} <= set(entry_of(command.target).super_options.split(","))


# --- reasons


def refusal(target: Path, code: int | None = None) -> str:
    """What a mount is refused with where mount(2) fails with *code*."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code or 0))

    def try_it() -> str:
        if code is not None:
            mounting._mount_here = fail  # type: ignore[assignment]
        try:
            raw_mount(target, *WORDS)
        except MountError as error:
            return str(error)
        return "mounted"

    said = in_child(try_it)
    assert isinstance(said, str)
    return said


def without_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")


def test_a_full_table_of_mounts(tmp_path: Path) -> None:
    assert refusal(tmp_path, errno.ENOSPC) == f"{tmp_path}: No space left on device"


def test_no_right_to_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_program(monkeypatch)
    assert refusal(tmp_path, errno.EPERM) == (
        f"{tmp_path}: mount(2): Operation not permitted, CAP_SYS_ADMIN is needed"
    )


def test_no_right_to_mount_for_fusermount_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fusermount3").write_text(
        "#!/bin/sh\necho fusermount3: mount failed: Operation not permitted >&2\nexit 1\n"
    )
    (tmp_path / "fusermount3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert refusal(tmp_path, errno.EPERM) == (
        f"{tmp_path}: mount(2): Operation not permitted, CAP_SYS_ADMIN is needed; "
        f"{tmp_path}: mount failed: Operation not permitted"
    )


def test_a_program_that_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fusermount3").write_text("#!/bin/sh\n")
    (tmp_path / "fusermount3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "fusermount3 sent no descriptor" in refusal(tmp_path, errno.EPERM)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOENT, "is the kernel module fuse loaded, and was the container given"),
        (errno.ENODEV, "is the kernel module fuse loaded?"),
        (errno.EACCES, "its mode lets only others open it"),
        (errno.EPERM, "the container was not given the device"),
    ],
)
def test_the_device_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fail(path: str, *_: object) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(MountError, match=rf"^/dev/fuse: {os.strerror(code)}; {said}"):
        mounting._open_device()


def test_a_missing_device_is_the_one_line(command: Command) -> None:
    patch = "from unionfs.fuse import mounting; mounting._DEVICE = '/dev/none'"
    line = command.refuse("mount", "-o", command.layers, "m", status=32, patch=patch)
    assert line.startswith("/dev/none: No such file or directory; is the kernel module")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("fusermount3: bad mount point /m: Permission denied\n", "Permission denied"),
        ("fusermount3: failed to open /dev/fuse: Permission denied\n", None),
        ("note\nfusermount3: user has no write access to mountpoint /m\n", None),
        ("fusermount3: failed to unmount /m: Device or resource busy\n", None),
        ("", "fusermount3 failed"),
    ],
)
def test_what_fusermount_says(said: str, reason: str | None) -> None:
    found = mounting._reason(said, b"/m")
    if reason is None:
        last = said.splitlines()[-1].partition(": ")[2]
        reason = last.partition("/m: ")[2] or last
    assert found == reason


# --- a descriptor of another mounter


@pytest.mark.parametrize("what", ["/dev/fd/77", "/dev/fd/0"])
def test_a_descriptor_must_be_the_device(command: Command, what: str) -> None:
    line = command.refuse("mount", "-o", command.layers, what, status=32)
    assert line == f"{what}: not an open /dev/fuse"


def test_a_mount_that_another_has_made(command: Command) -> None:
    fd = raw_mount(command.target, *WORDS)
    os.set_inheritable(fd, True)
    command.run("-o", command.layers, f"/dev/fd/{fd}", pass_fds=[fd])
    os.close(fd)
    assert (command.target / "file").read_text() == "one"
    (command.target / "new").touch()
    command.run("umount", "m")
    assert (command.base / "u/new").exists()


@pytest.mark.since(6, 16, "the mount of a /dev/fuse is told")
def test_a_mount_that_another_has_made_is_listed(command: Command) -> None:
    fd = raw_mount(command.target, *WORDS)
    os.set_inheritable(fd, True)
    command.run("-o", command.layers, f"/dev/fd/{fd}", pass_fds=[fd])
    os.close(fd)
    row = command.info()
    assert (row["state"], row["session"]) == ("live", "device")
    command.run("umount", "m")
    assert wait_for_end(row["pid"], 0)


def running(program: Path) -> int:
    """Return the process that runs the script *program*."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if os.fsencode(program) in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
    (pid,) = found
    return pid


@pytest.mark.parametrize("options", ["drop_privileges", "drop_privileges,ro"])
def test_mount_fuse3_drops_privileges(command: Command, options: str) -> None:
    if shutil.which("mount.fuse3") is None:
        pytest.skip("mount.fuse3 is not installed")
    base = command.base
    script = base / "bin/unionfs"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from unionfs.cli import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    layers = f"lowerdir={base}/l1:{base}/l2,upperdir={base}/u,workdir={base}/w"
    subprocess.run(
        ["mount.fuse3", "unionfs#SRC", command.target, "-o", f"{options},{layers}"],
        env={**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"},
        check=True,
        timeout=PATIENCE,
    )
    command._guard()
    assert (command.target / "file").read_text() == "one"
    pid = running(script)
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        assert "CapEff:\t0000000000000000\n" in file.read()
    command.run("umount", "m")
    assert wait_for_end(pid)


# --- user namespaces


def test_root_of_a_user_namespace_mounts_by_itself(command: Command) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    script = (
        f"cd {command.base} && export PATH=/usr/bin:/bin PYTHONPATH={REPOSITORY} &&"
        f" {sys.executable} -c 'import os; from unionfs.fuse import mounting;"
        " mounting._mount_by_program = None; from unionfs.cli import main;"
        f' import sys; sys.argv = ["unionfs", "mount", "-o", "{command.layers}",'
        ' "m"]; sys.exit(main())\' && cat m/file && touch m/new &&'
        " findmnt -no FSTYPE m && umount m"
    )
    done = subprocess.run(
        ["unshare", "-rm", "--propagation", "private", "sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done
    assert done.stdout == "onefuse.unionfs\n"
    assert (command.base / "u/new").exists()


# --- many layers


@pytest.fixture
def many(command: Command) -> list[str]:
    """500 lowers with long paths, of 1000 bytes and more."""
    paths = []
    for number in range(500):
        path = command.base / "many" / f"{number:03}" / ("n" * 200) / ("o" * 200)
        path /= "/".join(["p" * 200] * 3)
        path.mkdir(parents=True)
        (path / f"file{number}").touch()
        paths.append(os.fspath(path))
    return paths


def test_five_hundred_lowers_with_long_paths(command: Command, many: list[str]) -> None:
    arguments = [word for path in many for word in ("-o", f"lowerdir+={path}")]
    command.run("mount", *arguments, "m")
    assert len(os.listdir(command.target)) == 500
    assert command.info()["lowerdirs"] == many


def test_relative_paths_make_one_argument_of_them(command: Command, many: list[str]) -> None:
    with pytest.raises(OSError, match="Argument list too long"):
        command.start("mount", "-o", "lowerdir=" + ":".join(many), "m")
    for number, path in enumerate(many):
        (command.base / f"{number}").symlink_to(path)
    names = ":".join(str(number) for number in range(500))
    command.run("mount", "-o", f"lowerdir={names}", "m")
    assert len(os.listdir(command.target)) == 500
