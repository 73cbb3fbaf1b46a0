"""A stock Debian with systemd: installed as README.md says, mounted at boot, shut down in order.

One machine for all: it is set up, shut down while it is used, and booted again.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import REPOSITORY
from tests.vm.booted import CARGO, LAYERS, Booted
from tests.vm.errors import CannotError

pytestmark = [pytest.mark.needs_root, pytest.mark.vm, pytest.mark.slow]

#: Interpreted, pip takes a minute.
_LONG = 600
_OPTIONS = "lowerdir=/layers/a:/layers/b,upperdir=/layers/u{0},workdir=/layers/w{0}"
_AFTER = "x-systemd.requires-mounts-for=/layers"

#: What is mounted at boot, by each way there is; all but the second can be written.
MOUNTS = ("m1", "m2", "m3", "m4")
_FSTAB = f"""\
LABEL=layers /layers ext4 defaults 0 2
overlay /m1 unionfs {_OPTIONS.format(1)},{_AFTER} 0 0
overlay /m2 fuse.unionfs lowerdir=/layers/a:/layers/b,nofail,{_AFTER} 0 0
"""
_MOUNT_UNIT = f"""\
[Unit]
RequiresMountsFor=/layers
[Mount]
What=overlay
Where=/m3
Type=unionfs
Options={_OPTIONS.format(3)}
[Install]
WantedBy=multi-user.target
"""
#: Layers, and who writes until the machine goes down.
_SET_UP = f"""
set -e
mkdir -p /layers /m1 /m2 /m3 /m4 /etc/unionfs /var/log/journal
mount {LAYERS} /layers
mkdir -p /layers/a /layers/b /layers/{{u,w}}{{1,3,4}}
echo of a >/layers/a/file
echo of b >/layers/b/file
echo of b >/layers/b/other
umount /layers
cat >>/etc/fstab <<'END'
{_FSTAB}END
cat >/etc/systemd/system/m3.mount <<'END'
{_MOUNT_UNIT}END
echo "OPTIONS='{_OPTIONS.format(4)}'" >/etc/unionfs/m4.conf
systemctl daemon-reload
mount -a
systemctl enable -q --now m3.mount unionfs@m4.service
"""
_WRITE = """
set -e
for n in 1 3 4; do
  echo changed >/m$n/other
  rm /m$n/file
  systemd-run -q --unit=writes$n -p After=unionfs@m4.service \\
    bash -c "while echo line >>/m$n/log; do :; done"
