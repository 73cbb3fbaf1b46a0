"""How many requests each operation costs: a trip that is not made cannot be slow.

The daemon counts by opcode and tells at the end (`debug`). A number that grows fails here.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, system
from tests.mounts import Layers

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.device_session,
    pytest.mark.usefixtures("ours_only"),
]

Mount = Callable[..., Any]
Operation = Callable[[Path], object]

FILES = 100
#: Asked by the test's own unmounting, or given back whenever the kernel likes.
_PASSED_OVER = ("STATFS", "FORGET", "BATCH_FORGET")


def fill(layers: Layers) -> None:
    for index in range(FILES):
        build.write(layers.lowers[0] / "d" / f"{index}", "x" * 4096)
        assert layers.upper is not None
        build.write(layers.upper / "u" / f"{index}", "x" * 4096)
        (layers.lowers[0] / "links").mkdir(exist_ok=True)
        (layers.lowers[0] / "links" / f"{index}").symlink_to("target")


def counted(
    layers: Layers, union: Mount, operation: Operation, options: str = ""
) -> dict[str, int]:
    """The requests that *operation* makes on a fresh mount."""
    mounted = union(f"debug,{options}".rstrip(","), layers=layers)
    mounted.allow_log("DEBUG")
    operation(mounted.root)
    mounted.unmount()
    found = re.search(r"requests: (.*)", mounted.log)
    assert found is not None
    counts = dict(pair.split("=") for pair in found[1].split())
    return {name: int(count) for name, count in counts.items() if name not in _PASSED_OVER}


def each(directory: str, act: Callable[[Path], object]) -> Operation:
    def operation(root: Path) -> None:
        for index in range(FILES):
            act(root / directory / f"{index}")

    return operation


def twice(operation: Operation) -> Operation:
    def again(root: Path) -> None:
        operation(root)
        operation(root)

    return again


def absent(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(path.with_name(f"no{path.name}"))


def read(path: Path) -> None:
    """As `cat` does. (Python's own open() asks by ioctl, a trip, whether it is a terminal.)"""
    fd = os.open(path, os.O_RDONLY)
    assert len(os.read(fd, 4096)) == 4096
    os.close(fd)


def create(path: Path) -> None:
    fd = os.open(path.with_name(f"new{path.name}"), os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, b"x" * 4096)
    os.close(fd)


def rewrite(root: Path) -> None:
    fd = os.open(root / "u" / "0", os.O_RDWR)
    for index in range(1000):
        os.pwrite(fd, b"y" * 4096, index % 7 * 4096)
    os.close(fd)


def walk(root: Path) -> None:
    for name in ("d", "u"):
        assert sum(len(files) for _, _, files in os.walk(root / name)) == FILES


STAT, OPEN, READ = each("d", os.stat), each("d", read), each("u", read)

#: What is done, and the most requests of each kind that it may cost.
OPERATIONS: dict[str, tuple[Operation, dict[str, int]]] = {
    "stat": (STAT, {"LOOKUP": FILES + 1}),
    "stat again": (twice(STAT), {"LOOKUP": FILES + 1}),
    "stat of what is not there": (each("d", absent), {"LOOKUP": FILES + 1}),
    "that again": (twice(each("d", absent)), {"LOOKUP": FILES + 1}),
    "read a lower file": (
        OPEN,
        {"LOOKUP": FILES + 1, "OPEN": FILES, "READ": FILES, "RELEASE": FILES},
    ),
    "that again, from the page cache": (
        twice(OPEN),
        {"LOOKUP": FILES + 1, "OPEN": 2 * FILES, "READ": FILES, "RELEASE": 2 * FILES},
    ),
    "read an upper file": (READ, {"LOOKUP": FILES + 1, "OPEN": FILES, "RELEASE": FILES}),
    "readlink, twice": (
        twice(each("links", os.readlink)),
        {"LOOKUP": FILES + 1, "READLINK": FILES},
    ),
    "create, write, close": (
        each("u", create),
        {
            "LOOKUP": FILES + 1,
            "GETATTR": FILES + 1,
            "CREATE": FILES,
            "GETXATTR": FILES,  # security.capability, once for each file
            "RELEASE": FILES,
        },
    ),
    "mkdir": (
        each("u", lambda path: path.with_name(f"m{path.name}").mkdir()),
        {"LOOKUP": FILES + 1, "GETATTR": FILES + 1, "MKDIR": FILES},
    ),
    "unlink": (
        each("u", os.unlink),
        {"LOOKUP": FILES + 1, "GETATTR": FILES + 1, "UNLINK": FILES},
    ),
    "rename": (
        each("u", lambda path: path.rename(path.with_name(f"r{path.name}"))),
        {"LOOKUP": 2 * FILES + 1, "GETATTR": FILES + 1, "RENAME2": FILES, "RENAME": FILES},
    ),
    "chmod, with a copy-up": (
        each("d", lambda path: path.chmod(0o600)),
        {"LOOKUP": FILES + 1, "GETATTR": 3, "SETATTR": FILES},
    ),
    "a thousand writes": (
        rewrite,
        {"LOOKUP": 2, "OPEN": 1, "RELEASE": 1, "GETXATTR": 1},
    ),
    "walk": (walk, {"LOOKUP": 3, "READDIR": 12, "READDIRPLUS": 12}),
    "walk again": (twice(walk), {"LOOKUP": 3, "READDIR": 12, "READDIRPLUS": 12, "GETATTR": 4}),
}


#: Where nothing is passed through, data cost trips; that no file is opened is learned once.
NOT_OPENED = {"OPEN": 1, "FLUSH": 1}
DATA = {
    "read an upper file": {"READ": FILES},
    "create, write, close": {"WRITE": FILES},
    "a thousand writes": {"WRITE": 1000},
}


@pytest.mark.parametrize("passthrough", ["auto", "off"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_requests_for_each_operation(
    layers: Layers, union: Mount, name: str, passthrough: str
) -> None:
    fill(layers)
    operation, most = OPERATIONS[name]
    found = counted(layers, union, operation, f"passthrough={passthrough}")
    allowed = {"OPENDIR": 1, "GETATTR": 2, **most}
    if passthrough == "off" or system.release() < system.PASSTHROUGH:
        allowed |= {**NOT_OPENED, **DATA.get(name, {})}
    assert not {opcode: n for opcode, n in found.items() if n > allowed.get(opcode, 0)}, found


def test_a_file_that_is_not_opened_costs_one_read(layers: Layers, union: Mount) -> None:
    fill(layers)
    found = counted(layers, union, twice(OPEN), "passthrough=off")
    assert (found["LOOKUP"], found["OPEN"], found["READ"]) == (FILES + 1, 1, FILES)
    assert "RELEASE" not in found


def test_listing_with_attributes_saves_lookups(layers: Layers, union: Mount) -> None:
    fill(layers)

    def listed(root: Path) -> None:
        subprocess.run(["ls", "-l", str(root / "d")], check=True, stdout=subprocess.DEVNULL)

    found = counted(layers, union, listed)
    assert found["LOOKUP"] <= 2
    assert found["READDIRPLUS"] <= 12
