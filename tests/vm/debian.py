"""Debian's packages: fetched without being installed, or installed in a root file system."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import system
from tests.vm.errors import CannotError
from tests.vm.memory import require_memory

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: Seconds for one program.
PATIENCE = 900
#: A root file system is made in so much memory, where nothing waits for a disk.
_MEMORY = 3 << 30


def run(arguments: Sequence[str], *, place: Path | None = None) -> str:
    """Run a program; return its output. Raises `CannotError` with what it said last."""
    try:
        done = subprocess.run(
            list(arguments),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError as error:
        raise CannotError(f"{arguments[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CannotError(f"{arguments[0]}: not done after {PATIENCE} seconds") from error
    if done.returncode != 0:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise CannotError(f"{arguments[0]} failed:\n{last}")
    return done.stdout


def release() -> str:
    """The name of the release that runs here."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise CannotError("/etc/os-release names no VERSION_CODENAME: Debian is expected")


@functools.cache
def mirrors() -> dict[str, str]:
    """Where apt here has Debian's main part from, for each of its releases (bookworm-updates)."""
    words = ("--no-release-info", "--format", "$(COMPONENT) $(RELEASE) $(REPO_URI)")
    listed = run(["apt-get", "indextargets", *words, "Created-By: Packages"])
    rows = (line.split() for line in listed.splitlines())
    return {name: address for component, name, address in rows if component == "main"}


def mirror() -> str:
    """Where apt here has the release from that runs here, and has others. Raises `CannotError`."""
    if found := mirrors().get(release()):
        return found
    raise CannotError(f"apt has no source of {release()} main: see /etc/apt/sources.list")


@contextlib.contextmanager
def installed(packages: Sequence[str], within: Path) -> Iterator[Path]:
    """Give a root file system with *packages* until the end of the block, mounted in *within*.

    Raises `CannotError`.
    """
    require_memory(_MEMORY >> 20)
    with tempfile.TemporaryDirectory(dir=within) as place:
        system.private_mount_namespace()
        system.mount("none", place, "tmpfs", 0, f"size={_MEMORY}")
        root = Path(place) / "root"
        try:
            words = ("--variant=minbase", f"--include={','.join(packages)}", release())
            run(["mmdebstrap", "--quiet", "--mode=root", *words, str(root), mirror()])
            yield root
        finally:
            system.umount(place, system.MNT_DETACH)


def fetch(meta: str, suite: str, work: Path) -> Path:
    """Download the package that *meta* of *suite* depends on first, into *work*.

    Apt gets directories of its own and no list of what is installed: it only downloads.
    """
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    for directory in ("lists/partial", "archives/partial"):
        (work / directory).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *options, "-q", "update"])
    depends = run(["apt-cache", *options, "depends", "--important", meta])
    package = depends.split("Depends:")[1].split()[0]
    run(["apt-get", *options, "-q", "download", package], place=work)
    (found,) = work.glob("*.deb")
    return found
