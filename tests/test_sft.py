"""The train step on a tiny student: its loss against other ways to compute it, TRL, resume, and what it leaves behind."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_student
from safetensors.torch import load_file, save_file
from small_runs import (
    ARCHITECTURES,
    PLAIN,
    TRAIN,
    end,
    failure,
    finish,
    furthest,
    losses,
    make_rows,
    make_runs,
    relative,
    start,
    steps_command,
    train_step,
    trained,
    wait_for,
    weights,
    write_pack,
)
from transformers import AutoModelForCausalLM, TrainingArguments

from sftdiff.errors import SftdiffError
from sftdiff.loading import _assert_changed, load_for_sampling
from sftdiff.pack import Row, load_rows, match_target, order_matched, order_steps
from sftdiff.records import read_done, read_json
from sftdiff.sft import Curve
from sftdiff.steps import run_step
from sftdiff.students import load_tokenizer
from sftdiff.trainer import IGNORED, AnswerLogits, SftTrainer, collate


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Path:
    """A run directory with a reference training in fp32 over two epochs: 12 optimizer steps, packed."""
    folder = make_runs(tmp_path_factory.mktemp("runs"), tiny_student)
    trained(train_step(folder, "reference", epochs=2.0))
    return folder


@pytest.fixture
def reference(runs: Path) -> list[float]:
    return losses(runs / "reference")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A step name that no other test uses."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def small_rows(sizes: tuple[int, ...] = (20, 15, 12, 9), seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [Row(f"r{k}", [rng.randrange(3, 180) for _ in range(n)], n // 2) for k, n in enumerate(sizes)]


def test_the_student_learns(reference: list[float]) -> None:
    assert len(reference) == 12
    assert reference[-1] < reference[0] - 0.5


@pytest.mark.parametrize("match", ["rows", "tokens", "steps"])
def test_a_training_matched_with_its_own_mixture_is_the_training_by_epochs(
    runs: Path, reference: list[float], name: str, match: str
) -> None:
    step = train_step(runs, name, epochs=2.0, match=match, reference="pack")
    assert trained(step) == reference
    assert furthest(weights(step), weights(runs / "reference")) == 0


@pytest.fixture(scope="module")
def small_pack(runs: Path) -> str:
    """The nine rows of the mixture with the shortest replies, as a filter leaves them."""
    rows = sorted(load_rows(runs / "pack"), key=lambda row: len(row.input_ids) - row.prompt_length)[:9]
    write_pack(runs, "small-pack", rows, read_json(runs / "pack/summary.json")["rendering"])
    return "small-pack"


@pytest.mark.parametrize(("match", "steps"), [("rows", 16), ("tokens", None), ("steps", 12)])
def test_a_training_on_a_smaller_mixture_sees_as_much_as_the_reference(
    runs: Path, small_pack: str, name: str, match: str, steps: int | None
) -> None:
    """Two epochs of 24 rows in steps of 4 are 48 rows and 12 steps; of 9 rows an epoch has 3 steps."""
    step = train_step(runs, name, epochs=2.0, match=match, pack=small_pack, reference="pack")
    found = trained(step)
    rows = load_rows(runs / small_pack)
    target = match_target(read_json(runs / "pack/summary.json"), match, 2.0, 4)
    expected = order_matched(rows, 0, 4, match, target)
    assert len(found) == len(expected)
    assert len(found) == steps if steps else len(found) > 16  # shorter replies: more of them
    done = read_done(step)
    assert done is not None
    seen = done["summary"]
    assert match != "rows" or seen["rows_seen"] == 48
    assert match != "tokens" or 0 <= seen["loss_tokens_seen"] - target < max(len(row.input_ids) for row in rows)
    assert set(done["inputs"]) == {small_pack, "pack", "student"}  # made again, the reference makes this stale


@pytest.mark.parametrize(
    "settings",
    [{"packing": False}, {"pack_length": 60}, {"micro_batches": 2}, {"micro_batches": 2, "packing": False}, {"micro_batches": 7}],
    ids=str,
)
def test_how_a_step_is_divided_does_not_change_the_loss(
    runs: Path, reference: list[float], name: str, settings: dict[str, Any]
) -> None:
    """Packing and micro-batches are memory settings. With 7 micro-batches of 4 rows, three of them are filler."""
    found = trained(train_step(runs, name, epochs=2.0, **settings))
    assert relative(found, reference) < 1e-4
    assert furthest(weights(runs / name), weights(runs / "reference")) < 1e-3


def trl_losses(runs: Path, student: Path, folder: Path, steps: list[list[Row]]) -> list[float]:
    """Train with TRL on the same conversations in the same order, and return the loss of each optimizer step."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    rows = [row for step in steps for row in step]
    masks = [[0] * r.prompt_length + [1] * (len(r.input_ids) - r.prompt_length) for r in rows]
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=len(steps),
        per_device_train_batch_size=len(steps[0]),
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        completion_only_loss=True,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "completion_mask": masks}),
        processing_class=load_tokenizer(student, PLAIN),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_equal_to_trl(runs: Path, tiny_student: Path, tmp_path: Path, name: str) -> None:
    """Our unpacked and packed losses are those of TRL's SFTTrainer without packing, at each of 12 optimizer steps."""
    steps = order_steps(load_rows(runs / "pack"), 0, 2.0, 4)
    expected = trl_losses(runs, tiny_student, tmp_path, steps)
    unpacked = trained(train_step(runs, name, epochs=2.0, packing=False))
    assert len(expected) == 12
    assert relative(unpacked, expected) < 1e-3
    assert relative(losses(runs / "reference"), expected) < 1e-3


