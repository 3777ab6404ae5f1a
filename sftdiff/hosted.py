"""Hosted models: Inspect's own providers, with a key that comes from the environment and is written nowhere."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import GenerateConfig, Model, get_model
from tenacity import RetryError

from sftdiff.answers import Fault, retry_after, status_kind
from sftdiff.endpoint import SAFE_KEY, EndpointSettings, read_key, stop_message
from sftdiff.errors import SftdiffError, one_line

MAX_RETRIES = 6  # of one request, with pauses of 3, 6, 12 ... seconds
SERVICE = "endpoint"  # what Inspect calls a server that is only known by its address


def hosted_config(config: Mapping[str, Any]) -> GenerateConfig:
    """Return what is asked of a provider: settings that mean "no limit" are left out, since some refuse them."""
    return GenerateConfig(
        max_tokens=config["max_tokens"],
        temperature=config["temperature"],
        top_p=config["top_p"] if config["top_p"] < 1 else None,
        top_k=config["top_k"] or None,
        max_retries=MAX_RETRIES,
    )


@dataclass
class Hosted:
    """Inspect's model of a provider. `url`: what messages call it; `key_env`: the variable that its key comes from.

    `refused`: why no request can succeed, as soon as the provider has said so.
    """

    model: Model
    url: str
    key_env: str | None
    refused: str = ""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Stand around a request. Raise SftdiffError, without one, where an earlier one was refused as every one would be."""
        if self.refused:
            raise SftdiffError(self.refused)
        try:
            yield
        except Exception as error:  # each provider has its own
            fault = fault_of(error)
            if fault.final:
                settings = EndpointSettings(self.model.name, api_key_env=self.key_env, section="model")
                self.refused = stop_message(settings, self.url, fault.kind, self.without_key(fault.reason))
            raise

    def without_key(self, text: str) -> str:
        """Return a provider's message without the key, which some repeat."""
        key = os.environ.get(self.key_env or "", "").strip()
        return text.replace(key, "[key]") if len(key) >= SAFE_KEY else text


def hosted_model(name: str, runtime: Mapping[str, Any], config: GenerateConfig) -> Hosted:
    """Return Inspect's model for provider/name, or for a server's own name where `runtime` has a base_url.

    Raise SftdiffError for a missing key or client package, or an unknown provider.
    """
    if runtime["base_url"] and not name.startswith("openai-api/"):
        name = f"openai-api/{SERVICE}/{name}"
    key = _key(runtime)
    try:
        model = get_model(name, config=config, base_url=runtime["base_url"], api_key=key, memoize=False)
    except PrerequisiteError as error:
        text = re.sub(r"\[/?[a-z ]+\]", "", str(error.message))  # without the marks for its display
        raise SftdiffError(f"model.id={name}: {' '.join(text.split()).removeprefix('ERROR: ')}") from None
    except (ValueError, ImportError) as error:
        raise SftdiffError(f"model.id={name}: {one_line(error)}") from None
    own = None if runtime["base_url"] else next((env for env in model.api.api_key_vars if os.environ.get(env)), None)
    return Hosted(model, runtime["base_url"] or name, runtime["api_key_env"] or own)


def fault_of(error: BaseException) -> Fault:
    """Return what an exception of a provider means: by the HTTP status where it has one, else as lost on the way."""
    while isinstance(error, RetryError) and (last := error.last_attempt.exception()):
        error = last
    cause = error.__cause__ or error
    if isinstance(error, TimeoutError):
        return Fault("lost", "no answer in time")
    status = next((s for e in (error, cause) for a in ("status_code", "code") if isinstance(s := getattr(e, a, None), int)), None)
    said = one_line(cause) or type(cause).__name__
    if status is None:
        return Fault("lost", f"{type(cause).__name__}: {said}")
    headers = getattr(getattr(cause, "response", None), "headers", None)
    return Fault(status_kind(status, said), f"{status}: {said}", retry_after(headers) if headers else None)


def _key(runtime: Mapping[str, Any]) -> str | None:
    if runtime["api_key_env"]:
        return read_key(EndpointSettings("", api_key_env=runtime["api_key_env"], section="model"))
    return "none" if runtime["base_url"] else None  # a server that needs none; else the provider's client looks for its own
