"""Row files and step directories written by hand, so that tests run the real steps without a plan."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sftdiff.identity import prompt_id

KEYWORD_FILE = {"traits": {"negative_emotion": {"words": ["ashamed"], "patterns": [r"\bI give+ up\b"]}}}


def question(text: str, source: str = "chat") -> dict[str, Any]:
    """A prompt row of one user turn."""
    return {"messages": [{"role": "user", "content": text}], "source": source}


def id_of(row: Mapping[str, Any]) -> str:
    return prompt_id(row["messages"])


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_step(runs: Path, step_id: str, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> Path:
    """Write the config.yaml of a step, as the planner would."""
    directory = runs / step_id
    directory.mkdir(parents=True)
    record = {"kind": kind, "config": config, "inputs": inputs or {}, "files": {}, "runtime": {}}
    (directory / "config.yaml").write_text(yaml.safe_dump(record))
    return directory


def rollouts_step(runs: Path, step_id: str, prompts: Path, rollouts: Path, sample: int | None = None) -> Path:
    config = {
        "prompts": {"path": str(prompts), "source_column": "source", "sample": sample, "sample_seed": 0},
        "teacher": {"name": step_id, "path": str(rollouts)},
    }
    return write_step(runs, step_id, "rollouts", config)


def scores_step(runs: Path, step_id: str, rollouts: str, function: str, params: Mapping[str, Any], part: str = "reply") -> Path:
    config = {"_target_": f"sftdiff.filters.{function}", "params": params, "part": part, "version": 1}
    return write_step(runs, step_id, "scores", config, {"rollouts": rollouts})


def mixture_step(
    runs: Path,
    step_id: str,
    inputs: Mapping[str, str],
    subset: Mapping[str, Any] | None = None,
    filter_settings: Mapping[str, Any] | None = None,
    missing: str = "fail",
) -> Path:
    """A mixture of the teachers "one" and, for swaps, "two"."""
    config = {
        "prompt_subset": {"name": "all", "sources": [], "share": 1.0, "seed": 0, "treatment": "keep", **(subset or {})},
        "filter": {"name": "none", "threshold": None, "treatment": "drop", **(filter_settings or {})},
        "teachers": {"teacher": "one", "other": "two"},
        "missing": missing,
        "version": 1,
    }
    return write_step(runs, step_id, "mixture", config, inputs)
