"""One guest, from its start to its end: QEMU, its disks, and what comes out of it.

A guest has four channels to us, each a pipe: its console, the command's output and errors,
and the exit status. What is on its disks is in a directory of the machine's own, so that it
can be booted again, also after its power was cut.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.vm import cache, cargo, debian, initramfs
from tests.vm.errors import CannotError, MachineError
from tests.vm.kernel import Kernel
from tests.vm.memory import require_memory
from tests.vm.network import End
from unionfs import sizes

QEMU = "qemu-system-x86_64"
#: Bytes that a run may write to the disk beside what its own disks get.
_ROOM = 1 << 30
#: What of the console is told when a machine ends badly, in bytes.
_LAST_WORDS = 2000
_CHANNELS = ("console", "stdout", "stderr", "status")

Sink = Callable[[bytes], object]


class Machine:
    """A guest with its disks in *directory*, made there if they are not."""

    def __init__(
        self,
        directory: Path,
        kernel: Kernel,
        root: Path,
        *,
        disks: Sequence[str] = (),
        brought: Mapping[str, Path] | None = None,
        memory: int = 1024,
        keep: bool = False,
        end: End | None = None,
    ) -> None:
        self.directory = directory
        self.console = b""
        self._kernel = kernel
        self._brought = brought or {}
        self._memory = memory
        self._keep = keep
        self._end = end
        cache.require_room(directory, _ROOM)
        require_memory(memory + 256)
        self._make_disk("root", "-b", str(root), "-F", "raw")  # all machines share that image
        for number, size in enumerate(disks):
            self._make_disk(str(number), size=size)
        self._own = sorted(directory.glob("disk-[0-9]*"), key=lambda path: int(path.stem[5:]))

    def _disk(self, name: str) -> Path:
        return self.directory / f"disk-{name}.qcow2"

    def _make_disk(self, name: str, *backing: str, size: str = "") -> None:
        path = self._disk(name)
        if not path.exists():
            words = [*backing, str(path), *filter(None, [size])]
            debian.run(["qemu-img", "create", "-q", "-f", "qcow2", *words])
        elif size:
            told = json.loads(debian.run(["qemu-img", "info", "--output=json", str(path)]))
            if told["virtual-size"] != sizes.parse(size):
                has = sizes.readable(told["virtual-size"])
                raise CannotError(
                    f"--disk {size}: the kept machine's has {has}; --discard it first"
                )

    def run(
        self,
        argv: Sequence[str],
        *,
        stdout: Sink,
        stderr: Sink,
        terminal: socket.socket | None = None,
        cut_at: bytes | None = None,
        seconds: float | None = 3600,
    ) -> int:
        """Boot, run *argv* and return its exit status, with the machine turned off.

        An empty *argv* is a shell on *terminal*. With *cut_at* the power is cut as soon as
        the console shows that, and the result is 0. Raises `MachineError` when the machine
        ends before its command does, or is not done after *seconds*.
        """
        tar = self.directory / "cargo.tar"
        cargo.load(tar, argv, brought=self._brought, keep=self._keep, end=self._end)
        (self.directory / "initramfs").write_bytes(initramfs.archive(self._kernel))
        self.console, status = b"", b""
        pipes = {name: os.pipe() for name in _CHANNELS}
        passed = {name: end for name, (_, end) in pipes.items()}
        shells = () if terminal is None else (terminal.fileno(),)
        with subprocess.Popen(
            [*self._command(passed), *_terminal(*shells)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[*passed.values(), *shells],
        ) as qemu:
            assert qemu.stderr is not None
            for end in passed.values():
                os.close(end)
            try:
                for name, data in _read({end: name for name, (end, _) in pipes.items()}, seconds):
                    if name == "console":
                        self.console += data
                        if cut_at is not None and cut_at in self.console:
                            return 0
                    elif name == "status":
                        status += data
                    else:
                        (stdout if name == "stdout" else stderr)(data)
            finally:
                qemu.kill()
                said = qemu.stderr.read().decode(errors="replace").strip()
                (self.directory / "console.log").write_bytes(self.console)
        if not status:
            last = self.console[-_LAST_WORDS:].decode(errors="replace")
            raise MachineError(f"the machine ended before its command\n{last}\n{said}".rstrip())
        if cut_at is not None:
            raise MachineError(f"the command ended before the console showed {cut_at!r}")
        return int(status)

    def _command(self, pipes: dict[str, int]) -> Iterator[str]:
        """Yield the words of the command that starts QEMU with the ends of *pipes*."""
        yield from qemu(self._memory)
        yield "-no-reboot"
        yield from (
            "-kernel",
            str(self._kernel.vmlinux),
            "-initrd",
            str(self.directory / "initramfs"),
        )
        words = "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on"
        # What the kernel does not know becomes the environment of its first process.
        words += "" if kvm_is_real() else " UNIONFS_TEST_INTERPRETED=1"
        yield from ("-append", words)
        writable = {"root": self._disk("root"), **{path.stem: path for path in self._own}}
        for serial, path in writable.items():
            yield from drive(serial, f"format=qcow2,cache=writeback,discard=unmap,file={path}")
        yield from drive("modules", f"format=raw,read-only=on,file={self._kernel.modules_image}")
        yield from drive("cargo", f"format=raw,read-only=on,file={self.directory / 'cargo.tar'}")
        yield from ("-device", "virtio-serial-pci")
        for number, (name, end) in enumerate(pipes.items()):
            yield from ("-add-fd", f"fd={end},set={number}")
            yield from ("-chardev", f"file,id={name},path=/dev/fdset/{number},append=on")
            if name == "console":
                yield from ("-serial", "chardev:console")
            else:
                yield from ("-device", f"virtserialport,chardev={name},name={name}")
        if self._end is not None:
            yield from self._end.devices()


def qemu(memory: int) -> Iterator[str]:
    """Yield the words that a guest of *memory* MiB begins with; it ends when we do."""
    yield from ("setpriv", "--pdeathsig", "KILL", "--", QEMU, "-nodefaults", "-no-user-config")
    yield from ("-accel", "kvm" if kvm_is_real() else "tcg", "-display", "none")
    yield from ("-m", str(memory), "-smp", "1", "-device", "virtio-rng-pci")


def drive(serial: str, what: str) -> tuple[str, ...]:
    """Return the words for a disk, *what* as -drive has it, that the guest knows by *serial*."""
    device = f"virtio-blk-pci,drive={serial},serial={serial}"
    return ("-drive", f"if=none,id={serial},{what}", "-device", device)


def _terminal(*fds: int) -> Iterator[str]:
    """Yield the words for a terminal in the guest, /dev/hvc0, for each of the sockets *fds*."""
    for fd in fds:
        yield from ("-chardev", f"socket,id=terminal,fd={fd}")
        yield from ("-device", "virtconsole,chardev=terminal,name=terminal")


def _read(pipes: dict[int, str], seconds: float | None) -> Iterator[tuple[str, bytes]]:
    """Yield what comes out of each of *pipes* until all have ended; close them.

    Raises `MachineError` when that is not so after *seconds*.
    """
    start = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for end in pipes:
            selector.register(end, selectors.EVENT_READ)
        try:
            while selector.get_map():
                ready = selector.select(seconds and seconds + start - time.monotonic())
                if seconds and not ready:
                    raise MachineError(f"not done after {seconds:.0f} seconds")
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    else:
                        yield pipes[key.fd], data
        finally:
            for end in pipes:
                os.close(end)


def kvm_is_real() -> bool:
    """Say whether the CPU itself runs guests.

    A /dev/kvm without that (PVM) does not run kernels that know nothing of it.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and bool({"vmx", "svm"}.intersection(flags))
