"""NFS: a server exports a volume, three clients and a container share it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.engines.ours import FUSE
from tests.walkthrough.lesson import Lesson
from tests.walkthrough.machine import PLACE

SERVER: Final = "203.0.113.1"
PORT, MOUNT_PORT = 20490, 20480

#: No locks and quotas by the protocols of version 3, which ask for more daemons. Others write here
#: too, so nothing may be remembered.
CONF: Final = f"""
NFS_CORE_PARAM {{
    Protocols = 3, 4; NFS_Port = {PORT}; MNT_Port = {MOUNT_PORT};
    Enable_NLM = false; Enable_RQUOTA = false;
    Plugins_Dir = "/usr/lib/x86_64-linux-gnu/ganesha";
}}
NFSV4 {{ Graceless = true; Only_Numeric_Owners = true; }}
EXPORT {{
    Export_Id = 1; Path = "{PLACE}/export"; Pseudo = "/data"; Access_Type = RW; SecType = sys;
    Squash = No_Root_Squash; Filesystem_Id = 1.7; Attr_Expiration_Time = 0;
    FSAL {{ Name = VFS; fsid_type = None; }}
}}
"""


def run(lesson: Lesson) -> None:
    """The volume, the server, the clients."""
    try:
        network(lesson)
        volume(lesson)
        serve(lesson, ["first", "second"])
        clients(lesson)
        container(lesson)
    finally:
        end(lesson)


def run_volume(lesson: Lesson) -> None:
    """A volume that is a directory of the server, mounted by the kernel."""
    kinds = Path("/proc/filesystems").read_text()
    lesson.need("\tnfs4\n" in kinds, "this kernel has no NFS client")
    try:
        network(lesson)
        volume(lesson)
        serve(lesson, ["first", "second"])
        volume_of_the_server(lesson)
    finally:
        end(lesson)


def volume_of_the_server(lesson: Lesson) -> None:
    lesson.say("Another volume is the server's directory.")
    mount = f"-o type=nfs -o o=addr={SERVER},port={PORT},nfsvers=4 -o device=:/data"
    shown = lesson.engine(f"volume create --driver unionfs {mount} remote")
    lesson.check("made", shown, "remote")
    shown = lesson.engine("run --rm -v remote:/v base sh -c 'echo remote >/v/new; cat /v/first'")
    lesson.check("a container reads it", shown, "of the shop\nby a container")
    lesson.check("and writes it", lesson.host("cat export/new"), "remote")


def network(lesson: Lesson) -> None:
    lesson.say("A network with a server, which is this machine, and three clients.")
    bridge = f"ip link add lan type bridge && ip addr add {SERVER}/24 dev lan"
    lesson.host(f"{bridge} && ip link set lan up")
    for number in (1, 2, 3):
        client = f"client{number}"
        lesson.host(
            f"ip netns add {client} && ip link add {client} type veth peer name eth0 netns {client}"
            f" && ip link set {client} master lan up && ip -n {client} link set eth0 up"
            f" && ip -n {client} addr add 203.0.113.1{number}/24 dev eth0"
        )


def volume(lesson: Lesson) -> None:
    lesson.say("A volume that begins with a directory's files; a container changes one.")
    lesson.host("mkdir shop export; echo of the shop | tee shop/first >shop/second")
    view = f"--driver unionfs -o from={PLACE}/shop data"
    lesson.check("made", lesson.engine(f"volume create {view}"), "data")
    lesson.engine("run --rm -v data:/v base sh -c 'echo by a container >>/v/first'")
    lesson.host("unionfs volume mount data export")
    shown = lesson.host("cat export/first")
    lesson.check("the server has it", shown, "of the shop\nby a container")
    shown = lesson.host("stat -f -c %t export")
    lesson.check("it is a union of ours", shown, FUSE)


def serve(lesson: Lesson, files: list[str]) -> None:
    """Export the volume, which has *files*."""
    lesson.say("nfs-ganesha, a server that needs nothing of the kernel, exports it.")
    # They keep files in places of the machine's.
    places = "/run/ganesha /run/rpcbind /var/lib/nfs/ganesha"
    lesson.machine.shell(f"mount -t tmpfs none /var/lib/nfs && mkdir -p {places}")
    (lesson.machine.directory / "ganesha.conf").write_text(CONF)
    shown = lesson.host("grep Path ganesha.conf")
    lesson.check_that("the export is the volume", f"{PLACE}/export" in shown, shown)
    lesson.host("rpcbind -f -w >rpcbind.log 2>&1 & echo $! >rpcbind.pid")
    paths = "-L $PWD/ganesha.log -f $PWD/ganesha.conf -p $PWD/ganesha.pid"
    lesson.host(f"ganesha.nfsd -F {paths} >/dev/null 2>&1 &")
    ask = f"{on(1)} nfs-ls '{url(3, '')}'"
    lesson.host(f"until {ask} >/dev/null 2>&1; do sleep 0.2; done", seconds=30)
    names = sorted(line.split()[-1] for line in lesson.host(ask).splitlines())
    lesson.check("a client lists it", names, files)


def on(client: int) -> str:
    return f"ip netns exec client{client}"


def url(version: int, name: str) -> str:
    """What libnfs calls a file of the export."""
    where = f"{PLACE}/export" if version == 3 else "/data"
    ports = f"nfsport={PORT}&mountport={MOUNT_PORT}"
    return f"nfs://{SERVER}{where}/{name}?version={version}&{ports}"


def clients(lesson: Lesson) -> None:
    for version in (3, 4):
        lesson.say(f"Version {version} of the protocol: one client writes, the others read.")
        name = f"shared{version}"
        copy = f"{on(1)} nfs-cp mine '{url(version, name)}' >cp.log"
        lesson.host(f"echo by client 1 >mine && {copy}")
        for reader in (2, 3):
            shown = lesson.host(f"{on(reader)} nfs-cat '{url(version, name)}'")
            lesson.check(f"client {reader} reads it", shown, "by client 1")


def container(lesson: Lesson) -> None:
    lesson.say("The volume is the engine's as well, all the time.")
    script = "cd /v; cat shared3; echo more >>first; ls"
    shown = lesson.engine(f"run --rm -v data:/v base sh -c '{script}'")
    files = ["first", "second", "shared3", "shared4"]
    lesson.check("a container has the clients' files", shown.splitlines(), ["by client 1", *files])
    shown = lesson.host(f"{on(3)} nfs-cat '{url(4, 'first')}'")
    lesson.check("and a client what the container has", shown, "of the shop\nby a container\nmore")


def end(lesson: Lesson) -> None:
    lesson.machine.shell(
        r"""
        for name in ganesha rpcbind; do
            pid=$(cat $name.pid) && kill $pid && while kill -0 $pid; do sleep 0.1; done
        done
        unionfs volume umount export
        umount /var/lib/nfs
        for number in 1 2 3; do ip netns del client$number; done
        ip link del lan
        """,
        status=None,
    )
