"""The texts of ``--help`` and ``--version``."""

from __future__ import annotations

from unionfs import __version__

VERSION = f"unionfs: version {__version__}"

#: Of fuse-overlayfs's options those of 2.0.0 are taken; engines show this text.
FUSE_OVERLAYFS_VERSION = f"fuse-overlayfs: version 2.0.0 (unionfs {__version__})"

COMMANDS = """\
usage: unionfs mount -o OPTIONS [SOURCE] TARGET     mount a union
       unionfs umount TARGET [--lazy]               unmount it, wait for its daemon
       unionfs ls [--json]                          list the mounted unions
       unionfs diff MOUNT | UPPERDIR | -o OPTIONS   list what the upper layer changes
       unionfs run [OPTIONS] IMAGE CMD...           run a command over a fresh layer
       unionfs snapshot VERB ...                    keep trees on top of one another, by name
       unionfs image VERB ...                       bring images in and out
       unionfs volume VERB ...                      keep files that outlive who uses them
       unionfs plugin NAME ...                      serve container engines by a socket
       unionfs [SOURCE] TARGET -o OPTIONS           mount, as mount(8) and engines call it

"unionfs COMMAND --help" tells more; unionfs(1) tells all."""

MOUNT = """\
usage: unionfs mount -o OPTIONS [SOURCE] TARGET
       unionfs [SOURCE] TARGET -o OPTIONS

  -o OPTIONS           mount options, separated by commas; may be repeated
  -f, --foreground     serve in the foreground
  -d, --debug          log every request; implies -f
  -v, --verbose        say what was mounted where
  --session NAME       who serves: auto, device or pyfuse3
  -h, --help           this text
  -V, --version        the version

mount options:
  lowerdir=A:B:C       read-only layers, topmost first (\\: and \\, are literal)
  upperdir=DIR         the layer that takes all changes; without it: read-only
  workdir=DIR          an empty directory on the file system of upperdir
  ro                   change nothing
  volatile, fsync=0, sync=0
                       never sync to the disk
  redirect_dir=on|off  rename directories of lower layers (default: on)
  userxattr            use user.overlay.* attributes though trusted.* can be had
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                       show this owner for all files
  uidmapping=DISK:SHOWN:LENGTH[:...], gidmapping=DISK:SHOWN:LENGTH[:...]
                       show ids of the layers as others
  xattr_permissions=0|1|2
                       keep owners and modes in inodes, or in xattrs of security.* or user.*
  static_nlink         directories show one link
  noacl, noxattrs=1    no POSIX ACLs, no extended attributes
  ino32_t              inode numbers of 32 bits
  timeout=SECONDS      how long the kernel may remember names and attributes
  entry_timeout=SECONDS, negative_timeout=SECONDS, attr_timeout=SECONDS
                       the same for names, for missing names, for attributes
  passthrough=auto|on|off
                       files that the kernel reads and writes itself; with "on"
                       to write a lower file that is being read is ETXTBSY
  placement=auto|spread|off
                       the CPUs on which requests are taken
  session=NAME         as --session
  fsname=SOURCE        the name shown as the source
  allow_other, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, sync, ...
                       as in mount(8) and mount.fuse3(8)"""

FUSE_OVERLAYFS = """\
usage: fuse-overlayfs [-f] [-d] [-o OPTIONS] MOUNTPOINT

unionfs under the name of fuse-overlayfs, with the options of both: see unionfs(1).

  -o OPTIONS           mount options, separated by commas; may be repeated
  -f                   serve in the foreground
  -d, --debug          log every request; implies -f
  -h, --help           this text
  -V, --version        the version"""

MOUNT8 = """\
usage: {program} SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]

Mounts a union for mount(8): see mount.unionfs(8), and unionfs(1) for OPTIONS.

  -f   check options and layers, mount nothing
  -s   say nothing about unknown options
  -v   say what was mounted where
  -n, -t TYPE
       accepted, without effect
  -N   mount in this mount namespace"""

