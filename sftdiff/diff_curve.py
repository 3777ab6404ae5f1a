"""A diff's interpolation curve: the level of a trait over the share of prompts that have alternative rollouts."""

from collections.abc import Mapping
from typing import Any

from sftdiff.compare import SCALES
from sftdiff.report_plots import View
from sftdiff.report_shares import share_plots

ENDS = {"original": 0.0, "prompt_swap": 1.0}  # none and all of the original's prompts have the alternative teacher's rollouts
AXIS = "share"


def curve_shares(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return arm -> the share of prompts with alternative rollouts, of the arms that swap a random share, and of both ends.

    `configs` has one resolved config of each arm. Nothing where no arm lies between the ends.
    """
    subsets = {arm: config["prompt_subset"] for arm, config in configs.items()}
    between = {
        arm: float(own["share"]) for arm, own in subsets.items() if own["name"] == "random_share" and own["treatment"] == "swap"
    }
    ends = {arm: share for arm, share in ENDS.items() if arm in configs}
    return dict(sorted((ends | between).items(), key=lambda item: item[1])) if between else {}


def curve_plot_of(result: Mapping[str, Any], name: str) -> View | None:
    """Return the plot of one trait, or None where fewer than three arms of the curve have a level.

    The result's `curve` says which share each arm has.
    """
    trait = result["traits"][name]
    shares = {arm: share for arm, share in result["curve"].items() if arm in trait["levels"]}
    arms = [{"id": arm, "axes": {AXIS: str(share)}, "trained_here": True, "untrained": False} for arm, share in shares.items()]
    report = {
        "arms": arms,
        "traits": [{key: trait[key] for key in ("title", "unit", "kind")} | {"name": name, "scale": SCALES[trait["kind"]]}],
        "levels": [{"arm": arm, "trait": name} | trait["levels"][arm] for arm in shares],
    }
    found = share_plots(report)
    return found and {"x": found["x"], "plot": found["plots"][0]}
