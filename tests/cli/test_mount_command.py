"""`unionfs mount` and the form of it that programs use: what is mounted, and what is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import system, tree
from tests.cli.conftest import Command, wait_for_end
from tests.mounts import device_minor
from tests.ordinary import USER
from unionfs import __version__
from unionfs.fuse import mounting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs_root


def entry_of(target: Path) -> mounting.MountEntry:
    entry = mounting.mount_at(os.fsencode(target))
    assert entry is not None
    return entry


def mount_flags(target: Path) -> set[str]:
    """The options of the mount, not of its file system."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return set(next(fields[5] for fields in lines if fields[4] == str(target)).split(","))


def test_the_union_is_there_when_the_command_ends(command: Command) -> None:
    done = command.mount()
    assert (done.stdout, done.stderr) == ("", "")
    assert (command.target / "file").read_text() == "one"
    assert (command.target / "d/deep").read_text() == "deep"
    (command.target / "new").write_text("x")
    assert (command.base / "u/new").read_text() == "x"
    entry = entry_of(command.target)
    assert (entry.kind, entry.source) == ("fuse.unionfs", b"unionfs")


OPTIONS = Command.layers


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["mount", "-o", OPTIONS, "m"], "unionfs"),
        (["mount", "m", "-o", OPTIONS], "unionfs"),
        (["mount", "SRC", "-o", OPTIONS, "m"], "SRC"),
        (["mount", "--options", OPTIONS, "--", "m"], "unionfs"),
        (["-o", OPTIONS, "m"], "unionfs"),
        ([f"-o{OPTIONS}", "m"], "unionfs"),
        (["m", "-o", OPTIONS], "unionfs"),
        (["SRC,with a\\comma", "m", "-o", OPTIONS], "SRC,with a\\comma"),
        (["m", "-o", "lowerdir=l1:l2,,", "-o", "upperdir=u", "-oworkdir=w,fsname=SRC"], "SRC"),
        (["overlay", "m", "-n", "-s", "-o", f"rw,{OPTIONS},dev,suid"], "overlay"),
        (["-o", f'{OPTIONS},context="a:b,c:d",,private,x-foo', "m"], "unionfs"),
    ],
)
def test_every_form_of_the_command_line(
    command: Command, arguments: list[str], source: str
) -> None:
    done = command.run(*arguments)
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(os.listdir(command.target)) == ["d", "file"]
    assert entry_of(command.target).source == source.encode()


def test_verbose_says_what_was_mounted(command: Command) -> None:
    assert command.mount().stdout == ""
    command.run("umount", "m")
    done = command.run("mount", "-v", "SRC", "m", "-o", command.layers)
    assert done.stdout == "unionfs: SRC mounted on m\n"


@pytest.mark.parametrize("arguments", [["-V"], ["--version"], ["mount", "-V"], ["m", "-V"]])
def test_version(command: Command, arguments: list[str]) -> None:
    assert command.run(*arguments).stdout == f"unionfs: version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["-h"], ["--help"], *([one, "--help"] for one in ("mount", "umount", "ls", "diff"))],
)
def test_help(command: Command, arguments: list[str]) -> None:
    assert command.run(*arguments).stdout.startswith("usage: unionfs ")


