"""The kernel's NFS, server and client, in virtual machines: ``guest/nfs`` has what is tested."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.conftest import Run
from tests.vm.guest.nfs import two

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

_SUITE = "/unionfs/tests/vm/guest/nfs"
#: Seconds for a guest that runs many tests.
_PATIENCE = 3000


def in_guest(vm: Run, *words: str) -> None:
    """Run tests of the suite in one guest; none may be skipped there."""
    ours = ("-p", "no:cacheprovider", "--subject", "device")
    done = vm("--", "pytest", "-q", *ours, *words, seconds=_PATIENCE)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout


def test_a_client_changes_a_union(vm: Run) -> None:
    """One that fits into every run; the others are in the whole suite below."""
    in_guest(vm, f"{_SUITE}/test_exported.py", "-k", "test_a_client_changes_the_union and 4.2")


@pytest.mark.slow
def test_server_and_client_on_one_machine(vm: Run) -> None:
    in_guest(vm, _SUITE)


@pytest.mark.slow
def test_the_server_loses_its_power(vm: Run, machine: str) -> None:
    """The client waits, goes on when the server is back, and misses nothing that it synced."""
    server = ("--network", f"{machine}/1", "--machine", machine)
    client = ("--network", f"{machine}/2")
    program = ("--", "python", "-m", "tests.vm.guest.nfs.two")
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(vm, *client, *program, "client", seconds=_PATIENCE)
        cut = ("--disk", "1G", "--crash-after", two.CUT)
        done = vm(*server, *cut, *program, "server", seconds=_PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        done = vm(*server, *program, "server", seconds=_PATIENCE)
        assert (done.returncode, done.stdout) == (0, "all there\n"), done.stderr
        done = running.result()
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
