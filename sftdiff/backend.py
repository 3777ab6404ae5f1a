"""sftdiff's own Inspect ModelAPI for local models: batched generation on the rendering function that training uses.

Requests that wait at the same time are sorted by length and generated in batches. With a temperature, each reply draws from a
generator of its own, so replies do not depend on how they were batched (in fp32; in bf16 rounding can tip a near tie).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from transformers import LogitsProcessor, LogitsProcessorList

from sftdiff.render import render_prompt

# How long a batch waits for more requests: replies of one turn arrive together, within milliseconds.
GATHER_SECONDS = 0.03


@dataclass
class Request:
    input_ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    future: "asyncio.Future[ModelOutput]" = field(repr=False)


class SeededSampling(LogitsProcessor):
    """Sampling as an argmax: adds Gumbel noise from one generator a row to the tempered logits, so that greedy search samples."""

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperatures = temperatures

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        for row, (generator, temperature) in enumerate(zip(self.generators, self.temperatures, strict=True)):
            if temperature > 0:
                uniform = torch.rand(scores.shape[-1], generator=generator).clamp_min(1e-20).to(scores.device)
                scores[row] = scores[row] / temperature - torch.log(-torch.log(uniform))
        return scores


class LocalModel(ModelAPI):
    """Generates with a transformers model that is in memory already."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's signature
        *,
        student: Any,
        tokenizer: Any,
        batch_size: int,
        on_reply: Any = None,
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        self.student, self.tokenizer, self.batch_size, self.on_reply = student, tokenizer, batch_size, on_reply
        self.waiting: list[Request] = []
        self.worker: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1)
        self.generated_tokens, self.generate_seconds = 0, 0.0

    def max_connections(self) -> int:
        return 10_000  # all requests may wait here: only so are batches full

    def connection_key(self) -> str:
        return self.model_name

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Queue one request and wait for its batch."""
        ids = render_prompt(self.tokenizer, [{"role": m.role, "content": m.text} for m in input])
        future: asyncio.Future[ModelOutput] = asyncio.get_running_loop().create_future()
        request = Request(ids, config.max_tokens or 256, config.temperature or 0.0, config.seed or 0, future)
        self.waiting.append(request)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            known = -1
            while known != len(self.waiting):
                known = len(self.waiting)
                await asyncio.sleep(GATHER_SECONDS)
            self.waiting.sort(key=lambda r: (-len(r.input_ids), r.input_ids))
            batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
            try:
                outputs = await loop.run_in_executor(self.thread, self.generate_batch, batch)
            except Exception as error:
                for request in batch:
                    request.future.set_exception(error)
                continue
            for request, output in zip(batch, outputs, strict=True):
                if not request.future.done():
                    request.future.set_result(output)

    def generate_batch(self, batch: Sequence[Request]) -> list[ModelOutput]:
        """Generate one batch: prompts padded on the left, each row cut at its own length and at its end-of-turn token."""
        started = time.time()
        width = max(len(r.input_ids) for r in batch)
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        device = self.student.device
        ids = torch.tensor([[pad] * (width - len(r.input_ids)) + r.input_ids for r in batch], device=device)
        mask = torch.tensor([[0] * (width - len(r.input_ids)) + [1] * len(r.input_ids) for r in batch], device=device)
        with torch.inference_mode():
            made = self.student.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(r.max_tokens for r in batch),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                num_beams=1,
                eos_token_id=eos,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([SeededSampling([r.seed for r in batch], [r.temperature for r in batch])]),
            )
        outputs = [self._output(r, row[width:].tolist(), eos) for r, row in zip(batch, made, strict=True)]
        self.generated_tokens += sum(o.usage.output_tokens for o in outputs if o.usage)
        self.generate_seconds += time.time() - started
        if self.on_reply:
            self.on_reply(len(batch))
        return outputs

    def _output(self, request: Request, tokens: list[int], eos: int) -> ModelOutput:
        tokens = tokens[: request.max_tokens]
        ended = eos in tokens
        if ended:
            tokens = tokens[: tokens.index(eos)]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if ended else "max_tokens",
        )
        count = len(tokens) + ended
        usage = ModelUsage(
            input_tokens=len(request.input_ids), output_tokens=count, total_tokens=len(request.input_ids) + count
        )
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


@modelapi(name="sftdiff")
def local_model() -> type[ModelAPI]:
    """Register the provider: Inspect finds its models as `sftdiff/NAME`."""
    return LocalModel


@contextlib.contextmanager
def quiet_inspect() -> Any:
    """Keep Inspect from reading an .env file's settings for its display and from its own servers."""
    kept = dict(os.environ)
    os.environ.update(INSPECT_DISPLAY="none", INSPECT_LOG_LEVEL="warning")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
