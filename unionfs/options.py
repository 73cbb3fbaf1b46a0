"""Mount options: what a union is made of and how it behaves.

`optwords` reads them from ``-o`` strings; `format_options` writes such a string.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from unionfs import optstring
from unionfs.errors import MountError, UsageError

#: Words for the FUSE mount, by what they decide: of one group the last word counts.
MOUNT_WORDS = {
    word: group
    for group, words in {
        "access": "allow_other noallow_other allow_root",
        "permissions": "default_permissions",
        "write": "ro rw",
        "dev": "dev nodev",
        "suid": "suid nosuid",
        "exec": "exec noexec",
        "atime": "atime noatime relatime norelatime strictatime nostrictatime",
        "diratime": "diratime nodiratime",
        "sync": "sync async",
        "dirsync": "dirsync",
    }.items()
    for word in words.split()
}

#: The words of `MOUNT_WORDS` that are no default of mount(2).
EFFECTIVE = frozenset(
    (
        *("allow_other", "allow_root", "dev", "suid", "nodev", "nosuid", "noexec", "noatime"),
        *("strictatime", "nodiratime", "sync", "dirsync"),
    )
)

#: A shorter timeout (seconds) is given by those who change layers while they are mounted.
_LONG_TIMEOUT = 3600.0


class IdRange(NamedTuple):
    """*length* ids from *disk* on, as layers have them, are shown from *shown* on."""

    disk: int
    shown: int
    length: int


class MountOptions(NamedTuple):
    """What a union is made of and how it behaves."""

    lowerdirs: tuple[bytes, ...] = ()
    """Topmost first; as given, never normalised as text."""
    upperdir: bytes | None = None
    workdir: bytes | None = None
    read_only: bool = False
    """``ro``; a union without an upper is read-only by itself."""
    volatile: bool = False
    redirect_dir: bool = True
    userxattr: bool = False
    """``user.overlay.*`` even where ``trusted.overlay.*`` could be had."""
    squash_to_uid: int | None = None
    squash_to_gid: int | None = None
    uidmapping: tuple[IdRange, ...] = ()
    """Without any, users are shown as layers have them."""
    gidmapping: tuple[IdRange, ...] = ()
    xattr_permissions: int = 0
    """Where owners and modes are kept: 0 in the inode, 1 and 2 in an xattr (`layer.override`)."""
    static_nlink: bool = False
    """Directories show one link."""
    noacl: bool = False
    """There are no POSIX ACLs, whatever the layers have."""
    noxattrs: bool = False
    """There are no extended attributes, whatever the layers have."""
    ino32_t: bool = False
    """Inode numbers fit 32 bits."""
    timeout: float = 86400.0
    """How long the kernel may keep entries and attributes, in seconds."""
    entry_timeout: float | None = None
    """The same for names alone; ``None`` is *timeout*."""
    negative_timeout: float | None = None
    """The same for names that are not there."""
    attr_timeout: float | None = None
    """The same for attributes."""
    passthrough: str = "auto"
    """Which files the kernel reads and writes without us: ``auto``, ``on`` or ``off``."""
    placement: str = "auto"
    """On which CPUs requests are taken: ``auto``, ``spread`` or ``off``."""
    session: str = "auto"
    debug: bool = False
    fsname: str = "unionfs"
    """The SOURCE that tables of mounts show."""
    fuse_options: tuple[str, ...] = ()
    """Words for the FUSE mount: ``allow_other``, ``nodev``, …"""

    def timeouts(self) -> tuple[float, float, float]:
        """Return the seconds for names, for names that are not there, and for attributes."""

        def chosen(seconds: float | None) -> float:
            return self.timeout if seconds is None else seconds

        return (
            chosen(self.entry_timeout),
            chosen(self.negative_timeout),
            chosen(self.attr_timeout),
        )

    @property
    def layers_change(self) -> bool:
        """Whether a timeout says that others change the layers while they are mounted."""
        return min(self.timeouts()) < _LONG_TIMEOUT


def format_options(options: MountOptions) -> str:
    """Return the ``-o`` string that `parse_options` reads as *options*."""
    parts = []
    if options.lowerdirs:
        layers = (optstring.escape(os.fsdecode(layer), also=":") for layer in options.lowerdirs)
        parts.append("lowerdir=" + ":".join(layers))
    for key in ("upperdir", "workdir"):
        path: bytes | None = getattr(options, key)
        if path is not None:
            parts.append(f"{key}={optstring.escape(os.fsdecode(path))}")
    parts += [key for key in _FLAGS if getattr(options, key)]
    if options.noxattrs:
        parts.append("noxattrs=1")
    for key in ("uidmapping", "gidmapping"):
        ranges: tuple[IdRange, ...] = getattr(options, key)
        if ranges:
            parts.append(f"{key}=" + ":".join(str(number) for one in ranges for number in one))
    if not options.redirect_dir:
        parts.append("redirect_dir=off")
    for key in ("squash_to_uid", "squash_to_gid"):
        if getattr(options, key) is not None:
            parts.append(f"{key}={getattr(options, key)}")
    for key in _TOLD_IF_CHANGED:
        value = getattr(options, key)
        if value != getattr(_DEFAULTS, key):
            parts.append(f"{key}={optstring.escape(str(value))}")
    return ",".join([*parts, *(["ro"] if options.read_only else []), *options.fuse_options])


_FLAGS = ("volatile", "userxattr", "static_nlink", "noacl", "ino32_t", "debug")
_DEFAULTS = MountOptions()
_TOLD_IF_CHANGED = (
    "xattr_permissions",
    "timeout",
    "entry_timeout",
    "negative_timeout",
    "attr_timeout",
    "passthrough",
    "placement",
    "session",
    "fsname",
)


def require_layers(options: MountOptions) -> None:
    """Raise `UsageError` unless *options* name what a union needs."""
    if not options.lowerdirs:
        raise UsageError("lowerdir= is missing")
    if options.upperdir is not None and options.workdir is None:
        shown = os.fsencode(options.upperdir).decode(errors="backslashreplace")
        raise UsageError(f"upperdir={shown}: workdir= is missing")


def with_defaults(
    options: MountOptions, *, privileged: bool, user_allow_other: bool
) -> MountOptions:
    """*options* with the `fuse_options` that the mount is really made with.

    What root mounts serves every user, as an overlayfs does. An ordinary user's mount
    serves that user, and others only where *user_allow_other* (of /etc/fuse.conf) lets it;
    raises `MountError` where it does not.
    """
    given = {MOUNT_WORDS[word]: word for word in options.fuse_options}
    if privileged:
        # "No user but root and me" is "no user but me" when I am root.
        wanted = {"access": "allow_other", "dev": "dev", "suid": "suid", "atime": "noatime"}
        given = {**wanted, **given}
        if given["access"] == "allow_root":
            given["access"] = "noallow_other"
    else:
        if given.get("access", "").startswith("allow_") and not user_allow_other:
            raise MountError(
                f"{given['access']}: needs the line user_allow_other in /etc/fuse.conf"
            )
        # mount.fuse3 always adds these two; fusermount3 refuses them to users anyway.
        given = {group: word for group, word in given.items() if word not in ("dev", "suid")}
    words = [word for word in given.values() if word in EFFECTIVE]
    if options.read_only or options.upperdir is None:
        words.append("ro")
    return options._replace(fuse_options=("default_permissions", *words))
