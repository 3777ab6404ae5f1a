"""Running a step: once, in one process, with its outcome on disk whatever goes wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hand_written import made, mixture_step, prompts_step, rollouts_step, small_step, tree, write_rollouts

import sftdiff.claims
import sftdiff.records
import sftdiff.steps
import sftdiff.teachers
from sftdiff.claims import claimed
from sftdiff.errors import SftdiffError
from sftdiff.records import load_record, read_done, read_json, state, write_done
from sftdiff.steps import main, run_step

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A rollouts step that was not run yet."""
    return small_step(tmp_path)


def mixture_of(step: Path, name: str = "mixture-a") -> Path:
    return mixture_step(step.parent, name, {"prompts": "prompts-a", "rollouts": step.name})


def failure(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(directory / "FAILED")
    return found


# Done


def test_done_is_written_last_and_lists_every_output(step: Path) -> None:
    assert run_step(step) == "done"
    done = read_done(step)
    assert done is not None
    outputs = {"rollouts.parquet", "index.parquet", "summary.json"}
    assert set(done["outputs"]) == outputs
    assert done["summary"] == {"prompts": 4, "errors": 0}
    times = {name: value for name, value in tree(step).items() if name != "DONE"}
    assert (step / "DONE").stat().st_mtime_ns >= max(times.values())
    assert set(times) == {"config.yaml", "provenance.json", "logs", "logs/attempt_1", *outputs}
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
    made(prompts_step(tmp_path / "other", "prompts-a", tmp_path / "prompts.jsonl"))
    again = rollouts_step(tmp_path / "other", "rollouts-a", "prompts-a", tmp_path / "rollouts.jsonl")
    assert run_step(again) == "done"
    contents = [read_done(directory) for directory in (step, again)]
    assert contents[0] is not None and contents[1] is not None
    assert contents[0]["content"] == contents[1]["content"]


# Damage


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_corrupt_output_is_found_by_the_next_step_and_named(step: Path, damage: str) -> None:
    assert run_step(step) == "done"
    path = step / "index.parquet"
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
    rollouts_step(step.parent, step.name, "prompts-a", step.parent.parent / "rollouts.jsonl")
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

    monkeypatch.setattr(sftdiff.teachers, "run_rollouts", broken)
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
    monkeypatch.setattr(sftdiff.teachers, "AlignedWriter", raised)
    assert run_step(step) == "failed"
    line = message.format(step / "rollouts.parquet")
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
        timeout=300,
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
    monkeypatch.setattr(sftdiff.teachers, "AlignedWriter", lambda *arguments: 1 / 0)
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
