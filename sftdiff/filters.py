"""Filters: a score for each row. Threshold and treatment belong to the mixture: a threshold is swept without scoring again.

A filter function takes the texts of all rows (by prompt_id) and its params and returns one score a row, higher = more of what the
filter looks for. To add one: write the function with `@filter_function`, and a YAML file under conf/filter/ that names it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import yaml

from sftdiff import plugins
from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import read_table, resolve, write_rows
from sftdiff.identity import unit_interval
from sftdiff.prompts import load_prompts, load_rollouts

SCORE_SCHEMA = pa.schema([("prompt_id", pa.string()), ("score", pa.float64())])
FilterFunction = Callable[[Mapping[str, str], Mapping[str, Any]], dict[str, float]]


def filter_function(version: int) -> Callable[[FilterFunction], FilterFunction]:
    """Mark a function as a filter. Its version is part of the identity of the scores: raise it when results change."""
    return plugins.mark("filter_function", version)


def load_filter(target: str) -> tuple[FilterFunction, int]:
    """Return the filter function that a config's `_target_` names, and its version."""
    return plugins.load(target, "filter_function", "filter._target_:")


@filter_function(version=1)
def keyword_scores(texts: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, float]:
    """Score = number of distinct words and patterns, over the chosen traits' lists, that occur in the row."""
    try:
        lists = yaml.safe_load(resolve(params["lists"]).read_text())["traits"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        message = f"{params['lists']}: not a keyword file with lists under 'traits' ({one_line(error)})"
        raise SftdiffError(message) from None
    matchers = []
    for trait in params["traits"]:
        if trait not in lists:
            raise SftdiffError(f"filter.params.traits: {params['lists']} has no list for {trait}; it has {', '.join(lists)}")
        words = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in lists[trait]["words"]]
        for pattern in words + lists[trait]["patterns"]:
            try:
                matchers.append(re.compile(pattern, re.IGNORECASE))
            except re.error as error:
                raise SftdiffError(f"{params['lists']}: {trait}: pattern {pattern!r} is not valid ({error})") from None
    return {key: float(sum(bool(m.search(text)) for m in matchers)) for key, text in texts.items()}


@filter_function(version=1)
def random_scores(texts: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, float]:
    """Score = a seeded hash of the prompt_id in [0, 1): the control that other filters are measured against."""
    return {key: unit_interval("random filter", params["seed"], key) for key in texts}


def run_scores(step: Any) -> dict[str, Any]:
    """The scores step: one filter's score for each row that has a rollout."""
    rollouts = step.input("rollouts")
    prompts = {p.prompt_id: "\n".join(content for _, content in p.messages) for p in load_prompts(rollouts)}
    texts = {}
    for key, completion in load_rollouts(rollouts).items():
        parts = {"reply": [completion], "prompt": [prompts[key]], "both": [prompts[key], completion]}
        texts[key] = "\n".join(parts[step.config["part"]])
    function, _ = load_filter(step.config["_target_"])
    scores = function(texts, step.config["params"])
    rows = [{"prompt_id": key, "score": score} for key, score in scores.items()]
    write_rows(step.directory / "scores.parquet", rows, SCORE_SCHEMA)
    return {"rows": len(rows), "above_zero": sum(score > 0 for score in scores.values())}


def flagged(scores: Mapping[str, float], threshold: float | None, count: int | None) -> set[str]:
    """Return the flagged prompt_ids: scores of at least `threshold`, or the `count` highest (ties by prompt_id)."""
    if count is not None:
        return set(sorted(scores, key=lambda key: (-scores[key], key))[:count])
    if threshold is None:
        raise SftdiffError("filter.threshold is needed")
    return {key for key, score in scores.items() if score >= threshold}


def load_scores(directory: Any) -> dict[str, float]:
    return {row["prompt_id"]: row["score"] for row in read_table(directory / "scores.parquet").to_pylist()}
