"""The status command: what it says of real step directories, and what it does to a real queue."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, needs_slurm, private_cluster, small, the_sweep, wait_for_end, wait_until, work_folder
from commands import environment, plan
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from launch import status
from launch.logs import clean, tail
from launch.sweep import Submitted, Sweep, cell_steps, new_chunk_path, with_inputs, write_chunk, write_plan
from sftdiff.claims import claimed
from sftdiff.errors import SftdiffError
from sftdiff.records import load_record, write_json
from sftdiff.steps import Step, run_step

Ask = Callable[..., str]
EVIL = "\x1b[2J\x1b]0;title\x07[red]bold\x1b[0m\u202e"
ERROR = f"ValueError: first line\nsecond line {EVIL}"


@pytest.fixture(scope="module")
def student(tiny_student: Path) -> list[str]:
    return ["model=path", f"model.path={tiny_student}", "prompts.sample=16", "train.precision=fp32", "track=off"]


def of_kind(sweep: Sweep, kind: str, *words: str) -> list[str]:
    """Return the steps of a kind whose ids have all these words."""
    return [s.id for s in sweep.steps.values() if s.kind == kind and all(word in s.id for word in words)]


def write_failure(sweep: Sweep, step: str, error: str, outcome: str = "failed") -> None:
    write_json(sweep.directory(step) / "FAILED", {"error": error, "outcome": outcome, "time": time.time()})


def die_at_work(sweep: Sweep, step: str) -> None:
    """Let a process claim a step and be gone."""
    code = "import os, sys, pathlib, sftdiff.claims as c\nwith c.claimed(pathlib.Path(sys.argv[1]), 1):\n    os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(sweep.directory(step))], env=environment(), check=False, timeout=300)
    assert (sweep.directory(step) / "CLAIM").exists()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, student: list[str]) -> Iterator[Sweep]:
    """A sweep whose cheap steps ran: one cell trains, one lost the process that trained it, two cannot pack."""
    runs = tmp_path_factory.mktemp("status") / "runs"
    overrides = ["teacher=gemini,olmo", "train.max_length=2,600", f"runs={runs}", "sweep=mixed", *student]
    made = write_plan(plan(*overrides))
    for step in [*of_kind(made, "student"), *of_kind(made, "prompts"), *of_kind(made, "rollouts"), *of_kind(made, "mixture")]:
        assert run_step(made.directory(step)) == "done"
    outcomes = {step: run_step(made.directory(step)) for step in of_kind(made, "pack")}
    assert sorted(outcomes.values()) == ["done", "done", "failed", "failed"]
    trainings = {teacher: of_kind(made, "train", teacher) for teacher in ("gemini", "olmo")}
    able = {t: next(s for s in steps if outcomes[made.steps[s].inputs["pack"]] == "done") for t, steps in trainings.items()}
    for steps in trainings.values():
        for step in {*steps} - {*able.values()}:
            assert run_step(made.directory(step)) == "blocked"
    die_at_work(made, able["olmo"])
    with claimed(made.directory(able["gemini"]), 1) as mine:
        assert mine
        Step(load_record(made.directory(able["gemini"]))).progress(30, 120, "tokens", 812.4)
        yield made


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run the command in this process and return what it prints; an error is a SystemExit with its message."""

    def run(*words: str, width: int = 200) -> str:
        monkeypatch.setattr(status, "console", Console(highlight=False, soft_wrap=True, width=width))
        monkeypatch.setattr(status, "EVERY_SECONDS", 0.1)
        status.main(words)
        return capsys.readouterr().out

    return run