def test_packed_conversations_do_not_see_each_other(tiny_student: Path) -> None:
    """Another conversation in front changes the logits of those behind it only when positions do not restart."""
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()
    first, *others = small_rows()
    changed = Row("x", small_rows(seed=1)[0].input_ids, first.prompt_length)

    def logits(row: Row, restart: bool) -> torch.Tensor:
        batch = collate([[row, *others], others[:1]], 0)
        if not restart:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand(2, -1)
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits

    size = len(first.input_ids)
    one, two = logits(first, True), logits(changed, True)
    assert torch.equal(one[0, size:], two[0, size:])
    assert not torch.allclose(one[0, :size], two[0, :size])
    assert not torch.allclose(logits(first, False)[0, size:], logits(changed, False)[0, size:], atol=1e-3)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([others[0].input_ids])).logits[0]
    behind = slice(size, size + len(others[0].input_ids))
    assert torch.allclose(one[0, behind], alone, atol=1e-5) and torch.allclose(one[1, : len(alone)], alone, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_is_exact_for_the_shipped_architectures(architecture: str) -> None:
    """Sliding windows, shared key-value heads and soft caps included: packed, padded and single rows have the same loss."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), attn_implementation="sdpa").train()
    hook, rows = AnswerLogits(model), small_rows()

    def loss(*sequences: list[Row]) -> float:
        batch = collate(list(sequences), 0)
        labels = batch.pop("labels")
        hook.mask = labels != IGNORED
        return float(F.cross_entropy(model(**batch, use_cache=False).logits, labels[hook.mask], reduction="sum"))

    alone = sum(loss([row]) for row in rows)
    assert loss(rows) == pytest.approx(alone, rel=1e-5)
    assert loss(rows[:1], rows[1:]) == pytest.approx(alone, rel=1e-5)
    assert loss(*[[row] for row in rows]) == pytest.approx(alone, rel=1e-5)


def _trainer(model: Any, folder: Path) -> SftTrainer:
    return SftTrainer(model=model, args=TrainingArguments(str(folder), use_cpu=True, report_to=[]), answers=AnswerLogits(model))


def test_only_answer_tokens_get_logits(tiny_student: Path, tmp_path: Path) -> None:
    """The loss and every gradient are those of full logits, but the output layer sees the answer tokens only."""
    rows = make_rows(load_tokenizer(tiny_student, PLAIN), 6)
    batch = collate([rows[:3], rows[3:]], 0)
    answers = sum(len(r.input_ids) - r.prompt_length for r in rows)
    full = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
    logits = full(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
    expected.backward()

    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
    trainer, seen = _trainer(model, tmp_path), []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=answers)
    loss.backward()
    assert seen == [(answers, model.config.vocab_size)]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for ours, theirs in zip(model.parameters(), full.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_every_label_counts_even_the_first(tiny_student: Path, tmp_path: Path) -> None:
    """A label at the first position (a prompt of one token) is part of the mean: ours are shifted already."""
    trainer = _trainer(AutoModelForCausalLM.from_pretrained(tiny_student), tmp_path)
    batch = collate([[Row("a", [5, 6, 7], 1)], [Row("b", [5, 6], 1)]], 0)
    assert int(trainer._get_num_items_in_batch([batch], torch.device("cpu"))) == 3


def test_a_filler_batch_has_no_gradient_but_a_graph(tiny_student: Path, tmp_path: Path) -> None:
    """Every rank must take part in the backward pass: each weight gets a gradient, of exactly zero."""
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
    loss = _trainer(model, tmp_path).compute_loss(model, collate([[Row("a", [5, 6, 7], 3)]], 0), num_items_in_batch=11)
    loss.backward()
    assert float(loss) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_bf16_trains_and_saves_bf16(runs: Path, reference: list[float], name: str) -> None:
    found = trained(train_step(runs, name, epochs=2.0, precision="bf16"))
    assert 0 < relative(found, reference) < 5e-3
    assert {tensor.dtype for tensor in weights(runs / name).values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(runs / name / "model").dtype == torch.bfloat16


def test_the_same_training_gives_the_same_bytes(runs: Path, name: str) -> None:
    step = train_step(runs, name, epochs=2.0)
    trained(step)
    files = {directory.name: directory / "model/model.safetensors" for directory in (step, runs / "reference")}
    assert files[name].read_bytes() == files["reference"].read_bytes()


def test_the_outputs_hold_no_pickle_and_no_checkpoint(runs: Path, name: str) -> None:
    step = train_step(runs, name, save_steps=2)
    trained(step)
    outputs = set((read_done(step) or {})["outputs"])
    assert {"curve.jsonl", "training.json", "model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= outputs
    assert not [p for p in step.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (step / "checkpoints").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_diverged_training_says_so_at_once(runs: Path, name: str, method: str) -> None:
    step = train_step(runs, name, epochs=2.0, lr=1e30, method=method)
    assert run_step(step) == "failed"
    assert "not finite at optimizer step" in failure(step) and "lower train.lr" in failure(step)
    assert len((step / "curve.jsonl").read_text().splitlines()) < 4


def test_an_unknown_schedule_is_a_clear_error(runs: Path, name: str) -> None:
    step = train_step(runs, name, schedule="sideways")
    assert run_step(step) == "failed"
    assert "sideways" in failure(step)


def _crash_at(monkeypatch: pytest.MonkeyPatch, step_number: int) -> None:
    log = Curve.on_log

    def on_log(self: Curve, args: Any, state: Any, control: Any, logs: Any = None, **other: Any) -> None:
        if state.global_step == step_number:
            raise RuntimeError("power cut")
        log(self, args, state, control, logs, **other)

    monkeypatch.setattr(Curve, "on_log", on_log)


def _crashed(runs: Path, name: str, monkeypatch: pytest.MonkeyPatch, save_steps: int) -> Path:
    """Return a train step that failed at its ninth optimizer step, with checkpoints."""
    step = train_step(runs, name, epochs=2.0, save_steps=save_steps)
    with monkeypatch.context() as patch:
        _crash_at(patch, 9)
        assert run_step(step) == "failed"
    return step


def test_resume_is_exact_and_skips_a_torn_checkpoint(
    runs: Path, reference: list[float], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ended while it wrote a checkpoint goes on from the one before it, as if nothing had happened."""
    step = _crashed(runs, name, monkeypatch, save_steps=2)
    assert "power cut" in failure(step)
    whole, torn = sorted(step.glob("checkpoints/*/checkpoint-*"))
    assert (whole.name, torn.name) == ("checkpoint-6", "checkpoint-8")
    state = (torn / "trainer_state.json").read_text()
    (torn / "trainer_state.json").write_text(state[: len(state) // 2])
    assert trained(step) == reference
    assert all(torch.equal(a, weights(runs / "reference")[n]) for n, a in weights(step).items())
    lines = [json.loads(line) for line in (step / "curve.jsonl").read_text().splitlines()]
    assert lines[5]["tokens"] is None and lines[6]["tokens"] > 0


def test_a_checkpoint_of_other_ranks_is_not_continued(
    runs: Path, reference: list[float], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that was made on two ranks, or from other rows, is left alone: the training starts again."""
    step = _crashed(runs, name, monkeypatch, save_steps=4)
    (own,) = (step / "checkpoints").iterdir()
    own.rename(own.with_name("0" * 12))
    assert trained(step) == reference
    assert all(json.loads(line)["tokens"] for line in (step / "curve.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"method": "lora", "lora": TRAIN["lora"] | {"dropout": 0.3}}], ids=["full", "lora"])
def test_a_killed_training_goes_on_exactly(runs: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """SIGKILL after a checkpoint, then the same command again: the curve and the weights of a run that was never killed.

    With dropout, the state of the random generator is part of the checkpoint.
    """
    settings = {"epochs": 10.0, "save_steps": 3, **settings}
    step, whole = train_step(runs, name, **settings), train_step(runs, f"{name}-whole", **settings)
    process = start(steps_command(step), tmp_path / "killed.log")
    try:
        wait_for(lambda: any(step.glob("checkpoints/*/checkpoint-[1-4][0-9]/trainer_state.json")), process)
    finally:
        end(process)
    assert read_done(step) is None and not (step / "FAILED").exists() and (step / "CLAIM").exists()
    assert finish(start(steps_command(step, whole), tmp_path / "again.log")) == 0
    assert losses(step) == losses(whole)
    assert len(losses(step)) == 60
    ours, theirs = weights(step), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert len(list((step / "logs").iterdir())) == 2
    resumed = [json.loads(line)["tokens"] is None for line in (step / "curve.jsonl").read_text().splitlines()]
    assert 9 <= sum(resumed) < 60


@pytest.fixture
def adapter(runs: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a trained adapter."""
    step = runs / "adapter"
    if not step.exists():
        trained(train_step(runs, "adapter", epochs=2.0, method="lora", lr=1e-2))
    return Path(shutil.copytree(step / "model", tmp_path / "adapter"))


def _edit(path: Path, change: Any) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_lora_trains_and_its_adapter_binds(runs: Path, tiny_student: Path, adapter: Path) -> None:
    """The merged model answers as the student with the adapter does, and not as the student does."""
    from peft import PeftModel

    curve = losses(runs / "adapter")
    assert curve[-1] < curve[0] - 0.05
    merged = load_for_sampling(str(tiny_student), str(adapter), f"{adapter}", "fp32")
    student = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = student(ids).logits
        assert torch.allclose(merged(ids).logits, PeftModel.from_pretrained(student, adapter).eval()(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v * 0 if "lora_B" in n else v for n, v in t.items()}, "zero everywhere"),
        (lambda t: {n.replace("layers.0", "layers.7"): v for n, v in t.items()}, "did not bind"),
        (lambda t: {n: v for n, v in t.items() if "layers.0" not in n}, "did not bind"),
        (lambda t: {}, "did not bind"),
    ],
    ids=["zero", "renamed", "part missing", "empty"],
)
def test_a_wrong_adapter_is_refused(tiny_student: Path, adapter: Path, change: Any, message: str) -> None:
    _edit(adapter / "adapter_model.safetensors", change)
    with pytest.raises(SftdiffError, match=message):
        load_for_sampling(str(tiny_student), str(adapter), f"{adapter}", "fp32")


def test_an_unchanged_model_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        with pytest.raises(SftdiffError, match="equals the untrained student"):
            load_for_sampling(str(tiny_student), str(shutil.copytree(tiny_student, tmp_path / precision)), "x", precision)


def test_rounding_to_the_type_that_it_is_saved_in_is_no_training(tiny_student: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.bfloat16).save_pretrained(tmp_path)
    with pytest.raises(SftdiffError, match="equals the untrained student"):
        load_for_sampling(str(tiny_student), str(tmp_path), "x", "fp32")


def test_a_change_is_seen_whatever_the_names_in_the_file(tmp_path: Path) -> None:
    """Gemma 3 with images is saved under other names than those of its weights in memory."""
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["gemma3"]())
    model.save_pretrained(tmp_path)
    assert not set(load_file(tmp_path / "model.safetensors")) & set(model.state_dict())
    with pytest.raises(SftdiffError, match="equals the untrained student"):
        _assert_changed(model, tmp_path, "trained")
    with torch.no_grad():
        list(model.parameters())[-1].add_(1.0)
    _assert_changed(model, tmp_path, "trained")


def test_a_trained_model_with_a_missing_tensor_is_refused(runs: Path, tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "reference/model", tmp_path / "model"))
    _edit(folder / "model.safetensors", lambda t: {n: v for n, v in t.items() if "layers.1.mlp.up_proj" not in n})
    with pytest.raises(SftdiffError, match=r"not every weight bound.*up_proj"):
        load_for_sampling(str(tiny_student), str(folder), "x", "fp32")


def test_a_model_of_another_shape_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    other = make_tiny_student(tmp_path / "other", layers=3)
    shutil.copy(tiny_student / "config.json", other / "config.json")
    with pytest.raises(SftdiffError, match="not every weight bound"):
        load_for_sampling(str(tiny_student), str(other), "x", "fp32")
