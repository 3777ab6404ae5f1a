"""How well does the search find planted sources, and with how many trainings? Simulated searches whose truth is known.

    python -m tests.bench.search [SEARCHES] [TRAINING_SD] [exact]

A world has 40 sources of unequal size. A training's dose is the sum of the weights of the culprits among the rows that have the
original rollouts; the trait's level is a Hill curve of the dose. Every training draws its replies to 40 scenarios, each 0 or 1,
with effects on the logit of the scenario (shared by all), of the training (TRAINING_SD, 0.5), and of both together. Transfers and
their limits come from these replies by Fieller's method with the variance of `sftdiff.spread`, or with `exact` from
`sftdiff.transfer`, which takes six times as long and ends alike. A search may spend a third of
what testing every source by itself takes (in, out and drop, three seeds each; no controls), in `rows` a half; it is charged for
every training, those of the original and the alternative and its random controls among them.

Worlds: `virulent` any culprit is enough; `graded` culprits of unequal strength; `joint` only all together are enough; `mixed` one
that is enough, and two that are so only together, of which the smallest sufficient and necessary set holds one; `rows` in two
sources 15 % of the rows, which one locator of two ranks high (AUROC 0.95); and without culprits `diffuse` all sources a little,
`everywhere` any slice of the rows, `prompts` the trait stays without any of the rollouts.

Prints a table by world: precision and recall of the sources, over all searches together; trainings, on average and at most;
rounds; precision and recall of testing every source by itself (levels against a half); and how searches ended. Sets that were
called found though their true levels are not so are counted as wrong. The last line is `ratio R`: the trainings of searches for
whole sources as a share of what testing every source by itself takes.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from sftdiff.identity import digest
from sftdiff.search import Result, Search
from sftdiff.search_known import Settings
from sftdiff.search_parts import Part, complement, rows_of
from sftdiff.search_state import Answer, Ask, Test
from sftdiff.spread import spread
from sftdiff.stats import Interval
from sftdiff.transfer import Bounds, Transfer, call_transfer, transfer

Cells = NDArray[np.float64]
SOURCES, SCENARIOS, SEEDS = 40, 40, 3
FULL = 3 * SOURCES * SEEDS  # trainings of testing every source by itself
FLOOR, TOP = 0.03, 0.8  # shares of replies with the trait: of the alternative, of the original
SCENARIO_SD, OWN_SD = 1.0, 0.7  # on the logit
BACKGROUND = 0.03  # dose of all other sources together
LEAK = 0.6  # of a dropped culprit's dose, what neighbouring rows give
CARRIERS = 0.15  # of the rows of a culprit in `rows`
GRID = np.linspace(-2.0, 3.0, 2001)
CULPRITS = {"virulent": (1, 2, 3, 4), "graded": (2, 3, 4), "joint": (2, 3, 4), "mixed": (3,), "rows": (2,)}
NONE = ("diffuse", "everywhere", "prompts")
HILL = {"joint": 16.0, "mixed": 8.0, "diffuse": 1.0, "everywhere": 1.0}


@dataclass(frozen=True)
class World:
    """Sources with the dose that each gives, and how the trait depends on the dose."""

    kind: str
    seed: int
    culprits: int
    training_sd: float
    exact: bool = False  # whether limits are those of sftdiff.transfer

    def rng(self, *what: object) -> np.random.Generator:
        return np.random.default_rng(int(digest(f"{self.kind} {self.culprits} {self.seed} {what}", 15), 16))

    @cached_property
    def sources(self) -> dict[str, int]:
        sizes = np.exp(self.rng("sizes").normal(5, 0.8, SOURCES)) + (200 if self.kind == "rows" else 10)
        return {f"source {n:02d}": int(rows) for n, rows in enumerate(sizes)}

    @cached_property
    def weights(self) -> dict[str, float]:
        rng, names = self.rng("weights"), list(self.sources)
        if self.kind == "diffuse":
            return {name: rows / sum(self.sources.values()) for name, rows in self.sources.items()}
        if self.kind == "everywhere":
            return dict.fromkeys(names, 3.0)
        chosen = [names[n] for n in rng.permutation(SOURCES)[: self.culprits]]
        strengths: Mapping[str, list[float]] = {
            "virulent": [3.0] * 4,
            "graded": rng.uniform(1.0, 3.0, 4).tolist(),
            "joint": [1.2 / max(self.culprits, 1)] * 4,
            "mixed": [2.0, 0.7, 0.7],
            "rows": [3.0] * 2,
        }
        found = zip(chosen, strengths.get(self.kind, []), strict=False)
        return dict.fromkeys(names, BACKGROUND / SOURCES) | dict(found)

    @cached_property
    def carriers(self) -> dict[str, NDArray[np.bool_]]:
        """Which rows of each source give its dose."""
        share = CARRIERS if self.kind == "rows" else 1.0
        return {name: np.arange(rows) < max(round(share * rows), 1) for name, rows in self.sources.items()}

    @cached_property
    def scores(self) -> dict[str, dict[str, Cells]]:
        """Two locators by source: the first says nothing, the second ranks carriers high (AUROC 0.95)."""
        found = {}
        for name, held in self.carriers.items():
            rng = self.rng("scores", name)
            found[name] = {"keyword": rng.standard_normal(len(held)), "judge": rng.standard_normal(len(held)) + 2.33 * held}
        return found

    def share(self, dose: float) -> float:
        """The transfer at a dose; 1 where all rows have the original rollouts."""
        if self.kind == "prompts":
            return 0.9
        total, hill = sum(self.weights.values()), HILL.get(self.kind, 2.0)
        if self.kind == "diffuse":
            return dose / total
        return float((dose**hill / (1 + dose**hill)) / (total**hill / (1 + total**hill)))

    def rows(self, part: Part) -> NDArray[np.intp]:
        ids = np.arange(self.sources[part.source], dtype=np.uint64)
        return rows_of(part, ids, self.scores[part.source] if part.cuts else {})

    def dose(self, parts: Iterable[Part]) -> float:
        held = ((part, self.carriers[part.source]) for part in parts)
        return sum(
            self.weights[part.source] * (carriers[self.rows(part)].sum() / carriers.sum() if part.cuts else 1.0)
            for part, carriers in held
        )

    def transfer(self, test: Test) -> float:
        """The true transfer of a test."""
        total = sum(self.weights.values())
        inside = total * test.random_rows / sum(self.sources.values()) if test.random_rows else self.dose(test.parts)
        return self.share({"in": inside, "out": total - inside, "drop": total - inside + LEAK * inside}[test.treatment])

    @cached_property
    def truths(self) -> list[set[str]]:
        """The smallest sets of culprits that are sufficient and necessary."""
        names = [name for name, weight in self.weights.items() if weight > BACKGROUND] if self.culprits else []
        for size in range(1, len(names) + 1):
            found = [set(some) for some in combinations(names, size) if self.right([Part(name) for name in some])]
            if found:
                return found
        return [set()]

    def right(self, parts: Iterable[Part]) -> bool:
        """Whether a set is sufficient and necessary in truth."""
        kept = tuple(parts)
        inside, outside = self.share(self.dose(kept)), self.share(self.dose(complement(kept, self.sources)))
        return inside > 2 / 3 and outside < 1 / 3

    @lru_cache(maxsize=256)  # noqa: B019
    def training(self, name: str, transfer: float, seed: int) -> Cells:
        """One training's scores: (scenarios,)."""
        rng, level = self.rng(name, seed), FLOOR + (TOP - FLOOR) * min(max(transfer, 0.0), 1.0)
        scenarios = SCENARIO_SD * self.rng("scenarios").standard_normal(SCENARIOS)
        effects = scenarios + self.training_sd * rng.standard_normal() + OWN_SD * rng.standard_normal(SCENARIOS)
        return (rng.random(SCENARIOS) < expit(1.25 * logit(level) + effects)).astype(np.float64)  # effects draw towards a half

    def answer(self, ask: Ask) -> Answer:
        arms = ((str(ask.test), self.transfer(ask.test)), ("alternative", 0.0), ("original", 1.0))
        cells = [np.stack([self.training(name, transfer, seed) for seed in ask.seeds]) for name, transfer in arms]
        found = transfer(*cells, "share", (0.0, 1.0), ask.alpha) if self.exact else fieller(*cells, ask.alpha)
        call = call_transfer(found, Bounds())
        return Answer(ask.test, ask.seeds, found.value, found.low, found.high, call, ask.purpose)


