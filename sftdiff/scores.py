"""The scores step: one filter's or locator's score for each row that has a rollout. A threshold is no part of it."""

import json
import multiprocessing
import os
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError, first_line
from sftdiff.files import read_table
from sftdiff.filters import load_filter
from sftdiff.prompts import load_index
from sftdiff.records import read_json
from sftdiff.sorting import texts_of
from sftdiff.students import load_student
from sftdiff.teachers import rollouts_file

SCORE_SCHEMA = pa.schema([("prompt_id", pa.string()), ("score", pa.float64())])
SMALL = 20_000  # rows that one process scores in less time than others take to start
Scores = np.ndarray[Any, np.dtype[np.float64]]


def run_scores(step: Any) -> dict[str, Any]:
    """Write scores.parquet: a row a prompt, in the order of the prompt_ids, without a score where there is no rollout."""
    config, scratch = step.config, step.directory / "checkpoints"
    scratch.mkdir(exist_ok=True)
    prompts = step.input("prompts")
    models = {name: Path(folder) for name, folder in config["folders"].items()}
    models |= {name: load_student(step.input(name))[0] for name in ("model", "reference") if name in step.record.inputs}
    rollouts = rollouts_file(step.input("rollouts"), config["sample"])
    corpus = Corpus(prompts / "prompts.parquet", rollouts, config["part"], models, scratch)
    values = np.full(len(corpus.has_rollout), np.nan)
    values[corpus.has_rollout] = _collect(step, corpus, config)
    table = pa.table([texts_of(load_index(prompts).ids), pa.array(values, from_pandas=True)], schema=SCORE_SCHEMA)
    pa.parquet.write_table(table, step.directory / "scores.parquet", compression="zstd")
    held_out = scratch / "held_out.json"
    facts = {"held_out": read_json(held_out)} if held_out.exists() else {}
    return {"rows": corpus.count, "scored": int((~np.isnan(values)).sum()), "above_zero": int((values > 0).sum())} | facts


def _collect(step: Any, corpus: Corpus, config: Mapping[str, Any]) -> Scores:
    """Return the scores of all rows with a rollout: (rows,)."""
    parts, done = list[Scores](), 0
    params = step.record.runtime.get("params") or config["params"]
    try:
        for part in score_chunks(corpus, config["_target_"], params):
            parts.append(np.asarray(part, np.float64))
            done += len(part)
            step.progress(done, corpus.count, "rows")
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # of a filter that was given what it cannot use
        traceback.print_exc()  # into the step's log
        reason = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {first_line(error)}"
        raise SftdiffError(f"filter {config['_target_']} failed ({reason}): look at filter.params") from None
    if done != corpus.count:
        raise SftdiffError(f"filter {config['_target_']} gave {done} scores for {corpus.count} rows")
    return np.concatenate(parts) if parts else np.empty(0)


def score_chunks(corpus: Corpus, target: str, params: Mapping[str, Any], workers: int | None = None) -> Iterator[Any]:
    """Yield the scores of all rows with a rollout, in their order, in chunks.

    A filter that looks at one row at a time runs in `workers` processes (None: as many as there are cores, one for a small set).
    """
    function, _, kind = load_filter(target)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if corpus.count > SMALL else 1
    if kind == "corpus_filter":
        yield from function(corpus, params)
    elif workers == 1:
        yield from (function(rows, params) for rows in corpus.chunks())
    else:
        yield from _in_processes(corpus, target, params, workers)


def _in_processes(corpus: Corpus, target: str, params: Mapping[str, Any], workers: int) -> Iterator[Scores]:
    # Spawned: a worker that has torch's threads must not be forked.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[Scores]] = deque()
        for number in range(corpus.groups):
            waiting.append(pool.submit(_score_group, corpus, number, target, json.dumps(params)))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _score_group(corpus: Corpus, number: int, target: str, params: str) -> Scores:
    function, _, _ = load_filter(target)
    return np.asarray(function(corpus.group(number), json.loads(params)), np.float64)


def load_scores(directory: Path) -> Scores:
    """Return the scores of a scores step, one a prompt, NaN where there is none."""
    return np.asarray(read_table(directory / "scores.parquet", ["score"])["score"].to_numpy(), np.float64)
