"""What is the thin engine's own; it is run in a virtual machine, where this kernel cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, Ground
from tests.driver.pools import Disk, pool, pool_of_disks, require_device_mapper
from tests.watchdog import Watchdog
from unionfs.driver import programs
from unionfs.driver.attach import attach, detach
from unionfs.driver.block import pool as thin_pool
from unionfs.driver.block.driver import BlockDriver
from unionfs.driver.block.thin import ThinEngine
from unionfs.errors import FailedPreconditionError, FaultyError, UnsupportedError, UsageError

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
#: What a pool of `pools` gives a device at once.
BLOCK = 65536


def nothing(_root: Path) -> None:
    pass


def one_file(root: Path) -> None:
    (root / "file").write_text("x")


@pytest.fixture
def make(scratch: Path, watchdog: Watchdog) -> Callable[..., Ground]:
    """Makes the ground on a pool at a path."""

    def on(path: str = "", **devices: str) -> Ground:
        home = scratch / "home"
        home.mkdir()
        options = {"engine": "thin", "size": "256M", **(devices or {"thinpool": path})}
        return Ground(KITS["block-thin"]._replace(options=options), home, watchdog)

    return on


def fill(path: Path, size: int) -> None:
    """Write *size* bytes that are no zeros, and bring them to the disk."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def test_a_full_pool(scratch: Path, make: Callable[..., Ground]) -> None:
    with pool(scratch, size=96 * MIB) as path:
        ground = make(path)
        ground.write("base", "", nothing)
        ground.driver.prepare("key", "base")
        with ground.at("key") as root:
            (root / "kept").write_text("kept")
            os.sync()
            with pytest.raises(OSError, match=r"No space|Input/output|Read-only"):
                fill(root / "large", 200 * MIB)
            assert (root / "kept").read_text() == "kept"
        with pytest.raises(OSError, match="nearly full") as raised:
            ground.driver.prepare("another", "base")
        assert raised.value.errno == errno.ENOSPC
        assert path in str(raised.value)
        ground.driver.remove("key")
        ground.driver.prepare("key", "base")
        with ground.at("key") as root:
            (root / "new").write_text("there is room again")
        end(ground)


def test_a_pool_that_others_change_is_left_alone(
    scratch: Path, make: Callable[..., Ground]
) -> None:
    with pool(scratch) as path:
        ground = make(path)
        ground.write("base", "", nothing)
        with pytest.raises(FaultyError, match="another store's"):
            BlockDriver.open(str(scratch / "other"), dict(ground.kit.options)).prepare("key")
        count = thin_pool.Pool(path, str(scratch)).status().transaction
        message = ["dmsetup", "message", path, "0", f"set_transaction_id {count} {count + 7}"]
        subprocess.run(message, check=True)
        with pytest.raises(FaultyError, match="changed by others"):
            ground.driver.prepare("key", "base")
        message[-1] = f"set_transaction_id {count + 7} {count}"
        subprocess.run(message, check=True)
        ground.driver.prepare("key", "base")
        end(ground)


def test_a_device_that_was_held_up_goes_on(scratch: Path, make: Callable[..., Ground]) -> None:
    """Whoever suspended it was killed before he could let it go on."""
    with pool(scratch) as path:
        ground = make(path)
        ground.driver.prepare("key")
        source = ground.driver.mounts("key")[0].source
        subprocess.run(["dmsetup", "suspend", source], check=True)
        assert ground.driver.mounts("key")[0].source == source
        state = ["dmsetup", "info", "-c", "--noheadings", "-o", "suspended", source]
        assert subprocess.check_output(state, text=True).strip() == "Active"
        ground.driver.release("key")
        end(ground)


