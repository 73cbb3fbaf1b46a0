"""What `scripts/vm` promises."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mounts import REPOSITORY
from tests.vm import cache, kernel
from tests.vm.conftest import Run, run_vm

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

#: Tells its arguments, and what a guest has.
_TELLS = r"""
printf '<%s>\n' "$@"
unionfs --version
for module in dm_thin_pool overlay fuse nfs nfsd; do grep -c "^$module " /proc/modules; done
readlink /proc/self/fd/0; pwd
cat /with/brought/below/file /with/test_vm.py
echo said >/dev/stderr
exit 7
"""


def test_a_command_is_run_as_given(vm: Run, scratch: Path) -> None:
    (scratch / "brought/below").mkdir(parents=True)
    (scratch / "brought/below/file").write_text("from afar")
    brought = ("--with", str(scratch / "brought"), "--with", __file__)
    done = vm(*brought, "--", "sh", "-c", _TELLS, "sh", "a  b", "", "c'\"$x", "--keep", "ü\n")
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == ["<a  b>", "<>", "<c'\"$x>", "<--keep>", "<ü", ">"]
    assert lines[6].startswith("unionfs: version ")
    assert lines[7:14] == ["1"] * 5 + ["/dev/null", "/unionfs"]
    assert "\n".join([*lines[14:], ""]) == "from afar" + Path(__file__).read_text()
    assert done.stderr == "said\n"


def test_power_is_cut_and_the_disk_is_booted_again(vm: Run, machine: str) -> None:
    write = (
        "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo old >/mnt/synced && sync /mnt/synced"
        " && echo here we are >/dev/console && sleep 300"
    )
    kept = ("--machine", machine)
    done = vm(*kept, "--disk", "300M", "--crash-after", "here we are", "--", "sh", "-c", write)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    done = vm(*kept, "--", "sh", "-c", "mount /dev/vdb /mnt && cat /mnt/synced; dmesg | grep vdb")
    assert done.stdout.startswith("old\n")
    assert "recovery complete" in done.stdout, "it was no power cut"
    done = vm(*kept, "--disk", "200M", "--", "true")
    assert done.returncode == 125
    assert "--disk 200M: the kept machine's has 300.0 MiB" in done.stderr


def test_a_machine_is_discarded_unless_it_runs(vm: Run, machine: str) -> None:
    place = cache.place() / "machines" / machine
    place.mkdir(parents=True)
    (place / "disk-0.qcow2").touch()
    discard = ("--machine", machine, "--discard")
    held = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = vm(*discard)
        assert (done.returncode, done.stderr) == (
            125,
            f"scripts/vm: {machine}: the machine is running\n",
        )
    finally:
        os.close(held)
    assert (place / "disk-0.qcow2").exists()
    assert vm(*discard).returncode == 0
    assert not place.exists()


def test_who_reads_slowly_gets_all(vm: Run) -> None:
    """Also when what the command has left running holds its pipes."""
    words = [sys.executable, "-P", "-m", "tests.vm", "--", "sh", "-c", "seq 60000; sleep 100 &"]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        said = command.stdout.read(1)
        time.sleep(8)
        said += command.stdout.read()
    assert command.returncode == 0
    assert said == b"".join(b"%d\n" % number for number in range(1, 60001))


@pytest.mark.slow
def test_a_command_that_ends_before_the_cut(vm: Run, machine: str) -> None:
    done = vm("--machine", machine, "--crash-after", "never", "--", "true")
    assert done.returncode == 125
    assert "ended before the console showed b'never'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", kernel.SUITES)
def test_kernels(vm: Run, name: str) -> None:
    done = vm("--kernel", name, "--", "uname", "-r", seconds=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}."), done.stderr


@pytest.mark.slow
def test_a_panic_is_not_the_commands_status(vm: Run) -> None:
    done = vm("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "ended before its command" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kernel", "2.4", "--", "true"), "2.4: a kernel is 6.1 or 6.12"),
        (("--memory", "99999999", "--", "true"), "MB of memory are free"),
        (("--machine", "../up", "--", "true"), "not a name"),
        (("--with", "not here", "--", "true"), "not here: there is no such file"),
        (("--shell",), "no terminal"),
        (("--network", "lab/3", "--", "true"), "lab/3: an end of a network is NAME/1 or NAME/2"),
    ],
)
def test_what_cannot_be_is_said(vm: Run, words: tuple[str, ...], said: str) -> None:
    done = run_vm(*words)
    assert done.returncode == 125
    assert said in done.stderr
