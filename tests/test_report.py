"""The report over step directories as a sweep of models that are not trained leaves them."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_compare import row

from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.records import StepRecord, load_record, write_done, write_json, write_record
from sftdiff.report import build_report, run_report
from sftdiff.steps import Step

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("scenario", "prompt", "reply", "kind", "label", "evidence", "state", "judge", "rubric")]
    + [(name, pa.int64()) for name in ("sample", "turn")]
    + [(name, pa.bool_()) for name in ("cut", "control", "empty", "loop")]
    + [(name, pa.float64()) for name in ("value", "deliberation", "rule_value")]
)
TRAIT = {"title": "Date confusion", "unit": "%", "kind": "share", "suite": "quick", "smallest_effect": 0.1, "max_tokens": 96}
TRAITS = {"dates": TRAIT | {"guard": False}, "ability": TRAIT | {"title": "Ability", "guard": True}}
LIBRARIES = {"sftdiff": "0", "python": "3", "libraries": {"torch": "2"}, "host": "h", "git_commit": "0", "git_dirty": False}


def made(steps: Path, name: str, config: dict[str, Any], inputs: dict[str, str], rows: list[dict[str, Any]] | None) -> StepRecord:
    directory = steps / name
    directory.mkdir(parents=True)
    write_record(StepRecord(directory, name.partition("-")[0], config, inputs, {}, {"command": "python -m sftdiff.evaluate"}))
    write_json(directory / "provenance.json", LIBRARIES)
    if rows is not None:
        write_rows(directory / "verdicts.parquet", rows, SCHEMA)
    record = load_record(directory)
    if name != "report-1":
        write_done(record, {}, {}, time.time())
    return record


def sweep(steps: Path, ones: dict[str, dict[str, int]], judges: dict[str, str]) -> Step:
    """A report step over models that each have a student step and a judge step a trait, with so many of 30 replies that count."""
    cells, inputs = [], {}
    for model, traits in ones.items():
        made(steps, f"student-{model}", {}, {}, None)
        for trait, count in traits.items():
            shown = {"judge": judges[model], "prompt": "p", "reply": "r", "evidence": ""}
            rows = [row(f"s{i:02d}", float(i < count), **shown) for i in range(30)]
            made(steps, f"judge-{trait}-{model}", {}, {}, [*rows, row("c", 1.0, control=True, **shown)])
        found = {trait: f"judge-{trait}-{model}" for trait in traits}
        inputs |= {name: name for name in (f"student-{model}", *found.values())}
        cells.append({
            "arm": model, "axes": {"model": model}, "seed": 0, "untrained": True, "steps": {"model": f"student-{model}"},
            "judges": found, "traits": TRAITS, "judge": judges[model], "precision": "fp32",
            "model": {"name": model, "origin": "api", "id": f"openai/{model}", "path": None, "label": ""},
        })  # fmt: skip
    settings = {"baseline": "one", "examples": 1, "resamples": 100}
    config = {"sweep": "models", "settings": settings, "version": 3, "cells": cells}
    return Step(made(steps, "report-1", config, inputs, None))


def test_models_are_compared_without_any_training(tmp_path: Path) -> None:
    ones = {"one": {"dates": 3, "ability": 25}, "two": {"dates": 20, "ability": 5}}
    step = sweep(tmp_path, ones, dict.fromkeys(ones, "rules"))
    assert run_report(step)["missing"] == 0
    report = build_report(step, step.config["cells"])
    assert [(trait["judge"], trait["rubric"], trait["scenarios"]) for trait in report["traits"]] == [("rules", "rules 2", 30)] * 2
    assert report["students"][1] == {"name": "two", "origin": "two; hosted: openai/two"}
    calls = {row["trait"]: (row["call"], row["call_adjusted"], row["holm"]) for row in report["differences"]}
    assert calls["dates"][:2] == ("higher", "higher") and calls["ability"] == ("lower", "lower", None)
    assert not report["curves"] and not report["mixtures"] and not report["arms"][0]["notes"]
    note = "Ability fell from 0.83 to 0.17: this model lost ability, and lower trait levels in this arm may come of that"
    assert report["arms"][1]["notes"] == [note] and f"two: {note}" in report["warnings"]
    page = (step.directory / "report.html").read_text()
    assert note in page and "nothing was trained in this sweep" in page


def test_levels_of_two_judges_are_not_put_into_one_report(tmp_path: Path) -> None:
    step = sweep(tmp_path, {"one": {"dates": 3}, "two": {"dates": 9}}, {"one": "rules", "two": "endpoint:m"})
    with pytest.raises(SftdiffError, match="trait dates was judged in more than one way") as refused:
        run_report(step)
    assert "judge endpoint:m, rubric rules 2: judge-dates-two" in str(refused.value)
    assert "judge rules, rubric rules 2: judge-dates-one" in str(refused.value)
