"""Batched generation in which finished rows leave the batch, and each row samples from a generator of its own.

transformers' `generate` does the work, a few tokens at a time: between the calls, rows that have ended are taken out of the batch
and of its cache, since most replies end long before the longest one. Rows draw from seeded generators of their own, so a reply
does not depend on the batch that it was made in (in fp32; in bf16 rounding can tip a near tie).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

CHUNK_TOKENS = 8


@dataclass(frozen=True)
class Sampling:
    """How one reply is generated. Temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class SeededSampling(LogitsProcessor):
    """Sampling as an argmax: adds Gumbel noise from one generator a row to the tempered logits, so that greedy search samples."""

    def __init__(self, settings: Sequence[Sampling]) -> None:
        self.settings = list(settings)
        self.generators = [torch.Generator().manual_seed(s.seed) for s in settings]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows of the batch, with their generators as they stand."""
        self.settings = [self.settings[k] for k in rows]
        self.generators = [self.generators[k] for k in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        for row, (settings, generator) in enumerate(zip(self.settings, self.generators, strict=True)):
            if settings.temperature > 0:
                uniform = torch.rand(scores.shape[-1], generator=generator).clamp_min(1e-20).to(scores.device)
                tempered = likely(scores[row] / settings.temperature, settings.top_k, settings.top_p)
                scores[row] = tempered - torch.log(-torch.log(uniform))
        return scores


def likely(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Return logits (vocabulary,) with all but the top_k most likely tokens, and of these the nucleus of mass top_p, at -inf."""
    if top_k <= 0 and top_p >= 1:
        return logits
    values, places = torch.topk(logits, min(top_k, len(logits)) if top_k > 0 else len(logits))
    before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
    kept = before < top_p  # the token that crosses top_p is in
    return torch.full_like(logits, float("-inf")).scatter(0, places[kept], values[kept])


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
    pad: int,
    eos: int,
    on_finished: Callable[[int], None],
) -> list[list[int]]:
    """Return the new tokens of each prompt, up to and with its end-of-turn token or its max_tokens.

    `on_finished` is told how many rows ended each time that some did.
    """
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    sampler, alive, cache = SeededSampling(settings), list(range(len(prompts))), None
    made: list[list[int]] = [[] for _ in prompts]
    while alive:
        left = max(settings[row].max_tokens - len(made[row]) for row in alive)
        out = _generate(model, ids, mask, cache, min(left, CHUNK_TOKENS), sampler, pad, eos)
        new = out.sequences[:, ids.shape[1] :]
        for row, tokens in zip(alive, new.tolist(), strict=True):
            made[row] = _until_end(made[row] + tokens, eos, settings[row].max_tokens)
        going = [k for k, row in enumerate(alive) if eos not in made[row] and len(made[row]) < settings[row].max_tokens]
        if len(going) < len(alive):
            on_finished(len(alive) - len(going))
        if not going:
            break
        cache, ids = out.past_key_values, out.sequences
        mask = torch.cat([mask, mask.new_ones(new.shape)], dim=1)
        if len(going) < len(alive):
            index = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(index)
            ids, mask, alive = ids[index], mask[index], [alive[k] for k in going]
            sampler.keep(going)
    return made


def _generate(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any, count: int, sampler: SeededSampling, pad: int, eos: int
) -> Any:
    with torch.inference_mode():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=count,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=1,
            eos_token_id=eos,
            pad_token_id=pad,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([sampler]),
        )


def _until_end(tokens: list[int], eos: int, max_tokens: int) -> list[int]:
    tokens = tokens[:max_tokens]
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
