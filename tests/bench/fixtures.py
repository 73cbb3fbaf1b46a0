"""What the lowers hold. Each function fills *base* and names the lowers, topmost first."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.bench.arena import Missing, run

BLOCK = b"\x5a" * 4096
MIB = 1 << 20

GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")


def grid(base: Path, directories: int, files: int, size: int = 4096) -> list[str]:
    """A top layer with the directories and a file in each, and the files in the one below."""
    content = BLOCK[:size]
    for number in range(directories):
        top, below = base / "top" / f"d{number:03d}", base / "low" / f"d{number:03d}"
        top.mkdir(parents=True)
        below.mkdir(parents=True)
        (top / "of-the-top").write_bytes(content)
        for file in range(files):
            (below / f"f{file:04d}").write_bytes(content)
    return ["f/top", "f/low"]


def one_directory(base: Path, files: int) -> list[str]:
    """A directory `big` of the lowest layer."""
    (base / "top").mkdir()
    big = base / "low" / "big"
    big.mkdir(parents=True)
    for file in range(files):
        (big / f"f{file:05d}").write_bytes(b"x" * 100)
    return ["f/top", "f/low"]


def tree(base: Path, outer: int, inner: int, files: int) -> list[str]:
    """A checkout with *outer* by *inner* directories, below `tree`, and its repository."""
    (base / "top" / "tree").mkdir(parents=True)
    root = base / "low" / "tree"
    for number in range(outer * inner):
        directory = root / f"a{number // inner:02d}" / f"b{number % inner:02d}"
        directory.mkdir(parents=True)
        for file in range(files):
            (directory / f"file{file:03d}.txt").write_bytes(b"%d\n" % file * 40)
    return ["f/top", "f/low"]


def repository(root: Path) -> None:
    """Make *root* a checkout whose index holds on every file system."""
    git = (*GIT, "-C", str(root))
    run(*git, "init", "-q")
    for setting in ("core.checkStat=minimal", "core.trustctime=false", "core.preloadIndex=false"):
        run(*git, "config", *setting.split("="))
    run(*git, "add", "-A")
    run(*git, "commit", "-qm", "everything")


def archive(path: Path, directories: int, files: int) -> None:
    """A tar of small files below `pack`."""
    source = path.parent / "pack"
    for number in range(directories):
        directory = source / f"d{number:03d}"
        directory.mkdir(parents=True)
        for file in range(files):
            (directory / f"f{file:04d}").write_bytes(BLOCK[: 200 + 37 * (file % 50)])
    with tarfile.open(path, "w") as tar:
        tar.add(source, "pack")


def blob(base: Path, mib: int, name: str = "blob") -> list[str]:
    """One large file in the lowest layer, empty layers above."""
    (base / "top").mkdir()
    (base / "low").mkdir()
    block = os.urandom(MIB)
    with (base / "low" / name).open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())
    return ["f/top", "f/low"]


def drop(path: Path) -> None:
    """Drop the pages of a file, so that it is read again from its disk."""
    file = os.open(path, os.O_RDONLY)
    os.fdatasync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def many_lowers(base: Path, lowers: int, directories: int, files: int) -> list[str]:
    """Lowers that all have the directories; the files are in the last."""
    for lower in range(lowers):
        for number in range(directories):
            directory = base / str(lower) / f"d{number:03d}"
            directory.mkdir(parents=True)
            (directory / f"of-{lower}").touch()
            for file in range(files if lower == lowers - 1 else 0):
                (directory / f"f{file:04d}").write_bytes(b"x")
    return [f"f/{lower}" for lower in range(lowers)]


def virtual_environment(base: Path) -> list[str]:
    """A Python environment with pip in the lowest layer, as `venv`."""
    (base / "top").mkdir()
    for python in ("/usr/bin/python3", sys.executable):
        done = subprocess.run(
            [python, "-m", "venv", str(base / "low" / "venv")], check=False, capture_output=True
        )
        if done.returncode == 0:
            return ["f/top", "f/low"]
    raise Missing("python3 -m venv does not work here")


def _module(package: int, number: int) -> str:
    functions = (
        f"def function_{n}(a, b={n}):\n"
        f'    """Adds {package}.{number}.{n}."""\n'
        f"    return [a + b + {n} for _ in range({number % 7})]\n"
        for n in range(20)
    )
    return "\n\n".join(functions)


def wheel(directory: Path, package: int, modules: int) -> str:
    """A wheel of a package that imports all its *modules*; its name."""
    name = f"bench_package_{package}"
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/module_{n}.py": _module(package, n) for n in range(modules)}
    imports = "".join(f"from . import module_{n}\n" for n in range(modules))
    files[f"{name}/__init__.py"] = imports
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as made:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record += f"{path},sha256={digest.decode().rstrip('=')},{len(text)}\n"
            made.writestr(path, text)
        made.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return name
