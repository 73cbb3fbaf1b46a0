"""A process that kills itself in the midst of what it does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def calls_of_child(prepare: Callable[[], Callable[[], Any]], kill_at: int = 0) -> int:
    """Let a child do what *prepare* returns; return how many functions it called, 0 if killed.

    It kills itself at its call *kill_at*, of Python's functions or of C's, unless that is 0
    or more than it makes.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            if event in ("call", "c_call"):
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            do = prepare()
            sys.setprofile(count)
            do()
            sys.setprofile(None)
            os.write(writer, b"%d" % calls)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    _, ended = os.waitpid(pid, 0)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(ended)
    assert code == 0 or (kill_at and code == -signal.SIGKILL)
    return int(told or b"0")
