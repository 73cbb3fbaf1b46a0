"""The programs that drivers run, and the packages that have them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from unionfs.errors import StoreError, UnsupportedError

#: Debian's names; where two are named, the first is that of Debian 12.
_PACKAGES: Final = {
    "qemu-storage-daemon": "qemu-system-common (Debian 12) or qemu-utils (Debian 13)",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "fsfreeze": "util-linux",
    "blockdev": "util-linux",
    "wipefs": "util-linux",
    "mount": "mount",
    "cp": "coreutils",
    "dmsetup": "dmsetup",
    "thin_delta": "thin-provisioning-tools",
}
_END_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")
#: Seconds after which a program that should be quick is taken to hang.
_PATIENCE: Final = 300


class ProgramError(StoreError):
    """A program that was run failed; *status* is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def require(*programs: str) -> None:
    """Raise `UnsupportedError` for a program that is not in PATH; it names the package."""
    for program in programs:
        if shutil.which(program) is None:
            raise UnsupportedError(
                f"{program} is not in PATH: install the package {_PACKAGES[program]}"
            )


def run(arguments: Sequence[str], *, place: str = "/") -> str:
    """Run a program in the directory *place* and return what it printed.

    It is killed if we are: what it makes would else grow while others remove it. Raises
    `ProgramError` with the last line that it said, `UnsupportedError` where it is missing.
    """
    try:
        done = subprocess.run(
            [*_END_WITH_US, *arguments],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        require(_END_WITH_US[0])
        raise
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{arguments[0]}: not done after {_PATIENCE} seconds", 124) from error
    if done.returncode != 0:
        require(_END_WITH_US[0], arguments[0])
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        if len(said) > 1 and said[-1].startswith("Command failed"):
            del said[-1]  # what dmsetup says after the reason
        last = said[-1] if said else f"exit status {done.returncode}"
        raise ProgramError(
            f"{arguments[0]}: {last.removeprefix(arguments[0] + ': ')}", done.returncode
        )
    return done.stdout
