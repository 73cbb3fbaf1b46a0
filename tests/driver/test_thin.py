"""What is the thin engine's own; it is run in a virtual machine, where this kernel cannot."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, Ground
from tests.driver.pools import pool
from tests.watchdog import Watchdog
from unionfs.driver.block import pool as thin_pool
from unionfs.driver.block.driver import BlockDriver
from unionfs.errors import FaultyError, UnsupportedError, UsageError

pytestmark = pytest.mark.needs_root

MIB = 1 << 20


def nothing(_root: Path) -> None:
    pass


@pytest.fixture
def make(scratch: Path, watchdog: Watchdog) -> Callable[..., Ground]:
    """Makes the ground on a pool at a path."""

    def on(path: str) -> Ground:
        home = scratch / "home"
        home.mkdir()
        options = {"engine": "thin", "thinpool": path, "size": "256M"}
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
        ({"engine": "thin"}, "engine=thin: needs thinpool="),
        ({"thinpool": "/dev/mapper/x"}, "thinpool: only with engine=thin"),
    ],
)
def test_options_that_cannot_be(scratch: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BlockDriver.open(str(scratch / "home"), options)


def test_what_is_no_pool(scratch: Path) -> None:
    options = {"engine": "thin", "thinpool": "/dev/null"}
    with pytest.raises(UnsupportedError, match=r"is no pool of dm-thin|is not in PATH"):
        BlockDriver.open(str(scratch / "home"), options)
