"""sftdiff's own Inspect ModelAPI for local models: batched generation on the rendering function that training uses.

Requests that wait at the same time are sorted by length and generated in batches (sftdiff.generate).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
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

from sftdiff.errors import SftdiffError
from sftdiff.generate import Sampling, generate_batch
from sftdiff.render import render_prompt

# How long a batch waits for more requests: replies of one turn arrive together, within milliseconds.
GATHER_SECONDS = 0.03


@dataclass
class Request:
    input_ids: list[int]
    sampling: Sampling
    future: "asyncio.Future[ModelOutput]" = field(repr=False)


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
        end: int | None = None,
        on_finished: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        self.student, self.tokenizer, self.batch_size, self.on_finished = student, tokenizer, batch_size, on_finished
        self.end: int = tokenizer.eos_token_id if end is None else end  # the token that ends a reply
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
        sampling = Sampling(
            max_tokens=config.max_tokens or 256,
            temperature=config.temperature or 0.0,
            top_k=config.top_k or 0,
            top_p=1.0 if config.top_p is None else config.top_p,
            seed=config.seed or 0,
        )
        request = Request(ids, sampling, future)
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
        """Generate the replies of one batch, in its order."""
        started = time.time()
        made = self.tokens_of(batch)
        outputs = [self._output(request, tokens, self.end) for request, tokens in zip(batch, made, strict=True)]
        self.generated_tokens += sum(len(tokens) for tokens in made)
        self.generate_seconds += time.time() - started
        return outputs

    def tokens_of(self, batch: Sequence[Request]) -> list[list[int]]:
        """Return the new tokens of each request, up to and with the one that ends the reply."""
        prompts, settings = [r.input_ids for r in batch], [r.sampling for r in batch]
        return generate_batch(self.student, prompts, settings, self.tokenizer.pad_token_id, self.end, self.on_finished)

    def _output(self, request: Request, tokens: list[int], eos: int) -> ModelOutput:
        ended = eos in tokens
        text = self.tokenizer.decode(tokens[: len(tokens) - ended], skip_special_tokens=True).strip()
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if ended else "max_tokens",
        )
        read, wrote = len(request.input_ids), len(tokens)
        usage = ModelUsage(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


class VllmModel(LocalModel):
    """Generates with vLLM (`student` is its engine), which batches by itself and computes shared prefixes once."""

    def tokens_of(self, batch: Sequence[Request]) -> list[list[int]]:
        vllm = import_module("vllm")
        sampling = [
            vllm.SamplingParams(
                max_tokens=r.sampling.max_tokens,
                temperature=r.sampling.temperature,
                top_k=r.sampling.top_k or -1,
                top_p=r.sampling.top_p,
                seed=r.sampling.seed,
                stop_token_ids=[self.end],
                detokenize=False,
            )
            for r in batch
        ]
        prompts = [{"prompt_token_ids": r.input_ids} for r in batch]
        outputs = self.student.generate(prompts, sampling, use_tqdm=False)
        self.on_finished(len(batch))
        replies = [(list(output.outputs[0].token_ids), output.outputs[0].finish_reason) for output in outputs]
        return [ids if reason != "stop" or self.end in ids else [*ids, self.end] for ids, reason in replies]


def vllm_is_usable() -> bool:
    """Tell whether sampling.backend=auto means vLLM: it is installed and there is a GPU."""
    return find_spec("vllm") is not None and torch.cuda.is_available()


def vllm_engine(folder: str, precision: str) -> Any:
    """Load a model folder with vLLM. Raise SftdiffError if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise SftdiffError("sampling.backend=vllm: vLLM is not installed: pip install vllm (it needs a GPU), "
                           "or use sampling.backend=transformers")  # fmt: skip
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    # generation_config="vllm": the model's own sampling settings are no part of the record
    return import_module("vllm").LLM(model=folder, dtype=dtype, generation_config="vllm", enable_prefix_caching=True)


@modelapi(name="sftdiff_vllm")
def vllm_model() -> type[ModelAPI]:
    """Register the provider: Inspect finds its models as `sftdiff_vllm/NAME`."""
    return VllmModel


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
