"""The mixture step: the rows that SFT sees, and the manifest of what happened to each prompt and why."""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.filters import flagged, load_scores
from sftdiff.prompts import MESSAGE, load_prompts, load_rollouts
from sftdiff.records import write_json
from sftdiff.rows import Decision, Prompt, decide, subset_ids, treat

ACTIONS = ("kept", "swapped", "dropped", "error")
MIXTURE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("completion", pa.string()),
        ("teacher", pa.string()),
    ]
)
MANIFEST_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "source", "action", "teacher", "reason")]
)


def run_mixture(step: Any) -> dict[str, Any]:
    """Apply the prompt subset's treatment and the filter's, and write mixture.parquet, manifest.parquet and summary.json."""
    config = step.config
    prompts = load_prompts(step.input("rollouts"))
    completions = {"teacher": load_rollouts(step.input("rollouts")), "other": {}}
    if "other_rollouts" in step.record.inputs:
        completions["other"] = load_rollouts(step.input("other_rollouts"))
    subset = config["prompt_subset"]
    ids = subset_ids(prompts, subset["name"], subset["sources"], subset["share"], subset["seed"])
    assigned = treat([p.prompt_id for p in prompts], ids, subset["treatment"])
    decisions = decide(
        assigned,
        _flagged(step, {i for i, slot in assigned.items() if slot == "teacher"}),
        config["filter"]["name"],
        config["filter"]["treatment"],
        config["teachers"],
        lambda slot, key: key in completions[slot],
    )
    sources = {p.prompt_id: p.source for p in prompts}
    manifest = [{**vars(d), "source": sources[d.prompt_id]} for d in sorted(decisions, key=lambda d: d.prompt_id)]
    write_rows(step.directory / "manifest.parquet", manifest, MANIFEST_SCHEMA)
    summary = summarize(prompts, decisions)
    write_json(step.directory / "summary.json", summary)
    _refuse_missing(decisions, config["missing"])
    rows = _rows(prompts, decisions, completions)
    if not rows:
        raise SftdiffError(
            f"the mixture is empty: of {len(prompts)} prompts none is left after "
            f"prompt_subset={subset['name']} ({subset['treatment']}) and filter={config['filter']['name']}"
        )
    write_rows(step.directory / "mixture.parquet", rows, MIXTURE_SCHEMA)
    return {**summary["totals"], "rows": len(rows)}


def _flagged(step: Any, eligible: set[str]) -> set[str]:
    """Return the flagged rows among those that the subset left to the teacher, so that a matched count is what is treated."""
    if "scores" not in step.record.inputs:
        return set()
    scores, count = _eligible(load_scores(step.input("scores")), eligible), None
    if "match_scores" in step.record.inputs:
        match_scores = _eligible(load_scores(step.input("match_scores")), eligible)
        count = len(flagged(match_scores, step.config["filter"]["match_threshold"], None))
    return flagged(scores, step.config["filter"]["threshold"], count)


def _eligible(scores: dict[str, float], eligible: set[str]) -> dict[str, float]:
    return {key: score for key, score in scores.items() if key in eligible}


def _rows(prompts: list[Prompt], decisions: list[Decision], completions: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    by_id = {p.prompt_id: p for p in prompts}
    rows = []
    for decision in decisions:
        if decision.teacher is None:
            continue
        prompt = by_id[decision.prompt_id]
        slot = "teacher" if decision.action == "kept" else "other"
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "source": prompt.source,
                "messages": [{"role": role, "content": content} for role, content in prompt.messages],
                "completion": completions[slot][prompt.prompt_id],
                "teacher": decision.teacher,
            }
        )
    return sorted(rows, key=lambda row: row["prompt_id"])  # the content hash does not depend on the input's order


def summarize(prompts: list[Prompt], decisions: list[Decision]) -> dict[str, Any]:
    """Count the actions in all and by source; the counts of the four actions add up to the number of prompts."""
    sources = {p.prompt_id: p.source for p in prompts}
    by_source: dict[str, Counter[str]] = defaultdict(Counter)
    for decision in decisions:
        by_source[sources[decision.prompt_id]][decision.action] += 1
    totals = Counter(decision.action for decision in decisions)
    return {
        "totals": {action: totals[action] for action in ACTIONS},
        "by_source": [{"source": s} | {a: c[a] for a in ACTIONS} for s, c in sorted(by_source.items())],
    }


def _refuse_missing(decisions: list[Decision], missing: str) -> None:
    errors = [d for d in decisions if d.action == "error"]
    if errors and missing == "fail":
        raise SftdiffError(
            f"{len(errors)} of {len(decisions)} prompts need a rollout that is missing, e.g. {errors[0].prompt_id}: "
            f"{errors[0].reason}; the manifest lists all; train without them with missing_rollouts=leave_out"
        )
