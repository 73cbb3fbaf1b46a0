"""Mounts as the kernel knows them: mounting, /proc/self/mountinfo, unmounting, namespaces.

Nothing here touches the inside of a mount, so that all of it works on a mount whose
daemon died and may be called by the daemon itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unionfs.errors import MountError

#: The type of our mounts; the part after the dot is the option ``subtype=``.
FSTYPE = "fuse.unionfs"

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_PRIVATE = 0x44000  # MS_PRIVATE, MS_REC
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

#: mount(2)'s flags by mount(8)'s words; those that are its defaults have none.
_MOUNT_FLAGS = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "sync": 0x10,
    "dirsync": 0x80,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "strictatime": 0x1000000,
}
#: Words that are the FUSE file system's own.
_FUSE_WORDS = ("default_permissions", "allow_other")
#: Words that libfuse and fusermount3 do not know, or not in every version.
_KERNEL_ONLY = ("nodiratime", "strictatime")
_DEVICE = "/dev/fuse"
_DEVICE_NUMBER = os.makedev(10, 229)

_OCTAL = re.compile(rb"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """One line of mountinfo, proc(5)."""

    mount_id: int
    device: str
    """``major:minor``, unique among all live file systems."""
    target: bytes
    kind: str
    source: bytes
    super_options: str
    root: bytes = b"/"
    """What is mounted there of its file system: ``/``, or a directory inside, as binds show."""

    @property
    def owner(self) -> int | None:
        """The user whose daemon serves this FUSE mount."""
        found = re.search(r"(?:^|,)user_id=(\d+)", self.super_options)
        return int(found[1]) if found else None


def _unescape(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)


def unescape(text: str) -> str:
    """Return *text* of mountinfo, proc(5), with the octal numbers as what they stand for."""
    return os.fsdecode(_unescape(os.fsencode(text)))


def parse_mountinfo(text: bytes, wanted: Callable[[bytes], bool] | None = None) -> list[MountEntry]:
    """Read the lines of a mountinfo file; the last of several at one target is the topmost.

    Only those that are *wanted*, a test of the line as it stands there.
    """
    entries = []
    # Only the line feed ends a line: a carriage return stands in names as it is.
    for line in filter(wanted, filter(None, text.split(b"\n"))):
        # A variable number of optional fields ends with "-"; blanks in names are escaped.
        before, _, after = line.partition(b" - ")
        left, right = before.split(b" "), after.split(b" ")
        entries.append(
            MountEntry(
                mount_id=int(left[0]),
                device=left[2].decode(),
                target=_unescape(left[4]),
                kind=right[0].decode(),
                source=_unescape(right[1]) if len(right) > 1 else b"",
                super_options=right[2].decode(errors="surrogateescape") if len(right) > 2 else "",
                root=_unescape(left[3]),
            )
        )
    return entries


def mounts(wanted: Callable[[bytes], bool] | None = None) -> list[MountEntry]:
    """Return the mounts of this process's mount namespace, those whose lines are *wanted*."""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read(), wanted)


def unions() -> list[MountEntry]:
    """Return the mounts of our type."""
    return [entry for entry in mounts() if entry.kind == FSTYPE]


def mount_at(target: bytes) -> MountEntry | None:
    """Return the topmost mount on *target*, a path that `resolve` returned."""
    return next((entry for entry in reversed(mounts()) if entry.target == target), None)


