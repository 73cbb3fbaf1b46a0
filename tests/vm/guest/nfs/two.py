"""Two guests of one network: node1 exports a union, node2 writes to it while node1 loses its power.

``python -m tests.vm.guest.nfs.two server`` runs on node1 twice, with the same disk: first until the
host cuts the power, when the console shows `CUT`. ``… client`` runs on node2 all the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.nfs import shop
from tests.vm.guest.nfs.server import Daemons, Nfsd, run

#: What the console shows when the power is to be cut.
CUT = "the client waits for the cut"
DISK, UNION = Path("/dev/vdb"), Path("/srv/union")
VERSIONS = ("3", "4.2")
RECORDS, BEFORE_THE_CUT = 16, 6
LARGE = bytes(range(256)) * 2000
#: Seconds for the other one to come to what is waited for: it may have to boot.
PATIENCE = 300


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "the other guest does not come to it"
        time.sleep(0.2)


def _mount_disk() -> bool:
    """Mount the server's disk; whether it had a file system already."""
    kept = subprocess.run(["blkid", DISK], stdout=subprocess.DEVNULL, check=False).returncode == 0
    if not kept:
        run("mkfs.ext4", "-q", DISK)
    place = UNION.parent
    place.mkdir(exist_ok=True)
    run("mount", DISK, place)
    if not kept:
        for name in ("lower", "upper", "work", "union"):
            (place / name).mkdir()
        (place / "lower/file").write_text("from below")
        shop.make(place / "lower/shop.db")
        run("sync")
    return kept


def _union() -> None:
    layers = (f"{name}dir={UNION.parent / name}" for name in ("lower", "upper", "work"))
    run("unionfs", "mount", "-o", ",".join((*layers, "nfs_export=on")), UNION)


def server() -> None:
    """Export the union until the client is done."""
    again = _mount_disk()
    assert again == ("recovery complete" in run("dmesg")), "it was no power cut"
    _union()
    daemons, nfsd = Daemons(), Nfsd(Path("/mnt"))
    nfsd.start()
    nfsd.export(UNION)
    if not again:
        wait_for((UNION / "cut").exists)
        Path("/dev/console").write_text(f"{CUT}\n")
        time.sleep(PATIENCE)
    wait_for((UNION / "done").exists)
    for version in VERSIONS:
        check(version)
    shop.check(UNION / "shop.db", VERSIONS, RECORDS)
    nfsd.end()
    daemons.end()
    run("unionfs", "umount", UNION)
    sys.stdout.write("all there\n")


def check(version: str) -> None:
    """Fail unless all is there that the client of *version* has synced."""
    records = (UNION / f"records{version}").read_text().splitlines()
    assert records == [str(number) for number in range(RECORDS)], records
    assert (UNION / f"large{version}").read_bytes() == LARGE
    assert (UNION / f"moved{version}/by a new name").read_text() == version


def client() -> None:
    """Write before the cut, and on without a word of it."""
    daemons, nfsd = Daemons(), Nfsd(Path("/mnt"))
    wait_for(_is_exported)
    options = ("hard", "timeo=50", "nosharecache")
    roots = {version: nfsd.mount(UNION, version, *options, host="node1") for version in VERSIONS}
    assert all((root / "file").read_text() == "from below" for root in roots.values())
    databases = {version: shop.connect(root / "shop.db") for version, root in roots.items()}
    files = {version: Records(root, version) for version, root in roots.items()}
    for number in range(RECORDS):
        if number == BEFORE_THE_CUT:
            for records in files.values():
                records.write_large()
            write_synced(roots["3"] / "cut", b"")
        for version, records in files.items():
            records.write(number)
            shop.take(databases[version], version, [number])
    for version in VERSIONS:
        files[version].end()
        databases[version].close()
    write_synced(roots["3"] / "done", b"")
    nfsd.end()
    daemons.end()
    sys.stdout.write("done\n")


def _is_exported() -> bool:
    asked = ["showmount", "--no-headers", "--exports", "node1"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return str(UNION) in done.stdout


class Records:
    """A file that one client has open all the time, and writes to in small steps."""

    def __init__(self, root: Path, version: str) -> None:
        self._root, self._version = root, version
        self._file = os.open(root / f"records{version}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.mkdir(root / f"moved{version}")
        write_synced(root / f"moved{version}" / "first", version.encode())
        self._large = os.open(root / f"large{version}", os.O_WRONLY | os.O_CREAT)
        os.fsync(self._large)

    def write(self, number: int) -> None:
        """Have one more record on the server's disk."""
        os.write(self._file, b"%d\n" % number)
        os.fsync(self._file)

    def write_large(self) -> None:
        """Send what the server need not have on its disk; it is sent once more after the cut."""
        os.write(self._large, LARGE)

    def end(self) -> None:
        os.fsync(self._large)
        os.close(self._large)
        os.close(self._file)
        where = self._root / f"moved{self._version}"
        (where / "first").rename(where / "by a new name")


def write_synced(path: Path, data: bytes) -> None:
    """Make the file *path*, and have it on the server's disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    {"server": server, "client": client}[sys.argv[1]]()
