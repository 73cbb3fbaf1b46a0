"""Drivers are found by their names, those of other packages too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driver.drivers import EXAMPLE
from unionfs.driver import registry
from unionfs.errors import InvalidArgumentError, UnsupportedError, UsageError


def test_an_unknown_driver_is_told_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError) as told:
        registry.driver_class("zfs")
    assert str(told.value).startswith("zfs: no such driver; there are overlay, ")
    assert str(told.value).endswith("copy")


def test_the_example_is_short_and_is_what_is_found() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 100
    assert registry.driver_class("copy").name == "copy"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("nowhere_to_be_found:Driver", "No module named"),
        ("json:loads", "no storage driver"),
    ],
)
def test_what_is_offered_but_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, told: str
) -> None:
    about = tmp_path / "broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[unionfs.drivers]\nbroken = {entry}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedError, match=told):
        registry.driver_class("broken")


def test_ours_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "thief-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[unionfs.drivers]\noverlay = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.driver_class("overlay").name == "overlay"
    assert registry.names().count("overlay") == 1


@pytest.mark.needs_root
def test_options_are_checked(tmp_path: Path) -> None:
    overlay = registry.driver_class("overlay")
    with pytest.raises(UsageError, match="unknown option size; it knows: mounter"):
        overlay.open(str(tmp_path / "home"), {"size": "1"})
    with pytest.raises(UsageError, match="mounter=aufs: it is union or kernel"):
        overlay.open(str(tmp_path / "home"), {"mounter": "aufs"})
