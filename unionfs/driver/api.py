"""The storage-driver API: what every driver promises, in containerd's words.

A driver keeps *snapshots* of directory trees. A snapshot has a *key* and is of one kind:

- *active*: writable, made by `Driver.prepare`;
- *committed*: complete and unchangeable, made out of an active one by `Driver.commit`,
  which calls the key a *name*. Only a committed snapshot can be a *parent*;
- *view*: a read-only look at a committed one, made by `Driver.view`.

A key is any non-empty string without NUL, slashes and blanks included, and names one
snapshot, whatever its kind. A snapshot starts with its parent's tree, or with an empty
directory (owned by the maker, mode 0755) without a parent. What is changed in it no other
snapshot sees. All of types, modes, owners, times, xattrs, hard links and holes are kept.

To import a layer: ``prepare`` on top of the parent, mount what `Driver.mounts` tells, write,
unmount, ``commit``. To run something: ``prepare`` on top of an image, mount, run, unmount,
and ``remove`` or ``commit``.

**Mounting.** A driver says what to mount and mounts nothing for its users.
`Driver.mounts` may start processes and attach devices; `Driver.release` gives them back
and keeps the snapshot. A snapshot whose mounts nobody asked for has neither.

**Atomic.** Every verb happens whole or not at all, for whoever looks and for a process
killed at any point. What a crash leaves is garbage that no key leads to, which `cleanup`
removes. A verb that raises has changed nothing.

**Concurrent.** Any number of threads and processes may use one driver's home at once. Two
that make one key: one of them gets `AlreadyExistsError`.

**Errors** are those of the tree in `unionfs.errors`: `NotFoundError`, `AlreadyExistsError`,
`InvalidArgumentError`, `FailedPreconditionError`, `UnsupportedError`, `FaultyError`; each
method names which. Besides, any may raise ``OSError`` from the file system: ENOSPC for a
full disk or pool, EIO, EROFS, EACCES.

Other programs' drivers are found by the entry point group ``unionfs.drivers``: see
`unionfs.driver.registry`.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from unionfs.errors import UnsupportedError

if TYPE_CHECKING:
    from unionfs.union.changes import Change

#: The most bytes that the key and the value of one label have together, as in containerd.
LABEL_LIMIT = 4096


class Kind(enum.Enum):
    """What can be done with a snapshot."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


class Info(NamedTuple):
    """What is known of a snapshot without looking into it."""

    key: str
    """The key, or the name of a committed one."""
    kind: Kind
    parent: str
    """The parent's name, empty without one."""
    labels: Mapping[str, str]
    created: int
    """When it was made, in nanoseconds since 1970; of a committed one: when committed."""
    updated: int
    """When its labels were last changed, likewise."""
    size_limit: int | None = None
    """The bytes that its tree may have, ``None`` for no limit of its own."""


class Usage(NamedTuple):
    """What a snapshot itself takes of the disk, without its parents."""

    size: int
    """Bytes on the disk: blocks, not lengths."""
    inodes: int
    """Files and directories of its own; 0 where the driver cannot tell without mounting."""


class Mount(NamedTuple):
    """One mount, as mount(8) takes it: ``mount -t TYPE -o OPTIONS SOURCE TARGET``."""

    type: str
    """``bind``, ``overlay``, ``ext4``, …, or ``fuse3.unionfs``, which is this union."""
    source: str
    options: tuple[str, ...]
    """Each as mount(8) spells it, ``X-mount.subdir=`` for a directory inside included."""


#: The type of a mount that is this union, and of all that stack layers.
UNION = "fuse3.unionfs"
STACKED = ("overlay", UNION)

_BIND_WORDS = frozenset({"bind", "rbind", "rw"})


def plain_directory(mounts: Sequence[Mount], *, for_reading: bool = False) -> str | None:
    """Return the directory that *mounts* show as it is, if there is no need to mount.

    One whose mount is read-only will do *for_reading* alone.
    """
    known = _BIND_WORDS | {"ro"} if for_reading else _BIND_WORDS
    match mounts:
        case [Mount("bind", source, options)] if known.issuperset(options):
            return source
        case _:
            return None


class Capabilities(NamedTuple):
    """What a driver can do beyond what all can."""

    diff: bool = False
    """It knows what a snapshot changes, without comparing trees."""
    quota: bool = False
    """It keeps a snapshot within a size: `Driver.prepare` takes one."""
    live_snapshot: bool = False
    """`Driver.capture` takes a consistent state while the snapshot is mounted and written."""
    needs_root: bool = False


