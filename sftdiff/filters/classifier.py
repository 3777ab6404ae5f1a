"""A small classifier of texts: logistic regression on labelled rows, or on examples of a trait against random rows."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.files import read_rows, resolve
from sftdiff.filters import corpus_filter
from sftdiff.filters.examples import load_examples
from sftdiff.filters.vectors import Vectors, embed, load_embedder
from sftdiff.identity import unit_interval
from sftdiff.records import write_json

LEAST = 10  # rows of each label


@corpus_filter(version=1)
def classifier_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = the probability, 0 to 1, that a row is one of label 1.

    params: `labels`, a file of rows {label: 0 or 1} with a `prompt_id` of this corpus or a `text`; null: the `examples` of
    `traits` are label 1, and label 0 are `negatives` random rows of the corpus, some of which may show the trait; `embedder`;
    `c`, the inverse strength of regularisation; `folds`; `seed`. The mean AUROC on held-out folds of these labels is written to
    held_out.json in the corpus's scratch folder. Rows that were trained on are scored by the same model as all others. Raises
    SftdiffError for a malformed or too small set of labels.
    """
    texts, labels = _labelled(corpus, params)
    _enough(params, labels)
    embedder = load_embedder(params["embedder"], corpus)
    vectors = embed(texts, embedder)
    if corpus.scratch is not None:
        report = {"auroc": held_out_auroc(vectors, labels, params), "folds": params["folds"]}
        corpus.scratch.mkdir(parents=True, exist_ok=True)
        counts = {"positives": int(labels.sum()), "negatives": int((1 - labels).sum())}
        write_json(corpus.scratch / "held_out.json", {**report, **counts})
    model = _model(params).fit(vectors, labels)
    for rows in corpus.chunks():
        yield model.predict_proba(embed(rows.texts, embedder))[:, 1].tolist() if len(rows) else []


def held_out_auroc(vectors: Vectors, labels: NDArray[np.int64], params: Mapping[str, Any]) -> float:
    """Return the mean over folds of the AUROC on the rows that the fold's model did not see."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(params["folds"], shuffle=True, random_state=params["seed"])
    return float(cross_val_score(_model(params), vectors, labels, cv=folds, scoring="roc_auc").mean())


def _model(params: Mapping[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params["c"], class_weight="balanced", max_iter=2000)


def _enough(params: Mapping[str, Any], labels: NDArray[np.int64]) -> None:
    if not 2 <= params["folds"] <= LEAST:
        raise SftdiffError(f"filter.params.folds: {params['folds']} is not between 2 and {LEAST}")
    ones, zeros = int(labels.sum()), int((1 - labels).sum())
    if min(ones, zeros) < LEAST:
        name = "labels" if params["labels"] else "examples"
        found = f"{params[name]} gives {ones} rows of label 1 and {zeros} of label 0 here"
        raise SftdiffError(f"filter.params.{name}: {found}; at least {LEAST} of each are needed")


def _labelled(corpus: Corpus, params: Mapping[str, Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the texts to train on and their labels, in an order that does not depend on the corpus's chunks."""
    if params["labels"] is None:
        examples = load_examples(params)
        negatives = _random_texts(corpus, params["negatives"], params["seed"])
        return examples + negatives, np.array([1] * len(examples) + [0] * len(negatives))
    pairs, wanted = _read_labels(params["labels"])
    for rows in corpus.chunks() if wanted else ():
        pairs += [(text, wanted[key]) for key, text in zip(rows.ids, rows.texts, strict=True) if key in wanted]
    return [text for text, _ in pairs], np.array([label for _, label in pairs], np.int64)


def _read_labels(name: str) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Return (labelled texts, labels by prompt_id) of a file. A row without a text is one of the corpus."""
    pairs: list[tuple[str, int]] = []
    wanted: dict[str, int] = {}
    for place, row in read_rows(resolve(name)):
        label, key, text = row.get("label"), row.get("prompt_id"), row.get("text")
        if label in (0, 1) and isinstance(text, str):
            pairs.append((text, int(label)))
        elif label in (0, 1) and text is None and isinstance(key, str):
            if wanted.setdefault(key, int(label)) != int(label):
                raise SftdiffError(f"{place}: a second, different label for prompt {key}")
        else:
            raise SftdiffError(f"{place}: a label row needs 'label', 0 or 1, and 'prompt_id' or 'text'")
    return pairs, wanted


def _random_texts(corpus: Corpus, count: int, seed: int) -> list[str]:
    """Return the texts of the rows whose seeded hash is lowest."""
    lowest: list[tuple[float, str, str]] = []
    for rows in corpus.chunks():
        hashed = ((unit_interval("negatives", seed, key), key, text) for key, text in zip(rows.ids, rows.texts, strict=True))
        lowest = heapq.nsmallest(count, (*lowest, *hashed))
    return [text for _, _, text in lowest]
