"""From a name in a directory to the node that shows there."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from unionfs.union import merge, whiteouts
from unionfs.union.adopt import adopt
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    import os

    from unionfs.union.merge import Found

_NAME_MAX: Final = 255


def child(tree: MergedTree, parent: DirNode, name: bytes) -> Node | None:
    """Return the node that shows as *name* in *parent*, ``None`` when nothing does.

    Raises ENAMETOOLONG, and whatever error a layer has.
    """
    return look(tree, parent, name)[0]


def look(
    tree: MergedTree, parent: DirNode, name: bytes
) -> tuple[Node | None, os.stat_result | None]:
    """Return ``child``, and its attributes as its layer has them if they had to be read."""
    node = parent.children.get(name)
    if node is not None:
        try:
            status = tree.status(node)
            if stat.S_IFMT(status.st_mode) == node.kind:
                return node, status
        except (FileNotFoundError, NotADirectoryError):
            pass
        # A layer was changed below us: look again, under a new number.
        del parent.children[name]
        _disown(tree, node, parent, name)
    if len(name) > _NAME_MAX:
        fail(errno.ENAMETOOLONG, name)
    if whiteouts.is_reserved(name):
        return None, None
    found = _find(tree, parent, name)
    return (None, None) if found is None else adopt(tree, parent, name, found)


def _find(tree: MergedTree, parent: DirNode, name: bytes) -> Found | None:
    sieves = tree.sieves
    if not sieves.lifetime:
        return merge.find(tree.stack.lowers, parent.places(), name)
    candidates = sieves.candidates(parent, name)
    if not candidates:
        return None
    found = merge.find(tree.stack.lowers, parent.places(), name, candidates=candidates)
    if len(candidates) == len(parent.lowers) + (parent.upper is not None):
        sieves.asked(parent, candidates, found)
    return found


def _disown(tree: MergedTree, node: Node, parent: DirNode, name: bytes) -> None:
    if isinstance(node, FileNode):
        node.remove_name(parent, name)
    tree.nodes.gone(node)
