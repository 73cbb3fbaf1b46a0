"""A SQLite database on an NFS server that no kernel has mounted: a VFS of SQLite's over libnfs.

As a program it is one client of a shared database: it makes transactions, each of which reads what
the others have made. The lock is a directory beside the database, as of SQLite's `unix-dotfile`:
byte ranges are not for version 3 here, and libnfs 4.0 loses count of those of version 4.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sqlite3
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

from tests.nfs import shop
from tests.nfs.libnfs import Client

NAME = b"nfs"
#: Of sqlite3.h.
OK, BUSY, IOERR, SHORT_READ, NOTFOUND = 0, 5, 10, 522, 12
UNLOCKED = 0


class _File(ctypes.Structure):
    """`sqlite3_file`, and which of our open files it is."""

    _fields_ = (("methods", c_void_p), ("number", c_int64))


_IO = (
    ("close", (POINTER(_File),)),
    ("read", (POINTER(_File), c_void_p, c_int, c_int64)),
    ("write", (POINTER(_File), c_void_p, c_int, c_int64)),
    ("truncate", (POINTER(_File), c_int64)),
    ("sync", (POINTER(_File), c_int)),
    ("file_size", (POINTER(_File), POINTER(c_int64))),
    ("lock", (POINTER(_File), c_int)),
    ("unlock", (POINTER(_File), c_int)),
    ("check_reserved_lock", (POINTER(_File), POINTER(c_int))),
    ("file_control", (POINTER(_File), c_int, c_void_p)),
    ("sector_size", (POINTER(_File),)),
    ("device_characteristics", (POINTER(_File),)),
)
_IO_TYPES: dict[str, Any] = {name: ctypes.CFUNCTYPE(c_int, *arguments) for name, arguments in _IO}
_VFS = (
    ("open", (c_void_p, c_char_p, POINTER(_File), c_int, POINTER(c_int))),
    ("delete", (c_void_p, c_char_p, c_int)),
    ("access", (c_void_p, c_char_p, c_int, POINTER(c_int))),
    ("full_pathname", (c_void_p, c_char_p, c_int, c_void_p)),
)
_VFS_TYPES: dict[str, Any] = {name: ctypes.CFUNCTYPE(c_int, *arguments) for name, arguments in _VFS}


class _IoMethods(ctypes.Structure):
    _fields_ = (("version", c_int), *_IO_TYPES.items())


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs` of version 1; what is not over NFS is taken from the default one."""

    _fields_ = (
        *(("version", c_int), ("file_size", c_int), ("path_size", c_int), ("next", c_void_p)),
        *(("name", c_char_p), ("data", c_void_p), *_VFS_TYPES.items()),
        *((f"other{number}", c_void_p) for number in range(8)),
    )


class NfsVfs:
    """The files of one client, as SQLite asks for them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._files: dict[int, int] = {}
        self._paths: dict[int, str] = {}
        self._locked: set[int] = set()
        self._numbers = itertools.count(1)
        self._methods = _IoMethods(1, *(self._guarded(_IO_TYPES, name) for name, _ in _IO))
        library = ctypes.CDLL("libsqlite3.so.0")
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        default = library.sqlite3_vfs_find(None).contents
        others = [getattr(default, f"other{number}") for number in range(8)]
        ours = [self._guarded(_VFS_TYPES, name) for name, _ in _VFS]
        self._vfs = _Vfs(1, ctypes.sizeof(_File), 512, None, NAME, None, *ours, *others)
        library.sqlite3_vfs_register(ctypes.byref(self._vfs), 0)

    def _guarded(self, types: dict[str, Any], name: str) -> Any:
        method: Callable[..., int | None] = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            try:
                return method(*arguments) or OK
            except OSError as error:
                sys.stderr.write(f"{name}: {error}\n")
                return IOERR

        return types[name](call)

    def _open(self, _vfs: int, name: bytes, file: Any, flags: int, out: Any) -> int | None:
        path = name.decode()
        number = next(self._numbers)
        self._files[number], self._paths[number] = self._client.open_or_make(path), path
        file.contents.number = number
        file.contents.methods = ctypes.addressof(self._methods)
        if out:
            out[0] = flags
        return OK

    def _delete(self, _vfs: int, name: bytes, _sync: int) -> None:
        self._client.unlink(name.decode())

    def _access(self, _vfs: int, name: bytes, _flags: int, out: Any) -> None:
        try:
            self._client.stat(name.decode())
            out[0] = 1
        except FileNotFoundError:
            out[0] = 0

    def _full_pathname(self, _vfs: int, name: bytes, size: int, out: int) -> None:
        ctypes.memmove(out, name + b"\0", min(size, len(name) + 1))

    def _of(self, file: Any) -> int:
        return self._files[file.contents.number]

    def _close(self, file: Any) -> None:
        self._unlock(file, UNLOCKED)
        self._client.close(self._files.pop(file.contents.number))

    def _read(self, file: Any, buffer: int, size: int, offset: int) -> int:
        data = self._client.read(self._of(file), offset, size)
        ctypes.memmove(buffer, data.ljust(size, b"\0"), size)
        return OK if len(data) == size else SHORT_READ

    def _write(self, file: Any, buffer: int, size: int, offset: int) -> None:
        written = self._client.write(self._of(file), offset, ctypes.string_at(buffer, size))
        if written != size:
            raise OSError(f"{written} of {size} bytes written")

    def _truncate(self, file: Any, size: int) -> None:
        self._client.truncate(self._of(file), size)

    def _sync(self, file: Any, _flags: int) -> None:
        self._client.fsync(self._of(file))

    def _file_size(self, file: Any, out: Any) -> None:
        out[0] = self._client.size(self._of(file))

    def _lock(self, file: Any, _level: int) -> int | None:
        number = file.contents.number
        if number not in self._locked:
            try:
                self._client.mkdir(f"{self._paths[number]}.lock")
            except FileExistsError:
                return BUSY
            self._locked.add(number)
        return OK

    def _unlock(self, file: Any, level: int) -> None:
        number = file.contents.number
        if level == UNLOCKED and number in self._locked:
            self._client.rmdir(f"{self._paths[number]}.lock")
            self._locked.discard(number)

    def _check_reserved_lock(self, _file: Any, out: Any) -> None:
        out[0] = 0

    def _file_control(self, _file: Any, _operation: int, _argument: int) -> int:
        return NOTFOUND

    def _sector_size(self, _file: Any) -> int:
        return 512

    def _device_characteristics(self, _file: Any) -> int:
        return 0


def main(arguments: dict[str, Any], path: str, name: str, rounds: int) -> None:
    """Take *rounds* times from the stock that all clients share."""
    vfs = NfsVfs(Client(**arguments))
    database = sqlite3.connect(
        f"file:{path}?vfs={NAME.decode()}", uri=True, timeout=60, isolation_level=None
    )
    shop.take(database, name, range(rounds))
    database.close()
    del vfs


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