def error(ask: Ask, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        ask(*words)
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


# The view of a sweep


def test_the_view_of_a_sweep(ask: Ask, sweep: Sweep) -> None:
    text = ask(f"runs={sweep.runs}")
    lines = [line.split() for line in text.splitlines()]
    headings = next(line for line in lines if line[:1] == ["step"])
    assert headings == ["step", "done", "running", "open", "failed", "blocked", "lost"]
    assert ["student", "1"] in lines and ["pack", "2", "2"] in lines and ["train", "1", "2", "1"] in lines
    assert "teacher=gemini train.max_length=600 seed=0  done    25 %, 812 tokens/s  open" in text
    assert "teacher=olmo train.max_length=600 seed=0    done    lost" in text
    assert "failed  2 pack  (such as pack-gemini-none" in text and text.count("removes every row") == 1
    assert text.index("failed  2 pack") < text.index("lost    train-olmo") < text.index("\nblocked ")
    assert f"logs {of_kind(sweep, 'pack', 'gemini')[0][:10]}" in text and f"runs={sweep.runs}" in text
    assert "run the sweep's command again" in text and "retry" not in text  # it was run on this machine
    assert "queue" not in text


def test_the_view_fits_a_narrow_terminal(ask: Ask, sweep: Sweep) -> None:
    text = ask(f"runs={sweep.runs}", width=80)
    table = text[text.index("step  ") : text.index("cells are done")]
    assert max(map(len, table.splitlines())) <= 80
    assert "25 %, 812 tokens/s" in text


def test_five_hundred_equal_errors_are_one(ask: Ask, tmp_path: Path, student: list[str]) -> None:
    made = write_plan(plan("seed=range(0,60)", f"runs={tmp_path}", "sweep=large", *student))
    trainings = of_kind(made, "train")
    for step in trainings[:50]:
        write_failure(made, step, f"OutOfMemoryError: 17.{len(step)} GiB (full trace: {made.directory(step)}/logs/attempt_1)")
    write_failure(made, trainings[50], f"{ERROR} {'x' * 1000}")
    text = ask(f"runs={tmp_path}")
    assert text.count("OutOfMemoryError") == 1 and "failed  50 train  (such as " in text
    assert f"failed  {trainings[50]}\n        ValueError: first line second line [red]bold xxx" in text and "x…" in text
    assert "blocked 204 sample, 204 judge" in text
    assert len(re.findall(r"^teacher=.* seed=\d+ ", text, re.MULTILINE)) == 40  # failed ones come first
    assert text.index("failed") < text.index("open  ", text.index("cell "))
    assert "0 of 61 cells are done. 21 more cells are not done" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_a_done_sweep_names_its_report(ask: Ask, tmp_path: Path, student: list[str]) -> None:
    made = write_plan(plan(f"runs={tmp_path}", "sweep=whole", *student))
    record = {"content": "0", "outputs": {}, "inputs": {}, "absent": [], "summary": {}, "seconds": 3.0}
    for step in made.steps:
        write_json(made.directory(step) / "DONE", record)
    (made.folder / "report.html").write_text("")
    text = ask(f"runs={tmp_path}")
    assert "2 of 2 cells are done." in text and f"{made.folder}/report.html" in text
    assert "again" not in text and "cell " not in text
    assert "Nothing to cancel" in ask("cancel", f"runs={tmp_path}")


# Cells and steps


def test_a_cell_by_its_name_a_part_of_it_or_a_step(ask: Ask, sweep: Sweep) -> None:
    where = f"runs={sweep.runs}"
    name = "teacher=gemini train.max_length=600 seed=0"
    text = ask("status", name, where)
    assert text == ask("status", "mixed", name, where) == ask("gemini", "train.max_length=600", where)
    assert text.startswith(f"cell {name} of sweep mixed")
    cell = next(cell for cell in sweep.cells if "gemini" in cell["arm"] and "600" in cell["arm"])
    assert {step for step in sweep.steps if step in text} == {*with_inputs(sweep, cell_steps(cell))}
    train = cell["steps"]["train"]
    alone = ask("status", train.rpartition("-")[2], where)
    assert alone == ask("status", train, where) and alone.startswith(f"step {train}") and "pack-" not in alone
    assert ask("untrained", where).startswith("cell untrained")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["length=600"], ["'length=600' is in the names of 2 cells of sweep mixed", "teacher=gemini train.max_length=600"]),
        (["mixed", "kimi"], ["'kimi' is neither a cell nor a step of sweep mixed", "untrained; teacher=gemini"]),
        (["kimi"], ["'kimi' is neither a sweep under", "sweeps: mixed"]),
        (["cancel", "STEP"], ["cancel takes a sweep or a cell"]),
        (["retry"], ["sweep mixed was run on this machine: run its command again"]),
        (["runs=nowhere"], ["there is no sweep under nowhere", "runs=FOLDER"]),
    ],
)
def test_what_cannot_be_meant_is_one_line(ask: Ask, sweep: Sweep, words: list[str], parts: list[str]) -> None:
    words = [sweep.report if word == "STEP" else word for word in words]
    message = error(ask, *words, *([] if "runs=nowhere" in words else [f"runs={sweep.runs}"]))
    assert all(part in message for part in parts) and "\n" not in message


