"""How long what was found on the layers is taken for true, and who was found when.

The union alone writes its upper layer, and lower ones do not change, so what was found stays
true, as a rule. Those who change layers below us say so by a ``timeout`` that suits them: the
kernel asks again after it, and we look again at what we have not looked at for a tenth
of it. That costs nothing where the kernel keeps what it knows for a day.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from unionfs.union.nodes import NEVER

if TYPE_CHECKING:
    from unionfs.options import MountOptions
    from unionfs.union.nodes import DirNode, Node

#: What was found is good for this part of the timeout: the kernel keeps it as long again.
_PART: Final = 10
#: The time of finding is noted this much coarser than it is good, so that many share one object.
_GRAIN: Final = 16


class Freshness:
    """The clock of one mount's nodes."""

    __slots__ = ("_now", "lifetime")

    def __init__(self, options: MountOptions) -> None:
        names, missing, _ = options.timeouts()
        #: How long what was found is good, in seconds.
        self.lifetime = min(names, missing) / _PART
        self._now = NEVER

    def found(self, node: Node) -> None:
        """Note that *node* is what the layers have now."""
        if self.lifetime:
            now = monotonic()
            if now - self._now > self.lifetime / _GRAIN:
                self._now = now
            node.found = self._now

    def holds(self, node: Node) -> bool:
        """Say whether *node* was found lately."""
        return monotonic() < node.found + self.lifetime

    def holds_for(self, node: Node, parent: DirNode, name: bytes) -> bool:
        """Say whether *node* was found lately, under this one of its names."""
        return node.parent is parent and node.name == name and self.holds(node)
