"""p-values adjusted for a family of tests, in the order in which they came and at most 1 each; compared with alpha."""

from collections.abc import Sequence


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979, Scandinavian Journal of Statistics 6:65): of all families, a share of at most alpha has a false finding."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, at in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[at]))
        adjusted[at] = highest
    return adjusted


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's (1995, JRSS B 57:289): of all findings, a share of at most alpha is expected to be false."""
    adjusted, lowest = [0.0] * len(ps), 1.0
    for place, at in enumerate(sorted(range(len(ps)), key=lambda i: -ps[i])):
        lowest = min(lowest, ps[at] * len(ps) / (len(ps) - place))
        adjusted[at] = lowest
    return adjusted
