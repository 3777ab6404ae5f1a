"""Matrices of scores, shape (seeds, scenarios), NaN where no valid score exists: checked, and brought into one shape."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftdiff.limits import Limits

KINDS = ("share", "rating")
LEAST_RESAMPLES = 40  # below this no resample lies in a 2.5 % tail

Scores = NDArray[np.float64]


def check_settings(kind: str, scale: Limits, resamples: int) -> None:
    """Raise ValueError for a kind, scale or number of resamples that cannot be used."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    low, high = scale
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"scale must be two finite numbers, the lower one first, not {scale}")
    if kind == "share" and (low, high) != (0, 1):
        raise ValueError(f"a share has the scale (0, 1), not {scale}")
    if resamples < LEAST_RESAMPLES:
        raise ValueError(f"resamples must be at least {LEAST_RESAMPLES}, not {resamples}")


def matrix(scores: ArrayLike, scale: Limits, name: str) -> Scores:
    """The scores as floats, checked for shape (seeds, scenarios), bounds and at least one valid cell."""
    cells: Scores = np.asarray(scores, dtype=np.float64)
    if cells.ndim != 2 or cells.size == 0:
        raise ValueError(f"{name} must have shape (seeds, scenarios), both at least 1, not {cells.shape}")
    if np.isnan(cells).all():
        raise ValueError(f"{name} holds no valid score: every cell is missing (NaN)")
    slack = 1e-9 * (scale[1] - scale[0])
    if np.nanmin(cells) < scale[0] - slack or np.nanmax(cells) > scale[1] + slack:
        raise ValueError(f"{name} reaches from {np.nanmin(cells)} to {np.nanmax(cells)}, outside the scale {scale}")
    return np.clip(cells, scale[0], scale[1])


def compact(cells: Scores) -> Scores:
    """The cells without the rows and columns that are all NaN."""
    valid = ~np.isnan(cells)
    kept: Scores = cells[valid.any(axis=1)][:, valid.any(axis=0)]
    return kept


def paired(**sides: Scores) -> list[Scores]:
    """The sides in one shape, NaN on all where one is NaN, without rows or columns that are all NaN."""
    if len({side.shape[1] for side in sides.values()}) > 1:
        raise ValueError(f"{_lengths(sides, 1, 'scenarios')}: they cannot be paired")
    if len({side.shape[0] for side in sides.values()} - {1}) > 1:
        raise ValueError(f"{_lengths(sides, 0, 'seeds')}: they pair only with equal numbers or where a side has 1")
    cells = np.stack(np.broadcast_arrays(*sides.values()))
    valid = ~np.isnan(cells).any(axis=0)
    if not valid.any():
        raise ValueError(f"no cell is valid (not NaN) in {' and '.join(sides)}: nothing to pair")
    return [compact(np.where(valid, side, np.nan)) for side in cells]


def _lengths(sides: dict[str, Scores], axis: int, noun: str) -> str:
    """How long each side is, in words."""
    first, *others = sides
    return ", ".join([f"{first} has {sides[first].shape[axis]} {noun}", *(f"{n} {sides[n].shape[axis]}" for n in others)])


def is_binary(cells: Scores) -> bool:
    """Whether every valid cell is 0 or 1."""
    return bool(np.all(np.isnan(cells) | (cells == 0) | (cells == 1)))
