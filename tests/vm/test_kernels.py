"""The union on other kernels than this machine's: what they have, and the core suite on each."""

from __future__ import annotations

import json

import pytest

from tests.vm import kernel
from tests.vm.conftest import Run

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

#: docs/kernels.md has this as a table.
HAVE = {
    "6.1": {
        "fuse": "7.38",
        "passthrough": False,
        "no open": True,
        "no opendir": True,
        "idmapped mounts": False,
        "xattr whiteouts": False,
    },
    "6.12": {
        "fuse": "7.41",
        "passthrough": True,
        "no open": True,
        "no opendir": True,
        "idmapped mounts": True,
        "xattr whiteouts": True,
    },
}

#: The core suite in parts, each an hour or two, interpreted.
CORE = {
    "layer": ("tests/layer", "tests/fuse"),
    "union": ("tests/union", "--ignore-glob", "*_matrix.py"),
    "matrices": ("tests/union/test_operations_matrix.py", "tests/union/test_rename_matrix.py"),
}


@pytest.mark.parametrize("name", kernel.SUITES)
def test_what_a_kernel_has(vm: Run, name: str) -> None:
    done = vm("--kernel", name, "--", "python", "-m", "tests.vm.offers")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("release").startswith(f"{name}.")
    assert told == HAVE[name]


def test_the_union_without_passthrough(vm: Run) -> None:
    """Where the kernel serves no files itself, everything else is as it was."""
    some = ("tests/union/test_lookup.py", "-k", "opaque", "--subject", "device")
    done = vm("--kernel", "6.1", "--", "pytest", "-q", "-p", "no:cacheprovider", *some)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", CORE)
@pytest.mark.parametrize("name", kernel.SUITES)
def test_the_core_suite(vm: Run, name: str, part: str) -> None:
    """All but what takes long even on the CPU itself.

    Where the kernel has no passthrough, the device session opens no files: both ways are run.
    """
    words = ("--kernel", name, "--memory", "2048", "--", "pytest", "-q", "-rs", "--tb=short")
    ours = ("-p", "no:cacheprovider", "-m", "not slow", "--subject", "device")
    done = vm(*words, *CORE[part], *ours, seconds=4 * 3600)
    assert done.returncode == 0, done.stdout[-20000:]
