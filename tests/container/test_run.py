"""What a command finds, what it leaves, and the status that it ends with."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.container.runner import Runner

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["sh", "-c", "kill -TERM 1; exec sleep 20"], 128 + 15),
    ],
)
def test_the_status_is_the_commands(runner: Runner, command: list[str], status: int) -> None:
    runner.run("--rm", "base", *command, status=status)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["base", "nosuch"], 127, "nosuch: no such command in the image"),
        (["base", "/bin/nosuch"], 127, "/bin/nosuch: no such command in the image"),
        (["base", "/etc/words"], 126, "/etc/words: cannot be executed: Permission denied"),
        (["base", "/tmp"], 126, "/tmp: cannot be executed: Permission denied"),
        (["nosuch", "true"], 125, "nosuch: no such image"),
        (["--nosuch", "base", "true"], 125, "--nosuch: unknown argument"),
        (["base"], 125, "CMD is missing: what to run in it; see unionfs run --help"),
        ([], 125, "IMAGE is missing; see unionfs run --help"),
        (["-u", "nosuch", "base", "true"], 125, "nosuch: no such user in the image's /etc/passwd"),
        (["-v", "/nosuch", "base", "true"], 125, "-v /nosuch: give NAME:/path or /HOST/DIR:/path"),
        (
            ["-v", "/tmp:/etc/words", "base", "true"],
            125,
            "/etc/words: a file in the image, and a directory is to be mounted there",
        ),
        (
            ["-v", "/etc/passwd:/data", "base", "true"],
            125,
            "/data: a directory in the image, and a file is to be mounted there",
        ),
        (
            ["--hostname", "a b", "base", "true"],
            125,
            "--hostname a b: blanks are not for names of hosts",
        ),
        (["-w", "tmp", "base", "true"], 125, "-w tmp: not an absolute path"),
        (
            ["--mount", "type=bind,src=/nosuch,dst=/b", "base", "true"],
            125,
            "/nosuch: No such file or directory",
        ),
        (["--tmpfs", "/t", "-v", "/tmp:/t", "base", "true"], 125, "/t: two things to mount there"),
        (
            ["-it", "base", "true"],
            125,
            "-t with -i: standard input is not a terminal; leave -t out",
        ),
    ],
)
def test_what_cannot_be_run(runner: Runner, arguments: list[str], status: int, said: str) -> None:
    assert runner.refuse(*arguments, status=status) == said
    assert runner.snapshots() == ["base"]
    assert not (runner.root / "containers").exists() or runner.containers() == []


def test_a_missing_interpreter_is_told(runner: Runner) -> None:
    command = "printf '#!/nosuch\\n' >/s; chmod +x /s"
    runner.run("--name", "making", "base", "sh", "-c", command)
    runner.unionfs("snapshot", "commit", "script", "making")
    said = runner.refuse("script", "/s", status=127)
    assert said == "/s: its interpreter is not in the image"


def test_each_has_a_layer_of_its_own(runner: Runner) -> None:
    runner.run("--name", "one", "base", "sh", "-c", "echo one >/etc/words; rm /data/old")
    assert runner.run("--rm", "--name", "two", "base", "cat", "/etc/words") == "of the image\n"
    assert runner.snapshots() == ["base", "one"]
    changes = runner.unionfs("snapshot", "diff", "one").splitlines()
    assert {"C /etc/words", "D /data/old"} <= set(changes)
    runner.unionfs("snapshot", "commit", "image/two", "one")
    shown = runner.run("--rm", "image/two", "sh", "-c", "cat /etc/words; ls /data")
    assert shown == "one\n"


def test_three_from_one_base_which_is_on_the_disk_once(runner: Runner) -> None:
    for name in ("C1", "C2", "C3"):
        runner.run("--name", name, "base", "sh", "-c", f"echo {name} >/etc/words; touch /{name}")
    for name in ("C1", "C2", "C3"):
        changes = runner.unionfs("snapshot", "diff", name).splitlines()
        assert [line for line in changes if "/C" in line] == [f"A /{name}"]
    used = json.loads(runner.unionfs("snapshot", "usage", "--json"))
    sizes = {one["key"]: one["size"] for one in used}
    assert sizes.pop("base") > 1 << 20
    assert all(size < 1 << 17 for size in sizes.values()), sizes
    assert runner.run("--rm", "base", "cat", "/etc/words") == "of the image\n"


def test_a_kept_layer_can_be_looked_at_and_removed(runner: Runner, scratch: Path) -> None:
    runner.run("--name", "kept", "base", "touch", "/new")
    (scratch / "m").mkdir()
    runner.unionfs("snapshot", "mount", "kept", str(scratch / "m"))
    assert (scratch / "m/new").exists()
    runner.unionfs("snapshot", "umount", str(scratch / "m"))
    said = runner.refuse("--name", "kept", "base", "true")
    assert said == "kept: the name is taken; free it with unionfs snapshot rm kept"
    runner.unionfs("snapshot", "rm", "kept")
    runner.run("--rm", "--name", "kept", "base", "true")
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_the_image_stays_as_it_was(runner: Runner) -> None:
    runner.run("--rm", "base", "sh", "-c", "rm -r /data /etc/words; echo >/bin/busybox2")
    assert runner.run("--rm", "base", "ls", "/data") == "old\n"


def test_surroundings(runner: Runner) -> None:
    options = ["--rm", "--name", "some.name", "-e", "A=b c", "-e", "HERE", "-e", "MISSING"]
    script = "hostname; pwd; echo $A; echo $HERE; echo ${MISSING-none}; echo $HOME; id -u"
    shown = runner.run(*options, "base", "sh", "-c", script, env={"HERE": "there"})
    assert shown.splitlines() == ["some.name", "/", "b c", "there", "none", "/root", "0"]
    shown = runner.run("--rm", "--hostname", "h", "-w", "/new/dir", "base", "sh", "-c", script)
    assert shown.splitlines()[:2] == ["h", "/new/dir"]


def test_what_the_caller_has_is_not_the_commands(runner: Runner) -> None:
    """Neither variables nor open files but the three; -e names what is to be there."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    script = "env | grep -c SECRET; ls /proc/self/fd | wc -l"
    shown = runner.run("--rm", "base", "sh", "-c", script, env={"SECRET": "1"}, pass_fds=[writer])
    os.close(reader)
    os.close(writer)
    # The fourth is the directory that ls reads.
    assert shown.split() == ["0", "4"]


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("user", "uid=1000(user) gid=1001(user) groups=1001(user),1002(extra)"),
        ("1000", "uid=1000(user) gid=1001(user) groups=1001(user),1002(extra)"),
        ("user:extra", "uid=1000(user) gid=1002(extra)"),
        ("77:88", "uid=77 gid=88"),
        ("77", "uid=77 gid=0(root) groups=0(root)"),
    ],
)
def test_users(runner: Runner, user: str, shown: str) -> None:
    assert runner.run("--rm", "-u", user, "base", "id").strip() == shown


