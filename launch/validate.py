"""Checks of a resolved cell that its types cannot express; all cells are checked before any step runs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from sftdiff.config import Config, FilterConfig, PromptSubsetConfig, defaults_of
from sftdiff.errors import SftdiffError
from sftdiff.pack import MATCHES as PACK_MATCHES
from sftdiff.replies import BACKENDS
from sftdiff.rows import TREATMENTS
from sftdiff.subsets import FIELDS, MATCHES, OPTIONAL

EVALUATED_ONLY = ("api", "step")  # origins of models that nothing can be trained from
CHOICES: dict[str, tuple[Any, ...]] = {
    "prompt_subset.treatment": TREATMENTS,
    "prompts.duplicates": ("merge", "fail"),
    "prompts.unusable": ("fail", "leave_out"),
    "model.origin": ("gguf", "hub", "path", *EVALUATED_ONLY),
    "train.method": ("full", "lora"),
    "train.precision": ("bf16", "fp32"),
    "train.over_length": ("drop", "truncate"),
    "train.match": (None, *PACK_MATCHES),
    "sampling.precision": ("bf16", "fp32"),
    "sampling.backend": BACKENDS,
    "deepspeed.stage": (None, 0, 1, 2, 3),
    "track.mode": ("auto", "online", "offline", "off"),
    "missing_rollouts": ("fail", "leave_out", "leave_out_both"),
}
TEACHER_CHOICES = {
    "origin": ("auto", "stored", "endpoint", "transformers", "vllm"),
    "reasoning": ("strip", "keep"),
    "cut": ("error", "keep"),
}
FILTER_CHOICES = {"treatment": ("drop", "swap"), "part": ("reply", "prompt", "both"), "match_by": ("count", "source", "length")}
POSITIVE = ("train.epochs", "train.batch_size", "train.lr", "train.max_length", "train.pack_length", "train.micro_batches",
            "sampling.batch_size", "sampling.concurrency", "sampling.max_tokens", "report.resamples", "prompts.sample",
            "prompts.max_characters")
_ONE_OF_TWO = "set {0}.threshold, or {0}.top (a share below 1, or a number of rows), and the other one to null"
SHARED = ("runs", "sweep", "report", "track", "judge_only")  # settings of a sweep, not of a cell
RUBRIC = ("_target_", "rubric", "labels", "part", "kind")  # what a trait's verdicts rest on


def check_shared(first: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise SftdiffError if two cells differ in a setting that a sweep has once."""
    for key in SHARED:
        if config[key] != first[key]:
            raise SftdiffError(f"{key}: {config[key]!r} and {first[key]!r}: a sweep has one {key}; it cannot be swept")
    _check_one_judge(first, config)


