"""Which thread reads on which CPU.

Waking a process on another CPU costs more than most requests do, so where a reader runs
decides how long a trip takes. Readers take one of three formations:

- free: one thread that the scheduler places reads alone. With short requests of several
  clients more readers are slower: they take the interpreter from each other at every call;
- near: one ``SCHED_IDLE`` thread reads alone, on the CPU of the only client. A CPU that runs
  nothing else counts as idle, so the scheduler wakes the client where the daemon runs;
- spread: a reader pinned to each CPU that the process may use, all blocked in a read of the
  same descriptor, while requests copy much or wait, which they do beside each other.

The mode ``auto`` chooses among them, ``off`` (free) and ``spread`` stay with one. Nothing here
has a timer: all is decided while requests come, and a mount without requests never wakes.

A thread started by a reader inherits its CPU and its class: start workers from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from unionfs.fuse.formation import BLOCK, LATE_TWICE, Formation, Policy
from unionfs.fuse.scheduling import LastCpu, RunDelay, crowded, own_task_group

MODES = ("auto", "spread", "off")

#: Having waited this long for its CPU, a reader was late.
_LATE = 0.0015
#: A near reader that got nothing for so long may have been late.
_GAP = 0.002
#: How often what changes slowly is looked at: who runs, where the client is, what we may use.
_SOON, _RARELY = 0.02, 1.0
#: A near block slower than the best by this much may mean that the client has moved.
_MOVED = BLOCK * 15e-6


#: In place of a client: nobody, and a thread of which nothing can be known.
NOBODY, HIDDEN = 0, 1 << 30


class Block:
    """What came since the last look."""

    def __init__(self) -> None:
        self.clients: list[int] = []
        self.apart = 0

    def take(self) -> tuple[list[int], int]:
        """Return the clients, and how many requests copied much or waited; begin anew."""
        clients, apart = self.clients[:], self.apart
        self.clients.clear()
        self.apart = 0
        return clients, apart


class Reader:
    """What a thread that reads requests asks before each read, and tells after it."""

    def __init__(self, placement: Placement, block: Block) -> None:
        self._placement = placement
        self._block = block
        self._gate = threading.Lock()
        self._gate.acquire()
        #: Something below has been changed.
        self._notice = True
        self._parks = False
        self._cpus: set[int] = set()
        self._there: set[int] = set()

    def await_turn(self, *, others_read: bool = True) -> None:
        """Return when this thread may read: at once, unless another reads alone.

        That one may be in the midst of a request which has to wait: nobody parks who does not
        see another one read (*others_read*).
        """
        if self._notice:
            self._attend(others_read)

    def served(self, client: int) -> None:
        """Take note of a request for which the thread *client* waits, or `NOBODY`."""
        if client != NOBODY:
            clients = self._block.clients
            clients.append(client)
            if len(clients) >= BLOCK:
                self._placement.look(self._delay)

    def apart(self) -> None:
        """Take note that the request copies much or waits, while others may run."""
        self._block.apart += 1

    def place(self, cpus: set[int], *, parks: bool) -> None:
        """Go to *cpus* before the next read, or park instead of reading."""
        self._cpus, self._parks = cpus, parks
        self._notice = True
        if not parks and self._gate.locked():
            self._gate.release()

    def run(self, read_loop: Callable[[Reader], None]) -> None:
        """Be the thread."""
        self._delay = RunDelay()
        try:
            read_loop(self)
        finally:
            self._delay.close()
            self._placement.end()

    def _attend(self, others_read: bool) -> None:
        while True:
            self._notice = False
            if self._cpus != self._there:
                self._there = self._cpus
                # They may have left what we may use just now; the next look sees that.
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, self._cpus)
            if not self._parks:
                return
            if not others_read:
                self._notice = True
                return
            self._gate.acquire()


class NearReader(Reader):
    """The one that reads alone, on the CPU of its client."""

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement, Block())
        self._client_cpu = LastCpu()
        self._before = self._delay_before = 0.0
        #: Until then, the delay is read before each request, to be sure when it grew.
        self._watches_until = 0.0
        self._watches = False
        self._begun = self._cpu_seen = 0.0
        self._best = 0.0

    def run(self, read_loop: Callable[[Reader], None]) -> None:
        """Be the thread."""
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            super().run(read_loop)
        finally:
            self._client_cpu.close()

    def begin(self, client: int, allowed: set[int]) -> bool:
        """Read alone from now on, for *client*; false if that is not possible."""
        cpu = self._client_cpu.of(client)
        if cpu not in allowed:
            return False
        self._block.take()
        self._watches = False
        self._best = 1.0
        self._begun = self._cpu_seen = time.monotonic()
        self.place({cpu}, parks=False)
        return True

    def await_turn(self, *, others_read: bool = True) -> None:
        """Return when this thread may read."""
        if self._notice:
            self._attend(others_read)
        if self._watches:
            self._delay_before = self._delay.total()
        self._before = time.monotonic()

    def served(self, client: int) -> None:
        """Take note of a request for which the thread *client* waits, or `NOBODY`."""
        if client == NOBODY:
            return
        now = time.monotonic()
        if now - self._before > _GAP:
            self._after_gap(now)
        self._block.clients.append(client)
        if len(self._block.clients) >= BLOCK:
            self._look(now)

    def _after_gap(self, now: float) -> None:
        """See if that was no pause of the client, but we were late.

        The delay grows also when the client has the CPU after a reply, which harms nobody;
        so a first suspicion only makes us look before each read, too.
        """
        grown = self._delay.grown()
        if self._watches:
            if self._delay.total() - self._delay_before > _LATE:
                self._placement.late()
        elif grown > _LATE:
            self._watches = True
            self._watches_until = now + LATE_TWICE
            self._delay_before = self._delay.total()

    def _look(self, now: float) -> None:
        took, self._begun = now - self._begun, now
        clients, apart = self._block.take()
        self._placement.look_near(clients, apart, now)
        self._watches = self._watches and now < self._watches_until
        self._best = min(self._best, took)
        if now - self._cpu_seen > _SOON or took > self._best + _MOVED:
            self._cpu_seen = now
            cpu = self._client_cpu.of(clients[-1])
            if cpu >= 0 and {cpu} != self._cpus:
                self._placement.follow({cpu})


class Placement:
    """The threads that read requests, and where they run."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._readers: list[Reader] = []
        self._near: NearReader | None = None
        self._block = Block()
        self._changing = threading.Lock()
        self._allowed: set[int] = set()
        self._checked = time.monotonic()
        self._ended = False
        first = Formation.SPREAD if mode == "spread" else Formation.FREE
        self._policy = Policy(lambda: not crowded(), self._alone, self._checked, first)
        self._alone_checked, self._is_alone = self._checked, False

    def start(self, read_loop: Callable[[Reader], None]) -> list[threading.Thread]:
        """Start the threads; each runs *read_loop* with a reader of its own.

        When one of them ends, all that wait for their turn get it, to see the end too.
        """
        self._allowed = os.sched_getaffinity(os.getpid())
        count = 1 if self._mode == "off" else len(self._allowed)
        self._readers = [Reader(self, self._block) for _ in range(count)]
        self._is_alone = self._mode == "auto" and count > 1 and own_task_group()
        if self._is_alone:
            self._near = NearReader(self)
        self._form(self._policy.formation)
        threads: list[threading.Thread] = []
        for reader in [*self._readers, *([self._near] if self._near else [])]:
            thread = threading.Thread(
                target=reader.run,
                args=(read_loop,),
                name=f"reader-{len(threads)}",
                daemon=True,  # it may wait in the device for ever
            )
            try:
                thread.start()
            except RuntimeError:
                # The limit on threads; those that are there serve.
                if not threads:
                    raise
                self._near = None
                break
            threads.append(thread)
        return threads

    def look(self, delay: RunDelay) -> None:
        """Look at the last requests of readers that share them; *delay* is the caller's."""
        if not self._changing.acquire(blocking=False):
            return
        try:
            clients, apart = self._block.take()
            before = self._policy.formation
            if self._mode == "off" or before is Formation.NEAR or len(clients) < BLOCK:
                return
            now = time.monotonic()
            self._recheck(now)
            if self._mode == "spread":
                return
            if delay.grown() > _LATE:
                self._policy.late(now)
            formation = self._policy.look(clients, apart, now)
            if formation is Formation.NEAR and not (
                self._near and self._near.begin(clients[-1], self._allowed)
            ):
                formation = self._policy.leave_near(now)
            if formation is not before:
                self._form(formation)
        finally:
            self._changing.release()

    def look_near(self, clients: list[int], apart: int, now: float) -> None:
        """Look at the last requests of the near reader."""
        with self._changing:
            self._recheck(now)
            if self._policy.look(clients, apart, now) is not Formation.NEAR:
                self._form(self._policy.formation)

    def late(self) -> None:
        """Take note that the near reader got its CPU late."""
        with self._changing:
            if self._policy.late(time.monotonic()) is not Formation.NEAR:
                self._form(self._policy.formation)

    def follow(self, cpu: set[int]) -> None:
        """Go where the client went, or give up where we may not go."""
        with self._changing:
            assert self._near
            if self._policy.formation is not Formation.NEAR:
                return
            if cpu <= self._allowed:
                self._near.place(cpu, parks=False)
            else:
                self._form(self._policy.leave_near(time.monotonic()))

    def end(self) -> None:
        """Let all read: the connection has ended, or a reader failed."""
        with self._changing:
            self._ended = True
            self._form(Formation.SPREAD)
            if self._near:
                self._near.place(self._allowed, parks=False)

    def _alone(self) -> bool:
        now = time.monotonic()
        if self._near and now - self._alone_checked >= _RARELY:
            self._alone_checked, self._is_alone = now, own_task_group()
        return self._is_alone

    def _recheck(self, now: float) -> None:
        """Follow what the process may use: its main thread, never pinned by us, tells it."""
        if now - self._checked < _RARELY:
            return
        self._checked = now
        allowed = os.sched_getaffinity(os.getpid())
        if allowed != self._allowed:
            self._allowed = allowed
            if self._policy.formation is Formation.NEAR:
                self._policy.leave_near(now)
            self._form(self._policy.formation)

    def _form(self, formation: Formation) -> None:
        """Tell the readers of their places; they take them before their next reads."""
        if formation is not Formation.NEAR and self._near and not self._ended:
            self._near.place(self._allowed, parks=True)
        cpus = sorted(self._allowed)
        for number, reader in enumerate(self._readers):
            place = {cpus[number % len(cpus)]}
            if formation is Formation.FREE and number == 0:
                place = self._allowed
            parks = formation is Formation.NEAR or (formation is Formation.FREE and number > 0)
            reader.place(place, parks=parks and not self._ended)
