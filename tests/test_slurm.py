"""A sweep on a real private Slurm, from submission to report."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import (
    Cluster,
    chunk,
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
from conftest import ROOT
from small_runs import write_step

import launch.cluster
import launch.node
from launch.environment import refuse_secrets, site_env_file
from launch.jobs import Job
from launch.node import wandb_address
from launch.resources import check_resources, gpu_hours, resources_of
from launch.sweep import Submitted, chunks_of, read_chunk, write_chunk
from sftdiff.errors import SftdiffError
from sftdiff.records import load_record, read_json, write_done

ONE_RANK = ("deepspeed=off",)
HELD = "+hydra.launcher.additional_parameters.hold=true"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with private_cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no job to the next test, however this one ends."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.run("scancel", "--state=PENDING", "--me")
        cluster.run("scancel", "--me")
        wait_for_end(cluster, 60)


@pytest.fixture(scope="module")
def prepared(cluster: Cluster, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep of one teacher and no filter."""
    folder = work_folder(tmp_path_factory.mktemp("prepared"))
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK), cwd=folder)
    wait_for_end(cluster)
    assert done_steps(folder) == set(the_sweep(folder).steps), cluster.sftdiff("launch.status", "logs", cwd=folder, check=None)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared folder."""
    ignored = shutil.ignore_patterns("train-*", "report-*", "sample-*-s0-*", "judge-*-s0-*", "sweeps")
    return Path(shutil.copytree(prepared, tmp_path / "work", ignore=ignored))


def shown_jobs(cluster: Cluster, text: str = "") -> list[dict[str, str]]:
    """Return Slurm's own records of jobs whose text holds `text`."""
    blocks = cluster.run("scontrol", "--oneliner", "show", "job").splitlines()
    return [dict(re.findall(r"(\w+)=(.*?)(?= [A-Z][\w/:]*=|$)", line)) for line in blocks if text in line]


@needs_slurm
def test_a_dry_run_prints_the_plan_and_submits_nothing(cluster: Cluster, tiny_student: Path, tmp_path: Path) -> None:
    where = work_folder(tmp_path)
    arguments = small(
        tiny_student, "teacher=gemini,olmo", "hydra.launcher.dry_run=true", "hydra.launcher.resources.train.gpus_per_node=1"
    )
    text = cluster.sftdiff("sftdiff.train", *arguments, cwd=where)
    assert "GPU-hours: 11.0 at most" in text  # two trainings of 4 hours, three evaluations of 1
    assert "80% power" in text and "nothing was submitted" in text
    assert not cluster.queued() and not (where / "runs/steps").exists()


@needs_slurm
@pytest.mark.slow
def test_a_sweep_is_submitted_run_and_reported(cluster: Cluster, prepared: Path) -> None:
    sweep = the_sweep(prepared)
    assert {c.kind: len(c.jobs) for c in chunks_of(sweep) if c.kind not in ("sample",)} == {
        "student": 1, "prompts": 1, "rollouts": 1, "mixture": 1, "train": 1, "report": 1,
    }  # fmt: skip
    assert read_json(sweep.folder / "report.json")["missing"] == []
    provenance = read_json(step_directory(prepared, "train") / "provenance.json")
    assert Path(provenance["code"]).is_relative_to(prepared / "runs/code")
    assert provenance["job"] == chunk(sweep, "train").job_id and provenance["host"].startswith("127.0.0.")
    train = next(job for job in shown_jobs(cluster) if job["JobId"] == chunk(sweep, "train").job_id)
    assert train["JobName"] == "teacher=gemini filter=none seed=0"  # set by the job itself when it started


@needs_slurm
@pytest.mark.slow
def test_the_report_equals_that_of_a_local_run(cluster: Cluster, prepared: Path, tiny_student: Path, tmp_path: Path) -> None:
    where = work_folder(tmp_path / "local")
    local = [a for a in small(tiny_student, *ONE_RANK) if not a.startswith("hydra")]
    cluster.sftdiff("sftdiff.train", *local, cwd=where)
    ours, theirs = (read_json(the_sweep(f).folder / "report.json") for f in (prepared, where))
    for arm in (*ours["arms"], *theirs["arms"]):
        for cell in arm["cells"]:
            cell.pop("seconds")
    for key in ("arms", "traits", "levels", "differences", "mixtures", "examples", "missing"):
        assert ours[key] == theirs[key], key
    assert done_steps(prepared) == done_steps(where)