def test_a_step_shows_its_whole_error_attempts_and_logs(ask: Ask, tmp_path: Path, student: list[str]) -> None:
    made = write_plan(plan(f"runs={tmp_path}", "sweep=one", *student))
    (train,) = of_kind(made, "train")
    logs = made.directory(train) / "logs"
    logs.mkdir()
    for name in ("attempt_2", "attempt_9", "attempt_10", "attempt_10_rank_1", "attempt_10_rank_2"):
        (logs / name).write_text("".join(f"{name} line {n}\n" for n in range(100)))
    (logs / "attempt_10").open("a").write(f" 10 %\r 20 %\r{EVIL}[/red] end\n")
    write_failure(made, train, ERROR)
    text = ask("status", train, f"runs={tmp_path}")
    assert "3 attempts" in text and f"{logs}/attempt_10\n" in text
    assert "        ValueError: first line\n        second line [red]bold" in text
    text = ask("logs", train, "--lines", "3", f"runs={tmp_path}")
    assert [line for line in text.splitlines() if line.startswith("attempt: ")][-1] == f"attempt: {logs}/attempt_10"
    ranks = [f"attempt_10_rank_{rank} line {n}" for rank in (1, 2) for n in (97, 98, 99)]
    ends = ["attempt_10 line 98", "attempt_10 line 99", "[red]bold[/red] end", *ranks]
    assert [line for line in text.splitlines() if line.startswith(("attempt_", "[red]"))] == ends
    assert len([line for line in ask("logs", f"runs={tmp_path}").splitlines() if line.startswith("attempt_10 ")]) == 39


def test_logs_of_a_sweep_show_each_error_before_a_second_of_the_same(ask: Ask, sweep: Sweep) -> None:
    text = ask("logs", f"runs={sweep.runs}")
    heads = re.findall(r"^(\w+)-\S+: (\w+)$", text, re.MULTILINE)
    assert heads == [("pack", "failed"), ("train", "lost"), ("train", "running"), ("pack", "failed")]
    assert "No step of cell untrained" in ask("logs", "untrained", f"runs={sweep.runs}")


