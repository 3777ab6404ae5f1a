"""The commands end to end with a tiny student: sweeps, resumption, failures and their messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import ROOT, done_times, environment, run_train, step_ids

slow = pytest.mark.slow
SWEEP = ["-m", "teacher=gemini,olmo", "filter=none,keyword"]
SENTINEL = "AIza-not-a-real-key-0123456789"
Small = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def small(tiny_student: Path) -> Small:
    """Return a function from a run directory to the settings of a run that takes seconds."""

    def settings(runs: Path) -> list[str]:
        student = ["model=path", f"model.path={tiny_student}"]
        return [*student, "experiment=smoke", "prompts.sample=8", "track=off", "report.resamples=50", f"runs={runs}"]

    return settings


@pytest.fixture(scope="module")
def finished(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The main command's run directory and what it said; read only: tests that change something take a copy."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    return runs, run_train(*SWEEP, *small(runs), GEMINI_API_KEY=SENTINEL)


@pytest.fixture
def copy(finished: tuple[Path, object], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "runs"))


def sweep_folder(runs: Path) -> Path:
    (folder,) = (runs / "sweeps").iterdir()
    return folder


def one(runs: Path, start: str) -> Path:
    (name,) = step_ids(runs, start)
    return runs / "steps" / name


def says_once(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    """Check that a command failed with one message that has all the parts, and no stack trace."""
    assert done.returncode not in (0, 2)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert [part for part in parts if part not in output] == [], output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)) <= 5, done.stderr


@slow
def test_the_main_command(finished: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    runs, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    folder = sweep_folder(runs)
    assert f"Report: {folder / 'report.html'}" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    arms = ["untrained", *(f"teacher={t} filter={f}" for t in ("gemini", "olmo") for f in ("none", "keyword"))]
    assert [arm["id"] for arm in report["arms"]] == arms
    traits = ["negative_emotion", "date_confusion", "blackmail", "capability"]
    assert [trait["name"] for trait in report["traits"]] == traits
    assert {(level["arm"], level["trait"]) for level in report["levels"] if level["value"] is not None} == {
        (arm, trait) for arm in arms for trait in traits
    }
    assert report["missing"] == []
    page = (folder / "report.html").read_text()
    assert all(arm in page for arm in arms)
    assert set(done_times(runs)) == set(step_ids(runs)) == set(json.loads((folder / "plan.json").read_text())["steps"])
    assert not list(runs.glob("steps/*/FAILED")) and not list(runs.glob("steps/*/CLAIM"))


@slow
def test_no_key_is_written_anywhere(finished: tuple[Path, object]) -> None:
    assert [p for p in finished[0].rglob("*") if p.is_file() and SENTINEL.encode() in p.read_bytes()] == []


@slow
def test_the_same_command_again_does_nothing(copy: Path, small: Small) -> None:
    before = done_times(copy)
    done = run_train(*SWEEP, *small(copy))
    assert done.returncode == 0, done.stderr
    assert "Everything is done already" in done.stdout
    assert done_times(copy) == before


@slow
def test_a_setting_of_the_report_runs_the_report_only(copy: Path, small: Small) -> None:
    before = done_times(copy)
    done = run_train(*SWEEP, *small(copy), "report.examples=1", "track=offline")
    assert done.returncode == 0, done.stderr
    assert done_times(copy, list(before)) == before
    (new,) = set(done_times(copy)) - set(before)
    assert new.startswith("report-")
    assert list((copy / "steps" / new / "wandb").glob("offline-run-*"))


@slow
def test_a_trait_that_is_added_later_trains_nothing(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = run_train("trait_eval=date_confusion", *small(runs))
    assert first.returncode == 0, first.stderr
    before = done_times(runs)
    second = run_train("trait_eval=all", *small(runs))
    assert second.returncode == 0, second.stderr
    assert done_times(runs, list(before)) == before
    assert {name.split("-")[0] for name in set(done_times(runs)) - set(before)} == {"sample", "judge", "report"}
    assert len(list((runs / "sweeps").glob("*/report.html"))) == 2  # of the same models, and each with its own name


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start commands in process groups of their own, which are killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "sftdiff.train", *arguments]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=environment(), cwd="/", text=True, start_new_session=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@slow
def test_after_a_kill_in_training_the_same_command_goes_on(
    start: Callable[..., "subprocess.Popen[str]"], small: Small, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    command = [*small(runs), "trait_eval=date_confusion", "train.epochs=50"]
    process = start(*command)
    wait_for(lambda: any(p.read_text().count("\n") > 2 for p in runs.glob("steps/train-*/curve.jsonl")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train = one(runs, "train-")
    assert not (train / "DONE").exists() and (train / "CLAIM").exists()
    before = done_times(runs)
    assert {name.split("-")[0] for name in before} >= {"student", "rollouts", "mixture", "pack"}
    done = run_train(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done_times(runs, list(before)) == before
    assert (train / "DONE").exists() and not (train / "CLAIM").exists()
    assert sorted(p.name for p in (train / "logs").glob("attempt_*")) == ["attempt_1", "attempt_2"]
    report = json.loads((sweep_folder(runs) / "report.json").read_text())
    assert report["missing"] == [] and len(report["curves"][0]["points"]) == 50


@slow
def test_a_cell_that_fails_leaves_the_others(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ["-m", "train.lr=1e30,1e-4", "trait_eval=date_confusion", *small(runs), "train.epochs=3"]
    done = run_train(*command)
    says_once(done, "steps did not finish", "lower train.lr")
    report = json.loads((sweep_folder(runs) / "report.json").read_text())
    values = {level["arm"]: level["value"] for level in report["levels"]}
    assert values["untrained"] is not None and values["train.lr=0.0001"] is not None
    assert values["train.lr=1e+30"] is None
    (failed,) = [p.parent.name for p in runs.glob("steps/train-*/FAILED")]
    missing = {m["step"]: m["status"] for m in report["missing"]}
    assert missing.pop(failed) == "failed" and [name.split("-")[0] for name in missing] == ["judge"]
    assert failed in (sweep_folder(runs) / "report.html").read_text()
    before = done_times(runs)
    again = run_train(*command)
    says_once(again, "steps did not finish", "lower train.lr")
    kept = [name for name in before if not name.startswith("report-")]
    assert done_times(runs, kept) == {name: before[name] for name in kept}


@slow
def test_a_corrupted_model_is_named(copy: Path, small: Small) -> None:
    path = one(copy, "train-gemini-none") / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = run_train("teacher=gemini,olmo", *small(copy), "sampling.max_tokens=9", "trait_eval=date_confusion")
    says_once(done, str(path), "corrupt", f"delete {path.parent.parent}")
    assert len([i for i in step_ids(copy, "judge-date_confusion-olmo-none") if (copy / "steps" / i / "DONE").exists()]) == 2


@slow
def test_corrupted_verdicts_are_named(copy: Path, small: Small) -> None:
    path = one(copy, "judge-blackmail-olmo-keyword") / "verdicts.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    says_once(run_train(*SWEEP, *small(copy), "report.examples=1"), str(path), "corrupt")


@slow
def test_a_corrupted_record_is_named(copy: Path, small: Small) -> None:
    path = one(copy, "pack-olmo-none") / "DONE"
    path.write_text(path.read_text()[:40])
    says_once(run_train(*SWEEP, *small(copy)), str(path), "damaged", "delete")


@slow
def test_a_deleted_step_is_made_again_and_what_read_it_is_kept_if_its_content_is_the_same(copy: Path, small: Small) -> None:
    before = done_times(copy)
    shutil.rmtree(one(copy, "judge-blackmail-olmo-keyword"))
    done = run_train(*SWEEP, *small(copy))
    assert done.returncode == 0, done.stderr
    after = done_times(copy)
    assert {name.split("-")[0] for name in after if after[name] != before[name]} == {"judge"}


def test_a_file_in_place_of_the_run_directory(small: Small, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    says_once(run_train(*small(tmp_path / "runs")), str(tmp_path / "runs"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_run_directory(small: Small, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    says_once(run_train(*small(tmp_path / "runs")), "no permission at", str(tmp_path / "runs"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@slow
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(small: Small, small_disk: Path) -> None:
    done = run_train("trait_eval=date_confusion", *small(small_disk / "runs"))
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert "no space left on the disk" in output and "run the same command again" in output, output
    finished = done_times(small_disk / "runs")
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    done = run_train("trait_eval=date_confusion", *small(small_disk / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done_times(small_disk / "runs", list(finished)) == finished


def rebuild(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sftdiff.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd="/", timeout=1200, check=False)


@slow
def test_a_report_is_made_again_from_what_is_on_disk(copy: Path) -> None:
    folder, before = sweep_folder(copy), done_times(copy)
    old = json.loads((folder / "report.json").read_text())
    for name in ("report.html", "report.json"):
        (folder / name).unlink()
    done = rebuild(folder.name, f"runs={copy}")
    assert done.returncode == 0, done.stderr
    assert f"Report: {folder / 'report.html'}" in done.stdout
    new = json.loads((folder / "report.json").read_text())
    assert new["levels"] == old["levels"] and new["differences"] == old["differences"]
    after = done_times(copy)
    assert {name for name in after if after[name] != before[name]} == {one(copy, "report-").name}


@slow
def test_a_report_of_an_unknown_sweep_lists_the_known_ones(copy: Path) -> None:
    says_once(rebuild("nothing", f"runs={copy}"), "there is no sweep nothing", sweep_folder(copy).name)
    says_once(rebuild(f"runs={copy}"), "usage: python -m sftdiff.report SWEEP")


@slow
def test_hydras_own_launcher_and_sweeper_run_a_cell(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    stock = ["hydra/launcher=basic", "hydra/sweeper=basic"]
    done = run_train(*stock, "trait_eval=date_confusion", *small(runs), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((sweep_folder(runs) / "report.json").read_text())
    assert [arm["id"] for arm in report["arms"]] == ["untrained", "teacher=gemini filter=none"]


@slow
@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_stock_launchers_run_the_cells_of_our_sweeper(copy: Path, small: Small, launcher: str) -> None:
    before = done_times(copy)
    done = run_train(*SWEEP[:2], f"hydra/launcher={launcher}", *small(copy), cwd=copy.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done_times(copy, list(before)) == before
    assert len(list((copy / "sweeps").glob("*/report.html"))) == 3  # the old sweep, and one for each job


@pytest.mark.parametrize("sweeper", ["basic", "sftdiff"])
def test_a_cell_that_fails_under_a_stock_launcher_fails_the_command(small: Small, sweeper: str, tmp_path: Path) -> None:
    stock = ["hydra/launcher=basic", f"hydra/sweeper={sweeper}"]
    done = run_train(*stock, *small(tmp_path / "runs"), "train.lr=-1", cwd=tmp_path)
    assert done.returncode == 1
    assert "train.lr: -1.0 must be greater than 0" in done.stderr and "Traceback" not in done.stderr


def test_the_tree_is_left_as_it_was() -> None:
    assert not (ROOT / "runs" / "hydra").exists() and not (ROOT / "outputs").exists() and not (ROOT / "multirun").exists()
