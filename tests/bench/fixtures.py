"""What the lowers hold. Each function fills *base* and names the lowers, topmost first."""

from __future__ import annotations

from pathlib import Path

BLOCK = b"\x5a" * 4096


def grid(base: Path, directories: int, files: int, size: int = 4096) -> list[str]:
    """A top layer with the directories and a few files, and the files in the one below."""
    content = BLOCK[:size]
    for number in range(directories):
        top, below = base / "top" / f"d{number:03d}", base / "low" / f"d{number:03d}"
        top.mkdir(parents=True)
        below.mkdir(parents=True)
        (top / "of-the-top").write_bytes(content)
        for file in range(files):
            (below / f"f{file:04d}").write_bytes(content)
    return ["f/top", "f/low"]