# Text that models wrote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1bPq#0\x1b\\after", "after"),
        ("\x1b]0;no end", ""),
        ("\x9b2Jx\x1bcy\x1b(Bz", "xyz"),
        ("10 %\r20 %\r\nnext\r", "20 %\nnext"),
        ("a\tb", "a   b"),
        ("\u202eevil\ud800", "evil"),
    ],
)
def test_what_a_terminal_would_obey_is_removed(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b[]\\\x07;mP0\r\n")))
def test_no_control_character_is_left(text: str) -> None:
    shown = clean(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown) and clean(shown) == shown


def test_the_tail_of_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff" * 3_000_000 + b"\nlast but one\n" + b"y" * 5000 + b"\n")
    assert [line[:12] for line in tail(path, 2)] == ["last but one", "y" * 12] and len(tail(path, 1)[0]) == 2001


# For programs


def test_json_has_every_step_and_cell(ask: Ask, sweep: Sweep) -> None:
    found = json.loads(ask("--json", f"runs={sweep.runs}"))
    assert list(found) == ["sweep", "report", "queue_error", "counts", "kinds", "cells", "steps"]
    assert (found["sweep"], found["report"], found["queue_error"]) == ("mixed", None, None)
    assert found["steps"].keys() == sweep.steps.keys()
    assert found["counts"] == Counter(step["state"] for step in found["steps"].values())
    assert found["kinds"]["pack"] == {"done": 2, "failed": 2}
    assert len(found["cells"]) == 5
    for cell, entry in zip(sweep.cells, found["cells"], strict=True):
        assert entry["steps"] == {step: found["steps"][step] for step in with_inputs(sweep, cell_steps(cell))}
    (running,) = [step for step in found["steps"].values() if step["state"] == "running"]
    assert set(running) == {"kind", "state", "note", "job", "progress"}
    assert running["progress"] | {"time": 0} == {"done": 30, "total": 120, "unit": "tokens", "per_second": 812.4, "time": 0}


def test_the_command_waits_for_no_large_import() -> None:
    heavy = {"numpy", "pyarrow", "hydra", "submitit", "torch", "rich.live", "launch.plan"}
    code = f"import sys, launch.status\nprint(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=True)
    assert done.stdout.strip() == "[]"


# Without the queue


def test_without_the_queue_nobody_is_called_lost(
    ask: Ask, tmp_path: Path, student: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_plan(plan("seed=0,1,2", f"runs={tmp_path}", "sweep=far", *student), {"max_submit": None})
    trainings = of_kind(made, "train")
    write_failure(made, trainings[0], "an earlier attempt")
    os.utime(made.directory(trainings[0]) / "FAILED", (0, 0))
    jobs = [{"steps": [step], "name": "cell"} for step in trainings]
    write_chunk(Submitted(new_chunk_path(made, "train"), "train", jobs, "71", None, {}, 1))
    write_failure(made, trainings[1], "this attempt")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with claimed(made.directory(trainings[2]), 1):
        found = json.loads(ask("--json", f"runs={tmp_path}"))
    states = {step: found["steps"][step]["state"] for step in made.steps}
    assert [states[step] for step in trainings] == ["unknown", "failed", "running"]
    evaluations = {states[step.id] for step in made.steps.values() if step.kind == "sample" and step.inputs["model"] in trainings}
    assert evaluations == {"open", "blocked"} and "no squeue on this machine" in found["queue_error"]
    text = ask(f"runs={tmp_path}")
    assert "The queue cannot be asked" in text and "2 unknown" in text
    assert "nothing was cancelled" in error(ask, "cancel", f"runs={tmp_path}")


# Watching


def test_watching_ends_with_the_number_of_steps_and_the_first_error(ask: Ask, tmp_path: Path, student: list[str]) -> None:
    made = write_plan(plan("train.max_length=2", f"runs={tmp_path}", "sweep=short", *student))
    for kind in ("student", "prompts", "rollouts", "mixture", "pack"):
        run_step(made.directory(of_kind(made, kind)[0]))
    message = r"19 of 23 steps of sweep short are not done. The first error: pack-\S+: .*removes every row"
    with pytest.raises(SftdiffError, match=message):
        status.watch(made)
    assert error(ask, "--watch", f"runs={tmp_path}").startswith("19 of 23 steps")


def test_ctrl_c_ends_the_watching_only(sweep: Sweep) -> None:
    command = [sys.executable, "-m", "launch.status", "--watch", f"runs={sweep.runs}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    assert process.stdout is not None and "1 running" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "goes on" in text and "status mixed --watch" in text and "Traceback" not in text


# On a real Slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with private_cluster("--nodes", "2") as running:
        yield running


@pytest.fixture
def queue(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with an empty queue, which is left like that."""
    yield cluster
    cluster.run("scancel", "--me")
    wait_for_end(cluster, 60)


@pytest.mark.slow
@needs_slurm
def test_cancel_keeps_what_others_need_and_retry_makes_the_rest(queue: Cluster, tiny_student: Path, tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "work")
    later = "+hydra.launcher.additional_parameters.begin=now+1hour"

    def shown() -> dict[str, int]:
        counts: dict[str, int] = json.loads(queue.sftdiff("launch.status", "--json", cwd=folder))["counts"]
        return counts

    queue.sftdiff("sftdiff.train", *small(tiny_student, "seed=0,1", "deepspeed=off", later), cwd=folder)
    made = the_sweep(folder)
    assert shown() == {"queued": len(made.steps)} and len(queue.queued()) == 10
    running_only = queue.sftdiff("launch.status", "--json", cwd=folder, SQUEUE_STATES="R")  # the user's own habit
    assert json.loads(running_only)["counts"] == {"queued": len(made.steps)}
    assert "BeginTime 2" in queue.sftdiff("launch.status", cwd=folder)
    text = queue.sftdiff("launch.status", "cancel", "seed=1", cwd=folder)
    assert "Cancelled 2 jobs" in text and "Left in the queue: 4 jobs that other cells need too." in text
    wait_until(lambda: len(queue.queued()) == 8, "two jobs are cancelled")
    assert shown() == {"queued": len(made.steps) - 3, "lost": 1, "blocked": 2}
    text = queue.sftdiff("launch.status", "retry", "seed=1", cwd=folder)
    assert re.findall(r"^  (train|sample|student|mixture) +(\d) job ", text, re.MULTILINE) == [("train", "1"), ("sample", "1")]
    assert shown() == {"queued": len(made.steps)}
    assert "Nothing to retry" in queue.sftdiff("launch.status", "retry", cwd=folder)
    count = len(queue.queued())
    assert f"Cancelled {count} jobs of sweep" in queue.sftdiff("launch.status", "cancel", cwd=folder)
    wait_for_end(queue, 60)
    assert set(shown()) == {"lost", "blocked"}
    assert "Nothing to cancel" in queue.sftdiff("launch.status", "cancel", cwd=folder)


@pytest.mark.slow
@needs_slurm
def test_a_running_sweep_is_cancelled_and_its_logs_say_how_it_ended(queue: Cluster, tiny_student: Path, tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "work")
    queue.sftdiff("sftdiff.train", *small(tiny_student, "train.epochs=2000", "deepspeed=off"), cwd=folder)
    (train,) = of_kind(the_sweep(folder), "train")

    def training() -> str:
        text: str = json.loads(queue.sftdiff("launch.status", "--json", cwd=folder))["steps"][train]["note"]
        return text if "tokens/s" in text else ""

    assert re.fullmatch(r"[\d,]+/[\d,]+ tokens, [\d,]+ tokens/s", wait_until(training, "the training shows its progress"))
    assert re.search(r" \d+ %, [\d,]+ tokens/s", queue.sftdiff("launch.status", cwd=folder))
    assert "loss" in queue.sftdiff("launch.status", "logs", train, cwd=folder)
    assert re.match(r"Cancelled \d jobs of sweep", queue.sftdiff("launch.status", "cancel", cwd=folder))
    wait_for_end(queue, 60)
    found = json.loads(queue.sftdiff("launch.status", train, "--json", cwd=folder))
    assert found["steps"][train]["state"] == "lost" and found["cells"] == []
    text = queue.sftdiff("launch.status", "logs", train, cwd=folder)
    assert "_0_log.err" in text and "CANCELLED" in text
    assert "are not done. The first error: " in queue.sftdiff("launch.status", "--watch", cwd=folder, check=1)
