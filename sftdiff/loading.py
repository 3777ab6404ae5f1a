"""Load a model for sampling: every weight must bind, a trained one must differ from its student and render as in training."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from sftdiff.errors import SftdiffError, first_line
from sftdiff.records import read_done, read_json
from sftdiff.render import rendering_hash
from sftdiff.steps import Step
from sftdiff.students import ADAPTER, ORIGIN, folder_hashes, load_student, load_tokenizer

WEIGHTS = (".safetensors", ".bin")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert in a module's path


@dataclass(frozen=True)
class Loadable:
    """A model that can be loaded: `student` is the folder that it was trained from (itself, if it is not known to be trained).

    `trained` is the folder of the trained weights or adapter, "" for none. `content` identifies what was loaded. `checked` says
    what is known of its training once it is loaded.
    """

    student: str
    trained: str
    content: str
    tokenizer: Any
    eos_is_end: bool  # training taught it to end with the tokenizer's end-of-turn token
    checked: str


def find_model(step: Step) -> Loadable:
    """Find the model of a sample step: its inputs "student" and "model" are the same step if it is not known to be trained.

    Raise SftdiffError if a trained one renders conversations otherwise than in training.
    """
    student, model = step.input("student"), step.input("model")
    folder, tokenizer = load_student(student)
    content = (read_done(model) or {})["content"]
    recorded = read_json(student / "student.json")
    if model == student:
        return _as_it_is(folder, content, tokenizer)
    if by_another := (model / "student.json").is_file():
        own = read_json(model / "student.json")
        trained, rendering = Path(own["path"]), own["rendering"]
        if (trained / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(trained, own)
        _check_base(trained, recorded)
    else:
        trained = model / "model"
        tokenizer = load_tokenizer(trained, recorded)
        rendering = rendering_hash(tokenizer)
    if rendering != recorded["rendering"]:
        raise SftdiffError(f"{trained}: its tokenizer renders conversations otherwise than in training (or than {folder} does)")
    checked = f"every weight bound; some differ from {folder}; renders conversations alike"
    taught = not by_another or (trained / ORIGIN).is_file()
    return Loadable(str(folder), str(trained), content, tokenizer, taught, checked)


def _as_it_is(folder: Path, content: str, tokenizer: Any) -> Loadable:
    """Return a model without a known student; what sftdiff trained says in its folder what it was trained from."""
    bound = "every weight bound"
    if not (folder / ORIGIN).is_file():
        unknown = f"{bound}; what it was trained from is not known (model.base), so whether training changed it is not checked"
        return Loadable(str(folder), "", content, tokenizer, False, unknown)
    origin = read_json(folder / ORIGIN)
    if rendering_hash(tokenizer) != origin["rendering"]:
        raise SftdiffError(f"{folder}: its tokenizer renders conversations otherwise than in training ({ORIGIN})")
    base = Path(origin["student"]["path"])
    if base.is_dir() and folder_hashes(base) == origin["student"]["files"]:
        checked = f"{bound}; some differ from {base}; renders conversations as in training"
        return Loadable(str(base), str(folder), content, tokenizer, True, checked)
    gone = f"{bound}; renders conversations as in training; {base} is gone, so whether training changed it is not checked"
    return Loadable(str(folder), "", content, tokenizer, True, gone)


def _check_base(trained: Path, base: dict[str, Any]) -> None:
    """Raise SftdiffError if a model that sftdiff trained was trained from other weights than `base` has."""
    if not (trained / ORIGIN).is_file():
        return
    origin = read_json(trained / ORIGIN)["student"]
    ours, theirs = ({k: v for k, v in files.items() if k.endswith(WEIGHTS)} for files in (base["files"], origin["files"]))
    if ours != theirs:
        raise SftdiffError(f"{trained} was trained from {origin['path']}, which has other weights than model.base={base['path']}")


@lru_cache(maxsize=1)  # the steps of one model's traits follow each other in a worker
def load_for_sampling(folder: str, trained: str, content: str, precision: str) -> Any:
    """Load a student, or a trained one (full weights or adapter) in `trained`; every weight must bind, and some must differ.

    `content` is the content hash of the step that made it, so that a model that was made again is loaded again. The tokens with
    which the model says that it ends generation are kept as `ends_with`.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    adapter = bool(trained) and (Path(trained) / ADAPTER).is_file()
    source = trained if trained and not adapter else folder
    try:
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise SftdiffError(f"{source}: the model cannot be loaded ({first_line(error)})") from None
    problems = {k: v for k, v in info.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    if problems:
        raise SftdiffError(f"{source}: not every weight bound to the model: {problems}")
    if adapter:
        model = _bind_adapter(model, Path(trained))
    elif trained:
        _assert_changed(model, Path(folder), trained)
    ends = model.generation_config.eos_token_id if model.generation_config else None
    model.ends_with = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    model.generation_config = GenerationConfig()  # a student's own, with penalties perhaps, is no part of the record
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _bind_adapter(model: Any, trained: Path) -> Any:
    """Load a LoRA adapter, check that its tensors are those of the model, in all of its layers, and not zero, and merge it."""
    from peft import PeftModel, get_peft_model_state_dict

    if not (trained / "adapter_model.safetensors").is_file():
        raise SftdiffError(f"{trained}: there is no adapter_model.safetensors; pickled weights are not read")
    saved = load_file(trained / "adapter_model.safetensors")
    modules = [name for name, _ in model.named_modules()]
    try:
        model = PeftModel.from_pretrained(model, trained)
    except (RuntimeError, ValueError) as error:  # of other sizes, or for modules that the model has not
        raise SftdiffError(f"{trained}: the adapter does not fit the model ({first_line(error)}): is model.base right?") from None
    bound = get_peft_model_state_dict(model)
    wrong = [n for n in saved.keys() | bound.keys() if not _same(saved.get(n), bound.get(n))]
    if wrong or not saved:
        raise SftdiffError(f"{trained}: {len(wrong)} adapter tensors did not bind to the model, e.g. {sorted(wrong)[:3]}")
    known = (trained / ORIGIN).is_file()  # sftdiff trained it, and its base's weights were compared
    if not known and (left_out := _later_layers(saved, modules, model.peft_config["default"])):
        raise SftdiffError(f"{trained}: the adapter has nothing for {len(left_out)} modules of the model's later layers, e.g. "
                           f"{left_out[0]}: it was trained on a model with fewer. Is model.base right? One for the first layers "
                           f"alone says so by layers_to_transform in its {ADAPTER}")  # fmt: skip
    if not any("lora_B" in name and bool(tensor.any()) for name, tensor in saved.items()):
        raise SftdiffError(f"{trained}: the adapter is zero everywhere: training changed nothing")
    return model.merge_and_unload()


def _later_layers(saved: Iterable[str], modules: Iterable[str], config: Any) -> list[str]:
    """Return the modules like those of an adapter that come after the last one that it has tensors for.

    An adapter for all linear modules names each by its path, and PEFT binds it to a deeper model as well. None are left out of
    one whose config chooses layers.
    """
    if config.layers_to_transform is not None or config.exclude_modules or isinstance(config.target_modules, str):
        return []
    own = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in saved if ".lora_" in name}
    alike: dict[str, list[tuple[list[int], str]]] = {}  # path without numbers -> modules in the order of their numbers
    for name in modules:
        alike.setdefault(NUMBER.sub("N", name), []).append(([int(n) for n in NUMBER.findall(name)], name))
    found = []
    for group in alike.values():
        held = [name in own for _, name in sorted(group)]
        first = sum(held)
        if first and all(held[:first]):
            found += [name for _, name in sorted(group)[first:]]
    return found


