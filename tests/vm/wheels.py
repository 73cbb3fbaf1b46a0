"""What pip needs to install this checkout where it reaches no index."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.mounts import REPOSITORY
from tests.vm import cache, debian


def find() -> Path:
    """Return a directory with the wheels of all that unionfs is built of and needs.

    They are of Debian's python3, which machines of the same release have. Raises `CannotError`.
    """
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needs = [
        *settings["build-system"]["requires"],
        *settings["project"]["dependencies"],
        *settings["project"]["optional-dependencies"]["containerd"],
    ]

    def make(into: Path) -> None:
        cache.say(f"fetching {', '.join(needs)}")
        python = str(REPOSITORY / ".venv/bin/python")
        debian.run([python, "-m", "pip", "wheel", "-q", "--wheel-dir", str(into), *needs])

    return cache.made("wheels", f"{debian.release()} {needs}", make)
