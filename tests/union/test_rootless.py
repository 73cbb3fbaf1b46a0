"""An ordinary user's union: through fusermount3, and in a user namespace of one's own."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from tests.mounts import Layers, UnionMount
from tests.ordinary import USER, as_user, become_user, own
from tests.system import attempt, in_child

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]


def lower_of_kinds(layers: Layers) -> None:
    for name in ("lower_file", "lowest_file", "lower_full", "lower_symlink", "lower_links"):
        build.KINDS[name](layers, name)
    build.lower_fifo(layers, "lower_fifo")
    build.lower_socket(layers, "lower_socket")
    build.write(layers.lowers[0] / "read_only", "read only", 0o444)
    (layers.lowers[0] / "read_only_directory").mkdir()
    build.write(layers.lowers[0] / "read_only_directory" / "file")
    (layers.lowers[0] / "read_only_directory").chmod(0o555)


def test_a_users_day(layers: Layers, rootless: Callable[..., UnionMount]) -> None:
    lower_of_kinds(layers)
    mounted = rootless()
    root = mounted.root

    def work() -> None:
        (root / "lower_file").write_text("rewritten")
        (root / "lowest_file").unlink()
        (root / "read_only").chmod(0o640)
        (root / "read_only").chmod(0o444)
        (root / "lower_full" / "new").write_text("new")
        (root / "lower_full").rename(root / "renamed")
        (root / "renamed" / "inside").unlink()
        (root / "lower_symlink").rename(root / "link")
        (root / "lower_fifo").rename(root / "fifo")
        (root / "lower_socket").chmod(0o700)
        (root / "read_only_directory").chmod(0o755)
        (root / "read_only_directory" / "file").write_text("now")
        (root / "lower_links").write_text("both")
        (root / "made").mkdir()
        os.setxattr(root / "made", "user.mine", b"1")
        shutil.rmtree(root / "made")
        (root / "made").mkdir(mode=0o1777)

    as_user(work)
    before = as_user(lambda: _shape(root))
    assert sorted(os.listdir(layers.lowers[0] / "lower_full")) == ["inside"]
    mounted.unmount()
    mounted = rootless()
    assert as_user(lambda: _shape(mounted.root)) == before
    assert before["renamed/new"][1] == "new"
    assert before["lower_links-other"][1] == "both"
    assert "lowest_file" not in before


def _shape(root: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_text() if path.is_file() and not path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, content)
    return found


def test_marks_are_the_users(layers: Layers, rootless: Callable[..., UnionMount]) -> None:
    lower_of_kinds(layers)
    mounted = rootless()
    root = mounted.root
    as_user(lambda: (root / "lower_full").rename(root / "renamed"))
    as_user(lambda: shutil.rmtree(root / "renamed"))
    as_user((root / "renamed").mkdir)
    as_user(lambda: (root / "lower_file").rename(root / "moved"))
    shown = as_user(
        lambda: [
            name for path in root.rglob("*") for name in os.listxattr(path, follow_symlinks=False)
        ]
    )
    assert not [name for name in shown if "overlay" in name]
    mounted.unmount()
    assert layers.upper is not None
    kinds = [name for path in layers.upper.rglob("*") for name in tree.xattrs(path)]
    assert kinds
    assert all(name.startswith("user.overlay.") for name in kinds), kinds


def test_only_the_user_gets_in(layers: Layers, rootless: Callable[..., UnionMount]) -> None:
    build.write(layers.lowers[0] / "file", "mine")
    root = rootless().root
    assert as_user((root / "file").read_text) == "mine"
    outcome = in_child(lambda: attempt((root / "file").read_text), uid=4321, gid=4321)
    assert outcome.error == "EACCES"


def test_foreign_owner_is_never_changed_in_silence(
    layers: Layers, rootless: Callable[..., UnionMount]
) -> None:
    """A copy-up that may not set the owner fails, leaves nothing, and says once what helps."""
    build.write(layers.lowers[0] / "foreign", "not mine", 0o666)
    build.write(layers.lowers[0] / "own", "mine")
    own(layers)
    mounted = rootless()
    os.chown(layers.lowers[0] / "foreign", 0, 0)
    layers.lower_may_change = True
    mounted.expect_log("squash_to_uid")
    root = mounted.root
    for _ in range(3):
        outcome = as_user(lambda: attempt(_append, root / "foreign"))
        assert outcome.error == "EPERM"
    as_user(lambda: _append(root / "own"))
    assert layers.upper is not None
    assert os.listdir(layers.upper) == ["own"]
    mounted.unmount()
    assert mounted.log.count("squash_to_uid") == 1


def _append(path: Path) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"!")


def test_squash_lets_foreign_files_be_changed(
    layers: Layers, rootless: Callable[..., UnionMount]
) -> None:
    build.write(layers.lowers[0] / "foreign", "not mine", 0o666)
    own(layers)
    mounted = rootless(f"squash_to_uid={USER},squash_to_gid={USER}")
    layers.lower_may_change = True
    os.chown(layers.lowers[0] / "foreign", 0, 0)
    as_user(lambda: _append(mounted.root / "foreign"))
    assert as_user((mounted.root / "foreign").read_text) == "not mine!"
    assert layers.upper is not None
    assert (layers.upper / "foreign").stat().st_uid == USER


def _fresh_workdir(layers: Layers) -> None:
    assert layers.work is not None
    shutil.rmtree(layers.work)
    layers.work.mkdir()
    os.chown(layers.work, USER, USER)


def test_kernel_reads_what_a_user_wrote(
    layers: Layers, rootless: Callable[..., UnionMount], kernel: Callable[..., Any]
) -> None:
    """With `userxattr` and but for redirects, which that mount answers with EPERM."""
    lower_of_kinds(layers)
    build.lower_full(layers, "plain")
    mounted = rootless("redirect_dir=off")
    root = mounted.root

    def work() -> None:
        (root / "lower_file").write_text("rewritten")
        (root / "lowest_file").unlink()
        shutil.rmtree(root / "lower_full")
        (root / "lower_full").mkdir()
        (root / "new").touch()

    as_user(work)
    seen = as_user(lambda: tree.snapshot(root))
    mounted.unmount()
    theirs = kernel(options="userxattr")
    tree.assert_same(seen, tree.snapshot(theirs.root, private=False), ignore=("group", "nlink"))
    theirs.unmount()
    _fresh_workdir(layers)  # root's, after the kernel
    mounted = rootless()
    as_user(lambda: (mounted.root / "plain").rename(mounted.root / "r"))
    mounted.unmount()
    _fresh_workdir(layers)
    theirs = kernel(options="userxattr")
    assert attempt(os.listdir, theirs.root / "r").error == "EPERM"


IN_NAMESPACE = """
import os, shutil, subprocess, sys, time
options, target = sys.argv[1:]
command = ["-m", "unionfs", "mount", "-f", "-o", options, target]
daemon = subprocess.Popen([sys.executable, *command])
try:
    end = time.monotonic() + 20
    while os.stat(target).st_dev == os.stat(os.path.dirname(target)).st_dev:
        if daemon.poll() is not None or time.monotonic() > end:
            sys.exit("not mounted")
        time.sleep(0.01)
    os.chdir(target)
    for name in ("file", "d/new"):
        with open(name, "a") as file:
            file.write("+")
    os.rename("d", "e")
    shutil.rmtree("gone")
    os.mkdir("gone")
    os.chown("file", 0, 0)
    try:
        os.unlink("foreign")
    except OSError as error:
        print(error.strerror)
    print(sorted(os.listdir()), open("file").read(), sorted(os.listdir("e")), os.listdir("gone"))
    os.chdir("/")
    subprocess.run(["umount", target], check=True)
    sys.exit(daemon.wait(10))
