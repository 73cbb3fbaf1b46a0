"""The mount namespace of a process, to come back to after work in another one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from unionfs.layer import syscalls


class MountNamespace:
    """The mounts, the root and the working directory that the calling process has now."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []
        self._namespace = self._keep("/proc/self/ns/mnt", os.O_RDONLY)
        self._root = self._keep("/", os.O_PATH)
        self._here = self._keep(".", os.O_PATH)

    def _keep(self, path: str, flags: int) -> int:
        self._descriptors.append(os.open(path, flags | os.O_CLOEXEC))
        return self._descriptors[-1]

    def enter(self) -> None:
        """Move the calling process here, which must have one thread only.

        Raises ``OSError``: EPERM to who is not root of the user namespace that owns it.
        """
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)
        # That went to the root of the namespace, which need not be the root that we had.
        os.fchdir(self._root)
        os.chroot(".")
        os.fchdir(self._here)

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Let the calling process have mounts of its own for a while, and then come back."""
        private_mounts()
        try:
            yield
        finally:
            self.enter()

    def close(self) -> None:
        """Give up what is kept open; twice is fine."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def private_mounts() -> None:
    """Give the calling process mounts of its own, which nobody else sees come and go.

    Raises ``OSError``: EPERM without CAP_SYS_ADMIN.
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "a mount namespace of its own") from error
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, b"")
