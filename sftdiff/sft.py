"""The train step: supervised fine-tuning with transformers' Trainer, on any number of ranks, with or without DeepSpeed ZeRO.

What is ours: rows are packed so that no conversation attends to another, the output layer sees only positions that carry loss,
and an optimizer step is a fixed set of conversations whatever the number of ranks. The rest is Trainer's.
"""

import json
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.pack import Row, load_rows, match_target, order_matched, order_steps
from sftdiff.ranks import is_first_rank, world_size
from sftdiff.records import read_json, write_json
from sftdiff.render import rendering_hash
from sftdiff.steps import Step
from sftdiff.students import ORIGIN, load_student
from sftdiff.trainer import AnswerLogits, PackedSteps, SftTrainer
from sftdiff.zero import close_at_exit, deepspeed_config, local_distributed_defaults


class Curve(TrainerCallback):
    """Writes one line for each optimizer step to curve.jsonl, and the step's progress."""

    def __init__(self, step: Step, path: Path, tokens: list[int]) -> None:
        self.step, self.path, self.tokens = step, path, tokens
        self.started, self.first = time.time(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first = time.time(), sum(self.tokens[: state.global_step])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not is_first_rank() or "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"] + (logs.get("grad_norm") or 0.0)):
            raise SftdiffError(
                f"{self.step.record.id}: the loss or its gradient is not finite at optimizer step {state.global_step}: "
                "lower train.lr, or use train.precision=fp32"
            )
        seen = sum(self.tokens[: state.global_step])
        line = {"step": state.global_step, "loss": logs["loss"], "grad_norm": logs.get("grad_norm"), "lr": logs["learning_rate"]}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line | {"tokens": seen, "seconds": round(time.time() - self.started, 2)}) + "\n")
        rate = (seen - self.first) / max(time.time() - self.started, 1e-3)
        self.step.progress(seen, sum(self.tokens), "tokens", rate)


def run_train(step: Step) -> dict[str, Any]:
    """Train one student and write model/ (or adapter in model/), curve.jsonl and training.json."""
    config, runtime = step.config["train"], step.record.runtime
    stage = runtime["deepspeed"]["stage"]
    if stage:
        local_distributed_defaults()
    folder, tokenizer = load_student(step.input("student"))
    ranks = world_size()
    steps = _ordered(step)
    parts = ranks * runtime["micro_batches"]
    dataset = PackedSteps(steps, parts, config["pack_length"] if config["packing"] else None, tokenizer.pad_token_id)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier step of this process may have had another precision
    arguments = _arguments(step, len(steps), ranks)
    tokens = [sum(len(r.input_ids) for r in rows) for rows in steps]
    curve = step.directory / "curve.jsonl"
    checkpoint = _checkpoint_to_continue(Path(arguments.output_dir), curve)
    try:
        torch.manual_seed(step.config["seed"])
        model = load_model(folder, config, step.config["seed"])
        trainable = sum(p.requires_grad for p in model.parameters())
        trainer = SftTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=lambda items: items[0],
            answers=AnswerLogits(model),
            callbacks=[Curve(step, curve, tokens)],
        )
        started = time.time()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.time() - started
        _save(trainer, tokenizer, step.directory / "model", config["precision"])
        _state_origin(step, tokenizer)
        close_at_exit()
    finally:
        if stage == 3:
            unset_hf_deepspeed_config()  # else the next model of this process would be loaded in parts
    rate = sum(tokens[_steps_done(checkpoint) :]) / seconds
    return _finish(step, steps, {"train_seconds": seconds, "tokens_per_second": rate, "ranks": ranks, "trainable": trainable})


def _ordered(step: Step) -> list[list[Row]]:
    """Return the rows of each optimizer step: for `epochs`, or for as long as that many of the reference mixture would take."""
    config, seed = step.config["train"], step.config["seed"]
    rows = load_rows(step.input("pack"))
    if config["match"] is None:
        return order_steps(rows, seed, config["epochs"], config["batch_size"])
    reference = read_json(step.input("reference", "summary.json") / "summary.json")
    target = match_target(reference, config["match"], config["epochs"], config["batch_size"])
    return order_matched(rows, seed, config["batch_size"], config["match"], target)


