"""How far the replies of a step are, and how fast they come."""

import time
from collections.abc import Callable

EVERY_SECONDS = 1.0
Tell = Callable[[float, float, str, float | None], None]  # as Step.progress: done, total, unit, a second


class Pace:
    """Counts replies and tells them, with their rate since the start, at most once a second and when all are there.

    `known` are those of an earlier run, which are no part of the rate; None: those of the first call.
    """

    def __init__(self, tell: Tell, total: int, known: int | None = 0) -> None:
        self.tell, self.total, self.known, self.done = tell, total, known, known or 0
        self.started = self.told = time.monotonic()
        tell(self.done, total, "replies", None)

    @property
    def made(self) -> int:
        return self.done - (self.known or 0)

    def add(self, count: int = 1) -> None:
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        self.done, now = done, time.monotonic()
        self.known = done if self.known is None else self.known
        if now - self.told >= EVERY_SECONDS or done == self.total:
            self.told = now
            self.tell(done, self.total, "replies", self.made / max(now - self.started, 1e-3))
