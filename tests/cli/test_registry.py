from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from unionfs import registry
from unionfs.fuse.mounting import MountEntry

if TYPE_CHECKING:
    from pathlib import Path

DEVICE = "0:4321"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of these tests are nobody else's."""
    monkeypatch.setattr(registry, "_SYSTEM", str(tmp_path / "run"))
    monkeypatch.setattr(registry, "_RUNTIME", str(tmp_path / "user"))
    monkeypatch.setattr(registry, "_TEMPORARY", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / ("run" if os.geteuid() == 0 else "unionfs")


def entry(device: str = DEVICE, owner: int | None = None) -> MountEntry:
    user = os.geteuid() if owner is None else owner
    options = f"rw,user_id={user},group_id=0"
    return MountEntry(1, device, b"/m", "fuse.unionfs", b"unionfs", options)


def record(device: str = DEVICE) -> registry.Record:
    return registry.describe_self(device, "/m\udcff", "pyfuse3", "lowerdir=/a\\,b")


@pytest.fixture
def ended() -> registry.Record:
    """The record of a daemon that is gone."""
    with subprocess.Popen(["sleep", "60"]) as process:
        made = record()._replace(pid=process.pid)
        process.kill()
    return made


def test_a_record_is_found_by_its_mount(directory: Path) -> None:
    registry.write(record(), [DEVICE])
    assert registry.find(entry()) == record()
    assert registry.find(entry("0:4322")) is None
    assert os.listdir(directory) == ["0-4321.json"]
    registry.remove(record())
    assert os.listdir(directory) == []
    registry.remove(record())


def test_of_a_process_that_runs() -> None:
    assert registry.is_running(record()) is True
    assert registry.wait_for_end(record(), 0) is False


def test_of_one_that_is_gone(ended: registry.Record) -> None:
    assert registry.is_running(ended) is False
    assert registry.wait_for_end(ended, 0) is True


def test_of_another_process_with_the_same_number() -> None:
    other = record()._replace(start_time=record().start_time + 1)
    assert registry.is_running(other) is False
    assert registry.wait_for_end(other, 0) is True


def test_of_a_number_in_another_namespace() -> None:
    assert registry.is_running(record()._replace(pid_namespace=1)) is None


def test_waiting_for_an_end_that_comes() -> None:
    with subprocess.Popen(["sleep", "0.3"]) as process:
        start_time = registry.start_time(process.pid)
        assert start_time is not None
        alive = record()._replace(pid=process.pid, start_time=start_time)
        assert registry.wait_for_end(alive, 0) is False
        assert registry.wait_for_end(alive, 20) is True


def test_a_record_is_not_removed_for_the_last_holder_of_its_device(
    ended: registry.Record,
) -> None:
    registry.write(record(), [DEVICE])
    registry.remove(ended)
    assert registry.find(entry()) == record()


def test_writing_drops_what_nothing_backs(directory: Path, ended: registry.Record) -> None:
    elsewhere = ended._replace(device="0:2", mount_namespace=1)
    for old in (ended._replace(device="0:1"), elsewhere, record()._replace(device="0:3")):
        registry.write(old, [])
    registry.write(ended._replace(device="0:4"), ["0:4"])
    (directory / "0-5.json").write_text("not ours")
    registry.write(record(), [DEVICE, "0:4"])
    names = {"0-2.json", "0-3.json", "0-4.json", "0-5.json", "0-4321.json"}
    assert set(os.listdir(directory)) == names


def test_unions_that_are_not_mounted_here(ended: registry.Record) -> None:
    registry.write(record(), [])
    registry.write(ended._replace(device="0:1"), ["0:1", DEVICE])
    assert registry.others([]) == [record()]
    assert registry.others([DEVICE]) == []


def test_records_about_the_mounts_of_others_are_not_believed() -> None:
    registry.write(record(), [])
    assert registry.find(entry(owner=os.geteuid() + 1)) is None


def test_a_running_daemon_is_believed_before_one_that_is_gone(
    directory: Path, ended: registry.Record
) -> None:
    (directory.parent / "tmp").mkdir()
    first, second = registry._directories()[:2]
    for place, one in ((first, ended), (second, record())):
        os.makedirs(place, exist_ok=True)
        registry._put(place, one)
    assert registry.find(entry()) == record()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"device": "0:4321"}', '{"pid": "1"}', "\x00", "é", "[" * 100_000],
)
def test_files_that_hold_no_record_are_passed_over(directory: Path, text: str) -> None:
    registry.write(record(), [])
    (directory / "0-4321.json").write_text(text)
    assert registry.find(entry()) is None
    assert registry.others([]) == []
    registry.write(record(), [])


@pytest.mark.parametrize("value", [1, None, ["x"]])
def test_nor_do_records_with_values_of_other_kinds(directory: Path, value: object) -> None:
    registry.write(record(), [])
    (directory / "0-4321.json").write_text(json.dumps({**record()._asdict(), "target": value}))
    assert registry.find(entry()) is None


def test_links_and_pipes_are_no_records(directory: Path, tmp_path: Path) -> None:
    registry.write(record(), [])
    os.rename(directory / "0-4321.json", tmp_path / "elsewhere")
    (directory / "0-4321.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(directory / "0-1.json")
    assert registry.find(entry()) is None
    assert registry.find(entry("0:1")) is None


def test_a_directory_that_others_may_write_is_not_used(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    for place in (directory, tmp_path / "unionfs"):
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
    registry.write(record(), [])
    assert not list(directory.iterdir())
    assert len(list(tmp_path.glob("tmp/*/*.json"))) == 1


def test_the_daemon_does_not_write_into_its_own_mount(directory: Path, tmp_path: Path) -> None:
    assert registry._own_directory("/") == str(directory)
    with pytest.raises(FileNotFoundError):
        registry._own_directory(str(tmp_path))


def test_the_last_resort_leaves_nothing_behind(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    for other in (directory, tmp_path / "unionfs"):
        other.write_text("in the way")
    registry.write(record(), [])
    (place,) = (tmp_path / "tmp").iterdir()
    assert place.name == f"unionfs-{os.geteuid()}"
    assert registry.find(entry()) == record()
    registry.remove(record())
    assert os.listdir(tmp_path / "tmp") == []
