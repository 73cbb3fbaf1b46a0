"""What tests put into layers by hand: files, marks of every form, and the kinds of names.

A *kind* is one way in which a name can stand in a stack of two lowers and an upper. The tables of
oracle tests go over all kinds, or over all pairs of them.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from tests.mounts import Layers

Path_ = str | bytes | Path


def write(path: Path, content: str | bytes = "", mode: int = 0o644) -> Path:
    """Make a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def whiteout(path: Path) -> None:
    """The form that everyone writes: a character device 0:0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def xattr_whiteout(path: Path, namespace: str = "trusted") -> None:
    """The form of kernel 6.7: an empty file with a mark in a directory with another."""
    write(path)
    os.setxattr(path, f"{namespace}.overlay.whiteout", b"y")
    os.setxattr(path.parent, f"{namespace}.overlay.opaque", b"x")


def opaque(path: Path, name: str = "trusted.overlay.opaque") -> None:
    """Make a directory that hides the lower ones."""
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, name, b"y")


def redirect(path: Path, target: str, namespace: str = "trusted") -> None:
    """Make a directory whose lower part stands elsewhere."""
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, f"{namespace}.overlay.redirect", target.encode())


def sock(path: Path) -> None:
    """Make a socket that nobody listens on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFSOCK | 0o644)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_access from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


#: Tags of ACL entries, and the id of entries that have none.
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, NO_ID = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF

Kind = Callable[[Layers, str], None]


def _upper(layers: Layers) -> Path:
    assert layers.upper is not None
    return layers.upper


def _full(directory: Path) -> None:
    directory.mkdir(parents=True)
    write(directory / "inside", "inside")


def absent(layers: Layers, name: str) -> None:
    pass


def lower_file(layers: Layers, name: str) -> None:
    write(layers.lowers[0] / name, "lower")


def lowest_file(layers: Layers, name: str) -> None:
    write(layers.lowers[1] / name, "lowest", 0o640)


def upper_file(layers: Layers, name: str) -> None:
    write(_upper(layers) / name, "upper")


def covered_file(layers: Layers, name: str) -> None:
    write(layers.lowers[0] / name, "lower")
    write(_upper(layers) / name, "upper over lower")


def deleted_file(layers: Layers, name: str) -> None:
    write(layers.lowers[0] / name, "lower")
    whiteout(_upper(layers) / name)


def deleted_below(layers: Layers, name: str) -> None:
    write(layers.lowers[1] / name, "lowest")
    whiteout(layers.lowers[0] / name)


def deleted_directory(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    whiteout(_upper(layers) / name)


def lower_empty(layers: Layers, name: str) -> None:
    (layers.lowers[0] / name).mkdir(parents=True)


def lower_full(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    write(layers.lowers[1] / name / "deeper" / "lowest", "lowest")


def upper_empty(layers: Layers, name: str) -> None:
    (_upper(layers) / name).mkdir(parents=True)


def upper_full(layers: Layers, name: str) -> None:
    _full(_upper(layers) / name)


def merged_full(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    write(_upper(layers) / name / "above", "above")


def merged_empty(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    whiteout(_upper(layers) / name / "inside")


def opaque_full(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    opaque(_upper(layers) / name)
    write(_upper(layers) / name / "above", "above")


def opaque_empty(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    opaque(_upper(layers) / name)


def directory_over_file(layers: Layers, name: str) -> None:
    write(layers.lowers[0] / name, "lower")
    _full(_upper(layers) / name)


def file_over_directory(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / name)
    write(_upper(layers) / name, "upper")


def redirected(layers: Layers, name: str) -> None:
    _full(layers.lowers[0] / f"{name}-was-here")
    whiteout(_upper(layers) / f"{name}-was-here")
    redirect(_upper(layers) / name, Path(name).name + "-was-here")


def lower_symlink(layers: Layers, name: str) -> None:
    (layers.lowers[0] / name).parent.mkdir(parents=True, exist_ok=True)
    (layers.lowers[0] / name).symlink_to("nowhere")


def upper_symlink(layers: Layers, name: str) -> None:
    (_upper(layers) / name).parent.mkdir(parents=True, exist_ok=True)
    (_upper(layers) / name).symlink_to("nowhere")


def lower_links(layers: Layers, name: str) -> None:
    write(layers.lowers[0] / name, "linked")
    os.link(layers.lowers[0] / name, layers.lowers[0] / f"{name}-other")


def upper_links(layers: Layers, name: str) -> None:
    write(_upper(layers) / name, "linked")
    os.link(_upper(layers) / name, _upper(layers) / f"{name}-other")


def lower_fifo(layers: Layers, name: str) -> None:
    (layers.lowers[0] / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(layers.lowers[0] / name, 0o644)


def lower_device(layers: Layers, name: str) -> None:
    (layers.lowers[0] / name).parent.mkdir(parents=True, exist_ok=True)
    os.mknod(layers.lowers[0] / name, stat.S_IFCHR | 0o644, os.makedev(1, 3))


def lower_socket(layers: Layers, name: str) -> None:
    sock(layers.lowers[0] / name)


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        absent,
        lower_file,
        lowest_file,
        upper_file,
        covered_file,
        deleted_file,
        deleted_below,
        deleted_directory,
        lower_empty,
        lower_full,
        upper_empty,
        upper_full,
        merged_full,
        merged_empty,
        opaque_full,
        opaque_empty,
        directory_over_file,
        file_over_directory,
        redirected,
        lower_symlink,
        upper_symlink,
        lower_links,
        upper_links,
        lower_fifo,
        lower_device,
        lower_socket,
    )
}


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at *path*."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener
