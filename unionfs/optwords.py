"""The words of ``-o`` strings, as overlayfs and fuse-overlayfs spell them, read into MountOptions.

Three kinds of words are known. Our own decide about the union. Those of the FUSE mount
(`MOUNT_WORDS`) are handed on; of two opposites the later wins. The rest (`_IGNORED`)
belongs to mount(8), fstab, SELinux, libfuse or a container engine and changes nothing here.

An unknown word is refused, or, where engines send words of their own, given back as a
warning. Never ignored are words that are nearly one of ours (a slip in ``upperdir`` would
give a read-only mount), but by who is called as fuse-overlayfs, which ignores them.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from unionfs import optstring
from unionfs.errors import UsageError
from unionfs.options import MOUNT_WORDS, IdRange, MountOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_ID = 2**32 - 2


class ParsedOptions(NamedTuple):
    """What the ``-o`` strings of one call said."""

    options: MountOptions
    ignored: tuple[str, ...] = ()
    """A line about each word that was not understood and passed over, or the word alone."""
    remount: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words of others, known to change nothing here, whatever their value.
_IGNORED = _words(
    "auto noauto user nouser users owner group _netdev nofail defaults comment helper uhelper"
    " context fscontext defcontext rootcontext seclabel silent loud mand nomand iversion"
    " noiversion lazytime nolazytime symfollow nonempty subtype"
    " private shared slave unbindable rprivate rshared rslave runbindable"
    " kernel_cache splice_read splice_write splice_move clone_fd max_idle_threads max_threads"
    " max_write threaded writeback fast_ino fast_ino_check"
)

#: Options of overlayfs that have one answer here; any other value is as an unknown option.
_SETTLED = {
    "index": ("on",),
    "xino": ("on", "auto", "off"),
    "metacopy": ("off",),
    "nfs_export": ("off",),
    "verity": ("off",),
}


class _Reader:
    """Collects the fields of MountOptions from one option after the other."""

    def __init__(self, *, tolerant: bool, as_fuse_overlayfs: bool) -> None:
        self.tolerant = tolerant
        self.as_fuse_overlayfs = as_fuse_overlayfs
        self.fields: dict[str, Any] = {}
        self.words: dict[str, str] = {}
        self.ignored: list[str] = []
        self.squash_to_root = False
        self.remount = False

    def read(self, key: str, value: str | None) -> None:
        """Take one option; `UsageError` when it cannot be taken."""
        if key in MOUNT_WORDS and value is None:
            self.words[MOUNT_WORDS[key]] = key
        elif self._is_ours(key, value):
            self._own(key, value)
        elif key not in _IGNORED and not key.startswith(("x-", "X-")):
            self.unknown(key, value)

    def _is_ours(self, key: str, value: str | None) -> bool:
        """Say whether *key* is to be taken as an option of ours, or refused as one."""
        if self.as_fuse_overlayfs:
            # There it is another, and unknown, that lacks a value or has one.
            return key in (_FLAGS if value is None else _VALUED)
        return key in _FLAGS or key in _VALUED

    def _own(self, key: str, value: str | None) -> None:
        if key in _FLAGS:
            if value is not None:
                raise UsageError(f"{key}={value}: {key} takes no value")
            _FLAGS[key](self)
            return
        if not value:
            raise UsageError(f"{key}= needs a value")
        _VALUED[key](self, key, value)

    def unknown(self, key: str, value: str | None) -> None:
        """Refuse *key*, or pass it over where that is allowed."""
        shown = key if value is None else f"{key}={value}"
        if key in _SETTLED and value in _SETTLED[key]:
            return
        if self.as_fuse_overlayfs:
            self.ignored.append(shown)
            return
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
        self.fields["read_only"] = self.words.pop("write", "rw") == "ro"
        return MountOptions(**self.fields, fuse_options=tuple(self.words.values()))


def _lowerdir(reader: _Reader, key: str, value: str) -> None:
    parts = optstring.split_layers(value)
    if reader.as_fuse_overlayfs:
        parts = [part for part in parts if part]
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


def _fsync(reader: _Reader, key: str, value: str) -> None:
    # fuse-overlayfs calls it sync, too.
    choices = {"1": False, "auto": False, "0": True, "volatile": True}
    if value not in choices:
        raise UsageError(f"{key}={value}: {key} is 0 (volatile) or 1 (auto)")
    reader.fields["volatile"] = choices[value]


def _owner(reader: _Reader, key: str, value: str) -> None:
    if not (value.isascii() and value.isdigit() and int(value) <= _MAX_ID):
        raise UsageError(f"{key}={value}: not a number from 0 to {_MAX_ID}")
    reader.fields[key] = int(value)


def _mapping(reader: _Reader, key: str, value: str) -> None:
    """Read ranges as (id on disk, id shown, length), one after the other.

    Engines put a colon before the first.
    """
    words = [word for word in value.split(":") if word]
    if len(words) % 3 or not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"{key}={value}: not triples of numbers DISK:SHOWN:LENGTH")
    numbers = [int(word) for word in words]
    ranges = tuple(IdRange(*numbers[i : i + 3]) for i in range(0, len(numbers), 3))
    for disk, shown, length in ranges:
        if max(disk, shown) + length > _MAX_ID + 1:
            raise UsageError(f"{key}={value}: {disk}:{shown}:{length} goes beyond {_MAX_ID}")
    reader.fields[key] = ranges


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


def _number(*choices: str) -> Callable[[_Reader, str, str], None]:
    def read(reader: _Reader, key: str, value: str) -> None:
        _choice(*choices)(reader, key, value)
        reader.fields[key] = int(value)

    return read


def _switch(reader: _Reader, key: str, value: str) -> None:
    _choice("0", "1")(reader, key, value)
    reader.fields[key] = value == "1"


def _set(name: str, value: Any = True) -> Callable[[_Reader], None]:
    return lambda reader: reader.fields.__setitem__(name, value)


_FLAGS: dict[str, Callable[[_Reader], None]] = {
    "volatile": _set("volatile"),
    "userxattr": _set("userxattr"),
    "static_nlink": _set("static_nlink"),
    "noacl": _set("noacl"),
    "ino32_t": _set("ino32_t"),
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
    "fsync": _fsync,
    "sync": _fsync,
    "uidmapping": _mapping,
    "gidmapping": _mapping,
    "xattr_permissions": _number("0", "1", "2"),
    "noxattrs": _switch,
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
_OWN = frozenset({*_FLAGS, *_VALUED, *_SETTLED}) - MOUNT_WORDS.keys()
_KNOWN = _OWN | frozenset(MOUNT_WORDS)


def parse_options(
    strings: Iterable[str],
    *,
    tolerant: bool = False,
    as_fuse_overlayfs: bool = False,
    source: str | None = None,
) -> ParsedOptions:
    """Read the ``-o`` *strings* of one call; of an option given twice the last counts.

    *tolerant* passes over unknown words and says why in the result; *as_fuse_overlayfs* does
    so whatever they resemble, and gives them back as they are. *source* is what the command
    line names as the thing mounted. Raises `UsageError`.
    """
    reader = _Reader(tolerant=tolerant, as_fuse_overlayfs=as_fuse_overlayfs)
    for text in strings:
        for key, value in optstring.split_options(text):
            reader.read(key, value)
    if source:
        reader.fields["fsname"] = source
    return ParsedOptions(reader.finish(), tuple(reader.ignored), reader.remount)
