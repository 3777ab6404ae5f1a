"""Filters on vectors of texts: similarity to example transcripts, and the number of a row's cluster."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter
from sftdiff.filters.examples import load_examples
from sftdiff.filters.vectors import Dense, Embedder, Vectors, embed, load_embedder
from sftdiff.identity import unit_interval

CLUSTER_DIMENSIONS = 64


@corpus_filter(version=1)
def embedding_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = the highest cosine similarity of the row to an example, -1 to 1 (0 to 1 for tfidf).

    params: `examples` and `traits` (see load_examples); `embedder`: tfidf, minilm, or a Hugging Face folder.
    """
    examples = load_examples(params)
    embedder = load_embedder(params["embedder"], corpus)
    targets = embed(examples, embedder)
    for rows in corpus.chunks():
        similarity = embed(rows.texts, embedder) @ targets.T
        yield dense(similarity).max(axis=1).tolist()


@corpus_filter(version=1)
def cluster_ids(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = the number of the row's cluster, 0 to clusters - 1: not a degree of anything, but a name for a subset.

    params: `clusters`; `embedder`; `seed`; `sample`: the clusters are made from about so many rows, chosen by a hash of their
    ids. Raises SftdiffError if there are fewer of these than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    embedder = load_embedder(params["embedder"], corpus)
    sample = _sample(corpus, embedder, params["sample"], params["seed"])
    if sample.shape[0] < params["clusters"]:
        raise SftdiffError(f"filter.params.clusters: {params['clusters']} clusters of {sample.shape[0]} rows; set fewer clusters")
    reduce = _reduction(sample, params["seed"])
    means = MiniBatchKMeans(params["clusters"], random_state=params["seed"], n_init=3, batch_size=1024).fit(reduce(sample))
    for rows in corpus.chunks():
        yield means.predict(reduce(embed(rows.texts, embedder))).tolist() if len(rows) else []


def dense(matrix: Any) -> Any:
    return matrix.toarray() if isinstance(matrix, csr_array) else matrix


def _sample(corpus: Corpus, embedder: Embedder, size: int, seed: int) -> Vectors:
    share = size / max(corpus.count, 1)
    parts = []
    for rows in corpus.chunks():
        chosen = zip(rows.ids, rows.texts, strict=True)
        texts = [text for key, text in chosen if share >= 1 or unit_interval("clusters", seed, key) < share]
        parts.append(embed(texts, embedder))
    return vstack(parts, format="csr") if isinstance(parts[0], csr_array) else np.concatenate(parts)


def _reduction(sample: Vectors, seed: int) -> Any:
    """Return the function from vectors to dense ones: sparse ones lose all but their main directions and get length 1 again."""
    if not isinstance(sample, csr_array):
        return lambda vectors: vectors
    from sklearn.decomposition import TruncatedSVD

    used = np.unique(sample.indices)  # most of the features occur in no row: their share of the work is large
    dimensions = max(min(CLUSTER_DIMENSIONS, sample.shape[0] - 1, len(used) - 1), 1)
    svd = TruncatedSVD(dimensions, random_state=seed).fit(sample[:, used])

    def reduce(vectors: Vectors) -> Dense:
        reduced = svd.transform(vectors[:, used])
        lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
        return np.asarray(reduced / np.where(lengths > 0, lengths, 1), np.float32)

    return reduce
