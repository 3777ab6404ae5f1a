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
from typing import Any

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
        on_finished: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        self.student, self.tokenizer, self.batch_size, self.on_finished = student, tokenizer, batch_size, on_finished
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
        started, eos = time.time(), self.tokenizer.eos_token_id
        prompts, settings = [r.input_ids for r in batch], [r.sampling for r in batch]
        made = generate_batch(self.student, prompts, settings, self.tokenizer.pad_token_id, eos, self.on_finished)
        outputs = [self._output(request, tokens, eos) for request, tokens in zip(batch, made, strict=True)]
        self.generated_tokens += sum(len(tokens) for tokens in made)
        self.generate_seconds += time.time() - started
        return outputs

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
