"""What stands where: topmost wins, directories merge, whiteouts and opaque marks hide."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system
from tests.mounts import Layers
from tests.system import attempt

if TYPE_CHECKING:
    from pathlib import Path

    from tests.oracle import Pair

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]

WHITEOUTS: dict[str, Callable[[Path], Any]] = {
    "device": build.whiteout,
    "trusted_xattr": build.xattr_whiteout,
    "aufs": lambda path: build.write(path.parent / f".wh.{path.name}"),
}

OPAQUES: dict[str, Callable[[Path], Any]] = {
    "trusted": build.opaque,
    "fuse_overlayfs": lambda path: build.opaque(path, "user.fuseoverlayfs.opaque"),
    "aufs": lambda path: build.write(path / ".wh..wh..opq"),
}


def layer(layers: Layers, index: int) -> Path:
    """0 is the upper, then the lowers from the top."""
    assert layers.upper is not None
    return [layers.upper, *layers.lowers][index]


@pytest.mark.parametrize("where", [0, 1], ids=["upper", "top lower"])
@pytest.mark.parametrize("form", WHITEOUTS)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
@pytest.mark.usefixtures("ours_only")
def test_whiteout_of_each_form_hides(
    layers: Layers, union: Mount, form: str, where: int, kind: str
) -> None:
    hidden = layers.lowers[1] / "in" / "hidden"
    build.write(layers.lowers[1] / "in" / "shown")
    if kind == "file":
        build.write(hidden)
    elif kind == "directory":
        build.write(hidden / "deep" / "file")
    else:
        hidden.symlink_to("shown")
    WHITEOUTS[form](layer(layers, where) / "in" / "hidden")
    root = union().root

    assert os.listdir(root / "in") == ["shown"]
    assert attempt(os.lstat, root / "in" / "hidden").error == "ENOENT"
    assert attempt(os.lstat, root / "in" / ".wh.hidden").error == "ENOENT"


@pytest.mark.parametrize("form", WHITEOUTS)
@pytest.mark.usefixtures("ours_only")
def test_name_made_where_a_whiteout_was(layers: Layers, union: Mount, form: str) -> None:
    build.write(layers.lowers[0] / "in" / "file", "old")
    build.write(layers.lowers[0] / "in" / "directory" / "old")
    for name in ("file", "directory"):
        WHITEOUTS[form](layer(layers, 0) / "in" / name)
    mounted = union()
    (mounted.root / "in" / "file").write_text("new")
    (mounted.root / "in" / "directory").mkdir()
    for _ in range(2):
        assert (mounted.root / "in" / "file").read_text() == "new"
        assert os.listdir(mounted.root / "in" / "directory") == []
        assert sorted(os.listdir(mounted.root / "in")) == ["directory", "file"]
        mounted.unmount()
        mounted = union()


@pytest.mark.parametrize("where", [0, 1], ids=["upper", "top lower"])
@pytest.mark.parametrize("form", OPAQUES)
@pytest.mark.usefixtures("ours_only")
def test_opaque_of_each_form_hides(layers: Layers, union: Mount, form: str, where: int) -> None:
    build.write(layers.lowers[1] / "directory" / "old")
    build.write(layer(layers, where) / "directory" / "new")
    OPAQUES[form](layer(layers, where) / "directory")
    root = union().root
    assert os.listdir(root / "directory") == ["new"]
    assert attempt(os.lstat, root / "directory" / "old").error == "ENOENT"


@pytest.mark.parametrize("form", ["fuse_overlayfs", "aufs"])
@pytest.mark.usefixtures("ours_only")
def test_directory_opaque_for_us_stays_so_when_changed(
    layers: Layers, union: Mount, form: str
) -> None:
    build.write(layers.lowers[1] / "directory" / "old")
    OPAQUES[form](layers.lowers[0] / "directory")
    mounted = union()
    (mounted.root / "directory" / "new").touch()
    for _ in range(2):
        assert os.listdir(mounted.root / "directory") == ["new"]
        mounted.unmount()
        mounted = union()


@pytest.mark.usefixtures("ours_only")
def test_aufs_whiteout_hides_below_its_own_layer_only(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[1] / "file", "lowest")
    build.write(layers.lowers[0] / "file", "lower")
    build.write(layers.lowers[0] / ".wh.file")
    assert (union().root / "file").read_text() == "lower"


@pytest.mark.usefixtures("ours_only")
def test_aufs_bookkeeping_is_never_shown(layers: Layers, union: Mount) -> None:
    for where in range(3):
        build.write(layer(layers, where) / ".wh..wh.aufs")
        (layer(layers, where) / ".wh..wh.plnk").mkdir()
        build.write(layer(layers, where) / ".wh..wh.plnk" / "12.34")
    build.write(layers.lowers[1] / "file")
    root = union().root
    assert os.listdir(root) == ["file"]
    assert attempt(os.lstat, root / ".wh..wh.plnk" / "12.34").error == "ENOENT"


@pytest.mark.parametrize("name", [".wh.name", ".wh..wh..opq", ".wh..wh.plnk", ".wh."])
@pytest.mark.usefixtures("ours_only")
def test_aufs_names_cannot_be_made(layers: Layers, union: Mount, name: str) -> None:
    build.write(layers.lowers[0] / "file")
    root = union().root
    makers: list[Callable[[], Any]] = [
        lambda: (root / name).write_text(""),
        lambda: os.mkdir(root / name),
        lambda: os.mkfifo(root / name),
        lambda: os.symlink("file", root / name),
        lambda: os.link(root / "file", root / name),
        lambda: os.rename(root / "file", root / name),
    ]
    assert [attempt(make).error for make in makers] == ["EPERM"] * len(makers)
    assert os.listdir(root) == ["file"]


@pytest.mark.usefixtures("ours_only")
def test_directory_of_aufs_whiteouts_alone_can_be_removed(layers: Layers, union: Mount) -> None:
    build.write(layer(layers, 0) / "directory" / ".wh.gone")
    build.write(layer(layers, 0) / "directory" / ".wh..wh..opq")
    build.write(layers.lowers[0] / "directory" / "gone")
    root = union().root
    (root / "directory").rmdir()
    assert os.listdir(root) == []


def _hostile_redirects(layers: Layers) -> None:
    secret = layers.base / "secret"
    build.write(secret / "file", "secret")
    lower = layers.lowers[0]
    build.write(lower / "good" / "file", "good")
    build.write(lower / "plain", "a file")
    (lower / "link").symlink_to(secret)
    (lower / "relative").symlink_to("good")
    upper = layer(layers, 0)
    for name, target in {
        "up": "..",
        "up-path": "../secret",
        "absolute-up": "/../secret",
        "absolute-inside-up": "/good/../../secret",
        "slash": "good/file",
        "through-link": "/link",
        "through-link-below": "/link/file",
        "relative-link": "/relative",
        "itself": "itself",
        "to-file": "/plain",
        "to-nothing": "/nothing",
        "root": "/",
        "dot": ".",
        "empty": "",
        "double": "//good",
        "long": "x" * 300,
        "fine": "/good",
    }.items():
        build.redirect(upper / name, target)
        build.write(upper / name / "own", "own")


def _look(root: Path) -> dict[str, str]:
    found = {}
    for name in sorted(os.listdir(root)):
        outcome = attempt(lambda path: sorted(os.listdir(path)), root / name)
        found[name] = str(outcome)
    return found


@pytest.mark.usefixtures("ours_only")
def test_redirect_never_leads_out_of_its_layer(layers: Layers, union: Mount) -> None:
    _hostile_redirects(layers)
    mounted = union()
    mounted.allow_log("redirect")
    found = _look(mounted.root)
    assert found["fine"] == "ok ['file', 'own']"
    del found["link"]  # a link out of the layer is the user's own business
    for name in ("up", "up-path", "absolute-up", "absolute-inside-up", "through-link"):
        assert "file" not in found[name], name
        assert attempt((mounted.root / name / "file").read_text).error is not None
    (mounted.root / "fine" / "still").write_text("works")


@pytest.mark.kernel_overlay
def test_redirects_as_the_kernel_follows_them(pair: Callable[..., Pair]) -> None:
    def make(layers: Layers) -> None:
        build.write(layers.lowers[1] / "base" / "sub" / "lowest", "lowest")
        build.write(layers.lowers[0] / "base" / "sub" / "lower", "lower")
        for name in ("top", "other"):
            build.write(layers.lowers[0] / name / "file", "file")
            build.whiteout(layer(layers, 0) / name)
        build.whiteout(layer(layers, 0) / "moved")
        build.whiteout(layer(layers, 0) / "deep" / "moved")
        build.redirect(layers.lowers[0] / "moved", "base")
        build.redirect(layers.lowers[0] / "deep" / "moved", "/base/sub")
        build.redirect(layer(layers, 0) / "again", "moved")
        build.redirect(layer(layers, 0) / "absolute", "/deep/moved")
        build.redirect(layer(layers, 0) / "new" / "inner", "/top")
        build.opaque(layer(layers, 0) / "opaque")
        build.redirect(layer(layers, 0) / "opaque" / "from-outside", "/other")

    both = pair(make)
    both.same_everywhere()


@pytest.mark.kernel_overlay
def test_layers_that_disagree_on_the_type(pair: Callable[..., Pair]) -> None:
    def make(layers: Layers) -> None:
        kinds: dict[str, Callable[[Path], Any]] = {
            "f": lambda path: build.write(path, str(path.parent.name)),
            "d": lambda path: build.write(path / f"in-{path.parent.name}"),
            "w": build.whiteout,
            "l": lambda path: path.symlink_to("target"),
            "-": lambda _path: None,
        }
        for first in kinds:
            for second in kinds:
                for third in kinds:
                    for index, kind in enumerate((first, second, third)):
                        kinds[kind](layer(layers, index) / f"{first}{second}{third}")

    both = pair(make)
    both.same_everywhere()


@pytest.mark.kernel_overlay
def test_whiteout_of_a_name_that_is_nowhere(pair: Callable[..., Pair]) -> None:
    def make(layers: Layers) -> None:
        for where in range(3):
            build.whiteout(layer(layers, where) / f"only-{where}")
        build.write(layers.lowers[0] / "file")

    both = pair(make)
    both.same(lambda root: (root / "only-0").mkdir())
    both.same(lambda root: (root / "only-2").touch())
    both.same_everywhere()


def test_names_are_bytes(layers: Layers, union: Mount) -> None:
    names = [b"\xff\xfe", b"new\nline", b"a\\b", b"colon:comma,", b" ", b"-o", "ä€𝄞".encode()]
    for name in names:
        (layers.lowers[0] / os.fsdecode(name)).write_bytes(name)
    root = os.fsencode(union().root)
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(os.path.join(root, name), "r+b") as file:
            assert file.read() == name
            file.write(b"+")
        os.rename(os.path.join(root, name), os.path.join(root, name + b"!"))
    assert sorted(os.listdir(root)) == sorted(name + b"!" for name in names)


@pytest.mark.kernel_overlay
@pytest.mark.parametrize("length", [255, 256])
def test_longest_names(pair: Callable[..., Pair], length: int) -> None:
    name = "n" * length

    def make(layers: Layers) -> None:
        if length == 255:
            build.write(layers.lowers[0] / name, "lower")
            build.write(layers.lowers[0] / "d" / name, "lower")
            build.write(layers.lowers[0] / ("d" * 255) / "file", "lower")

    both = pair(make)
    both.same(lambda root: (root / name).read_text())
    both.same(lambda root: os.truncate(root / name, 1))
    both.same(lambda root: (root / name).unlink())
    both.same(lambda root: (root / name).mkdir())
    both.same(lambda root: (root / name).rename(root / ("m" * length)))
    both.same(lambda root: (root / "d" / name).unlink())
    both.same(lambda root: (root / ("d" * 255)).rename(root / ("e" * 255)))
    both.same(lambda root: (root / name).symlink_to("x" * 100))
    both.same_everywhere()


@pytest.mark.usefixtures("ours_only")
def test_many_layers(scratch: Path, union: Mount) -> None:
    layers = Layers(scratch / "many", lowers=500)
    for index, lower in enumerate(layers.lowers):
        build.write(lower / "all", str(index))
        build.write(lower / "d" / f"only-{index}", str(index))
    build.whiteout(layers.lowers[100] / "d" / "only-400")
    root = union(layers=layers).root
    assert (root / "all").read_text() == "0"
    assert len(os.listdir(root / "d")) == 499
    assert (root / "d" / "only-499").read_text() == "499"
    (root / "d" / "only-499").unlink()
    assert len(os.listdir(root / "d")) == 498


def test_mount_inside_a_layer_is_not_part_of_it(layers: Layers, union: Mount) -> None:
    lower = layers.lowers[0]
    build.write(lower / "point" / "covered", "covered")
    system.mount("tmpfs", lower / "point", "tmpfs")
    build.write(lower / "point" / "in-the-mount")
    layers.lower_may_change = True
    try:
        root = union().root
        names = os.listdir(root / "point")
        assert names in (["covered"], [])
        assert attempt(os.lstat, root / "point" / "in-the-mount").error == "ENOENT"
    finally:
        system.umount(lower / "point", system.MNT_DETACH)


def test_device_whiteout_is_not_shown_as_a_device(layers: Layers, union: Mount) -> None:
    build.whiteout(layers.lowers[1] / "bottom")
    build.write(layers.lowers[1] / "file")
    os.mknod(layers.lowers[0] / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert sorted(os.listdir(union().root)) == ["file", "null"]
