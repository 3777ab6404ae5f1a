"""The sample step: a model's replies to a trait's scenarios, as an Inspect log and as replies.parquet."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, get_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from sftdiff.backend import LocalModel, quiet_inspect
from sftdiff.errors import SftdiffError
from sftdiff.files import write_rows
from sftdiff.records import read_done, read_json
from sftdiff.render import rendering_hash
from sftdiff.steps import Step
from sftdiff.students import load_student, load_tokenizer
from sftdiff.traits import load_trait
from sftdiff.traits.tasks import replies, trait_task

REPLY_SCHEMA = pa.schema(
    [
        ("scenario", pa.string()),
        ("sample", pa.int32()),
        ("turn", pa.int32()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("cut", pa.bool_()),
    ]
)


def run_sample(step: Step) -> dict[str, Any]:
    """Sample every reply of one trait's scenarios from one model."""
    config = step.config
    trait = load_trait(config["trait"], config["suite"], config["scenarios"])
    model, tokenizer = _load(step)
    total = sum(len(s.turns) for s in trait.scenarios) * config["samples"]
    done = 0

    def on_finished(count: int) -> None:
        nonlocal done
        done += count
        step.progress(done, total, "replies")

    model_input = step.record.inputs["model"]
    generation = GenerateConfig(**{k: config[k] for k in ("temperature", "top_k", "top_p", "max_tokens")})
    batch = {"batch_size": step.record.runtime["batch_size"], "on_finished": on_finished}
    local = get_model(f"sftdiff/{model_input}", config=generation, memoize=False, student=model, tokenizer=tokenizer, **batch)
    task = trait_task(trait, config["samples"], generation, f"{config['seed']}:{model_input}")
    with quiet_inspect():
        log = inspect_eval(
            task,
            model=local,
            score=False,
            display="none",
            log_dir=str(step.directory / "inspect"),
            log_format="eval",
            log_level="warning",
            max_samples=10_000,
            fail_on_error=True,
            metadata={"step": step.record.id},
        )[0]
    if log.status != "success":
        raise SftdiffError(f"{step.record.id}: sampling failed: {log.error.message if log.error else log.status}")
    rows, api = reply_rows(log), local.api
    assert isinstance(api, LocalModel)
    write_rows(step.directory / "replies.parquet", rows, REPLY_SCHEMA)
    return {
        "replies": len(rows),
        "new_tokens": api.generated_tokens,
        "tokens_per_second": round(api.generated_tokens / max(api.generate_seconds, 1e-9), 1),
        "cut_share": sum(row["cut"] for row in rows) / len(rows),
    }


def reply_rows(log: EvalLog) -> list[dict[str, Any]]:
    """Return one row a reply, in a fixed order."""
    rows = []
    for sample in log.samples or []:
        for turn, (prompt, reply) in enumerate(replies(sample.messages)):
            cut = sample.store.get(f"stop_{turn}") == "max_tokens"
            row = {"scenario": str(sample.id), "sample": sample.epoch, "turn": turn, "prompt": prompt, "reply": reply}
            rows.append(row | {"cut": cut})
    return sorted(rows, key=lambda r: (r["scenario"], r["sample"], r["turn"]))


def _load(step: Step) -> tuple[Any, Any]:
    """Load the step's model: the untrained student, or a trained one after checking that training changed it."""
    student = step.input("student")
    folder, tokenizer = load_student(student)
    trained = step.input("model")
    if trained != student:
        recorded = read_json(student / "student.json")
        tokenizer = load_tokenizer(trained / "model", recorded)
        if rendering_hash(tokenizer) != recorded["rendering"]:
            raise SftdiffError(f"{trained.name}: the saved tokenizer renders conversations otherwise than in training")
    source = str(trained / "model") if trained != student else ""
    content = (read_done(trained) or {})["content"]
    return load_for_sampling(str(folder), source, content, step.config["precision"]), tokenizer


@lru_cache(maxsize=1)  # the steps of one model's traits follow each other in a worker
def load_for_sampling(folder: str, trained: str, content: str, precision: str) -> Any:
    """Load a student, or a trained one (full weights or adapter) in `trained`; every weight must bind, and some must differ.

    `content` is the content hash of the step that made it, so that a model that was made again is loaded again.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    adapter = bool(trained) and (Path(trained) / "adapter_config.json").is_file()
    source = trained if trained and not adapter else folder
    model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    problems = {k: v for k, v in info.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    if problems:
        raise SftdiffError(f"{source}: not every weight bound to the model: {problems}")
    if adapter:
        model = _bind_adapter(model, Path(trained))
    elif trained:
        _assert_changed(model, Path(folder), trained)
    model.generation_config = GenerationConfig()  # a student's own, with penalties perhaps, is no part of the record
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _bind_adapter(model: Any, trained: Path) -> Any:
    """Load a LoRA adapter, check that its tensors are those of the model and not zero, and merge it."""
    from peft import PeftModel, get_peft_model_state_dict

    saved = load_file(trained / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(model, trained)
    bound = get_peft_model_state_dict(model)
    wrong = [n for n in saved.keys() | bound.keys() if not _same(saved.get(n), bound.get(n))]
    if wrong or not saved:
        raise SftdiffError(f"{trained}: {len(wrong)} adapter tensors did not bind to the model, e.g. {sorted(wrong)[:3]}")
    if not any("lora_B" in name and bool(tensor.any()) for name, tensor in saved.items()):
        raise SftdiffError(f"{trained}: the adapter is zero everywhere: training changed nothing")
    return model.merge_and_unload()


def _same(saved: torch.Tensor | None, bound: torch.Tensor | None) -> bool:
    return saved is not None and bound is not None and torch.equal(bound, saved.to(bound.dtype))


def _assert_changed(model: Any, student: Path, trained: str) -> None:
    # Loaded like the trained one: names in a file differ from those in memory for some architectures (Gemma 3).
    before = AutoModelForCausalLM.from_pretrained(student, dtype=model.dtype).state_dict()
    after = model.state_dict()
    if all(torch.equal(after[name], tensor) for name, tensor in before.items()):
        raise SftdiffError(f"{trained}: the trained model equals the untrained student: training changed nothing")


