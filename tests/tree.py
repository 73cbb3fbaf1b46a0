"""Snapshots of directory trees and readable differences between them.

A snapshot holds all that a user can see of each entry. What may differ for good reasons is left
out by name when two snapshots are compared.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

#: Names of xattrs in which union filesystems keep their own state.
PRIVATE_XATTRS = (
    "trusted.overlay.",
    "user.overlay.",
    "user.fuseoverlayfs.",
    "user.containers.override_stat",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree. Fields that make no sense for its kind are None."""

    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int | None
    mtime: int | str
    ctime: int | None
    rdev: int | None
    target: bytes | None
    xattrs: Mapping[str, bytes]
    content: str | None
    holes: tuple[int, ...] | None
    group: bytes


Tree = dict[bytes, Entry]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def snapshot(
    root: str | bytes | os.PathLike[str],
    *,
    since: int | None = None,
    ctime: bool = False,
    holes: bool = False,
    private: bool = True,
) -> Tree:
    """Read the whole tree at *root*, the root itself included (as `b"."`).

    *since*: modification times from then on (nanoseconds) read as "new", so that the same change
    made twice compares equal. *private*: False leaves out the xattrs of union filesystems.
    """
    top = os.fsencode(root)
    tree: Tree = {}
    first: dict[tuple[int, int], bytes] = {}
    for name, path, status in _walk(top):
        group = first.setdefault((status.st_dev, status.st_ino), name)
        tree[name] = Entry(
            **_status_fields(status, since, ctime),
            **_content_fields(path, status.st_mode, holes),
            xattrs=xattrs(path, private=private),
            group=group,
        )
    return tree


def _walk(top: bytes) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    yield b".", top, os.lstat(top)
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        where = os.path.join(top, below) if below else top
        for name in sorted(os.listdir(where), reverse=True):
            path = os.path.join(where, name)
            relative = os.path.join(below, name)
            status = os.lstat(path)
            yield relative, path, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append(relative)


def _status_fields(status: os.stat_result, since: int | None, ctime: bool) -> dict[str, Any]:
    mode = status.st_mode
    changed = since is not None and status.st_mtime_ns >= since
    return {
        "kind": _KINDS[stat.S_IFMT(mode)],
        "mode": stat.S_IMODE(mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "size": None if stat.S_ISDIR(mode) else status.st_size,
        "mtime": "new" if changed else status.st_mtime_ns,
        "ctime": status.st_ctime_ns if ctime else None,
        "rdev": status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None,
    }


def _content_fields(path: bytes, mode: int, holes: bool) -> dict[str, Any]:
    regular = stat.S_ISREG(mode)
    return {
        "target": os.readlink(path) if stat.S_ISLNK(mode) else None,
        "content": digest(path) if regular else None,
        "holes": data_segments(path) if holes and regular else None,
    }


def xattrs(path: str | bytes | os.PathLike[str], *, private: bool = True) -> dict[str, bytes]:
    """All extended attributes of *path* itself, a symlink not followed."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if private or not name.startswith(PRIVATE_XATTRS)
        if not name.startswith("trusted.SGI_ACL_")  # how xfs keeps an ACL, shown to root
    }


def digest(path: str | bytes | os.PathLike[str]) -> str:
    """A hash of a file's bytes; short files are shown as they are."""
    with open(path, "rb") as file:
        head = file.read(33)
        if len(head) <= 32:
            return repr(head)
        file.seek(0)
        return hashlib.file_digest(file, "sha1").hexdigest()


def data_segments(path: str | bytes | os.PathLike[str]) -> tuple[int, ...]:
    """Where a file's data begins and ends, as SEEK_DATA and SEEK_HOLE tell."""
    edges: list[int] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(fd).st_size
        position = 0
        while position < end:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only a hole follows
            edges.append(position)
            position = os.lseek(fd, position, os.SEEK_HOLE)
            edges.append(position)
    finally:
        os.close(fd)
    return tuple(edges)


def differences(
    expected: Tree, found: Tree, *, ignore: Collection[str] = (), limit: int = 40
) -> list[str]:
    """One line for each name or field in which *found* is not *expected*.

    *ignore* names fields of `Entry`; `directory.mtime` ignores it for directories alone.
    """
    lines: list[str] = []
    for name in sorted(expected.keys() | found.keys()):
        shown = name.decode(errors="backslashreplace")
        if name not in found:
            lines.append(f"{shown}: missing ({_brief(expected[name])})")
        elif name not in expected:
            lines.append(f"{shown}: not expected ({_brief(found[name])})")
        else:
            lines += _field_differences(shown, expected[name], found[name], ignore)
    if len(lines) > limit:
        lines[limit:] = [f"... and {len(lines) - limit} more"]
    return lines


def _field_differences(
    shown: str, expected: Entry, found: Entry, ignore: Collection[str]
) -> Iterator[str]:
    for field in fields(Entry):
        if field.name in ignore or f"{expected.kind}.{field.name}" in ignore:
            continue
        one, other = getattr(expected, field.name), getattr(found, field.name)
        if one != other:
            if field.name == "mode":
                one, other = f"{one:04o}", f"{other:04o}"
            yield f"{shown}: {field.name}: expected {one!r}, found {other!r}"


def _brief(entry: Entry) -> str:
    return f"{entry.kind} {entry.mode:04o} {entry.uid}:{entry.gid} size {entry.size}"


def assert_same(expected: Tree, found: Tree, *, ignore: Collection[str] = ()) -> None:
    """Fail with the differences, if there are any."""
    lines = differences(expected, found, ignore=ignore)
    assert not lines, "trees differ:\n  " + "\n  ".join(lines)
