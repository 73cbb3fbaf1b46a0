"""Images: brought in from every kind of archive, shared, removed, taken out as they were."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import tree
from tests.archives import archive, directory, link, member, symlink
from tests.driver.drivers import KITS, home_of, offer_example, unmount_below
from tests.layer.test_archive_hostile import mutate
from tests.ordinary import USER, as_user
from tests.store import bundles
from tests.store.bundles import BASE, CHANGE, EMPTY, Layout, config, digest, layout
from unionfs.driver.attach import attach, detach
from unionfs.errors import (
    AlreadyExistsError,
    ArchiveError,
    FailedPreconditionError,
    FaultyError,
    InvalidArgumentError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from unionfs.store import reference
from unionfs.store.export import export
from unionfs.store.image import Image, architecture, chain_ids
from unionfs.store.images import Images, Progress
from unionfs.store.layers import Framings
from unionfs.store.recognise import open_bundle
from unionfs.store.store import Store

pytestmark = pytest.mark.needs_root

DRIVERS: dict[str, tuple[str, Mapping[str, str]]] = {
    "overlay": ("overlay", {}),
    "overlay-kernel": ("overlay", {"mounter": "kernel"}),
    "copy": ("copy", {}),
}


@pytest.fixture(scope="session", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A driver whose snapshots are plain trees."""
    offer_example(tmp_path_factory.mktemp("site"))


class Ground:
    """A store, and short words for what tests do with it."""

    def __init__(self, base: Path, driver: str, options: Mapping[str, str]) -> None:
        self.base = base
        self.store = Store.open(str(base / "store"), driver, options)
        self.images = Images(self.store)
        self.told: list[str] = []
        self.progress: Progress = lambda _what, _size: None

    def add(self, path: Path | str, name: str | None = None) -> Image:
        """Bring in the one image in *path*."""
        (found,) = self.add_all(path, name)
        return found

    def add_all(self, path: Path | str, name: str | None = None) -> list[Image]:
        bundle, found = open_bundle(str(path), self.store.root)
        with closing(bundle):
            return [
                self.images.add(packed, one, bundle, self.progress, self.told.append)
                for packed in found
                for one in ([name] if name else packed.names)
            ]

    def tar(self, name: str, data: bytes) -> Path:
        path = self.base / name
        path.write_bytes(data)
        return path

    def export(self, name: str, form: str = "oci-archive", compression: str | None = None) -> bytes:
        file = io.BytesIO()
        export(self.store, name, file, form, compression, self.progress)
        return file.getvalue()

    @contextmanager
    def seen(self, parent: str, commit: str | None = None) -> Iterator[Path]:
        """Give a mounted, writable snapshot on *parent*; *commit* is the name that it gets."""
        key = f"on {parent} {os.urandom(4).hex()}"
        self.store.driver.prepare(key, self.images.parent(parent))
        target = self.base / f"at-{os.urandom(4).hex()}"
        target.mkdir()
        attach(self.store.driver.mounts(key), str(target))
        try:
            yield target
        finally:
            detach(str(target))
            self.store.driver.release(key)
        if commit:
            self.store.driver.commit(commit, key)
        else:
            self.store.driver.remove(key)

    def keys(self) -> list[str]:
        return [info.key for info in self.store.driver.walk()]

    def require_empty(self) -> None:
        """Nothing of any import is left, and nothing has to be cleaned up."""
        assert self.images.all() == []
        assert self.keys() == []
        assert self.images.cleanup() == []
        assert self.store.driver.cleanup() == []
        framing = self.base / "store/framing"
        assert [one for one in framing.rglob("*") if one.is_file()] == []


@pytest.fixture
def make_ground(scratch: Path) -> Iterator[Callable[..., Ground]]:
    made: list[Ground] = []

    def make(name: str = "overlay") -> Ground:
        base = scratch / f"ground-{len(made)}"
        base.mkdir()
        made.append(Ground(base, *DRIVERS[name]))
        return made[-1]

    yield make
    for ground in made:
        ground.store.close()
    unmount_below(scratch)


@pytest.fixture(params=DRIVERS)
def ground(request: pytest.FixtureRequest, make_ground: Callable[..., Ground]) -> Ground:
    """A store with every kind of driver."""
    return make_ground(request.param)


