"""What every engine of block devices can do: one method for each operation.

A device has a number, which is never used for another one, and a content. `Engine.snap`
makes one that starts with the content of another, its *origin*, which from then on must not
change. A device is *attached* when it has a path in /dev, by which a file system on it can be
mounted. Who calls says in which state a device is, holds its lock, and keeps to the order: see
`unionfs.driver.block.devices`.

An operation that raises has changed nothing. One that is killed may leave anything between:
`Engine.attached` finds out what is there, and `Engine.detach` with *force* clears it away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence


class Engine(ABC):
    """Makes, copies and attaches block devices."""

    @classmethod  # noqa: B027 - most need none
    def check_options(cls, options: Mapping[str, str]) -> None:
        """Raise `UsageError` where *options* of the engine's own are missing."""

    @abstractmethod
    def create(self, device: int, size: int) -> None:
        """Make *device*, of *size* bytes, all zeros."""

    @abstractmethod
    def snap(self, device: int, origin: int, size: int) -> None:
        """Make *device* with the content of *origin*, grown to *size* bytes.

        It takes next to nothing of the disk, however large *origin* is.
        """

    @abstractmethod
    def attach(self, device: int, *, read_only: bool) -> str:
        """Give *device*, which is not attached, a path in /dev, and return it."""

    @abstractmethod
    def attached(self, device: int) -> str | None:
        """Return the path of *device* if it is there and works, else ``None``.

        Raises `FaultyError` when that cannot be told.
        """

    @abstractmethod
    def detach(self, device: int, *, force: bool = False) -> None:
        """Take the path of *device* away; what was written is on the disk afterwards.

        Raises `FailedPreconditionError` while it is mounted. With *force* whoever has it
        mounted meets errors, and it matters not how much is there.
        """

    @abstractmethod
    def divert(self, device: int, successor: int) -> None:
        """Let what is attached as *device* go on as its snap *successor*, at one moment.

        *device* is not attached afterwards and has the content of that moment. Does what is
        left to do where it was done before in part.
        """

    @abstractmethod
    def seal(self, device: int) -> None:
        """Bring *device*, which is not attached and will not change again, to the disk."""

    @abstractmethod
    def check(self, device: int) -> None:
        """Look whether *device* is whole, after a crash, and repair what is harmless.

        Raises `FaultyError`.
        """

    @abstractmethod
    def discard(self, device: int) -> None:
        """Remove *device*, which is not attached, or what is left of it."""

    @abstractmethod
    def usage(self, device: int) -> int:
        """Return the bytes that *device* takes of the disk, without those of its origin."""

    @abstractmethod
    def leftovers(self, known: set[int]) -> Sequence[int]:
        """Return the numbers of devices that there are, and that are not *known*."""
