"""Mount options: ``-o`` strings, as overlayfs and fuse-overlayfs spell them <-> MountOptions.

Three kinds of words are known. Our own decide about the union. Those of the FUSE mount
(`_MOUNT_WORDS`) are handed on; of two opposites the later wins. The rest (`_IGNORED`)
belongs to mount(8), fstab, SELinux or a container engine and changes nothing here.

An unknown word is refused, or, where engines send words of their own, given back as a
warning. Never ignored are words that are nearly one of ours (a slip in ``upperdir`` would
give a read-only mount) and the ones of fuse-overlayfs that say who owns the files.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from unionfs import optstring
from unionfs.errors import MountError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_ID = 2**32 - 2
#: A shorter timeout (seconds) is given by those who change layers while they are mounted.
_LONG_TIMEOUT = 3600.0


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
    nfs_export: bool = False
    """File handles of the mount stay good over a restart."""
    userxattr: bool = False
    """``user.overlay.*`` even where ``trusted.overlay.*`` could be had."""
    squash_to_uid: int | None = None
    squash_to_gid: int | None = None
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


class ParsedOptions(NamedTuple):
    """What the ``-o`` strings of one call said."""

    options: MountOptions
    ignored: tuple[str, ...] = ()
    """A line about each word that was not understood and passed over."""
    remount: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words for the FUSE mount, by what they decide: of one group the last word counts.
_MOUNT_WORDS = {
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

#: The words of `_MOUNT_WORDS` that are no default of mount(2).
_EFFECTIVE = _words(
    "allow_other allow_root dev suid nodev nosuid noexec noatime strictatime nodiratime"
    " sync dirsync"
)

#: Words of others, known to change nothing here, whatever their value.
_IGNORED = _words(
    "auto noauto user nouser users owner group _netdev nofail defaults comment helper uhelper"
    " context fscontext defcontext rootcontext seclabel silent loud mand nomand iversion"
    " noiversion lazytime nolazytime symfollow nonempty subtype"
    " private shared slave unbindable rprivate rshared rslave runbindable"
    " kernel_cache splice_read splice_write splice_move"
)

#: Options of overlayfs that have one answer here; any other value is as an unknown option.
_SETTLED = {
    "index": ("on",),
    "xino": ("on", "auto"),
    "metacopy": ("off",),
    "verity": ("off",),
    "xattr_permissions": ("0",),
}

#: What overlayfs demands of other options before it takes ``nfs_export=on``.
_EXPORT_NEEDS = {"index": "on", "metacopy": "off"}

#: Options of fuse-overlayfs without which the files would show wrong owners.
_OWNERSHIP = ("uidmapping", "gidmapping", "xattr_permissions")


class _Reader:
    """Collects the fields of MountOptions from one option after the other."""

    def __init__(self, *, tolerant: bool) -> None:
        self.tolerant = tolerant
        self.fields: dict[str, Any] = {}
        self.words: dict[str, str] = {}
        self.ignored: list[str] = []
        self.squash_to_root = False
        self.remount = False
        #: What was said last of options that may exclude nfs_export=on, as in overlayfs.
        self.excludes_export: dict[str, str] = {}

    def read(self, key: str, value: str | None) -> None:
        """Take one option; `UsageError` when it cannot be taken."""
        if key in _FLAGS:
            if value is not None:
                raise UsageError(f"{key}={value}: {key} takes no value")
            _FLAGS[key](self)
        elif key in _VALUED:
            if not value:
                raise UsageError(f"{key}= needs a value")
            _VALUED[key](self, key, value)
        elif key in _MOUNT_WORDS and value is None:
            self.words[_MOUNT_WORDS[key]] = key
        elif key not in _IGNORED and not key.startswith(("x-", "X-")):
            self.unknown(key, value)

    def unknown(self, key: str, value: str | None) -> None:
        """Refuse *key*, or pass it over where that is allowed."""
        shown = key if value is None else f"{key}={value}"
        if key in _EXPORT_NEEDS:
            self.excludes_export[key] = "" if value == _EXPORT_NEEDS[key] else shown
        if key in _SETTLED and value in _SETTLED[key]:
            return
        if key in _OWNERSHIP:
            raise UsageError(f"{shown}: not supported, and files would show wrong owners without")
        if key in _SETTLED:
            reason = f"not supported ({key}={_SETTLED[key][0]} is)"
        else:
            own = optstring.nearest(key, _OWN)
            slip = optstring.distance(key, own) <= optstring.NEAR
            nearest = own if slip else optstring.nearest(key, _KNOWN)
            reason = "unknown option"
            if slip or optstring.resembles(key, nearest):
                reason += f", the nearest known one is {nearest}"
            if slip:
                raise UsageError(f"{shown}: {reason}")
        if not self.tolerant:
            raise UsageError(f"{shown}: {reason}")
        self.ignored.append(f"{shown}: ignored, {reason}")

    def finish(self) -> MountOptions:
        """Return the options, after the last one was read."""
        if self.squash_to_root:
            self.fields.setdefault("squash_to_uid", 0)
            self.fields.setdefault("squash_to_gid", 0)
        if self.fields.get("nfs_export") and (said := "".join(self.excludes_export.values())):
            raise UsageError(f"nfs_export=on,{said}: conflicting options")
        self.fields["read_only"] = self.words.pop("write", "rw") == "ro"
        return MountOptions(**self.fields, fuse_options=tuple(self.words.values()))


def _lowerdir(reader: _Reader, key: str, value: str) -> None:
    parts = optstring.split_layers(value)
    if "" in parts[1:-1]:
        raise UsageError(f"{key}={value}: data-only layers (after '::') are not supported")
    if "" in parts:
        raise UsageError(f"{key}={value}: an empty path before or after a colon")
    reader.fields["lowerdirs"] = tuple(os.fsencode(part) for part in parts)


def _one_more_lowerdir(reader: _Reader, _key: str, value: str) -> None:
    layer = os.fsencode(optstring.unescape(value))
    reader.fields["lowerdirs"] = (*reader.fields.get("lowerdirs", ()), layer)


def _path(reader: _Reader, key: str, value: str) -> None:
    reader.fields[key] = os.fsencode(optstring.unescape(value))


def _text(reader: _Reader, key: str, value: str) -> None:
    reader.fields[key] = optstring.unescape(value)


def _redirect_dir(reader: _Reader, key: str, value: str) -> None:
    # "follow" is what off does here as in the kernel: redirects on disk count, none are made.
    choices = {"on": True, "off": False, "follow": False}
    if value not in choices:
        raise UsageError(f"{key}={value}: redirect_dir is on, off or follow")
    reader.fields["redirect_dir"] = choices[value]


def _nfs_export(reader: _Reader, key: str, value: str) -> None:
    _choice("on", "off")(reader, key, value)
    reader.fields[key] = value == "on"


def _fsync(reader: _Reader, key: str, value: str) -> None:
    choices = {"1": False, "auto": False, "0": True, "volatile": True}
    if value not in choices:
        raise UsageError(f"{key}={value}: fsync is 0 (volatile) or 1 (auto)")
    reader.fields["volatile"] = choices[value]


def _owner(reader: _Reader, key: str, value: str) -> None:
    if not (value.isascii() and value.isdigit() and int(value) <= _MAX_ID):
        raise UsageError(f"{key}={value}: not a number from 0 to {_MAX_ID}")
    reader.fields[key] = int(value)


def _timeout(reader: _Reader, key: str, value: str) -> None:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{key}={value}: not a number of seconds")
    reader.fields[key] = seconds


def _choice(*choices: str) -> Callable[[_Reader, str, str], None]:
    def read(reader: _Reader, key: str, value: str) -> None:
        if value not in choices:
            raise UsageError(f"{key}={value}: {key} is {', '.join(choices[:-1])} or {choices[-1]}")
        reader.fields[key] = value

    return read


def _set(name: str, value: Any = True) -> Callable[[_Reader], None]:
    return lambda reader: reader.fields.__setitem__(name, value)


_FLAGS: dict[str, Callable[[_Reader], None]] = {
    "volatile": _set("volatile"),
    "userxattr": _set("userxattr"),
    "debug": _set("debug"),
    "squash_to_root": lambda reader: setattr(reader, "squash_to_root", True),
    "remount": lambda reader: setattr(reader, "remount", True),
}
_VALUED: dict[str, Callable[[_Reader, str, str], None]] = {
    "lowerdir": _lowerdir,
    "lowerdir+": _one_more_lowerdir,
    "upperdir": _path,
    "workdir": _path,
    "redirect_dir": _redirect_dir,
    "nfs_export": _nfs_export,
    "fsync": _fsync,
    "squash_to_uid": _owner,
    "squash_to_gid": _owner,
    "timeout": _timeout,
    "entry_timeout": _timeout,
    "negative_timeout": _timeout,
    "attr_timeout": _timeout,
    "passthrough": _choice("auto", "on", "off"),
    "placement": _choice("auto", "spread", "off"),
    "session": _text,
    "fsname": _text,
}
_OWN = frozenset({*_FLAGS, *_VALUED, *_SETTLED, *_OWNERSHIP})
_KNOWN = _OWN | frozenset(_MOUNT_WORDS)


def parse_options(
    strings: Iterable[str], *, tolerant: bool = False, source: str | None = None
) -> ParsedOptions:
    """Read the ``-o`` *strings* of one call; of an option given twice the last counts.

    *tolerant* passes over unknown words and says so in the result; *source* is what the
    command line names as the thing mounted. Raises `UsageError`.
    """
    reader = _Reader(tolerant=tolerant)
    for text in strings:
        for key, value in optstring.split_options(text):
            reader.read(key, value)
    if source:
        reader.fields["fsname"] = source
    return ParsedOptions(reader.finish(), tuple(reader.ignored), reader.remount)


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
    parts += [key for key in ("volatile", "userxattr", "debug") if getattr(options, key)]
    if not options.redirect_dir:
        parts.append("redirect_dir=off")
    if options.nfs_export:
        parts.append("nfs_export=on")
    for key in ("squash_to_uid", "squash_to_gid"):
        if getattr(options, key) is not None:
            parts.append(f"{key}={getattr(options, key)}")
    for key in _TOLD_IF_CHANGED:
        value = getattr(options, key)
        if value != getattr(_DEFAULTS, key):
            parts.append(f"{key}={optstring.escape(str(value))}")
    return ",".join([*parts, *(["ro"] if options.read_only else []), *options.fuse_options])


_DEFAULTS = MountOptions()
_TOLD_IF_CHANGED = (
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
    given = {_MOUNT_WORDS[word]: word for word in options.fuse_options}
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
    words = [word for word in given.values() if word in _EFFECTIVE]
    if options.read_only or options.upperdir is None:
        words.append("ro")
    return options._replace(fuse_options=("default_permissions", *words))
