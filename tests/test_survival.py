"""What clusters do to jobs, done to a real training on a real private Slurm: the sweep must end like an undisturbed one.

The undisturbed sweep runs once. Each test starts from a copy of it without what the cell under test made, trains again on two
nodes under ZeRO-2, holds that after its first checkpoint (SIGSTOP: no test depends on how fast the machine is), disturbs it, and
lets go what is left of it. The loss curve must equal the undisturbed one to a relative 1e-6, which holds only if the
order of the rows, the optimizer and the learning rate go on as they were.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from cluster import (
    Cluster,
    Hold,
    chunk,
    curve,
    done_steps,
    ended,
    kill,
    needs_slurm,
    private_cluster,
    small,
    step_directory,
    the_sweep,
    wait_for_end,
    wait_until,
    work_folder,
)

from launch.sweep import chunks_of

pytestmark = [pytest.mark.slow, needs_slurm]
LONG = ("train.epochs=20", "train.save_steps=10", "hydra.launcher.resources.train.nodes=2", "track=offline")
AGAIN = ("train-*", "report-*", "sample-*-s0-*", "judge-*-s0-*")  # what a test makes again


@dataclass
class Training:
    """A training that is held after a checkpoint."""

    folder: Path
    job: str  # its raw id
    ranks: list[psutil.Process]
    hold: Hold

    @property
    def step(self) -> Path:
        return step_directory(self.folder, "train")


Submit = Callable[..., Training]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with private_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that ran to its end without any trouble."""
    folder = work_folder(tmp_path_factory.mktemp("undisturbed"))
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *LONG), cwd=folder)
    wait_for_end(cluster)
    kinds = {"student", "prompts", "rollouts", "mixture", "train", "sample", "report"}
    assert {c.kind for c in chunks_of(the_sweep(folder))} == kinds
    assert done_steps(folder) == set(the_sweep(folder).steps)
    assert len(curve(step_directory(folder, "train"))) > 60
    return folder


@pytest.fixture
def submit(cluster: Cluster, undisturbed: Path, tiny_student: Path, tmp_path: Path) -> Iterator[Submit]:
    """Submit the sweep again and hold its training after a checkpoint; what is left in the queue is cancelled in the end."""

    held: list[Hold] = []

    def run(*more: str) -> Training:
        folder = tmp_path / "work"
        shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns(*AGAIN, "sweeps"))
        cluster.sftdiff("sftdiff.train", *small(tiny_student, *LONG, *more), cwd=folder)
        train = step_directory(folder, "train")
        wait_until(lambda: list(train.glob("checkpoints/*/checkpoint-*/trainer_state.json")), "there is no checkpoint")
        job = str(chunk(the_sweep(folder), "train").job_id)
        ranks = cluster.ranks(job)
        held.append(Hold(ranks))
        assert len(ranks) == 2 and not (train / "DONE").exists(), "the training ended before it could be held"
        return Training(folder, job, ranks, held[-1])

    yield run
    for hold in held:
        hold.let_go()
    cluster.run("scancel", f"--user={os.getuid()}")
    wait_for_end(cluster, 60)
    cluster.control("start")  # what a test has killed


def is_warned(training: Training) -> bool:
    """Tell whether a rank has got Slurm's warning of the time limit, which it will see when it goes on, or has seen it before."""
    masks = [Path(f"/proc/{rank.pid}/status") for rank in training.ranks]
    pending = [re.findall(r"^ShdPnd:\s*(\w+)", path.read_text(), re.MULTILINE)[0] for path in masks if path.exists()]
    seen = "Caught signal" in (training.step / "logs/attempt_1").read_text()
    return seen or any(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 for mask in pending)


def check_like(undisturbed: Path, folder: Path, attempts: int) -> None:
    """Check that a sweep ended like the undisturbed one, each step once, with one W&B run each."""
    assert done_steps(folder) == done_steps(undisturbed)
    train = step_directory(folder, "train")
    found, expected = curve(train), curve(step_directory(undisturbed, "train"))
    assert [step for step, _, _ in found] == [step for step, _, _ in expected]
    for (_, loss, lr), (_, same, rate) in zip(found, expected, strict=True):
        assert loss == pytest.approx(same, rel=1e-6) and lr == pytest.approx(rate, rel=1e-9)
    assert len([log for log in train.glob("logs/attempt_*") if "rank" not in log.name]) == attempts
    for step in (folder / "runs/steps").iterdir():
        assert ended(step) == 1 or step.name.startswith("report-"), step.name  # a report is made again when its inputs are
        assert len(list(step.glob("wandb/offline-run-*"))) == 1, step.name
    assert (the_sweep(folder).folder / "report.html").exists()


