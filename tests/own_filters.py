"""Filters of a user's own, in a module that worker processes can import."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftdiff.filters import Corpus, Rows, corpus_filter, filter_function


@filter_function(version=4)
def long_scores(rows: Rows, params: Mapping[str, Any]) -> Sequence[float]:
    """Score = characters of the text, and a little for the prompt_id, so that no two rows have the same."""
    return [len(text) + int(key, 16) / 16**16 for text, key in zip(rows.texts, rows.ids, strict=True)]


@corpus_filter(version=2)
def above_mean_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = characters above the mean of all rows."""
    mean = sum(len(text) for rows in corpus.chunks() for text in rows.texts) / max(1, corpus.count)
    for rows in corpus.chunks():
        yield [len(text) - mean for text in rows.texts]


@filter_function(version=1)
def too_few_scores(rows: Rows, params: Mapping[str, Any]) -> Sequence[float]:
    return [1.0] * (len(rows) - 1)
