"""A pool of dm-thin that is made of two devices, and made again after each boot.

Docker's devicemapper driver had that as ``dm.datadev`` and ``dm.metadatadev``. The pool is named
after the home of whose it is, and stays until the machine is turned off.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Final

from unionfs.driver import programs
from unionfs.driver.block.locks import Locks
from unionfs.errors import FailedPreconditionError, UsageError

_SECTOR: Final = 512
#: 64 KiB, the least that dm-thin has: what a change takes. An error at once where it is full.
_TABLE: Final = "128 0 1 error_if_no_space"
#: The first block of metadata, and the magic number in it (drivers/md/dm-thin-metadata.c).
_BLOCK: Final = 4096
_MAGIC: Final = slice(32, 40)
_THIN: Final = 27022010


def pool_of(data: str, metadata: str, home: str) -> str:
    """Return the path of the pool of the devices *data* and *metadata*, made if it is not there.

    New devices are empty, or `FailedPreconditionError` is raised; `UsageError` for what is no
    block device, `StoreError` where there can be no pool.
    """
    numbers = [_number("metadatadev", metadata), _number("datadev", data)]
    name = f"unionfs-{hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:16]}"
    with Locks(os.path.join(home, "devices.lock")).hold(0):
        if (used := _devices_of(name)) is None:
            if not _has_pool(metadata):
                _require_empty("datadev", data)
            sectors = programs.run(["blockdev", "--getsz", data]).strip()
            table = f"0 {sectors} thin-pool {metadata} {data} {_TABLE}"
            programs.run(["dmsetup", "create", name, "--table", table])
        elif used != numbers:
            raise FailedPreconditionError(
                f"/dev/mapper/{name}: this store's pool is there, of other devices"
            )
    return f"/dev/mapper/{name}"


def _number(option: str, path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"{option}={path}: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{option}={path}: is no block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _devices_of(name: str) -> list[str] | None:
    """Return the numbers of the devices of the pool *name*, metadata first, if there is one."""
    try:
        words = programs.run(["dmsetup", "table", name]).split()
    except programs.ProgramError:
        return None
    return words[3:5]


def _has_pool(metadata: str) -> bool:
    """Say whether there is a pool in *metadata*; what else is there is refused."""
    with open(metadata, "rb", buffering=0) as file:
        block = file.read(_BLOCK)
    if int.from_bytes(block[_MAGIC], "little") == _THIN:
        return True
    if any(block):
        raise FailedPreconditionError(
            f"metadatadev={metadata}: has something else than a pool in it; zero its first 4 KiB"
            " if it is of no use any more"
        )
    _require_empty("metadatadev", metadata)
    return False


def _require_empty(option: str, path: str) -> None:
    """Raise `FailedPreconditionError` for a device with something that can be recognised."""
    found = programs.run(["wipefs", "--noheadings", "--output", "TYPE", path]).split()
    if found:
        raise FailedPreconditionError(
            f"{option}={path}: has {found[0]} in it; wipefs -a {path}, if it is of no use any more"
        )