class Driver(ABC):
    """A storage driver, opened on a home directory of its own. See the module for the words."""

    #: What ``--driver`` calls it.
    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    #: The options that `open` takes, each with a line about what it means.
    options: ClassVar[Mapping[str, str]] = {}

    @classmethod
    @abstractmethod
    def open(cls, home: str, options: Mapping[str, str]) -> Self:
        """Open, and make at the first time, the driver's data in the directory *home*.

        Raises `UsageError` for an option that is not known or has no such value,
        `UnsupportedError` where this driver cannot work (no root, a missing program, a file
        system that cannot), `FailedPreconditionError` for data of a newer version, which
        stays untouched.
        """

    @abstractmethod
    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> Info:
        """Make the active snapshot *key* on top of the committed *parent*.

        *size* limits its tree to so many bytes: what would exceed it meets ENOSPC; by default
        the parent's limit holds. The root directory takes the parent's owner and mode.

        Raises `AlreadyExistsError` (*key*), `NotFoundError` (*parent*),
        `InvalidArgumentError` for a *parent* that is not committed, a malformed key or label,
        or a *size* below the parent's; `UnsupportedError` for a *size* without ``quota``.
        """

    @abstractmethod
    def view(self, key: str, parent: str, *, labels: Mapping[str, str] | None = None) -> Info:
        """Make the read-only snapshot *key* of the committed *parent*. Raises as `prepare`."""

    @abstractmethod
    def mounts(self, key: str) -> Sequence[Mount]:
        """Return what to mount on one place, in this order, to have the tree of *key* there.

        Repeatable: called again it tells the same, or starts again what is gone (after a
        reboot, or the end of a process that serves it).

        Raises `NotFoundError`, `FailedPreconditionError` for a committed snapshot,
        `FaultyError` for one whose data are not to be trusted.
        """

    @abstractmethod
    def release(self, key: str) -> None:
        """Give back the devices and processes that `mounts` took; *key* itself stays.

        Call it when nothing of *key* is mounted any more. Does nothing where nothing was taken.
        Raises `NotFoundError`, and `FailedPreconditionError` while it is mounted.
        """

    @abstractmethod
    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        """Make the active snapshot *key* the committed *name*; *key* is free again.

        What was written before is on the disk when this returns. Labels are those given, or
        without *labels* those of *key*.

        Raises `NotFoundError`, `AlreadyExistsError` (*name*), and `FailedPreconditionError` when
        *key* is not active, or mounted. Where a bind of its directory is all that is mounted, a
        driver may make that read-only instead.
        """

    def capture(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        """Make a committed snapshot *name* of what *key* is now; *key* stays active.

        *key* may have *name* as its parent afterwards. With ``live_snapshot`` *key* may be
        mounted and written meanwhile: *name* is its state at one point in time, with all
        that was synced before. Without, `FailedPreconditionError` while it is mounted.

        Raises as `commit`.
        """
        raise UnsupportedError(f"the driver {self.name} cannot capture {key}")

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the snapshot *key*, of any kind, and give its space back.

        Raises `NotFoundError`, and `FailedPreconditionError` when it is somebody's parent or
        mounted.
        """

    @abstractmethod
    def stat(self, key: str) -> Info:
        """Return what is known of *key*. Raises `NotFoundError`."""

    @abstractmethod
    def update(self, key: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        """Set *labels* of *key*, ``None`` removes one; *replace* removes all others.

        Raises `NotFoundError`, `InvalidArgumentError`.
        """

    @abstractmethod
    def usage(self, key: str) -> Usage:
        """Return what *key* takes of the disk. Raises `NotFoundError`."""

    @abstractmethod
    def walk(self) -> Iterator[Info]:
        """Yield every snapshot, parents before their children, as of one point in time."""

    def changes(self, key: str) -> Iterator[Change]:
        """Yield what *key* changes of its parent, each directory before its entries.

        Raises `NotFoundError`; `UnsupportedError` without ``diff``: then two trees that are
        mounted must be compared.
        """
        raise UnsupportedError(f"the driver {self.name} cannot tell the changes of {key}")

    @abstractmethod
    def cleanup(self) -> Sequence[str]:
        """Remove what no key leads to: left by crashes. Return the paths that are gone.

        May run beside all other verbs.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what the object holds. Snapshots and what serves them stay; twice is fine."""