@pytest.fixture
def overlay(make_ground: Callable[..., Ground]) -> Ground:
    """A store where the driver does not matter."""
    return make_ground()


def require_app(ground: Ground, name: str) -> None:
    """The image *name* has what `BASE` and `CHANGE` make together."""
    with ground.seen(name) as root:
        found = sorted(str(one.relative_to(root)) for one in root.rglob("*"))
        assert found == ["bin", "bin/tool", "etc", "etc/config", "var", "var/new"]
        assert (root / "bin/tool").read_bytes() == b"tool" * 1000
        assert (root / "etc/config").read_bytes() == b"second"
        # The second layer has no member for this directory.
        assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o750


FORMS: dict[str, Callable[[Path], Path]] = {
    "OCI directory": lambda base: bundles.write_directory(base / "in", layout().all()),
    "OCI archive": lambda base: bundles.write_tar(base / "in", layout().all()),
    "OCI archive, compressed": lambda base: bundles.write_tar(base / "in", layout().all(), True),
    "docker save": lambda base: bundles.write_tar(
        base / "in", bundles.docker_files("example.org/app:v1")
    ),
    "docker save, compressed": lambda base: bundles.write_tar(
        base / "in", bundles.docker_files("example.org/app:v1"), True
    ),
    "docker save, unpacked": lambda base: bundles.write_directory(
        base / "in", bundles.docker_files("example.org/app:v1")
    ),
    "docker save before 1.10": lambda base: bundles.write_tar(
        base / "in", bundles.old_docker_files("example.org/app", "v1")
    ),
}


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["-z"]])
def test_a_layout_packed_by_tar_is_no_tree(overlay: Ground, options: list[str]) -> None:
    """It begins with the root, or with an extended header of it."""
    for number, files in enumerate([layout().all(), bundles.docker_files("example.org/app:v1")]):
        source = bundles.write_directory(overlay.base / f"dir-{number}", files)
        path = overlay.base / f"{number}.tar"
        subprocess.run(["tar", *options, "-C", str(source), "-cf", str(path), "."], check=True)
        assert overlay.add(path, f"app-{number}").config == config(BASE, CHANGE)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised(ground: Ground, form: str) -> None:
    image = ground.add(FORMS[form](ground.base))
    assert image.name == "example.org/app:v1"
    assert list(image.layers) == chain_ids([digest(BASE), digest(CHANGE)])
    assert image == ground.images.find("example.org/app:v1")
    if "before" not in form:
        assert image.config == config(BASE, CHANGE)
        assert image.id == digest(image.config)
    require_app(ground, "example.org/app:v1")
    ground.images.remove(image.name)
    ground.require_empty()


def test_the_history_of_an_image_before_1_10(overlay: Ground) -> None:
    files = bundles.old_docker_files("app", "v1")
    image = overlay.add(bundles.write_tar(overlay.base / "in", files))
    assert [step.created_by for step in image.steps()] == ["", "/bin/sh -c change"]
    assert image.settings()["config"] == {"Cmd": ["/bin/tool"]}


def plain_tree(root: Path) -> Path:
    root.mkdir()
    (root / "dir").mkdir(mode=0o711)
    (root / "dir/file").write_text("content")
    os.link(root / "dir/file", root / "second")
    (root / "link").symlink_to("/dir/file")
    os.chown(root / "dir/file", 12, 34)
    os.setxattr(root / "dir", "user.note", b"1")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.utime(root / "dir", ns=(1, 1_500_000_000_123_456_789))
    os.utime(root, ns=(1, 1_400_000_000_123_456_789))
    return root


@pytest.mark.parametrize("kind", ["directory", "tar", "tar.gz"])
def test_a_plain_tree_is_an_image_of_one_layer(ground: Ground, kind: str) -> None:
    source = plain_tree(ground.base / "my Tree")
    path = source
    if kind != "directory":
        path = ground.base / f"my Tree.{kind}"
        flags = "-czf" if kind.endswith("gz") else "-cf"
        command = ["tar", "--format=pax", "--xattrs", "-C", str(source), flags, str(path), "."]
        subprocess.run(command, check=True)
    image = ground.add(path, reference.from_file(str(path)))
    assert image.name == "my-tree:latest"
    assert len(image.layers) == 1
    with ground.seen("my-tree") as root:
        # A union counts the links of directories otherwise than the disk.
        tree.assert_same(tree.snapshot(source), tree.snapshot(root), ignore=["directory.nlink"])


