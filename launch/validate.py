"""Checks of a resolved cell that its types cannot express; all cells are checked before any step runs."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from sftdiff.config import Config, FilterConfig
from sftdiff.errors import SftdiffError
from sftdiff.rows import SUBSETS, TREATMENTS

CHOICES: dict[str, tuple[Any, ...]] = {
    "prompt_subset.name": SUBSETS,
    "prompt_subset.treatment": TREATMENTS,
    "filter.treatment": ("drop", "swap"),
    "filter.part": ("reply", "prompt", "both"),
    "model.origin": ("gguf", "hub", "path"),
    "train.method": ("full", "lora"),
    "train.precision": ("bf16", "fp32"),
    "train.over_length": ("drop", "truncate"),
    "sampling.precision": ("bf16", "fp32"),
    "deepspeed.stage": (0, 1, 2, 3),
    "track.mode": ("auto", "online", "offline", "off"),
    "missing_rollouts": ("fail", "leave_out"),
}
POSITIVE = ("train.epochs", "train.batch_size", "train.lr", "train.max_length", "train.pack_length", "train.micro_batches",
            "sampling.batch_size", "sampling.max_tokens", "report.resamples")
SHARED = ("runs", "sweep", "report", "track")  # settings of a sweep, not of a cell


def check_shared(first: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise SftdiffError if two cells differ in a setting that a sweep has once."""
    for key in SHARED:
        if config[key] != first[key]:
            raise SftdiffError(f"{key}: {config[key]!r} and {first[key]!r}: a sweep has one {key}; it cannot be swept")


def check_cell(config: Mapping[str, Any]) -> None:
    """Raise SftdiffError on the first value that no step could use."""
    check_keys(config, Config)
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            raise SftdiffError(f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}")
    for key in POSITIVE:
        if _get(config, key) is not None and not 0 < _get(config, key) < math.inf:
            raise SftdiffError(f"{key}: {_get(config, key)!r} must be greater than 0 and finite")
    if not 0 <= config["prompt_subset"]["share"] <= 1:
        raise SftdiffError(f"prompt_subset.share: {config['prompt_subset']['share']} must lie between 0 and 1")
    _check_filter(config["filter"])
    if not config["trait_eval"]:
        raise SftdiffError("trait_eval: choose at least one trait")
    for trait, settings in config["trait_eval"].items():
        _check_trait(trait, settings)
    _check_model(config["model"])


@cache
def _fields(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _check_trait(trait: str, settings: Mapping[str, Any]) -> None:
    if settings["kind"] not in ("share", "rating"):
        raise SftdiffError(f"trait_eval.{trait}.kind: {settings['kind']!r} is not one of share, rating")
    if settings["samples"] < 1 or settings["max_tokens"] < 1:
        raise SftdiffError(f"trait_eval.{trait}: samples and max_tokens must be at least 1")
    if not (0 <= settings["temperature"] < math.inf and settings["top_k"] >= 0 and 0 < settings["top_p"] <= 1):
        raise SftdiffError(f"trait_eval.{trait}: temperature and top_k must be at least 0, and top_p lie in (0, 1]")


def check_keys(value: Any, schema: Any, path: str = "") -> None:
    """Raise SftdiffError on a key that the schema does not have: `+key=...` gets past Hydra, and no step would read it."""
    if isinstance(value, Mapping) and isinstance(schema, type) and is_dataclass(schema):
        known = _fields(schema)
        for key, inner in value.items():
            if key not in known:
                raise SftdiffError(f"{path}{key}: there is no such setting; known are {', '.join(known)}")
            check_keys(inner, known[key], f"{path}{key}.")
    elif isinstance(value, Mapping) and get_origin(schema) is dict:
        for key, inner in value.items():
            check_keys(inner, get_args(schema)[1], f"{path}{key}.")


def _check_model(settings: Mapping[str, Any]) -> None:
    if settings["origin"] == "path" and not settings["path"]:
        raise SftdiffError("model.path is needed: model=path model.path=/a/hugging-face/folder")
    if settings["origin"] == "hub" and not settings["id"]:
        raise SftdiffError("model.id is needed: model=hub model.id=organisation/name")
    if settings["origin"] == "gguf" and not settings["gguf"]["files"]:
        raise SftdiffError("model.gguf.files is needed for model.origin=gguf")


def _check_filter(settings: Mapping[str, Any]) -> None:
    if settings["_target_"] and settings["threshold"] is None and not settings["match"]:
        raise SftdiffError(f"filter.threshold is needed for filter={settings['name']}")
    match = settings["match"]
    if not match:
        return
    if not isinstance(match, Mapping) or not match.get("_target_") or match.get("threshold") is None:
        raise SftdiffError("filter.match must be a filter with a threshold: filter@filter.match=keyword")
    check_keys(match, FilterConfig, "filter.match.")
    for key in ("name", "params"):
        if key not in match:
            raise SftdiffError(f"filter.match.{key} is needed; filter@filter.match=keyword sets it")


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
