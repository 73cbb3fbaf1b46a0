"""What a guest is told and given at each boot: a tar on a disk, which ``guest/init`` unpacks.

It has this checkout, the working tree as it is, and in ``.vm`` what to do:

    argv    the command, each argument ended by a zero byte
    term    the kind of the terminal, its rows and columns, where it is a shell instead
    with    what `--with` brings, which is /with in the guest
    keep    there if the disks are used again: then they are unmounted at the end
    node    its number in a network of two, where it is in one
    hosts   the names of both
"""

from __future__ import annotations

import compileall
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mounts import REPOSITORY
from tests.vm import terminal
from tests.vm.network import ADDRESSES, End

#: What is of no use to a guest, by name, wherever it is.
_LEFT_OUT = {
    ".git",
    ".venv",
    ".vagrant",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


def load(
    path: Path,
    argv: Sequence[str],
    *,
    brought: Mapping[str, Path],
    keep: bool,
    end: End | None = None,
) -> None:
    """Write the tar *path*: the command *argv* (none: a shell), files *brought* by name.

    For a machine at *end* of a network it has the names of both.
    """
    # The guest has the same Python, and is slow at compiling.
    for directory in ("unionfs", "tests"):
        compileall.compile_dir(REPOSITORY / directory, quiet=2)
    with tarfile.open(path, "w") as tar:
        add_checkout(tar)
        if argv:
            _add(
                tar,
                "argv",
                b"".join(word.encode(errors="surrogateescape") + b"\0" for word in argv),
            )
        else:
            _add(tar, "term", terminal.described().encode())
        for name, extra in brought.items():
            tar.add(extra, f".vm/with/{name}")
        if keep:
            _add(tar, "keep", b"")
        if end is not None:
            _add(tar, "node", b"%d" % end.number)
            hosts = (f"{address} node{number}\n" for number, address in ADDRESSES.items())
            _add(tar, "hosts", "".join(hosts).encode())


def add_checkout(tar: tarfile.TarFile) -> None:
    """Add the working tree as it is."""
    tar.add(REPOSITORY, ".", filter=_useful)


def _useful(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    path = Path(member.name)
    if _LEFT_OUT.intersection(path.parts) or path.suffix == ".box":
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f".vm/{name}")
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
