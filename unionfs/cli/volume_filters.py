"""``--filter`` of the commands for volumes, as Docker has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from unionfs.errors import UsageError
from unionfs.store.volume import Volume
from unionfs.store.volumes import Volumes

_KNOWN: Final = ("dangling", "driver", "label", "label!", "name")
_TRUTH: Final = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


class Filters:
    """All that was asked for: one of the values of each kind, and every label.

    Raises `UsageError`.
    """

    def __init__(self, given: Iterable[str]) -> None:
        self._values: dict[str, list[str]] = {}
        for text in given:
            key, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"bad format of filter (expected name=value): {text}")
            if key not in _KNOWN:
                raise UsageError(f"invalid filter '{key}'; there are {', '.join(_KNOWN)}")
            if key == "dangling" and value.lower() not in _TRUTH:
                raise UsageError(f"invalid filter 'dangling={value}'; it is true or false")
            self._values.setdefault(key, []).append(value)

    def chosen(self, volumes: Volumes) -> list[Volume]:
        """Return those of *volumes* that pass."""
        found = [volume for volume in volumes.all() if self._passes(volume)]
        wanted = {_TRUTH[text.lower()] for text in self._values.get("dangling", ())}
        if len(wanted) != 1:
            return found
        used = volumes.in_use()
        return [volume for volume in found if (volume.name not in used) in wanted]

    def _passes(self, volume: Volume) -> bool:
        drivers, names = self._values.get("driver"), self._values.get("name")
        if drivers is not None and volume.driver not in drivers:
            return False
        if names is not None and not any(_matches(text, volume.name) for text in names):
            return False
        labels = self._values.get("label", ())
        without = self._values.get("label!", ())
        return all(_has(volume, text) for text in labels) and not any(
            _has(volume, text) for text in without
        )


def _matches(text: str, name: str) -> bool:
    """Say whether *name* has *text* in it, or what it means as a regular expression."""
    if text in name:
        return True
    try:
        return re.search(text, name) is not None
    except re.error:
        return False


def _has(volume: Volume, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == value)
