"""How many requests run at the same time, and what they may cost: the gate that each request to an endpoint goes through."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

from sftdiff.errors import SftdiffError


class SpendingCap(SftdiffError):
    """Nothing more can be started within the spending cap."""


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens; None where unknown."""

    price_in: float | None = None
    price_out: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return dollars, or None if a price is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class Gate:
    """Lets requests through while the concurrency limit and the cap allow it.

    A busy answer halves the limit, and each good answer raises it by a part of a request, so that it grows by about one for each
    round of requests. The worst case of what is in flight is reserved, so that the cap holds whatever the answers cost.
    """

    def __init__(self, concurrency: int, max_cost: float | None = None, spent: float = 0.0) -> None:
        self.most, self.limit = max(1, concurrency), float(max(1, concurrency))
        self.max_cost, self.spent, self.reserved, self.in_flight = max_cost, spent, 0.0, 0
        self.closed = False
        self._changed = asyncio.Event()
        self._not_before, self._halved = 0.0, 0.0

    async def enter(self, worst: float) -> float:
        """Wait for a place for a request that costs at most `worst` dollars; return the time of its start (monotonic seconds).

        Raise SpendingCap if it does not fit and nothing is in flight that could leave room.
        """
        while True:
            if self.closed or (self.in_flight == 0 and not self._fits(worst)):
                self.closed = True
                self._changed.set()
                raise SpendingCap(f"${self.spent:.4f} of the {self.max_cost:g} dollars are spent, and the next request could "
                                  "cost more than is left")  # fmt: skip
            pause = self._not_before - time.monotonic()
            if self.in_flight < int(self.limit) and self._fits(worst) and pause <= 0:
                self.in_flight, self.reserved = self.in_flight + 1, self.reserved + worst
                return time.monotonic()
            await self._wait(pause if pause > 0 else None)

    async def _wait(self, seconds: float | None) -> None:
        """Wait until something changes, or for some seconds."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _fits(self, worst: float) -> bool:
        return self.max_cost is None or self.spent + self.reserved + worst <= self.max_cost

    def leave(self, worst: float, cost: float) -> None:
        """Give a place back; `cost` are the dollars that the request is taken to have cost."""
        self.in_flight, self.spent = self.in_flight - 1, self.spent + cost
        self.reserved = self.reserved - worst if self.in_flight else 0.0  # no rounding is left over
        self._changed.set()

    def busy(self, started: float, wait: float) -> None:
        """Halve the limit, once for all requests that were in flight together, and start none for `wait` seconds."""
        now = time.monotonic()
        self._not_before = max(self._not_before, now + wait)
        if started > self._halved:
            self.limit, self._halved = max(1.0, self.limit / 2), now

    def good(self) -> None:
        self.limit = min(float(self.most), self.limit + 1 / self.limit)
