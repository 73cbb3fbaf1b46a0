"""What a driver says is to be mounted, mounted; and unmounted again.

Unions are mounted by this program, plain binds and overlays by the kernel, which takes a
tenth of the time that mount(8) does. All else is for mount(8), which knows about loop devices and
has the better words when something is wrong. Directories inside (``X-mount.subdir=``) are shown
from here: a mount(8) before 2.39 loses them, and says nothing, where mounts are private.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from unionfs.driver.api import UNION, Mount
from unionfs.errors import MountError, UnsupportedError
from unionfs.fuse import mounting
from unionfs.layer import syscalls
from unionfs.mount import mount, require_directory
from unionfs.namespace import MountNamespace
from unionfs.optwords import parse_options
from unionfs.unmount import unmount

_INSIDE: Final = "X-mount.subdir="
#: The kernel's overlayfs has these itself.
_OVERLAY_WORDS: Final = frozenset(
    {"lowerdir", "upperdir", "workdir", "redirect_dir", "index", "xino", "metacopy", "volatile"}
)
#: mount(2) takes a page of options; the rest is for what mount(8) adds.
_OPTIONS_LIMIT: Final = 4000
#: Seconds that a mount may be in use by what another thread is starting.
_BUSY_PATIENCE: Final = 1.0


def attach(
    mounts: Sequence[Mount],
    target: str,
    *,
    extra: Sequence[str] = (),
    home: MountNamespace | None = None,
) -> None:
    """Mount *mounts* on the directory *target*, in order, each with the *extra* options.

    With a *home* the daemons of unions go there, as `unionfs.mount.mount` has it.
    Raises `MountError` with what mount(8) says, and leaves nothing mounted then.
    """
    require_directory(target, target)
    done = 0
    try:
        for one in mounts:
            _mount(one._replace(options=(*one.options, *extra)), target, home)
            done += 1
    except BaseException:
        for _ in range(done):
            detach(target)
        raise


def _mount(one: Mount, target: str, home: MountNamespace | None) -> None:
    if one.type == UNION:
        if home is None and threading.active_count() > 1:
            _mount_by_command(one, target)
            return
        parsed = parse_options([",".join(one.options)], source=one.source)
        mount(parsed.options, os.fsencode(target), foreground=False, home=home)
        return
    if inside := [word for word in one.options if word.startswith(_INSIDE)]:
        _mount_inside(one, inside[-1].removeprefix(_INSIDE), target)
        return
    if _mount_plainly(one, target):
        return
    place, options = "/", ",".join(one.options)
    if one.type == "overlay" and len(options) > _OPTIONS_LIMIT:
        place, options = _shortened(one.options)
    try:
        _run_mount(
            ["-t", one.type, "-o", options, "--", one.source, os.path.abspath(target)], place
        )
    except MountError as error:
        if one.type != "bind" or os.geteuid() == 0:
            raise
        hint = f"without mounting, the files are in {one.source}"
        raise MountError(f"{error}; {hint}") from error


def _mount_by_command(one: Mount, target: str) -> None:
    """Mount a union without a fork of this process, whose other threads hold what they hold.

    A daemon would have the files that they have open for the moment, and keep their mounts busy.
    """
    words = ["mount", "-o", ",".join(one.options), "--", one.source, target]
    done = _run([sys.executable, "-P", "-m", "unionfs", *words])
    if done.returncode != 0:
        raise MountError(_said(done)[-1].removeprefix("unionfs: "))


def _mount_plainly(one: Mount, target: str) -> bool:
    """Mount a bind or an overlay that asks for nothing of mount(8)'s; say whether it is done.

    What the kernel refuses is left to mount(8), which says why.
    """
    words = {word.partition("=")[0] for word in one.options}
    place = os.fsencode(os.path.abspath(target))
    try:
        if one.type == "bind" and words <= {"bind", "rw", "ro"}:
            fd = syscalls.open_tree_clone(syscalls.AT_FDCWD, os.fsencode(one.source))
            try:
                if "ro" in words:
                    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY)
                syscalls.move_mount(fd, place)
            finally:
                os.close(fd)
            return True
        if one.type == "overlay" and words <= _OVERLAY_WORDS:
            data = ",".join(one.options)
            if len(os.fsencode(data)) <= _OPTIONS_LIMIT:
                mounting.mount_overlay(one.source, place, data)
                return True
    except OSError:
        pass
    return False


def _mount_inside(one: Mount, directory: str, target: str) -> None:
    """Mount what is in *directory* of a file system.

    All of it is mounted in the namespace of a thread, where nobody sees it, and which leaves
    nothing behind if we are killed.
    """
    target = os.path.abspath(target)
    whole = [word for word in one.options if not word.startswith(_INSIDE)]

    def tree() -> int:
        mounting.leave_namespace()
        _run_mount(["-t", one.type, "-o", ",".join(whole), "--", one.source, target], "/")
        try:
            path = os.fsencode(os.path.join(target, directory.lstrip("/")))
            return syscalls.open_tree_clone(syscalls.AT_FDCWD, path)
        finally:
            mounting.unmount(os.fsencode(target))

    with ThreadPoolExecutor(max_workers=1) as thread:
        fd = thread.submit(tree).result()
    try:
        syscalls.move_mount(fd, os.fsencode(target))
    except OSError as error:
        raise MountError(f"{target}: {error.strerror}") from error
    finally:
        os.close(fd)


def _shortened(options: Sequence[str]) -> tuple[str, str]:
    """Return a directory from which the paths of lower layers are short, and the options."""
    lowers = [word.removeprefix("lowerdir=") for word in options if word.startswith("lowerdir=")]
    place = os.path.commonpath(lowers[0].split(":")) if lowers else "/"
    if "\\" in place or "\\" in lowers[0]:
        return "/", ",".join(options)
    below = ":".join(os.path.relpath(lower, place) for lower in lowers[0].split(":"))
    return place, ",".join(
        [f"lowerdir={below}", *(w for w in options if not w.startswith("lowerdir="))]
    )


def _run_mount(arguments: Sequence[str], place: str) -> None:
    # Newer ones ask the kernel option by option, of 256 bytes each: too little for layers.
    environment = {**os.environ, "LC_ALL": "C", "LIBMOUNT_FORCE_MOUNT2": "always"}
    try:
        done = _run(["mount", *arguments], cwd=place, env=environment)
    except FileNotFoundError as error:
        raise UnsupportedError("mount(8) is not in PATH: install the package mount") from error
    if done.returncode != 0:
        raise MountError(_said(done)[0].removeprefix("mount: "))


def _run(
    words: Sequence[str], *, cwd: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of what a program that failed has said, at least one."""
    return done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]


def detach(target: str, *, lazy: bool = False) -> None:
    """Unmount what is topmost on *target*; wait for the daemon of a union.

    Raises `MountError`; for what is busy only after a moment, if we have threads: a program that
    another one starts has the files that we have open until it is there.
    """
    deadline = time.monotonic() + (_BUSY_PATIENCE if threading.active_count() > 1 else 0)
    while True:
        try:
            _detach(target, lazy=lazy)
        except MountError as error:
            cause = error.__cause__
            is_busy = isinstance(cause, OSError) and cause.errno == errno.EBUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _detach(target: str, *, lazy: bool) -> None:
    try:
        place = mounting.resolve(os.fsencode(target))
    except OSError as error:
        raise MountError(f"{target}: {error.strerror}") from error
    entry = mounting.mount_at(place)
    if entry is None:
        raise MountError(f"{target}: nothing is mounted here")
    if entry.kind == mounting.FSTYPE:
        unmount(target, lazy=lazy)
    else:
        mounting.unmount(place, lazy=lazy)