done
"""
#: An ordinary user's own, which nobody unmounts for him.
_USERS = """
set -e
mkdir -p ~/lower ~/upper ~/work ~/merged
echo below >~/lower/file
unionfs mount -o lowerdir=$HOME/lower,upperdir=$HOME/upper,workdir=$HOME/work ~/merged
echo above >~/merged/file
"""


@pytest.fixture(scope="module")
def machine(module_scratch: Path) -> Iterator[Booted]:
    """The machine after its second boot."""
    try:
        booted = Booted(module_scratch)
    except CannotError as error:
        pytest.skip(f"no virtual machine: {error}")
    try:
        booted.boot()
        for user, script, seconds in (
            ("root", f"mkdir /unionfs && tar -x -f {CARGO} -C /unionfs && cd /unionfs", 60),
            ("root", _installation(), _LONG),
            ("root", _SET_UP, 60),
            ("root", _WRITE, 60),
            ("vagrant", _USERS, 60),
        ):
            done = booted.run(script, user=user, seconds=seconds)
            assert done.returncode == 0, done.stdout
        booted.power_off()
        check = ["e2fsck", "-f", "-n", str(booted.layers)]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert "recover" not in done.stdout + done.stderr
        booted.boot()
        yield booted
    finally:
        booted.close()


def _installation() -> str:
    """What README.md says under "At boot", where pip has no network."""
    section = (REPOSITORY / "README.md").read_text().split("### At boot\n")[1].split("\n### ")[0]
    commands = section.split("```\n")[1]
    assert "pip install" in commands
    where = "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/unionfs/wheels\ncd /unionfs\n"
    return f"set -e\n{where}{commands.replace('sudo ', '')}"


def said(machine: Booted, script: str, user: str = "root") -> str:
    done = machine.run(script, user=user)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_nothing_failed(machine: Booted) -> None:
    assert said(machine, "systemctl is-system-running") == "running\n"


@pytest.mark.parametrize("name", MOUNTS)
def test_it_is_mounted_at_boot(machine: Booted, name: str) -> None:
    assert said(machine, f"findmnt -no FSTYPE /{name}") == "fuse.unionfs\n"


@pytest.mark.parametrize("number", [1, 3, 4])
def test_what_was_written_is_kept(machine: Booted, number: int) -> None:
    place = f"/m{number}"
    assert said(machine, f"cat {place}/other") == "changed\n"
    assert said(machine, f"ls {place}") == "log\nother\n"
    # Whoever wrote was stopped first; so its last line is whole, and a copy of it is nowhere else.
    assert said(machine, f"sort -u {place}/log; ls -A /layers/w{number}/work") == "line\n"


def test_unions_were_unmounted_before_their_layers(machine: Booted) -> None:
    journal = said(machine, "journalctl -b -1 -o cat").splitlines()

    def last(pattern: str) -> int:
        return max(n for n, line in enumerate(journal) if re.search(pattern, line))

    layers = last(r"Unmounting layers\.mount")
    for name in ("m1", "m2", "m3"):
        assert last(rf"Unmounted {name}\.mount") < layers
    assert last(r"Stopped unionfs@m4\.service") < layers
    assert last(r"Stopped writes4") < last(r"Stopping unionfs@m4\.service")
    assert not [line for line in journal if "SIGKILL" in line or "Failed unmounting" in line]


def test_no_file_system_was_left_dirty(machine: Booted) -> None:
    journal = said(machine, "journalctl -b -o cat")
    assert "layers: clean" in journal
    assert not re.search("recover", journal)


def test_the_daemons_had_nothing_to_say(machine: Booted) -> None:
    for boot in (0, -1):
        assert said(machine, f"journalctl -q -b {boot} -p warning _COMM=unionfs") == ""


def test_a_unit_is_stopped_and_started(machine: Booted) -> None:
    stop = "systemctl stop unionfs@m4 && ! mountpoint -q /m4 && ! pgrep -f ' /m4$'"
    said(machine, f"{stop} && systemctl start unionfs@m4 && mountpoint -q /m4")


def test_a_unit_whose_union_was_unmounted_by_hand(machine: Booted) -> None:
    said(machine, "unionfs umount /m4 && ! systemctl is-failed -q unionfs@m4")
    said(machine, "systemctl start unionfs@m4 && mountpoint -q /m4")


def test_a_unit_whose_daemon_was_killed(machine: Booted) -> None:
    """Nobody takes an empty directory for the union; the next start mounts it."""
    kill = "systemctl kill -s KILL unionfs@m4; sleep 2; systemctl is-failed unionfs@m4; ls /m4"
    done = machine.run(kill)
    assert done.returncode != 0
    assert done.stdout.startswith("failed\n")
    assert "not connected" in done.stdout
    assert "other" in said(machine, "systemctl start unionfs@m4 && ls /m4")


def test_what_a_unit_cannot_mount_it_says(machine: Booted) -> None:
    wrong = "echo OPTIONS=lowerdir=/nowhere >/etc/unionfs/m5.conf && mkdir -p /m5"
    done = machine.run(f"{wrong}; systemctl start unionfs@m5; journalctl -q -o cat -u unionfs@m5")
    assert "/nowhere" in done.stdout
    said(machine, "! mountpoint -q /m5 && systemctl reset-failed")


def test_what_a_user_wrote_is_kept(machine: Booted) -> None:
    """Nobody unmounted his union: the end of his session did."""
    assert said(machine, "cat ~/upper/file; ls -A ~/merged ~/work/work", "vagrant").startswith(
        "above\n"
    )


def test_a_user_mounts_by_fusermount(machine: Booted) -> None:
    mount = "unionfs mount -o lowerdir=$HOME/lower,upperdir=$HOME/upper,workdir=$HOME/work ~/merged"
    script = (
        f"{mount} && cat ~/merged/file && findmnt -no OPTIONS ~/merged && unionfs umount ~/merged"
    )
    told = said(machine, script, "vagrant")
    assert told.startswith("above\n")
    assert "user_id=1000" in told


def test_a_user_mounts_in_a_namespace_of_his_own(machine: Booted) -> None:
    mount = "unionfs mount -o lowerdir=$HOME/lower,upperdir=u,workdir=w m"
    inside = f"{mount} && echo mine >m/file && cat u/file && unionfs umount m"
    script = f"mkdir -p ~/own/{{u,w,m}} && cd ~/own && unshare -rm sh -c '{inside}'"
    assert said(machine, script, "vagrant") == "mine\n"


#: A profile that lets its program do anything but mount by itself, and one that lets it.
_PROFILES = """
abi <abi/3.0>,
profile no-mounts flags=(attach_disconnected) { file, capability, network, signal, unix, }
profile mounts flags=(attach_disconnected) {
  file, capability, network, signal, unix,
  mount fstype=fuse.unionfs,
  umount,
}
"""


def test_apparmor_is_on(machine: Booted) -> None:
    """Everything above was so with it; a profile has a say, and what it refuses is an error."""
    assert said(machine, "aa-enabled") == "Yes\n"
    said(machine, f"cat >/tmp/profiles <<'END'\n{_PROFILES}END\napparmor_parser -r /tmp/profiles")
    mount = "unionfs mount -o lowerdir=/layers/a:/layers/b /mnt"
    assert "enforce" in said(machine, "aa-exec -p mounts -- cat /proc/self/attr/current")
    assert said(machine, f"aa-exec -p mounts -- {mount} && cat /mnt/file && unionfs umount /mnt")
    done = machine.run(f"aa-exec -p no-mounts -- {mount}")
    assert done.returncode == 32, done.stdout
    assert "ermission denied" in done.stdout
