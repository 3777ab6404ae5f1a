"""How much a sweep will ask of a judge model, before it is run."""

import json
from collections.abc import Iterable
from functools import lru_cache

from launch.data import PlannedStep
from launch.plan import Plan
from sftdiff.identity import canonical
from sftdiff.traits import Trait, load_trait


def requests_line(plan: Plan, todo: Iterable[PlannedStep]) -> str | None:
    """Return how many requests the open judge steps send at most, as one line; None where no model is asked."""
    steps = [step for step in todo if step.kind == "judge" and "asked" in step.config]
    if not steps:
        return None
    requests = sum(_requests(step, plan.steps[step.inputs["sample"]]) for step in steps)
    judge = steps[0].runtime["judge"]
    if judge["provider"] == "local":
        return f"Judge {steps[0].config['judge']}: at most {requests:,} answers in {len(steps):,} steps"
    cap = "no spending cap (judge.max_cost=)" if judge["max_cost"] is None else f"at most ${judge['max_cost']:g} a step"
    return f"Judge {steps[0].config['judge']}: at most {requests:,} requests in {len(steps):,} steps, {cap}"


def _requests(step: PlannedStep, sample: PlannedStep) -> int:
    trait = _trait(*(canonical(step.config[key]) for key in ("trait", "suite", "scenarios")))
    replies = sum(len(s.turns) for s in (*trait.scenarios, *trait.controls)) * int(sample.config["samples"])
    return replies * len(step.config["asked"]["questions"])


@lru_cache(maxsize=64)
def _trait(*parts: str) -> Trait:
    name, suite, source = (json.loads(part) for part in parts)
    return load_trait(name, suite, source)