UMOUNT = """\
usage: unionfs umount TARGET [--lazy]

Unmounts the union on TARGET and waits until its daemon is gone.

  -l, --lazy           detach it now, though it is in use; the daemon ends with the last use"""

LS = """\
usage: unionfs ls [--json]

Lists the mounted unions: layers, process, session and state, which is "live", "dead"
(mounted, but the daemon is gone: unmount it), "detached" (served, but not mounted in this
mount namespace) or "unknown".

  --json               as a JSON array"""

DIFF = """\
usage: unionfs diff MOUNT [--json]
       unionfs diff UPPERDIR [--json]
       unionfs diff -o lowerdir=LOWERS,upperdir=UPPER [--json]

Lists what the upper layer adds (A), changes (C) and deletes (D).

  -o OPTIONS           the layers, as for mounting them
  --json               as a JSON array"""

STORE = """\
  --root DIR           the store (default: $UNIONFS_ROOT, else /var/lib/unionfs, and
                       ~/.local/share/unionfs for ordinary users)
  --driver NAME        the storage driver (default: $UNIONFS_DRIVER, else overlay)
  --storage-opt K=V    an option of the driver; may be repeated
  --json               print for a script"""

SNAPSHOT = f"""\
usage: unionfs snapshot prepare KEY [PARENT] [--size SIZE] [--label K=V]...
       unionfs snapshot view KEY PARENT [--label K=V]...
       unionfs snapshot commit NAME KEY [--label K=V]...
       unionfs snapshot capture NAME KEY [--label K=V]...
       unionfs snapshot mount KEY DIR [-o OPTIONS]
       unionfs snapshot umount DIR [--lazy]
       unionfs snapshot mounts KEY [DIR]
       unionfs snapshot release KEY...
       unionfs snapshot rm KEY...
       unionfs snapshot ls
       unionfs snapshot info KEY...
       unionfs snapshot usage [KEY...]
       unionfs snapshot diff KEY
       unionfs snapshot label KEY NAME=VALUE...
       unionfs snapshot cleanup

Snapshots are trees of files, each on top of its parent. "prepare" makes one that can be
changed, "commit" gives it a name and ends that, so that others can be prepared on it; a
"view" shows one read-only. "capture" is a commit after which KEY goes on. "mounts" prints
the commands that "mount" stands for. An empty VALUE removes a label.

{STORE}"""

RUN = f"""\
usage: unionfs run [OPTIONS] IMAGE CMD [ARGUMENT...]

Runs a command in a root file system of its own: IMAGE (or any committed snapshot), and a
fresh layer over it that takes the changes. It is a chroot with mounts, processes, host name
and IPC of its own: the network is the host's, there are no limits, and nothing here holds a
command that wants out, least of all one that root runs. For that take a container engine.

  --rm                 remove the layer when the command ends; else it stays as the
                       snapshot NAME, to mount, commit or rm with unionfs snapshot
  -i, --interactive    standard input is the command's; else it is empty
  -t, --tty            give it a terminal
  -d, --detach         print the name and return; what it prints goes, without bound,
                       to ROOT/containers/NAME/log, its process is in the file pid there
  --name NAME          the name of the container (default: a random one)
  -v, --volume NAME:/PATH[:ro], --volume /HOST/DIR:/PATH[:ro]
                       show a volume of the store, or what the host has, at PATH
  --tmpfs /PATH[:size=64m,mode=1777]
                       an empty file system in memory, with that limit
  --mount type=bind|volume|tmpfs,src=...,dst=/PATH[,ro]
                       the same three, spelled out
  -e, --env NAME[=VALUE]
                       a variable; without VALUE it is the caller's
  -w, --workdir DIR    where it starts; made if it is missing
  -u, --user USER[:GROUP]
                       whom it runs as: names of the image, or numbers
  --entrypoint PROGRAM the program, with CMD for its arguments
  --hostname NAME      its host name (default: the container's name)
  --read-only          the root file system is read-only

{STORE}

Options stand before IMAGE. An ordinary user needs newuidmap (package uidmap) and lines in
/etc/subuid and /etc/subgid. The exit status is the command's, or 128 and the signal that
ended it; 125: it could not be run, 126: it is not executable, 127: it is not there."""


