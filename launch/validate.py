"""Checks of a resolved cell that its types cannot express; all cells are checked before any step runs."""

from collections.abc import Mapping
from typing import Any

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
            "sampling.batch_size", "report.resamples")


def check_cell(config: Mapping[str, Any]) -> None:
    """Raise SftdiffError on the first value that no step could use."""
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            raise SftdiffError(f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}")
    for key in POSITIVE:
        if not _get(config, key) > 0:
            raise SftdiffError(f"{key}: {_get(config, key)!r} must be greater than 0")
    if not 0 <= config["prompt_subset"]["share"] <= 1:
        raise SftdiffError(f"prompt_subset.share: {config['prompt_subset']['share']} must lie between 0 and 1")
    _check_filter(config["filter"])
    if not config["trait_eval"]:
        raise SftdiffError("trait_eval: choose at least one trait")
    for trait, settings in config["trait_eval"].items():
        if settings["kind"] not in ("share", "rating"):
            raise SftdiffError(f"trait_eval.{trait}.kind: {settings['kind']!r} is not one of share, rating")
        if settings["samples"] < 1 or settings["max_tokens"] < 1:
            raise SftdiffError(f"trait_eval.{trait}: samples and max_tokens must be at least 1")
    uses_adapter = config["model"]["origin"] == "path" and not config["model"]["path"]
    if uses_adapter:
        raise SftdiffError("model.path is needed: model=path model.path=/a/hugging-face/folder")


def _check_filter(settings: Mapping[str, Any]) -> None:
    if settings["_target_"] and settings["threshold"] is None and not settings["match"]:
        raise SftdiffError(f"filter.threshold is needed for filter={settings['name']}")
    match = settings["match"]
    if match and (not isinstance(match, Mapping) or not match.get("_target_") or match.get("threshold") is None):
        raise SftdiffError("filter.match must be a filter with a threshold: filter@filter.match=keyword")


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
