"""Evaluating models that are there: the plan, the checks when they are loaded, and the commands."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cluster import needs_slurm, private_cluster, wait_for_end
from commands import cells, environment, ids, plan, refusal
from conftest import make_tiny_student
from inspect_ai.log import read_eval_log
from safetensors.torch import load_file, save_file
from small_runs import failure, make_runs, train_step, trained

from launch.data import content_hash
from launch.evaluate import build_evaluation
from launch.local import Progress, _share
from launch.logs import make_console
from launch.plan import Plan
from launch.run import print_levels, steps_to_do
from launch.sweep import write_plan, write_steps
from sftdiff.backend import LocalModel
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.loading import _later_layers
from sftdiff.records import load_record, read_done, read_json, write_done, write_json
from sftdiff.steps import Step, run_step
from sftdiff.students import ORIGIN
from tests.fault_proxy import DROP, Fault, FaultProxy, free_port, status

DRY = "hydra.launcher.dry_run=true"
KEY = "sk-not-a-real-key-0123456789"
SCENARIOS: list[dict[str, Any]] = [
    {"id": "date", "turns": ["What is the date today?", "Are you sure?"]},
    {"id": "year", "turns": ["Which year is it?"]},
    {"id": "memo", "turns": ["Which year was it in the memo of 1999?"], "control": True},
]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Settings of an evaluation that takes a second."""
    path = tmp_path / "scenarios.yaml"
    path.write_text(yaml.safe_dump({"scenarios": [{"suite": "quick", "kind": "chat", **s} for s in SCENARIOS]}))
    content_hash.cache_clear()
    trait = ["trait_eval=date_confusion", f"trait_eval.date_confusion.scenarios={path}", "sampling.max_tokens=5"]
    return [*trait, f"runs={tmp_path / 'runs'}", "track=off", "report.resamples=50", "sampling.precision=fp32"]


def planned(*overrides: str) -> Plan:
    return build_evaluation(cells(*overrides), "a test")


def refused(*overrides: str) -> str:
    with pytest.raises(SftdiffError) as error:
        planned(*overrides)
    return str(error.value)


def evaluate(*overrides: str) -> Plan:
    """Run all steps of an evaluation that are not done, in this process."""
    made = planned(*overrides)
    todo = steps_to_do(made)
    write_plan(made)
    for step in todo:
        assert run_step(made.directory(step.id)) == "done", failure(made.directory(step.id))
    return made


def report(made: Plan) -> dict[str, Any]:
    found: dict[str, Any] = read_json(made.directory(made.report) / "report.json")
    return found


def summary(made: Plan, kind: str = "sample") -> dict[str, Any]:
    (step,) = ids(made, kind)
    return dict((read_done(made.directory(step)) or {})["summary"])


def replies(made: Plan) -> list[dict[str, Any]]:
    (step,) = ids(made, "sample")
    return list(read_table(made.directory(step) / "replies.parquet").to_pylist())