def resolve(path: bytes) -> bytes:
    """Return the absolute path of *path* as the kernel finds it, mount and links followed.

    Asks nothing of a file system mounted there. Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}".encode())
    finally:
        os.close(descriptor)


def mount(target: bytes, source: str, words: Sequence[str]) -> int:
    """Mount a FUSE file system of our type on *target*; return its /dev/fuse descriptor.

    mount(2) where that is allowed, else fusermount3. *words* are options as mount(8) spells
    them. Raises `MountError`.
    """
    if os.geteuid() != 0:
        if _fusermount() is None:
            raise MountError(f"{os.fsdecode(target)}: mounting needs root, or fusermount3 in PATH")
        return _mount_by_program(target, source, words)
    fd = _open_device()
    try:
        _mount_here(target, source, words, fd)
    except PermissionError as error:
        os.close(fd)
        # Root of a container, say, that owns no mounts; a set-uid program may be allowed more.
        shown = f"{os.fsdecode(target)}: mount(2): {error.strerror}, CAP_SYS_ADMIN is needed"
        if _fusermount() is None:
            raise MountError(shown) from error
        try:
            return _mount_by_program(target, source, words)
        except MountError as second:
            raise MountError(f"{shown}; {second}") from error
    except OSError as error:
        os.close(fd)
        raise MountError(f"{os.fsdecode(target)}: {error.strerror}") from error
    return fd


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = _DEVICE_HINTS.get(error.errno or 0, "is the kernel module fuse loaded?")
        raise MountError(f"{_DEVICE}: {error.strerror}; {hint}") from error


_DEVICE_HINTS = {
    errno.ENOENT: "is the kernel module fuse loaded, and was the container given the device?",
    errno.EACCES: "its mode lets only others open it",
    errno.EPERM: "the container was not given the device",
}


def _mount_here(target: bytes, source: str, words: Sequence[str], fd: int) -> None:
    flags = 0
    data = [f"fd={fd}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    for word in words:
        if word in _MOUNT_FLAGS:
            flags |= _MOUNT_FLAGS[word]
        elif word in _FUSE_WORDS:
            data.append(word)
    text = ",".join(data).encode()
    if _libc.mount(os.fsencode(source), target, FSTYPE.encode(), flags, text) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def mount_overlay(source: str, target: bytes, options: str) -> None:
    """Mount the kernel's overlayfs with *options*, all of them its own (mount(2)).

    Raises ``OSError``.
    """
    if _libc.mount(os.fsencode(source), target, b"overlay", 0, os.fsencode(options)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def words_of_libfuse(words: Sequence[str]) -> list[str]:
    """Return those of *words* that libfuse and fusermount3 know in every version."""
    return [word for word in words if word not in _KERNEL_ONLY]


def _mount_by_program(target: bytes, source: str, words: Sequence[str]) -> int:
    """Let the set-uid fusermount3 mount; it sends the descriptor through a socket."""
    import socket  # noqa: PLC0415 - whoever mounts without its help need not wait for it

    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    options = ",".join([*words_of_libfuse(words), f"fsname={escaped}", "subtype=unionfs"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            theirs.set_inheritable(True)
            environment = {"_FUSE_COMMFD": str(theirs.fileno())}
            _run_fusermount(["-o", options, "--", os.fsdecode(target)], target, environment)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_DONTWAIT)
    if not descriptors:
        raise MountError(f"{os.fsdecode(target)}: fusermount3 sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _fusermount() -> str | None:
    """Return the program's path, as a shell finds it."""
    paths = [
        os.path.join(directory, name)
        for name in ("fusermount3", "fusermount")
        for directory in os.get_exec_path()
    ]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _run_fusermount(
    arguments: Sequence[str], target: bytes, environment: dict[str, str] | None = None
) -> None:
    """Run fusermount3, which must be there; `MountError` with its reason when it fails.

    Without `subprocess`, which takes longer to import than a mount to make, and which an
    unmount after long service could not import any more.
    """
    program = _fusermount()
    assert program is not None
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawn(
            program,
            [program, *arguments],
            {**os.environ, **(environment or {})},
            file_actions=[(os.POSIX_SPAWN_DUP2, writer, number) for number in (1, 2)],
        )
    except OSError as error:
        os.close(reader)
        raise MountError(f"{program}: {error.strerror}") from error
    finally:
        os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    failed = bool(said)
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: what it said must do
        failed = os.waitpid(pid, 0)[1] != 0
    if failed:
        raise MountError(f"{os.fsdecode(target)}: {_reason(said, target)}")


def _reason(said: str, target: bytes) -> str:
    """Return why fusermount3 failed: its last line, without what the caller says anyway."""
    lines = said.strip().splitlines() or ["fusermount3 failed"]
    reason = lines[-1].partition(": ")[2] or lines[-1]
    before, found, after = reason.rpartition(f"{os.fsdecode(target)}: ")
    return after if found and before else reason


