"""What the finished cells of a diff say: levels, transfers, calls, and the verdict on each hypothesis. Reads step directories."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.compare import MAX_CUT_SHARE, SCALES, score_matrix
from sftdiff.files import read_table
from sftdiff.records import load_record, read_done
from sftdiff.rounds import DIFFERENCE, OPEN, PAIR, Look, Schedule, due
from sftdiff.transfer import RESAMPLES, Bounds, call_transfer, gap_call, transfer
from sftdiff.verdicts import ok_rows, one_judge, trait_rows

Row = dict[str, Any]
# The verdict rows of a trait: arm -> training seed -> rows.
Verdicts = Mapping[str, Mapping[int, list[Row]]]
NOTHING_KEPT: Mapping[str, list[Row]] = {}


def read_verdicts(
    runs: Path, cells: Sequence[Mapping[str, Any]], trait: str, kept: Mapping[str, list[Row]] = NOTHING_KEPT
) -> dict[str, dict[int, list[Row]]]:
    """Return the verdict rows of a trait in the trained cells that are done; raises SftdiffError if several judges gave them.

    `kept`: rows by judge step, of what was done on another machine (sftdiff.kept).
    """

    def read(step: str) -> list[Row] | None:
        directory = runs / "steps" / step
        return kept.get(step) if read_done(directory) is None else read_table(directory / "verdicts.parquet").to_pylist()

    return verdicts_of(cells, trait, read)


def verdicts_of(
    cells: Sequence[Mapping[str, Any]], trait: str, read: Callable[[str], list[Row] | None]
) -> dict[str, dict[int, list[Row]]]:
    """Return what `read_verdicts` does, of judge steps whose rows `read` returns, or None where they are not done."""
    found, tables = dict[str, dict[int, list[Row]]](), dict[str, list[Row]]()
    for cell in cells:
        step = cell["judges"].get(trait)
        if step is None:
            continue
        if step not in tables:
            rows = read(step)
            if rows is None:
                continue
            tables[step] = trait_rows(rows)
        found.setdefault(cell["arm"], {})[cell["seed"]] = tables[step]
    one_judge(trait, tables)
    return found


def finished_seeds(
    runs: Path, cells: Sequence[Mapping[str, Any]], trait: str, kept: Container[str] = ()
) -> dict[str, set[int]]:
    """Return arm -> the training seeds that have verdicts on a trait, without reading these; `kept`: judge steps that have."""
    found = dict[str, set[int]]()
    for cell in cells:
        step = cell["judges"].get(trait)
        if step is not None and (step in kept or read_done(runs / "steps" / step) is not None):
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
    looks = {name: list(taken) for name, taken in own.items()}
    for name, seeds in due(own, trained_seeds(verdicts, first), schedule).items():
        pair = looks[DIFFERENCE][-1] if DIFFERENCE in looks else None
        look = _look(name, pair, verdicts, trait, settings, range(first, first + seeds))
        looks.setdefault(name, []).append({"look": len(looks.get(name, []))} | look)
    return looks


def looks_so_far(
    own: Mapping[str, Sequence[Look]], verdicts: Verdicts, trait: Mapping[str, Any], settings: Mapping[str, Any], first: int
) -> dict[str, Look]:
    """Return what the seeds that are there say of what no look was taken at yet. It is no look: nothing rests on it."""
    trained, schedule = trained_seeds(verdicts, first), schedule_of(settings)
    shared = min(trained.get(arm, 0) for arm in PAIR)
    found, pair = dict[str, Look](), own[DIFFERENCE][-1] if own.get(DIFFERENCE) else None
    for name in (DIFFERENCE, *schedule.arms):
        seeds = min(shared, shared if name == DIFFERENCE else trained.get(name, 0), schedule.last(name))
        if seeds and not own.get(name):
            pair = pair or found.get(DIFFERENCE)
            found[name] = {"so_far": True} | _look(name, pair, verdicts, trait, settings, range(first, first + seeds))
    return found


def _look(
    name: str, pair: Look | None, verdicts: Verdicts, trait: Mapping[str, Any], settings: Mapping[str, Any], seeds: Sequence[int]
) -> Look:
    """Return what these seeds say of an arm, or of the difference of the pair; `pair` is the look at that, where there is one.

    Each of the looks has an equal share of the error rate.
    """
    alpha = settings["alpha"] / len(settings["seeds"])
    if name == DIFFERENCE:
        found = _difference(verdicts, trait, seeds, alpha)
    elif pair is None or pair["call"] != "higher":
        found = {"call": OPEN, "note": "original and alternative are not seen to differ"}
    else:
        found = arm_look(name, verdicts, trait, seeds, alpha, Bounds(settings["gone"], settings["remains"]))
    return {"seeds": len(seeds), "alpha": alpha} | found


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """Return the schedule that the settings of `diff` and the arms that can be planned make."""
    arms = tuple(name for name in settings["planned"] if name not in PAIR)
    most = settings.get("most", {})
    return Schedule(arms, tuple(settings["seeds"]), settings["budget"], settings["difference_first"], most)


def sides_of(verdicts: Verdicts, arms: Sequence[str], seeds: Iterable[int]) -> list[NDArray[np.float64]]:
    """Return the scores of arms on the same seeds and scenarios, shape (seeds, scenarios) each."""
    seeds = list(seeds)
    chosen = [{seed: verdicts[arm][seed] for seed in seeds} for arm in arms]
    scenarios = sorted({row["scenario"] for side in chosen for rows in side.values() for row in rows})
    return [score_matrix(side, scenarios) for side in chosen]


def _difference(verdicts: Verdicts, trait: Mapping[str, Any], seeds: Sequence[int], alpha: float) -> Look:
    original, alternative = sides_of(verdicts, PAIR, seeds)
    if not usable(original) or not usable(alternative):
        return {"call": OPEN, "note": "no verdict that counts"}
    scale = SCALES[trait["kind"]]
    found = stats.difference(original, alternative, trait["kind"], scale, RESAMPLES, 0, alpha=alpha)
    call = gap_call(found, trait["smallest_effect"])
    return {"call": call} | {key: getattr(found, key) for key in ("value", "low", "high", "p", "method")} | {"note": None}


def arm_look(
    name: str, verdicts: Verdicts, trait: Mapping[str, Any], seeds: Sequence[int], alpha: float, bounds: Bounds
) -> Look:
    """Return the transfer of an arm on training seeds that original and alternative have too, and its call."""
    arm, alternative, original = sides = sides_of(verdicts, (name, "alternative", "original"), seeds)
    if not all(map(usable, sides)):
        return {"call": OPEN, "note": "no verdict that counts"}
    found = transfer(arm, alternative, original, trait["kind"], SCALES[trait["kind"]], alpha)
    look: Look = {key: _number(getattr(found, key)) for key in ("value", "low", "high")}
    look |= {"call": call_transfer(found, bounds), "note": found.note}
    if note := too_much_cut(verdicts[name], seeds):
        look |= {"call": OPEN, "stop": True, "note": note}
    return look


def too_much_cut(by_seed: Mapping[int, list[Row]], seeds: Iterable[int]) -> str | None:
    """Return why an arm's replies are not interpreted: too many were cut at the token limit; None if they were not."""
    rows = [row for seed in seeds for row in by_seed[seed]]
    cut = sum(row["cut"] for row in rows) / len(rows)
    return f"{cut:.0%} of its replies were cut at the token limit: not interpreted" if cut > MAX_CUT_SHARE else None


def usable(matrix: NDArray[np.float64]) -> bool:
    """Tell whether any verdict of a side counts."""
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
            seeds = {str(s): _number(np.nanmean(m)) for s, m in zip(sorted(by_seed), matrix, strict=True) if usable(m)}
            found[arm] = asdict(level) | {"per_seed": seeds}
    return found


def training_seconds(runs: Path, cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean seconds of one training with its sampling and judging; None before the first."""
    totals = [total for cell in cells if (total := cell_seconds(runs, cell)) is not None]
    return fmean(totals) if totals else None


def cell_seconds(runs: Path, cell: Mapping[str, Any]) -> float | None:
    """Return the seconds of a cell's training, sampling and judging; None where it is not done."""
    judges = [runs / "steps" / step for step in cell["judges"].values()]
    done = [read_done(directory) for directory in (runs / "steps" / cell["steps"]["train"], *judges)]
    if not all(done):
        return None
    done += [read_done(load_record(directory).input_directory("sample")) for directory in judges]
    return float(sum(own["seconds"] for own in done if own))
