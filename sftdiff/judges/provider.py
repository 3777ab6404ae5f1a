"""A judge model behind one of Inspect's providers (Anthropic, Google, ...), with the retries, cap and key of `Endpoint`."""

import asyncio
import re
from typing import Any

from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelOutput, get_model

from sftdiff.answers import Completion, Fault, estimate_tokens
from sftdiff.endpoint import Endpoint, EndpointSettings, Request
from sftdiff.errors import SftdiffError, one_line
from sftdiff.hosted import fault_of

MARKUP = re.compile(r"\[/?[a-z]+\]|\bERROR\b:?")
PIP = re.compile(r"pip install (.+)")


class InspectEndpoint(Endpoint):
    """Asks an Inspect model as `Endpoint` asks a server. `extra` of a request are more settings of Inspect's GenerateConfig."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Raise SftdiffError for a missing key, an unknown provider, or one whose client package is not installed."""
        super().__init__(settings)
        self.url = settings.model
        key = self._key if settings.api_key_env else None
        try:
            self._model = get_model(settings.model, base_url=settings.base_url, api_key=key, memoize=False)
        except Exception as error:  # each provider has its own
            raise SftdiffError(f"{settings.section}.id={settings.model}: {self.scrub(_why_not(error))}") from None

    async def _ask(self, request: Request) -> Completion | Fault:
        self.usage.attempts += 1
        roles = {"system": ChatMessageSystem, "user": ChatMessageUser}
        messages: list[Any] = [roles[m["role"]](content=m["content"]) for m in request.messages]
        own = {"max_tokens": request.max_tokens, "temperature": request.temperature, "max_retries": 0}
        own["max_connections"] = self.settings.concurrency
        try:
            config = GenerateConfig.model_validate(own | dict(request.extra))
        except ValueError as error:
            raise SftdiffError(f"{self.settings.section}.extra: not settings of Inspect ({one_line(error)})") from None
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                output = await self._model.generate(messages, config=config)
        except Exception as error:  # each provider has its own
            return fault_of(error)
        return read_output(output, sum(len(m["content"]) for m in request.messages), request.max_tokens)


def read_output(output: ModelOutput, prompt_characters: int, max_tokens: int) -> Completion | Fault:
    """Return the reply in an Inspect output; tokens are estimated from characters where the provider does not tell them."""
    if output.error or not output.choices:
        return Fault("row", f"the provider gave no reply ({output.error or 'it has no choices'})")
    text, usage = output.completion, output.usage
    finish = "length" if output.stop_reason in ("max_tokens", "model_length") else str(output.stop_reason)
    if usage is None:
        counts = estimate_tokens("x" * prompt_characters), min(estimate_tokens(text), max_tokens)
    else:
        cached = (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
        counts = usage.input_tokens + cached, max(usage.output_tokens, usage.total_tokens - usage.input_tokens - cached)
    return Completion(text, "", finish, *counts, estimated=usage is None)


def _why_not(error: Exception) -> str:
    """Return why Inspect has no such model, without the markup of its terminal."""
    text = " ".join(MARKUP.sub("", str(error)).split())
    package = PIP.search(text)
    return f"the provider's client is not installed: pip install {package[1]}" if package else text
