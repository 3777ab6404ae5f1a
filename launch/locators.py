"""Filters that rank the original's rows, for a comparison of rankings and for a search inside sources.

They are composed with the command. What nobody set is filled in once original and alternative are trained: filters that look into
models get the trained ones, and those that look for examples what the trained original said with the trait.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.arms import hydra_text
from launch.data import DataPlanner
from launch.plan import Plan
from launch.rounds import Command
from sftdiff.errors import SftdiffError
from sftdiff.filters import MODELS, load_filter

Locators = dict[str, dict[str, Any]]


def compose_locators(names: Sequence[str], settings: Any, trait: str, command: Command, where: str) -> Locators:
    """Compose filters with their own `settings`, {NAME: {KEY: VALUE}}; `where` is the key of the config that lists them.

    Each is returned with what is to be filled in, as nobody set it: `trained`, models (name -> arm), and `own_examples`.
    """
    beside = where.rpartition(".")[0] + ".settings"
    settings = settings or {}
    if not isinstance(settings, Mapping) or not all(isinstance(each, Mapping) for each in settings.values()):
        raise SftdiffError(f"{beside}: write '{beside}={{NAME:{{KEY:VALUE}}}}', as {{bm25:{{params.examples:FILE}}}}")
    if unknown := set(settings) - set(names):
        raise SftdiffError(f"{beside}: {', '.join(sorted(unknown))} is not among {where}")
    return {name: _composed(name, settings.get(name, {}), trait, command, where) for name in dict.fromkeys(names)}


def _composed(name: str, settings: Mapping[str, Any], trait: str, command: Command, where: str) -> dict[str, Any]:
    chosen = [f"filter@prompt_subset.locator={name}", "prompt_subset.top=1", "prompt_subset.treatment=swap"]
    chosen += [f"prompt_subset.locator.{key}={hydra_text(value)}" for key, value in settings.items()]
    [composed] = command.arm("original", "prompt_subset=locator", *chosen, f"seed={command.config['seed']}") or []
    found: dict[str, Any] = composed["prompt_subset"]["locator"]
    if not found.get("_target_"):
        raise SftdiffError(f"{where}: filter {name} gives no score of its own to a row")
    if "traits" in found["params"] and "params.traits" not in settings:
        found = {**found, "params": {**found["params"], "traits": [trait]}}
    function, _, _ = load_filter(found["_target_"])
    needed = [key for key in getattr(function, MODELS, ()) if key not in settings]
    trained = {key: "alternative" if key == "reference" else "original" for key in needed}  # a reference is without the trait
    own_examples = "examples" in found["params"] and "params.examples" not in settings
    return {"filter": found, "trained": trained, "own_examples": own_examples}


def filled(locators: Mapping[str, Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], examples: str) -> Locators:
    """Return the filters with the models that the first seed's cells train, and the file of examples."""
    trained = {cell["arm"]: cell["steps"]["train"] for cell in reversed(cells)}
    found = Locators()
    for name, own in locators.items():
        models = {key: trained[arm] for key, arm in own["trained"].items()}
        own_examples = {"examples": examples} if own["own_examples"] else {}
        found[name] = own["filter"] | models | {"params": own["filter"]["params"] | own_examples}
    return found


def plan_scores(plan: Plan, locators: Mapping[str, Mapping[str, Any]], original: Mapping[str, Any]) -> dict[str, str]:
    """Add the scores of the original's rows to the plan of a round, and return their steps by filter."""
    planner = DataPlanner()
    scores = {name: planner.scores(own, original) for name, own in locators.items()}
    for step in planner.steps.values():
        step.runtime["sweep"] = plan.sweep
    plan.steps = planner.steps | plan.steps  # inputs first
    return scores