@needs_slurm
@pytest.mark.slow
def test_a_task_is_called_after_its_cell_and_links_to_weights_and_biases(
    cluster: Cluster, folder: Path, tiny_student: Path
) -> None:
    arguments = small(tiny_student, *ONE_RANK, "track=offline", HELD, "hydra.launcher.array_parallelism=1", "seed=0,1")
    # What a user has set for sbatch in general is for other jobs.
    foreign = {"SBATCH_NO_REQUEUE": "1", "SBATCH_OUTPUT": "/dev/null", "SBATCH_GPUS_PER_NODE": "2"}
    cluster.sftdiff("sftdiff.train", *arguments, cwd=folder, **foreign)
    sweep = the_sweep(folder)
    array = next(job for job in shown_jobs(cluster) if job.get("ArrayJobId", job["JobId"]) == chunk(sweep, "train").job_id)
    assert array["JobName"] == f"{sweep.name}-train" and array["ArrayTaskThrottle"] == "1"
    assert array["Requeue"] == "1" and array["TresPerNode"].strip() == "gres:gpu:0"
    assert array["StdOut"].startswith(str(sweep.folder))
    assert cluster.run("squeue", "--noheader", "--format=%w", f"--jobs={chunk(sweep, 'train').job_id}").strip() in ("", "(null)")
    cluster.run("scontrol", "release", str(chunk(sweep, "train").job_id))
    own = f"sftdiff:{chunk(sweep, 'train').id} "

    def named() -> list[dict[str, str]]:
        return [j for j in shown_jobs(cluster, "JobName=teacher=gemini filter=none seed=0 ") if j["Comment"].startswith(own)]

    found = wait_until(named, "the job has no name of its own")
    train = next((folder / "runs/steps").glob("train-*-s0-*"))
    assert found[0]["Comment"].strip() == f"sftdiff:{chunk(sweep, 'train').id} {train / 'wandb'}"


@needs_slurm
@pytest.mark.slow
def test_a_failed_training_stops_its_own_evaluation_only(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, "train.lr=1e-3,1e30"), cwd=folder)
    wait_for_end(cluster)
    failed = [path.parent.name for path in folder.glob("runs/steps/*/FAILED") if path.parent.name.startswith("train-")]
    assert len(failed) == 1
    sweep = the_sweep(folder)
    left = set(sweep.steps) - done_steps(folder)
    assert {step.partition("-")[0] for step in left} == {"train", "sample", "judge"} and len(left) == 3
    assert not [log for step in left - set(failed) for log in (folder / "runs/steps" / step).glob("logs/*")]
    assert failed[0] in (sweep.folder / "report.json").read_text()
    states = {
        job["JobState"] for job in shown_jobs(cluster, f"{sweep.name}/") if job.get("ArrayJobId") == chunk(sweep, "train").job_id
    }
    assert states == {"COMPLETED", "FAILED"}
    shown = json.loads(cluster.sftdiff("launch.status", "status", "--json", cwd=folder, check=None))
    assert shown["counts"]["failed"] == 1 and shown["counts"]["blocked"] == 2
    assert "the loss or its gradient is not finite" in shown["steps"][failed[0]]["note"]


@needs_slurm
@pytest.mark.slow
def test_chunks_of_one_and_a_submit_limit(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    limits = ("hydra.launcher.max_array_size=1", "hydra.launcher.max_submit=3")
    text = cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, "seed=0,1", *limits), cwd=folder)
    assert "3 more jobs are over the limit" in text
    most = len(cluster.queued())
    assert most == 3  # two jobs, and the driver that submits the others, some of them when it is run for the second time
    deadline = time.time() + 300
    while (queued := len(cluster.queued())) and time.time() < deadline:
        most = max(most, queued)
        time.sleep(0.5)
    assert most == 3 and not queued
    assert done_steps(folder) == set(the_sweep(folder).steps)
    assert {len(c.jobs) for c in chunks_of(the_sweep(folder))} == {1}
    assert all(ended(folder / "runs/steps" / step) == 1 for step in done_steps(folder))


