"""What to run next in a diff that has left something open: the exact setting beside the same command, and what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftdiff.rounds import DIFFERENCE, OPEN, PAIR, Looks, Schedule, next_round
from sftdiff.words import counted, time_text

GROWTH = 1.6  # of the seeds of one more look: about that of 3, 5, 8
ONLY = "diff.only"  # the last of the settings that an arm needs
GIVEN = "conf/experiment/diff.yaml"


def to_do(
    name: str,
    looks: Looks,
    trained: Mapping[str, int],
    schedule: Schedule,
    traits: Mapping[str, Any],
    seconds: float | None,
    only: Sequence[str] | None = None,
) -> list[str]:
    """Return what to run next, a sentence each; nothing where no question is open.

    Args:
        name: of the diff.
        looks, trained, schedule: as in `sftdiff.rounds.next_round`.
        traits: the results of the traits, with `difference`, `arms` and `next`.
        seconds: of one training with its sampling and judging; None: not known.
        only: the arms that the diff is limited to; None: all.
    """
    if wanted := next_round(looks, trained, schedule):
        return [f"The same command goes on with the round that is not finished: {cost_text(_missing(wanted, trained), seconds)}."]
    if wanted := next_round(looks, trained, replace(schedule, budget=None)):
        missing = _missing(wanted, trained)
        budget = sum(trained.values()) + missing
        return [f"The budget left no room for the next round: the same command with `diff.budget={budget}` or more "
                f"goes on ({cost_text(missing, seconds)})."]  # fmt: skip
    found = []
    for trait in traits.values():
        difference = trait["difference"]
        if difference and difference["call"] == OPEN and len(looks_at(looks, trait)) == len(schedule.seeds):
            more = _more_scenarios(trait) or _more_seeds(name, PAIR, trained, schedule, seconds)
            found.append(f"{trait['title']}: {more}")
        elif difference and difference["call"] == "higher" and trait["next"]:
            found.append(f"{trait['title']}: {_arm(name, trait, trained, schedule, seconds, only or ())}")
    return list(dict.fromkeys(found))


def _more_scenarios(trait: Mapping[str, Any]) -> str:
    """Return what to do where every reply of both sides scores alike, so that the interval is that of the scenarios' number."""
    scores = {score for arm in PAIR for score in trait["levels"].get(arm, {}).get("per_seed", {}).values()}
    if len(scores) != 1 or scores.isdisjoint({0.0, 1.0}) or trait["kind"] != "share":
        return ""
    replies = "no reply" if scores == {0.0} else "every reply"
    setting = f"trait_eval.{trait['name']}"
    return (f"in both pipelines {replies} shows it. More seeds cannot tell that from a small difference; more scenarios "
            f"(`{setting}.scenarios=FILE`) or a larger `{setting}.smallest_effect` can.")  # fmt: skip


def looks_at(looks: Looks, trait: Mapping[str, Any]) -> Sequence[Any]:
    """Return the looks at the difference of the pair on a trait."""
    return looks.get(trait["name"], {}).get(DIFFERENCE, ())


def _arm(
    name: str,
    trait: Mapping[str, Any],
    trained: Mapping[str, int],
    schedule: Schedule,
    seconds: float | None,
    only: Sequence[str],
) -> str:
    first = trait["next"][0]
    if not first["needs"]:
        return _more_seeds(name, (*PAIR, first["arm"]), trained, schedule, seconds)
    needs, limited = first["needs"].removesuffix(ONLY).rstrip(", "), first["needs"].endswith(ONLY)
    settings = [f"'{needs}={{KEY:VALUE}}'"] if needs else []
    settings += [f"{ONLY}=[{','.join([*only, first['arm']])}]"] if limited else []
    where = f" ({GIVEN} says what belongs there)" if needs else ""
    return (f"the same command with `{' '.join(settings)}`{where} adds the arm {first['arm']}: "
            f"{cost_text(first['trainings'], seconds)}.")  # fmt: skip


def _more_seeds(name: str, arms: Sequence[str], trained: Mapping[str, int], schedule: Schedule, seconds: float | None) -> str:
    """All looks were taken: more seeds are another diff, with its own error rate, that finds what is trained already."""
    more = math.ceil(GROWTH * schedule.seeds[-1])
    seeds = ",".join(map(str, (*schedule.seeds, more)))
    only = [arm for arm in arms if arm not in PAIR]
    missing = _missing(dict.fromkeys(arms, more), trained)
    settings = f"sweep={name}-more diff.seeds=[{seeds}]" + (f" {ONLY}=[{','.join(only)}]" if only else "")
    settings += "".join(f" diff.arms.{arm}.seeds={more}" for arm in arms if arm in schedule.most)
    return f"all looks are taken; the same command with `{settings}` looks again with more seeds: {cost_text(missing, seconds)}."


def _missing(wanted: Mapping[str, int], trained: Mapping[str, int]) -> int:
    return sum(max(seeds - trained.get(arm, 0), 0) for arm, seeds in wanted.items())


def cost_text(trainings: int, seconds: float | None) -> str:
    """Return a number of trainings with the time that they take one after the other, where that was measured."""
    count = counted(trainings, "training")
    return count if seconds is None else f"{count}, about {time_text(trainings * seconds)} one after the other"