def forget_pages() -> None:
    """Let the next read come from the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_a_bad_spot_of_the_disk(scratch: Path, make: Callable[..., Ground]) -> None:
    """Who reads it meets EIO; all else goes on, and all is there when the disk is well again."""
    with pool_of_disks(scratch) as disks:
        ground = make(disks.path)
        ground.write("base", "", lambda root: fill(root / "old", MIB))
        status = thin_pool.Pool(disks.path, str(scratch)).status
        for key in ("one", "other"):
            ground.driver.prepare(key, "base")
        with ground.at("one") as one, ground.at("other") as other:
            start = status().data[0] * BLOCK
            fill(one / "large", 16 * MIB)
            disks.data.fail(start, status().data[0] * BLOCK)
            forget_pages()
            with pytest.raises(OSError, match="Input/output") as raised:
                (one / "large").read_bytes()
            assert raised.value.errno == errno.EIO
            fill(other / "new", 4 * MIB)
            forget_pages()
            assert len((other / "new").read_bytes()) == 4 * MIB
            assert len((other / "old").read_bytes()) == MIB
            ground.driver.prepare("third", "base")
            disks.data.mend()
            assert len((one / "large").read_bytes()) == 16 * MIB
        end(ground)


def test_a_disk_that_takes_no_writes(scratch: Path, make: Callable[..., Ground]) -> None:
    with pool_of_disks(scratch) as disks:
        ground = make(disks.path)
        ground.write("base", "", nothing)
        ground.driver.prepare("key", "base")
        target = scratch / "target"
        target.mkdir()
        attach(ground.driver.mounts("key"), str(target))
        try:
            fill(target / "kept", MIB)
            kept = (target / "kept").read_bytes()
            os.sync()
            disks.data.refuse_writes()
            with pytest.raises(OSError, match="Input/output") as raised:
                fill(target / "lost", MIB)
            assert raised.value.errno == errno.EIO
            forget_pages()
            assert (target / "kept").read_bytes() == kept
            disks.data.mend()
        finally:
            detach(str(target))
        # It is released, whether or not the kernel has told by now that something was lost.
        with contextlib.suppress(OSError):
            ground.driver.release("key")
        with ground.at("key") as root:
            assert (root / "kept").read_bytes() == kept
            fill(root / "new", MIB)
        end(ground)


def test_metadata_that_cannot_be_written(scratch: Path, make: Callable[..., Ground]) -> None:
    """All is refused with the reason, until the pool was taken away and is repaired."""
    with pool_of_disks(scratch) as disks:
        ground = make(disks.path)
        ground.write("base", "", nothing)
        for key in ("one", "other"):
            ground.driver.prepare(key, "base")
            with ground.at(key) as root:
                (root / "kept").write_text(key)
        source = ground.driver.mounts("other")[0].source
        disks.metadata.fail()
        for _ in range(2):
            with pytest.raises(OSError, match=r"since an error|has failed") as raised:
                ground.driver.prepare("third", "base")
            assert raised.value.errno == errno.EIO
            assert disks.path in str(raised.value)
        with pytest.raises(OSError, match="has failed") as raised:
            ground.driver.release("other")
        assert raised.value.errno == errno.EIO
        subprocess.run(["dmsetup", "remove", source], check=True)
        disks.stop()
        disks.metadata.mend()
        disks.check("--clear-needs-check-flag")
        disks.start()
        for key in ("one", "other"):
            with ground.at(key) as root:
                assert (root / "kept").read_text() == key
        ground.driver.cleanup()  # of what was tried meanwhile
        ground.driver.prepare("third", "base")
        end(ground)


def test_what_was_not_written_is_no_commit(scratch: Path, make: Callable[..., Ground]) -> None:
    """The device is gone then, but who commits hears of the error."""
    with pool_of_disks(scratch) as disks:
        ground = make(disks.path)
        ground.driver.prepare("key")
        with ground.at("key") as root:
            (root / "kept").write_text("kept")
        source = ground.driver.mounts("key")[0].source
        with open(source, "r+b", buffering=0) as device:
            first = device.read(4096)
            device.seek(0)
            device.write(first)
            disks.data.refuse_writes()
            with pytest.raises(OSError, match="Input/output"):
                ground.driver.commit("name", "key")
        disks.data.mend()
        ground.driver.commit("name", "key")
        with ground.seen("name") as root:
            assert (root / "kept").read_text() == "kept"
        end(ground)


def test_a_pool_of_two_devices(scratch: Path, make: Callable[..., Ground]) -> None:
    """It is made when it is first used, and again after each boot."""
    require_device_mapper()
    data, metadata = Disk(scratch / "data", 2 << 30), Disk(scratch / "metadata", 16 * MIB)
    ground = make(datadev=data.path, metadatadev=metadata.path)
    ground.write("base", "", one_file)
    found = subprocess.check_output(["dmsetup", "ls", "--target", "thin-pool"], text=True)
    (name,) = (line.split()[0] for line in found.splitlines())
    subprocess.run(["dmsetup", "remove", name], check=True)  # as a boot does
    ground.driver = ground.open()
    with ground.seen("base") as root:
        assert (root / "file").read_text() == "x"
    other = Disk(scratch / "other", 1 << 30)
    options = {**ground.kit.options, "datadev": other.path}
    with pytest.raises(FailedPreconditionError, match="of other devices"):
        BlockDriver.open(str(ground.home / "block"), options)
    end(ground)
    subprocess.run(["dmsetup", "remove", name], check=True)
    subprocess.run(["thin_check", "-q", metadata.path], check=True)
    for disk in (data, metadata, other):
        disk.end()


def test_devices_that_are_not_empty(scratch: Path) -> None:
    require_device_mapper()
    used, empty = Disk(scratch / "used", 1 << 30), Disk(scratch / "empty", 1 << 30)
    subprocess.run(["mkfs.ext4", "-q", used.path], check=True)
    for data, metadata in ((used, empty), (empty, used)):
        options = {"engine": "thin", "datadev": data.path, "metadatadev": metadata.path}
        with pytest.raises(FailedPreconditionError, match="if it is of no use any more"):
            BlockDriver.open(str(scratch / "home"), options)
    subprocess.run(["e2fsck", "-fn", used.path], check=True)
    for disk in (used, empty):
        disk.end()


class Simulated:
    """What dmsetup(8) does with a pool, and where it fails: this machine may have no pools."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.failing: set[str] = set()
        self._shown: dict[str, str] = {}
        self._transaction = 0

    def __call__(self, *words: str) -> str:
        match words:
            case ("table", "--target", "thin"):
                shown = self._shown.items()
                return "".join(f"{name}: 0 8 thin {table}\n" for name, table in shown)
            case ("create", name, *_, table) if table.split()[-1] in self.devices:
                self._shown[name] = table.split(" thin ")[1]
                return ""
            case ("remove", *_, name):
                del self._shown[name]
                return ""
            case ("info", *_):
                return ""
            case ("table", _):
                return "0 2048 thin-pool 7:0 7:1 128 0 1 error_if_no_space\n"
            case ("status", _):
                return f"0 2048 thin-pool {self._transaction} 1/99 1/99 - rw error_if_no_space -\n"
            case ("message", _, _, text):
                self._tell(*text.split())
                return ""
        raise programs.ProgramError("dmsetup: there is no such device", 1)

    def _tell(self, verb: str, *arguments: str) -> None:
        if verb in self.failing or (verb == "delete") > (arguments[0] in self.devices):
            raise programs.ProgramError("dmsetup: Invalid argument", 1)
        match verb:
            case "create_thin" | "create_snap":
                assert arguments[0] not in self.devices
                self.devices.add(arguments[0])
            case "delete":
                self.devices.remove(arguments[0])
            case "set_transaction_id":
                self._transaction = int(arguments[1])