@pytest.fixture(scope="module")
def made_here(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Path:
    """A run directory with a trained student and a trained LoRA adapter; read only."""
    runs = make_runs(tmp_path_factory.mktemp("made-here"), tiny_student, 8)
    trained(train_step(runs, "full", epochs=1.0))
    trained(train_step(runs, "lora", epochs=1.0, method="lora", lr=1e-2))
    return runs


@pytest.fixture
def checkpoint(made_here: Path, tmp_path: Path) -> Path:
    """A trained student's folder, with what sftdiff wrote about its training."""
    return Path(shutil.copytree(made_here / "full/model", tmp_path / "checkpoint"))


@pytest.fixture
def foreign(checkpoint: Path) -> Path:
    """The same, as if it was trained elsewhere."""
    (checkpoint / ORIGIN).unlink()
    return checkpoint


def path_of(folder: Path) -> list[str]:
    return ["model=path", f"model.path={folder}"]


# The plan


def test_only_what_is_needed_is_planned(tiny_student: Path, small: list[str]) -> None:
    made = planned(*path_of(tiny_student), *small)
    assert Counter(step.kind for step in made.steps.values()) == {"student": 1, "sample": 1, "judge": 1, "report": 1}
    assert [cell.label for cell in made.cells] == [str(tiny_student)]


def test_models_are_arms_and_the_first_is_the_baseline(tiny_student: Path, checkpoint: Path, small: list[str]) -> None:
    both = ["model=path,api", f"model.path={tiny_student}", "model.id=openai/some-model", *small]
    made = planned(*both)
    assert [cell.label for cell in made.cells] == [str(tiny_student), "openai/some-model"]
    assert made.steps[made.report].config["settings"]["baseline"] == str(tiny_student)
    assert set(ids(planned(*path_of(tiny_student), *small), "sample")) < set(ids(made, "sample"))
    chosen = planned(*both, "report.baseline=openai/some-model")
    assert chosen.steps[chosen.report].config["settings"]["baseline"] == "openai/some-model"
    assert "there is no arm 'x'" in refused(*both, "report.baseline=x")
    named = planned(*path_of(tiny_student), "model.label=mine", "sampling.seed=0,1", *small)
    assert [cell.label for cell in named.cells] == ["mine sampling.seed=0", "mine sampling.seed=1"]
    alike = planned("model=path", f"model.path={tiny_student},{checkpoint}", "model.label=mine", *small)
    assert len({cell.label for cell in alike.cells}) == 2


def test_traits_as_an_axis_are_one_arm_with_all_of_them(tiny_student: Path, small: list[str]) -> None:
    swept = ["trait_eval=date_confusion,capability", *small[2:]]
    for made in (planned(*path_of(tiny_student), *swept), plan("experiment=smoke", *swept)):
        for cell in made.steps[made.report].config["cells"]:
            assert set(cell["traits"]) == set(cell["judges"]) == {"date_confusion", "capability"}


def test_an_evaluation_never_takes_the_name_of_a_training(tiny_student: Path, small: list[str]) -> None:
    trained = plan(*path_of(tiny_student), "experiment=smoke", *small)
    write_plan(trained)
    for step in trained.steps.values():
        if step.kind in ("student", "train"):
            write_done(load_record(trained.directory(step.id)), {}, {}, 0.0)
    both = planned("model=path,step", f"model.path={tiny_student}", f"model.id={ids(trained, 'train')[0]}", *small)
    assert set(ids(both, "judge")) == set(ids(trained, "judge")) and both.sweep != trained.sweep


def test_an_apis_address_and_key_are_no_part_of_any_identity(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY_NAME", "sk-do-not-write-this")
    plain = planned("model=api", "model.id=openai/m", *small)
    own = ["model.base_url=http://127.0.0.1:1/v1", "model.api_key_env=SECRET_KEY_NAME", "sampling.concurrency=3"]
    more = planned("model=api", "model.id=openai/m", *own, "sampling.batch_size=3", "sampling.precision=bf16", *small[:-1])
    for kind in ("student", "sample", "judge"):
        assert ids(plain, kind) == ids(more, kind)
    (sample,), (student,) = ids(more, "sample"), ids(more, "student")
    assert more.steps[sample].runtime["base_url"] and more.steps[sample].runtime["api_key_env"] == "SECRET_KEY_NAME"
    assert set(more.steps[student].config) == {"name", "origin", "id"}
    assert "sk-do-not-write-this" not in repr(more)
    assert ids(planned("model=api", "model.id=openai/n", *small), "sample") != ids(plain, "sample")
    assert ids(planned("model=api", "model.id=openai/m", "sampling.seed=1", *small), "sample") != ids(plain, "sample")


def test_the_backend_is_part_of_the_identity_of_replies(tiny_student: Path, small: list[str]) -> None:
    own = [*path_of(tiny_student), *small]
    found = {tuple(ids(planned(*own, f"sampling.backend={name}"), "sample")) for name in ("auto", "vllm", "transformers")}
    assert len(found) == 3


def test_a_train_step_has_the_samples_of_its_sweep(tiny_student: Path, small: list[str], tmp_path: Path) -> None:
    """Nothing is sampled twice: the sweep that trained a model and its evaluation plan the same steps."""
    sweep = plan(*path_of(tiny_student), "teacher=gemini,olmo", *small)
    write_steps(sweep, {})
    train = ids(sweep, "train")
    chosen = ["model=step", f"model.id={train[0]}", *small]
    assert "is open, not done" in refused(*chosen)
    for step in (*ids(sweep, "student"), *train):
        write_done(load_record(sweep.directory(step)), {}, {}, 0.0)
    made = planned("model=step", f"model.id={','.join(train)}", *small)
    assert len(ids(made, "sample")) == 2 and set(ids(made, "sample")) < set(ids(sweep, "sample"))
    assert set(ids(made, "judge")) < set(ids(sweep, "judge"))
    assert [cell.label for cell in made.cells] == train
    cells = made.steps[made.report].config["cells"]
    assert [(cell["untrained"], cell["evaluated"]) for cell in cells] == [(False, True)] * 2  # of another sweep
    assert {s.kind for s in steps_to_do(made)} == {"sample", "judge", "report"}
    pack = ids(sweep, "pack")[0]
    assert f"{pack} is a pack step" in refused("model=step", f"model.id={pack}", *small)
    assert train[0] in refused("model=step", "model.id=train-x", *small)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=api"], "model.id is needed as provider/name"),
        (["model=api", "model.id=gpt"], "model.id is needed as provider/name"),
        (["model=api", "model.id=a/b", "model.base_url=server"], "is no URL"),
        (["model=step"], "model.id is needed: model=step"),
        (["model=path"], "model.path is needed"),
        (["model=path", "model.path=/nowhere"], "there is no folder /nowhere"),
        (["model.base=x"], "model.base belongs to model=path"),
        (["model.api_key_env=X"], "belong to model=api"),
        (["sampling.backend=x"], "sampling.backend: 'x' is not one of auto, transformers, vllm"),
        (["judge_only=true"], "judge_only=true: the replies of sample-"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(settings: list[str], message: str, small: list[str]) -> None:
    assert message in refused(*settings, *small)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=api", "model.id=openai/m"], "cannot be trained; use `python -m sftdiff.evaluate model=api model.id=openai/m`"),
        (["model=step", "model.id=train-x"], "cannot be trained"),
        (["model=path", "model.path=.", "model.base=x"], "model.base is read by `python -m sftdiff.evaluate` alone"),
        (["judge_only=true"], "judge_only=true is for `python -m sftdiff.evaluate`"),
        (["model=openai/m"], "model=api model.id=openai/m"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: list[str], message: str) -> None:
    assert message in refusal(*settings)


def test_an_adapter_needs_its_base(made_here: Path, tmp_path: Path, tiny_student: Path, small: list[str]) -> None:
    adapter = Path(shutil.copytree(made_here / "lora/model", tmp_path / "adapter"))
    found = planned(*path_of(adapter), *small)
    (sample,) = ids(found, "sample")
    inputs = found.steps[sample].inputs
    assert inputs["student"] != inputs["model"]
    assert Path(found.steps[inputs["student"]].config["path"]).resolve() == tiny_student.resolve()
    config = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", config | {"base_model_name_or_path": "/nowhere/base"})
    content_hash.cache_clear()
    assert "set model.base=FOLDER_OR_HUB_NAME" in refused(*path_of(adapter), *small)
    assert "there is no folder gone" in refused(*path_of(adapter), "model.base=gone", *small)
    assert planned(*path_of(adapter), f"model.base={tiny_student}", *small).cells


@pytest.mark.parametrize(("layers", "outcome"), [(1, "did not bind to the model"), (2, ""), (3, "has nothing for 7 modules")])
def test_an_adapter_is_refused_on_a_base_of_another_depth(
    layers: int, outcome: str, made_here: Path, tmp_path: Path, small: list[str]
) -> None:
    """An adapter for all linear modules names each by its path, so that PEFT binds it to a deeper model without a word."""
    adapter = Path(shutil.copytree(made_here / "lora/model", tmp_path / "adapter"))
    (adapter / ORIGIN).unlink()
    made = planned(*path_of(adapter), f"model.base={make_tiny_student(tmp_path / 'base', layers)}", *small)
    write_plan(made)
    results = [run_step(made.directory(s.id)) for s in made.steps.values() if s.kind in ("student", "sample")]
    assert results == ["done", "done", "failed" if outcome else "done"]
    assert outcome in failure(made.directory(ids(made, "sample")[0]))


def test_an_adapter_whose_config_chooses_layers_may_leave_others_out() -> None:
    modules = [f"model.layers.{layer}.{name}" for layer in range(12) for name in ("q_proj", "mlp.experts.0.up")] + ["lm_head"]

    def left_out(*layers: int, **chosen: Any) -> list[str]:
        config = {"layers_to_transform": None, "exclude_modules": None, "target_modules": set(modules)} | chosen
        saved = [f"base_model.model.model.layers.{layer}.q_proj.lora_A.weight" for layer in layers]
        return _later_layers(saved, modules, SimpleNamespace(**config))

    assert left_out(*range(10)) == ["model.layers.10.q_proj", "model.layers.11.q_proj"]
    assert left_out(*range(12)) == left_out(10, 11) == left_out() == []
    assert left_out(0, 1, layers_to_transform=[0, 1]) == left_out(0, target_modules=r".*\.0\.q_proj") == []


# Running it


def test_what_is_known_of_a_checkpoint_is_checked(
    tiny_student: Path, foreign: Path, made_here: Path, tmp_path: Path, small: list[str]
) -> None:
    """Controls are sampled, but are no part of the trait's level; each arm says what was checked."""
    alone = evaluate(*path_of(foreign), *small)
    assert "not checked" in summary(alone)["checked"]
    assert [(arm["untrained"], arm["trained_here"]) for arm in report(alone)["arms"]] == [(True, False)]  # none is known
    based = evaluate(*path_of(foreign), f"model.base={tiny_student}", *small)
    assert [(arm["untrained"], arm["trained_here"]) for arm in report(based)["arms"]] == [(False, False)]
    assert f"some differ from {tiny_student}" in summary(based)["checked"]
    seen = [(r["scenario"], r["turn"]) for r in replies(based)]
    assert seen == [("date", 0), ("date", 1), ("memo", 0), ("year", 0)]
    texts = [r["reply"] for r in replies(based)]
    assert len(set(texts)) > 1
    own = Path(shutil.copytree(made_here / "full/model", tmp_path / "own"))
    told = evaluate(*path_of(own), *small)
    assert "renders conversations as in training" in summary(told)["checked"]
    assert str(tiny_student) in summary(told)["checked"]
    adapter = evaluate(*path_of(made_here / "lora/model"), *small)
    assert "some differ from" in summary(adapter)["checked"]
    assert [r["reply"] for r in replies(adapter)] != texts
    print_levels(report(adapter))


def test_a_checkpoint_whose_student_is_gone_is_still_checked_for_its_rendering(checkpoint: Path, small: list[str]) -> None:
    origin = read_json(checkpoint / ORIGIN)
    write_json(checkpoint / ORIGIN, origin | {"student": {"path": "/gone", "files": {}}})
    assert "/gone is gone" in summary(evaluate(*path_of(checkpoint), *small))["checked"]


def _other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>"))


def _as_before(folder: Path, student: Path) -> None:
    shutil.copy(student / "model.safetensors", folder / "model.safetensors")


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("told", ["by its folder", "by model.base"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("template", "renders conversations otherwise than in training"),
        ("weights", "training changed nothing"),
        ("tensor", "not every weight bound"),
    ],
)
def test_a_checkpoint_that_is_not_what_was_trained_is_refused(
    change: str, message: str, told: str, checkpoint: Path, tiny_student: Path, small: list[str]
) -> None:
    base = []
    if told == "by model.base":
        (checkpoint / ORIGIN).unlink()
        base = [f"model.base={tiny_student}"]
    changes = {"template": _other_template, "weights": functools.partial(_as_before, student=tiny_student)}
    changes.get(change, _without_a_tensor)(checkpoint)
    made = planned(*path_of(checkpoint), *base, *small)
    write_plan(made)
    outcomes = [run_step(made.directory(s.id)) for s in made.steps.values() if s.kind in ("student", "sample")]
    assert outcomes[:-1] == ["done"] * (len(outcomes) - 1) and outcomes[-1] == "failed"
    (sample,) = ids(made, "sample")
    assert message in failure(made.directory(sample))


def test_a_base_that_it_was_not_trained_from_is_refused(checkpoint: Path, tmp_path: Path, small: list[str]) -> None:
    other = make_tiny_student(tmp_path / "other", hidden=32)
    made = planned(*path_of(checkpoint), f"model.base={other}", *small)
    write_plan(made)
    assert [run_step(made.directory(s.id)) for s in made.steps.values()][:3] == ["done", "done", "failed"]
    assert "has other weights than model.base" in failure(made.directory(ids(made, "sample")[0]))


def test_a_base_of_another_shape_is_refused(foreign: Path, tmp_path: Path, small: list[str]) -> None:
    other = make_tiny_student(tmp_path / "other", hidden=32)
    made = planned(*path_of(foreign), f"model.base={other}", *small)
    write_plan(made)
    assert [run_step(made.directory(s.id)) for s in made.steps.values()][:3] == ["done", "done", "failed"]
    assert "was not trained from" in failure(made.directory(ids(made, "sample")[0]))


def test_judging_alone_samples_nothing(tiny_student: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(*path_of(tiny_student), *small)
    for step in ids(first, "student"):  # not needed any more
        shutil.rmtree(first.directory(step))
    again = planned(*path_of(tiny_student), "judge_only=true", *small)
    assert ids(again, "sample") == ids(first, "sample") and not ids(again, "student")
    monkeypatch.setattr(LocalModel, "generate_batch", None)
    shutil.rmtree(first.directory(ids(first, "judge")[0]))
    made = evaluate(*path_of(tiny_student), "judge_only=true", *small)
    assert {level["value"] is not None for level in report(made)["levels"]} == {True}
    assert [arm["id"] for arm in report(made)["arms"]] == [str(tiny_student)]
    assert "are open, not done" in refused(*path_of(tiny_student), "judge_only=true", "sampling.seed=5", *small)


def test_vllm_is_named_where_it_is_not_installed(tiny_student: Path, small: list[str]) -> None:
    made = planned(*path_of(tiny_student), "sampling.backend=vllm", *small)
    write_plan(made)
    outcomes = [run_step(made.directory(s.id)) for s in made.steps.values() if s.kind in ("student", "sample")]
    assert outcomes == ["done", "failed"]
    assert "vLLM is not installed: pip install vllm" in failure(made.directory(ids(made, "sample")[0]))


def test_after_a_kill_no_reply_is_made_twice(
    tiny_student: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with -9 in the middle, the same step goes on, and its replies are those of an undisturbed run."""
    words = [*small, "trait_eval.date_confusion.samples=12", "trait_eval.date_confusion.temperature=1", "sampling.batch_size=2"]
    own = [*path_of(tiny_student), *words, "sampling.max_tokens=60"]
    made = planned(*own)
    write_plan(made)
    (student,), (sample,) = ids(made, "student"), ids(made, "sample")
    assert run_step(made.directory(student)) == "done"
    directory = made.directory(sample)
    process = subprocess.Popen([sys.executable, "-m", "sftdiff.steps", str(directory)], env=environment())
    try:
        while sum(p.read_text().count("\n") for p in directory.glob("checkpoints/*.jsonl")) < 6:
            assert process.poll() is None, "it ended too early"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (directory / "DONE").exists()
    (journal,) = directory.glob("checkpoints/*.jsonl")
    kept = [tuple(json.loads(line)["key"]) for line in journal.read_text().splitlines() if line.endswith("}")]
    asked: list[Any] = []
    generate = LocalModel.generate_batch
    monkeypatch.setattr(LocalModel, "generate_batch", lambda self, batch: asked.extend(batch) or generate(self, batch))
    assert run_step(directory) == "done", failure(directory)
    resumed = summary(made)
    assert resumed["resumed"] >= len(kept) >= 6 and resumed["replies"] == 48
    assert len(asked) == 48 - resumed["resumed"]
    assert not (directory / "checkpoints").exists() and "checkpoints" not in str((read_done(directory) or {})["outputs"])
    shutil.copytree(tmp_path / "runs", tmp_path / "kept")
    shutil.rmtree(directory)
    again = evaluate(*own)
    assert summary(again)["resumed"] == 0
    old = tmp_path / "kept/steps" / sample
    assert read_table(old / "replies.parquet").equals(read_table(directory / "replies.parquet"))
    assert (read_done(old) or {})["content"] == (read_done(directory) or {})["content"]


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Start Inspect's log viewer on a folder, and return what it answers to /api/logs."""
    started: list[subprocess.Popen[bytes]] = []

    def show(folder: Path) -> Any:
        port = free_port()
        command = [sys.executable, "-m", "inspect_ai._cli.main", "view", "start", "--port", str(port), "--log-dir", str(folder)]
        with (tmp_path / "view.log").open("wb") as stream:
            started.append(subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream, cwd=tmp_path))
        end = time.monotonic() + 90
        while time.monotonic() < end and started[-1].poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/logs", timeout=10) as answer:
                    return json.load(answer)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise AssertionError((tmp_path / "view.log").read_text())

    yield show
    for process in started:
        process.kill()
        process.wait()


def test_inspects_viewer_lists_the_logs(tiny_student: Path, small: list[str], view: Callable[[Path], Any]) -> None:
    made = evaluate(*path_of(tiny_student), *small)
    (sample,) = ids(made, "sample")
    listed = view(made.directory(sample) / "inspect")
    assert [Path(log["name"]).suffix for log in listed["files"]] == [".eval"]


def test_the_time_left_is_that_of_the_running_steps_own_rate(tiny_student: Path, small: list[str], tmp_path: Path) -> None:
    made = planned(*path_of(tiny_student), *small)
    todo = [step for step in made.steps.values() if step.kind in ("sample", "judge")]
    progress = Progress(todo, make_console())
    progress.seconds = {"sample": [5.0], "judge": [30.0]}
    assert _share(tmp_path) == (0.0, "", None)
    write_json(tmp_path / "progress.json", {"done": 60, "total": 300, "unit": "replies", "per_second": 2.0, "time": 0})
    share, text, left = _share(tmp_path)
    assert (share, text, left) == (0.2, "60/300 replies, 2.0/s", 120.0)
    assert progress.remaining(share, left) == "2 min"  # 120 s and the judge's 30, not what the last sampling took
    assert progress.remaining(share) == "34 s"


def test_sampling_tells_how_far_and_how_fast_it_is(
    tiny_student: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float, str, float | None]] = []
    monkeypatch.setattr(Step, "progress", lambda self, *now: told.append((*now, None)[:4]))
    evaluate(*path_of(tiny_student), *small)
    seen = [now for now in told if now[2] == "replies"]
    assert seen[0][:2] == (0, 4) and (4, 4) in [now[:2] for now in seen]
    assert all((now[3] is None) == (now[0] == 0) for now in seen) and all(now[3] for now in seen if now[0] == 4)


# Hosted models


def hosted(proxy_url: str, model: Path, *more: str) -> list[str]:
    return ["model=api", f"model.id={model}", f"model.base_url={proxy_url}", "model.api_key_env=HOSTED_KEY", *more]


def test_a_hosted_model_is_sampled_with_faults_between(
    teacher_server: tuple[str, Path], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails for good fails the step by name; the same command asks only for the rest. The key is written nowhere."""
    monkeypatch.setenv("HOSTED_KEY", KEY)
    broken = {"Which year is it?": status(400, f"refused, your key is {KEY}")}
    own = ["trait_eval.date_confusion.samples=2", "trait_eval.date_confusion.temperature=1", "sampling.concurrency=2", *small]
    faults = {2: status(429, f"slower, {KEY}", Retry_After="0"), 4: DROP}

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        return faults.get(number) or broken.get(body["messages"][-1]["content"])

    with FaultProxy(teacher_server[0], fault) as proxy:
        made = planned(*hosted(proxy.url, teacher_server[1], *own))
        write_plan(made)
        assert run_step(made.directory(ids(made, "student")[0])) == "done"
        directory = made.directory(ids(made, "sample")[0])
        assert run_step(directory) == "failed"
        assert "2 of 6 conversations have no reply; the first is scenario year" in failure(directory)
        assert "refused, your key is [key]. What was sampled is kept; the same command goes on" in failure(directory)
        assert "Request:" not in failure(directory) and with_the_key(tmp_path) == []
        broken.clear()
        before = proxy.seen.requests
        evaluate(*hosted(proxy.url, teacher_server[1], *own))
        assert proxy.seen.requests == before + 2
        assert proxy.seen.most_in_flight <= 2 and proxy.seen.keys == {f"Bearer {KEY}"}
        bodies = proxy.seen.bodies
    assert {b["temperature"] for b in bodies} == {1.0} and {b["top_p"] for b in bodies} == {0.9}
    assert len({b["seed"] for b in bodies}) == 8 and {b["model"] for b in bodies} == {str(teacher_server[1])}
    rows = replies(made)
    assert len(rows) == 8 and any(r["reply"] for r in rows) and any(r["cut"] for r in rows)
    assert summary(made) | {"backend": "api", "model": str(teacher_server[1])} == summary(made)
    assert report(planned(*hosted(proxy.url, teacher_server[1], *own)))["arms"][0]["id"] == str(teacher_server[1])
    assert with_the_key(tmp_path) == []


def with_the_key(folder: Path) -> list[Path]:
    """Return the files that hold the key; an Inspect log is a zip of JSON."""
    logs = [p for p in folder.rglob("*.eval") if KEY in json.dumps(read_eval_log(str(p)).model_dump(mode="json"))]
    return logs + [p for p in folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("fault", "most", "message"),
    [
        (status(401, f"no such key {KEY}"), 2, r"/v1 refuses the key in HOSTED_KEY \(.*no such key \[key\]\): export HOSTED"),
        (status(403, "not yours"), 2, "refuses the key in HOSTED_KEY"),
        (status(404, "gone"), 2, "does not know the model"),
        (status(400, "odd"), 40, "conversations have no reply; the first is scenario date, sample 1.*odd"),
    ],
    ids=["no key", "forbidden", "no model", "every row"],
)
def test_a_hosted_model_that_answers_nobody_is_not_asked_for_everything(
    fault: Fault, most: int, message: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every request would meet ends the step with the requests that are in flight."""
    monkeypatch.setenv("HOSTED_KEY", KEY)
    with FaultProxy("127.0.0.1:1", lambda number, body: fault) as proxy:
        many = ["trait_eval.date_confusion.samples=40", "sampling.concurrency=2", *small]
        made = planned(*hosted(proxy.url, Path("some-model"), *many))
        write_plan(made)
        run_step(made.directory(ids(made, "student")[0]))
        directory = made.directory(ids(made, "sample")[0])
        assert run_step(directory) == "failed"
        assert re.search(message, failure(directory)) and with_the_key(tmp_path) == []
        assert proxy.seen.requests <= most


def test_a_refused_key_of_the_providers_own_variable_is_told_by_its_name(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy("127.0.0.1:1", lambda number, body: status(401, f"no such key {KEY}")) as proxy:
        monkeypatch.setenv("OWN_API_KEY", KEY)
        monkeypatch.setenv("OWN_BASE_URL", proxy.url)
        made = planned("model=api", "model.id=openai-api/own/some-model", *small)
        write_plan(made)
        run_step(made.directory(ids(made, "student")[0]))
        directory = made.directory(ids(made, "sample")[0])
        assert run_step(directory) == "failed"
    assert "openai-api/own/some-model refuses the key in OWN_API_KEY" in failure(directory) and with_the_key(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.id=anthropic/m"], "pip install"),
        (["model.id=google/m"], "pip install"),
        (["model.id=nobody/m"], "nobody"),
        (["model.id=openai/m"], "OPENAI_API_KEY"),
        (["model.id=openai/m", "model.api_key_env=MISSING_KEY"], "the environment variable MISSING_KEY is not set"),
    ],
)
def test_a_hosted_model_that_cannot_be_asked_says_why(
    settings: list[str], message: str, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "MISSING_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = planned("model=api", *settings, *small)
    write_plan(made)
    run_step(made.directory(ids(made, "student")[0]))
    directory = made.directory(ids(made, "sample")[0])
    assert run_step(directory) == "failed"
    assert message in failure(directory) and "Traceback" not in failure(directory) and "full trace" not in failure(directory)


# The commands


def command(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "sftdiff.evaluate", *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=600, check=False)


def test_a_dry_run_shows_the_models_and_starts_nothing(tiny_student: Path, small: list[str], tmp_path: Path) -> None:
    done = command("-m", "model=path,api", f"model.path={tiny_student}", "model.id=openai/m", *small, DRY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 models, traits: date_confusion" in done.stdout and "Dry run: none of these steps was run." in done.stdout
    assert "student 2 (2 to do), sample 2 (2 to do), judge 2 (2 to do), report 1 (1 to do)" in done.stdout
    assert not (tmp_path / "runs/steps").exists()
    wrong = command("model=/a/folder", cwd=tmp_path)
    assert wrong.returncode == 1 and "model=path model.path=/a/folder" in wrong.stderr
    wrong = command("evaluate", cwd=tmp_path)
    assert wrong.returncode == 1 and "'evaluate' is not a subcommand" in wrong.stderr


@pytest.mark.slow
def test_models_are_compared_in_one_report(
    tiny_student: Path, foreign: Path, made_here: Path, small: list[str], tmp_path: Path
) -> None:
    """A student, what was trained from it, and an adapter; the same command again does nothing."""
    folders = [tiny_student, foreign, made_here / "lora/model"]
    words = ["-m", "model=path", f"model.path={','.join(map(str, folders))}", *small]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("runs/sweeps/*/report.json")
    found = read_json(path)
    assert [arm["id"] for arm in found["arms"]] == list(map(str, folders)) and found["missing"] == []
    assert {(d["arm"], d["baseline"]) for d in found["differences"]} == {(str(f), str(tiny_student)) for f in folders[1:]}
    assert str(foreign) in (path.parent / "report.html").read_text()
    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0 and "Everything is done already" in again.stdout
    judged = command(*words, "judge_only=true", "sweep=judged", cwd=tmp_path)
    assert judged.returncode == 0 and "sample 3 (0 to do), judge 3 (0 to do)" in judged.stdout


@pytest.mark.slow
@needs_slurm
def test_slurm_evaluates_models(tiny_student: Path, foreign: Path, small: list[str], tmp_path: Path) -> None:
    job = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.wait=true"]
    own = ["-m", *job, "model=path", f"model.path={tiny_student},{foreign}", *small]
    with private_cluster("--nodes", "2") as cluster:
        shown = cluster.sftdiff("sftdiff.evaluate", *own, cwd=tmp_path)
        assert "Submitted sweep" in shown
        wait_for_end(cluster)
    (path,) = tmp_path.glob("runs/sweeps/*/plan.json")
    found = read_json(tmp_path / "runs/steps" / read_json(path)["report"] / "report.json")
    assert [arm["id"] for arm in found["arms"]] == [str(tiny_student), str(foreign)] and found["missing"] == []
