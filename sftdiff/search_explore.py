"""How a search is directed: which sources and parts of sources it comes to. Every question goes to `Known`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt

from sftdiff.identity import digest
from sftdiff.search_known import Known
from sftdiff.search_parts import HASH, NOTHING, Part, Parts, complement, size_of, split

FEW = 3  # blocks that are never too many
Block = list[Part]
Tell = Callable[[list[Parts]], list[bool]]
Holds = Callable[[list[Block]], bool]


@dataclass
class Found:
    """What an exploration came to, filled as it goes: it may end early.

    Attributes:
        parts: the set.
        alone: those of it each of which is enough by itself.
        suspects: blocks of which something was told that was true of neither half.
        steps: smaller and smaller sets of parts of its sources.
        state: why there is nothing to verify, one of sftdiff.search.STATES; empty: verify `parts`.
        note: that in words.
    """

    parts: Parts = NOTHING
    alone: Parts = NOTHING
    suspects: list[Block] = field(default_factory=list)
    steps: list[Parts] = field(default_factory=list)
    state: str = ""
    note: str = ""


class Explorer:
    """One pass of an exploration: the same questions in the same order each time, as far as the answers reach."""

    def __init__(self, known: Known, found: Found) -> None:
        self.known, self.settings, self.found = known, known.settings, found

    def sources(self) -> None:
        """Find a set of sources."""
        (elsewhere,) = self.known.above((NOTHING, self.settings.gone))
        if elsewhere:
            self.found.state, self.found.note = "elsewhere", "with all rollouts swapped out the trait is not gone"
            return
        blocks = self.blocks()
        hits = self.those(blocks, self.enough)
        if 2 * len(hits) > max(len(blocks), 4) and self.anywhere():
            return
        while hits:
            left = self.descend(hits, self.enough)
            self.found.alone = self.found.parts
            if self.cleared(self.found.parts):
                return
            hits = self.those(left, self.enough)
        if not self.found.parts:
            self.all_needed(blocks)
        self.together(blocks)

    def all_needed(self, blocks: list[Block]) -> None:
        """Add sources without each of which most of the trait is gone, until they are enough together."""
        hits = self.those(blocks, self.needed)
        while hits:
            left = self.descend(hits, self.needed)
            if self.suffices(self.found.parts):
                return
            hits = self.those(left, self.needed)

    # What is asked

    def enough(self, sets: list[Parts]) -> list[bool]:
        """Whether each of these is enough by itself for most of the trait."""
        return self.known.above(*((each, self.settings.middle) for each in sets))

    def needed(self, sets: list[Parts]) -> list[bool]:
        """Whether most of the trait is gone without each of these."""
        return [not each for each in self.known.above(*((self.rest(each), self.settings.middle) for each in sets))]

    def rest(self, parts: Parts) -> Parts:
        """What keeps the original rollouts when these are swapped out."""
        return complement(parts, self.known.sources)

    def those(self, blocks: list[Block], tell: Tell) -> list[Block]:
        return [block for block, hit in zip(blocks, tell([frozenset(block) for block in blocks]), strict=True) if hit]

    def cleared(self, parts: Parts) -> bool:
        """Whether the trait is gone once these are swapped out."""
        return not self.known.above((self.rest(parts), self.settings.gone))[0]

    def suffices(self, parts: Parts) -> bool:
        """Whether the trait remains with these alone."""
        return self.known.above((parts, self.settings.remains))[0]

    def anywhere(self) -> bool:
        """Where most blocks are enough: whether random rows are, as many as a source has, so that there is nothing to find."""
        rows = sum(self.known.sources.values()) // len(self.known.sources)
        found = self.known.random_above(rows, self.settings.middle)
        if found:
            self.found.state = "anywhere"
            self.found.note = f"most blocks of sources are enough, and so are {rows} random rows, as many as a source has"
        return found

    # Sources one by one

    def blocks(self) -> list[Block]:
        """The sources in about as many blocks as there are sources in each, in an order that depends on their names alone."""
        order = sorted(self.known.all, key=lambda part: (digest(f"search {part.source}"), part))
        count = isqrt(len(order) - 1) + 1 if len(order) > 1 else 1
        return [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]

    def descend(self, hits: list[Block], tell: Tell) -> list[Block]:
        """Halve blocks that `tell` is true of down to a source each, side by side; return what was not tested of them.

        Only first halves are tested: where it is not true of one, it is taken to be of the other, until that is one source.
        """
        left = list[Block]()
        open_ = [(block, block, True) for block in hits]  # a block, where in it the source is, and whether that was tested
        while open_:
            halves = [rest[: (len(rest) + 1) // 2] for _, rest, _ in open_]
            asked = [len(rest) > 1 or not tested for _, rest, tested in open_]
            answers = iter(tell([frozenset(half) for half, ask in zip(halves, asked, strict=True) if ask]))
            following = []
            for half, ask, (block, rest, _) in zip(halves, asked, open_, strict=True):
                hit, other = next(answers) if ask else True, rest[len(half) :]
                if other:
                    following.append((block, half if hit else other, hit))
                    left += [other] if hit else []
                elif hit:
                    self.found.parts |= {rest[0]}
                else:
                    self.found.suspects.append(block)
            open_ = following
        return left

    # Sources that act together

    def together(self, blocks: list[Block]) -> None:
        """Add what else has to be swapped out until the trait is gone, and swapped in until it remains."""
        base = self.found.parts
        if not self.minimal(blocks, lambda chosen: self.cleared(base.union(*chosen)), "swapped out until the trait is gone"):
            return
        if not self.found.alone:  # else one of them is enough by itself
            both = self.found.parts
            if self.minimal(blocks, lambda chosen: self.suffices(both.union(*chosen)), "swapped in until the trait remains"):
                self.prune()

    def prune(self) -> None:
        """Leave out what is needed for neither: a source may have been added for the one before others were for the other."""
        for part in sorted(self.found.parts):
            fewer = self.found.parts - {part}
            if self.cleared(fewer) and self.suffices(fewer):
                self.found.parts = fewer

    def minimal(self, blocks: list[Block], holds: Holds, why: str) -> bool:
        """Add sources that make `holds` true, none of which can be left out; False where they are not few."""
        ranked = sorted(blocks, key=lambda block: block not in self.found.suspects)
        rest = [[part for part in block if part not in self.found.parts] for block in ranked]
        pool = [block for block in rest if block]
        most = max(len(pool) // 2, FEW)
        chosen = self.bisect(pool, holds, most)
        if chosen is None:
            self.found.note = f"more than {most} of {len(pool)} blocks of sources have to be {why}"
            self.found.state = "" if self.found.parts else "diffuse"
            return False
        for number, block in enumerate(chosen):
            others = [*chosen[:number], *chosen[number + 1 :]]
            singles = self.bisect([[part] for part in block], self.beside(others, holds), len(block)) or []
            chosen[number] = [part for single in singles for part in single]
        self.found.parts = self.found.parts.union(*chosen)
        return True

    @staticmethod
    def beside(others: list[Block], holds: Holds) -> Holds:
        return lambda some: holds([*others, *some])

    @staticmethod
    def bisect(pool: list[Block], holds: Holds, most: int) -> list[Block] | None:
        """The blocks of a pool that make `holds` true together, each of them needed; None where they are more than `most`.

        `holds` is true of the whole pool, and of a larger set wherever it is of a smaller one.
        """
        chosen: list[Block] = []
        while pool and not holds(chosen):
            if len(chosen) == most:
                return None
            low, high = 0, len(pool)  # not true with `low` blocks of the pool, true with `high`
            while high - low > 1:
                half = (low + high) // 2
                low, high = (low, half) if holds([*chosen, *pool[:half]]) else (half, high)
            chosen.append(pool[high - 1])
            pool = pool[: high - 1]
        return chosen

    # Inside sources

    def narrow(self, smallest: int) -> None:
        """Halve the found sources, side by side: to rows with which the trait remains where it is gone with the other half.

        A source that is not enough by itself is looked at beside the others that were found. Rows are halved by what locators
        rank highest, and last in hash order, of which either half may do. Each set on the way is added to `steps`.
        """
        orders = [*self.settings.orders, HASH]
        current = {part.source: part for part in sorted(self.found.parts)}
        beside = {p.source: NOTHING if p in self.found.alone else self.found.parts - {p} for p in self.found.parts}
        at = dict.fromkeys(current, 0)  # the order that each source is at
        while at:
            cuts = {source: self.halves(current[source], orders[number], smallest) for source, number in at.items()}
            levels = iter(self.levels([beside[source] | {half} for source, halves in cuts.items() for half in halves]))
            for source, halves in cuts.items():
                found = [next(levels) for _ in halves]
                if found == ["remains", "gone"] or (orders[at[source]] == HASH and found == ["gone", "remains"]):
                    current[source] = halves[found.index("remains")]
                else:
                    at[source] += 1
            at = {source: number for source, number in at.items() if number < len(orders)}
            if (reached := frozenset(current.values())) not in (self.found.parts, *self.found.steps[-1:]):
                self.found.steps.append(reached)

    def levels(self, sets: list[Parts]) -> list[str]:
        """Whether the trait remains with these alone, is gone, or neither."""
        cuts = (self.settings.gone, self.settings.remains)
        above = iter(self.known.above(*((each, cut) for each in sets for cut in cuts)))
        pairs = [(next(above), next(above)) for _ in sets]
        return ["remains" if remains else "partial" if some else "gone" for some, remains in pairs]

    def halves(self, part: Part, order: str, smallest: int) -> tuple[Part, ...]:
        """The first half of a part's rows in an order and the other half; nothing where either has fewer than `smallest` rows."""
        count = size_of(part, self.known.sources) // 2
        return split(part, order, count, self.known.sources) if count >= smallest else ()
