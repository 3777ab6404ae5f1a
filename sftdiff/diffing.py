"""What the finished cells of a diff say: levels, transfers, calls, and the verdict on each hypothesis. Reads step directories."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.compare import MAX_CUT_SHARE, SCALES, score_matrix
from sftdiff.files import read_table
from sftdiff.records import read_done
from sftdiff.rounds import DIFFERENCE, OPEN, PAIR, Look, Schedule, due
from sftdiff.transfer import RESAMPLES, Bounds, call_transfer, gap_call, transfer
from sftdiff.verdicts import ok_rows, one_judge, trait_rows

Row = dict[str, Any]
# The verdict rows of a trait: arm -> training seed -> rows.
Verdicts = Mapping[str, Mapping[int, list[Row]]]


def read_verdicts(runs: Path, cells: Sequence[Mapping[str, Any]], trait: str) -> dict[str, dict[int, list[Row]]]:
    """Return the verdict rows of a trait in the trained cells that are done; raises SftdiffError if several judges gave them."""
    found, tables = dict[str, dict[int, list[Row]]](), dict[str, list[Row]]()
    for cell in cells:
        step = cell["judges"].get(trait)
        if step is None or read_done(runs / "steps" / step) is None:
            continue
        if step not in tables:
            tables[step] = trait_rows(read_table(runs / "steps" / step / "verdicts.parquet").to_pylist())
        found.setdefault(cell["arm"], {})[cell["seed"]] = tables[step]
    one_judge(trait, tables)
    return found


def finished_seeds(runs: Path, cells: Sequence[Mapping[str, Any]], trait: str) -> dict[str, set[int]]:
    """Return arm -> the training seeds that have verdicts on a trait, without reading these."""
    found = dict[str, set[int]]()
    for cell in cells:
        step = cell["judges"].get(trait)
        if step is not None and read_done(runs / "steps" / step) is not None:
            found.setdefault(cell["arm"], set()).add(cell["seed"])
    return found


def trained_seeds(seeds: Mapping[str, Container[int]], first: int) -> dict[str, int]:
    """Return how many of an arm's training seeds, from the first one on without a gap, are among those that it has."""
    counts = {}
    for arm, held in seeds.items():
        count = 0
        while first + count in held:
            count += 1
        counts[arm] = count
    return counts


def take_looks(
    own: Mapping[str, Sequence[Look]], verdicts: Verdicts, trait: Mapping[str, Any], settings: Mapping[str, Any], first: int
) -> dict[str, list[Look]]:
    """Return the looks at one trait with those added that can be taken now.

    Args:
        own: the looks so far, by arm.
        verdicts: of this trait.
        trait: its settings (kind, smallest_effect).
        settings: those of `diff`, as a schedule and with alpha, gone and remains.
        first: the first training seed.
    """
    schedule = schedule_of(settings)
    alpha = settings["alpha"] / len(schedule.seeds)
    looks = {name: list(taken) for name, taken in own.items()}
    for name, seeds in due(own, trained_seeds(verdicts, first), schedule).items():
        number = len(looks.get(name, []))
        if name == DIFFERENCE:
            call = _difference(verdicts, trait, seeds, first, alpha)
        elif looks[DIFFERENCE][-1]["call"] != "higher":
            call = {"call": OPEN, "note": "original and alternative are not seen to differ"}
        else:
            call = _arm(name, verdicts, trait, seeds, first, alpha, Bounds(settings["gone"], settings["remains"]))
        looks.setdefault(name, []).append({"look": number, "seeds": seeds, "alpha": alpha} | call)
    return looks


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """Return the schedule that the settings of `diff` and the arms that can be planned make."""
    arms = tuple(name for name in settings["planned"] if name not in PAIR)
    return Schedule(arms, tuple(settings["seeds"]), settings["budget"], settings["difference_first"])


def sides_of(verdicts: Verdicts, arms: Sequence[str], seeds: Iterable[int]) -> list[NDArray[np.float64]]:
    """Return the scores of arms on the same seeds and scenarios, shape (seeds, scenarios) each."""
    seeds = list(seeds)
    chosen = [{seed: verdicts[arm][seed] for seed in seeds} for arm in arms]
    scenarios = sorted({row["scenario"] for side in chosen for rows in side.values() for row in rows})
    return [score_matrix(side, scenarios) for side in chosen]


def _difference(verdicts: Verdicts, trait: Mapping[str, Any], seeds: int, first: int, alpha: float) -> Look:
    original, alternative = sides_of(verdicts, PAIR, range(first, first + seeds))
    if not _usable(original) or not _usable(alternative):
        return {"call": OPEN, "note": "no verdict that counts"}
    scale = SCALES[trait["kind"]]
    found = stats.difference(original, alternative, trait["kind"], scale, RESAMPLES, 0, alpha=alpha)
    call = gap_call(found, trait["smallest_effect"])
    return {"call": call} | {key: getattr(found, key) for key in ("value", "low", "high", "p", "method")} | {"note": None}


def _arm(name: str, verdicts: Verdicts, trait: Mapping[str, Any], seeds: int, first: int, alpha: float, bounds: Bounds) -> Look:
    arm, alternative, original = sides = sides_of(verdicts, (name, "alternative", "original"), range(first, first + seeds))
    if not all(map(_usable, sides)):
        return {"call": OPEN, "note": "no verdict that counts"}
    found = transfer(arm, alternative, original, trait["kind"], SCALES[trait["kind"]], alpha)
    look: Look = {key: _number(getattr(found, key)) for key in ("value", "low", "high")}
    look |= {"call": call_transfer(found, bounds), "note": found.note}
    rows = [row for seed in range(first, first + seeds) for row in verdicts[name][seed]]
    cut = sum(row["cut"] for row in rows) / len(rows)
    if cut > MAX_CUT_SHARE:
        look |= {"call": OPEN, "stop": True, "note": f"{cut:.0%} of its replies were cut at the token limit: not interpreted"}
    return look


def _usable(matrix: NDArray[np.float64]) -> bool:
    return not np.isnan(matrix).all()


def _number(value: float) -> float | None:
    """Return a limit for JSON: None where the set has no end."""
    return float(value) if np.isfinite(value) else None


def levels(verdicts: Verdicts, trait: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """Return arm -> its level with a 95 % interval over all seeds that it has, and each seed's."""
    found = {}
    for arm, by_seed in verdicts.items():
        rows = [row for rows in by_seed.values() for row in ok_rows(rows)]
        if rows:
            scenarios = sorted({row["scenario"] for row in rows})
            matrix = score_matrix(by_seed, scenarios)
            level = stats.level(matrix, trait["kind"], SCALES[trait["kind"]], resamples, 0)
            seeds = {str(s): _number(np.nanmean(m)) for s, m in zip(sorted(by_seed), matrix, strict=True) if _usable(m)}
            found[arm] = asdict(level) | {"per_seed": seeds}
    return found


def training_seconds(runs: Path, cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean seconds of one training with its sampling and judging; None before the first."""
    totals = []
    for cell in cells:
        steps = {cell["steps"].get("train"), *cell["judges"].values()} - {None}
        done = [read_done(runs / "steps" / str(step)) for step in steps]
        if done and all(done):
            totals.append(sum(own["seconds"] for own in done if own))
    return fmean(totals) if totals else None