def test_a_user_owns_what_he_makes_and_is_refused_what_is_not_his(runner: Runner) -> None:
    script = "touch /tmp/mine; stat -c %u /tmp/mine; touch /etc/words 2>&1; echo $HOME"
    shown = runner.run("--rm", "-u", "user", "base", "sh", "-c", script)
    assert shown.splitlines() == ["1000", "touch: /etc/words: Permission denied", "/home/user"]


def test_standard_input(runner: Runner) -> None:
    assert runner.run("--rm", "base", "cat", typed="not for it") == ""
    assert runner.run("--rm", "-i", "base", "cat", typed="for it") == "for it"


def test_options_end_at_the_image(runner: Runner) -> None:
    assert runner.run("--rm", "base", "echo", "--rm", "-i", "--", "-x") == "--rm -i -- -x\n"


def test_entrypoint(runner: Runner) -> None:
    assert runner.run("--rm", "--entrypoint", "echo", "base", "one", "two") == "one two\n"


def test_processes_are_the_containers(runner: Runner) -> None:
    shown = runner.run("--rm", "base", "ps", "-o", "pid,args").splitlines()
    assert len(shown) == 3, shown


def test_devices(runner: Runner) -> None:
    script = """
        cd /dev
        for name in null zero full random urandom tty; do test -c $name || echo $name; done
        echo lost >null; head -c 4 zero | od -An -c; head -c 8 urandom | wc -c
        echo x >full 2>/dev/null || echo full
        readlink fd; readlink ptmx; stat -c %a shm
        echo shared >shm/file && cat shm/file
        df -m shm | tail -1 | awk '{ print $2 }'
    """
    shown = runner.run("--rm", "base", "sh", "-c", script)
    expected = "  \\0  \\0  \\0  \\0\n8\nfull\n/proc/self/fd\npts/ptmx\n1777\nshared\n64\n"
    assert shown == expected


