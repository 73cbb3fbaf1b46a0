"""The file systems in block devices: made, mounted, looked after.

What is shown of one is the directory `ROOT` in it, so that nothing of its making is seen
(``lost+found``). What must be mounted for a moment is mounted in a mount namespace of a
process of its own, which nobody sees and which ends with that process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from unionfs.driver import programs
from unionfs.errors import FaultyError, StoreError

ROOT: Final = "root"
_MIB: Final = 1 << 20

#: Runs ``$5`` with the file system mounted: type, options, device and directory come first.
_SCRIPT: Final = 'mount -t "$1" -o "$2" -- "$3" "$4"; eval "$5"; umount -- "$4"'
#: Thaws when its input ends, also because whoever started it was killed.
_FREEZE: Final = (
    'fsfreeze -u "$4" 2>/dev/null || :; fsfreeze -f "$4"; echo frozen; read -r _ || :;'
    ' fsfreeze -u "$4"'
)


class FileSystem(ABC):
    """One kind of file system; *mountpoint* is an empty directory to mount on for a moment."""

    name: ClassVar[str]
    #: Bytes of the smallest one.
    minimum: ClassVar[int]
    #: What it is mounted with to be written, and to be only looked at.
    writable: ClassVar[tuple[str, ...]]
    read_only: ClassVar[tuple[str, ...]]
    programs: ClassVar[tuple[str, ...]]

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint

    def require_programs(self) -> None:
        """Raise `UnsupportedError` where a program is missing that it needs."""
        programs.require("mount", "unshare", "fsfreeze", *self.programs)

    @abstractmethod
    def format(self, device: str, size: int) -> None:
        """Make an empty one of *size* bytes on *device*, with nothing left to do later."""

    @abstractmethod
    def is_clean(self, device: str) -> bool:
        """Say whether *device*, not mounted, was unmounted with all in its place."""

    @abstractmethod
    def grow(self, device: str) -> None:
        """Let it have all of *device*, which is not mounted."""

    def make(self, device: str, size: int) -> None:
        """Make one with the empty directory `ROOT`."""
        self.format(device, size)
        # Whatever the umask says, and without a default ACL or set-group-ID bit from above.
        self._mounted(
            device, f'mkdir -m 755 "$4/{ROOT}"; chown {os.geteuid()}:{os.getegid()} "$4/{ROOT}"'
        )

    def repair(self, device: str) -> None:
        """Write what is in its journal into its place; *device* is not mounted.

        Raises `FaultyError` when that is not enough, `ProgramError` when it cannot be done now.
        """
        self._mounted(device, ":")

    def mount_options(self, *, read_only: bool) -> tuple[str, ...]:
        """Return what mount(8) is told to show the tree in it."""
        words = ("ro", *self.read_only) if read_only else ("rw", *self.writable)
        return (*words, f"X-mount.subdir={ROOT}")

    def _mounted(self, device: str, script: str) -> None:
        programs.run(self._arguments(device, script))

    def _arguments(self, device: str, script: str) -> Sequence[str]:
        options = ",".join(("rw", *self.writable))
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec", _SCRIPT, "sh"),
            *(self.name, options, device, self._mountpoint, script),
        ]

    @contextlib.contextmanager
    def frozen(self, device: str) -> Iterator[None]:
        """Hold all writers up, with all that they wrote on *device*, and its journal empty.

        Whoever is killed in the block lets them go on. Raises `StoreError`.
        """
        with subprocess.Popen(
            self._arguments(device, _FREEZE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                if process.stdout.readline() != "frozen\n":
                    said = process.stderr.read().strip() or "unshare: failed"
                    raise StoreError(f"{device}: cannot freeze it: {said.splitlines()[-1]}")
                yield
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        if process.returncode != 0:
            raise StoreError(f"{device}: cannot thaw it: run fsfreeze -u where it is mounted")

    def thaw(self, device: str) -> None:
        """Let writers go on that nobody holds up any more but the file system itself."""
        with contextlib.suppress(programs.ProgramError):
            self._mounted(device, 'fsfreeze -u "$4"')


class Ext4(FileSystem):
    """See ext4(5)."""

    name = "ext4"
    minimum = 16 * _MIB
    writable = ("noatime", "discard")
    read_only = ("noload",)
    programs = ("mkfs.ext4", "e2fsck", "resize2fs")

    #: Its superblock, and where in it these stand: state and incompatible features.
    _SUPERBLOCK: Final = 1024
    _STATE: Final = slice(58, 60)
    _INCOMPATIBLE: Final = slice(96, 100)
    _VALID: Final = 1
    _NEEDS_RECOVERY: Final = 4

    def format(self, device: str, size: int) -> None:
        # What the journal takes a snapshot pays again; 16 MiB are as fast as more.
        journal = min(16, max(4, size // _MIB // 16))
        layout = ("-b", "4096", "-m", "0", "-J", f"size={journal}")
        now = "lazy_itable_init=0,lazy_journal_init=0"
        programs.run(["mkfs.ext4", "-q", "-F", *layout, "-E", now, device])

    def is_clean(self, device: str) -> bool:
        with open(device, "rb", buffering=0) as file:
            superblock = os.pread(file.fileno(), 1024, self._SUPERBLOCK)
        state = int.from_bytes(superblock[self._STATE], "little")
        features = int.from_bytes(superblock[self._INCOMPATIBLE], "little")
        return state == self._VALID and not features & self._NEEDS_RECOVERY

    def repair(self, device: str) -> None:
        try:
            programs.run(["e2fsck", "-p", device])
        except programs.ProgramError as error:
            # 1 and 2 are what it repaired, 4 what is for a person, the rest is no finding.
            if error.status & 4:
                raise FaultyError(f"{device}: {error}") from error
            if error.status not in {1, 2, 3}:
                raise

    def grow(self, device: str) -> None:
        # It is clean, and need not be checked first. Mounted, it would need CAP_SYS_RESOURCE.
        programs.run(["resize2fs", "-f", device])


class Xfs(FileSystem):
    """See xfs(5)."""

    name = "xfs"
    minimum = 300 * _MIB
    writable = ("noatime", "discard", "nouuid")
    read_only = ("norecovery", "nouuid")
    programs = ("mkfs.xfs", "xfs_growfs")

    def format(self, device: str, size: int) -> None:
        programs.run(["mkfs.xfs", "-q", "-f", device])

    def is_clean(self, device: str) -> bool:
        return False  # only its log tells, and mounting it is the way to read that

    def grow(self, device: str) -> None:
        self._mounted(device, 'xfs_growfs "$4" >/dev/null')


KINDS: Final[dict[str, type[FileSystem]]] = {kind.name: kind for kind in (Ext4, Xfs)}
