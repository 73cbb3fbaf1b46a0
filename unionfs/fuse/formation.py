"""Which readers read: decided from what is seen, without threads or files."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

#: Requests from one look at what comes to the next.
BLOCK = 16
#: So many of a block from one thread: it has the mount for itself; with fewer it has not.
_ONE_CLIENT, _STILL_ONE_CLIENT = 13, 12
#: So many of a block copied much, or waited: others should read meanwhile.
_APART = 6
#: So many looks in a row ask for a formation before it is taken.
_SURE = 2
#: A block within this time, in seconds, comes fast.
_FAST = 0.016
#: Two late pick-ups within this time, or so many looks at a slow client, are no accident.
LATE_TWICE, _LATE_LOOKS = 0.25, 4
#: What the answer no came from is asked again after this time.
_ASK_AGAIN = 0.02


class Formation(enum.Enum):
    """Who reads."""

    FREE = "free"
    NEAR = "near"
    SPREAD = "spread"


class Pause:
    """How long not to try again: doubled by each failure, forgotten after a while without."""

    SHORTEST, FORGOTTEN = 0.1, 30.0

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._length = 0.0
        self._until = self._failed = float("-inf")

    def failed(self, now: float) -> None:
        """Begin a pause."""
        again = now - self._failed < self.FORGOTTEN
        self._length = min(self._length * 2, self._longest) if again else self.SHORTEST
        self._until, self._failed = now + self._length, now

    def over(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self._until


class Policy:
    """Decides on the formation from what is seen; touches neither threads nor files.

    *calm* answers whether no more tasks run than there are CPUs, *alone* whether near can
    harm nobody and be harmed by nobody; they are asked when all else is right.
    """

    def __init__(
        self,
        calm: Callable[[], bool],
        alone: Callable[[], bool],
        now: float,
        first: Formation = Formation.FREE,
    ) -> None:
        self.formation = first
        self._wanted = first
        self._calm = calm
        self._alone = alone
        self._near_pause = Pause(10.0)
        self._spread_pause = Pause(1.0)
        self._ask_after = now
        self._looked = now
        self._looks = 0
        self._late = float("-inf")
        self._since_late = _LATE_LOOKS

    def look(self, clients: Sequence[int], apart: int, now: float) -> Formation:
        """Decide after a block of requests.

        *clients* are the threads that wait for them; *apart* of them copied much or waited.
        """
        span, self._looked = now - self._looked, now
        self._since_late += 1
        wanted = self._suited(clients, apart, span)
        self._looks = self._looks + 1 if wanted is self._wanted else 1
        self._wanted = wanted
        if wanted is not self.formation and self._looks >= _SURE and self._may(wanted, now):
            self._change(wanted)
        return self.formation

    def _suited(self, clients: Sequence[int], apart: int, span: float) -> Formation:
        if apart >= _APART:
            return Formation.SPREAD
        most = clients.count(clients[-1])
        if self.formation is Formation.NEAR:
            return Formation.NEAR if most >= _STILL_ONE_CLIENT else Formation.FREE
        fast = span <= _FAST and most >= _ONE_CLIENT
        return Formation.NEAR if fast else Formation.FREE

    def _may(self, formation: Formation, now: float) -> bool:
        if formation is Formation.SPREAD:
            return self._spread_pause.over(now) and self._ask(now, self._calm)
        if formation is Formation.NEAR:
            calm_and_alone = lambda: self._calm() and self._alone()  # noqa: E731
            return self._near_pause.over(now) and self._ask(now, calm_and_alone)
        return True

    def late(self, now: float) -> Formation:
        """Decide after a reader that had something to read got its CPU late."""
        if self.formation is Formation.NEAR:
            soon = now - self._late <= LATE_TWICE or self._since_late < _LATE_LOOKS
            self._late, self._since_late = now, 0
            if soon:
                self.leave_near(now)
        elif self.formation is Formation.SPREAD and not self._calm():
            self._spread_pause.failed(now)
            self._change(Formation.FREE)
        return self.formation

    def leave_near(self, now: float) -> Formation:
        """Take note that near does not work."""
        self._near_pause.failed(now)
        self._change(Formation.FREE)
        return self.formation

    def _ask(self, now: float, question: Callable[[], bool]) -> bool:
        if now < self._ask_after:
            return False
        answer = question()
        if not answer:
            self._ask_after = now + _ASK_AGAIN
        return answer

    def _change(self, formation: Formation) -> None:
        self.formation = formation
        self._looks = 0
        self._late = float("-inf")
        self._since_late = _LATE_LOOKS