def test_a_tree_that_looks_like_an_image_from_outside(overlay: Ground) -> None:
    """The first name is one of an image, and the rest is not."""
    data = archive(directory("blobs"), member("blobs/file", data=b"mine"))
    overlay.add(overlay.tar("tree.tar", data), "tree")
    with overlay.seen("tree") as root:
        assert (root / "blobs/file").read_bytes() == b"mine"


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none", None])
def test_export_is_what_came_in(
    ground: Ground, make_ground: Callable[..., Ground], form: str, compression: str | None
) -> None:
    files = layout(None, BASE, CHANGE, EMPTY).all()
    image = ground.add(bundles.write_tar(ground.base / "in", files), "app")
    data = ground.export("app", form, compression)
    assert data == ground.export("app", form, compression)
    again = make_ground().add(ground.tar("out.tar", data))
    assert (again.name, again.id, again.layers) == ("app:latest", image.id, image.layers)
    assert again.config == image.config
    files = bundles.tar_files(data)
    if form == "docker-archive" and compression in ("none", None):
        (entry,) = json.loads(files["manifest.json"])
        assert [files[name] for name in entry["Layers"]] == [BASE, CHANGE, EMPTY]
        assert entry["RepoTags"] == ["app:latest"]
    if form == "oci-archive" and compression in ("gzip", None):
        (entry,) = json.loads(files["index.json"])["manifests"]
        manifest = json.loads(files[f"blobs/{entry['digest'].replace(':', '/')}"])
        blobs = [files[f"blobs/{one['digest'].replace(':', '/')}"] for one in manifest["layers"]]
        assert [gzip.decompress(blob) for blob in blobs] == [BASE, CHANGE, EMPTY]
        assert entry["annotations"]["org.opencontainers.image.ref.name"] == "app:latest"


def test_layers_are_stored_once(ground: Ground) -> None:
    ground.add(bundles.write_tar(ground.base / "one", layout("one:latest", BASE).all()))
    before = ground.keys()
    ground.add(bundles.write_tar(ground.base / "two", layout("two:latest", BASE, CHANGE).all()))
    ground.add(bundles.write_tar(ground.base / "three", layout("three:latest", BASE, EMPTY).all()))
    keys = ground.keys()
    assert len(keys) == 3
    assert set(before) < set(keys)
    first = digest(BASE)
    assert ground.images.of_layer(first) == ["one:latest", "three:latest", "two:latest"]
    assert ground.images.remove("one") == []
    assert ground.images.remove("two") == [chain_ids([first, digest(CHANGE)])[1]]
    assert len(ground.images.remove("three")) == 2
    ground.require_empty()


def test_a_layer_that_a_snapshot_needs_stays(overlay: Ground) -> None:
    overlay.add(FORMS["OCI archive"](overlay.base), "app")
    top = overlay.images.parent("app")
    with pytest.raises(FailedPreconditionError, match="a layer of the image app:latest"):
        overlay.store.remove(top)
    overlay.store.driver.prepare("mine", top)
    assert overlay.images.remove("app") == []
    assert overlay.images.all() == []
    assert overlay.store.driver.stat("mine").parent == top
    assert overlay.images.cleanup() == []
    overlay.store.remove("mine")
    assert len([one for one in overlay.images.cleanup() if one.startswith("sha256:")]) == 2
    overlay.require_empty()


def test_a_view_of_who_was_killed_while_he_read_is_removed(overlay: Ground) -> None:
    overlay.add(FORMS["OCI archive"](overlay.base), "app")
    top = overlay.images.parent("app")
    child = os.fork()
    if child == 0:
        with Store.open(overlay.store.root, "overlay", {}).viewed(top):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with overlay.store.viewed(top) as key:
        (gone,) = overlay.images.cleanup()
        assert gone.startswith(f"{top} seen by {child}-")
        assert overlay.store.driver.stat(key).parent == top
    overlay.images.remove("app")
    overlay.require_empty()


