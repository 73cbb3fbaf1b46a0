"""The calls by which the daemon changes a disk."""

from __future__ import annotations

import os

from unionfs.layer import syscalls

#: By module, so that tests can put something in their place.
CHANGES = {
    os: [
        "chmod",
        "chown",
        "copy_file_range",
        "fsync",
        "ftruncate",
        "link",
        "mkdir",
        "mknod",
        "open",
        "pwrite",
        "removexattr",
        "rename",
        "rmdir",
        "setxattr",
        "symlink",
        "truncate",
        "unlink",
        "utime",
    ],
    syscalls: ["clone_file", "fallocate", "renameat2", "set_inode_flags", "set_times"],
}
