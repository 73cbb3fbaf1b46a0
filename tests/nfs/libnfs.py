"""A client of NFS that needs no kernel: libnfs, by the names of its nfsc/libnfs.h.

As a program it is one client, which does what it is told line by line (`tests.nfs.ganesha.Remote`
talks to it): tests run several, in the network namespace of the server.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_LIBRARY = "libnfs.so.13"
#: Seconds after which a request is given up, how often a lost connection is made anew: for ever.
PATIENCE, RETRIES = 20, -1

#: Bytes of one write: of version 4, libnfs 4.0 has room for no more than two pages.
MOST_WRITTEN = {3: 1 << 20, 4: 1 << 11}

_STAT = (
    *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
    *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
)


class _Stat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in _STAT)


class _Dirent(ctypes.Structure):
    """The beginning of `struct nfsdirent`."""

    _fields_ = (("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("inode", ctypes.c_uint64))


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    for name in ("nfs_init_context", "nfs_get_error", "nfs_readdir"):
        getattr(library, name).restype = ctypes.c_void_p
    library.nfs_get_error.restype = ctypes.c_char_p
    return library


class Client:
    """One mount of an export. Raises `OSError` with the errno that the server's error becomes."""

    def __init__(self, port: int, mount_port: int, export: str, version: int, uid: int = 0) -> None:
        self._library = _load()
        self._nfs = ctypes.c_void_p(self._library.nfs_init_context())
        self._files: dict[int, ctypes.c_void_p] = {}
        self._most = MOST_WRITTEN[version]
        self._call("nfs_set_version", version)
        for name, value in (("uid", uid), ("gid", uid), ("autoreconnect", RETRIES)):
            self._set(name, value)
        self._library.nfs_set_timeout(self._nfs, PATIENCE * 1000)
        url = f"nfs://127.0.0.1{export}?version={version}&nfsport={port}&mountport={mount_port}"
        self._library.nfs_parse_url_dir.restype = ctypes.c_void_p
        if not self._library.nfs_parse_url_dir(self._nfs, url.encode()):
            raise OSError(22, self._said())
        self._call("nfs_mount", b"127.0.0.1", export.encode())

    def _set(self, name: str, value: int) -> None:
        getattr(self._library, f"nfs_set_{name}")(self._nfs, value)

    def _said(self) -> str:
        return (self._library.nfs_get_error(self._nfs) or b"").decode(errors="replace")

    def _call(self, name: str, *arguments: Any) -> int:
        result: int = getattr(self._library, name)(self._nfs, *arguments)
        if result < 0:
            raise OSError(-result, self._said())
        return result

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """Open *path*; a number for it."""
        file = ctypes.c_void_p()
        self._call("nfs_open2", path.encode(), flags, mode, ctypes.byref(file))
        number = max(self._files, default=0) + 1
        self._files[number] = file
        return number

    def open_or_make(self, path: str) -> int:
        """Open *path* to read and write it.

        Asked about first: an OPEN of version 4 that fails would cost libnfs its count of them.
        """
        try:
            self.stat(path)
        except FileNotFoundError:
            return self.open(path, os.O_RDWR | os.O_CREAT)
        return self.open(path, os.O_RDWR)

    def close(self, file: int) -> None:
        self._call("nfs_close", self._files.pop(file))

    def read(self, file: int, offset: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        where = ctypes.c_uint64(offset), ctypes.c_uint64(size)
        count = self._call("nfs_pread", self._files[file], *where, buffer)
        return buffer.raw[:count]

    def write(self, file: int, offset: int, data: bytes) -> int:
        for start in range(0, len(data), self._most):
            piece = data[start : start + self._most]
            where = ctypes.c_uint64(offset + start), ctypes.c_uint64(len(piece))
            count = self._call("nfs_pwrite", self._files[file], *where, piece)
            if count != len(piece):
                return start + count
        return len(data)

    def fsync(self, file: int) -> None:
        self._call("nfs_fsync", self._files[file])

    def truncate(self, file: int, size: int) -> None:
        self._call("nfs_ftruncate", self._files[file], ctypes.c_uint64(size))

    def size(self, file: int) -> int:
        status = _Stat()
        self._call("nfs_fstat64", self._files[file], ctypes.byref(status))
        return int(status.size)

    def stat(self, path: str) -> dict[str, int]:
        status = _Stat()
        self._call("nfs_lstat64", path.encode(), ctypes.byref(status))
        return {name: int(getattr(status, name)) for name in _STAT}

    def list(self, path: str) -> list[str]:
        directory = ctypes.c_void_p()
        self._call("nfs_opendir", path.encode(), ctypes.byref(directory))
        found = []
        while entry := self._library.nfs_readdir(self._nfs, directory):
            found.append(os.fsdecode(_Dirent.from_address(entry).name))
        self._library.nfs_closedir(self._nfs, directory)
        return sorted(set(found) - {".", ".."})

    def unlink(self, path: str) -> None:
        self._call("nfs_unlink", path.encode())

    def rename(self, old: str, new: str) -> None:
        self._call("nfs_rename", old.encode(), new.encode())

    def mkdir(self, path: str) -> None:
        self._call("nfs_mkdir", path.encode())

    def rmdir(self, path: str) -> None:
        self._call("nfs_rmdir", path.encode())

    def link(self, old: str, new: str) -> None:
        self._call("nfs_link", old.encode(), new.encode())

    def chmod(self, path: str, mode: int) -> None:
        self._call("nfs_chmod", path.encode(), mode)

    def get(self, path: str) -> bytes:
        """The content of a file."""
        file = self.open(path, os.O_RDONLY)
        try:
            return self.read(file, 0, 1 << 20)
        finally:
            self.close(file)

    def put(self, path: str, data: bytes) -> None:
        """Make a file, or replace its content."""
        file = self.open_or_make(path)
        try:
            self.truncate(file, 0)
            self.write(file, 0, data)
            self.fsync(file)
        finally:
            self.close(file)


def _serve(arguments: dict[str, Any]) -> None:
    """Do what each line asks for: a list of a method's name and its arguments, as JSON.

    Bytes go as text of as many characters.
    """
    client = Client(**arguments)
    _say("ready")
    for line in sys.stdin:
        name, *given = json.loads(line)
        if name in ("write", "put"):
            given[-1] = given[-1].encode("latin-1")
        try:
            result = getattr(client, name)(*given)
        except OSError as error:
            _say({"errno": error.errno, "said": str(error)})
            continue
        _say({"result": result.decode("latin-1") if isinstance(result, bytes) else result})


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
