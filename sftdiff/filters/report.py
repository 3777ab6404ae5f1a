"""What filters flag, beside each other and beside the truth where it is known. Pure: arrays in, one JSON-able dict out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from sftdiff.errors import SftdiffError
from sftdiff.files import read_rows, resolve
from sftdiff.prompts import PromptIndex
from sftdiff.rows import Mask
from sftdiff.sorting import texts_of
from sftdiff.subsets import LEVELS

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Flags:
    """One filter on one prompt set: arrays with one entry a prompt, NaN where a row has no score."""

    name: str
    scores: np.ndarray[Any, np.dtype[np.float64]]
    flagged: Mask
    settings: Mapping[str, Any]  # threshold, top: for the table
    held_out: Mapping[str, Any] | None = None  # of a classifier


def filter_report(filters: Sequence[Flags], prompts: PromptIndex, truth: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    """Return for each filter what it flags, and for each pair how alike they are.

    `truth` has "overt", "mild", "none" or "" (unknown) for each prompt; None where nothing is known.
    """
    return {
        "rows": len(prompts),
        "truth": None if truth is None else {level: int((truth == level).sum()) for level in (*LEVELS, "none")},
        "filters": [_one(f, prompts, truth) for f in filters],
        "pairs": [_pair(a, b) for a, b in combinations(filters, 2)],
    }


def _one(f: Flags, prompts: PromptIndex, truth: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    scored = f.scores[~np.isnan(f.scores)]
    totals = np.bincount(prompts.codes, minlength=len(prompts.sources))
    hits = np.bincount(prompts.codes[f.flagged], minlength=len(prompts.sources))
    found = {
        "name": f.name,
        **{k: f.settings.get(k) for k in ("threshold", "top")},
        "scored": len(scored),
        "flagged": int(f.flagged.sum()),
        "quantiles": {str(q): float(np.quantile(scored, q)) for q in QUANTILES} if len(scored) else {},
        "by_source": [
            {"source": source, "rows": int(total), "flagged": int(hit)}
            for source, total, hit in zip(prompts.sources, totals, hits, strict=True)
        ],
        "held_out": f.held_out,
    }
    return found if truth is None else found | {"truth": _against(f, truth)}


def _against(f: Flags, truth: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return precision (overt and mild rows among the flagged), and for each level recall and AUROC against rows without it."""
    known = f.flagged & (truth != "")
    right = known & np.isin(truth, LEVELS)
    found: dict[str, Any] = {"precision": float(right.sum() / known.sum()) if known.any() else None}
    for level in LEVELS:
        rows = truth == level
        found[level] = {
            "rows": int(rows.sum()),
            "recall": float((f.flagged & rows).sum() / rows.sum()) if rows.any() else None,
            "auroc": auroc(f.scores[rows], f.scores[truth == "none"]),
        }
    return found


def auroc(positive: np.ndarray[Any, Any], negative: np.ndarray[Any, Any]) -> float | None:
    """Return the probability that a positive row scores higher than a negative one, ties half; None without both."""
    positive, negative = positive[~np.isnan(positive)], negative[~np.isnan(negative)]
    if not len(positive) or not len(negative):
        return None
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _pair(a: Flags, b: Flags) -> dict[str, Any]:
    both, either = int((a.flagged & b.flagged).sum()), int((a.flagged | b.flagged).sum())
    scored = ~np.isnan(a.scores) & ~np.isnan(b.scores)
    varied = scored.sum() > 2 and all(np.ptp(f.scores[scored]) > 0 for f in (a, b))
    correlation = float(spearmanr(a.scores[scored], b.scores[scored]).statistic) if varied else None
    return {"filters": [a.name, b.name], "both": both, "overlap": both / either if either else None, "spearman": correlation}


def read_truth(path: str, prompts: PromptIndex) -> np.ndarray[Any, Any]:
    """Return the level of each prompt's row ("overt", "mild", "none"; "" where the file does not say), from a truth file."""
    levels = {}
    for place, row in read_rows(resolve(path)):
        if row.get("level") not in (*LEVELS, "none") or not isinstance(row.get("prompt_id"), str):
            raise SftdiffError(f"{place}: a row of the truth needs 'prompt_id' and a 'level' (overt, mild or none)")
        levels[row["prompt_id"]] = row["level"]
    return np.array([levels.get(key, "") for key in texts_of(prompts.ids).to_pylist()], dtype="U5")
