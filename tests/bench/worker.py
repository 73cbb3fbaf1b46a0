"""Workers for names, trees and small files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

from tests.bench.client import Phase, Run, Works, serve, spawn, together

BLOCK = b"\x5a" * 4096


def names(root: str, dirs: str, files: str, prefix: str = "f") -> list[str]:
    """The files of a grid: *files* in each of *dirs* directories."""
    return [
        f"{root}/d{directory:03d}/{prefix}{file:04d}"
        for directory in range(int(dirs))
        for file in range(int(files))
    ]


def over(paths: list[str], call: Callable[[str], object]) -> Run:
    """Do *call* on each path."""

    def run() -> None:
        for path in paths:
            call(path)

    return run


def read_file(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    os.read(file, 4096)
    os.close(file)


def write_file(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, BLOCK)
    os.close(file)


def is_absent(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise AssertionError(f"{path} is there")


def walk(path: str) -> int:
    """Visit every directory, as `os.walk` does: types come from the listing."""
    count = 0
    with os.scandir(path) as entries:
        for entry in entries:
            count += 1
            if entry.is_dir(follow_symlinks=False):
                count += walk(entry.path)
    return count


def walk_and_stat(path: str) -> None:
    """Visit everything, and ask for the attributes of each."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                walk_and_stat(entry.path)
            else:
                entry.stat(follow_symlinks=False)


def list_and_stat(path: str) -> None:
    for name in os.listdir(path):
        os.lstat(f"{path}/{name}")


def twice(run: Run, count: int) -> list[Phase]:
    return [("cold", run, count), ("warm", run, count)]


def once(call: Callable[..., object], *arguments: object) -> Run:
    """*call*, for its time only."""

    def run() -> None:
        call(*arguments)

    return run


def do_stat(root: str, dirs: str, files: str) -> list[Phase]:
    paths = names(root, dirs, files)
    return twice(over(paths, os.stat), len(paths))


def do_open(root: str, dirs: str, files: str) -> list[Phase]:
    paths = names(root, dirs, files)
    return twice(over(paths, read_file), len(paths))


def do_open_many(root: str, dirs: str, files: str, processes: str) -> list[Phase]:
    """Each process reads files of its own."""
    paths, number = names(root, dirs, files), int(processes)
    jobs = [over(paths[index::number], read_file) for index in range(number)]
    return [("cold", together([*jobs]), len(paths))]


def do_absent(root: str, dirs: str, files: str) -> list[Phase]:
    paths = names(root, dirs, files, "absent")
    return twice(over(paths, is_absent), len(paths))


def do_change(directory: str, count: str) -> list[Phase]:
    """Make, rename and remove *count* names in a directory that is there."""
    files, moved, dirs, links = (
        [f"{directory}/{kind}{number:05d}" for number in range(int(count))]
        for kind in ("file", "moved", "dir", "link")
    )

    def rename() -> None:
        for old, new in zip(files, moved, strict=True):
            os.rename(old, new)

    return [
        ("create", over(files, write_file), len(files)),
        ("mkdir", over(dirs, os.mkdir), len(dirs)),
        ("symlink", over(links, partial(os.symlink, "target")), len(links)),
        ("rename", rename, len(files)),
        ("unlink", over(moved, os.unlink), len(moved)),
    ]


def do_chmod(root: str, dirs: str, files: str) -> list[Phase]:
    paths = names(root, dirs, files)

    def chmod(path: str) -> None:
        os.chmod(path, 0o640)

    return [("chmod", over(paths, chmod), len(paths))]


def do_rename_directory(old: str, new: str) -> list[Phase]:
    """As mv(1) does it: a rename, and a copy where that is refused."""

    def run() -> None:
        try:
            os.rename(old, new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            spawn(["mv", old, new])

    return [("rename", run, 1)]


def do_list(path: str, count: str) -> list[Phase]:
    return twice(once(list_and_stat, path), int(count))


def do_walk(path: str, count: str) -> list[Phase]:
    return twice(once(walk, path), int(count))


def do_walk_and_stat(path: str, count: str) -> list[Phase]:
    return [("walk", once(walk_and_stat, path), int(count))]


def do_command(*argv: str) -> list[Phase]:
    return [("run", once(spawn, [*argv]), 1)]


def do_command_twice(*argv: str) -> list[Phase]:
    return twice(once(spawn, [*argv]), 1)


def do_copy(target: str, *sources: str) -> list[Phase]:
    def run() -> None:
        os.mkdir(target)
        spawn(["cp", "-a", *sources, target])

    return [("run", run, 1)]


def do_start(directory: str, target: str, *argv: str) -> list[Phase]:
    """A command that mounts *target* from *directory*, and then its first answer."""
    os.chdir(directory)
    first = once(os.stat, target) if target else once(int)
    return [("exit", once(spawn, [*argv]), 1), ("first", first, 1)]


def do_mixed(root: str, dirs: str, files: str) -> list[Phase]:
    """Eight processes: three read files, three make and remove them, two walk."""
    paths = names(root, dirs, files)
    made = [[f"{root}/d000/job{job}-{n:04d}" for n in range(len(paths) // 6)] for job in range(3)]

    def make_and_remove(own: list[str]) -> None:
        for path in own:
            write_file(path)
            os.unlink(path)

    jobs: list[Callable[[], object]] = [over(paths[job::3], read_file) for job in range(3)]
    jobs += [partial(make_and_remove, own) for own in made]
    jobs += [partial(walk, root), partial(walk, root)]
    return [("all", together(jobs), 1)]


WORKS: Works = {
    "stat": do_stat,
    "open": do_open,
    "open-many": do_open_many,
    "absent": do_absent,
    "change": do_change,
    "chmod": do_chmod,
    "rename-directory": do_rename_directory,
    "list": do_list,
    "walk": do_walk,
    "walk-and-stat": do_walk_and_stat,
    "copy": do_copy,
    "command": do_command,
    "command-twice": do_command_twice,
    "start": do_start,
    "mixed": do_mixed,
}

if __name__ == "__main__":
    serve(WORKS)
