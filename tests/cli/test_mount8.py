"""`mount.unionfs` and its other names: the contract of mount(8) with its helpers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import PATIENCE
from tests.mounts import REPOSITORY
from unionfs.fuse import mounting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

pytestmark = pytest.mark.needs_root

NAMES = ["mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs"]


@pytest.mark.parametrize("name", NAMES)
def test_the_program_mounts_by_any_of_its_names(command: Command, name: str) -> None:
    arguments = ["SRC", "m", "-n", "-t", "fuse.unionfs", "-o", f"rw,{command.layers}"]
    done = command.run(*arguments, name=f"/sbin/{name}")
    assert (done.stdout, done.stderr) == ("", "")
    entry = mounting.mount_at(os.fsencode(command.target))
    assert entry is not None
    assert (entry.kind, entry.source) == ("fuse.unionfs", b"SRC")
    (command.target / "new").touch()


@pytest.mark.parametrize("name", NAMES)
def test_f_checks_and_mounts_nothing(command: Command, name: str) -> None:
    done = command.run("SRC", "m", "-f", "-o", command.layers, name=name)
    assert (done.stdout, done.stderr) == ("", "")
    assert not command.mounted()
    for options, status in [
        ("lowerdir=none", 32),
        ("lowerdir=l1,upperdir=u", 1),
        ("lowerdir=l1,upperdir=u,workdir=none", 32),
        ("lowerdir=l1,uperdir=u", 1),
        ("lowerdir=l1,session=wibble", 1),
    ]:
        command.refuse("SRC", "m", "-fo", options, name=name, status=status)
    command.refuse("SRC", "none", "-fo", command.layers, name=name, status=32)


def test_a_check_leaves_no_mark_of_a_volatile_mount(command: Command) -> None:
    options = f"{command.layers},volatile"
    for _ in range(2):
        command.run("SRC", "m", "-f", "-o", options, name=NAMES[0])
    command.mount()


def test_a_check_sees_a_live_mount(command: Command) -> None:
    command.mount()
    done = command.run("SRC", "l1", "-f", "-o", command.layers, name=NAMES[0], status=32)
    assert done.stderr.startswith("unionfs: upperdir=u: ")


def test_s_says_nothing_about_unknown_options(command: Command) -> None:
    options = f"{command.layers},bogus"
    done = command.run("SRC", "m", "-o", options, "--wibble", name=NAMES[0])
    assert len(done.stderr.splitlines()) == 2
    command.run("umount", "m")
    done = command.run("SRC", "m", "-sn", "-o", options, "--wibble", name=NAMES[0])
    assert done.stderr == ""


def test_s_does_not_let_slips_pass(command: Command) -> None:
    command.refuse("SRC", "m", "-s", "-o", "lowerdir=l1,uperdir=u", name=NAMES[0], status=1)


def test_remount_is_answered_by_32(command: Command) -> None:
    command.refuse("SRC", "m", "-o", "remount,rw", name=NAMES[0], status=32)


def test_v_says_what_was_mounted(command: Command) -> None:
    done = command.run("SRC", "m", "-v", "-o", "lowerdir=l1", name=NAMES[0])
    assert done.stdout == "mount.unionfs: SRC mounted on m\n"


def test_help_and_version(command: Command) -> None:
    assert command.run("-V", name=NAMES[0]).stdout.startswith("unionfs: version ")
    assert command.run("-h", name=NAMES[0]).stdout.startswith("usage: mount.unionfs ")


def test_another_mount_namespace(command: Command, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    away = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", f"touch {ready}; exec sleep 60"]
    )
    try:
        while not ready.exists():
            time.sleep(0.01)
        options = ["-o", f"lowerdir={command.base}/l1"]
        command.run("SRC", f"{command.target}", "-N", f"{away.pid}", *options, name=NAMES[0])
        assert not command.mounted()
        enter = ["nsenter", "-t", f"{away.pid}", "-m"]
        listed = subprocess.run([*enter, "ls", command.target], capture_output=True, check=True)
        assert listed.stdout == b"file\n"
        assert command.info()["state"] == "detached"
        subprocess.run([*enter, "umount", command.target], check=True)
    finally:
        away.kill()
        away.wait()


# --- through mount(8) itself


@pytest.fixture
def installed(command: Command) -> Path:
    """A directory with the program under all its names, to be laid over /sbin and /usr/bin."""
    directory = command.base / "bin"
    directory.mkdir()
    for name in ("unionfs", *NAMES):
        script = directory / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
            "from unionfs.cli import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    return directory


def in_namespace(
    command: Command, installed: Path, names: list[str], script: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell *script* in a mount namespace where *names* are installed as packages would."""
    for name in names:
        place = "usr-bin" if name == "unionfs" else "usr-sbin"
        (command.base / place).mkdir(exist_ok=True)
        shutil.copy(installed / name, command.base / place / name)
    lines = [
        f"mount -t overlay overlay -o lowerdir=usr-{one}:/usr/{one} /usr/{one}"
        for one in ("bin", "sbin")
        if (command.base / f"usr-{one}").exists()
    ]
    # Whatever it mounts and does not unmount, detach: the daemons end with that.
    end = "trap 'status=$?; umount -l m 2>/dev/null || :; exit $status' EXIT"
    unshare = ["unshare", "-m", "--propagation", "private"]
    done = subprocess.run(
        [*unshare, "sh", "-ec", "\n".join([*lines, end, script])],
        cwd=command.base,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done
    return done


@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        (["mount.unionfs"], "-t unionfs SRC m"),
        (["mount.fuse.unionfs"], "-t fuse.unionfs SRC m"),
        (["mount.fuse3.unionfs"], "-t fuse3.unionfs SRC m"),
        (["unionfs"], "-t fuse.unionfs SRC m"),
        (["unionfs"], "-t fuse3 unionfs#SRC m"),
    ],
)
def test_mount_finds_the_program(
    command: Command, installed: Path, names: list[str], arguments: str
) -> None:
    base = command.base
    (base / "l,3:x").mkdir()
    (base / "l,3:x/three").touch()
    if names == ["unionfs"] and shutil.which("mount.fuse3") is None:
        pytest.skip("mount.fuse3 is not installed")
    layers = f"lowerdir={base}/l1:{base}/l\\,3\\:x,upperdir={base}/u,workdir={base}/w"
    script = f"""
        mount {arguments} -o '{layers},nofail,x-systemd.automount,context="a,b"'
        test "$(ls m)" = "$(printf 'file\\nthree')"
        touch m/new
        findmnt --noheadings --output SOURCE,FSTYPE m
        umount m
    """
    done = in_namespace(command, installed, names, script)
    assert done.stdout.split() == ["SRC", "fuse.unionfs"]
    assert done.stderr == ""
    assert (base / "u/new").exists()


def test_a_line_of_fstab(command: Command, installed: Path) -> None:
    base = command.base
    (base / "fstab").write_text(
        f"SRC {base}/m unionfs lowerdir={base}/l1,upperdir={base}/u,workdir={base}/w,nofail 0 0\n"
    )
    script = """
        mount --fake -T fstab -a
        ! mountpoint -q m
        mount -T fstab -a
        cat m/file
        ! mount -o remount,ro m
        umount m
        mount -r -T fstab $PWD/m
        ! touch m/new
    """
    assert in_namespace(command, installed, ["mount.unionfs"], script).stdout == "one"


def test_mounting_what_is_not_there_fails_with_32(command: Command, installed: Path) -> None:
    script = """
        status=0
        mount -t unionfs SRC m -o lowerdir=/none || status=$?
        echo $status
        ! mountpoint -q m
    """
    done = in_namespace(command, installed, ["mount.unionfs"], script)
    assert done.stdout == "32\n"
    assert done.stderr == "unionfs: lowerdir=/none: No such file or directory\n"
