"""A Debian as people have it, on a disk that boots by itself: its kernel, GRUB, systemd and sshd.

The box of `vagrant/build-box` is this disk; `tests/vm/test_stock.py` boots it as it is. It is made
of Debian's packages alone. unionfs is not in it, but what it is installed with is, so that it can
be installed where there is no network.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from tests.mounts import REPOSITORY
from tests.vm import cache, debian

#: A system to log in to; the rest of its packages is what `vagrant/provision` would install.
_SYSTEM = (
    *("apparmor", "ca-certificates", "dbus", "ifupdown", "initramfs-tools", "iproute2"),
    *("isc-dhcp-client", "less", "libpam-systemd", "linux-image-amd64", "grub-pc-bin"),
    *("netbase", "openssh-server", "procps", "rsync", "sudo", "systemd-sysv", "udev"),
)
#: The disk is this large; what is not written takes nothing.
SIZE = 10 << 30
#: Where its one partition begins; GRUB lies before it.
_START = 1 << 20

#: What finds the root file system on the disks of QEMU and VirtualBox.
_MODULES = (
    *("ahci", "ata_piix", "crc32c_generic", "ext4", "mptspi", "nvme", "sd_mod"),
    *("virtio_blk", "virtio_pci", "virtio_scsi"),
)
#: What of GRUB is in its image, and with that all that it needs.
_GRUB = ("biosdisk", "configfile", "ext2", "linux", "minicmd", "normal", "part_msdos", "reboot")

#: The public half of the key that Vagrant logs in with first, and replaces then.
_VAGRANT_KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+ni"
    "NltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITA"
    "MzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGj"
    "yiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OH"
    "lnVYCzRdK8jlqm8tehUc9c9WhQ== "
    "vagrant insecure public key"
)

_HOST_KEY = "/etc/ssh/ssh_host_ecdsa_key"

#: Files of the system that are not Debian's, by path.
_FILES = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n",
    "etc/machine-id": "",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/network/interfaces": (
        "auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 inet dhcp\n"
    ),
    "etc/apt/sources.list": "{sources}",
    "etc/initramfs-tools/modules": "".join(f"{name}\n" for name in _MODULES),
    "etc/initramfs-tools/conf.d/modules": "MODULES=list\n",
    # The links are Debian's, and lead to the newest kernel.
    "boot/grub/grub.cfg": (
        "set timeout=1\nmenuentry Debian {\n"
        "  linux /vmlinuz root=LABEL=root ro net.ifnames=0 console=tty0 console=ttyS0 quiet\n"
        "  initrd /initrd.img\n}\n"
    ),
    # Each machine has host keys of its own.
    "etc/systemd/system/ssh.service.d/keys.conf": (
        "[Service]\nExecStartPre=\nExecStartPre=sh -c"
        " 'test -e {key} || ssh-keygen -q -N \"\" -t ecdsa -f {key}'\nExecStartPre=sshd -t\n"
    ),
    "etc/ssh/sshd_config.d/vagrant.conf": ("HostKey {key}\nUseDNS no\nPasswordAuthentication no\n"),
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
}


def packages() -> tuple[str, ...]:
    """What is installed on the disk."""
    provision = (REPOSITORY / "vagrant/packages").read_text().split()
    return tuple(sorted({*_SYSTEM, *provision}))


def find() -> Path:
    """Return the disk, a qcow2 image. Raises `CannotError`."""
    of = f"{debian.release()} {packages()} {SIZE} {_MODULES} {_GRUB} {_FILES} {_VAGRANT_KEY}"
    return cache.made("stock", of, _make) / "box.img"


def _make(into: Path) -> None:
    cache.say(f"making a Debian of {len(packages())} packages and what they need (two minutes)")
    disk = into / "disk"
    with debian.installed(packages(), into) as root:
        _set_up(root)
        cache.say("writing its disk")
        with disk.open("wb") as file:
            file.truncate(SIZE)
        flags = ("-q", "-F", "-L", "root", "-E", f"offset={_START}")
        size = f"{(SIZE - _START) >> 10}k"
        debian.run(["mkfs.ext4", *flags, "-d", str(root), str(disk), size])
        _bring_grub(root, disk)
    to = ("-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd")
    debian.run(["qemu-img", "convert", *to, str(disk), str(into / "box.img")])
    disk.unlink()


def _set_up(root: Path) -> None:
    sources = "".join(f"deb {place} {name} main\n" for name, place in debian.mirrors().items())
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{sources}", sources).replace("{key}", _HOST_KEY))
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    inside = ("chroot", str(root))
    debian.run([*inside, "useradd", "-m", "-s", "/bin/bash", "vagrant"])
    keys = root / "home/vagrant/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text(_VAGRANT_KEY + "\n")
    debian.run([*inside, "chown", "-R", "vagrant:vagrant", "/home/vagrant/.ssh"])
    debian.run([*inside, "update-initramfs", "-u", "-k", "all"])
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)


def _bring_grub(root: Path, disk: Path) -> None:
    """Write a table of partitions, and GRUB: its first sector around that, its image behind.

    What grub-install does, without a device: the image lies where both look for it by default.
    """
    words = ("-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", "/boot/grub/core.img")
    debian.run(["chroot", str(root), "grub-mkimage", *words, *_GRUB])
    first = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    image = (root / "boot/grub/core.img").read_bytes()
    assert len(image) < _START - 512
    with disk.open("r+b") as file:
        file.write(first[:440])
        file.seek(446)
        file.write(_partition() + bytes(3 * 16) + b"\x55\xaa")
        file.write(image)


def _partition() -> bytes:
    """The table's line of the root file system: active, of Linux, addressed by block alone."""
    nowhere = b"\xfe\xff\xff"
    return struct.pack(
        "<B3sB3sII", 0x80, nowhere, 0x83, nowhere, _START // 512, (SIZE - _START) // 512
    )
