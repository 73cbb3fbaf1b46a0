"""Drivers by name: our own, and those that other packages offer.

A package offers one by an entry point of the group ``unionfs.drivers``, whose name is the
driver's and whose object is the class::

    [project.entry-points."unionfs.drivers"]
    copy = "my_package:CopyDriver"

Ours come first: no other can take their names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from unionfs.driver.api import Driver
from unionfs.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP: Final = "unionfs.drivers"

#: Module and class; imported when asked for.
_OWN: Final = {
    "overlay": ("unionfs.driver.overlay", "OverlayDriver"),
    "reflink": ("unionfs.driver.reflink", "ReflinkDriver"),
    "block": ("unionfs.driver.block.driver", "BlockDriver"),
}


def names() -> list[str]:
    """Return the names of all drivers that there are, our own first."""
    return [*_OWN, *sorted({point.name for point in _offered()} - _OWN.keys())]


def driver_class(name: str) -> type[Driver]:
    """Return the driver that is called *name*.

    Raises `InvalidArgumentError` where none is, `UnsupportedError` for one of another
    package that cannot be imported or is no driver.
    """
    if name in _OWN:
        module, attribute = _OWN[name]
        found = getattr(importlib.import_module(module), attribute)
    else:
        point = next((point for point in _offered() if point.name == name), None)
        if point is None:
            known = ", ".join(names())
            raise InvalidArgumentError(f"{name}: no such driver; there are {known}")
        try:
            found = point.load()
        except Exception as error:
            raise UnsupportedError(f"driver {name} ({point.value}): {error}") from error
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise UnsupportedError(f"driver {name}: {found!r} is no storage driver")
    return found


def _offered() -> EntryPoints:
    from importlib import metadata  # noqa: PLC0415 - takes longer than all else, and ours need it not

    return metadata.entry_points(group=GROUP)
