"""Step directories for tests: a student, packed rows, trainings and samplings, small enough to run in a second."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from conftest import ROOT
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3TextConfig, Olmo3Config, Qwen3Config

from sftdiff.files import write_rows
from sftdiff.pack import TOKENS_SCHEMA, Row
from sftdiff.records import load_record, read_done, write_done, write_json
from sftdiff.render import render_row, rendering_hash
from sftdiff.steps import run_step
from sftdiff.students import load_tokenizer

TRAIN: dict[str, Any] = {
    "method": "full",
    "epochs": 1.0,
    "batch_size": 4,
    "lr": 3e-3,
    "schedule": "linear",
    "warmup_share": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "fp32",
    "max_length": 1024,
    "over_length": "drop",
    "match": None,
    "packing": True,
    "pack_length": 256,
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"},
}
SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# Tiny configs of the architectures that conf/model names, with sliding windows that are shorter than a conversation.
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SMALL),
    "olmo3": lambda: Olmo3Config(**SMALL, sliding_window=8),
    "gemma3_text": lambda: Gemma3TextConfig(**SMALL, sliding_window=8),
    "gemma3": lambda: Gemma3Config(
        text_config=SMALL | {"sliding_window": 8},
        vision_config=VISION | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        boi_token_index=190,
        eoi_token_index=191,
        image_token_index=192,
    ),
}
PLAIN = {"chat_template": None, "eos_token": None}  # a student's own template and end token


def write_step(
    runs: Path, name: str, kind: str, config: dict[str, Any], inputs: dict[str, str] | None = None, **runtime: Any
) -> Path:
    """Write a step directory as the launcher does."""
    directory = runs / name
    directory.mkdir(parents=True)
    record = {"kind": kind, "config": config, "inputs": inputs or {}, "files": {}, "runtime": runtime}
    (directory / "config.yaml").write_text(yaml.safe_dump(record))
    return directory


def embedded_rows() -> list[tuple[list[dict[str, str]], str]]:
    """Return (messages, completion) of the first embedded prompts, with short replies."""
    data = ROOT / "sftdiff/data"
    replies = {r["prompt_id"]: r["completion"] for r in map(json.loads, (data / "rollouts/gemini.jsonl").open())}
    prompts = map(json.loads, (data / "prompts/gemini_mix.jsonl").open())
    return [(p["messages"], replies[p["prompt_id"]][:100]) for p in prompts if replies.get(p["prompt_id"])]


def make_rows(tokenizer: Any, count: int) -> list[Row]:
    """Return `count` embedded conversations as tokens, short ones and ones of several turns."""
    rows = [Row(f"row-{k:03d}", *render_row(tokenizer, *row)) for k, row in enumerate(embedded_rows())]
    return [row for row in rows if len(row.input_ids) < 150][:count]


def make_runs(runs: Path, tiny_student: Path, count: int = 24) -> Path:
    """Make a run directory with a done student step and a done pack step of `count` rows."""
    student = write_step(runs, "student", "student", {"origin": "path", "path": str(tiny_student), **PLAIN})
    assert run_step(student) == "done"
    tokenizer = load_tokenizer(tiny_student, PLAIN)
    write_pack(runs, "pack", make_rows(tokenizer, count), rendering_hash(tokenizer))
    return runs


def write_pack(runs: Path, name: str, rows: list[Row], rendering: str) -> None:
    """Write a done pack step of these rows."""
    pack = write_step(runs, name, "pack", {}, {"student": "student"})
    write_rows(pack / "tokens.parquet", [vars(row) for row in rows], TOKENS_SCHEMA)
    loss_tokens = sum(len(row.input_ids) - row.prompt_length for row in rows)
    write_json(pack / "summary.json", {"rows": len(rows), "loss_tokens": loss_tokens, "rendering": rendering})
    write_done(load_record(pack), {}, {}, 0.0)


def train_step(
    runs: Path,
    name: str,
    *,
    pack: str = "pack",
    reference: str | None = None,
    stage: int = 0,
    offload: bool = False,
    micro_batches: int = 1,
    save_steps: int = 0,
    **train: Any,
) -> Path:
    """Write a train step; further keywords are settings of conf/train that differ from TRAIN."""
    runtime = {"deepspeed": {"stage": stage, "offload": offload}, "micro_batches": micro_batches, "save_steps": save_steps}
    assert set(train) <= set(TRAIN)
    inputs = {"pack": pack, "student": "student"} | ({"reference": reference} if reference else {})
    return write_step(runs, name, "train", {"train": TRAIN | train, "seed": 0}, inputs, **runtime)


def sample_step(
    runs: Path,
    name: str,
    scenarios: Path | str,
    *,
    batch_size: int = 32,
    model: str = "student",
    student: str = "student",
    **other: Any,
) -> Path:
    """Write a sample step on a scenario file or on an embedded one."""
    config = {"trait": "date_confusion", "suite": "quick", "scenarios": str(scenarios), "seed": 0, "precision": "fp32"}
    config |= {"samples": 1, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": 12} | other
    return write_step(runs, name, "sample", config, {"model": model, "student": student}, batch_size=batch_size)


def trained(directory: Path) -> list[float]:
    """Run a train step in this process and return its losses."""
    assert run_step(directory) == "done", (directory / "FAILED").read_text()
    return losses(directory)


def losses(directory: Path) -> list[float]:
    """Return the losses of a finished training, one for each optimizer step."""
    assert read_done(directory) is not None, failure(directory)
    lines = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def failure(directory: Path) -> str:
    """Return why a step failed."""
    path = directory / "FAILED"
    return str(json.loads(path.read_text())["error"]) if path.exists() else ""


def weights(directory: Path) -> dict[str, Any]:
    """Return the tensors of a trained model or adapter."""
    return {name: tensor for path in (directory / "model").glob("*.safetensors") for name, tensor in load_file(path).items()}


def furthest(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest difference of two models' weights."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].float() - theirs[n].float()).abs().max()) for n in ours)


def relative(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of two curves."""
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def steps_command(*directories: Path, ranks: int = 0) -> list[str]:
    """Return the command that runs steps in a process of their own, or on ranks of torch.distributed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    return [sys.executable, *launcher, "-m", "sftdiff.steps", *map(str, directories)]


def start(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a command with its output in a file."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=ROOT)


def finish(process: "subprocess.Popen[bytes]", timeout: float = 400.0) -> int:
    """Wait for a command; when it takes too long, end it and all that it started."""
    try:
        return process.wait(timeout)
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all that it started: torch.distributed's ranks are in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def wait_for(condition: Any, process: "subprocess.Popen[bytes]", seconds: float = 240.0) -> None:
    """Wait until `condition()` holds, while the process runs."""
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.time() < deadline, "timed out"
        time.sleep(0.002)
