"""The row algebra: which teacher's rollout each prompt gets. Pure functions over arrays with one entry a prompt.

Every prompt ends in exactly one of kept, swapped, dropped and error, with a reason, so that a mixture can be traced to its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftdiff.errors import SftdiffError
from sftdiff.identity import digest
from sftdiff.sorting import Ids

ROWS_VERSION = 2
TREATMENTS = ("keep", "swap", "swap_rest", "drop", "only")
ACTIONS = ("kept", "swapped", "dropped", "error")
KEPT, SWAPPED, DROPPED, ERROR = range(4)
TEACHER, OTHER, NONE = range(3)  # whose rollout a prompt gets
ACTION_OF = np.array([KEPT, SWAPPED, DROPPED], np.int8)  # of each of these
SLOTS = {  # treatment -> whose rollout inside the subset, and outside
    "keep": (TEACHER, TEACHER),
    "swap": (OTHER, TEACHER),
    "swap_rest": (TEACHER, OTHER),
    "drop": (NONE, TEACHER),
    "only": (TEACHER, NONE),
}
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Codes = np.ndarray[Any, np.dtype[np.int8]]


def treat(inside: Mask, treatment: str) -> Codes:
    """Return whose rollout each prompt gets (TEACHER, OTHER or NONE), for the prompts inside a subset and outside: (prompts,)."""
    if treatment not in SLOTS:
        raise SftdiffError(f"prompt_subset.treatment: {treatment!r} is not one of {', '.join(TREATMENTS)}")
    within, outside = SLOTS[treatment]
    return np.where(inside, np.int8(within), np.int8(outside))


@dataclass
class Assignment:
    """Whose rollout each prompt gets, and why: `reasons` are numbers of `texts`."""

    slots: Codes
    reasons: Codes
    texts: list[str]

    @classmethod
    def of_subset(cls, slots: Codes) -> "Assignment":
        return cls(slots, np.where(slots == TEACHER, np.int8(0), np.int8(1)), ["teacher", "prompt_subset"])

    def filtered(self, flagged: Mask, name: str, treatment: str) -> "Assignment":
        """Apply a filter. It looks at the teacher's rows only: a row that is swapped already is the other teacher's."""
        touched = flagged & (self.slots == TEACHER)
        slot = np.int8(OTHER if treatment == "swap" else NONE)
        reason = np.int8(len(self.texts))
        return Assignment(
            np.where(touched, slot, self.slots), np.where(touched, reason, self.reasons), [*self.texts, f"filter {name}"]
        )


def actions_of(slots: Codes, usable: Sequence[Mask], needed: str = "own") -> Codes:
    """Return KEPT, SWAPPED, DROPPED or ERROR for each prompt: (prompts,).

    `usable` tells for TEACHER and OTHER which prompts have a usable rollout. A prompt whose rollout is missing is an error; with
    needed="both" a prompt counts as one that lacks it wherever either teacher does, so that all cells have the same prompts.
    """
    missing = np.zeros(len(slots), bool)
    for slot, mask in enumerate(usable):
        missing |= ((slots == slot) | (needed == "both")) & ~mask
    return np.where(missing & (slots != NONE), np.int8(ERROR), ACTION_OF[slots])


def hash_order(ids: Ids, *seed: Any) -> Ids:
    """Return a number for each prompt_id that depends on it and the seed alone: the order of all seeded choices of rows.

    The finalizer of SplitMix64 (Steele, Lea and Flood 2014) over the prompt_id, which is a hash already.
    """
    x = ids ^ np.uint64(int(digest(repr(seed), 16), 16))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def first_by(order: np.ndarray[Any, Any], ids: Ids, count: int, among: Mask) -> Mask:
    """Return a mask of the `count` rows among `among` that come first in `order`; ties go by prompt_id."""
    rows = np.flatnonzero(among)
    chosen = np.zeros(len(ids), bool)
    chosen[rows[np.lexsort((ids[rows], order[rows]))[:count]]] = True
    return chosen


def matched_random(
    target: Mask, ids: Ids, strata: np.ndarray[Any, Any] | None, among: Mask, seed: tuple[Any, ...]
) -> Mask:
    """Return as many random rows among `among` as `target` has; in each stratum as many as it has there.

    Where a stratum has too few rows among `among` all of them are taken.
    """
    order, chosen = hash_order(ids, *seed), np.zeros(len(ids), bool)
    groups = np.zeros(len(ids), np.int64) if strata is None else strata
    for group in np.unique(groups[target]):
        inside = groups == group
        chosen |= first_by(order, ids, int((target & inside).sum()), among & inside)
    return chosen


def length_strata(characters: np.ndarray[Any, Any], bins: int = 20) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each row which of `bins` parts of equal size, by length, it lies in: (rows,)."""
    edges = np.quantile(characters, np.linspace(0, 1, bins + 1)[1:-1]) if len(characters) else np.empty(0)
    return np.searchsorted(edges, characters, side="right")


def selected(scores: np.ndarray[Any, Any], ids: Ids, threshold: float | None, top: float | None, among: Mask) -> Mask:
    """Return the rows with a score of at least `threshold`, or the `top` highest, among `among`: (rows,).

    A row without a score is in neither. `top` below 1 is a share of the rows with a score, else a number of rows.
    Ties go by prompt_id.
    """
    scored = among & ~np.isnan(scores)
    if top is not None:
        count = round(top * int(scored.sum())) if top < 1 else int(top)
        return first_by(-scores, ids, count, scored)
    if threshold is None:
        raise SftdiffError("a filter or locator needs a threshold, or top (a share below 1, or a number of rows)")
    return np.asarray(scored & (np.nan_to_num(scores, nan=-np.inf) >= threshold))