finally:
    daemon.kill()
"""


def test_in_a_user_namespace(device: None, layers: Layers, python: dict[str, str]) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    build.write(layers.lowers[0] / "d" / "file", "lower")
    build.write(layers.lowers[1] / "gone" / "old", "old")
    build.write(layers.lowers[0] / "foreign")
    own(layers)
    os.chown(layers.lowers[0] / "foreign", 4242, 4242)
    layers.remember_lowers()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    ran = subprocess.run(
        [*unshare, python["PYTHON"], "-c", IN_NAMESPACE, layers.options(), str(layers.merged)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env=python,
        preexec_fn=become_user,
    )
    if "Operation not permitted" in ran.stderr and "unshare" in ran.stderr:
        pytest.skip("no user namespaces here")
    assert ran.stderr == ""
    # The kernel lets nobody remove what FUSE shows with an owner that the namespace has not.
    too_large, names = ran.stdout.splitlines()
    assert too_large == os.strerror(errno.EOVERFLOW)
    assert names == "['e', 'file', 'foreign', 'gone'] lower+ ['file', 'new'] []"
    assert ran.returncode == 0
    layers.check_lowers()
    layers.check_work()
    assert layers.upper is not None
    marks = [name for path in layers.upper.rglob("*") for name in tree.xattrs(path)]
    assert all(name.startswith("user.overlay.") for name in marks)


def test_merged_root_shows_the_uppers_attributes(
    layers: Layers, rootless: Callable[..., UnionMount]
) -> None:
    layers.lowers[0].chmod(0o711)
    assert layers.upper is not None
    layers.upper.chmod(0o750)
    root = rootless().root
    assert as_user(lambda: root.stat().st_mode & 0o777) == 0o750


def test_unmount_by_fusermount(layers: Layers, rootless: Callable[..., UnionMount]) -> None:
    mounted = rootless()
    as_user(partial(subprocess.check_call, ["fusermount3", "-u", mounted.root]))
    end = time.monotonic() + 2
    while mounted.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert mounted.process.poll() == 0
    mounted.unmount()