def _check_one_judge(first: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise SftdiffError if two cells would be judged otherwise: another judge or rubric moves every mean."""
    if config["judge"] != first["judge"]:
        keys = [key for key, value in config["judge"].items() if value != first["judge"][key]]
        key = keys[0] if "name" not in keys else "name"
        shown, other = (cell["judge"][key] for cell in (config, first))
        raise SftdiffError(f"judge.{key}: {shown!r} and {other!r}: a sweep has one judge, since verdicts of two "
                           "cannot be compared; judge it with the other one in a command of its own: its replies are "
                           "not sampled again")  # fmt: skip
    for trait in config["trait_eval"].keys() & first["trait_eval"].keys():
        one, two = first["trait_eval"][trait], config["trait_eval"][trait]
        for key in RUBRIC:
            if one[key] != two[key]:
                raise SftdiffError(f"trait_eval.{trait}.{key}: {one[key]!r} and {two[key]!r}: a sweep has one rubric for each "
                                   "trait, since verdicts that rest on two cannot be compared")  # fmt: skip


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
    _check_prompts(config["prompts"])
    for slot in ("teacher", "other_teacher"):
        _check_teacher(config[slot], slot)
    check_subset(config["prompt_subset"])
    check_filter(config["filter"])
    if not config["trait_eval"]:
        raise SftdiffError("trait_eval: choose at least one trait")
    for trait, settings in config["trait_eval"].items():
        _check_trait(trait, settings)
    _check_model(config["model"])
    _check_judge(config["judge"])


@cache
def _fields(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _check_trait(trait: str, settings: Mapping[str, Any]) -> None:
    if settings["kind"] not in ("share", "rating"):
        raise SftdiffError(f"trait_eval.{trait}.kind: {settings['kind']!r} is not one of share, rating")
    if not 0 <= settings["smallest_effect"] < math.inf:
        raise SftdiffError(f"trait_eval.{trait}.smallest_effect: {settings['smallest_effect']} must be 0 or more")
    if settings["samples"] < 1 or settings["max_tokens"] < 1:
        raise SftdiffError(f"trait_eval.{trait}: samples and max_tokens must be at least 1")
    if not (0 <= settings["temperature"] < math.inf and settings["top_k"] >= 0 and 0 < settings["top_p"] <= 1):
        raise SftdiffError(f"trait_eval.{trait}: temperature and top_k must be at least 0, and top_p lie in (0, 1]")
    _check_rubric(trait, settings)


def _check_rubric(trait: str, settings: Mapping[str, Any]) -> None:
    _one_of(settings["part"], ("reply", "emails"), f"trait_eval.{trait}.part")
    labels = settings["labels"]
    if not labels:
        return
    if settings["kind"] != "share" or not settings["rubric"]:
        raise SftdiffError(f"trait_eval.{trait}.labels are the answers to trait_eval.{trait}.rubric of a share (kind: share)")
    if len(labels) < 2 or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in labels.values()):
        raise SftdiffError(f"trait_eval.{trait}.labels: at least two are needed, each with what it counts, from 0 to 1")


def _check_judge(settings: Mapping[str, Any]) -> None:
    """Raise SftdiffError for a judge that could not be asked."""
    _one_of(settings["provider"], ("rules", "endpoint", "inspect", "local"), "judge.provider")
    _one_of(settings["precision"], ("bf16", "fp32"), "judge.precision")
    for key in ("max_tokens", "max_characters", "concurrency", "timeout_s", "max_attempts", "batch_size"):
        if not 0 < settings[key] < math.inf:
            raise SftdiffError(f"judge.{key}: {settings[key]!r} must be greater than 0 and finite")
    if not 0 <= settings["max_error_share"] < 1:
        raise SftdiffError(f"judge.max_error_share: {settings['max_error_share']!r} must lie in [0, 1)")
    model, name = settings["model"], settings["name"]
    if settings["provider"] == "rules":
        return
    if not model["id"]:
        raise SftdiffError(f"judge.model.id is needed for judge={name}: judge.model.id=NAME")
    if settings["provider"] == "inspect" and not all(model["id"].partition("/")):
        raise SftdiffError(f"judge.model.id: {model['id']!r} must be provider/name, for instance anthropic/NAME")
    if settings["provider"] == "local" and model["extra"]:
        raise SftdiffError(f"judge.model.extra: {', '.join(model['extra'])} has no meaning for judge.provider=local")
    prices = [model[key] for key in ("price_in", "price_out")]
    if any(price is not None and not 0 <= price < math.inf for price in prices):
        raise SftdiffError("judge.model.price_in and price_out are dollars per million tokens, 0 or more")
    if settings["max_cost"] is not None and (settings["max_cost"] <= 0 or None in prices):
        raise SftdiffError("judge.max_cost must be greater than 0, and needs judge.model.price_in and judge.model.price_out "
                           "(dollars per million tokens)")  # fmt: skip


def check_keys(value: Any, schema: Any, path: str = "") -> None:
    """Raise SftdiffError on a key that the schema does not have: `+key=...` gets past Hydra, and no step would read it."""
    if not isinstance(value, dict):
        return
    if isinstance(schema, type) and is_dataclass(schema):
        known = _fields(schema)
        for key, inner in value.items():
            if key not in known:
                raise SftdiffError(f"{path}{key}: there is no such setting; known are {', '.join(known)}")
            if isinstance(inner, dict):  # not for each leaf: ten thousand cells have a million
                check_keys(inner, known[key], f"{path}{key}.")
    elif get_origin(schema) is dict:
        for key, inner in value.items():
            check_keys(inner, get_args(schema)[1], f"{path}{key}.")


def _check_types(settings: Mapping[str, Any], schema: type, key: str) -> None:
    """Raise SftdiffError on a value of another type than the schema's: OmegaConf does not look inside of nested choices."""
    hints = _fields(schema)
    for name, value in settings.items():
        if value is not None and not _fits(value, hints[name]):
            expected = re.sub(r"typing\.|Optional\[(.*)\]|<class '(.*)'>", r"\1\2", str(hints[name]))
            raise SftdiffError(f"{key}.{name}: {value!r} is not of the type {expected}")


def _fits(value: Any, hint: Any) -> bool:
    options = [option for option in get_args(hint) if option is not type(None)] if get_origin(hint) is Union else [hint]
    for option in options:
        origin, arguments = get_origin(option), get_args(option)
        if origin is list and isinstance(value, list) and all(_fits(item, arguments[0]) for item in value):
            return True
        if option is Any or (origin is dict and isinstance(value, Mapping)):
            return True
        kind = {float: (int, float)}.get(option, option)
        if origin is None and isinstance(value, kind) and (option is bool or not isinstance(value, bool)):
            return True
    return False


def _check_model(settings: Mapping[str, Any]) -> None:
    if settings["origin"] == "path" and not settings["path"]:
        raise SftdiffError("model.path is needed: model=path model.path=/a/hugging-face/folder")
    if settings["origin"] == "hub" and not settings["id"]:
        raise SftdiffError("model.id is needed: model=hub model.id=organisation/name")
    if settings["origin"] == "gguf" and not settings["gguf"]["files"]:
        raise SftdiffError("model.gguf.files is needed for model.origin=gguf")
    if settings["origin"] == "step" and not settings["id"]:
        raise SftdiffError("model.id is needed: model=step model.id=train-...")
    if settings["origin"] == "api":
        if not settings["id"] or ("/" not in settings["id"] and not settings["base_url"]):
            raise SftdiffError("model.id is needed as provider/name: model=api model.id=openai/... (a name with model.base_url)")
        if settings["base_url"] and not settings["base_url"].startswith(("http://", "https://")):
            raise SftdiffError(f"model.base_url: {settings['base_url']!r} is no URL: it must begin with http:// or https://")
    elif settings["base_url"] or settings["api_key_env"]:
        raise SftdiffError("model.base_url and model.api_key_env belong to model=api")
    if settings["base"] and settings["origin"] != "path":
        raise SftdiffError("model.base belongs to model=path: the model that the checkpoint or adapter was trained from")


def check_trainable(config: Mapping[str, Any]) -> None:
    """Raise SftdiffError on what only `sftdiff.evaluate` can do."""
    model = config["model"]
    if model["origin"] in EVALUATED_ONLY:
        chosen = f"model={model['origin']}"
        raise SftdiffError(f"{chosen} cannot be trained; use `python -m sftdiff.evaluate {chosen} model.id={model['id']}`")
    if model["base"]:
        raise SftdiffError("model.base is read by `python -m sftdiff.evaluate` alone: model.path is what is trained")
    if config["judge_only"]:
        raise SftdiffError("judge_only=true is for `python -m sftdiff.evaluate`, e.g. with model=step model.id=train-...")


def _one_of(value: Any, allowed: Sequence[Any], key: str) -> None:
    if value not in allowed:
        raise SftdiffError(f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}")


def _check_prompts(settings: Mapping[str, Any]) -> None:
    if bool(settings["path"]) == bool(settings["id"]):
        raise SftdiffError("prompts: set either prompts.path (a file or folder) or prompts.id (a data set on the hub)")


def _check_teacher(settings: Mapping[str, Any], slot: str) -> None:
    for key, allowed in TEACHER_CHOICES.items():
        _one_of(settings[key], allowed, f"{slot}.{key}")
    if settings["origin"] == "stored" and bool(settings["path"]) == bool(settings["id"]):
        raise SftdiffError(f"{slot}: set either {slot}.path (a file or folder) or {slot}.id (a data set on the hub)")
    if settings["samples"] < 1 or not 0 <= settings["sample"] < settings["samples"]:
        raise SftdiffError(f"{slot}.sample: {settings['sample']} is not one of the {settings['samples']} samples, counted from 0")


def check_subset(subset: Mapping[str, Any], key: str = "prompt_subset") -> None:
    """Raise SftdiffError if a subset, or one that it is made of, lacks a setting or has one that cannot be."""
    if not isinstance(subset, Mapping) or "name" not in subset:
        raise SftdiffError(f"{key} must be a subset: prompt_subset@{key}=NAME")
    check_keys(dict(subset), PromptSubsetConfig, f"{key}.")
    _check_types(subset, PromptSubsetConfig, key)
    name, settings = subset["name"], defaults_of(PromptSubsetConfig) | dict(subset)
    _one_of(name, tuple(FIELDS), f"{key}.name")
    for setting in FIELDS[name]:
        if settings[setting] in (None, [], {}) and setting not in OPTIONAL:
            form = {"of": "prompt_subset@{}=NAME", "sets": "prompt_subset@{}.NAME=NAME", "locator": "filter@{}=NAME"}
            how = form.get(setting, "{}=...").format(f"{key}.{setting}")
            raise SftdiffError(f"{key}.{setting} is needed for prompt_subset={name}: {how}")
    if name == "regex":
        try:
            re.compile(settings["pattern"])
        except re.error as error:
            raise SftdiffError(f"{key}.pattern: {settings['pattern']!r} is not valid ({error})") from None
    if "share" in FIELDS[name] and not 0 <= settings["share"] <= 1:
        raise SftdiffError(f"{key}.share: {settings['share']} must lie between 0 and 1")
    _one_of(settings["match"], MATCHES, f"{key}.match")
    if "locator" in FIELDS[name]:
        check_filter(settings["locator"], f"{key}.locator", threshold=False)
        if not settings["locator"].get("_target_"):
            raise SftdiffError(f"{key}.locator must be a filter with scores: filter@{key}.locator=keyword")
    if name == "locator" and (settings["threshold"] is None) == (settings["top"] is None):
        raise SftdiffError(f"prompt_subset=locator: {_ONE_OF_TWO.format(key)}")
    _check_top(settings, key)
    inner = {"of": settings["of"]} if "of" in FIELDS[name] else {f"sets.{k}": v for k, v in (settings["sets"] or {}).items()}
    for part, value in inner.items():
        check_subset(value, f"{key}.{part}")


def check_filter(settings: Any, key: str = "filter", threshold: bool = True) -> None:
    """Raise SftdiffError if a filter, or one that it is made of, lacks a setting or has one that cannot be."""
    if not isinstance(settings, Mapping) or "name" not in settings:
        raise SftdiffError(f"{key} must be a filter: filter@{key}=NAME")
    check_keys(dict(settings), FilterConfig, f"{key}.")
    _check_types(settings, FilterConfig, key)
    name, settings = settings["name"], defaults_of(FilterConfig) | dict(settings)
    for setting, allowed in FILTER_CHOICES.items():
        _one_of(settings[setting], allowed, f"{key}.{setting}")
    _check_top(settings, key)
    if settings["match"]:
        check_filter(settings["match"], f"{key}.match")
        if not settings["match"].get("_target_") or settings["match"].get("match"):
            raise SftdiffError(f"{key}.match must be a filter with scores: filter@{key}.match=keyword")
        if settings["threshold"] is not None or settings["top"] is not None:
            raise SftdiffError(f"{key}: the matched filter says how many rows are flagged; to set it here: {key}.match=null")
        if "seed" not in settings["params"]:
            raise SftdiffError(f"{key}.params.seed is needed for a filter that matches another one")
        return
    for part, value in (settings["chain"] or {}).items():
        check_filter(value, f"{key}.chain.{part}")
    if name == "chain" and not settings["chain"]:
        raise SftdiffError("filter=chain needs its filters: filter@filter.chain.first=keyword filter@filter.chain.second=bm25")
    if threshold and settings["_target_"] and (settings["threshold"] is None) == (settings["top"] is None):
        raise SftdiffError(f"filter={name}: {_ONE_OF_TWO.format(key)}")


def _check_top(settings: Mapping[str, Any], key: str) -> None:
    top = settings["top"]
    if top is not None and not (0 <= top < 1 or (top >= 1 and float(top).is_integer())):
        raise SftdiffError(f"{key}.top: {top} is neither a share below 1 nor a number of rows")


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
