"""The images of a store: brought in, listed, removed.

A layer is a committed snapshot whose name is its chain id, so that images share those that
they have in common. An image exists when its row does. Who adds or removes images holds the
store's lock for them, and what is no image's when nobody holds it was left by a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from unionfs.errors import (
    AlreadyExistsError,
    ArchiveError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreError,
)
from unionfs.layer.compression import Unpacked
from unionfs.layer.tape import Tape
from unionfs.store import docker, layers, reference
from unionfs.store.bundle import BlobReader, Bundle
from unionfs.store.image import Image, algorithm_of, chain_ids, diff_ids, digest_of
from unionfs.store.layers import Framings
from unionfs.store.packed import Blob, PackedImage
from unionfs.store.store import Store

#: The label of a snapshot that is a layer: the digest of its archive.
DIFF_ID: Final = "unionfs.diff-id"
_IMPORTING: Final = "unionfs.importing"
_SHORTEST_ID: Final = 4
_SELECT: Final = "SELECT name, id, config, imported FROM images WHERE driver = ?"

#: Told what is worked on, and how many bytes of it have gone by since it was told last.
Progress = Callable[[str, int], None]
#: Told what was not as it should be, and is nevertheless done.
Notice = Callable[[str], None]


class Images:
    """The images of a store that its driver keeps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._driver = store.driver.name

    def all(self) -> list[Image]:
        """Return all images, by name."""
        rows = self._store.database.rows(_SELECT + " ORDER BY name", (self._driver,))
        return [self._image(row) for row in rows]

    def find(self, name: str) -> Image:
        """Return the image *name*, which may be the beginning of an id.

        Raises `NotFoundError`, `InvalidArgumentError` for an id of several images.
        """
        with contextlib.suppress(InvalidArgumentError):
            exact = (self._driver, reference.canonical(name))
            if rows := self._store.database.rows(_SELECT + " AND name = ?", exact):
                return self._image(rows[0])
        start = name.removeprefix("sha256:")
        if len(start) >= _SHORTEST_ID:
            found = [one for one in self.all() if one.id.removeprefix("sha256:").startswith(start)]
            if len({one.id for one in found}) > 1:
                raise InvalidArgumentError(f"{name}: begins the ids of several images")
            if found:
                return found[0]
        raise NotFoundError(f"{name}: no such image")

    def parent(self, name: str) -> str:
        """Return the snapshot that *name* means as a parent: one of that name, or an image's top.

        What is neither is returned as it is, for the driver to refuse.
        """
        with contextlib.suppress(NotFoundError):
            return self._store.driver.stat(name).key
        with contextlib.suppress(NotFoundError):
            image = self.find(name)
            return image.layers[-1] if image.layers else ""
        return name

    def of_layer(self, chain: str) -> list[str]:
        """Return the names of the images that the snapshot *chain* is a layer of."""
        rows = self._store.database.rows(
            "SELECT image FROM image_layers WHERE driver = ? AND chain = ? ORDER BY image",
            (self._driver, chain),
        )
        return [row[0] for row in rows]

    def _image(self, row: Sequence[Any]) -> Image:
        name, number, config, imported = row
        chain = self._store.database.rows(
            "SELECT chain FROM image_layers WHERE driver = ? AND image = ? ORDER BY position",
            (self._driver, name),
        )
        return Image(name, number, config, imported, tuple(one[0] for one in chain))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from adding or removing images meanwhile."""
        path = os.path.join(self._store.root, "images.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def add(
        self,
        packed: PackedImage,
        name: str,
        bundle: Bundle,
        progress: Progress,
        notice: Notice,
    ) -> Image:
        """Bring an image in under *name*; its layers are in *bundle*.

        Raises `AlreadyExistsError` for a name of another image, `ArchiveError`, ``OSError``: then
        the store is as it was.
        """
        name = reference.canonical(name)
        with self.alone():
            new = _NewLayers(self._store, bundle, progress, notice)
            try:
                image = self._fill(packed, name, new)
                self._insert(image)
            except BaseException:
                new.undo(unless=self.of_layer)
                raise
        return image

    def _fill(self, packed: PackedImage, name: str, new: _NewLayers) -> Image:
        if packed.config is not None:
            self._require_free(name, digest_of(packed.config))
            expected = diff_ids(packed.config)
            if len(expected) != len(packed.layers):
                raise ArchiveError(
                    f"{len(packed.layers)} layers, and the configuration names {len(expected)}"
                )
            chain = new.add_known(packed.layers, expected)
            return Image(name, digest_of(packed.config), packed.config, time.time_ns(), chain)
        self._require_free(name, None)
        found, chain = new.add_unknown(packed.layers)
        config = docker.config_of(packed.legacy, found)
        return Image(name, digest_of(config), config, time.time_ns(), chain)

    def _require_free(self, name: str, number: str | None) -> None:
        with contextlib.suppress(NotFoundError):
            there = self.find(name)
            if there.name == name and there.id != number:
                raise AlreadyExistsError(
                    f"{name}: there is another image of that name; remove it (image rm) or give"
                    " a NAME"
                )

    def _insert(self, image: Image) -> None:
        database, key = self._store.database, (self._driver, image.name)
        # Nobody removes a layer between our look at it and the row that names it.
        with self._store.alone(*image.layers), database.write():
            for chain in image.layers:
                self._store.driver.stat(chain)
            database.run("DELETE FROM images WHERE driver = ? AND name = ?", key)
            database.run(
                "INSERT INTO images (driver, name, id, config, imported) VALUES (?, ?, ?, ?, ?)",
                (*key, image.id, image.config, image.imported),
            )
            for position, chain in enumerate(image.layers):
                database.run(
                    "INSERT INTO image_layers VALUES (?, ?, ?, ?)", (*key, position, chain)
                )

    def remove(self, name: str) -> list[str]:
        """Remove the image *name*; return the layers that went with it.

        Layers that another image or a snapshot needs stay. Raises `NotFoundError`.
        """
        with self.alone():
            image = self.find(name)
            with self._store.database.write():
                self._store.database.run(
                    "DELETE FROM images WHERE driver = ? AND name = ?", (self._driver, image.name)
                )
            return self._remove_unneeded(reversed(image.layers))

    def _remove_unneeded(self, chains: Iterator[str]) -> list[str]:
        gone = []
        for chain in chains:
            if self.of_layer(chain):
                break
            try:
                self._store.remove(chain)
            except NotFoundError:
                continue
            except FailedPreconditionError:
                break  # somebody's parent, or in use: so are those below it
            Framings(self._store).remove(chain)
            gone.append(chain)
        return gone

    def cleanup(self) -> list[str]:
        """Remove layers that are no image's, left by a crash; return what is gone."""
        with self.alone():
            gone = self._store.remove_left_views()
            infos = list(self._store.driver.walk())
            for info in reversed(infos):
                unneeded = DIFF_ID in info.labels and not self.of_layer(info.key)
                if _IMPORTING in info.labels or unneeded:
                    with contextlib.suppress(FailedPreconditionError, NotFoundError):
                        self._store.remove(info.key)
                        gone.append(info.key)
            names = {info.key for info in infos} - set(gone)
            return gone + Framings(self._store).keep_only(names)


