"""An image as an archive has it, before any of its layers is read."""

from __future__ import annotations

from typing import NamedTuple


class Blob(NamedTuple):
    """A file of a bundle, and what is said of its bytes."""

    name: str
    digest: str | None = None
    size: int | None = None


class PackedImage(NamedTuple):
    """An image in a bundle."""

    names: tuple[str, ...]
    layers: tuple[Blob, ...]
    """The lowest first."""
    config: bytes | None
    """``None`` where it can only be made when the layers were read: see *legacy*."""
    legacy: tuple[dict[str, object], ...] = ()
    """What Docker noted of each layer before there were configurations."""