def fieller(arm: Cells, alternative: Cells, original: Cells, alpha: float) -> Transfer:
    """The transfer and its limits: the c that a test of arm - (1 - c) alternative - c original = 0 does not reject.

    The variance of that contrast is a parabola in c, so that three values give it.
    """
    up, whole, at = arm - alternative, original - alternative, (0.0, 0.5, 1.0)
    found = [spread(up - c * whole).at(alpha) for c in at]
    variance = np.polyval(np.polyfit(at, [variance for variance, _ in found], 2), GRID)
    quantile = np.interp(GRID, at, [min(quantile, 1e3) for _, quantile in found])
    top, bottom = float(up.mean()), float(whole.mean())
    held = GRID[(top - GRID * bottom) ** 2 <= quantile**2 * np.maximum(variance, 1e-6)]
    value = top / bottom if bottom else np.nan
    low, high = (float(held[0]), float(held[-1])) if held.size else (value, value)
    limits = low if low > GRID[0] else -np.inf, high if high < GRID[-1] else np.inf
    return Transfer(value, *limits, Interval(bottom, np.nan, np.nan, "", ""), len(arm), SCENARIOS, "Fieller")


def run(world: World, settings: Settings) -> tuple[Result, int]:
    """The result of a search, and how many rounds of trainings it took."""
    search, answers, rounds = Search(world.sources, settings), list[Answer](), 0
    while not isinstance(found := search.step(answers), Result):
        answers += [world.answer(ask) for ask in found]
        rounds += 1
    return found, rounds


