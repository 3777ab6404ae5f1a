"""A prompt subset beside random rows of its size: swapped in, swapped out and dropped, and swap against drop."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftdiff import stats
from sftdiff.compare import SCALES
from sftdiff.diffing import Verdicts, sides_of
from sftdiff.transfer import RESAMPLES
from sftdiff.words import difference_text, level_text

TREATMENTS = {"in": "swapped in", "out": "swapped out", "drop": "dropped"}
SWAPPED, DROPPED = "subset_out", "subset_drop"


def subset_data(verdicts: Verdicts, trait: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rows of the table and the difference of drop and swap; None where no subset has verdicts.

    `verdicts` are those of one trait. Differences have 95 % intervals, paired by scenario and by the seeds that both arms have.
    """
    rows = [
        {"treatment": words, "subset": f"subset_{name}", "random": f"random_{name}",
         "difference": _difference(verdicts, f"subset_{name}", f"random_{name}", trait)}
        for name, words in TREATMENTS.items() if f"subset_{name}" in verdicts
    ]  # fmt: skip
    return {"rows": rows, "drop_minus_swap": _difference(verdicts, DROPPED, SWAPPED, trait)} if rows else None


def _difference(verdicts: Verdicts, arm: str, baseline: str, trait: Mapping[str, Any]) -> dict[str, Any] | None:
    seeds = sorted(set(verdicts.get(arm, ())) & set(verdicts.get(baseline, ())))
    if not seeds:
        return None
    first, second = sides_of(verdicts, (arm, baseline), seeds)
    try:
        found = stats.difference(first, second, trait["kind"], SCALES[trait["kind"]], RESAMPLES, 0)
    except ValueError:  # no scenario has a verdict on both sides
        return None
    return {"seeds": len(seeds)} | {key: getattr(found, key) for key in ("value", "low", "high", "method")}


def swap_against_drop(trait: Mapping[str, Any]) -> str:
    """Return in one sentence what swapping the subset does and what dropping it does; "" where either is not there."""
    swapped, dropped = (trait["levels"].get(arm) for arm in (SWAPPED, DROPPED))
    gap = trait["subset"] and trait["subset"]["drop_minus_swap"]
    if not (swapped and dropped and gap):
        return ""
    kind, smallest = trait["kind"], trait["smallest_effect"]
    levels = [f"{level_text(own, kind)}{_call(trait, arm)}" for arm, own in ((SWAPPED, swapped), (DROPPED, dropped))]
    low, high = gap["low"], gap["high"]
    if low > 0:
        says = "other rows make up for what is dropped"
    elif high < 0:
        says = "dropping takes more of the trait than swapping"
    elif max(-low, high) <= smallest:
        says = "both do the same"
    else:
        says = "which of both takes more is not resolved"
    return (f"Swapped out, the subset leaves a level of {levels[0]}; dropped, {levels[1]}; "
            f"drop minus swap is {difference_text(gap, kind)}: {says}.")  # fmt: skip


def _call(trait: Mapping[str, Any], arm: str) -> str:
    return f" ({trait['arms'][arm]['call']})" if arm in trait["arms"] else ""


def print_subset(console: Console, trait: Mapping[str, Any]) -> None:
    """Print the table of a trait, and swap against drop; nothing where there is no subset."""
    if not trait["subset"]:
        return
    table = Table(title="The subset beside random rows of its size", title_justify="left")
    for heading in ("", "subset", "random rows", "subset minus random \\[95 %]"):
        table.add_column(heading, overflow="fold")
    for row in trait["subset"]["rows"]:
        levels = [
            f"{level_text(trait['levels'].get(row[side]), trait['kind'])}{_call(trait, row[side])}"
            for side in ("subset", "random")
        ]
        table.add_row(row["treatment"], *map(escape, levels), escape(difference_text(row["difference"], trait["kind"])))
    console.print(table)
    if says := swap_against_drop(trait):
        console.print(escape(says))
