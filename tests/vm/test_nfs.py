"""The kernel's NFS, server and client, in virtual machines: ``guest/nfs`` has what is tested."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm import kernel
from tests.vm.conftest import Run
from tests.vm.guest.nfs import two

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

_SUITE = "/unionfs/tests/vm/guest/nfs"
#: Seconds for a guest that runs many tests, and for one of two that run few.
_PATIENCE = 3000
_SHORT = 600


KERNELS = pytest.mark.parametrize("name", kernel.SUITES)


def in_guest(vm: Run, name: str, *words: str) -> None:
    """Run tests of the suite in one guest of the kernel *name*; none may be skipped there."""
    ours = ("-p", "no:cacheprovider", "--subject", "device")
    done = vm("--kernel", name, "--", "pytest", "-q", *ours, *words, seconds=_PATIENCE)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout


def test_a_client_changes_a_union(vm: Run) -> None:
    """One that fits into every run; the others are in the whole suite below."""
    one = ("-k", "test_a_client_changes_the_union and 4.2")
    in_guest(vm, kernel.DEFAULT, f"{_SUITE}/test_exported.py", *one)


@pytest.mark.slow
@KERNELS
def test_server_and_client_on_one_machine(vm: Run, name: str) -> None:
    in_guest(vm, name, _SUITE)


@pytest.mark.slow
@KERNELS
def test_the_server_loses_its_power(vm: Run, machine: str, name: str) -> None:
    """The client waits, goes on when the server is back, and misses nothing that it synced."""
    booted = ("--kernel", name, "--network")
    server = (*booted, f"{machine}/1", "--machine", machine)
    client = (*booted, f"{machine}/2")
    program = ("--", "python", "-m", "tests.vm.guest.nfs.two")
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(vm, *client, *program, "client", seconds=_SHORT)
        cut = ("--disk", "1G", "--crash-after", two.CUT)
        done = vm(*server, *cut, *program, "server", seconds=_SHORT)
        assert done.returncode == 0, done.stdout + done.stderr
        again = vm(*server, *program, "server", seconds=_SHORT)
        done = running.result()
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert (again.returncode, again.stdout) == (0, "all there\n"), again.stderr
