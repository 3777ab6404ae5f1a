"""Hosted models: Inspect's own providers, with a key that comes from the environment and is written nowhere."""

import os
import re
from collections.abc import Mapping
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import GenerateConfig, Model, get_model

from sftdiff.endpoint import SAFE_KEY, EndpointSettings, read_key
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


def hosted_model(name: str, runtime: Mapping[str, Any], config: GenerateConfig) -> Model:
    """Return Inspect's model for provider/name, or for a server's own name where `runtime` has a base_url.

    Raise SftdiffError for a missing key or client package, or an unknown provider.
    """
    if runtime["base_url"] and not name.startswith("openai-api/"):
        name = f"openai-api/{SERVICE}/{name}"
    key = _key(runtime)
    try:
        return get_model(name, config=config, base_url=runtime["base_url"], api_key=key, memoize=False)
    except PrerequisiteError as error:
        text = re.sub(r"\[/?[a-z ]+\]", "", str(error.message))  # without the marks for its display
        raise SftdiffError(f"model.id={name}: {' '.join(text.split()).removeprefix('ERROR: ')}") from None
    except (ValueError, ImportError) as error:
        raise SftdiffError(f"model.id={name}: {one_line(error)}") from None


def without_key(text: str, runtime: Mapping[str, Any]) -> str:
    """Return a provider's message without the key, which some repeat."""
    key = os.environ.get(runtime["api_key_env"] or "", "").strip()
    return text.replace(key, "[key]") if len(key) >= SAFE_KEY else text


def _key(runtime: Mapping[str, Any]) -> str | None:
    if runtime["api_key_env"]:
        return read_key(EndpointSettings("", api_key_env=runtime["api_key_env"], section="model"))
    return "none" if runtime["base_url"] else None  # a server that needs none; else the provider's client looks for its own
