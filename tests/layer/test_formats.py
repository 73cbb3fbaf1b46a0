"""What stands on disk, byte for byte: ACLs, file handles, names of marks."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from tests import build
from unionfs.layer import acl, handles
from unionfs.layer.xattrs import Marks

ORIGIN = b"trusted.overlay.origin"


def _default_acls() -> list[bytes]:
    """A minimal one, and ones with named users, groups and masks."""
    plain = ((build.USER_OBJ, 7), (build.GROUP_OBJ, 5), (build.OTHER, 1))
    found = []
    for owner, group, other in itertools.product((7, 6, 0), (7, 5), (5, 0)):
        bits = zip(plain, (owner, group, other), strict=True)
        user, members, rest = ((tag, permission, build.NO_ID) for (tag, _), permission in bits)
        found.append(build.acl(user, members, rest))
        for mask in (7, 4):
            named = ((build.USER, 7, 1000), (build.GROUP, 6, 2000))
            masked = (build.MASK, mask, build.NO_ID)
            found.append(build.acl(user, named[0], members, named[1], masked, rest))
    return found


@pytest.mark.parametrize("mode", [0o777, 0o666, 0o640, 0o4711, 0o000])
def test_inherited_acls_are_those_of_the_kernel(scratch: Path, mode: int) -> None:
    umask = os.umask(0)
    try:
        for number, default in enumerate(_default_acls()):
            parent = scratch / f"{number}"
            parent.mkdir()
            os.setxattr(parent, "system.posix_acl_default", default)
            child = parent / "child"
            os.close(os.open(child, os.O_CREAT | os.O_WRONLY, mode))
            inherited, access = acl.inherit(default, mode)
            assert child.stat().st_mode & 0o7777 == inherited
            names = os.listxattr(child)
            assert (access is not None) == ("system.posix_acl_access" in names)
            if access is not None:
                assert os.getxattr(child, "system.posix_acl_access") == access
    finally:
        os.umask(umask)


@pytest.mark.needs_root
def test_origins_are_those_of_the_kernel(layers, kernel) -> None:  # type: ignore[no-untyped-def]
    """Copied up by the kernel's overlayfs, and encoded by us: the same bytes."""
    build.write(layers.lowers[0] / "file", "lower")
    theirs = kernel()
    (theirs.root / "file").chmod(0o600)
    theirs.unmount()
    written = os.getxattr(layers.upper / "file", ORIGIN)
    parent = os.open(layers.lowers[0], os.O_RDONLY)
    try:
        encoded = handles.encode(parent, b"file", handles.file_system(written))
        assert encoded == written
        assert handles.is_valid(written)
        found = handles.decode(parent, written)
        assert found is not None
        assert found.st_ino == (layers.lowers[0] / "file").stat().st_ino
    finally:
        os.close(parent)


@pytest.mark.needs_root
def test_strange_origins_count_as_absent(scratch: Path) -> None:
    build.write(scratch / "file", "here")
    (scratch / "gone").touch()
    parent = os.open(scratch, os.O_RDONLY)
    try:
        good = handles.encode(parent, b"file", bytes(16))
        gone = handles.encode(parent, b"gone", bytes(16))
        assert good is not None
        assert gone is not None
        (scratch / "gone").unlink()
        assert handles.decode(parent, gone) is None
        assert handles.encode(parent, b"file", None) is None
        rng = random.Random(1)
        for _ in range(2000):
            strange = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                strange[rng.randrange(len(strange))] = rng.randrange(256)
            handles.decode(parent, bytes(strange[: rng.randrange(len(strange) + 1)]))
        for strange_length in range(len(good)):
            assert handles.decode(parent, good[:strange_length]) is None
    finally:
        os.close(parent)


@pytest.mark.parametrize("user", [False, True])
def test_names_of_marks_are_escaped_and_back(user: bool) -> None:
    marks = Marks(user=user)
    own = b"user.overlay." if user else b"trusted.overlay."
    other = b"trusted.overlay." if user else b"user.overlay."
    for name in (b"user.a", other + b"opaque", own + b"opaque", own + b"overlay.opaque", own):
        stored = marks.stored(name)
        assert stored is not None
        assert marks.shown(stored) == name
        assert not stored.startswith(own) or stored.startswith(own + b"overlay.")
    assert marks.shown(own + b"opaque") is None
    assert marks.shown(own + b"origin") is None
    assert marks.shown(b"user.fuseoverlayfs.opaque") is None
    assert marks.stored(b"user.fuseoverlayfs.opaque") is None