IMAGE = f"""\
usage: unionfs image import ARCHIVE | DIR | - [NAME]
       unionfs image export NAME ARCHIVE | - [--format FORMAT] [--compression NAME]
       unionfs image ls [-q]
       unionfs image rm NAME...
       unionfs image history NAME [--no-trunc]
       unionfs image inspect NAME...
       unionfs image cleanup

"import" takes an OCI layout (a directory or a tar archive), what docker save or podman save
wrote, or any tree (a directory or a tar archive) as one layer; which of them it is, the
content says. Compressed ones are taken as they are. An image's NAME is the parent for
"unionfs snapshot prepare KEY NAME". "export" also takes a committed snapshot.

  --format FORMAT      oci-archive (the default) or docker-archive
  --compression NAME   of layers: gzip, zstd or none (default: gzip, in docker-archive none)
  -q, --quiet          no progress; of ls, the names alone
  --no-trunc           do not shorten

{STORE}"""

VOLUME = f"""\
usage: unionfs volume create [--driver NAME] [--opt K=V]... [--label K[=V]]... [NAME]
       unionfs volume inspect NAME... [-f TEMPLATE]
       unionfs volume ls [-q] [--filter K=V]... [--format TEMPLATE]
       unionfs volume rm NAME... [-f]
       unionfs volume prune [-f] [--filter K=V]...
       unionfs volume mount NAME DIR [--id ID] [-o OPTIONS]
       unionfs volume umount DIR [--lazy]
       unionfs volume backup NAME FILE.tar[.gz|.zst] | - [--compression NAME] [-q]
       unionfs volume restore FILE | - NAME [-q]
       unionfs volume clone NAME NEW
       unionfs volume snapshot NAME [KEY]
       unionfs volume cleanup

The verbs are Docker's; mount, umount, backup, restore, clone and snapshot are ours. Who uses a
volume is counted by ID; one in use cannot be removed. "prune" removes all that nobody uses,
also those with names. "restore" takes any tar archive, and replaces what the volume has.

  --opt type=TYPE, --opt o=OPTIONS, --opt device=DEVICE
                       what mount(8) mounts: type=tmpfs,o=size=64m (in memory),
                       type=none,o=bind,device=/DIR, type=nfs,o=addr=HOST,device=:/DIR
  --opt size=SIZE      limit it (64m, 10g), where the driver can
  --opt from=DIR|VOLUME|IMAGE
                       begin with these files; they stay as they are
  --label K[=V]        a label; may be repeated
  --filter K=V         dangling=true|false, driver=, label=, label!=, name=
  -f, --format TEMPLATE
                       json, or as Docker has it: 'table {{{{.Name}}}}\\t{{{{.Driver}}}}'
  -f, --force          rm: no error for what is not there; prune: do not ask
  -a, --all            prune: all of them, as it does anyway
  --id ID              who uses it (default: DIR)
  -o OPTIONS           mount options, as ro
  --compression NAME   gzip, zstd or none (default: as the name of FILE ends)
  -q, --quiet          names only; no progress

{STORE}"""

PLUGIN = f"""\
usage: unionfs plugin volume [--socket PATH]

Serves a socket of a plugin of container engines until a signal ends it. "volume" gives
Docker and Podman the volumes of the store (default: /run/docker/plugins/unionfs.sock, where
Docker finds the volume driver "unionfs"). It has to run in the mount namespace of the engine.

  --socket PATH        the socket; one that systemd passes on is taken by itself

{STORE}"""
