"""Requests as tasks of trio's."""

from __future__ import annotations

import functools
import math
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import trio

from unionfs.waiting import Blocking

_R = TypeVar("_R")


async def on_trio(coroutine: Coroutine[Blocking, Any, _R]) -> _R:
    """Run a request of the union's in a task of trio's, its blocking calls in threads."""
    result: Any = None
    failure: BaseException | None = None
    while True:
        try:
            step = coroutine.send(result) if failure is None else coroutine.throw(failure)
        except StopIteration as end:
            return cast("_R", end.value)
        try:
            if step.brief:
                result = step.call()
            else:
                result = await trio.to_thread.run_sync(step.call, limiter=_unlimited())
            failure = None
        except BaseException as error:  # noqa: BLE001 - the request's own to handle
            failure = error


@functools.cache
def _unlimited() -> trio.CapacityLimiter:
    """Any number of threads: one may wait for the end of another."""
    return trio.CapacityLimiter(math.inf)
