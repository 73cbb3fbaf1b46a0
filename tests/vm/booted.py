"""A stock Debian that is booted as people boot it, and talked to by ssh.

Its disk is `tests.vm.stock`'s, untouched: the key that lets us in comes from outside, by a
credential of systemd's (systemd.system-credentials(7)).
"""

from __future__ import annotations

import base64
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.vm import cache, cargo, debian, stock, wheels
from tests.vm.errors import MachineError
from tests.vm.machine import drive, qemu
from tests.vm.memory import require_memory

#: MiB.
_MEMORY = 1024
#: Seconds until it answers; interpreted, beside other tests.
_PATIENCE = 300
#: Where it has the tar of this checkout, and in that of what pip needs.
CARGO = "/dev/disk/by-id/virtio-cargo"
LAYERS = "/dev/disk/by-id/virtio-layers"


class Booted:
    """A machine with its disks in *directory*: Debian's, the checkout, and one for layers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers = directory / "layers.img"
        self.console = directory / "console.log"
        self._disk = directory / "disk.qcow2"
        self._key = directory / "key"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port = 0
        image = stock.find()
        cache.require_room(directory, 2 << 30)
        require_memory(_MEMORY + 256)
        flags = ("-q", "-f", "qcow2", "-F", "qcow2")
        debian.run(["qemu-img", "create", *flags, "-b", str(image), str(self._disk)])
        debian.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)])
        with self.layers.open("wb") as file:
            file.truncate(512 << 20)
        debian.run(["mkfs.ext4", "-q", "-L", "layers", str(self.layers)])
        with tarfile.open(directory / "cargo.tar", "w") as tar:
            cargo.add_checkout(tar)
            tar.add(wheels.find(), "wheels")

    def boot(self) -> None:
        """Start it, and wait until it is up. Raises `MachineError`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._qemu = subprocess.Popen([*self._command()], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while self.run("systemctl is-system-running --wait", seconds=_PATIENCE).returncode == 255:
            if time.monotonic() > deadline or self._qemu.poll() is not None:
                self.close()
                last = self.console.read_text(errors="replace")[-2000:]
                raise MachineError(f"the machine did not come up\n{last}")
            time.sleep(1)

    def run(
        self, script: str, *, user: str = "root", seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a *script* of bash's in it; status 255 means that it does not answer."""
        known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        quiet = ("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10", "-o", "BatchMode=yes")
        words = ["ssh", "-F", "none", *known, *quiet, "-i", str(self._key)]
        words += ["-p", str(self._port), f"{user}@127.0.0.1", "bash -s"]
        try:
            return subprocess.run(
                words,
                input=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 255, f"not done after {seconds:.0f} s")

    def power_off(self) -> None:
        """Shut it down as its user would. Raises `MachineError`."""
        assert self._qemu is not None
        self.run("systemctl poweroff")
        try:
            self._qemu.wait(_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise MachineError("the machine does not shut down") from error

    def close(self) -> None:
        """End it at once, if it runs."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()

    def _command(self) -> Iterator[str]:
        yield from qemu(_MEMORY)
        yield from ("-serial", f"file:{self.console}")
        yield from ("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22")
        yield from ("-device", "virtio-net-pci,netdev=net")
        yield from drive("root", f"format=qcow2,discard=unmap,file={self._disk}")
        yield from drive("layers", f"format=raw,file={self.layers}")
        yield from drive("cargo", f"format=raw,read-only=on,file={self.directory / 'cargo.tar'}")
        credential = base64.b64encode(self._lets_us_in().encode()).decode()
        value = f"io.systemd.credential.binary:tmpfiles.extra={credential}"
        yield from ("-smbios", f"type=11,value={value}")

    def _lets_us_in(self) -> str:
        """Lines of tmpfiles.d(5) that write our key."""
        key = base64.b64encode(self._key.with_suffix(".pub").read_bytes()).decode()
        return "".join(
            f"d {home}/.ssh 0700 {user} {user}\n"
            f"f+~ {home}/.ssh/authorized_keys 0600 {user} {user} - {key}\n"
            for user, home in (("root", "/root"), ("vagrant", "/home/vagrant"))
        )
