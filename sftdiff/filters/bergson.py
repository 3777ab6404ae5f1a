"""Influence: rows that a model's training would have to leave out for examples of the trait to get less likely, by EK-FAC."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter
from sftdiff.filters.attribution import QUERY, ROWS, in_chunks, prepared, read_scores, run_bergson

METHODS = ("kfac", "tkfac", "shampoo")
REDUCTIONS = ("sum", "mean")


@corpus_filter(version=1, models=("model",))
def influence_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = influence of the row on the examples' mean loss: its gradient times the inverse curvature times theirs.

    Higher = training on it makes the examples likelier. The curvature is EK-FAC's (George et al. 2018, arXiv:1806.03884; Grosse
    et al. 2023, arXiv:2308.03296) over the rows themselves, with their labels and not sampled ones, so that equal inputs give
    equal scores.

    corpus.models: `model`, trained on rows like these: best a LoRA adapter, since the factors of a full model are as large as
    its layers. params: `examples` and `traits` (see load_examples); `max_length`, tokens a row and a batch; `precision`, fp32 or
    bf16; `method`, how the curvature is factored; `damping`, of its inverse, in means of its eigenvalues; `reduction`, over a
    row's tokens: sum (a longer row can have more influence) or mean. Raises SftdiffError if bergson is not installed or fails.
    """
    for name, known in (("method", METHODS), ("reduction", REDUCTIONS)):
        if params[name] not in known:
            raise SftdiffError(f"filter.params.{name}: {params[name]} is not one of {', '.join(known)}")
    with prepared(corpus, params, "bergson") as (work, options):
        data = ["--data.dataset", ROWS, "--query.dataset", QUERY, "--query.aggregation", "mean"]
        curvature = ["--method", params["method"], "--hessian_cfg.ev_correction", "--use_dataset_labels"]
        curvature += ["--hessian_pipeline_cfg.inversion_cfg.damping_factor", str(params["damping"])]
        loss = ["--loss_reduction", params["reduction"], "--index_cfg.precision", params["precision"]]
        run_bergson(work, "ekfac", "influence", *data, *curvature, *loss, *options)
        scores = read_scores(work / "influence" / "scores", corpus.count)
    yield from in_chunks(corpus, scores)
