"""What a search names: sources, and parts of them by rank in some order of their rows. Pure; knows no rows but their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftdiff.errors import SftdiffError
from sftdiff.rows import hash_order
from sftdiff.sorting import Ids

HASH = "hash"  # the order of no locator: random, the same every time
Rows = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, order=True)
class Cut:
    """The rows from rank `start` up to but not with `stop`, by falling score in `order`; the first rank is 0."""

    order: str
    start: int
    stop: int


@dataclass(frozen=True, order=True)
class Part:
    """A source, or what is left of it after cuts, each of which ranks the rows that the one before it left."""

    source: str
    cuts: tuple[Cut, ...] = ()

    def within(self, other: Part) -> bool:
        """Whether every row of this part lies in the other one, as far as the cuts alone tell."""
        depth = len(other.cuts)
        if self.source != other.source or len(self.cuts) < depth:
            return False
        if not depth:
            return True
        mine, last = self.cuts[depth - 1], other.cuts[-1]
        nested = mine.order == last.order and last.start <= mine.start and mine.stop <= last.stop
        return nested and self.cuts[: depth - 1] == other.cuts[:-1]

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "cuts": [[cut.order, cut.start, cut.stop] for cut in self.cuts]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Part:
        return cls(str(found["source"]), tuple(Cut(str(o), int(a), int(b)) for o, a, b in found.get("cuts", ())))


Parts = frozenset[Part]
NOTHING: Parts = frozenset()


def covers(larger: Parts, smaller: Parts) -> bool:
    """Whether each part of the smaller set lies in one part of the larger set."""
    missing = smaller - larger
    return not missing or all(part.cuts and any(part.within(other) for other in larger) for part in missing)


def size_of(part: Part, sources: Mapping[str, int]) -> int:
    """The number of rows of a part."""
    return part.cuts[-1].stop - part.cuts[-1].start if part.cuts else sources[part.source]


def split(part: Part, order: str, count: int, sources: Mapping[str, int]) -> tuple[Part, Part]:
    """Return the first `count` rows of a part in an order, and its other rows."""
    if part.cuts and part.cuts[-1].order == order:
        before, (start, stop) = part.cuts[:-1], (part.cuts[-1].start, part.cuts[-1].stop)
    else:
        before, (start, stop) = part.cuts, (0, size_of(part, sources))
    ends = ((start, start + count), (start + count, stop))
    first, rest = (Part(part.source, (*before, Cut(order, low, high))) for low, high in ends)
    return first, rest


def complement(parts: Iterable[Part], sources: Mapping[str, int]) -> Parts:
    """Return parts that together hold all rows outside of `parts`, of which each has its own source."""
    by_source = {part.source: part for part in parts}
    left = {Part(source) for source in sources if source not in by_source}
    for part in by_source.values():
        for depth, cut in enumerate(part.cuts):
            before = part.cuts[:depth]
            total = before[-1].stop - before[-1].start if before else sources[part.source]
            ends = ((0, cut.start), (cut.stop, total))
            if before and before[-1].order == cut.order:  # split() never makes such cuts
                raise ValueError(f"two cuts of {part.source} in the order {cut.order} follow each other")
            left |= {Part(part.source, (*before, Cut(cut.order, low, high))) for low, high in ends if low < high}
    return frozenset(left)


def rows_of(part: Part, ids: Ids, scores: Mapping[str, Sequence[float]]) -> Rows:
    """Return which rows of its source a part holds: ascending positions, (rows of the part,).

    Args:
        part: its cuts name orders of `scores`, or HASH.
        ids: prompt_ids of all rows of the source, shape (rows,).
        scores: by order, one for each row, shape (rows,); higher comes first, NaN last, ties by prompt_id.
    """
    kept: Rows = np.arange(len(ids))
    for cut in part.cuts:
        if cut.order != HASH and cut.order not in scores:
            raise SftdiffError(f"{part.source} has no scores of {cut.order}, by which the search ranked its rows")
        found = hash_order(ids, "search") if cut.order == HASH else -np.asarray(scores[cut.order], np.float64)
        ranked = kept[np.lexsort((ids[kept], found[kept]))]
        kept = np.sort(ranked[cut.start : cut.stop])
    return kept
