"""The judge step: a verdict on every sampled reply. Sampling is not repeated, so old replies can be judged again.

Health is counted beside the trait: replies that were cut, empty, or loops.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from inspect_ai import score as inspect_score
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import TaskState

from sftdiff.backend import quiet_inspect
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table, write_rows
from sftdiff.judges import Item, Judged, asked_digest, cost_of, judge_identity, judge_items
from sftdiff.pace import Pace
from sftdiff.replies import REPLY_SCHEMA
from sftdiff.steps import Step
from sftdiff.traits import load_trait
from sftdiff.traits.rules import is_loop

VERDICT_SCHEMA = pa.schema(
    [
        *REPLY_SCHEMA,
        ("kind", pa.string()),  # of the scenario
        ("control", pa.bool_()),  # such rows are no part of a trait's level
        ("value", pa.float64()),
        ("label", pa.string()),
        ("evidence", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("raw", pa.string()),
        ("deliberation", pa.float64()),
        ("rule_value", pa.float64()),
        ("rule_label", pa.string()),
        ("state", pa.string()),  # ok | invalid | error
        ("judge", pa.string()),
        ("rubric", pa.string()),
        ("empty", pa.bool_()),
        ("loop", pa.bool_()),
    ]
)
Key = tuple[str, int, int]  # (scenario, sample, turn)


def run_judge(step: Step) -> dict[str, Any]:
    """Judge the replies of a sample step: verdicts.parquet, and the Inspect log with the scores."""
    sampled, config = step.input("sample"), step.config
    judge, settings = step.record.runtime["judge"], step.record.runtime["trait"]
    identity = judge_identity(judge, config["trait"], settings)
    if changed := [key for key, value in identity.items() if config[key] != value]:
        raise SftdiffError(f"{', '.join(changed)} changed after this step was planned: run the same command again to plan anew")
    trait = load_trait(config["trait"], config["suite"], config["scenarios"])
    scenarios = {s.id: s for s in (*trait.scenarios, *trait.controls)}
    rows = read_table(sampled / "replies.parquet").to_pylist()
    if unknown := {row["scenario"] for row in rows} - set(scenarios):
        raise SftdiffError(f"{sampled}: the scenarios {', '.join(sorted(unknown))} are not those of trait {trait.name}")
    items = [Item(_key(row), scenarios[row["scenario"]], row["prompt"], row["reply"]) for row in rows]
    journal, others = _journals(step, asked_digest(judge, trait.name, settings))
    pace = Pace(step.progress, len(items), None)
    judged = judge_items(items, judge, trait.name, settings, journal, others, pace.reach)
    shown = {key: config[key] for key in ("judge", "rubric")}
    rows = [_verdict(item, row, verdict) | shown for item, row, verdict in zip(items, rows, judged, strict=True)]
    write_rows(step.directory / "verdicts.parquet", rows, VERDICT_SCHEMA)
    _write_log(step, sampled, {_key(row): verdict for row, verdict in zip(rows, judged, strict=True)})
    dollars = cost_of(judge, settings, journal)
    return _summary(rows) | ({} if dollars is None else {"dollars": dollars})


def _key(row: Mapping[str, Any]) -> Key:
    return row["scenario"], row["sample"], row["turn"]


def _verdict(item: Item, row: Mapping[str, Any], verdict: Judged) -> dict[str, Any]:
    health = {"empty": not row["reply"].strip(), "loop": is_loop(row["reply"])}
    return {**row, **vars(verdict), **health, "kind": item.scenario.kind, "control": item.scenario.control}


def _journals(step: Step, asked: str | None) -> tuple[Path, list[Path]]:
    """Return the step's own journal, and those of all steps whose judge is asked the same.

    They lie outside of the step: they outlive it, and an answer to one step serves the next.
    """
    folder = step.directory.parent.parent / "judged" / (asked or "rules")
    own = folder / f"{step.record.id}.jsonl"
    return own, sorted(path for path in folder.glob("*.jsonl") if path != own)


def _write_log(step: Step, sampled: Path, verdicts: Mapping[Key, Judged]) -> None:
    logs = list((sampled / "inspect").glob("*.eval"))
    if len(logs) != 1:
        raise SftdiffError(f"{sampled}/inspect should hold one Inspect log, and holds {len(logs)}")
    with quiet_inspect():
        # Without model="none" Inspect would build the model that was sampled, for which a hosted one needs its key.
        scores = recorded_verdicts(verdicts)
        log = inspect_score(read_eval_log(str(logs[0])), scores, action="overwrite", display="none", model="none")
        (step.directory / "inspect").mkdir(exist_ok=True)
        write_eval_log(log, str(step.directory / "inspect" / logs[0].name))


@scorer(metrics=[mean()], name="trait_judge")
def recorded_verdicts(verdicts: Mapping[Key, Judged]) -> Scorer:
    """Give each sample its verdicts; its value is the mean over the replies that have one, and it has none where none has."""
    by_sample: dict[tuple[str, int], list[Judged]] = {}
    for key in sorted(verdicts):
        by_sample.setdefault(key[:2], []).append(verdicts[key])

    async def score(state: TaskState, target: Target) -> Score:
        found = by_sample[str(state.sample_id), state.epoch]
        shown = "; ".join(v.label if v.state == "ok" else f"{v.state}: {v.error}" for v in found)
        values, facts = _values(found), {"replies": [vars(v) for v in found]}
        if not values:
            return Score.unscored(explanation=shown, metadata=facts)
        return Score(value=sum(values) / len(values), explanation=shown, metadata=facts)

    return score


def _values(verdicts: Sequence[Judged]) -> list[float]:
    return [v.value for v in verdicts if v.value is not None]


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the step is about in numbers; the mean is that of the trait's own scenarios, without the controls."""
    states, own = Counter(row["state"] for row in rows), [row for row in rows if not row["control"]]
    values = [row["value"] for row in own if row["value"] is not None]
    return {
        "replies": len(rows),
        "ok": states["ok"],
        "invalid": states["invalid"],
        "errors": states["error"],
        "mean": sum(values) / len(values) if values else None,
        **{f"{name}_share": sum(row[name] for row in own) / max(len(own), 1) for name in ("cut", "loop", "empty")},
    }
