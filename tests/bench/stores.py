"""What keeps snapshots: our drivers, and containerd's snapshotters; each on a fresh home."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import system
from tests.bench.arena import Ground, run
from tests.bench.mounting import Launch
from tests.bench.systems import System, output
from tests.engines.containerd import OWN_HOME
from tests.mounts import GRACE, device_minor, mounted_below
from tests.watchdog import abort
from unionfs import __version__
from unionfs.driver import registry
from unionfs.errors import StoreError

#: Our drivers by the name in the report, each with its options.
DRIVERS = {
    "driver-overlay": "",
    "driver-overlay-kernel": "mounter=kernel",
    "driver-block": "",
    "driver-reflink": "",
}
SNAPSHOTTERS = ("containerd-overlayfs", "containerd-native")
#: Whom the ratios are to.
PEER = SNAPSHOTTERS[0]


def find() -> tuple[list[System], list[str]]:
    """What keeps snapshots here, and what does not, with why."""
    known = registry.names()
    present = [
        System(name, "driver", options, version=__version__)
        for name, options in DRIVERS.items()
        if driver_of(name) in known
    ]
    program = shutil.which("containerd")
    reason = "no containerd in PATH" if program is None else ""
    if not reason and importlib.util.find_spec("grpc") is None:
        reason = "no grpcio for this Python"
    if program is None or reason:
        return present, [f"{name} ({reason})" for name in SNAPSHOTTERS]
    found = re.search(r"containerd \S+ (\S+)", output(program, "--version"))
    version = f"containerd {found[1] if found else '?'}"
    present += [System(name, "containerd", "", program, version) for name in SNAPSHOTTERS]
    return present, []


def driver_of(name: str) -> str:
    """What the system *name* is called by ours or by containerd."""
    return name.split("-")[1]


@dataclass
class Store:
    """The home of one system in the directory *place* of a ground; containerd runs there."""

    system: System
    ground: Ground
    launch: Launch
    place: str = "r/0"
    containerd: subprocess.Popen[str] | None = None

    @property
    def root(self) -> Path:
        return self.ground.root / self.place

    @property
    def address(self) -> tuple[str, str, str]:
        """For a worker: kind and name, where it is, and options."""
        name = driver_of(self.system.name)
        where = self.root / ("socket" if self.system.kind == "containerd" else name)
        return f"{self.system.kind}:{name}", str(where), self.system.options

    def command(self, *words: str) -> list[str]:
        """Its command line for snapshots."""
        name = driver_of(self.system.name)
        if self.system.kind == "containerd":
            socket = str(self.root / "socket")
            own = ["ctr", "--address", socket, "--namespace", "bench"]
            return [*own, "snapshots", "--snapshotter", name, *words]
        options = ["--storage-opt", self.system.options] if self.system.options else []
        # --root would have to be a store by now, and only its driver has been used.
        own = ["env", f"UNIONFS_ROOT={self.root}", self.launch.python, "-m", "unionfs"]
        return [*own, "snapshot", *words, "--driver", name, *options]

    def start(self) -> None:
        """Make the home; start containerd and wait until it answers."""
        self.root.mkdir(parents=True)
        if self.system.kind != "containerd":
            return
        configuration = self.root / "config.toml"
        configuration.write_text(OWN_HOME.format(home=self.root))
        log = self.root / "log"
        with log.open("w") as file:
            self.containerd = self.launch.start(
                [self.system.program, "--config", str(configuration)], stdout=file, stderr=file
            )
        end = time.monotonic() + 20.0
        while "containerd successfully booted" not in log.read_text():
            if self.containerd.poll() is not None or time.monotonic() > end:
                raise OSError(f"containerd did not start: {log.read_text()[-300:]}")
            time.sleep(0.02)

    def used(self) -> int:
        """Bytes that are used of the file system it is on, which is its own, all written out."""
        run("sync", "-f", str(self.root))
        found = os.statvfs(self.root)
        return found.f_frsize * (found.f_blocks - found.f_bfree)

    def release(self) -> None:
        """Give back what a worker that failed has taken."""
        for target in mounted_below(self.root.parent):
            if (minor := device_minor(Path(target))) is not None:
                abort(minor)
            system.umount(target, system.MNT_DETACH)
        if self.system.kind == "driver":
            name = driver_of(self.system.name)
            driver = registry.driver_class(name).open(str(self.root / name), {})
            for info in driver.walk():
                driver.release(info.key)
            driver.close()

    def stop(self) -> None:
        """End containerd, and remove the home."""
        if self.containerd is not None:
            self.containerd.terminate()
            try:
                self.containerd.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.containerd.kill()
                self.containerd.wait(GRACE)
            self.containerd = None
        # Its memory goes back at once: some are large.
        self.ground.clear()


@contextlib.contextmanager
def running(store: Store) -> Iterator[Store]:
    """*store* from its start to its end."""
    try:
        store.start()
        yield store
    except Exception:
        with contextlib.suppress(OSError, StoreError):
            store.release()
        raise
    finally:
        store.stop()
