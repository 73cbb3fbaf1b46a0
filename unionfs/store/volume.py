"""What a volume is called and made of, in Docker's words and by Docker's rules.

A volume's options say where its files are. Those of Docker's local driver (``type``, ``o`` and
``device``) name anything that mount(8) mounts; without them the files are a snapshot of the
storage driver's, ``size`` limits it, and ``from`` lets it begin as something that is there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from unionfs import optstring, sizes
from unionfs.driver.api import UNION, Mount
from unionfs.errors import InvalidArgumentError

#: The label of a volume that nobody gave a name, as Docker has it.
ANONYMOUS: Final = "com.docker.volume.anonymous"
#: The label of snapshots that are volumes' and nobody else's: which volume's.
LABEL: Final = "unionfs.volume"

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NAME_MAX: Final = 255
_KNOWN: Final = ("type", "o", "device", "size", "from")
#: What an option makes no sense without.
_NEEDS: Final = {"device": ("type",), "type": ("device",), "o": ("type",)}
_IN_MEMORY: Final = ("tmpfs", "ramfs")
_NFS: Final = ("nfs", "nfs4")
_BINDS: Final = ("bind", "rbind")


class Volume(NamedTuple):
    """A volume, as the store remembers it."""

    name: str
    driver: str
    """The storage driver that keeps its files, or would if they were not elsewhere."""
    options: Mapping[str, str]
    """As they were given when it was made; of ``from`` what was meant by it."""
    labels: Mapping[str, str]
    created: int
    """In nanoseconds since 1970."""
    data: str
    """The key of the active snapshot with its files, empty where these are elsewhere."""
    holds: int
    """How often it was begun to be used."""

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody gave it a name."""
        return ANONYMOUS in self.labels

    @property
    def base(self) -> str | None:
        """The directory that it is a view of, ``None`` where it is none of a directory."""
        found = self.options.get("from", "")
        return found if os.path.isabs(found) else None

    @property
    def created_text(self) -> str:
        """When it was made, as Docker writes it."""
        moment = datetime.fromtimestamp(self.created // 1_000_000_000, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def check_name(name: str) -> None:
    """Raise `InvalidArgumentError` unless *name* can be a volume's."""
    if len(os.fsencode(name)) == 1:
        raise InvalidArgumentError(
            f"create {name}: volume name is too short, names should be at least two alphanumeric"
            " characters"
        )
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed; a directory is given by its absolute path'
        )
    if len(name) > _NAME_MAX:
        raise InvalidArgumentError(f"create {name}: longer than {_NAME_MAX} characters")


def check_options(options: Mapping[str, str]) -> None:
    """Raise `InvalidArgumentError` for *options* that make no volume, alone or together."""
    for name, value in options.items():
        if name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise InvalidArgumentError(f'invalid option: "{name}"; there are {known}')
        if "\0" in value:
            raise InvalidArgumentError(f"{name}={value!r}: a NUL in it")
    kind = options.get("type", "")
    for name in options:
        for needed in _NEEDS.get(name, ()):
            if needed not in options and not (needed == "device" and kind in _IN_MEMORY):
                raise InvalidArgumentError(f'missing required option: "{needed}"')
    if "type" not in options:
        size_limit(options)
        return
    if "from" in options:
        raise InvalidArgumentError("from= and type= exclude each other: the files are in one place")
    if "size" in options and kind != "tmpfs":
        raise InvalidArgumentError(f"size= limits no volume of type={kind}")
    foreign_mount(options)


def size_limit(options: Mapping[str, str]) -> int | None:
    """Return the bytes that ``size`` means, as `unionfs.sizes` reads it.

    ``None`` without it. Raises `InvalidArgumentError`.
    """
    text = options.get("size")
    if text is None:
        return None
    size = sizes.parse(text)
    if not size:
        raise InvalidArgumentError(f"size={text}: {sizes.NOT_A_SIZE}")
    return size


def foreign_mount(options: Mapping[str, str]) -> Mount | None:
    """Return what is mounted by ``type``, ``o`` and ``device``, ``None`` without them.

    Raises `InvalidArgumentError`.
    """
    if "type" not in options:
        return None
    kind, device = options["type"], options.get("device", options["type"])
    words = [word for word in options.get("o", "").split(",") if word]
    if kind in _NFS:
        return _nfs_mount(kind, device, words)
    if any(word in _BINDS for word in words):
        if not os.path.isabs(device):
            raise InvalidArgumentError(f"device={device}: give the absolute path of a directory")
        return Mount("bind", device, tuple(words))
    if kind in ("none", ""):
        raise InvalidArgumentError(f"type={kind or '(empty)'}: needs o=bind")
    if kind == "tmpfs" and (size := size_limit(options)) is not None:
        words.append(f"size={size}")
    return Mount(kind, device, tuple(words))


def _nfs_mount(kind: str, device: str, words: list[str]) -> Mount:
    """Return the mount as mount.nfs(8) takes it: the server stands in the source."""
    server, colon, path = device.rpartition(":/")
    if not colon:
        raise InvalidArgumentError(f"device={device}: give :/PATH of the server, or SERVER:/PATH")
    addresses = [word.partition("=")[2] for word in words if word.startswith("addr=")]
    if not (server or addresses):
        raise InvalidArgumentError(f"device={device}: no server; give o=addr=SERVER")
    rest = tuple(word for word in words if not word.startswith("addr="))
    return Mount(kind, f"{server or _host(addresses[-1])}:/{path}", rest)


def _host(address: str) -> str:
    try:
        is_six = ipaddress.ip_address(address).version == 6
    except ValueError:
        is_six = False  # a name
    return f"[{address}]" if is_six else address


def view_of(base: str, upper: str, work: str) -> Mount:
    """Return the mount that shows the directory *base*, with changes of its own in *upper*."""
    options = (
        f"lowerdir={optstring.escape(base, also=':')}",
        f"upperdir={optstring.escape(upper)}",
        f"workdir={optstring.escape(work)}",
    )
    return Mount(UNION, "overlay", options)