class _NewLayers:
    """The layers that one import adds: all of them, or none."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        progress: Progress,
        notice: Notice,
    ) -> None:
        self._store = store
        self._bundle = bundle
        self._progress = progress
        self._notice = notice
        self._framings = Framings(store)
        self._added: list[str] = []

    def add_known(self, blobs: Sequence[Blob], expected: Sequence[str]) -> tuple[str, ...]:
        """Add *blobs*, whose diff ids are *expected*; return the chain ids."""
        chain = chain_ids(expected)
        parent = ""
        for blob, diff_id, name in zip(blobs, expected, chain, strict=True):
            if not self._is_there(name):
                with self._framings.new(name) as framing:
                    key, found = self._fill(
                        blob, parent, framing, algorithm_of(diff_id), known=True
                    )
                    if found != diff_id:
                        self._drop(key)
                        raise ArchiveError(
                            f"{blob.name}: its diff id is {found}, and the configuration says"
                            f" {diff_id}: it is broken"
                        )
                self._commit(name, key, diff_id)
            parent = name
        return tuple(chain)

    def add_unknown(self, blobs: Sequence[Blob]) -> tuple[list[str], tuple[str, ...]]:
        """Add *blobs*, of which no diff id is known; return diff ids and chain ids."""
        found: list[str] = []
        parent = ""
        for blob in blobs:
            passing = f"new-{os.urandom(8).hex()}"
            with self._framings.new(passing) as framing:
                key, diff_id = self._fill(blob, parent, framing, "sha256", known=False)
            found.append(diff_id)
            parent = chain_ids(found)[-1]
            if self._is_there(parent):
                self._drop(key)
                self._framings.remove(passing)
                continue
            os.rename(self._framings.path(passing), self._framings.path(parent))
            self._commit(parent, key, diff_id)
        return found, tuple(chain_ids(found))

    def _is_there(self, name: str) -> bool:
        with contextlib.suppress(NotFoundError):
            self._store.driver.stat(name)
            return True
        return False

    def _fill(
        self, blob: Blob, parent: str, framing: Any, algorithm: str, *, known: bool
    ) -> tuple[str, str]:
        """Apply *blob* to a new snapshot on *parent*; return its key and the diff id found."""
        key = f"importing {blob.name} {os.urandom(8).hex()}"
        self._store.driver.prepare(key, parent, labels={_IMPORTING: blob.name})
        try:
            with contextlib.closing(BlobReader(self._bundle, blob)) as source:
                tape = Tape(
                    Unpacked(source),
                    framing,
                    algorithm=algorithm,
                    progress=lambda size: self._progress(blob.name, size),
                )
                left_out = layers.fill(self._store, key, tape, vouched=known)
                source.finish()
        except ArchiveError as error:
            self._drop(key)
            if blob.name == self._bundle.path:  # which whoever prints it puts before it
                raise
            raise ArchiveError(f"{blob.name}: {error}") from error
        except BaseException:
            self._drop(key)
            raise
        self._tell(blob, left_out)
        return key, tape.digest

    def _tell(self, blob: Blob, left_out: Any) -> None:
        if left_out.squashed:
            self._notice(
                f"{blob.name}: {left_out.squashed} files are of other owners, and here yours: you"
                " are not root"
            )
        for name in sorted(left_out.dropped):
            shown = name.decode(errors="backslashreplace")
            self._notice(f"{blob.name}: attributes {shown} are left out: you are not root")

    def _commit(self, name: str, key: str, diff_id: str) -> None:
        try:
            self._store.driver.commit(name, key, labels={DIFF_ID: diff_id})
        except BaseException:
            self._drop(key)
            self._framings.remove(name)
            raise
        self._added.append(name)

    def _drop(self, key: str) -> None:
        # What cannot be removed now `cleanup` finds.
        with contextlib.suppress(StoreError, OSError):
            self._store.driver.remove(key)

    def undo(self, *, unless: Callable[[str], object]) -> None:
        """Remove what was added, *unless* it is an image's: who is interrupted may have one."""
        for name in reversed(self._added):
            if not unless(name):
                self._drop(name)
                self._framings.remove(name)