def test_without_arguments_the_usage_goes_to_stderr(command: Command) -> None:
    done = command.run(status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("usage: ")


def test_a_word_that_is_no_command(command: Command) -> None:
    said = command.refuse("bogus", status=1)
    assert said.startswith("bogus: no such command, and no -o lowerdir=... to mount there")


def test_what_another_version_mounted_is_listed(command: Command) -> None:
    command.mount()
    (path,) = (
        path for path in Path("/run/unionfs").iterdir() if str(command.target) in path.read_text()
    )
    record = json.loads(path.read_text())
    record["options"] += ",lowerdri=x"
    path.write_text(json.dumps(record))
    told = command.info()
    assert (told["state"], told["lowerdirs"]) == ("live", [])
    assert told["options"].endswith(",lowerdri=x")


def test_relative_paths_go_through_links_as_the_kernel_sees_them(command: Command) -> None:
    away = command.base / "away"
    (away / "NAME").mkdir(parents=True)
    (away / "diff").mkdir()
    (away / "diff/found").touch()
    (command.base / "l").mkdir()
    (command.base / "l/LINK").symlink_to(away / "NAME")
    # As text `l/LINK/../diff` would be `l/diff`, which is not there.
    (command.base / "place").symlink_to("m")
    command.run("mount", "-o", "lowerdir=l/LINK/../diff", "place")
    assert os.listdir(command.target) == ["found"]
    assert command.info()["lowerdirs"] == [os.fspath(away / "diff")]


@pytest.mark.parametrize(
    "name", ["a:b", "a,b", "a\\b", "a\\:b,", 'a"b', '"a,b"', " ", "a\nb", "\udcff\udcfe", "é"]
)
def test_any_name_can_be_a_layer_and_a_target(command: Command, name: str) -> None:
    escaped = name
    for letter in "\\,:":
        escaped = escaped.replace(letter, f"\\{letter}")
    for parent in ("L", "U", "W", "T"):
        (command.base / parent / name).mkdir(parents=True)
    (command.base / "L" / name / "here").touch()
    options = f"lowerdir=L/{escaped}:l2,upperdir=U/{escaped},workdir=W/{escaped}"
    command.run("mount", "-o", options, f"T/{name}")
    assert (command.base / "T" / name / "here").exists()
    row = command.info(command.base / "T" / name)
    assert (row["state"], row["upperdir"]) == ("live", os.fspath(command.base / "U" / name))
    command.run("umount", f"T/{name}")


def test_what_root_mounts(command: Command) -> None:
    command.mount()
    assert mount_flags(command.target) == {"rw", "noatime"}
    words = set(entry_of(command.target).super_options.split(","))
    assert {"allow_other", "default_permissions", "rw"} <= words


def test_unless_the_opposite_is_given(command: Command) -> None:
    command.mount("nodev,nosuid,noexec,atime,noallow_other,sync,dirsync,nodiratime,relatime")
    flags = {"rw", "nodev", "nosuid", "noexec", "relatime", "nodiratime"}
    assert mount_flags(command.target) == flags
    words = set(entry_of(command.target).super_options.split(","))
    assert "allow_other" not in words
    assert {"sync", "dirsync", "default_permissions"} <= words


@pytest.mark.parametrize("options", ["lowerdir=l1", "lowerdir=l1,workdir=w", f"{OPTIONS},ro"])
def test_read_only(command: Command, options: str) -> None:
    command.run("mount", "-o", options, "m")
    assert "ro" in mount_flags(command.target)
    with pytest.raises(OSError, match="Read-only"):
        (command.target / "new").touch()


def test_unknown_options_are_refused_by_the_command_for_people(command: Command) -> None:
    line = command.refuse("mount", "-o", f"{OPTIONS},bogus", "m", status=1)
    assert line == "bogus: unknown option"
    assert command.refuse("mount", "-o", OPTIONS, "--wibble", "m", status=1).startswith("--wibble")


def test_and_named_and_ignored_in_the_form_for_programs(command: Command) -> None:
    done = command.run("-o", f"{OPTIONS},bogus,index=off", "--wibble", "m")
    assert [line.split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["unionfs", "--wibble", "ignored, unknown argument"],
        ["unionfs", "bogus", "ignored, unknown option"],
        ["unionfs", "index=off", "ignored, not supported (index=on is)"],
    ]
    assert (command.target / "file").exists()


@pytest.mark.parametrize("form", [[], ["mount"]])
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ("upperdri=u,lowerdir=l1,workdir=w", 1, "upperdri=u: unknown option, .* upperdir"),
        ("lowerdir=l1,uidmapping=0:1000", 1, "uidmapping=0:1000: not triples of numbers"),
        ("lowerdir=l1,timeout=x", 1, "timeout=x: "),
        ("upperdir=u,workdir=w", 1, "lowerdir= is missing"),
        ("lowerdir=l1,upperdir=u", 1, "upperdir=u: workdir= is missing"),
        (
            "lowerdir=l1,session=wibble",
            1,
            "session=wibble: not available, choose one of auto, device, pyfuse3$",
        ),
        ("lowerdir=l1,placement=near", 1, "placement=near: placement is auto, spread or off$"),
        ("lowerdir=l1,passthrough=1", 1, "passthrough=1: passthrough is auto, on or off$"),
        ("lowerdir=l1,remount", 32, "remount is not supported"),
        ("lowerdir=l1:none", 32, "lowerdir=none: No such file or directory$"),
        ("lowerdir=l1/file", 32, "lowerdir=l1/file: Not a directory$"),
        ("lowerdir=l2/d:l2", 32, "lowerdir=l2"),
        ("lowerdir=l1,upperdir=none,workdir=w", 32, "upperdir=none: No such file"),
        ("lowerdir=l1,upperdir=u,workdir=none", 32, "workdir=none: No such file"),
        ("lowerdir=l1,upperdir=u,workdir=u", 32, "workdir=u: "),
        ("lowerdir=l1,upperdir=u,workdir=u/sub", 32, "workdir=u/sub: "),
        ("lowerdir=l1,upperdir=u,workdir=/dev/shm", 32, "workdir=/dev/shm: "),
        ("lowerdir=u/sub,upperdir=u,workdir=w", 32, "lowerdir=u/sub: "),
        ("lowerdir=" + ":".join(["l1"] * 501), 32, "lowerdir=l1: "),
        ("lowerdir=a\nb", 32, r"lowerdir=a\\x0ab: No such file"),
    ],
)
def test_what_cannot_be_mounted_is_refused_and_leaves_no_trace(
    command: Command, form: list[str], options: str, status: int, said: str
) -> None:
    (command.base / "u/sub").mkdir()
    before = tree.snapshot(command.base, ctime=True)
    line = command.refuse(*form, "-o", options, "m", status=status)
    assert re.match(said, line), line
    tree.assert_same(before, tree.snapshot(command.base, ctime=True))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none", "none: No such file or directory"),
        ("l1/file", "l1/file: not a directory"),
        ("/proc", "/proc: the daemon needs it, a union cannot take its place"),
    ],
)
def test_targets_that_cannot_be_mounted_on(command: Command, target: str, said: str) -> None:
    assert command.refuse("mount", "-o", OPTIONS, target, status=32) == said
    assert os.listdir(command.base / "w") == []