@needs_slurm
@pytest.mark.slow
def test_what_is_edited_after_submission_changes_no_job(
    cluster: Cluster, folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    for name in ("sftdiff", "launch", "conf"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "own.py").write_text(
        "from sftdiff.filters import filter_function\n\n\n@filter_function(version=1)\n"
        "def long_ones(rows, params):\n    return [len(text) for text in rows.texts]\n"
    )
    own = ["filter._target_=own.long_ones", "filter.name=own", "filter.threshold=400", "filter.treatment=drop"]
    arguments = small(tiny_student, *ONE_RANK, *own, HELD)
    cluster.sftdiff("sftdiff.train", *arguments, cwd=folder, PYTHONPATH=f"{code}:{folder}")
    for path in (code / "sftdiff/steps.py", code / "sftdiff/sft.py", folder / "own.py"):
        path.write_text("raise SystemExit('the live code ran')\n")
    shutil.rmtree(code / "conf")
    config = next((folder / "runs/steps").glob("train-*/config.yaml"))  # another sweep with this step writes its own settings
    submitted = config.read_text()
    config.write_text(submitted.replace("stage: 0", "stage: 3"))
    assert config.read_text() != submitted
    cluster.run("scontrol", "release", *{line.partition("_")[0] for line in cluster.queued()})
    wait_for_end(cluster)
    assert done_steps(folder) >= set(the_sweep(folder).steps)
    snapshot = Path(read_json(step_directory(folder, "scores") / "provenance.json")["code"]).parent
    assert (snapshot / "own.py").read_text().startswith("from sftdiff") and (snapshot / "conf/config.yaml").exists()
    assert config.read_text() == submitted


@needs_slurm
@pytest.mark.slow
def test_a_name_whose_jobs_are_in_the_queue_is_not_given_to_another_sweep(
    cluster: Cluster, folder: Path, tiny_student: Path
) -> None:
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, HELD, "sweep=mine"), cwd=folder)
    before = (the_sweep(folder).folder / "plan.json").read_text()
    other = small(tiny_student, *ONE_RANK, HELD, "sweep=mine", "train.lr=1e-5")
    text = cluster.sftdiff("sftdiff.train", *other, cwd=folder, check=1)
    assert "sweep=mine has jobs in the queue for 3 steps that are not part of this one" in text
    assert "python -m launch.status cancel mine" in text and "HYDRA_FULL_ERROR" not in text
    assert (the_sweep(folder).folder / "plan.json").read_text() == before and len(cluster.queued()) == 3
    more = small(tiny_student, *ONE_RANK, HELD, "sweep=mine", "seed=0,1")  # one that holds all of it may take its place
    assert "are in the queue already" in cluster.sftdiff("sftdiff.train", *more, cwd=folder)


@needs_slurm
@pytest.mark.slow
def test_a_killed_task_of_an_array_is_started_again_alone(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    long = ("train.epochs=100", "train.save_steps=20", "seed=0,1")
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, *long), cwd=folder)
    array = str(chunk(the_sweep(folder), "train").job_id)  # of an array's last task this is the job's id, too
    last = wait_until(lambda: cluster.ranks(array), "the last task does not run")[-1]
    checkpoints = "runs/steps/train-*-s1-*/checkpoints/*/checkpoint-*/trainer_state.json"
    wait_until(lambda: list(folder.glob(checkpoints)), "there is no checkpoint")
    kill(last)
    wait_for_end(cluster)
    attempts = [len(list(folder.glob(f"runs/steps/train-*-s{seed}-*/logs/attempt_*"))) for seed in (0, 1)]
    assert attempts == [1, 2] and done_steps(folder) >= set(the_sweep(folder).steps)
    tasks = [job for job in shown_jobs(cluster) if job.get("ArrayJobId") == array]
    names = {job["ArrayTaskId"]: (job["JobName"], job["Restarts"]) for job in tasks}
    assert names == {str(seed): (f"teacher=gemini filter=none seed={seed}", str(seed)) for seed in (0, 1)}