def _same(saved: torch.Tensor | None, bound: torch.Tensor | None) -> bool:
    return saved is not None and bound is not None and torch.equal(bound, saved.to(bound.dtype))


def _saved_dtype(folder: Path) -> torch.dtype | None:
    """Return the type that a folder's weights are saved in: rounding to it is no training."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                dtype: torch.dtype = file.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return None


def _assert_changed(model: Any, student: Path, trained: str) -> None:
    # Loaded like the trained one: names in a file differ from those in memory for some architectures (Gemma 3).
    before = AutoModelForCausalLM.from_pretrained(student, dtype=model.dtype).state_dict()
    after, saved = model.state_dict(), _saved_dtype(Path(trained)) or model.dtype
    wrong = [name for name in before.keys() | after.keys() if name not in before or name not in after]
    wrong += [name for name, tensor in before.items() if name in after and after[name].shape != tensor.shape]
    if wrong:
        raise SftdiffError(f"{trained} was not trained from {student}: {len(wrong)} tensors are in one of them alone or have "
                           f"another shape, e.g. {sorted(wrong)[0]}")  # fmt: skip
    if all(torch.equal(after[name].to(saved), tensor.to(saved)) for name, tensor in before.items()):
        raise SftdiffError(f"{trained}: the trained model equals the untrained student: training changed nothing")
