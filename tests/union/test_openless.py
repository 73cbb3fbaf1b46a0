"""Where files are not opened: what an open(2) cannot refuse is refused later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests import build, system
from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.device_session]

OPTION = "passthrough=off"


@pytest.mark.usefixtures("ours_only")
def test_what_an_open_does_not_refuse_the_write_does(
    layers: Layers, union: Callable[..., Any]
) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    root = union(f"{OPTION},ro").root
    system.mount(None, root, None, system.MS_REMOUNT)
    fd = os.open(root / "file", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            os.write(fd, b"x")
    finally:
        os.close(fd)
    assert (root / "file").read_text() == "lower"


@pytest.mark.usefixtures("ours_only")
def test_errors_of_opening_come_with_the_first_read(
    layers: Layers, union: Callable[..., Any]
) -> None:
    file = layers.lowers[0] / "file"
    build.write(file, "")
    os.truncate(file, 10)
    os.setxattr(file, "trusted.overlay.metacopy", b"")
    mounted = union(OPTION)
    mounted.expect_log("metacopy")
    fd = os.open(mounted.root / "file", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            os.read(fd, 10)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("ours_only")
def test_more_files_than_are_kept_open(layers: Layers, union: Callable[..., Any]) -> None:
    for index in range(700):
        build.write(layers.lowers[0] / f"{index}", f"{index}")
    mounted = union(OPTION)
    for _ in range(2):
        for index in range(700):
            with open(mounted.root / f"{index}", "r+b") as file:
                assert file.read().startswith(b"%d" % index)
                file.write(b"+")
    pid = mounted.process.pid
    assert len(os.listdir(f"/proc/{pid}/fd")) < 600
    assert (mounted.root / "699").read_bytes() == b"699++"


@pytest.mark.usefixtures("ours_only")
def test_removed_file_is_read_and_written_by_who_has_it(
    layers: Layers, union: Callable[..., Any]
) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    root = union(OPTION).root
    fd = os.open(root / "file", os.O_RDWR)
    (root / "file").unlink()
    try:
        assert os.pread(fd, 10, 0) == b"lower"
        assert os.pwrite(fd, b"L", 0) == 1
        assert os.pread(fd, 10, 0) == b"Lower"
        os.ftruncate(fd, 2)
        assert os.fstat(fd).st_size == 2
    finally:
        os.close(fd)
