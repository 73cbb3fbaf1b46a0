"""What others change on the layers while we serve them: noticed by looking, then let go of.

A node stands for one object. When another lies in its place, or above it, the name is
given to a new node, under a new number, so that the kernel drops what it keeps of the old
one. Those who have the old object open keep it; it is to them as if it had been unlinked.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unionfs.union.nodes import NEVER, DirNode, FileNode, Node

if TYPE_CHECKING:
    import os

    from unionfs.layer.tree import Directory
    from unionfs.union.merge import Found
    from unionfs.union.tree import MergedTree


def confirm(tree: MergedTree, node: Node, parent: DirNode, name: bytes, found: Found) -> bool:
    """Say whether *node* is still what was *found* under one of its names, and note that."""
    same = (
        _confirm_file(tree, node, parent, name, found)
        if isinstance(node, FileNode)
        else isinstance(node, DirNode) and _confirm_directory(tree, node, found)
    )
    if same:
        node.known = 0
        tree.freshness.found(node)
    return same


def _confirm_file(
    tree: MergedTree, node: FileNode, parent: DirNode, name: bytes, found: Found
) -> bool:
    in_upper = found.places[0].layer is tree.stack.upper
    if not tree.is_itself(node, found.status):
        return False
    if node.index is not None:
        if tree.index_status(node.index) is None:
            return False
    elif in_upper != node.upper:
        return False
    node.reached_by(parent, name)
    if not in_upper:
        node.lower_place, node.lower_name = found.places[0], name
    return True


def _confirm_directory(tree: MergedTree, node: DirNode, found: Found) -> bool:
    """Take what merges from *found* if the directory that shows is the same one."""
    if not found.is_directory or not node.top().is_place(found.places[0]):
        return False
    places = _keeping(node.all_places(), found)
    lowers = places if node.upper is None else places[1:]
    if lowers != node.lowers:
        for place in set(node.lowers) - set(lowers):
            place.layer.descriptors.drop(place)
        node.lowers = lowers
        tree.sieves.drop(node)
        node.changed()
    if node.upper is not None:
        node.redirect = found.redirect
    for place in places:
        place.look_again()
    return True


def _keeping(known: tuple[Directory, ...], found: Found) -> tuple[Directory, ...]:
    """Return the places that were *found*, as the objects that are *known* for them."""
    kept: list[Directory] = []
    for place in found.places:
        same = next((one for one in known if one.is_place(place)), place)
        same.identity = place.identity
        kept.append(same)
    return tuple(kept)


def lose(tree: MergedTree, node: Node, parent: DirNode, name: bytes) -> None:
    """Let *node* no longer have the name under which the layers have another object, or none."""
    if parent.children.get(name) is node:
        del parent.children[name]
    parent.changed()
    if isinstance(node, FileNode):
        node.remove_name(parent, name)
        if node.parent is not None:
            return
    node.found = NEVER
    tree.nodes.gone(node)


def lose_all(tree: MergedTree, node: Node) -> None:
    """Let *node* lose every name: its object is another's by now."""
    names = list(node.names()) if isinstance(node, FileNode) else [(node.parent, node.name)]
    for parent, name in names:
        if parent is not None:
            lose(tree, node, parent, name)


def known_file(
    tree: MergedTree, real: int, status: os.stat_result, *, in_upper: bool
) -> FileNode | None:
    """Return the node that is known for the object *real* of a layer, if it is still that one.

    Numbers of objects that were removed below us come again with others.
    """
    known = tree.nodes.by_real(real)
    if known is None:
        return None
    if isinstance(known, FileNode) and known.kind == stat.S_IFMT(status.st_mode):
        if known.upper == in_upper or known.index is not None:
            return known
        if known.upper:
            tree.nodes.let_go(known, real)
            return None
    lose_all(tree, known)
    return None