def test_what_was_made_and_not_counted(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that the pool made, but could not count, is no device of anybody's."""
    simulated = Simulated()
    monkeypatch.setattr(thin_pool, "_dmsetup", simulated)
    engine = ThinEngine(str(scratch), {"thinpool": "/dev/null"})
    engine.create(1, MIB)
    simulated.failing = {"set_transaction_id"}
    with pytest.raises(programs.ProgramError, match="Invalid argument"):
        engine.snap(2, 1, MIB)
    assert simulated.devices == {"1"}
    simulated.failing = {"set_transaction_id", "delete"}
    with pytest.raises(programs.ProgramError, match="Invalid argument"):
        engine.snap(3, 1, MIB)
    simulated.failing = set()
    assert engine.leftovers({1}) == [3], "it was forgotten, and is there"
    engine.discard(3)
    engine.snap(2, 1, MIB)
    assert simulated.devices == {"1", "2"}


def end(ground: Ground) -> None:
    """Remove all snapshots, and see that nothing is left of them in the pool."""
    ground.close()
    left = [name for name in os.listdir(ground.home / "block/thin") if name.isdigit()]
    driver = ground.open()
    assert isinstance(driver, BlockDriver)
    known = [str(row[0]) for row in driver.metadata.rows("SELECT id FROM devices")]
    driver.close()
    assert sorted(left) == sorted(known)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "thin"}, "engine=thin: needs thinpool=, or datadev= and metadatadev="),
        ({"engine": "thin", "datadev": "/dev/x"}, "engine=thin: needs thinpool="),
        ({"datadev": "/dev/x"}, "datadev: only with engine=thin"),
        (
            {"engine": "thin", "datadev": "/dev/x", "thinpool": "/dev/mapper/x"},
            "datadev: not with thinpool=",
        ),
        ({"thinpool": "/dev/mapper/x"}, "thinpool: only with engine=thin"),
    ],
)
def test_options_that_cannot_be(scratch: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BlockDriver.open(str(scratch / "home"), options)


def test_what_is_no_device(scratch: Path) -> None:
    options = {"engine": "thin", "datadev": "/dev/null", "metadatadev": str(scratch)}
    with pytest.raises(UsageError, match=f"metadatadev={scratch}: is no block device"):
        BlockDriver.open(str(scratch / "home"), options)


def test_what_is_no_pool(scratch: Path) -> None:
    options = {"engine": "thin", "thinpool": "/dev/null"}
    with pytest.raises(UnsupportedError, match=r"is no pool of dm-thin|is not in PATH"):
        BlockDriver.open(str(scratch / "home"), options)