@pytest.mark.parametrize("arguments", [[], ["a", "b", "m"]])
def test_wrong_numbers_of_arguments(command: Command, arguments: list[str]) -> None:
    command.refuse("mount", "-o", OPTIONS, *arguments, status=1)
    command.refuse("mount", *arguments, "-o", status=1)


def test_the_reason_that_libfuse_gives_is_the_one_line(command: Command) -> None:
    # A full table of mounts, as far as libfuse can tell.
    patch = (
        "import os, pyfuse3\n"
        "def init(*_):\n"
        "    os.write(2, b'fuse: a warning\\nfuse: mount failed: No space left on device\\n')\n"
        "    raise RuntimeError('fuse_session_mount failed')\n"
        "pyfuse3.init = init"
    )
    options = f"{OPTIONS},session=pyfuse3"
    line = command.refuse("mount", "-o", options, "m", status=32, patch=patch)
    assert line == f"{command.target}: fuse: mount failed: No space left on device"


def test_a_second_union_on_the_same_target(command: Command) -> None:
    command.mount()
    command.run("mount", "-o", "lowerdir=l2", "m")
    assert (command.target / "file").read_text() == "two"
    command.run("umount", "m")
    assert (command.target / "file").read_text() == "one"


# --- the daemon


def test_the_daemon_keeps_nothing_of_its_caller(command: Command) -> None:
    reader, writer = os.pipe()
    command.mount(pass_fds=[writer])
    os.close(writer)
    # The daemon does not hold the write end: there is an end to read.
    assert os.read(reader, 1) == b""
    os.close(reader)
    pid = command.info()["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    assert os.getsid(pid) == pid
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        files = next(line.split() for line in file if line.startswith("Max open files"))
    assert files[3] == files[4]


def test_a_caller_without_standard_streams(command: Command) -> None:
    def close_all() -> None:
        for descriptor in range(3):
            os.close(descriptor)

    process = command.start("mount", "-o", OPTIONS, "m", preexec_fn=close_all)
    assert process.wait(30) == 0
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert sorted(os.listdir(command.target)) == ["d", "file"]
    command.run("umount", "m")


def test_a_daemon_that_dies_before_it_is_ready_leaves_no_mount(
    daemon_killed_at: Callable[..., str],
) -> None:
    assert daemon_killed_at("mount") == "the daemon died before it was ready (signal 9)"
    assert daemon_killed_at("serve") == "the daemon died before it was ready (signal 9)"


def test_nor_does_one_that_fails(command: Command) -> None:
    patch = (
        "from unionfs.fuse.device import DeviceSession\n"
        "def fail(*_): raise RuntimeError('what now')\n"
        "DeviceSession.serve = fail"
    )
    done = command.run("mount", "-o", OPTIONS, "m", status=4, patch=patch)
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("unionfs: internal error: RuntimeError('what now')\n")
    assert not command.mounted()
    assert os.listdir(command.base / "w/work") == []


#: By session, what makes it slow between the mount and being ready.
SLOW = {
    "device": """
import time; from unionfs.fuse.device import DeviceSession
serve = DeviceSession.serve
def slow(self, ready):
    serve(self, lambda: (time.sleep(1.5), ready()))
DeviceSession.serve = slow
""",
    "pyfuse3": """
import trio; from unionfs.fuse.libfuse import PyfuseSession
announce = PyfuseSession._announce
async def slow(*arguments):
    await trio.sleep(1.5)
    await announce(*arguments)
PyfuseSession._announce = slow
""",
}


def _wait_for_mount(command: Command) -> None:
    end = time.monotonic() + 20
    while device_minor(command.target) is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def _gone(command: Command, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while device_minor(command.target) is not None:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _start_slowly(command: Command, session: str) -> subprocess.Popen[bytes]:
    return command.start("mount", "-o", f"{OPTIONS},session={session}", "m", patch=SLOW[session])


@pytest.mark.parametrize("session", SLOW)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_caller_that_dies_waiting_gets_no_mount(
    command: Command, number: signal.Signals, session: str
) -> None:
    with _start_slowly(command, session) as process:
        _wait_for_mount(command)
        process.send_signal(number)
        assert process.wait(10) == -number
        assert _gone(command)


@pytest.mark.parametrize("session", SLOW)
def test_nor_does_one_that_is_interrupted(command: Command, session: str) -> None:
    with _start_slowly(command, session) as process:
        _wait_for_mount(command)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (8, b"unionfs: interrupted\n")
        assert device_minor(command.target) is None


def test_a_daemon_that_crashes_later_leaves_its_mount_dead(command: Command) -> None:
    command.mount()
    pid = command.info()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(command.target)
    assert command.info()["state"] == "dead"


# --- in the foreground


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_foreground_ends_well_by_a_signal(command: Command, number: signal.Signals) -> None:
    with command.start("mount", "-f", "-o", OPTIONS, "m") as process:
        _wait_for_mount(command)
        assert (command.target / "file").read_text() == "one"
        assert command.info()["pid"] == process.pid
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, b"", b"")
    assert device_minor(command.target) is None
    assert os.listdir(command.base / "w/work") == []


@pytest.mark.parametrize("arguments", [["-d"], ["--debug"], ["-o", "debug"]])
def test_debug_is_in_the_foreground(command: Command, arguments: list[str]) -> None:
    with command.start(*arguments, "-o", OPTIONS, "m") as process:
        _wait_for_mount(command)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 0


def test_the_foreground_reports_like_the_background(command: Command) -> None:
    line = command.refuse("mount", "-f", "-o", "lowerdir=none", "m", status=32)
    assert line == "lowerdir=none: No such file or directory"


# --- who may do what


def _as_user(command: Command, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return command.run(*arguments, user=USER, group=USER, extra_groups=[], **more)


@pytest.fixture
def user_can_run(command: Command) -> Iterator[None]:
    """Make the layers an ordinary user's, or skip the test where that user can do nothing."""
    subprocess.run(["chown", "-R", f"{USER}:{USER}", command.base], check=True)
    try:
        _as_user(command, "--version")
    except (AssertionError, PermissionError):
        pytest.skip("an ordinary user cannot run this interpreter")
    if not os.access("/usr/bin/fusermount3", os.X_OK):
        pytest.skip("fusermount3 is not installed")
    mode = os.stat("/dev/fuse").st_mode & 0o777
    # As distributions have it.
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@pytest.mark.usefixtures("user_can_run")
def test_what_a_user_mounts(command: Command) -> None:
    _as_user(command, "m", "-o", f"{OPTIONS},dev,suid")
    assert {"nodev", "nosuid"} <= mount_flags(command.target)
    words = entry_of(command.target).super_options.split(",")
    assert "allow_other" not in words
    assert f"user_id={USER}" in words
    row = command.info()
    assert (row["state"], row["session"]) == ("live", "device")
    done = _as_user(command, "umount", "m")
    assert done.stderr == ""
    assert wait_for_end(row["pid"], 0)


@pytest.mark.usefixtures("user_can_run")
def test_a_user_may_let_in_others_where_the_machine_allows_it(command: Command) -> None:
    patch = "import unionfs.mount as m; m._FUSE_CONF = '/dev/null'"
    done = _as_user(command, "m", "-o", f"{OPTIONS},allow_other", status=32, patch=patch)
    assert done.stderr == (
        "unionfs: allow_other: needs the line user_allow_other in /etc/fuse.conf\n"
    )
    assert not command.mounted()


@pytest.mark.usefixtures("user_can_run")
def test_what_fusermount_says_is_the_one_line(command: Command) -> None:
    (command.base / "foreign").mkdir(mode=0o700)
    line = command.refuse(
        "mount", "-o", OPTIONS, "foreign", status=32, user=USER, group=USER, extra_groups=[]
    )
    assert line.startswith(f"{command.base}/foreign: ")
    assert "ermission denied" in line


# --- its imports


#: Prints what a daemon on the direct session has imported: at ready, and at its end.
IMPORTED = """
import sys
from unionfs import service
ready, record = service._Service._ready, []
def note(self):
    ready(self)
    record.append(set(sys.modules))
service._Service._ready = note
def tell():
    late = set(sys.modules) - record[0]
    print("late:", *sorted(late), flush=True)
    print("all:", *sorted(sys.modules), flush=True)
run = service._Service.run
def run_and_tell(self):
    run(self)
    tell()
service._Service.run = run_and_tell
"""


def test_a_daemon_imports_what_it_needs_and_nothing_late(command: Command) -> None:
    arguments = ["mount", "-f", "-o", OPTIONS, "m"]
    with command.start(*arguments, patch=IMPORTED) as process:
        _wait_for_mount(command)
        with open(command.target / "file", "r+", encoding="ascii") as file:
            file.write("changed")
        (command.target / "d/deep").rename(command.target / "deep")
        (command.target / "deep").unlink()
        command.info()
        command.run("umount", "m")
        out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"")
    late, imported = (set(line.split()[1:]) for line in out.decode().splitlines())
    # The target may lie over the files that it would be imported from.
    assert late == set()
    slow = {"pyfuse3", "trio", "asyncio", "tempfile", "subprocess", "shutil", "argparse"}
    slow |= {"logging", "traceback", "socket", "importlib.metadata", "unionfs.fuse.libfuse"}
    assert imported & slow == set()


# --- passthrough


@pytest.mark.since(*system.PASSTHROUGH, "passthrough")
def test_passthrough_on_costs_writers_of_what_is_read(command: Command) -> None:
    command.mount("passthrough=on")
    with open(command.target / "file", "rb") as reader:
        assert reader.read() == b"one"
        for mode in ("r+b", "wb", "ab"):
            with pytest.raises(OSError, match="Text file busy"):
                open(command.target / "file", mode).close()
        with pytest.raises(OSError, match="Text file busy"):
            os.truncate(command.target / "file", 1)
    with open(command.target / "file", "r+b") as writer:
        writer.write(b"two")
    assert (command.base / "u/file").read_bytes() == b"two"
    assert (command.base / "l1/file").read_bytes() == b"one"


@pytest.mark.parametrize("value", ["auto", "off"])
def test_otherwise_it_is_copied_up_under_its_readers(command: Command, value: str) -> None:
    command.mount(f"passthrough={value}")
    with (
        open(command.target / "file", "rb") as reader,
        open(command.target / "file", "r+b") as writer,
    ):
        writer.write(b"two")
        writer.flush()
        assert reader.read() == b"two"
    assert (command.base / "l1/file").read_bytes() == b"one"
