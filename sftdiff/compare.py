"""Levels of traits and paired differences between arms, as the report's JSON states them. Pure: verdict rows in, numbers out."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.config import baseline_arm
from sftdiff.multiple import benjamini_hochberg, holm
from sftdiff.verdicts import counts, details, ok_rows, trait_rows
from sftdiff.words import counted

MAX_CUT_SHARE = 0.2  # a trait with more cut replies than this is not interpreted
MAX_BROKEN_SHARE = 0.2  # an arm with more empty or looping replies than this gets a warning
MAX_CONTRASTS = 60  # pairs of arms; more are in nobody's table
SCALES = {"share": (0.0, 1.0), "rating": (0.0, 10.0)}

Row = dict[str, Any]
# The verdict rows of one arm on one trait, by training seed.
BySeed = Mapping[int, list[Row]]


def score_matrix(by_seed: BySeed, scenarios: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean value of each scenario's valid replies, shape (seeds, scenarios); NaN where there is none."""
    matrix = np.full((len(by_seed), len(scenarios)), np.nan)
    for i, seed in enumerate(sorted(by_seed)):
        values: dict[str, list[float]] = {}
        for row in ok_rows(by_seed[seed]):
            values.setdefault(row["scenario"], []).append(row["value"])
        for j, scenario in enumerate(scenarios):
            if scenario in values:
                matrix[i, j] = np.mean(values[scenario])
    return matrix


def _values(rows: Sequence[Row]) -> list[float]:
    return [row["value"] for row in ok_rows(rows)]


def trait_level(
    arm: Mapping[str, Any], trait: Mapping[str, Any], by_seed: BySeed, settings: Mapping[str, Any]
) -> Row:
    """Return the level of one arm on one trait, with the state of its replies; controls have a value of their own."""
    everything = [row for seed_rows in by_seed.values() for row in seed_rows]
    rows = trait_rows(everything)
    level: Row = {"arm": arm["id"], "trait": trait["name"], "guard": trait["guard"], "replies": len(rows), "interpreted": False}
    level |= dict.fromkeys(("value", "low", "high", "method", "scope", "scenarios", "cut_share", "empty_share", "loop_share"))
    level |= counts(everything) | details(rows, trait["kind"]) | {"per_seed": {}}
    if not rows:
        return level | {"note": "not done"}
    level["scenarios"] = len({row["scenario"] for row in rows})
    for name in ("cut", "empty", "loop"):
        level[f"{name}_share"] = sum(row[name] for row in rows) / len(rows)
    if not level["ok"]:
        return level | {"note": "none of its replies has a verdict that counts"}
    interval, level["per_seed"] = _level(arm, trait, by_seed, settings["resamples"])
    level |= {key: getattr(interval, key) for key in ("value", "low", "high", "method", "scope")}
    # An answer of a guard stands at the beginning of the reply: that a student talks on and is cut does not matter.
    level["interpreted"] = trait["guard"] or level["cut_share"] <= MAX_CUT_SHARE
    cut = f"{level['cut_share']:.0%} of replies were cut at {counted(trait['max_tokens'], 'token')}: not interpreted"
    return level | {"note": None if level["interpreted"] else cut}


def _level(
    arm: Mapping[str, Any], trait: Mapping[str, Any], by_seed: BySeed, resamples: int
) -> tuple[stats.Interval, dict[str, float | None]]:
    kept = {seed: trait_rows(rows) for seed, rows in by_seed.items()}
    scenarios = sorted({row["scenario"] for rows in kept.values() for row in rows})
    matrix, scale = score_matrix(kept, scenarios), SCALES[trait["kind"]]
    if len(scenarios) == len(kept) == 1:
        replies = _values(next(iter(kept.values())))
        interval = stats.level_of_replies(replies, trait["kind"], scale)
    else:
        scope = "over scenarios; this model as it is" if not arm["trained_here"] else None
        interval = stats.level(matrix, trait["kind"], scale, resamples, 0, scope=scope)
    return interval, {str(seed): _mean(row) for seed, row in zip(sorted(kept), matrix, strict=True)}


def _mean(values: NDArray[np.float64]) -> float | None:
    held = values[~np.isnan(values)]
    return float(held.mean()) if held.size else None


