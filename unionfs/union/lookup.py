"""From a name in a directory to the node that shows there."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from unionfs.union import merge, whiteouts
from unionfs.union.adopt import adopt
from unionfs.union.nodes import DirNode, Node
from unionfs.union.outside import confirm, lose
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
    if node is not None and tree.freshness.holds_for(node, parent, name):
        status = _still_there(tree, node)
        if status is not None:
            return node, status
        lose(tree, node, parent, name)
        node = None
    if len(name) > _NAME_MAX:
        fail(errno.ENAMETOOLONG, name)
    if whiteouts.is_reserved(name):
        return None, None
    found = find(tree, parent, name)
    if node is not None:
        if found is not None and confirm(tree, node, parent, name, found):
            return node, None if tree.is_elsewhere(node) else found.status
        lose(tree, node, parent, name)
    return (None, None) if found is None else adopt(tree, parent, name, found)


def _still_there(tree: MergedTree, node: Node) -> os.stat_result | None:
    """Return the attributes of what lies where *node* was found, ``None`` if it is another."""
    try:
        status = tree.status_in_place(node)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if tree.is_itself(node, status) else None


def find(tree: MergedTree, parent: DirNode, name: bytes) -> Found | None:
    """Return what the layers have as *name* in *parent* now, ``None`` when nothing shows."""
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
