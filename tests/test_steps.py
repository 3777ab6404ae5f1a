"""Running a step: once, in one process, with its outcome on disk whatever goes wrong."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hand_written import id_of, mixture_step, question, rollouts_step, write_jsonl

import sftdiff.claims
import sftdiff.prompts
import sftdiff.records
import sftdiff.steps
from sftdiff.claims import DEAD_AFTER_SECONDS, claimed, is_live, process_start, read_claim
from sftdiff.errors import SftdiffError
from sftdiff.records import load_record, read_done, read_json, state, write_done
from sftdiff.steps import main, run_step

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [question(f"question {n}") for n in range(4)]


def write_rollouts(folder: Path, reply: str = "reply") -> Path:
    rows = [{"prompt_id": id_of(p), "completion": f"{reply} to {id_of(p)}"} for p in PROMPTS]
    return write_jsonl(folder / "rollouts.jsonl", rows)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A rollouts step that was not run yet."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    return rollouts_step(tmp_path / "runs", "rollouts-a", prompts, write_rollouts(tmp_path))


def mixture_of(step: Path, name: str = "mixture-a") -> Path:
    return mixture_step(step.parent, name, {"rollouts": step.name})


def tree(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.rglob("*")}


def failure(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(directory / "FAILED")
    return found


def start_python(code: str, *arguments: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stdin=subprocess.PIPE)


# Done


def test_done_is_written_last_and_lists_every_output(step: Path) -> None:
    assert run_step(step) == "done"
    done = read_done(step)
    assert done is not None
    assert set(done["outputs"]) == {"prompts.parquet", "rollouts.parquet"}
    assert done["summary"] == {"prompts": 4, "errors": 0, "by_source": {"chat": 4}}
    times = {name: value for name, value in tree(step).items() if name != "DONE"}
    assert (step / "DONE").stat().st_mtime_ns >= max(times.values())
    assert set(times) == {"config.yaml", "provenance.json", "logs", "logs/attempt_1", "prompts.parquet", "rollouts.parquet"}
    assert read_json(step / "provenance.json")["attempt"] == 1


def test_outputs_are_complete_before_done_appears(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(*arguments: Any) -> None:
        seen.append(((step / "rollouts.parquet").stat().st_size > 0, (step / "DONE").exists()))
        write_done(*arguments)

    monkeypatch.setattr(sftdiff.steps, "write_done", look)
    assert run_step(step) == "done"
    assert seen == [(True, False)]


def test_a_second_run_changes_nothing(step: Path) -> None:
    assert run_step(step) == "done"
    before = tree(step)
    assert run_step(step) == "done"
    assert tree(step) == before


def test_the_same_step_elsewhere_has_the_same_content(step: Path, tmp_path: Path) -> None:
    assert run_step(step) == "done"
    again = rollouts_step(tmp_path / "other", "rollouts-a", tmp_path / "prompts.jsonl", tmp_path / "rollouts.jsonl")
    assert run_step(again) == "done"
    contents = [read_done(directory) for directory in (step, again)]
    assert contents[0] is not None and contents[1] is not None
    assert contents[0]["content"] == contents[1]["content"]


# Damage


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_corrupt_output_is_found_by_the_next_step_and_named(step: Path, damage: str) -> None:
    assert run_step(step) == "done"
    path = step / "rollouts.parquet"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "changed" else content[:-1])
    mixture = mixture_of(step)
    assert run_step(mixture) == "failed"
    assert failure(mixture)["error"] == (
        f"the cached step rollouts-a is corrupt: {path} is not what its DONE file records; "
        f"delete {step} and run the same command again"
    )
    shutil.rmtree(step)
    rollouts_step(step.parent, step.name, step.parent.parent / "prompts.jsonl", step.parent.parent / "rollouts.jsonl")
    assert [run_step(step), run_step(mixture)] == ["done", "done"]


@pytest.mark.parametrize("content", [b"", b"kind: [", b"- a\n- b\n", b"text", b"kind: rollouts\n", b"\xff\xfe", b"a: \x00"])
def test_a_damaged_config_is_named_in_one_line(step: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (step / "config.yaml").write_bytes(content)
    with pytest.raises(SftdiffError) as caught:
        run_step(step)
    assert str(caught.value).startswith(f"{step / 'config.yaml'} is damaged (")
    assert f"delete {step} and run the same command again" in str(caught.value)
    assert main([str(step)]) == 1
    assert capfd.readouterr().err == f"{caught.value}\n"


def test_a_folder_that_is_no_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(SftdiffError, match=r"nothing is not a step directory: it has no config\.yaml"):
        run_step(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"content": "a"}', b"\xff"])
def test_a_damaged_done_file_is_named_by_its_step_and_by_the_next(step: Path, content: bytes) -> None:
    assert run_step(step) == "done"
    (step / "DONE").write_bytes(content)
    message = f"{step / 'DONE'} is damaged: delete the directory {step} and run the same command again"
    with pytest.raises(SftdiffError) as caught:
        run_step(step)
    assert str(caught.value) == message
    mixture = mixture_of(step)
    assert run_step(mixture) == "failed"
    assert failure(mixture)["error"] == message


# Stale


def test_a_step_is_stale_when_its_input_was_made_again_with_other_content(step: Path, tmp_path: Path) -> None:
    mixture = mixture_of(step)
    assert [run_step(step), run_step(mixture), state(mixture)] == ["done", "done", "done"]

    (step / "DONE").unlink()
    assert run_step(step) == "done"
    assert state(mixture) == "done"  # made again, with the same content

    write_rollouts(tmp_path, "another reply")
    (step / "DONE").unlink()
    assert run_step(step) == "done"
    assert state(mixture) == "stale"
    assert run_step(mixture) == "done"
    assert state(mixture) == "done"
    assert (mixture / "logs/attempt_2").exists()


def test_a_step_is_stale_when_an_absent_input_appears(step: Path) -> None:
    mixture = mixture_of(step)
    write_done(load_record(mixture), {}, {}, time.time())  # as a report is made without the steps that failed
    assert state(mixture) == "done"
    assert run_step(step) == "done"
    assert state(mixture) == "stale"


# Claims


def test_a_claim_is_gone_after_the_step(step: Path) -> None:
    assert run_step(step) == "done"
    assert read_claim(step) is None
    assert not list(step.glob(".CLAIM*"))


def test_only_one_holds_a_claim(tmp_path: Path) -> None:
    with claimed(tmp_path, 1) as first:
        with claimed(tmp_path, 1) as second:
            assert (first, second) == (True, False)
        claim = read_claim(tmp_path)
        assert claim is not None
        assert (claim["pid"], claim["attempt"], is_live(claim)) == (os.getpid(), 1, True)
    with claimed(tmp_path, 2) as third:
        assert third


def test_a_claim_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, 1):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_claim_of_a_process_that_was_killed_is_taken_over(step: Path) -> None:
    code = (
        "import sys, time, pathlib; from sftdiff.claims import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(60)"
    )
    with start_python(code, step) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        claim = read_claim(step)
        assert claim is not None and claim["pid"] == holder.pid and is_live(claim)
        holder.send_signal(signal.SIGKILL)
    assert not is_live(claim)
    assert (step / "CLAIM").exists()
    assert run_step(step) == "done"
    assert not (step / "CLAIM").exists()


@pytest.mark.parametrize(
    ("change", "live"),
    [
        ({}, True),
        ({"started": "1"}, False),  # the pid belongs to another process now
        ({"host": "another-host", "pid": 1}, True),
        ({"host": "another-host", "heartbeat": time.time() - DEAD_AFTER_SECONDS - 1}, False),
        ({"heartbeat": 0}, True),  # on this host the process itself counts
    ],
    ids=["this process", "pid used again", "other host, beating", "other host, silent", "this host, silent"],
)
def test_which_claims_are_live(change: dict[str, Any], live: bool) -> None:
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid()), "heartbeat": time.time()}
    assert is_live({**claim, **change}) is live


def test_a_live_claim_is_waited_for(step: Path) -> None:
    code = (
        "import sys, time, pathlib; from sftdiff.claims import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 1): print('held', flush=True); sys.stdin.readline(); time.sleep(1)"
    )
    with start_python(code, step) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        holder.stdin.write("go\n")
        holder.stdin.flush()
        assert run_step(step) == "done"
        assert time.monotonic() - started >= 0.9
    assert sorted(p.name for p in (step / "logs").iterdir()) == ["attempt_1"]


def test_processes_that_run_a_step_at_once_run_it_once(step: Path, tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
import sftdiff.prompts, sftdiff.steps
step, calls = map(pathlib.Path, sys.argv[1:])
real = sftdiff.prompts.run_rollouts
def slow(running):
    with calls.open("a") as stream:
        stream.write("run\\n")
    time.sleep(0.7)
    return real(running)
sftdiff.prompts.run_rollouts = slow
print("ready", flush=True)
sys.stdin.readline()
print(sftdiff.steps.run_step(step), flush=True)
"""
    processes = [start_python(code, step, tmp_path / "calls") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=30)[0] for process in processes] == ["done\n"] * 3
    assert (tmp_path / "calls").read_text() == "run\n"
    assert sorted(p.name for p in (step / "logs").iterdir()) == ["attempt_1"]


