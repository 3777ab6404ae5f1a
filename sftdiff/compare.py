"""Levels of traits and paired differences between arms, as the report's JSON states them. Pure: verdict rows in, numbers out."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.config import baseline_arm

MAX_CUT_SHARE = 0.2  # a trait with more cut replies than this is not interpreted
MAX_CONTRASTS = 60  # pairs of arms; more are in nobody's table
SCALES = {"share": (0.0, 1.0), "rating": (0.0, 10.0)}

# The verdict rows of one arm on one trait, by training seed.
BySeed = Mapping[int, list[dict[str, Any]]]


def _matrix(by_seed: BySeed, scenarios: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean value of each scenario's valid replies, shape (seeds, scenarios); NaN where there is none."""
    matrix = np.full((len(by_seed), len(scenarios)), np.nan)
    for i, seed in enumerate(sorted(by_seed)):
        values: dict[str, list[float]] = {}
        for row in by_seed[seed]:
            if row["state"] == "ok":
                values.setdefault(row["scenario"], []).append(row["value"])
        for j, scenario in enumerate(scenarios):
            if scenario in values:
                matrix[i, j] = np.mean(values[scenario])
    return matrix


def trait_level(
    arm: Mapping[str, Any], trait: Mapping[str, Any], by_seed: BySeed, settings: Mapping[str, Any]
) -> dict[str, Any]:
    rows = [row for seed_rows in by_seed.values() for row in seed_rows]
    level: dict[str, Any] = {"arm": arm["id"], "trait": trait["name"], "replies": len(rows), "interpreted": False}
    level |= dict.fromkeys(("value", "low", "high", "method", "scope", "scenarios", "cut_share", "empty_share", "loop_share"))
    if not rows:
        return level | {"per_seed": {}, "note": "not done"}
    scenarios = sorted({row["scenario"] for row in rows})
    matrix = _matrix(by_seed, scenarios)
    scope = "over scenarios; this student is not trained" if arm["untrained"] else None
    interval = stats.level(matrix, trait["kind"], SCALES[trait["kind"]], settings["resamples"], 0, scope=scope)
    level |= vars(interval)
    level["scenarios"] = len(scenarios)
    level["per_seed"] = {str(seed): float(np.nanmean(row)) for seed, row in zip(sorted(by_seed), matrix, strict=True)}
    for name in ("cut", "empty", "loop"):
        level[f"{name}_share"] = sum(row[name] for row in rows) / len(rows)
    level["interpreted"] = level["cut_share"] <= MAX_CUT_SHARE
    cut = f"{level['cut_share']:.0%} of replies were cut at {trait['max_tokens']} tokens: not interpreted"
    return level | {"note": None if level["interpreted"] else cut}


def trait_differences(
    arms: Sequence[Mapping[str, Any]],
    traits: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Mapping[str, BySeed]],
    levels: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return every arm minus the baseline, and every pair of arms that differs in one axis."""
    ids = [arm["id"] for arm in arms]
    baseline = baseline_arm(settings["baseline"], ids)
    pairs = [(i, baseline, {"family": "baseline"}) for i in ids if i != baseline]
    pairs += [(b, a, {"family": "contrast", "axis": axis}) for a, b, axis in _contrasts(arms)[:MAX_CONTRASTS]]
    interpreted = {(level["arm"], level["trait"]): level["interpreted"] for level in levels}
    found = []
    for arm, base, family in pairs:
        for trait in traits:
            name = trait["name"]
            values = _difference(verdicts[arm][name], verdicts[base][name], trait, settings["resamples"])
            ok = interpreted[arm, name] and interpreted[base, name]
            if not ok and values["value"] is not None:
                values["call"] = "not interpreted"
            found.append({"arm": arm, "baseline": base, "trait": name, "interpreted": ok} | family | values)
    return found


def _contrasts(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    pairs = []
    for a, b in combinations([arm for arm in arms if not arm["untrained"]], 2):
        keys = set(a["axes"]) | set(b["axes"])
        changed = [key for key in keys if a["axes"].get(key) != b["axes"].get(key)]
        if len(changed) == 1:
            pairs.append((a["id"], b["id"], changed[0]))
    return pairs


def _difference(
    arm: BySeed, base: BySeed, trait: Mapping[str, Any], resamples: int
) -> dict[str, Any]:
    """Return the paired difference of two arms on one trait; seeds that only one of them has are left out."""
    none = dict.fromkeys(("value", "low", "high", "method", "scope", "call")) | {"per_seed": {}}
    if not arm or not base:
        return none
    if len(base) > 1:
        common = sorted(set(arm) & set(base))
        if not common:
            return none
        arm, base = {s: arm[s] for s in common}, {s: base[s] for s in common}
    scenarios = sorted({row["scenario"] for side in (arm, base) for rows in side.values() for row in rows})
    left, right = _matrix(arm, scenarios), _matrix(base, scenarios)
    interval = stats.difference(left, right, trait["kind"], SCALES[trait["kind"]], resamples, 0)
    by_seed = np.nanmean(left - right, axis=1)
    return vars(interval) | {
        "call": stats.call(interval, trait["smallest_effect"]),
        "per_seed": {str(seed): float(v) for seed, v in zip(sorted(arm), by_seed, strict=True)},
    }
