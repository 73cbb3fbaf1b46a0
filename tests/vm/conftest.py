"""`scripts/vm` as a person runs it; what is missing here is said once, by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts import REPOSITORY
from tests.vm import kernel, root
from tests.vm.errors import CannotError

#: Seconds for one machine, from its start to its end; interpreted, beside other tests.
PATIENCE = 240

#: `scripts/vm` without the set-up, which was done for this test run.
WORDS = (sys.executable, "-P", "-m", "tests.vm")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(REPOSITORY)}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_vm(*words: str, seconds: int = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run `scripts/vm` with *words*."""
    return subprocess.run(
        [*WORDS, "--timeout", str(seconds), *words],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )


@pytest.fixture(scope="session")
def vm() -> Run:
    """Runs `scripts/vm`; what it boots is made before the first test."""
    try:
        kernel.find(kernel.DEFAULT)
        root.find()
    except CannotError as error:
        pytest.skip(f"no virtual machine: {error}")
    return run_vm


@pytest.fixture
def machine(vm: Run, scratch: Path) -> Iterator[str]:
    """The name of a machine that is kept for one test."""
    yield scratch.name
    done = vm("--machine", scratch.name, "--discard")
    assert done.returncode == 0, done.stderr
