"""Workers for snapshots: `WORK KIND:NAME HOME OPTIONS TARGET …`, one process with a store open."""

from __future__ import annotations

import contextlib
import os
import site
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from tests.bench.client import Phase, Works, serve
from tests.bench.containerd import Client
from tests.containerd import KEEP
from unionfs.driver.api import Driver, Mount
from unionfs.driver.attach import attach, detach
from unionfs.driver.registry import driver_class

MIB = 1 << 20
BLOCK = b"\x5a" * 4096


class Snapshots(Protocol):
    """The verbs that are measured, of either side. Both keep one label with each snapshot."""

    def prepare(self, key: str, parent: str = "") -> object: ...
    def prepare_mounts(self, key: str, parent: str = "") -> Sequence[Mount]: ...
    def commit(self, name: str, key: str) -> object: ...
    def remove(self, key: str) -> None: ...
    def release(self, key: str) -> None: ...
    def walk(self) -> Iterator[Any]: ...
    def count(self, found: list[Any]) -> int: ...


class Ours:
    """A driver of ours."""

    def __init__(self, driver: Driver) -> None:
        self.commit, self.remove, self.release = driver.commit, driver.remove, driver.release
        self.walk, self._mounts = driver.walk, driver.mounts
        self.prepare = partial(driver.prepare, labels={KEEP: "bench"})

    def prepare_mounts(self, key: str, parent: str = "") -> Sequence[Mount]:
        self.prepare(key, parent)
        return self._mounts(key)

    def count(self, found: list[Any]) -> int:
        return len(found)


class Bench:
    """An open store, and a directory to mount its snapshots on."""

    def __init__(self, kind: str, home: str, options: str, target: str) -> None:
        self.target = target
        os.makedirs(target, exist_ok=True)
        side, _, name = kind.partition(":")
        self.store: Snapshots
        if side == "containerd":
            site.main()  # workers are started without; grpcio is found by it
            self.store = Client(home, name)
        else:
            pairs = [text.split("=") for text in options.split(",") if text]
            self.store = Ours(driver_class(name).open(home, dict(pairs)))

    @contextlib.contextmanager
    def mounted(self, key: str, parent: str = "") -> Iterator[str]:
        """The new snapshot *key*, mounted; what its driver took is given back at the end."""
        attach(self.store.prepare_mounts(key, parent), self.target)
        try:
            yield self.target
        finally:
            detach(self.target)
            self.store.release(key)

    def layer(self, name: str, parent: str, fill: Callable[[str], None]) -> None:
        """The committed snapshot *name* with what *fill* writes into a directory."""
        with self.mounted("layer", parent) as root:
            fill(root)
        self.store.commit(name, "layer")


def small(root: str) -> None:
    """16 files, 1 MiB together."""
    for number in range(16):
        big(f"{root}/file{number:02d}", MIB // 16)


def big(path: str, size: int) -> None:
    """*size* bytes that no disk can make less of, as many as fit in whole blocks."""
    block = os.urandom(min(size, MIB))
    with open(path, "wb") as file:
        file.writelines(
            number.to_bytes(8, "big") + block[8:] for number in range(size // len(block))
        )
        file.flush()
        os.fsync(file.fileno())


def do_pairs(*where_and_count: str) -> list[Phase]:
    """Pairs of prepare and remove, each timed."""
    *where, count = where_and_count
    bench = Bench(*where)
    bench.layer("base", "", small)
    store = bench.store

    def run() -> dict[str, int]:
        spent = {"prepare": 0, "remove": 0}
        for number in range(int(count)):
            begin = time.perf_counter_ns()
            store.prepare(f"key {number}", "base")
            middle = time.perf_counter_ns()
            store.remove(f"key {number}")
            spent["prepare"] += middle - begin
            spent["remove"] += time.perf_counter_ns() - middle
        return {**spent, "both": sum(spent.values())}

    return [("pairs", run, int(count))]


def do_nothing(*where_and_count: str) -> list[Phase]:
    """Calls of containerd that do nothing."""
    *where, count = where_and_count
    client = Bench(*where).store
    assert isinstance(client, Client)

    def run() -> None:
        for _ in range(int(count)):
            client.ask_nothing()

    return [("call", run, int(count))]


def do_write(*where_and_count: str) -> list[Phase]:
    """The whole life of a snapshot that one small file is written into."""
    *where, count = where_and_count
    bench = Bench(*where)
    bench.layer("base", "", small)

    def run() -> None:
        for number in range(int(count)):
            with bench.mounted(f"key {number}", "base") as root, open(f"{root}/new", "wb") as file:
                file.write(BLOCK)
            bench.store.remove(f"key {number}")

    return [("life", run, int(count))]


def do_fill(*where_and_mib: str) -> list[Phase]:
    """A committed snapshot with one file. Its store is at rest when this process has ended."""
    *where, mib = where_and_mib
    bench = Bench(*where)

    def run() -> None:
        bench.layer("base", "", lambda root: big(f"{root}/file", int(mib) * MIB))

    return [("fill", run, 1)]


def do_change(*where_and_mib: str) -> list[Phase]:
    """A new snapshot on top of `fill`'s, with 4 KiB of the file changed; it stays."""
    *where, mib = where_and_mib
    bench = Bench(*where)

    def run() -> None:
        with bench.mounted("key", "base") as root:
            file = os.open(f"{root}/file", os.O_WRONLY)
            os.pwrite(file, BLOCK, int(mib) * MIB // 2)
            os.fsync(file)
            os.close(file)

    return [("change", run, 1)]


def do_depth(*where_depth_count: str) -> list[Phase]:
    """A snapshot on top of many, mounted, and a file of the lowest looked at."""
    *where, depth, count = where_depth_count
    bench = Bench(*where)
    parent = ""
    for number in range(int(depth)):
        bench.layer(f"layer {number}", parent, lambda root, n=number: big(f"{root}/of-{n}", 4096))  # type: ignore[misc]
        parent = f"layer {number}"

    def run() -> dict[str, int]:
        spent = 0
        for number in range(int(count)):
            begin = time.perf_counter_ns()
            with bench.mounted(f"key {number}", parent) as root:
                os.stat(f"{root}/of-0")
                spent += time.perf_counter_ns() - begin
            bench.store.remove(f"key {number}")
        return {"seen": spent}

    return [("seen", run, int(count))]


def do_many(*where_and_count: str) -> list[Phase]:
    """Snapshots on top of `fill`'s; they stay."""
    *where, count = where_and_count
    bench = Bench(*where)

    def run() -> None:
        for number in range(int(count)):
            bench.store.prepare(f"key {number}", "base")

    return [("prepare", run, int(count))]


def do_list(*where_count_times: str) -> list[Phase]:
    """A store with many snapshots, listed again and again."""
    *where, count, times = where_count_times
    store = Bench(*where).store
    for number in range(int(count)):
        store.prepare(f"key {number}")

    def run() -> None:
        lists = [list(store.walk()) for _ in range(int(times))]
        assert store.count(lists[-1]) == int(count)

    return [("list", run, int(times))]


WORKS: Works = {
    "pairs": do_pairs,
    "nothing": do_nothing,
    "write": do_write,
    "fill": do_fill,
    "change": do_change,
    "depth": do_depth,
    "many": do_many,
    "list": do_list,
}

if __name__ == "__main__":
    serve(WORKS)