def test_interrupted_when_the_image_is_there_already(
    overlay: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = Images._insert

    def interrupted(self: Images, image: Image) -> None:
        insert(self, image)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Images, "_insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            overlay.add(FORMS["OCI archive"](overlay.base), "app")
    require_app(overlay, "app")
    assert overlay.images.cleanup() == []


def other_platform(made: Layout, machine: str) -> dict[str, Any]:
    data = archive(member("wrong", data=machine.encode()))
    platform = {"os": "linux", "architecture": machine}
    return made.image([data], config(data, architecture=machine), platform=platform)


@pytest.mark.parametrize("nested", [False, True])
def test_of_a_multi_platform_index_this_machines_is_taken(overlay: Ground, *, nested: bool) -> None:
    made = Layout()
    here = {"os": "linux", "architecture": architecture()}
    manifests = [
        other_platform(made, "sparc"),
        made.image([BASE, CHANGE], config(BASE, CHANGE), platform=here),
        {
            **other_platform(made, "unknown"),
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        },
    ]
    if nested:
        made.name(made.index(manifests), "app")
    else:
        made.manifests = manifests
    overlay.add(bundles.write_tar(overlay.base / "in", made.all()), "app")
    require_app(overlay, "app")


def test_an_index_without_this_machine(overlay: Ground) -> None:
    made = Layout()
    made.manifests = [other_platform(made, "sparc"), other_platform(made, "vax")]
    with pytest.raises(ArchiveError, match=r"no image for linux/.*: it has linux/sparc, linux/vax"):
        overlay.add(bundles.write_tar(overlay.base / "in", made.all()), "app")
    overlay.require_empty()


def test_an_archive_of_several_images(overlay: Ground) -> None:
    made = layout("one:1")
    made.name(made.image([BASE], config(BASE)), "example.org/two:2")
    found = overlay.add_all(bundles.write_tar(overlay.base / "in", made.all()))
    assert [image.name for image in found] == ["one:1", "example.org/two:2"]


def test_a_tag_alone_is_of_the_files_name(overlay: Ground) -> None:
    path = bundles.write_tar(overlay.base / "My-App.tar", layout("v7").all())
    assert overlay.add(path).name == "my-app:v7"


def test_links_within_an_archive_are_followed(overlay: Ground) -> None:
    files = bundles.docker_files("app", layers=(BASE, EMPTY, EMPTY))
    del files["2/layer.tar"]
    members = [member(name, data=data) for name, data in files.items()]
    outside = archive(*members, symlink("2/layer.tar", "../../../etc/passwd"))
    with pytest.raises(ArchiveError, match="missing"):
        overlay.add(overlay.tar("in.tar", outside))
    overlay.require_empty()
    data = archive(*members, symlink("2/layer.tar", "../1/layer.tar"))
    assert len(overlay.add(overlay.tar("in.tar", data)).layers) == 3


def broken(change: Callable[[Layout], None]) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        made = layout("app", BASE, CHANGE)
        change(made)
        return made.all()

    return make


def _other_layer(made: Layout) -> None:
    name = f"blobs/{digest(gzip.compress(CHANGE, mtime=0)).replace(':', '/')}"
    data = bytearray(made.files[name])
    data[4] ^= 1  # gzip's own time: unpacked it is the same
    made.files[name] = bytes(data)


def _longer_layer(made: Layout) -> None:
    name = f"blobs/{digest(gzip.compress(CHANGE, mtime=0)).replace(':', '/')}"
    made.files[name] += bytes(512)


def _without_layer(made: Layout) -> None:
    del made.files[f"blobs/{digest(gzip.compress(CHANGE, mtime=0)).replace(':', '/')}"]


def _other_diff_id(made: Layout) -> None:
    made.manifests = []
    made.name(made.image([BASE, CHANGE], config(BASE, EMPTY)), "app")


def _fewer_diff_ids(made: Layout) -> None:
    made.manifests = []
    made.name(made.image([BASE, CHANGE], config(BASE)), "app")


def _hostile_layer(made: Layout) -> None:
    bad = archive(member("good"), link("evil", "../../outside"))
    made.manifests = []
    made.name(made.image([BASE, bad], config(BASE, bad)), "app")


def _other_config(made: Layout) -> None:
    name = f"blobs/{digest(config(BASE, CHANGE)).replace(':', '/')}"
    made.files[name] = config(BASE, CHANGE).replace(b"A=b", b"A=c")


def _windows(made: Layout) -> None:
    made.manifests = []
    made.name(made.image([BASE], config(BASE, os="windows")), "app")


def _weak_digest(made: Layout) -> None:
    made.manifests[0]["digest"] = "md5:" + "0" * 32


def _escaping_digest(made: Layout) -> None:
    made.manifests[0]["digest"] = "sha256:../../../etc/passwd"


def _no_json(made: Layout) -> None:
    made.manifests[0]["size"] = "large"


def _deep(made: Layout) -> None:
    made.files["index.json"] = b"[" * 100_000


BROKEN = {
    "another layer": (_other_layer, "has the digest"),
    "a longer layer": (_longer_layer, "instead of"),
    "no layer": (_without_layer, "missing"),
    "another diff id": (_other_diff_id, "its diff id is"),
    "fewer diff ids": (_fewer_diff_ids, "2 layers, and the configuration names 1"),
    "a hostile layer": (_hostile_layer, "member evil: ../../outside leads out"),
    "another configuration": (_other_config, "another digest"),
    "of another system": (_windows, "an image for windows"),
    "a weak digest": (_weak_digest, "no digest"),
    "a digest that leads out": (_escaping_digest, "no digest"),
    "a size that is none": (_no_json, "without a size"),
    "a hundred thousand lists": (_deep, "index.json is nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_leaves_the_store_as_it_was(overlay: Ground, name: str) -> None:
    change, reason = BROKEN[name]
    path = bundles.write_tar(overlay.base / "in", broken(change)())
    with pytest.raises(ArchiveError) as caught:
        overlay.add(path, "app")
    assert reason in str(caught.value)
    overlay.require_empty()
    # And so that what is whole can come in.
    overlay.add(FORMS["OCI archive"](overlay.base), "app")
    require_app(overlay, "app")


def test_what_is_no_image(overlay: Ground) -> None:
    for data in (b"", b"hello, world" * 100, gzip.compress(b"x" * 2000), os.urandom(5000)):
        with pytest.raises(ArchiveError):
            overlay.add(overlay.tar("in", data), "app")
    with pytest.raises(NotFoundError, match="no such file"):
        overlay.add(overlay.base / "nowhere", "app")
    overlay.require_empty()


def test_a_name_is_of_one_image(overlay: Ground) -> None:
    path = FORMS["OCI archive"](overlay.base)
    first = overlay.add(path, "app")
    assert overlay.add(path, "app:latest").id == first.id
    with pytest.raises(AlreadyExistsError, match="another image of that name"):
        overlay.add(bundles.write_tar(overlay.base / "other", layout("x", BASE).all()), "app")
    assert overlay.images.find("app").id == first.id
    assert len(overlay.keys()) == 2


def test_an_interrupt_leaves_the_store_as_it_was(ground: Ground) -> None:
    path = FORMS["OCI archive"](ground.base)

    def interrupt(what: str, _size: int) -> None:
        seen.add(what)
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen: set[str] = set()
    ground.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        ground.add(path, "app")
    ground.require_empty()


@pytest.mark.parametrize(
    ("place", "attribute"),
    [
        ("unionfs.store.layers", "fill"),
        ("unionfs.store.layers.os", "fsync"),
        ("unionfs.driver.overlay.OverlayDriver", "prepare"),
        ("unionfs.driver.overlay.OverlayDriver", "commit"),
        ("unionfs.store.images.Images", "_insert"),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_killed_anywhere_cleanup_removes_what_is_left(
    scratch: Path,
    make_ground: Callable[..., Ground],
    place: str,
    attribute: str,
    moment: str,
    call: int,
) -> None:
    path = FORMS["OCI archive"](scratch)
    base = scratch / "killed"
    base.mkdir()

    def work() -> None:
        ground = Ground(base, "overlay", {})
        with pytest.MonkeyPatch.context() as patch:
            target = _attribute(place)
            real = getattr(target, attribute)
            calls = [0]

            def killing(*arguments: Any, **more: Any) -> Any:
                calls[0] += 1
                if calls[0] == call and moment == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                found = real(*arguments, **more)
                if calls[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            patch.setattr(target, attribute, killing)
            ground.add(path, "app")

    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or (attribute == "_insert" and call == 2)
    ground = Ground(base, "overlay", {})
    with closing(ground.store):
        if ground.images.all():
            assert attribute == "_insert"
            require_app(ground, "app")
            ground.images.remove("app")
        ground.images.cleanup()
        ground.store.driver.cleanup()
        ground.require_empty()
        ground.add(path, "app")
        require_app(ground, "app")


def _attribute(place: str) -> Any:
    import importlib  # noqa: PLC0415

    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_many_bring_in_the_same_image_at_once(scratch: Path) -> None:
    path = FORMS["OCI archive"](scratch)
    base = scratch / "shared"
    base.mkdir()
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            try:
                ground = Ground(base, "overlay", {})
                ground.add(path, f"app-{number % 3}")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    ground = Ground(base, "overlay", {})
    with closing(ground.store):
        assert len(ground.images.all()) == 3
        assert len(ground.keys()) == 2
        require_app(ground, "app-2")


def changed(root: Path) -> None:
    """What somebody does in a container."""
    (root / "etc/config").unlink()
    (root / "bin/tool").chmod(0o700)
    shutil.rmtree(root / "var")
    (root / "var").mkdir()
    (root / "var/again").write_text("again")
    os.rename(root / "etc", root / "renamed")
    (root / "added").write_text("added")
    os.link(root / "added", root / "added-too")


def test_a_committed_snapshot_is_an_image_too(
    ground: Ground, make_ground: Callable[..., Ground]
) -> None:
    ground.add(FORMS["OCI archive"](ground.base), "app")
    with ground.seen("app", commit="mine") as root:
        changed(root)
        expected = tree.snapshot(root)
    data = ground.export("mine")
    assert data == ground.export("mine")
    for name in DRIVERS:
        other = make_ground(name)
        image = other.add(other.tar("in.tar", data))
        assert image.name == "mine:latest"
        assert len(image.layers) == 3
        assert image.settings()["config"]["Cmd"] == ["-v"]
        assert [one.created_by for one in image.steps()][-1] == "unionfs snapshot commit mine"
        with other.seen("mine") as root:
            found = tree.snapshot(root)
            tree.assert_same(expected, found, ignore=["nlink", "group", "directory.mtime"])


def test_trees_that_must_be_mounted(
    make_ground: Callable[..., Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a block driver: neither a directory nor layers to be had without mounting."""
    monkeypatch.setattr("unionfs.store.layers.plain_directory", lambda _mounts, **_: None)
    ground = make_ground("copy")
    image = ground.add(FORMS["OCI archive"](ground.base), "app")
    require_app(ground, "app")
    with ground.seen("app", commit="mine") as root:
        changed(root)
    again = make_ground().add(ground.tar("out", ground.export("mine")))
    assert again.layers[:2] == image.layers
    monkeypatch.setattr("unionfs.store.layers.apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ground.add(ground.tar("other", BASE), "other")
    assert str(ground.base) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("kit", ["block-ext4", "reflink-xfs", "reflink-btrfs"])
def test_drivers_that_keep_whole_trees(
    scratch: Path, make_ground: Callable[..., Ground], kit: str
) -> None:
    with home_of(KITS[kit], scratch) as home:
        try:
            ground = Ground(home, KITS[kit].driver, KITS[kit].options)
        except UnsupportedError as error:
            pytest.skip(str(error))
        with closing(ground.store):
            image = ground.add(FORMS["OCI archive"](home), "app")
            require_app(ground, "app")
            plain = ground.add(plain_tree(home / "plain"), "plain")
            with ground.seen("plain") as root:
                tree.assert_same(tree.snapshot(home / "plain"), tree.snapshot(root))
            with ground.seen("app", commit="mine") as root:
                changed(root)
                expected = tree.snapshot(root)
            data = ground.export("mine")
            other = make_ground()
            again = other.add(other.tar("in.tar", data))
            assert again.layers[:2] == image.layers
            with other.seen("mine") as root:
                ignored = ["nlink", "group", "directory.mtime"]
                tree.assert_same(expected, tree.snapshot(root), ignore=ignored)
            hostile = bundles.write_tar(home / "hostile", broken(_hostile_layer)())
            with pytest.raises(ArchiveError, match="leads out"):
                ground.add(hostile, "hostile")
            ground.store.remove("mine")
            for one in (image, plain):
                ground.images.remove(one.name)
            ground.require_empty()


def interrupted(*_arguments: Any, **_more: Any) -> None:
    raise KeyboardInterrupt


def test_mutated_images_are_brought_in_or_refused(overlay: Ground) -> None:
    """Whatever bytes change: an error with a reason, and the store as it was."""
    forms = [
        bundles.as_tar(layout().all()),
        bundles.as_tar(bundles.docker_files("example.org/app:v1")),
        bundles.as_tar(bundles.old_docker_files("example.org/app", "v1")),
    ]
    chance = random.Random(7)
    refused = 0
    for number in range(150):
        data = bytearray(forms[number % 3])
        for _ in range(chance.choice((1, 3))):
            mutate(data, chance)
        try:
            overlay.add(overlay.tar("in.tar", bytes(data)), "app")
        except StoreError:
            refused += 1
        else:
            overlay.images.remove("app")
        assert overlay.keys() == []
    assert 0 < refused < 150
    overlay.require_empty()


def test_only_what_is_committed_goes_out(overlay: Ground) -> None:
    overlay.store.driver.prepare("active")
    with pytest.raises(FailedPreconditionError, match="commit it first"):
        overlay.export("active")
    with pytest.raises(NotFoundError, match="neither an image nor a snapshot"):
        overlay.export("nowhere")


def test_a_layer_that_was_changed_does_not_go_out(overlay: Ground) -> None:
    overlay.add(FORMS["OCI archive"](overlay.base), "app")
    (file,) = (overlay.base / "store/overlay/snapshots").glob("*/fs/bin/tool")
    file.write_bytes(b"TOOL" * 1000)
    with pytest.raises(FaultyError, match="its files are not what they were"):
        overlay.export("app")
    file.write_bytes(b"short")
    with pytest.raises(FaultyError, match="bin/tool: shorter than it was"):
        overlay.export("app")
    file.unlink()
    with pytest.raises(FaultyError, match="bin/tool: No such file"):
        overlay.export("app")


def test_a_layer_without_its_framing_is_packed_and_found_to_be_another(overlay: Ground) -> None:
    image = overlay.add(FORMS["OCI archive"](overlay.base), "app")
    os.unlink(Framings(overlay.store).path(image.layers[0]))
    with pytest.raises(FaultyError, match="its files are not what they were"):
        overlay.export("app")


def test_images_are_found_by_name_and_by_id(overlay: Ground) -> None:
    image = overlay.add(FORMS["OCI archive"](overlay.base), "app")
    for name in ("app", "app:latest", image.id, image.id[:16], image.id[7:19]):
        assert overlay.images.find(name).name == "app:latest"
    for name in ("app:other", "nowhere", "0", "sha256:"):
        with pytest.raises(NotFoundError):
            overlay.images.find(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("debian", "debian:latest"),
        ("debian:12", "debian:12"),
        ("localhost:5000/a/b_c:V.1-x", "localhost:5000/a/b_c:V.1-x"),
        ("Example.ORG/app", "Example.ORG/app:latest"),
    ],
)
def test_names_of_images(name: str, found: str) -> None:
    assert reference.canonical(name) == found


@pytest.mark.parametrize(
    "name", ["", "Debian", "a//b", "a:", "a:b:c", "-a", "a b", "../a", "a@sha256:1", "a" * 300, "ä"]
)
def test_what_is_no_name_of_an_image(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        reference.canonical(name)


def test_an_ordinary_users_image(scratch: Path) -> None:
    path = FORMS["OCI archive"](scratch)
    base = scratch / "users"
    base.mkdir()
    os.chown(base, USER, USER)

    def work() -> tuple[list[str], bool]:
        ground = Ground(base, "overlay", {})
        image = ground.add(path, "app")
        data = ground.export("app")
        again = ground.add(ground.tar("again", data), "again")
        return ground.told, image.id == again.id

    told, same = as_user(work)
    assert same
    assert "of other owners, and here yours" in told[0]