def test_a_step_that_another_process_finishes_just_before_the_claim_is_not_run_again(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}

    def finish_first(directory: Path) -> int:
        monkeypatch.undo()
        assert run_step(directory) == "done"
        made.update(tree(directory / "logs"), DONE=(directory / "DONE").stat().st_mtime_ns)
        return 2

    monkeypatch.setattr(sftdiff.steps, "_next_attempt", finish_first)
    assert run_step(step) == "done"
    assert {**tree(step / "logs"), "DONE": (step / "DONE").stat().st_mtime_ns} == made
    assert not (step / "CLAIM").exists()


# Failures


def test_failed_holds_the_error_and_a_later_run_clears_it(step: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rollouts.jsonl").write_text("[]")
    assert (run_step(step), state(step)) == ("failed", "failed")
    message = f"{tmp_path / 'rollouts.jsonl'}, line 1: expected a JSON object, found list"
    assert (failure(step)["error"], failure(step)["outcome"]) == (message, "failed")
    assert capfd.readouterr().err == f"rollouts-a: {message}\n"
    assert not (step / "DONE").exists()
    assert not (step / "CLAIM").exists()

    write_rollouts(tmp_path)
    assert (run_step(step), state(step)) == ("done", "done")
    assert not (step / "FAILED").exists()
    assert sorted(p.name for p in (step / "logs").iterdir()) == ["attempt_1", "attempt_2"]


def test_an_unexpected_error_keeps_its_trace_in_the_log(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(running: Any) -> dict[str, Any]:
        print("before the error")
        return {"share": 1 / len(running.read)}

    monkeypatch.setattr(sftdiff.prompts, "run_rollouts", broken)
    assert run_step(step) == "failed"
    log = step / "logs/attempt_1"
    assert failure(step)["error"] == f"ZeroDivisionError: division by zero (full trace: {log})"
    assert "in broken" in log.read_text()


def test_a_step_whose_input_is_not_done_is_blocked(step: Path) -> None:
    mixture = mixture_of(step)
    assert run_step(mixture) == "blocked"
    assert failure(mixture)["error"] == "an input is missing: rollouts-a"
    assert failure(mixture)["outcome"] == "blocked"
    assert not (mixture / "logs").exists()


def test_leftovers_of_a_failed_attempt_are_removed(step: Path) -> None:
    (step / "half").mkdir()
    (step / "half/file").write_text("x")
    (step / "old.parquet").write_text("x")
    assert run_step(step) == "done"
    assert not (step / "half").exists()
    assert not (step / "old.parquet").exists()


def no_space(path: Any, *rest: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def no_permission(path: Any, *rest: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (no_space, "no space left on the disk at {}: free some space and run the same command again; finished steps are kept"),
        (no_permission, "no permission at {}: change its permissions, or choose another folder with runs=..."),
    ],
)
def test_a_full_disk_or_no_permission_is_one_clear_line(
    step: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raised: Any, message: str
) -> None:
    monkeypatch.setattr(sftdiff.prompts, "write_rows", raised)
    assert run_step(step) == "failed"
    line = message.format(step / "prompts.parquet")
    assert failure(step)["error"] == line
    assert capfd.readouterr().err == f"rollouts-a: {line}\n"
    monkeypatch.undo()
    assert run_step(step) == "done"


def test_a_disk_without_room_for_the_records_fails_and_can_be_run_again(
    step: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sftdiff.records, "write_json", no_space)  # DONE
    monkeypatch.setattr(sftdiff.steps, "write_json", no_space)  # FAILED and provenance
    assert run_step(step) == "failed"
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert state(step) == "open"
    assert not (step / "CLAIM").exists()
    monkeypatch.undo()
    assert run_step(step) == "done"


def test_done_that_cannot_be_written_leaves_no_half_of_it(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: no_space(target))
    write_done_alone = sftdiff.records.write_done
    with pytest.raises(OSError, match="No space left"):
        write_done_alone(load_record(step), {}, {}, time.time())
    assert [p.name for p in step.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("raised", [no_space, no_permission])
def test_a_claim_that_cannot_be_written_is_one_clear_line(
    step: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raised: Any
) -> None:
    def half_written(path: Path, *rest: Any) -> None:
        path.touch()
        raised(path)

    monkeypatch.setattr(Path, "write_text", half_written)
    assert main([str(step)]) == 1
    error = capfd.readouterr().err
    assert error.startswith(("no space left on the disk at ", "no permission at "))
    assert len(error.splitlines()) == 1
    assert sorted(p.name for p in step.iterdir()) == ["config.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_write_permission_is_one_clear_line(step: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step.chmod(0o500)
    try:
        assert main([str(step)]) == 1
    finally:
        step.chmod(0o700)
    assert capfd.readouterr().err.startswith("no permission at ")


def test_the_worker_answers_one_line_a_step_whatever_happens(step: Path, tmp_path: Path) -> None:
    mixture, broken = mixture_of(step), mixture_of(step, "mixture-broken")
    (broken / "config.yaml").write_text("kind: [")
    directories = [mixture, step, mixture, broken, tmp_path / "nothing"]
    finished = subprocess.run(
        [sys.executable, "-m", "sftdiff.steps", "--serve"],
        input="".join(f"{directory}\n" for directory in directories),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    outcomes = ["blocked", "done", "done", "failed", "failed"]
    assert answers == [{"step": d.name, "outcome": o} for d, o in zip(directories, outcomes, strict=True)]
    assert finished.returncode == 0
    assert len(finished.stderr.splitlines()) == 3  # one line for each that is not done


# What must never be in a step directory


def test_no_secret_of_the_environment_lands_in_a_step_directory(
    step: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("WANDB_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "HF_TOKEN", "MY_PASSWORD", "SLURM_JWT")
    for number, name in enumerate(names):
        monkeypatch.setenv(name, f"sk-hidden-{number}-7f3a")
    mixture = mixture_of(step)
    assert [run_step(step), run_step(mixture)] == ["done", "done"]
    (step / "DONE").unlink()
    monkeypatch.setattr(sftdiff.prompts, "write_rows", lambda *arguments: 1 / 0)
    assert run_step(step) == "failed"
    with claimed(step, 9):
        files = [p for p in step.parent.rglob("*") if p.is_file()]
        assert {"CLAIM", "FAILED", "DONE", "provenance.json", "attempt_1", "attempt_2"} <= {p.name for p in files}
        for path in files:
            assert b"sk-hidden" not in path.read_bytes(), path
    printed = capfd.readouterr()
    assert "sk-hidden" not in printed.out + printed.err


def test_no_step_directory_holds_a_pickle(step: Path) -> None:
    mixture = mixture_of(step)
    assert [run_step(step), run_step(mixture)] == ["done", "done"]
    files = [p for p in step.parent.rglob("*") if p.is_file()]
    assert len(files) >= 10
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".bin")
        assert not path.read_bytes().startswith(b"\x80"), path
