"""What the clients of engines have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

from tests.engines.ground import Ground


class Client(ABC):
    """A command that asks an engine in a *ground*."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    @abstractmethod
    def __call__(self, *arguments: str) -> str:
        """Run the command; what it wrote, without the last end of line."""

    @property
    def said(self) -> str:
        """What the last command said on standard error."""
        return self.ground.said

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """What it knows of a container, an image, a volume, …"""
        found = json.loads(self(kind, "inspect", name))
        assert isinstance(found, list)
        assert isinstance(found[0], dict)
        return found[0]
