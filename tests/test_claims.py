"""Claims: which process works on a step, when processes die, sleep or come at the same time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hand_written import small_step, tree

import sftdiff.claims
import sftdiff.steps
from sftdiff.claims import DEAD_AFTER_SECONDS, claimed, is_live, process_start, read_claim
from sftdiff.steps import run_step


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A rollouts step that was not run yet."""
    return small_step(tmp_path)


def start_python(code: str, *arguments: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stdin=subprocess.PIPE)


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


def leave_dead_claim(directory: Path, name: str = "CLAIM", token: str = "of-the-dead") -> None:
    claim = {"token": token, "job": None, "host": "gone", "heartbeat": 0.0, "restarts": 0, "pid": 1, "started": "1"}
    (directory / name).write_text(json.dumps(claim))


def test_a_dead_claim_has_one_successor_however_many_want_it(tmp_path: Path) -> None:
    for _ in range(20):
        leave_dead_claim(tmp_path)
        barrier, all_tried, got = threading.Barrier(8), threading.Barrier(8), list[bool]()

        def take(barrier: threading.Barrier = barrier, tried: threading.Barrier = all_tried, got: list[bool] = got) -> None:
            barrier.wait()
            with claimed(tmp_path, 1) as mine:
                got.append(mine)
                tried.wait()

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 7 + [True]
        assert not list(tmp_path.iterdir())


def test_who_slept_after_it_saw_a_dead_claim_does_not_get_the_step_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_dead_claim(tmp_path)
    seen = read_claim(tmp_path)
    with claimed(tmp_path, 1) as first:
        holder = read_claim(tmp_path)
        answers = iter([seen, holder])  # it looked before the first took over, and looks again when it is awake
        monkeypatch.setattr(sftdiff.claims, "read_claim", lambda _: next(answers))
        with claimed(tmp_path, 1) as second:
            assert (first, second) == (True, False)
        monkeypatch.undo()
        assert read_claim(tmp_path) == holder
    assert not list(tmp_path.iterdir())


def test_a_successor_that_died_before_it_had_the_claim_is_succeeded(tmp_path: Path) -> None:
    leave_dead_claim(tmp_path)
    leave_dead_claim(tmp_path, ".CLAIM.after.of-the-dead", "of-its-successor")
    with claimed(tmp_path, 1) as mine:
        assert mine
    assert not list(tmp_path.iterdir())


def test_a_claim_that_a_crashed_machine_left_unreadable_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "CLAIM").write_text("")
    with claimed(tmp_path, 1) as mine:
        assert mine
        assert read_claim(tmp_path) is not None
    assert not list(tmp_path.iterdir())


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
import sftdiff.teachers, sftdiff.steps
step, calls = map(pathlib.Path, sys.argv[1:])
real = sftdiff.teachers.run_rollouts
def slow(running):
    with calls.open("a") as stream:
        stream.write("run\\n")
    time.sleep(0.7)
    return real(running)
sftdiff.teachers.run_rollouts = slow
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
    assert [process.communicate(timeout=300)[0] for process in processes] == ["done\n"] * 3
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