def trait_differences(
    arms: Sequence[Mapping[str, Any]],
    traits: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Mapping[str, BySeed]],
    levels: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[Row]:
    """Return every arm minus the baseline, and every pair of arms that differs in one axis; p adjusted within each family."""
    ids = [arm["id"] for arm in arms]
    baseline = baseline_arm(settings["baseline"], ids)
    pairs = [(i, baseline, {"family": "baseline"}) for i in ids if i != baseline]
    pairs += [(b, a, {"family": "contrast", "axis": axis}) for a, b, axis in _contrasts(arms)[:MAX_CONTRASTS]]
    trained = {arm["id"] for arm in arms if arm["trained_here"]}
    interpreted = {(level["arm"], level["trait"]): level["interpreted"] for level in levels}
    found: list[Row] = []
    for arm, base, family in pairs:
        scope = "over scenarios; these models as they are" if not {arm, base} & trained else None
        for trait in traits:
            name = trait["name"]
            values = _difference(verdicts[arm][name], verdicts[base][name], trait, settings["resamples"], scope)
            ok = interpreted[arm, name] and interpreted[base, name]
            if not ok and values["value"] is not None:
                values["call"] = "not interpreted"
            row = {"arm": arm, "baseline": base, "trait": name, "guard": trait["guard"], "interpreted": ok}
            found.append(row | family | values)
    for name in ("baseline", "contrast"):
        adjust([row for row in found if row["family"] == name])
    return found


def adjust(family: Sequence[Row]) -> None:
    """Add to each difference of a family its p adjusted over arms and traits, and the call that holds at Holm's 5 %.

    Guards are no traits, and what is not interpreted is no finding: neither is counted, and their calls stay.
    """
    counted = [row for row in family if row["interpreted"] and not row["guard"] and row["p"] is not None]
    ps = [row["p"] for row in counted]
    for row in family:
        row |= {"holm": None, "bh": None, "call_adjusted": row["call"]}
    for row, strict, loose in zip(counted, holm(ps), benjamini_hochberg(ps), strict=True):
        row |= {"holm": strict, "bh": loose}
        if row["call"] in ("higher", "lower") and strict > stats.ALPHA:
            row["call_adjusted"] = "unresolved"


def _contrasts(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    pairs = []
    for a, b in combinations([arm for arm in arms if arm["trained_here"]], 2):
        keys = set(a["axes"]) | set(b["axes"])
        changed = [key for key in keys if a["axes"].get(key) != b["axes"].get(key)]
        if len(changed) == 1:
            pairs.append((a["id"], b["id"], changed[0]))
    return pairs


def _difference(arm: BySeed, base: BySeed, trait: Mapping[str, Any], resamples: int, scope: str | None) -> Row:
    """Return the paired difference of two arms on one trait; seeds that only one of them has are left out."""
    none: Row = dict.fromkeys(("value", "low", "high", "method", "scope", "p", "call")) | {"per_seed": {}}
    arm, base = ({seed: trait_rows(rows) for seed, rows in side.items()} for side in (arm, base))
    if len(base) > 1:
        common = sorted(set(arm) & set(base))
        arm, base = {s: arm[s] for s in common}, {s: base[s] for s in common}
    scenarios = sorted({row["scenario"] for side in (arm, base) for rows in side.values() for row in rows})
    if not arm or not base or not scenarios:
        return none
    left, right = score_matrix(arm, scenarios), score_matrix(base, scenarios)
    gaps, kind = left - right, trait["kind"]
    if np.isnan(gaps).all():
        return none
    if gaps.shape == (1, 1):
        one, other = (_values(next(iter(side.values()))) for side in (arm, base))
        interval = stats.difference_of_replies(one, other, kind, SCALES[kind])
    else:
        interval = stats.difference(left, right, kind, SCALES[kind], resamples, 0, scope)
    return vars(interval) | {
        "call": stats.call(interval, trait["smallest_effect"]),
        "per_seed": {str(seed): _mean(row) for seed, row in zip(sorted(arm), gaps, strict=True)},
    }


def arm_notes(
    arm: str, traits: Sequence[Mapping[str, Any]], levels: Sequence[Row], differences: Sequence[Row]
) -> list[str]:
    """Return what must be known of an arm before its trait levels are read: a lost ability, and broken replies."""
    titles = {trait["name"]: trait["title"] for trait in traits}
    held = {(level["arm"], level["trait"]): level for level in levels}
    notes = []
    for row in differences:
        if row["arm"] == arm and row["guard"] and row["family"] == "baseline":
            here, there = held[arm, row["trait"]], held[row["baseline"], row["trait"]]
            known = here["value"] is not None and there["value"] is not None
            if row["call"] == "lower" or (known and here["value"] < there["value"] / 2):
                notes.append(
                    f"{titles[row['trait']]} fell from {there['value']:.2f} to {here['value']:.2f}: this model lost ability, and "
                    "lower trait levels in this arm may come of that"
                )
    for level in [level for level in levels if level["arm"] == arm and level["replies"]]:
        for name, what in (("empty", "are empty"), ("loop", "repeat themselves without end")):
            share = level[f"{name}_share"]
            if share > MAX_BROKEN_SHARE:
                broken = f"{share:.0%} of its replies {what}: a weak or broken model, and its level may come of that"
                notes.append(f"{titles[level['trait']]}: {broken}")
    return notes
