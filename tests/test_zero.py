"""DeepSpeed ZeRO and several ranks give the loss curve of one process without them, resume, and fail with a message."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from small_runs import (
    end,
    failure,
    finish,
    furthest,
    losses,
    make_runs,
    relative,
    start,
    steps_command,
    train_step,
    trained,
    wait_for,
    weights,
)
from transformers import AutoModelForCausalLM

from sftdiff.errors import SftdiffError
from sftdiff.records import read_done
from sftdiff.zero import deepspeed_config

LORA = {"method": "lora", "lr": 1e-2}
BF16 = {"precision": "bf16"}
# name -> settings, of which `like` names the training without DeepSpeed that it must equal
REFERENCES: dict[str, dict[str, Any]] = {"plain": {}, "lora": LORA, "bf16": BF16}
ONE_PROCESS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero1": ("plain", {"stage": 1}),
    "zero2": ("plain", {"stage": 2}),
    "zero3": ("plain", {"stage": 3}),
    "zero3-micro": ("plain", {"stage": 3, "micro_batches": 2}),
    "zero2-offload": ("plain", {"stage": 2, "offload": True}),
    "zero2-bf16": ("bf16", {"stage": 2, **BF16}),
    "zero3-bf16": ("bf16", {"stage": 3, **BF16}),
    "zero2-lora": ("lora", {"stage": 2, **LORA}),
    "zero3-lora": ("lora", {"stage": 3, **LORA}),
    "after-zero": ("plain", {}),  # in the process that ran all of these
}
TWO_RANKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("plain", {}),
    "ddp-filler": ("plain", {"micro_batches": 3}),  # six parts for four rows
    "ddp-bf16": ("bf16", BF16),
    "zero1": ("plain", {"stage": 1}),
    "zero2-lora": ("lora", {"stage": 2, **LORA}),
    "zero3": ("plain", {"stage": 3}),
    "zero3-filler": ("plain", {"stage": 3, "micro_batches": 3}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Path:
    """A run directory with trainings in one process without DeepSpeed: 12 optimizer steps each."""
    folder = make_runs(tmp_path_factory.mktemp("runs"), tiny_student)
    for name, settings in REFERENCES.items():
        trained(train_step(folder, name, epochs=2.0, **settings))
    return folder


def run_all(runs: Path, prefix: str, table: dict[str, tuple[str, dict[str, Any]]], ranks: int) -> None:
    """Run many trainings one after the other in one launch, as starting a process costs more than a training."""
    steps = [train_step(runs, f"{prefix}-{name}", epochs=2.0, **settings) for name, (_, settings) in table.items()]
    code = finish(start(steps_command(*steps, ranks=ranks), runs / f"{prefix}.log"), 600)
    assert code == 0, [failure(step) for step in steps]


@pytest.fixture(scope="module")
def one_process(runs: Path) -> Path:
    run_all(runs, "one", ONE_PROCESS, 0)
    return runs


@pytest.fixture(scope="module")
def two_ranks(runs: Path) -> Path:
    run_all(runs, "two", TWO_RANKS, 2)
    return runs


def check(step: Path, like: Path, precision: str = "fp32") -> None:
    """The curve is the reference's, and the saved folder is an ordinary model (or adapter) that equals it."""
    assert relative(losses(step), losses(like)) < (1e-4 if precision == "fp32" else 2e-3)
    assert furthest(weights(step), weights(like)) < (1e-3 if precision == "fp32" else 3e-2)
    assert {t.dtype for t in weights(step).values()} == {t.dtype for t in weights(like).values()}
    if (step / "model/config.json").exists():
        _, info = AutoModelForCausalLM.from_pretrained(step / "model", output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {p.name for p in (step / "model").iterdir()} == {p.name for p in (like / "model").iterdir()}


def test_zero2_on_two_ranks(runs: Path) -> None:
    step = train_step(runs, "fast-zero2", epochs=2.0, stage=2)
    assert finish(start(steps_command(step, ranks=2), runs / "fast.log")) == 0, failure(step)
    check(step, runs / "plain")
    summary = (read_done(step) or {})["summary"]
    assert summary["ranks"] == 2 and summary["optimizer_steps"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PROCESS)
def test_one_process(one_process: Path, name: str) -> None:
    like, _ = ONE_PROCESS[name]
    check(one_process / f"one-{name}", one_process / like, like)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks(two_ranks: Path, name: str) -> None:
    like, _ = TWO_RANKS[name]
    check(two_ranks / f"two-{name}", two_ranks / like, like)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_killed_ranks_go_on_from_their_checkpoint(runs: Path, tmp_path: Path, stage: int) -> None:
    """The same curve and weights as on two ranks that were never killed; one rank, which cannot read it, starts again."""
    settings = {"epochs": 6.0, "stage": stage, "save_steps": 4}
    step, whole = (train_step(runs, f"resume{stage}-{part}", **settings) for part in ("killed", "whole"))
    process = start(steps_command(step, ranks=2), tmp_path / "killed.log")
    try:
        wait_for(lambda: any(step.glob("checkpoints/*/checkpoint-[12][0-9]/trainer_state.json")), process)
    finally:
        end(process)
    assert read_done(step) is None
    shutil.copytree(step, other := runs / f"resume{stage}-other", symlinks=True)
    assert finish(start(steps_command(step, whole, ranks=2), tmp_path / "again.log")) == 0, failure(step)
    assert len(losses(step)) == 36 and resumed_steps(step) >= 12
    assert relative(losses(step), losses(whole)) < 1e-6
    assert furthest(weights(step), weights(whole)) < 1e-6
    assert finish(start(steps_command(other), tmp_path / "other.log")) == 0, failure(other)
    assert resumed_steps(other) == 0
    assert relative(losses(other), losses(whole)) < 1e-4


def resumed_steps(directory: Path) -> int:
    """Return how many steps of a curve come from the checkpoint."""
    return sum(json.loads(line)["tokens"] is None for line in (directory / "curve.jsonl").read_text().splitlines())


FAULT = """
import os, sys
import sftdiff.sft, sftdiff.steps
if os.environ["RANK"] == "{rank}":
    def load_model(*_):
        raise RuntimeError("rank {rank} has no memory left")
    sftdiff.sft.load_model = load_model
sys.exit(sftdiff.steps.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_rank_fails_the_step(runs: Path, tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the launcher: neither rank hangs, the step is failed with a message, and the log names the cause."""
    from launch import local

    step = train_step(runs, f"fault-{rank}", stage=2)
    script, log = tmp_path / "fault.py", tmp_path / "worker.log"
    script.write_text(FAULT.format(rank=rank))

    def start_script(command: Sequence[str], log: Path) -> Any:
        kept = list(command)
        assert kept[-3:-1] == ["-m", "sftdiff.steps"]
        return start([*kept[:-3], str(script), kept[-1]], log)

    monkeypatch.setattr(local, "start", start_script)
    assert local.run_ranks(step, 2, log) == "failed"
    assert failure(step) and not (step / "DONE").exists()
    said = failure(step) + log.read_text() + "".join(p.read_text() for p in (step / "logs").iterdir())
    assert f"rank {rank} has no memory left" in said
    if rank == 0:
        assert "rank 0 has no memory left" in failure(step)


def test_the_settings_of_each_stage() -> None:
    off: dict[str, Any] = {"stage": 0, "offload": False}
    assert deepspeed_config(off, "bf16") is None
    for stage in (1, 2, 3):
        config = deepspeed_config(off | {"stage": stage, "offload": stage == 2}, "bf16") or {}
        assert config["zero_optimization"]["stage"] == stage
        assert ("offload_optimizer" in config["zero_optimization"]) == (stage == 2)
        assert config["torch_autocast"]["enabled"] and not config["bf16"]["enabled"]
    with pytest.raises(SftdiffError, match=r"deepspeed\.stage: 4"):
        deepspeed_config(off | {"stage": 4}, "fp32")


def test_the_package_is_the_one_of_this_tree() -> None:
    import sftdiff

    assert Path(sftdiff.__file__).parent == ROOT / "sftdiff"
