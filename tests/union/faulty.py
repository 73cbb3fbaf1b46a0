"""Our command with a bug in it: reading a symbolic link raises what nobody expects."""

from __future__ import annotations

import sys

from unionfs import cli
from unionfs.union.operations import UnionFS


def _buggy(_self: UnionFS, _node: int) -> bytes:
    raise ZeroDivisionError("a bug")


if __name__ == "__main__":
    UnionFS.readlink = _buggy  # type: ignore[method-assign, assignment]
    sys.argv[0] = "unionfs"
    sys.exit(cli.main())
