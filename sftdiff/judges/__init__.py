"""Judges of replies: a trait's rule scorer, or a model that is asked the trait's rubric.

`judge_items(items, judge, trait_name, trait, journal)` returns a verdict for each reply; `judge` and `trait` are the resolved
configs. The states are kept apart: only `ok` has a value, and a judge that fails is never a 0.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.judges.questions import PROMPT_VERSION, Rubric, rubric_for
from sftdiff.traits import Scenario, load_scorer

OnProgress = Callable[[int], None]  # is told how many replies are judged


@dataclass(frozen=True)
class Item:
    """One reply to be judged. key: (scenario id, sample, turn), or a row's id."""

    key: tuple[str | int, ...]
    scenario: Scenario
    prompt: str  # the user's turn
    reply: str


@dataclass(frozen=True)
class Judged:
    """What the judge says of one reply. state: ok | invalid (answered, but it does not count) | error (no answer)."""

    state: str
    value: float | None = None  # of ok alone
    label: str = ""
    evidence: str = ""
    reason: str = ""
    error: str = ""  # why not ok; of ok: why there is no verdict on the deliberation
    raw: str = ""  # a judge model's raw answer
    deliberation: float | None = None
    rule_value: float | None = None  # the rule scorer's verdict beside a judge model's
    rule_label: str = ""


def uses_rules(judge: Mapping[str, Any], trait: Mapping[str, Any]) -> bool:
    """Whether a rule scorer judges the trait: a guard's answers are right or wrong, whoever judges the traits."""
    return judge["provider"] == "rules" or bool(trait["guard"])


def judge_identity(judge: Mapping[str, Any], trait_name: str, trait: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a verdict, with `judge` and `rubric` as they are shown. Imports no torch.

    Raise SftdiffError for a trait that this judge cannot judge.
    """
    scorer = trait["_target_"]
    if uses_rules(judge, trait) and not scorer:
        raise SftdiffError(f"trait {trait_name} has no rule scorer: choose judge=openai|local|anthropic|google, or give it a "
                           f"_target_: trait_eval.{trait_name}._target_=module.function")  # fmt: skip
    rules = {"scorer": scorer, "version": load_scorer(scorer)[1] if scorer else None}
    if uses_rules(judge, trait):
        return {"judge": "rules", "rubric": f"rules {rules['version']}", "kind": trait["kind"], **rules}
    rubric = rubric_for(judge["rubrics"], trait_name, trait)
    name = f"{judge['provider']}:{judge['model']['id']}"
    return {"judge": name, "rubric": rubric.name, "asked": asked_of(judge, rubric), "part": trait["part"], **rules}


def asked_of(judge: Mapping[str, Any], rubric: Rubric) -> dict[str, Any]:
    """Return what is asked, of whom and how: with the texts it decides a judge model's answer."""
    model = {k: judge["model"][k] for k in ("id", "revision", "extra")}
    own = {k: judge[k] for k in ("provider", "max_tokens", "max_characters")}
    precision = {"precision": judge["precision"]} if judge["provider"] == "local" else {}
    return own | precision | {"model": model, "prompt": PROMPT_VERSION, "questions": rubric.content()}


def asked_digest(judge: Mapping[str, Any], trait_name: str, trait: Mapping[str, Any]) -> str | None:
    """Return the name of the folder in which answers to these questions are kept; None where no model is asked."""
    asked = judge_identity(judge, trait_name, trait).get("asked")
    return asked and digest(canonical(asked), 16)


def cost_of(judge: Mapping[str, Any], trait: Mapping[str, Any], journal: Path) -> float | None:
    """Return the dollars that the answers in a step's own journal cost; None where no prices are known or no model is asked."""
    if uses_rules(judge, trait) or judge["provider"] == "local" or judge["model"]["price_in"] is None:
        return None
    from sftdiff.journal import Journal
    from sftdiff.judges.model import settings_of
    from sftdiff.judges.paid import spent_by

    with Journal(journal) as paid:
        return spent_by(paid, settings_of(judge))


def judge_items(
    items: Sequence[Item],
    judge: Mapping[str, Any],
    trait_name: str,
    trait: Mapping[str, Any],
    journal: Path,
    others: Sequence[Path] = (),
    on_progress: OnProgress = lambda done: None,
) -> list[Judged]:
    """Judge every item, in order. A judge model's answers go to `journal`; those that `others` hold are not asked for again.

    Raise SftdiffError above judge.max_error_share: what was answered is kept, and the same call goes on.
    """
    judge_identity(judge, trait_name, trait)
    if uses_rules(judge, trait):
        from sftdiff.judges.rules import judge_by_rules

        judged = judge_by_rules(items, trait, on_progress)
    else:
        from sftdiff.judges.model import judge_by_model

        judged = judge_by_model(items, judge, trait_name, trait, journal, others, on_progress)
    check_share(Counter(j.error for j in judged if j.error), len(judged), judge["max_error_share"], journal)
    return judged


def check_share(
    failures: Counter[str], items: int, most: float, journal: Path, what: str = "replies", section: str = "judge"
) -> None:
    """Raise SftdiffError if too many replies (or rows) have no verdict, with the commonest reason and the way on."""
    failed = failures.total()
    if failed > most * items:
        reason, count = failures.most_common(1)[0]
        raise SftdiffError(
            f"the judge gave no verdict for {failed} of {items} {what}, more than {section}.max_error_share={most:g}; most often "
            f"({count}): {reason}. What was answered is kept in {journal}: the same command asks again where no answer came; "
            "answers that do not count stay, since they would come back: take another judge, or a larger "
            f"{section}.max_error_share="
        )
