"""`vagrant/`: what can be told of it without machines, and its two machines from up to destroy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mounts import REPOSITORY
from tests.vm import box
from tests.vm.errors import CannotError
from tests.vm.libvirt import Libvirt, missing

HERE = REPOSITORY / "vagrant"
#: Seconds for both machines, from nothing to provisioned; interpreted, beside other tests.
_UP = 1800


class Command(NamedTuple):
    """A command of README.md's hour: on which machine, and what it prints."""

    node: str
    words: str
    prints: str


def hour() -> Iterator[Command]:
    """Yield the commands of README.md in their order."""
    for block in re.findall(r"```console\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL):
        for part in re.split(r"^(?=node\d\$ )", block, flags=re.MULTILINE)[1:]:
            first, _, prints = part.partition("\n")
            node, _, words = first.partition("$ ")
            yield Command(node, words, prints)


def as_told(command: Command, printed: str) -> bool:
    pattern = re.escape(command.prints.strip()).replace("…", ".*")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def test_the_hour_is_one() -> None:
    """Each of its parts has commands, and they are read as they are written."""
    commands = list(hour())
    assert len(commands) > 50
    assert commands[0] == Command("node1", "findmnt -no FSTYPE /srv/merged", "fuse.unionfs\n")
    assert {command.node for command in commands} == {"node1", "node2"}


@pytest.mark.parametrize("name", ["Vagrantfile", "host.rb"])
def test_ruby_understands_it(name: str) -> None:
    if shutil.which("ruby") is None:
        pytest.skip("ruby is not installed")
    subprocess.run(["ruby", "-c", HERE / name], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["build-box", "provision", "snapshot", "thin-pool"])
def test_bash_understands_it(name: str) -> None:
    subprocess.run(["bash", "-n", HERE / name], check=True, timeout=60)
    assert os.access(HERE / name, os.X_OK)


def vagrant(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Vagrant without any provider's daemon."""
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed")
    return subprocess.run(
        ["vagrant", *words],
        cwd=HERE,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "VAGRANT_DOTFILE_PATH": str(home / "dot"),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=80,
        check=False,
    )


def test_vagrant_understands_it(scratch: Path) -> None:
    done = vagrant(scratch, "validate", "--ignore-provider")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "There is no provider"),
        (("--provider=libvirt",), "provider libvirt needs"),
        (("--provider", "virtualbox"), "VBoxManage is not in PATH"),
    ],
)
def test_a_provider_that_is_missing_is_said(
    scratch: Path, words: tuple[str, ...], said: str
) -> None:
    if any(Path(f"/run/libvirt/{name}").exists() for name in ("libvirt-sock", "virtqemud-sock")):
        pytest.skip("libvirtd runs here")
    if shutil.which("VBoxManage"):
        pytest.skip("VirtualBox is installed")
    done = vagrant(scratch, "up", *words)
    assert done.returncode == 1
    assert said in done.stdout


def test_a_host_that_cannot_is_said(scratch: Path) -> None:
    """VirtualBox, were it there, would want a CPU for guests, and then so much memory."""
    program = scratch / "VBoxManage"
    program.touch(mode=0o755)
    path = f"{scratch}:{os.environ['PATH']}"
    words = ("up", "--provider=virtualbox")
    done = vagrant(scratch, *words, PATH=path, UNIONFS_MEMORY="99999999")
    assert done.returncode == 1
    runs_guests = {"vmx", "svm"}.intersection(Path("/proc/cpuinfo").read_text().split())
    said = "MB of memory are free" if runs_guests else "needs a CPU that runs guests"
    assert said in done.stdout


def test_help_of_build_box() -> None:
    done = subprocess.run(
        [HERE / "build-box", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "vagrant box add" in done.stdout


class Machines:
    """The two machines, with a libvirtd, a home and a box of the test's own."""

    def __init__(self, scratch: Path) -> None:
        self._libvirt = Libvirt(scratch)
        self.environment = {"VAGRANT_DOTFILE_PATH": str(scratch / "dot")}

    def vagrant(
        self, *words: str, seconds: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **environment}
        return self._libvirt.run("vagrant", *words, cwd=HERE, seconds=seconds, env=environment)

    def must(self, *words: str, seconds: float = 120) -> str:
        done = self.vagrant(*words, seconds=seconds)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def ssh(self, node: str, command: str) -> subprocess.CompletedProcess[str]:
        return self.vagrant("ssh", node, "--no-tty", "-c", command)

    def boot_of(self, node: str) -> str:
        """What changes with each boot; empty while it does not answer."""
        try:
            done = self.ssh(node, "cat /proc/sys/kernel/random/boot_id")
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def run(self, command: Command) -> None:
        """Run a command of README.md, compare, and wait for a boot where it crashes the machine."""
        crashes = "sysrq-trigger" in command.words
        boot = self.boot_of(command.node) if crashes else ""
        done = self.ssh(command.node, command.words)
        assert done.returncode == 0, (command, done.stdout)
        assert as_told(command, done.stdout), (command, done.stdout)
        deadline = time.monotonic() + 600
        while crashes and self.boot_of(command.node) in ("", boot):
            assert time.monotonic() < deadline, "the machine did not come up again"
            time.sleep(5)

    def virsh(self, *words: str) -> str:
        done = self._libvirt.run("virsh", *words)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def close(self) -> None:
        self._libvirt.close()


@pytest.fixture
def machines(scratch: Path) -> Iterator[Machines]:
    """Both, up and provisioned."""
    if lacking := missing():
        pytest.skip(f"not installed: {', '.join(lacking)}")
    path = scratch / "unionfs.box"
    had_wheels = (HERE / "wheels").exists()
    try:
        box.bring_wheels(HERE / "wheels")
        box.write(path)
    except CannotError as error:
        pytest.skip(f"no box: {error}")
    made = Machines(scratch)
    try:
        made.must("box", "add", "--name", box.NAME, str(path), seconds=300)
        path.unlink()
        made.must("validate")
        done = made.vagrant("up", UNIONFS_MEMORY="99999999")
        assert done.returncode == 1
        assert "MB of memory are free" in done.stdout
        made.must("up", seconds=_UP)
        yield made
    finally:
        made.close()
        if not had_wheels:
            shutil.rmtree(HERE / "wheels")


@pytest.mark.needs_root
@pytest.mark.vm
@pytest.mark.slow
def test_from_up_to_destroy(machines: Machines) -> None:
    told = machines.must("provision", seconds=_UP)
    assert told.count("==> ready") == 2
    assert "installing" not in told
    assert "making" not in told
    for command in hour():
        machines.run(command)
    machines.must("destroy", "--force", seconds=300)
    assert machines.virsh("list", "--all", "--name").strip() == ""
    assert "vagrant_node" not in machines.virsh("vol-list", "default")