def test_the_machine_is_guarded_against_slips(runner: Runner) -> None:
    script = """
        for file in /sys/kernel/uevent_seqnum /proc/sys/kernel/hostname /proc/sysrq-trigger; do
            if echo h 2>/dev/null >$file; then echo $file; fi
        done
        mkdir /sys/fs/cgroup/x 2>/dev/null && echo cgroup
        true
    """
    assert runner.run("--rm", "base", "sh", "-c", script) == ""


def test_files_of_the_network(runner: Runner) -> None:
    script = "cat /etc/hostname; tail -1 /etc/hosts; cat /etc/resolv.conf"
    shown = runner.run("--rm", "--name", "its-name", "base", "sh", "-c", script)
    resolv = Path("/etc/resolv.conf").read_text() if os.path.exists("/etc/resolv.conf") else ""
    assert shown == f"its-name\n127.0.1.1\tits-name\n{resolv}"
    before = Path("/etc/hosts").read_bytes()
    runner.run("--rm", "base", "sh", "-c", "echo 1.2.3.4 x >>/etc/hosts")
    assert Path("/etc/hosts").read_bytes() == before


def test_read_only(runner: Runner) -> None:
    script = "touch /x 2>/dev/null || echo refused; touch /t/x /dev/shm/x && echo taken"
    shown = runner.run("--rm", "--read-only", "--tmpfs", "/t", "base", "sh", "-c", script)
    assert shown == "refused\ntaken\n"


def test_a_tmpfs_is_as_large_as_it_says(runner: Runner) -> None:
    script = """
        stat -c %a /t
        dd if=/dev/zero of=/t/file bs=64k count=32 2>&1 | grep -o 'No space left on device'
        stat -c %s /t/file
    """
    options = ["--rm", "--tmpfs", "/t:size=1m,mode=700"]
    shown = runner.run(*options, "base", "sh", "-c", script)
    assert shown == f"700\nNo space left on device\n{1 << 20}\n"
    mount = "type=tmpfs,dst=/t,tmpfs-size=1048576,tmpfs-mode=700"
    assert runner.run("--rm", "--mount", mount, "base", "sh", "-c", script) == shown


def test_binds(runner: Runner, scratch: Path) -> None:
    (scratch / "host").mkdir()
    (scratch / "host/file").write_text("of the host\n")
    bind = f"{scratch}/host:/b"
    assert runner.run("--rm", "-v", bind, "base", "cat", "/b/file") == "of the host\n"
    runner.run("--rm", "-v", bind, "base", "touch", "/b/new")
    assert (scratch / "host/new").exists()
    script = "touch /b/no 2>&1; cat /b/file"
    shown = runner.run("--rm", "-v", f"{bind}:ro", "base", "sh", "-c", script)
    assert shown == "touch: /b/no: Read-only file system\nof the host\n"
    file = f"type=bind,src={scratch}/host/file,dst=/etc/words,readonly"
    assert runner.run("--rm", "--mount", file, "base", "cat", "/etc/words") == "of the host\n"
    runner.run("--rm", "-v", f"{scratch}/made/here:/b", "base", "touch", "/b/x")
    assert (scratch / "made/here/x").exists()


def test_what_is_mounted_in_a_bind_comes_along_and_is_read_only_too(
    runner: Runner, scratch: Path
) -> None:
    from tests import system  # noqa: PLC0415 - for this test alone

    (scratch / "host/inside").mkdir(parents=True)
    system.mount("none", scratch / "host/inside", "tmpfs")
    (scratch / "host/inside/file").write_text("deep\n")
    script = "cat /b/inside/file; touch /b/inside/no 2>/dev/null || echo refused"
    shown = runner.run("--rm", "-v", f"{scratch}/host:/b:ro", "base", "sh", "-c", script)
    assert shown == "deep\nrefused\n"


