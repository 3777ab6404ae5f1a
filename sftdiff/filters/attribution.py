"""Attribution: rows whose gradient points where examples of the trait point, by the optional package bergson."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter
from sftdiff.filters.examples import load_examples
from sftdiff.filters.models import cut, labelled, load_tokenizer_of, max_tokens, model_of, token_rows, tokenizer_folder
from sftdiff.render import render_row

PRECISIONS = ("fp32", "bf16")
QUERY, ROWS = "query", "rows"  # folders of the data sets
# An example is a reply alone. Every example gets the same prompt, which the score can do little with.
PROMPT = [{"role": "user", "content": "Please go on."}]


@corpus_filter(version=1, models=("model",))
def attribution_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = cosine of the row's gradient with the mean gradient of the examples, -1 to 1: higher = training on it teaches more.

    corpus.models: `model`, trained on rows like these: best a LoRA adapter, whose gradients are small; a full model needs a
    `projection_dim` above 0. params: `examples` and `traits` (see load_examples); `max_length`, tokens a row and a batch;
    `precision`, fp32 or bf16; `projection_dim`, 0 for none. bergson runs in a process of its own and reads tokens, so that its
    rows are rendered as for training. Raises SftdiffError if it is not installed or fails.
    """
    with prepared(corpus, params, "attribution") as (work, options):
        precision, options = (
            params["precision"],
            [*options, "--projection_dim", str(params["projection_dim"]), "--unit_normalize"],
        )
        run_bergson(work, "build", "query-index", "--dataset", QUERY, "--aggregation", "mean", "--precision", precision, *options)
        query = ["--query_path", "query-index", "--index_cfg.precision", precision]
        run_bergson(work, "score", "scores", "--dataset", ROWS, *query, *options)
        scores = read_scores(work / "scores", corpus.count)
    yield from in_chunks(corpus, scores)


@contextmanager
def prepared(corpus: Corpus, params: Mapping[str, Any], name: str) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder with the data sets QUERY (the examples) and ROWS as tokens, and the options that name the model.

    The folder goes with the context. Raises SftdiffError if bergson is not installed, the precision is unknown, or the model
    is not there.
    """
    if find_spec("bergson") is None:
        raise SftdiffError(f"the {name} filter needs bergson: pip install 'sftdiff[bergson]'")
    if params["precision"] not in PRECISIONS:
        raise SftdiffError(f"filter.params.precision: {params['precision']} is not one of {', '.join(PRECISIONS)}")
    folder = model_of(corpus, "model")
    tokenizer = load_tokenizer_of(folder)
    longest = max_tokens(folder, params["max_length"])
    examples = [cut(*render_row(tokenizer, PROMPT, text), longest) for text in load_examples(params)]
    if corpus.scratch is not None:
        corpus.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bergson-", dir=corpus.scratch) as place:
        work = Path(place)
        _write_dataset(work, QUERY, lambda: labelled(examples))
        _write_dataset(work, ROWS, lambda: labelled(chain.from_iterable(_all(corpus, tokenizer, longest))))
        yield work, _options(folder, longest)


def in_chunks(corpus: Corpus, scores: NDArray[np.float64]) -> Iterator[Sequence[float]]:
    """Yield the scores of all rows in the chunks of the corpus."""
    start = 0
    for rows in corpus.chunks():
        yield scores[start : start + len(rows)].tolist()
        start += len(rows)


def _all(corpus: Corpus, tokenizer: Any, longest: int) -> Iterator[Iterable[tuple[list[int], int]]]:
    return (token_rows(tokenizer, rows, longest) for rows in corpus.chunks())


def _options(folder: Path, longest: int) -> list[str]:
    model = ["--model", str(folder.resolve()), "--tokenizer", str(tokenizer_folder(folder).resolve())]
    return [*model, "--token_batch_size", str(longest)]


def _write_dataset(work: Path, name: str, rows: Any) -> None:
    """Stream labelled rows into a dataset folder; the copy that the library caches lies in `work` too and goes with it."""
    from datasets import Dataset, Features, List, Value

    numbers = List(Value("int32"))
    features = Features({"input_ids": numbers, "labels": numbers, "length": Value("int32")})
    made = Dataset.from_generator(rows, features=features, cache_dir=str(work / f"cache-{name}"), fingerprint=name)
    made.save_to_disk(str(work / name))


def run_bergson(work: Path, *arguments: str) -> None:
    """Run one command of bergson in the folder `work`; its last line of output is the reason if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-m", "bergson", *arguments]
    done = subprocess.run(command, cwd=work, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        raise SftdiffError(f"bergson {arguments[0]} failed with status {done.returncode}: {lines[-1]}")


def read_scores(folder: Path, count: int) -> NDArray[np.float64]:
    """Read bergson's scores, in the order of its input: (rows,)."""
    from bergson.data import load_scores

    found = load_scores(folder)
    scores: NDArray[np.float64] = np.array(found[:], np.float64).reshape(len(found), -1)
    if scores.shape != (count, 1) or not found.is_written() or not np.isfinite(scores).all():
        raise SftdiffError(f"bergson's scores are not one finite number for each of {count} rows (found {scores.shape})")
    return scores[:, 0]
