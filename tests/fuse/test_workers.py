"""Workers: never on a reader's CPU, and always one to spare."""

from __future__ import annotations

import os
import threading

from unionfs.fuse.workers import Workers


def test_workers_have_nothing_of_who_hands_them_a_task() -> None:
    workers = Workers()
    workers.begin()
    seen: list[tuple[set[int], int]] = []
    together = threading.Barrier(5)  # each has a thread of its own, or this breaks

    def task() -> None:
        seen.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))
        together.wait(10)

    def reader() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(5):
            workers.start(task)

    thread = threading.Thread(target=reader)
    thread.start()
    thread.join()
    while len(seen) < 5:  # each has a thread of its own, or this never ends
        pass
    workers.finish()
    assert seen == [(os.sched_getaffinity(0), os.SCHED_OTHER)] * 5
