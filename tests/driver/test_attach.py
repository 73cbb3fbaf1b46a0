"""What drivers say is mounted, whoever says it, and the longest way too."""

from __future__ import annotations

from pathlib import Path

import pytest

from unionfs.driver.api import Mount
from unionfs.driver.attach import attach, detach

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]


@pytest.mark.parametrize("count", [2, 100])
@pytest.mark.parametrize("lowers_first", [True, False])
def test_an_overlay_of_any_length(scratch: Path, count: int, lowers_first: bool) -> None:
    layers = [scratch / "layers" / f"{number}-{'x' * 20}" for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"of-{number}").touch()
    upper, work, target = (scratch / name for name in ("upper", "work", "target"))
    for directory in (upper, work, target):
        directory.mkdir()
    lower = f"lowerdir={':'.join(map(str, layers))}"
    own = (f"workdir={work}", f"upperdir={upper}")
    options = (lower, *own) if lowers_first else ("index=off", *own, lower)
    attach([Mount("overlay", "overlay", options)], str(target))
    try:
        assert len(list(target.iterdir())) == count
        (target / "new").touch()
        assert (upper / "new").exists()
    finally:
        detach(str(target))


@pytest.mark.parametrize("word", ["ro", "rw"])
def test_a_bind_keeps_what_it_says(scratch: Path, word: str) -> None:
    source, target = scratch / "source", scratch / "target"
    for directory in (source, target):
        directory.mkdir()
    attach([Mount("bind", str(source), ("bind", word))], str(target))
    try:
        if word == "ro":
            with pytest.raises(OSError, match="Read-only file system"):
                (target / "new").touch()
        else:
            (target / "new").touch()
            assert (source / "new").exists()
    finally:
        detach(str(target))
