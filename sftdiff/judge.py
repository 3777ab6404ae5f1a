"""The judge step: a verdict on every sampled reply. Sampling is not repeated, so old replies can be judged again.

Health is counted beside the trait: replies that were cut, empty, or loops.
"""

from typing import Any

import pyarrow as pa
from inspect_ai import score as inspect_score
from inspect_ai.log import EvalLog, read_eval_log, write_eval_log

from sftdiff.backend import quiet_inspect
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table, write_rows
from sftdiff.sample import REPLY_SCHEMA
from sftdiff.steps import Step
from sftdiff.traits import load_scorer, load_trait
from sftdiff.traits.rules import is_loop
from sftdiff.traits.tasks import trait_rules

VERDICT_SCHEMA = pa.schema(
    [
        *REPLY_SCHEMA,
        ("value", pa.float64()),
        ("label", pa.string()),
        ("evidence", pa.string()),
        ("state", pa.string()),  # ok | invalid | error
        ("empty", pa.bool_()),
        ("loop", pa.bool_()),
    ]
)


def run_judge(step: Step) -> dict[str, Any]:
    """Score the log of a sample step and write verdicts.parquet."""
    sampled = step.input("sample")
    config = step.config
    trait = load_trait(config["trait"], config["suite"], config["scenarios"])
    scorer, _ = load_scorer(config["scorer"])
    logs = list((sampled / "inspect").glob("*.eval"))
    if len(logs) != 1:
        raise SftdiffError(f"{sampled}/inspect should hold one Inspect log, and holds {len(logs)}")
    with quiet_inspect():
        rules = trait_rules({s.id: s for s in (*trait.scenarios, *trait.controls)}, scorer)
        log = inspect_score(read_eval_log(str(logs[0])), rules, action="overwrite", display="none")
        (step.directory / "inspect").mkdir(exist_ok=True)
        write_eval_log(log, str(step.directory / "inspect" / logs[0].name))
    verdicts = _verdicts(log)
    rows = []
    for row in read_table(sampled / "replies.parquet").to_pylist():
        verdict = verdicts[row["scenario"], row["sample"], row["turn"]]
        # Evidence that the reply does not contain would be an invention of the judge: such a verdict does not count.
        state = "ok" if verdict["evidence"] in row["reply"] else "invalid"
        rows.append(row | verdict | {"state": state, "empty": not row["reply"].strip(), "loop": is_loop(row["reply"])})
    write_rows(step.directory / "verdicts.parquet", rows, VERDICT_SCHEMA)
    count = len(rows)
    return {
        "replies": count,
        "mean": sum(r["value"] for r in rows) / count,
        "cut_share": sum(r["cut"] for r in rows) / count,
        "loop_share": sum(r["loop"] for r in rows) / count,
        "empty_share": sum(r["empty"] for r in rows) / count,
    }


def _verdicts(log: EvalLog) -> dict[tuple[str, int, int], dict[str, Any]]:
    found = {}
    for sample in log.samples or []:
        for score in (sample.scores or {}).values():
            for turn, verdict in enumerate((score.metadata or {})["replies"]):
                found[str(sample.id), sample.epoch, turn] = verdict
    return found
