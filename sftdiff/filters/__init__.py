"""Filters: a score for each row. Threshold and treatment belong to the mixture: a threshold is swept without scoring again.

A filter function returns one score a row, higher = more of what the filter looks for. Most look at one row at a time; they get
chunks of rows, in any process. What has to see all rows first (document frequencies, a classifier) is a corpus filter.
To add one: write the function, mark it, and name it in a YAML file under conf/filter/.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sftdiff import plugins
from sftdiff.corpus import Corpus, Rows
from sftdiff.errors import SftdiffError

FilterFunction = Callable[[Rows, Mapping[str, Any]], Sequence[float]]
CorpusFilter = Callable[[Corpus, Mapping[str, Any]], Iterator[Sequence[float]]]
KINDS = ("filter_function", "corpus_filter")
MODELS = "sftdiff_models"


def filter_function(version: int) -> Callable[[FilterFunction], FilterFunction]:
    """Mark a function (rows, params) -> scores that looks at each row by itself.

    The version is part of the identity of the scores: raise it when results change.
    """
    return plugins.mark("filter_function", version)


def corpus_filter(version: int, models: Sequence[str] = ()) -> Callable[[CorpusFilter], CorpusFilter]:
    """Mark a function (corpus, params) -> iterator of scores, one sequence for each chunk of `corpus.chunks()`, in its order.

    `models` are those of the settings `model` and `reference` without which it cannot run.
    """

    def marked(function: CorpusFilter) -> CorpusFilter:
        setattr(function, MODELS, tuple(models))
        return plugins.mark("corpus_filter", version)(function)

    return marked


def load_filter(target: str) -> tuple[Any, int, str]:
    """Return the function that a config's `_target_` names, its version, and its kind (one of KINDS)."""
    for kind in KINDS:
        if (found := plugins.find(target, kind, "filter._target_:")) is not None:
            return (*found, kind)
    raise SftdiffError(f"filter._target_: {target} is not a function marked with @filter_function or @corpus_filter")


__all__ = ["MODELS", "Corpus", "CorpusFilter", "FilterFunction", "Rows", "corpus_filter", "filter_function", "load_filter"]
