"""Reading ACLs by whole entries, as Linux before 6.2 needs it; on any kernel it is the same."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from unionfs.layer import xattrs

pytestmark = pytest.mark.needs_root

#: Of ``struct posix_acl_xattr_entry``: tag, permissions, id.
_ENTRY = struct.Struct("<HHI")
_NOBODY = 0xFFFFFFFF


def acl_of(users: int) -> bytes:
    named = [(2, 4, 1000 + number) for number in range(users)]
    rest = [(4, 4, _NOBODY), (16, 4, _NOBODY), (32, 4, _NOBODY)]
    entries = [(1, 6, _NOBODY), *named, *rest]
    return struct.pack("<I", 2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


@pytest.fixture
def file(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(xattrs, "_WHOLE_ENTRIES", True)
    path = scratch / "file"
    path.touch()
    return path


@pytest.mark.parametrize("users", [1, 11, 12, 100])
def test_an_acl_is_read_whole(file: Path, users: int) -> None:
    os.setxattr(file, xattrs.ACL_ACCESS, acl_of(users))
    path = os.fsencode(file)
    assert xattrs.value(path, xattrs.ACL_ACCESS) == acl_of(users)
    fd = os.open(file, os.O_RDONLY)
    try:
        assert xattrs.read(fd, xattrs.ACL_ACCESS, follow=True) == acl_of(users)
    finally:
        os.close(fd)


def test_one_that_is_not_there(file: Path) -> None:
    path = os.fsencode(file)
    with pytest.raises(OSError, match="No data available") as failed:
        xattrs.value(path, xattrs.ACL_DEFAULT)
    assert failed.value.errno == errno.ENODATA
    assert xattrs.read(path, xattrs.ACL_ACCESS) is None
