"""BM25: how well a row matches example transcripts as search queries, in two streamed passes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter
from sftdiff.filters.examples import load_examples

Floats = NDArray[np.float64]
WORD = re.compile(r"\w+")
REDUCE: dict[str, Callable[..., Floats]] = {"max": np.max, "mean": np.mean}


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


@corpus_filter(version=1)
def bm25_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = the highest (or mean) Okapi BM25 of the row for the examples as queries.

    params: `examples` and `traits` (see load_examples); `k1`, `b`; `reduce`, max or mean over the examples. The inverse document
    frequency is log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative (Lucene's form). A word that stands twice in an
    example counts twice. Memory depends on the examples' words, not on the rows.
    """
    if params["reduce"] not in REDUCE:
        raise SftdiffError(f"filter.params.reduce: {params['reduce']} is not one of {', '.join(REDUCE)}")
    queries = [words_of(text) for text in load_examples(params)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(word for query in queries for word in query))}
    frequencies, mean_length = _document_frequencies(corpus, vocabulary)
    idf = np.log1p((corpus.count - frequencies + 0.5) / (frequencies + 0.5))
    counts, _ = count_words(queries, vocabulary)
    weights = np.asarray((counts * idf).toarray()).T  # (words, examples)
    for rows in corpus.chunks():
        scores = _saturated(*count_words(map(words_of, rows.texts), vocabulary), mean_length, params["k1"], params["b"]) @ weights
        yield REDUCE[params["reduce"]](scores, axis=1).tolist()


def count_words(texts: Any, vocabulary: Mapping[str, int]) -> tuple[csr_array, Floats]:
    """Return (counts of the vocabulary's words: (texts, words); lengths in words: (texts,)) of tokenised texts."""
    columns: list[int] = []
    ends, lengths = [0], []
    for words in texts:
        columns.extend(vocabulary[word] for word in words if word in vocabulary)
        ends.append(len(columns))
        lengths.append(len(words))
    counts = csr_array((np.ones(len(columns)), columns, ends), shape=(len(lengths), len(vocabulary)))
    counts.sum_duplicates()
    return counts, np.array(lengths, float)


def _document_frequencies(corpus: Corpus, vocabulary: Mapping[str, int]) -> tuple[Floats, float]:
    """Return (rows that have each word: (words,); mean length of a row in words)."""
    frequencies, total = np.zeros(len(vocabulary)), 0.0
    for rows in corpus.chunks():
        counts, lengths = count_words(map(words_of, rows.texts), vocabulary)
        frequencies += np.bincount(counts.indices, minlength=len(vocabulary))
        total += lengths.sum()
    return frequencies, max(total / max(corpus.count, 1), 1e-9)


def _saturated(counts: csr_array, lengths: Floats, mean_length: float, k1: float, b: float) -> csr_array:
    """Replace each count f by f (k1 + 1) / (f + k1 (1 - b + b length / mean length))."""
    penalty = np.repeat(k1 * (1 - b + b * lengths / mean_length), np.diff(counts.indptr))
    counts.data = counts.data * (k1 + 1) / (counts.data + penalty)
    return counts
