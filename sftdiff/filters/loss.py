"""Loss difference: rows that a model with the trait finds likelier than a model without it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter
from sftdiff.filters.models import load_model_of, load_tokenizer_of, max_tokens, model_of, token_rows
from sftdiff.filters.vectors import batches_by_length
from sftdiff.render import rendering_hash

PRECISIONS = ("fp32", "bf16")
LOGIT_BYTES = 2**28  # of one batch


@corpus_filter(version=1, models=("model", "reference"))
def loss_difference_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = mean log-probability (nats) of a token of the reply under `model` minus that under `reference`.

    corpus.models: `model`, which has the trait, and `reference`, which has not: Hugging Face folders or LoRA adapters with the
    same tokenizer and chat template. params: `precision`, fp32 or bf16; `max_length` and `batch_tokens`, in tokens. One model is
    in memory at a time. The scores in memory are 8 bytes a row. The reply includes its end-of-turn token.

    The reference should be trained too, on rows of the same teacher without the trait: against the untrained student the score is
    mostly how much the row has of the teacher's style, and rows with the trait can come out lower than others.
    """
    if params["precision"] not in PRECISIONS:
        raise SftdiffError(f"filter.params.precision: {params['precision']} is not one of {', '.join(PRECISIONS)}")
    folders = [model_of(corpus, name) for name in ("model", "reference")]
    tokenizers = [load_tokenizer_of(folder) for folder in folders]
    if rendering_hash(tokenizers[0]) != rendering_hash(tokenizers[1]):
        both = f"{folders[0]} and {folders[1]}"
        raise SftdiffError(f"{both} render conversations differently: their log-probabilities do not compare")
    longest = min(max_tokens(folder, params["max_length"]) for folder in folders)
    if longest < 2:
        raise SftdiffError(f"filter.params.max_length: {longest} leaves no room for a reply")
    found = [list(_mean_log_probabilities(corpus, folder, tokenizers[0], longest, params)) for folder in folders]
    for with_trait, without in zip(*found, strict=True):
        yield (with_trait - without).tolist()


def _mean_log_probabilities(
    corpus: Corpus, folder: Path, tokenizer: Any, longest: int, params: Mapping[str, Any]
) -> Iterator[NDArray[np.float64]]:
    model = load_model_of(folder, params["precision"])
    for rows in corpus.chunks():
        tokens = token_rows(tokenizer, rows, longest)
        means = np.zeros(len(tokens))
        for batch in batches_by_length([len(ids) for ids, _ in tokens], params["batch_tokens"]):
            for part in _by_logits([tokens[n] for n in batch], model.config.get_text_config().vocab_size):
                means[[batch[n] for n in part]] = _batch_means(model, [tokens[batch[n]] for n in part], tokenizer.pad_token_id)
        yield means


def _by_logits(rows: Sequence[tuple[list[int], int]], vocabulary: int) -> list[list[int]]:
    """Split a batch so that the logits of its replies stay below LOGIT_BYTES, or one row."""
    return batches_by_length([len(ids) - prompt for ids, prompt in rows], LOGIT_BYTES // (4 * vocabulary))


def _batch_means(model: Any, rows: Sequence[tuple[list[int], int]], pad: int) -> NDArray[np.float64]:
    """Return each row's mean log-probability of a reply token: (rows,). Padded on the left, so that the replies end together."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    reply = max(len(ids) - prompt for ids, prompt in rows)
    ids = torch.tensor([[pad] * (width - len(tokens)) + tokens for tokens, _ in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens, _ in rows], device=model.device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=reply + 1, use_cache=False)
        means = []
        for row, (tokens, prompt) in enumerate(rows):
            length = len(tokens) - prompt
            logits = output.logits[row, -length - 1 : -1].float()
            chosen = logits.gather(1, ids[row, -length:, None])[:, 0]
            means.append((chosen - logits.logsumexp(1)).double().mean().item())
    return np.array(means)