@needs_slurm
@pytest.mark.slow
def test_two_people_submit_sweeps_that_share_cells_at_the_same_time(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    commands = [[sys.executable, "-m", "sftdiff.train", *small(tiny_student, *ONE_RANK, f"seed={s}")] for s in ("0,1", "1,2")]
    both = [
        subprocess.Popen(c, env=cluster.environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for c in commands
    ]
    assert [process.wait(120) for process in both] == [0, 0], [process.communicate() for process in both]
    wait_for_end(cluster)
    trained = list((folder / "runs/steps").glob("train-*"))
    assert len(trained) == 3
    for step in (folder / "runs/steps").iterdir():
        assert ended(step) == 1, step.name
    for name in ("sweeps/*/report.html",):
        assert len(list((folder / "runs").glob(name))) == 2


@needs_slurm
@pytest.mark.slow
def test_waiting_shows_progress_and_the_table_in_the_end(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    text = cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, "hydra.launcher.wait=true"), cwd=folder)
    assert "Trait levels" in text and "report.html" in text
    assert done_steps(folder) == set(the_sweep(folder).steps)


@needs_slurm
@pytest.mark.slow
def test_interrupting_the_wait_leaves_the_jobs_running(
    cluster: Cluster, folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sftdiff.train", *small(tiny_student, *ONE_RANK, "hydra.launcher.wait=true", HELD)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=cluster.environment, cwd=folder, stdout=log, stderr=log)
    wait_until(lambda: len(cluster.queued()) == 3, "nothing was submitted")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, (tmp_path / "log").read_text()
    assert len(cluster.queued()) == 3
    again = cluster.sftdiff("sftdiff.train", *small(tiny_student, *ONE_RANK, HELD), cwd=folder)
    assert "not submitted twice" in again and len(cluster.queued()) == 3


@needs_slurm
@pytest.mark.slow
def test_a_rank_that_fails_is_named(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(
        "import os\nif os.environ.get('SLURM_PROCID') == '1':\n    os.environ['SFTDIFF_CODE'] = '/somewhere/else'\n"
    )
    (folder / "env.sh").write_text(f"export PYTHONPATH={folder}/site\n")
    settings = ("hydra.launcher.env_file=env.sh", "hydra.launcher.resources.train.nodes=2")
    cluster.sftdiff("sftdiff.train", *small(tiny_student, *settings), cwd=folder)
    wait_for_end(cluster)
    failed = read_json(step_directory(folder, "train") / "FAILED")
    assert failed["error"].startswith("rank 1 on 127.0.0.") and "not from the job's snapshot" in failed["error"]
    assert failed["outcome"] == "failed"
    (job,) = [job for job in shown_jobs(cluster) if job["JobId"] == chunk(the_sweep(folder), "train").job_id]
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")


@needs_slurm
@pytest.mark.slow
def test_every_zero_stage_trains_on_two_nodes(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    stages = [("zero1", "false"), ("zero2", "true"), ("zero3", "false"), ("zero3", "true"), ("off", "false")]
    for seed, (stage, offload) in enumerate(stages):
        settings = [f"deepspeed={stage}", f"deepspeed.offload={offload}", "hydra.launcher.resources.train.nodes=2"]
        cluster.sftdiff("sftdiff.train", *small(tiny_student, *settings, f"seed={seed}", f"sweep=stage{seed}"), cwd=folder)
    wait_for_end(cluster, 600)
    for seed in range(len(stages)):
        (train,) = (folder / "runs/steps").glob(f"train-*-s{seed}-*")
        assert read_json(train / "provenance.json")["world_size"] == 2 and read_json(train / "DONE")["summary"]["ranks"] == 2
        assert (folder / f"runs/sweeps/stage{seed}/report.html").exists()


@needs_slurm
@pytest.mark.slow
def test_the_stock_launcher_runs_one_cell_a_job(cluster: Cluster, folder: Path, tiny_student: Path) -> None:
    arguments = [a for a in small(tiny_student) if not a.startswith("hydra")]
    stock = ["hydra/sweeper=basic", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "seed=0,1"]
    env = {"PYTHONPATH": str(ROOT)}
    # Without an accounting database the stock launcher never learns of a job that dies; these do not.
    cluster.sftdiff("sftdiff.train", *arguments, *stock, cwd=folder, **env)
    assert len(list((folder / "runs/steps").glob("train-*/DONE"))) == 2
    assert len(list((folder / "runs/sweeps").glob("*/report.html"))) == 2  # one cell a sweep


SETTINGS: dict[str, Any] = {
    "timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "gpus_per_node": None, "partition": "small",
    "array_parallelism": 256, "max_submit": None, "max_array_size": None,
    "resources": {"train": {"gpus_per_node": 1, "timeout_min": 240}, "sample": {"gpus_per_node": 1}},
    "students": {"large_32b": {"train": {"nodes": 4, "gpus_per_node": 8, "tasks_per_node": 8, "partition": "large"}}},
}  # fmt: skip


def test_resources_differ_by_step_kind_and_by_student() -> None:
    common = {"timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "array_parallelism": 256}
    small_train = common | {"gpus_per_node": 1, "timeout_min": 240, "partition": "small"}
    assert resources_of(SETTINGS, "mixture") == common | {"partition": "small"}
    assert resources_of(SETTINGS, "train small_135m") == small_train
    large = small_train | {"nodes": 4, "gpus_per_node": 8, "tasks_per_node": 8, "partition": "large"}
    assert resources_of(SETTINGS, "train large_32b") == large
    assert resources_of(SETTINGS, "sample large_32b") == common | {"gpus_per_node": 1, "partition": "small"}


def test_gpu_hours_are_those_of_the_time_limits_and_of_finished_steps(tmp_path: Path) -> None:
    jobs = [Job("train", "train large_32b", ["train-a-1"]), Job("sample", "sample x", ["sample-a-1", "judge-a-1"])]
    assert gpu_hours(SETTINGS, jobs, tmp_path) == (4 * 8 * 4 + 1, 0.0, 0)
    (tmp_path / "steps/sample-b-2").mkdir(parents=True)
    done = {"content": "", "outputs": {}, "inputs": {}, "absent": [], "summary": {}, "seconds": 360.0}
    (tmp_path / "steps/sample-b-2/DONE").write_text(json.dumps(done))
    assert gpu_hours(SETTINGS, jobs, tmp_path) == (129.0, pytest.approx(0.1), 1)


def test_only_training_runs_on_several_ranks() -> None:
    with pytest.raises(SftdiffError, match=r"a sample step runs on one rank, but would get 2.*resources.train.nodes"):
        resources_of(SETTINGS | {"nodes": 2}, "sample x")
    with pytest.raises(SftdiffError, match=r"resources\.training: there is no such step kind; known are student"):
        check_resources(SETTINGS | {"resources": {"training": {}}})
    with pytest.raises(SftdiffError, match="max_submit: 1 is too small"):
        check_resources(SETTINGS | {"max_submit": 1})


@pytest.mark.parametrize(
    "line",
    [
        "export WANDB_API_KEY=0123456789abcdef",
        "HF_TOKEN='hf_0123456789'",
        "  export My_Secret=verysecretvalue",
        "A='#'; export OPENAI_KEY=0123456789abcdef",
        "export HTTPS_PROXY=http://me:hunter2@proxy:80",
        "wandb login 0123456789abcdef0123456789",
    ],
)
def test_a_key_in_the_sites_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "env.sh"
    harmless = ["module load cuda", "# export WANDB_API_KEY=from-your-environment", "export HF_TOKEN=$MY_TOKEN"]
    harmless += ["export TOKENIZERS_PARALLELISM=undefined", "MONKEY=bananabanana", "export KEY_FILE=~/keys/of-mine", "git@host:x"]
    path.write_text("\n".join(harmless))
    assert site_env_file({"env_file": str(path)}) == path
    path.write_text(f"module load cuda\n{line}\n")
    with pytest.raises(SftdiffError, match=r"env.sh, line 2 looks like a key"):
        site_env_file({"env_file": str(path)})
    with pytest.raises(SftdiffError, match="there is no file"):
        site_env_file({"env_file": str(tmp_path / "missing.sh")})
    with pytest.raises(SftdiffError, match=r"hydra.launcher.setup, line 1 looks like a key"):
        refuse_secrets([line], "hydra.launcher.setup")


def test_a_cluster_that_was_stopped_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SftdiffError, match="there is no such file: start that cluster, or unset SLURM_CONF"):
        launch.cluster.call("true")


def test_a_job_whose_steps_are_done_has_not_failed_whatever_ended_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = write_step(tmp_path / "runs/steps", "train-a", "train", {})
    path = tmp_path / "runs/sweeps/a/chunks/00000-train-1.json"
    path.parent.mkdir(parents=True)
    write_chunk(Submitted(path, "train", [{"steps": ["train-a"], "name": "", "runtime": {}}], "7", None, {}, 1))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launch.node.ended(path, 3, 1) == 1  # it failed by itself, and is not started again
    log = path.with_suffix("") / "7_0_log.err"  # of a job that was requeued, then killed
    log.parent.mkdir()
    log.write_text("sftdiff: start 0\nsftdiff: start 1\nsftdiff: started again: rank 0\nsftdiff: start 2\n")
    assert launch.node.restarts_after_kills(read_chunk(path)) == 1
    write_done(load_record(step), {}, {}, 0.0)
    assert launch.node.ended(path, 3, 140) == 0
    write_chunk(Submitted(path, "driver", [{"steps": [], "name": "", "runtime": {}}], "7", None, {}, 1))
    assert launch.node.ended(path, 3, 1) == 1


def test_no_password_of_a_url_gets_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path, "report-a", "report", {}, track={"mode": "online", "project": "mine"})
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:hidden@wandb.example.org/")
    assert wandb_address(tmp_path / "report-a").startswith("https://wandb.example.org/mine/runs/")


def test_without_slurm_the_command_says_so(tmp_path: Path, tiny_student: Path) -> None:
    where = work_folder(tmp_path)
    command = [sys.executable, "-m", "sftdiff.train", *small(tiny_student)]
    environment = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "there is no squeue on this machine" in done.stderr
