"""Records of live mounts: which process serves them, and over which layers.

Written by the daemon when its mount is live and removed by it at a clean end; read by
``unionfs ls``, ``umount`` and ``diff``. One JSON file for each mount, named by its device
number, below /run for root and below the user's runtime directory for others. A mount
serves its users without its record too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unionfs.fuse.mounting import MountEntry

_SYSTEM = "/run/unionfs"
_RUNTIME = "/run/user"
_TEMPORARY = "/tmp"  # noqa: S108 - owners are checked, of directories and of files

#: PROC_USER_INIT_INO of the kernel's include/linux/proc_ns.h.
_FIRST_USER_NAMESPACE = 0xEFFFFFFD


class Record(NamedTuple):
    """What a daemon leaves in writing about its mount."""

    device: str
    """``major:minor`` of the mount."""
    pid: int
    start_time: int
    """With the number, this tells a process from a later one with the same number."""
    pid_namespace: int
    """The namespace, by inode number, in which *pid* is the daemon's number."""
    mount_namespace: int
    target: str
    session: str
    options: str
    """As `format_options` writes them, with absolute paths of the layers."""


_NUMBERS = ("pid", "start_time", "pid_namespace", "mount_namespace")


def describe_self(device: str, target: str, session: str, options: str) -> Record:
    """Return the record of a mount that the calling process serves."""
    pid = os.getpid()
    return Record(
        device=device,
        pid=pid,
        start_time=start_time(pid) or 0,
        pid_namespace=namespace("pid"),
        mount_namespace=namespace("mnt"),
        target=target,
        session=session,
        options=options,
    )


def write(record: Record, live_devices: Iterable[str]) -> None:
    """Write *record*, and drop those that neither mount nor process backs.

    *live_devices* are the devices of all mounts. Nothing inside of the mount itself is
    touched: its daemon is the caller. Raises ``OSError``.
    """
    directory = _own_directory(record.target)
    keep = set(live_devices)
    for path in _records(directory):
        old = _read(path)
        if old is None or old[0].device in keep or old[0].mount_namespace != namespace("mnt"):
            continue
        if is_running(old[0]) is False:
            _unlink(path)
    try:
        _put(directory, record)
    except FileNotFoundError:
        # Another mount has just ended, and was the last in there.
        _put(_own_directory(record.target), record)


def _put(directory: str, record: Record) -> None:
    temporary = f"{directory}/.{record.pid_namespace}-{record.pid}-{_name(record.device)}"
    # Of a process with the same number, that was killed just here.
    _unlink(temporary)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)
            json.dump(record._asdict(), file)
        os.rename(temporary, f"{directory}/{_name(record.device)}")
    except OSError:
        _unlink(temporary)
        raise


def find(entry: MountEntry) -> Record | None:
    """Return the record of the mount *entry*, None if there is none to be trusted."""
    candidates = [_read(f"{directory}/{_name(entry.device)}") for directory in _directories()]
    # Anyone may write records, but only about mounts that are their own.
    records = [found[0] for found in candidates if found is not None and found[1] == entry.owner]
    # The device number may have been that of a mount whose daemon was killed.
    return next((one for one in records if is_running(one)), next(iter(records), None))


def others(devices: Iterable[str]) -> list[Record]:
    """Return the records of running daemons whose mounts are none of *devices*.

    Such a mount is in another mount namespace, or was detached while in use.
    """
    known = set(devices)
    records = {}
    for directory in _directories():
        for path in _records(directory):
            found = _read(path)
            if found is None or found[0].device in known or not is_running(found[0]):
                continue
            with contextlib.suppress(OSError):
                if found[1] in (0, os.stat(f"/proc/{found[0].pid}").st_uid):
                    records[found[0].device] = found[0]
    return list(records.values())


def remove(record: Record) -> None:
    """Remove *record*, if it is still there and may be removed.

    Its mount is gone, so another one may have its device number by now, and its file.
    """
    for directory in _directories():
        path = f"{directory}/{_name(record.device)}"
        found = _read(path)
        if found is not None and found[0] == record:
            with contextlib.suppress(OSError):
                os.unlink(path)
                if os.path.dirname(directory) == _TEMPORARY:
                    os.rmdir(directory)


def is_running(record: Record) -> bool | None:
    """Tell whether the daemon lives; None where its process id means nothing here."""
    if record.pid_namespace != namespace("pid"):
        return None
    return start_time(record.pid) == record.start_time


def wait_for_end(record: Record, seconds: float) -> bool:
    """Wait until the daemon of *record* is gone; False if it still lives after *seconds*."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        if is_running(record) is not True:
            return True
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _name(device: str) -> str:
    return device.replace(":", "-") + ".json"


def start_time(pid: int) -> int | None:
    """Return when process *pid* was started, in clock ticks since boot; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name before the last ")" may hold anything; state is the first field after it.
    after_name = text[text.rindex(b")") + 2 :].split()
    return None if after_name[0] in (b"Z", b"X") else int(after_name[19])


def namespace(kind: str) -> int:
    """Return the inode number of this process's namespace of *kind*, as /proc calls it."""
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def _user_directories() -> Iterator[str]:
    user = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        yield f"{runtime}/unionfs"
    yield f"{_RUNTIME}/{user}/unionfs"
    # In a user namespace the same number is another user.
    users = namespace("user")
    name = f"unionfs-{user}" if users == _FIRST_USER_NAMESPACE else f"unionfs-{user}-{users}"
    yield f"{_TEMPORARY}/{name}"


def _directories() -> list[str]:
    """Return where records may be; root sees those of all users."""
    directories = [_SYSTEM, *_user_directories()]
    if os.geteuid() == 0:
        directories += [f"{_RUNTIME}/{name}/unionfs" for name in _names(_RUNTIME)]
        names = [name for name in _names(_TEMPORARY) if name.startswith("unionfs-")]
        directories += [f"{_TEMPORARY}/{name}" for name in names]
    return directories


def _names(directory: str) -> list[str]:
    """Return the sorted names in *directory*, none where it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _records(directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in _names(directory) if name.endswith(".json")]


def _unlink(path: str) -> None:
    """Remove *path*, which may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _own_directory(outside: str) -> str:
    """Return the first directory that can be written, only by us, and not inside *outside*."""
    candidates = [_SYSTEM] if os.geteuid() == 0 else []
    for path in (*candidates, *_user_directories()):
        if f"{path}/".startswith(f"{outside}/") and outside != "/":
            continue
        with contextlib.suppress(OSError):
            os.mkdir(path, 0o755)
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            ours = found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if stat.S_ISDIR(found.st_mode) and ours and os.access(path, os.W_OK):
                return path
    raise FileNotFoundError(2, "no directory for records of mounts", _SYSTEM)


def _read(path: str) -> tuple[Record, int] | None:
    """Return the record in file *path* and the file's owner; None if there is no good one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="ascii") as file:
            values = json.load(file)
            owner = os.fstat(file.fileno()).st_uid
        record = Record(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    good = all(
        isinstance(value, int if name in _NUMBERS else str)
        for name, value in record._asdict().items()
    )
    return (record, owner) if good else None