def singly(world: World) -> set[str]:
    """What testing every source by itself finds: those that are enough, or without which not enough is left."""
    seeds, found = tuple(range(SEEDS)), set()
    for name in world.sources:
        inside, outside = (world.answer(Ask(Test(way, (Part(name),)), seeds, 0.1)).value for way in ("in", "out"))
        found |= {name} if inside > 0.5 or outside < 0.5 else set()
    return found


def rates(pairs: Iterable[tuple[set[str], list[set[str]]]]) -> tuple[float, float]:
    """Precision and recall over all searches together, of (found, truths); the nearest truth counts."""
    nearest = [(found, max(truths, key=lambda truth: len(found & truth))) for found, truths in pairs]
    both, named, truth = (sum(column) for column in zip(*((len(a & b), len(a), len(b)) for a, b in nearest), strict=True))
    return both / max(named, 1), both / max(truth, 1)


def row_rates(world: World, parts: Iterable[Part]) -> tuple[float, float]:
    """Precision and recall of the rows that carry the trait."""
    held = [(world.carriers[part.source][world.rows(part)].sum(), len(world.rows(part))) for part in parts]
    total = sum(world.carriers[name].sum() for name, weight in world.weights.items() if weight > BACKGROUND)
    right, rows = (sum(column) for column in zip(*held, strict=True)) if held else (0, 0)
    return right / max(rows, 1), right / total


def main(searches: int, training_sd: float, exact: bool) -> None:
    kinds = [(kind, count) for kind, counts in CULPRITS.items() for count in counts] + [(kind, 0) for kind in NONE]
    each, shares, inner, spent, wrong = max(searches // len(kinds), 1), list[float](), list[tuple[float, float]](), 0.0, 0
    names = f"{'precision':>9} {'recall':>6} {'trainings':>9} {'most':>5} {'rounds':>6} {'singly':>9}"
    print(f"{'world':<12} {'culprits':>8} {names}  ended")
    for kind, count in kinds:
        pairs, alone, used, rounds, states = [], [], list[int](), [], Counter[str]()
        chosen = Settings(FULL // 2, orders=("keyword", "judge"), smallest=10) if kind == "rows" else Settings(FULL // 3)
        for seed in range(each):
            world, start = World(kind, seed, count, training_sd, exact), time.perf_counter()
            result, took = run(world, chosen)
            spent += time.perf_counter() - start
            pairs.append(({part.source for part in result.parts}, world.truths))
            used.append(result.trainings)
            rounds.append(took)
            states[result.state] += 1
            wrong += result.state == "found" and not world.right(result.parts)
            inner += [row_rates(world, result.parts)] if kind == "rows" else []
            alone += [(singly(world), world.truths)] if count and seed < 10 else []
        shares += [number / FULL for number in used] if count and kind != "rows" else []
        right = "{:>9.2f} {:>6.2f}".format(*rates(pairs)) if count else f"{'-':>9} {'-':>6}"
        single = "/".join(f"{rate:.2f}" for rate in rates(alone)) if count else "-"
        ended = ", ".join(f"{state} {number}" for state, number in states.most_common())
        figures = f"{np.mean(used):>9.1f} {max(used):>5} {np.mean(rounds):>6.1f} {single:>9}"
        print(f"{kind:<12} {count:>8} {right} {figures}  {ended}", flush=True)
    print("rows: precision {:.2f}, recall {:.2f} of the rows that carry the trait".format(*np.mean(inner, axis=0)))
    print(f"{each * len(kinds)} searches in {spent:.0f} s; {wrong} found wrongly; testing every source takes {FULL} trainings")
    print(f"ratio {np.mean(shares):.3f}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 200, float(given[1]) if len(given) > 1 else 0.5, "exact" in given)