def device_of(target: bytes) -> int | None:
    """Return the /dev/fuse that a caller has mounted already and gives as ``/dev/fd/N``."""
    number = target.removeprefix(b"/dev/fd/")
    return int(number) if number != target and number.isdigit() else None


def is_device(descriptor: int) -> bool:
    """Say whether *descriptor* is an open /dev/fuse."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEVICE_NUMBER


def entry_of(place: bytes) -> MountEntry | None:
    """Return the topmost mount on *place*, or the one behind the descriptor that it names."""
    descriptor = device_of(place)
    if descriptor is None:
        return mount_at(place)
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        # Linux 6.16 and newer say so.
        found = re.search(r"^fuse_connection:\s*(\d+)$", file.read(), re.MULTILINE)
    if found is None:
        return None
    return next((entry for entry in mounts() if entry.device == f"0:{found[1]}"), None)


def minor_of(target: bytes) -> int | None:
    """Return the minor device number of the mount on *target*, ``None`` without one."""
    entry = entry_of(target)
    return None if entry is None else int(entry.device.partition(":")[2])


def unmount_own(target: bytes) -> None:
    """Detach our own mount from *target*, if it is still what is topmost there."""
    entry = mount_at(target)
    if entry is not None and entry.kind == FSTYPE:
        with contextlib.suppress(MountError):
            unmount(target, lazy=True)


def unmount(target: bytes, *, lazy: bool = False) -> None:
    """Unmount what is topmost on *target*; *lazy* detaches it from users that it still has.

    umount2(2) where that is allowed, else fusermount3. Raises `MountError`.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(target, flags) == 0:
        return
    code = ctypes.get_errno()
    if code != errno.EPERM:
        cause = OSError(code, os.strerror(code))
        raise MountError(f"{os.fsdecode(target)}: {cause.strerror}") from cause
    if _fusermount() is None:
        raise MountError(f"{os.fsdecode(target)}: {os.strerror(code)}, and no fusermount3 in PATH")
    _run_fusermount(["-u", *(["-z"] if lazy else []), "--", os.fsdecode(target)], target)


def enter_namespace(name: str) -> None:
    """Move this process to the mount namespace of file or process id *name* (mount(8)'s -N).

    Raises `MountError`.
    """
    path = f"/proc/{name}/ns/mnt" if name.isdigit() else name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"namespace {name}: {error.strerror}") from error
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat("/proc/self/ns/mnt")):
            return
        if _libc.setns(descriptor, _CLONE_NEWNS) != 0:
            raise MountError(f"namespace {name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def allows_other_users(fuse_conf: str) -> bool:
    """Tell whether the text of /etc/fuse.conf lets ordinary users give ``allow_other``."""
    return any(line.strip() == "user_allow_other" for line in fuse_conf.splitlines())


def raise_readahead(minor: int | None, size: int) -> None:
    """Let the kernel read files ahead in requests of *size* bytes.

    The mount is that with the *minor* device number; ``None`` is none.
    """
    if minor is not None:
        path = f"/sys/class/bdi/0:{minor}/read_ahead_kb"
        # Without privilege it stays at the kernel's 128 KiB.
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
            file.write(f"{size // 1024}\n")


def may_pass_through() -> bool:
    """Say whether we have CAP_SYS_ADMIN over the machine, as registering files asks for."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
        with open("/proc/self/uid_map", encoding="ascii") as file:
            mapped = file.read().split()
    except OSError:
        return False
    is_capable = effective is not None and bool(int(effective[1], 16) & _CAP_SYS_ADMIN)
    return is_capable and mapped == ["0", "0", str(2**32 - 1)]


_CAP_SYS_ADMIN = 1 << 21


def leave_namespace() -> None:
    """Give this thread a mount namespace of its own, which ends with it; nobody else sees it.

    Raises `MountError`.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, _PRIVATE, None) != 0:
        raise MountError(f"mount namespace: {os.strerror(ctypes.get_errno())}")
