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
    """Chooses each row's next token itself, with a generator of its own, and leaves greedy search only that token."""

    def __init__(self, settings: Sequence[Sampling]) -> None:
        self.settings = list(settings)
        self.generators = [torch.Generator().manual_seed(s.seed) for s in settings]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows of the batch, with their generators as they stand."""
        self.settings = [self.settings[k] for k in rows]
        self.generators = [self.generators[k] for k in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        vocabulary = scores.shape[-1]
        needed = max(1 if s.temperature == 0 else s.top_k or vocabulary for s in self.settings)
        logits, tokens = scores.float().topk(min(needed, vocabulary))
        drawn = [draw(row, s, generator) for row, s, generator in zip(logits.cpu(), self.settings, self.generators, strict=True)]
        chosen = tokens.gather(1, torch.tensor(drawn, device=tokens.device)[:, None])
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)


def draw(logits: torch.Tensor, settings: Sampling, generator: torch.Generator) -> int:
    """Return the place of the next token in `logits` (most likely first), drawn from the nucleus of the top_k tokens.

    A draw takes one random number, whatever is left: else a rounding difference between two batches that changes how many tokens
    are left would change all later draws too.
    """
    if settings.temperature == 0:
        return 0
    shares = (logits[: settings.top_k or len(logits)].double() / settings.temperature).softmax(-1)
    mass = shares.cumsum(-1)
    left = int((mass - shares < settings.top_p).sum())  # the token that crosses top_p is in
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * float(mass[left - 1])
    return min(int((mass[:left] <= point).sum()), left - 1)


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
    sampler, alive = SeededSampling(settings), list(range(len(prompts)))
    cache = _shared_prefill(model, prompts, ids, mask, pad, eos)
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


def _shared_prefill(
    model: Any, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, pad: int, eos: int
) -> Any:
    """Return a cache of all tokens but the last, for which equal prompts (several samples of a scenario) were computed once.

    None where no two prompts are equal, or where a prompt has no token before its last one.
    """
    first: dict[tuple[int, ...], int] = {}
    rows = [first.setdefault(tuple(prompt), k) for k, prompt in enumerate(prompts)]
    if len(first) == len(prompts) or min(map(len, first)) < 2:
        return None
    once = list(first.values())
    sampler = SeededSampling([Sampling(1)] * len(once))  # its token is not used
    cache = _generate(model, ids[once, :-1], mask[once, :-1], None, 1, sampler, pad, eos).past_key_values
    cache.batch_select_indices(torch.tensor([once.index(row) for row in rows], device=ids.device))
    return cache


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
