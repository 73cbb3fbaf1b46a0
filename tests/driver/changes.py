"""Changes of all kinds to a tree, the same wherever they are made."""

from __future__ import annotations

import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from tests.build import acl, write

#: Times that changes get, from this on: a second for each level.
_EPOCH = 1_500_000_000

NOBODY = 65534

_CAPABILITY = bytes.fromhex("0100000201000000") + bytes(12)
_ALL_BITS = 0xFFFFFFFF
_ACL = acl(
    (1, 7, _ALL_BITS), (2, 5, 1000), (4, 5, _ALL_BITS), (16, 7, _ALL_BITS), (32, 0, _ALL_BITS)
)


def base(root: Path) -> None:
    """A small tree with something of everything."""
    for name in ("etc", "usr/bin", "usr/lib", "var/log", "deep/er/still"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        write(root / f"etc/file{number}", f"base {number}\n", 0o600 + number)
    write(root / "usr/bin/tool", b"\x7fELF" + bytes(5000), 0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/other-name")
    os.link(root / "usr/bin/tool", root / "usr/lib/third-name")
    (root / "usr/link").symlink_to("bin/tool")
    os.chown(root / "usr/link", NOBODY, NOBODY, follow_symlinks=False)
    os.mkfifo(root / "var/pipe", 0o622)
    os.mknod(root / "var/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "var/disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    with (root / "var/sparse").open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"tail")
        file.truncate(3 << 20)
    os.chown(root / "var/log", NOBODY, 12)
    os.setxattr(root / "etc/file1", "user.note", b"kept")
    os.setxattr(
        root / "etc/file2", "security.capability", bytes.fromhex("0100000201000000" + "00" * 12)
    )
    os.setxattr(root / "etc", "system.posix_acl_default", _ACL)
    os.setxattr(root / "usr", "trusted.note", b"root's own")
    root.chmod(0o751)


def nothing(root: Path) -> None:
    """No change."""


def delete(root: Path) -> None:
    """Names go away: files, one name of several, directories with all in them."""
    (root / "etc/file0").unlink()
    (root / "usr/bin/other-name").unlink()
    shutil.rmtree(root / "deep")
    (root / "usr/link").unlink()


def replace(root: Path) -> None:
    """What was a directory is a file, and the other way; a directory is made anew."""
    shutil.rmtree(root / "var/log")
    write(root / "var/log", "a file now")
    (root / "etc/file3").unlink()
    (root / "etc/file3/inside").mkdir(parents=True)
    shutil.rmtree(root / "usr/lib")
    (root / "usr/lib").mkdir()
    write(root / "usr/lib/new", "only this")
    (root / "var/pipe").unlink()
    (root / "var/pipe").symlink_to("/nowhere")


def move(root: Path) -> None:
    """Files and directories change their places."""
    (root / "usr/bin").rename(root / "usr/sbin")
    (root / "etc/file4").rename(root / "var/moved")
    (root / "var").rename(root / "variable")
    (root / "var").mkdir()
    write(root / "var/fresh", "fresh")


def alter(root: Path) -> None:
    """Attributes and a few bytes change; one name of a file with several is written."""
    os.chown(root / "etc/file5", 7, 8)
    (root / "etc/file6").chmod(0o4711)
    os.removexattr(root / "etc/file1", "user.note")
    os.setxattr(root / "etc/file1", "user.other", b"x" * 300)
    for path in root.rglob("tool"):
        with path.open("r+b") as file:
            file.seek(4000)
            file.write(b"changed in the middle")
    for path in root.rglob("sparse"):
        with path.open("r+b") as file:
            file.seek(2 << 20)
            file.write(b"another island")


ALL: tuple[Callable[[Path], None], ...] = (base, alter, delete, replace, move)


def at_random(seed: int) -> Callable[[Path], None]:
    """Return a change of some names that any tree may have."""

    def change(root: Path) -> None:
        dice = random.Random(seed)
        directories = [
            root,
            *sorted(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()),
        ]
        for number in range(6):
            place = dice.choice(directories)
            if not place.exists():
                continue
            path = place / f"n{dice.randrange(12)}"
            if path.is_dir() and not path.is_symlink():
                if dice.random() < 0.5:
                    shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()
            elif dice.random() < 0.3:
                path.mkdir()
            else:
                write(path, f"{seed} {number}" * dice.randrange(1, 200))

    return change


def timed(change: Callable[[Path], None], level: int) -> Callable[[Path], None]:
    """Return *change*, after which all that it touched has the time of its *level*."""

    def run(root: Path) -> None:
        begun = time.time_ns() - 10**9
        change(root)
        moment = (_EPOCH + level) * 10**9 + level
        for path in [*root.rglob("*"), root]:
            if path.lstat().st_mtime_ns >= begun:
                os.utime(path, ns=(moment, moment), follow_symlinks=False)

    return run