def _arguments(step: Step, optimizer_steps: int, ranks: int) -> TrainingArguments:
    config, runtime = step.config["train"], step.record.runtime
    save_steps = runtime["save_steps"]
    try:
        return TrainingArguments(
            output_dir=str(_checkpoint_folder(step, ranks)),
            max_steps=optimizer_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=runtime["micro_batches"],
            learning_rate=config["lr"],
            lr_scheduler_type=config["schedule"],
            warmup_steps=math.ceil(config["warmup_share"] * optimizer_steps),
            weight_decay=config["weight_decay"],
            max_grad_norm=config["max_grad_norm"],
            optim="adamw_torch_fused",
            bf16=config["precision"] == "bf16" and not runtime["deepspeed"]["stage"],  # DeepSpeed has an autocast of its own
            seed=step.config["seed"],
            data_seed=step.config["seed"],
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="steps" if save_steps else "no",
            save_steps=save_steps or 1,
            save_total_limit=2,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            ddp_backend="gloo" if "RANK" in os.environ and not torch.cuda.is_available() else None,
            use_cpu=not torch.cuda.is_available(),
            deepspeed=deepspeed_config(runtime["deepspeed"], config["precision"]),
        )
    except ValueError as error:
        raise SftdiffError(f"train: transformers refuses these settings: {error}") from None


def load_model(folder: Path, config: dict[str, Any], seed: int) -> Any:
    """Load a student for training: fp32 weights (autocast does the bf16 part), with LoRA adapters where asked."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    if config["method"] == "lora":
        from peft import LoraConfig, get_peft_model

        lora = config["lora"]
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapter)
    return model


def _seen(steps: list[list[Row]]) -> dict[str, int]:
    """Return how much a training sees, over all epochs."""
    rows = [row for step in steps for row in step]
    tokens = sum(len(row.input_ids) for row in rows)
    loss_tokens = tokens - sum(row.prompt_length for row in rows)
    return {"optimizer_steps": len(steps), "rows_seen": len(rows), "tokens": tokens, "loss_tokens_seen": loss_tokens}


def _checkpoint_folder(step: Step, ranks: int) -> Path:
    """Return where this training keeps its checkpoints: it cannot go on from one of other rows, ranks or ZeRO settings."""
    return step.directory / "checkpoints" / digest(canonical([ranks, step.record.runtime["deepspeed"], step.read]))


def _checkpoint_to_continue(folder: Path, curve: Path) -> Path | None:
    """Return the last whole checkpoint; its curve, kept beside it, is where the curve goes on."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_steps_done, reverse=True):
        try:
            history = read_json(checkpoint / "trainer_state.json")["log_history"]
        except (SftdiffError, FileNotFoundError):  # it is written last: the training ended while it saved this checkpoint
            continue
        if is_first_rank():
            lines = [{"step": h["step"], "loss": h["loss"], "grad_norm": h.get("grad_norm"), "lr": h["learning_rate"]}
                     for h in history if "loss" in h]
            curve.write_text("".join(json.dumps(line | {"tokens": None, "seconds": None}) + "\n" for line in lines))
        return checkpoint
    return None


def _steps_done(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _save(trainer: Trainer, tokenizer: Any, target: Path, precision: str) -> None:
    """Save the student as an ordinary folder, in the precision that it was trained for."""
    trainer.save_model(str(target))
    if not is_first_rank():
        return
    tokenizer.save_pretrained(target)
    (target / "training_args.bin").unlink(missing_ok=True)  # a pickle is no record
    if precision == "bf16":
        _cast_folder(target)


def _state_origin(step: Step, tokenizer: Any) -> None:
    """Write in the model's folder what it was trained from and how it rendered, for when it is evaluated elsewhere."""
    if is_first_rank():
        student = read_json(step.input("student", "student.json") / "student.json")
        origin = {"step": step.record.id, "rendering": rendering_hash(tokenizer)}
        write_json(step.directory / "model" / ORIGIN, origin | {"student": {k: student[k] for k in ("path", "files")}})


def _cast_folder(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        tensors = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    if (config := folder / "config.json").is_file():
        write_json(config, read_json(config) | {"dtype": "bfloat16"})


def _finish(step: Step, steps: list[list[Row]], measured: dict[str, Any]) -> dict[str, Any]:
    if not is_first_rank():
        return {}
    import shutil

    shutil.rmtree(step.directory / "checkpoints", ignore_errors=True)
    losses = [json.loads(line)["loss"] for line in (step.directory / "curve.jsonl").read_text().splitlines()]
    pack = read_json(step.record.input_directory("pack") / "summary.json")
    made = {**_seen(steps), "first_loss": losses[0], "last_loss": losses[-1]}
    write_json(step.directory / "training.json", made | {"losses": losses})
    return {
        **made,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
        **{name: round(value, 2) for name, value in measured.items()},
        "rendering": pack["rendering"],
    }