def test_places_inside_of_places(runner: Runner, scratch: Path) -> None:
    (scratch / "host/inner").mkdir(parents=True)
    options = ["-v", f"{scratch}/host:/b/inner/x", "--tmpfs", "/b"]
    shown = runner.run("--rm", *options, "base", "sh", "-c", "ls /b /b/inner/x")
    assert shown == "/b:\ninner\n\n/b/inner/x:\ninner\n"


def test_symlinks_of_an_image_do_not_lead_out(runner: Runner, scratch: Path) -> None:
    """What is mounted and made is where the command sees it, whatever the image says."""
    outside = scratch / "outside"
    outside.mkdir()
    script = f"""
        rm -r /etc/resolv.conf /proc2 /link 2>/dev/null
        ln -s {outside} /link; ln -s ../../../..{outside} /data/link
    """
    runner.run("--name", "evil", "base", "sh", "-c", script)
    runner.unionfs("snapshot", "commit", "evil-image", "evil")
    options = ["--tmpfs", "/link/a", "-v", f"{outside}:/data/link/b", "-w", "/link/work"]
    script = f"pwd; touch /link/a/x; test -d {outside}/b && echo inside"
    assert runner.run("--rm", *options, "evil-image", "sh", "-c", script) == (
        f"{outside}/work\ninside\n"
    )
    assert os.listdir(outside) == []


def test_the_hosts_mounts_stay_as_they_are(runner: Runner) -> None:
    def mounts() -> str:
        return Path("/proc/self/mountinfo").read_text()

    before = mounts()
    runner.run(
        "--rm", "base", "sh", "-c", "mount -t tmpfs none /tmp; umount /proc/sys; umount -l /sys"
    )
    assert mounts() == before
    assert os.listdir("/sys")


def test_special_files_and_set_user_id_work(runner: Runner) -> None:
    script = (
        "mknod /n c 1 3; echo x >/n; cp /bin/busybox /busybox; chmod 4755 /busybox;"
        " exec /busybox stat -c %a /busybox"
    )
    assert runner.run("--rm", "base", "sh", "-c", script) == "4755\n"
    (root,) = runner.run("--rm", "base", "grep", " / fuse", "/proc/mounts").splitlines()
    assert not {"nosuid", "nodev", "noexec"} & set(root.split()[3].split(","))


def test_the_containers_directory_is_nobody_elses(runner: Runner) -> None:
    runner.run("--name", "kept", "base", "true")
    mode = stat.S_IMODE((runner.root / "containers").stat().st_mode)
    assert mode & 0o066 == 0


@pytest.mark.parametrize("name", ["x", "-x", ".xy", "a/b", "a b", "", "ä1"])
def test_names_as_docker_has_them(runner: Runner, name: str) -> None:
    said = runner.refuse("--name", name, "base", "true")
    assert said.startswith(f"{name}: not a name")


WATCHED = """
import os, sys
from unionfs.container import init
before, keep_only, leave = set(), init._keep_only, os._exit

def begin(*arguments):
    keep_only(*arguments)
    before.update(sys.modules)
    os.dup2(2, 200)

def report():
    if before:
        os.write(200, f"{sorted(set(sys.modules) - before)}\\n".encode())

def end(status):
    try:
        report()
    finally:  # the command's process has closed what it is told on
        leave(status)

def tell(*arguments, **words):
    if "failed" in words:
        report()  # who hears of it kills us
    told(*arguments, **words)

told = init._tell
init._keep_only, init._tell, os._exit = begin, tell, end
from unionfs.cli import program
program()
"""


@pytest.mark.parametrize("command", ["true", "nosuch"])
def test_the_first_process_imports_nothing(runner: Runner, command: str) -> None:
    """What it would read are files of the image."""
    python, *_ = runner.command_line()
    done = subprocess.run(
        [python, "-c", WATCHED, "run", "--rm", "-t", "-u", "user", "base", command],
        env=runner.surroundings(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("unionfs: ")]
    # Where there is nothing to run its starter may end it before it has told.
    assert lines or command == "nosuch"
    assert set(lines) <= {"[]"}
