"""Several ranks, restarted jobs and the snapshot: what a step does so that a cluster can kill, restart and move it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, environment
from small_runs import write_step

import sftdiff.claims
import sftdiff.ranks
from sftdiff.claims import FENCED, claimed, read_claim
from sftdiff.errors import SftdiffError
from sftdiff.files import check_unchanged
from sftdiff.identity import file_sha256
from sftdiff.ranks import await_first_rank, free_port, tell_ranks
from sftdiff.records import read_json
from sftdiff.steps import check_code, run_step

HOLD = (
    "import sys, time, pathlib, sftdiff.claims\n"
    "sftdiff.claims.HEARTBEAT_SECONDS = 0.2\n"
    "with sftdiff.claims.claimed(pathlib.Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the port as a launcher does: ranks that were started without one would take it for another start of theirs."""
    monkeypatch.setenv("MASTER_PORT", "20000")


def holder(directory: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start a process that holds the claim on a step."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], env=environment(**variables), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def is_slurm_job(monkeypatch: pytest.MonkeyPatch, job: str, restarts: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


def test_a_job_that_was_started_again_ends_its_earlier_self(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path, SLURM_JOB_ID="7") as earlier:
        is_slurm_job(monkeypatch, "7", 1)
        with claimed(tmp_path, 2) as mine:
            assert mine
            assert earlier.wait(5) == -9  # on this host it can be killed


@pytest.mark.parametrize(("job", "restarts"), [("8", 1), ("7", 0)], ids=["another job", "the same start"])
def test_nobody_else_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restarts: int) -> None:
    with holder(tmp_path, SLURM_JOB_ID="7") as other:
        is_slurm_job(monkeypatch, job, restarts)
        with claimed(tmp_path, 2) as mine:
            assert not mine
        assert other.poll() is None
        other.kill()


def test_on_another_node_the_earlier_self_ends_when_it_sees_that_its_claim_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftdiff.claims, "HEARTBEAT_SECONDS", 0.5)
    with holder(tmp_path, SLURM_JOB_ID="7") as earlier:
        is_slurm_job(monkeypatch, "7", 1)
        monkeypatch.setattr(sftdiff.claims.socket, "gethostname", lambda: "another-node")
        started = time.time()
        with claimed(tmp_path, 2) as mine:
            assert mine and time.time() - started >= 1  # two heartbeats: it is certainly gone
            assert earlier.poll() == FENCED
            claim = read_claim(tmp_path)
            assert claim is not None and claim["host"] == "another-node"


def test_ranks_take_part_in_the_attempt_that_the_first_decides_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    is_slurm_job(monkeypatch, "7", 0)
    tell_ranks(tmp_path, 1)
    assert await_first_rank(tmp_path) == 1
    is_slurm_job(monkeypatch, "7", 1)  # the word of an earlier start does not count
    code = "import sys, pathlib; from sftdiff.ranks import await_first_rank; print(await_first_rank(pathlib.Path(sys.argv[1])))"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**environment(), **os.environ}, stdout=subprocess.PIPE, text=True
    )
    with other:
        time.sleep(1)
        assert other.poll() is None
        tell_ranks(tmp_path, 3)
        assert other.communicate(timeout=300)[0] == "3\n"


def test_ranks_meet_where_no_outgoing_connection_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = {free_port() for _ in range(50)}
    assert len(found) > 45 and all(20000 <= port < min(lowest, 32768) for port in found)
    with socket.socket() as taken:
        taken.bind(("", min(found)))
        monkeypatch.setattr(sftdiff.ranks, "PORTS", range(min(found), min(found) + 2))
        assert free_port() == min(found) + 1


def prompts_step(tmp_path: Path) -> Path:
    return write_step(tmp_path, "rollouts-a", "rollouts", {})


def test_another_rank_does_nothing_for_a_step_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prompts_step(tmp_path)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    tell_ranks(directory, 0)
    assert run_step(directory) == "done"
    assert not (directory / "FAILED").exists() and not (directory / "logs").exists()


def test_the_rank_that_fails_first_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prompts_step(tmp_path)  # without settings: its function raises
    (directory / "logs").mkdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "node-7")
    monkeypatch.setenv("RANK", "1")
    tell_ranks(directory, 1)
    assert run_step(directory) == "failed"
    first = read_json(directory / "FAILED")
    assert first["error"].startswith("rank 1 on node-7: KeyError") and (directory / "logs/attempt_1_rank_1").exists()
    (directory / "FAILED").write_text(json.dumps(first | {"error": "rank 1 was first"}))
    assert run_step(directory) == "failed"
    assert read_json(directory / "FAILED")["error"] == "rank 1 was first"


def test_a_step_refuses_to_run_other_code_than_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTDIFF_CODE", str(ROOT))
    check_code()
    monkeypatch.setenv("SFTDIFF_CODE", str(tmp_path))
    with pytest.raises(SftdiffError, match=f"was imported from .*, not from the job's snapshot of the code, {tmp_path}"):
        run_step(prompts_step(tmp_path))


def test_a_file_that_was_changed_after_the_plan_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}\n")
    files: dict[str, Any] = {str(path): file_sha256(path)}
    check_unchanged(files)
    path.write_text("{} \n")
    with pytest.raises(SftdiffError, match=rf"{path} was changed after this step was planned"):
        check_unchanged(files)