def test_requeued_while_training(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    cluster.run("scontrol", "requeue", training.job)
    wait_for_end(cluster)
    check_like(undisturbed, training.folder, attempts=2)


def test_a_node_goes_down(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    job = training.job
    nodes = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%B").split()
    for process in psutil.process_iter(["name", "cmdline"]):  # the step daemons of both nodes: which is whose cannot be seen
        if process.info["name"] == "slurmstepd" and f"[{job}." in str(process.info["cmdline"]):
            kill(process)
    kill(psutil.Process(cluster.pid(f"slurmd-{nodes[0]}")))
    for process in cluster.processes(job):  # a node without power runs nothing
        with suppress(psutil.Error):  # it may have ended since, or be a zombie, which has no environment
            if process.environ().get("SLURMD_NODENAME") == nodes[0]:
                kill(process)
    training.hold.let_go()
    wait_until(lambda: "down" in cluster.run("sinfo", "--noheader", "--format=%T"), "the node is not seen to be down")
    wait_for_end(cluster)
    check_like(undisturbed, training.folder, attempts=2)


def test_the_time_limit_is_reached(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    """Slurm's warning comes while the ranks are held; they see it when they go on, and leave."""
    limit = ("hydra.launcher.resources.train.timeout_min=1", "hydra.launcher.resources.train.signal_delay_s=15")
    training = submit(*limit)
    wait_until(lambda: is_warned(training), "Slurm does not warn of the time limit")
    training.hold.let_go()
    wait_for_end(cluster, 600)
    attempts = [p for p in training.step.glob("logs/attempt_*") if "rank" not in p.name]
    assert 1 < len(attempts) < 10
    check_like(undisturbed, training.folder, len(attempts))


def test_a_rank_is_killed(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    kill(training.ranks[1])
    training.hold.let_go()
    wait_for_end(cluster)
    check_like(undisturbed, training.folder, attempts=2)
    assert "rank 1 on" in next(chunk(the_sweep(training.folder), "train").logs.glob("*_0_log.err")).read_text()


def test_a_rank_that_is_killed_again_and_again_is_reported(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit("hydra.launcher.max_restarts=0")
    folder = training.folder
    kill(training.ranks[1])
    training.hold.let_go()
    wait_for_end(cluster)
    text = cluster.sftdiff("launch.status", "status", cwd=folder, check=None)
    assert "lost" in text and "blocked" in text and "rank 1 on" in text
    cluster.sftdiff("launch.status", "retry", cwd=folder)
    wait_for_end(cluster)
    check_like(undisturbed, folder, attempts=2)


def test_the_whole_job_is_killed_without_a_result(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    folder, processes = training.folder, cluster.processes(training.job)
    # First the script, which would react to the end of the others.
    for process in sorted(processes, key=lambda p: "slurm_script" not in " ".join(p.cmdline())):
        if process.is_running() and process.name() != "slurmstepd":
            kill(process)
    wait_for_end(cluster)
    sweep = the_sweep(folder)
    report = (sweep.folder / "report.json").read_text()  # it runs in the end whatever failed
    assert '"missing"' in report and step_directory(folder, "train").name in report
    text = cluster.sftdiff("launch.status", "status", cwd=folder, check=None)
    assert "lost" in text and "blocked" in text
    cluster.sftdiff("launch.status", "retry", cwd=folder)
    wait_for_end(cluster)
    check_like(undisturbed, folder, attempts=2)


def test_cancelled_by_hand_and_tried_again(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    folder = training.folder
    cluster.run("scancel", training.job)
    wait_for_end(cluster)
    assert not list(folder.glob("runs/steps/sample-*-s0-*/DONE"))  # no evaluation ran on nothing, and none waits for ever
    cluster.sftdiff("launch.status", "retry", cwd=folder)
    wait_for_end(cluster)
    check_like(undisturbed, folder, attempts=2)


def test_the_controller_is_restarted_in_the_middle(cluster: Cluster, submit: Submit, undisturbed: Path) -> None:
    training = submit()
    kill(psutil.Process(cluster.pid("slurmctld")))
    cluster.control("start")
    training.hold.let_go()
    wait_for_end(cluster)
    check_like(undisturbed, training.folder, attempts=1)


@pytest.mark.parametrize("count", [1, 3])
def test_the_submission_is_killed_half_way(
    cluster: Cluster, undisturbed: Path, submit: Submit, tiny_student: Path, tmp_path: Path, count: int
) -> None:
    shim = tmp_path / "bin"
    shim.mkdir()
    # The real sbatch; after so many calls, the process that called it dies before it knows the job's id.
    (shim / "sbatch").write_text(
        f'#!/bin/bash\n{shutil.which("sbatch")} "$@"\necho x >> {shim}/calls\n'
        f'[ $(wc -l < {shim}/calls) -lt {count} ] || kill -9 $PPID\n'
    )
    (shim / "sbatch").chmod(stat.S_IRWXU)
    folder = tmp_path / "work"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns(*AGAIN, "sweeps"))
    command = [sys.executable, "-m", "sftdiff.train", *small(tiny_student, *LONG)]
    environment = cluster.environment | {"PATH": f"{shim}:{cluster.environment['PATH']}"}
    killed = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -9, killed.stderr
    assert len(cluster.queued()) == count
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *LONG), cwd=folder)
    assert len(cluster.queued()) == 3  # train, evaluation, report
    wait_for_end(cluster)
    check_like(undisturbed, folder, attempts=1)
