"""Row files and step directories written by hand, so that tests run the real steps without a plan."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from sftdiff.config import PromptsConfig, TeacherConfig, defaults_of
from sftdiff.identity import prompt_id
from sftdiff.records import read_json
from sftdiff.steps import run_step

KEYWORD_FILE = {"traits": {"negative_emotion": {"words": ["ashamed"], "patterns": [r"\bI give+ up\b"]}}}
KEYWORD = "sftdiff.filters.keyword.keyword_scores"
FILTER = {"treatment": "drop", "threshold": None, "top": None}


def question(text: str, source: str = "chat") -> dict[str, Any]:
    """A prompt row of one user turn."""
    return {"messages": [{"role": "user", "content": text}], "source": source}


def id_of(row: Mapping[str, Any]) -> str:
    return prompt_id(row["messages"])


def text_of(row: Mapping[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_step(runs: Path, step_id: str, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> Path:
    """Write the config.yaml of a step, as the planner would."""
    directory = runs / step_id
    directory.mkdir(parents=True)
    record = {"kind": kind, "config": config, "inputs": dict(inputs or {}), "files": {}, "runtime": {}}
    (directory / "config.yaml").write_text(yaml.safe_dump(record))
    return directory


def prompts_config(path: Path | str | None, **settings: Any) -> dict[str, Any]:
    """The settings of a prompt set; keywords are those of conf/prompts that differ from the schema's defaults."""
    known = defaults_of(PromptsConfig)
    assert set(settings) <= set(known)
    return known | {"name": "mine", "path": path and str(path)} | settings


def teacher_config(path: Path | str | None, **settings: Any) -> dict[str, Any]:
    """The settings of a teacher whose rollouts are stored; keywords are those of conf/teacher."""
    known = {k: v for k, v in defaults_of(TeacherConfig).items() if k not in ("model", "generation")}
    assert set(settings) <= set(known)
    return known | {"name": "mine", "origin": "stored", "path": path and str(path)} | settings


def prompts_step(runs: Path, step_id: str, path: Path, **settings: Any) -> Path:
    return write_step(runs, step_id, "prompts", prompts_config(path, **settings) | {"version": 1})


def rollouts_step(runs: Path, step_id: str, prompts: str, path: Path, **settings: Any) -> Path:
    config = {"teacher": teacher_config(path, **settings), "version": 1}
    return write_step(runs, step_id, "rollouts", config, {"prompts": prompts})


def scores_step(
    runs: Path, step_id: str, prompts: str, rollouts: str, target: str, params: Mapping[str, Any], part: str = "reply"
) -> Path:
    config = {"_target_": target, "params": dict(params), "part": part, "version": 1, "folders": {}, "sample": 0}
    return write_step(runs, step_id, "scores", config, {"prompts": prompts, "rollouts": rollouts})


def mixture_step(
    runs: Path,
    step_id: str,
    inputs: Mapping[str, str],
    subset: Mapping[str, Any] | None = None,
    filters: Sequence[Mapping[str, Any]] = (),
    missing: str = "fail",
) -> Path:
    """A mixture of the teachers "one" and, for swaps, "two"."""
    config = {
        "prompt_subset": {"name": "all", "treatment": "keep", **(subset or {})},
        "filters": [FILTER | dict(settings) for settings in filters],
        "teachers": {"teacher": "one", "other": "two"},
        "samples": {"teacher": 0, "other": 0},
        "missing": missing,
        "version": 2,
    }
    return write_step(runs, step_id, "mixture", config, inputs)


def made(directory: Path) -> Path:
    """Run a step that must end as done."""
    assert run_step(directory) == "done", failure(directory)
    return directory


def failure(directory: Path) -> str:
    """Return why a step failed."""
    path = directory / "FAILED"
    return str(read_json(path)["error"]) if path.exists() else ""


def manifest_of(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a mixture's manifest, by prompt_id."""
    rows = pq.read_table(directory / "manifest.parquet").to_pylist()
    found = {row["prompt_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


FOUR = [question(f"question {n}") for n in range(4)]


def write_rollouts(folder: Path, reply: str = "reply") -> Path:
    """Write a rollout for each of the FOUR prompts."""
    rows = [{"prompt_id": id_of(p), "completion": f"{reply} to {id_of(p)}"} for p in FOUR]
    return write_jsonl(folder / "rollouts.jsonl", rows)


def small_step(folder: Path) -> Path:
    """A rollouts step over the FOUR prompts that was not run yet; the prompts step that it reads is done."""
    made(prompts_step(folder / "runs", "prompts-a", write_jsonl(folder / "prompts.jsonl", FOUR)))
    return rollouts_step(folder / "runs", "rollouts-a", "prompts-a", write_rollouts(folder))


def tree(directory: Path) -> dict[str, int]:
    """Return when each file below a directory was changed."""
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.rglob("*")}
