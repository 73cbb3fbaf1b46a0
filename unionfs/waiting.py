"""How a request waits: it names a call that may take long, and whoever runs the request makes it.

A coroutine of the union awaits `blocking` and nothing else. The session on trio makes the
call in a thread of trio's; the direct session hands the whole request to a thread of its
own at the first such call, so that requests that never wait never leave their reader.
`brief` is for calls that copy much or little and hardly ever wait: they are made where the
request runs, but let others at the union meanwhile. Between two such calls a request has
the union to itself.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Blocking(NamedTuple):
    """A call to be made where it holds nobody up; its result or exception is sent back."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    brief: bool = False

    def call(self) -> Any:
        """Make the call."""
        return self.function(*self.arguments)


@types.coroutine
def blocking(
    function: Callable[_P, _R], /, *arguments: _P.args, **_: _P.kwargs
) -> Generator[Blocking, _R, _R]:
    """Await the result of *function* with *arguments* without holding other requests up."""
    return (yield Blocking(function, arguments))


@types.coroutine
def brief(
    function: Callable[_P, _R], /, *arguments: _P.args, **_: _P.kwargs
) -> Generator[Blocking, _R, _R]:
    """Await the result of *function* with *arguments* in this thread, beside other requests."""
    return (yield Blocking(function, arguments, brief=True))
