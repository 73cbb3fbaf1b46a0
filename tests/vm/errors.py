"""Why there is no machine."""

from __future__ import annotations


class CannotError(Exception):
    """What is missing, and where to get it. Nothing was started."""


class MachineError(Exception):
    """The machine ended in another way than its command."""
