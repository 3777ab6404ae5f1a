"""slurm/preflight on a real private Slurm: a site in order, and sites that are not. GPUs and clocks are judged by example."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster import Cluster, needs_slurm, private_cluster, wait_until
from conftest import ROOT

# What two nodes have found that have two GPUs each, as asked.
GPUS = {"asked": 2, "count": 2, "build": "13.0", "driver": "580.1", "visible": "0,1", "why": "", "names": ["H100"], "bf16": True}


class Line(NamedTuple):
    level: str
    name: str
    found: str
    change: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with private_cluster("--nodes", "3", "--cpus", "2", "--gpus", "2") as running:
        yield running


def lines_of(output: str) -> list[Line]:
    """Read the report's lines, each with what to change."""
    found = re.findall(r"^(ok|warn|FAIL) +(\S.{13}) (.*)(?:\n +-> (.*))?$", output, re.MULTILINE)
    assert len(found) == sum(map(int, re.findall(r"(\d+) (?:ok|warn|FAIL)", output.splitlines()[-1]))), output
    return [Line(level, name.strip(), text, change) for level, name, text, change in found]


def start(
    cluster: Cluster, folder: Path, *arguments: str, prefix: Sequence[str] = (), python: str = sys.executable, **more: str
) -> "subprocess.Popen[str]":
    command = [*prefix, python, str(ROOT / "slurm/preflight"), *arguments]
    environment = cluster.environment | more
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def preflight(cluster: Cluster, folder: Path, *arguments: str, status: int, **more: Any) -> list[Line]:
    """Run preflight in a folder and return its lines; nothing of it may stay."""
    before = sorted(folder.rglob("*"))
    running = start(cluster, folder, *arguments, **more)
    output = running.communicate(timeout=600)[0]
    assert running.returncode == status, output
    assert sorted(folder.rglob("*")) == before
    return lines_of(output)


def only(lines: list[Line], level: str, name: str) -> Line:
    (line,) = [line for line in lines if line.name == name and line.level == level]
    return line


def bad(lines: list[Line]) -> set[str]:
    return {line.name for line in lines if line.level == "FAIL"}


@contextmanager
def wandb_server(status: int) -> Iterator[str]:
    """Serve this status to everybody; yields an address with a password in it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:hidden-word@127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_slurm
@pytest.mark.slow
def test_a_site_in_order(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("export GLOO_SOCKET_IFNAME=lo\n")
    with wandb_server(404) as url:  # as W&B's does where there is no page
        keys = {"WANDB_API_KEY": "hidden-key", "WANDB_BASE_URL": url}
        lines = preflight(cluster, tmp_path, "hydra.launcher.env_file=site.sh", "--cpu-only", status=0, **keys)
    assert {line.level for line in lines if line.name != "run directory"} == {"ok"}  # the disk may be small
    assert "127.0.0.1, 127.0.0.2" in only(lines, "ok", "job").found
    assert "gloo: 2 ranks met" in only(lines, "ok", "rendezvous").found
    assert "s there and back" in only(lines, "ok", "shared files").found
    assert [line.found for line in lines if line.name == "env file"][1] == "was sourced in a job, without an error"
    assert only(lines, "ok", "W&B").found == "online: 127.0.0.1 answers on the nodes"
    assert not cluster.queued()


@needs_slurm
@pytest.mark.slow
def test_a_key_gpus_and_a_line_of_env_sh(cluster: Cluster, tmp_path: Path) -> None:
    """Three things at once: W&B's server is out of order, torch sees no GPU, and a module is missing."""
    (tmp_path / "site.sh").write_text("export A=1\nmodule load cuda/99\nexport B=$A\n")
    with wandb_server(503) as url:
        arguments = ("hydra.launcher.env_file=site.sh", "hydra.launcher.resources.train.gpus_per_node=2")
        keys = {"WANDB_API_KEY": "hidden-key", "WANDB_BASE_URL": url}
        lines = preflight(cluster, tmp_path, *arguments, status=1, **keys)
    assert bad(lines) == {"env file", "GPUs"}
    assert "line 2 ended with status 127: module: command not found" in only(lines, "FAIL", "env file").found
    gpus = only(lines, "FAIL", "GPUs")
    assert "127.0.0.1, 127.0.0.2: the job asked for 2, torch sees 0 (CUDA_VISIBLE_DEVICES=0,1)" in gpus.found
    assert "hydra.launcher.resources.train.gpus_per_node=0" in gpus.change
    assert "HTTP status 503" in only(lines, "warn", "W&B").found
    assert "hidden" not in str(lines)


@needs_slurm
@pytest.mark.slow
def test_one_node_and_a_wrong_interface(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("export GLOO_SOCKET_IFNAME=nothing0\n")
    arguments = ("--nodes", "1", "hydra.launcher.env_file=site.sh", "hydra.launcher.resources.train.gpus_per_node=0")
    lines = preflight(cluster, tmp_path, *arguments, status=1)
    assert bad(lines) == {"rendezvous"}
    assert "GLOO_SOCKET_IFNAME=NAME in slurm/env.sh" in only(lines, "FAIL", "rendezvous").change
    assert "network between nodes is not checked" in only(lines, "warn", "job").found
    assert "none is asked for" in only(lines, "ok", "GPUs").found
    assert "offline" in only(lines, "ok", "W&B").found


@needs_slurm
@pytest.mark.slow
def test_an_env_sh_that_ends_the_shell(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("set -e\nfalse\n")
    lines = preflight(cluster, tmp_path, "hydra.launcher.env_file=site.sh", "--cpu-only", status=1)
    assert bad(lines) == {"env file"}
    assert "line 2 ended with status 1" in only(lines, "FAIL", "env file").found


def unshared(folder: Path, command: str) -> tuple[str, ...]:
    """Return a prefix that gives a command a folder of its own, which the nodes do not share; skip the test if it cannot be."""
    folder.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && {command} exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    return tuple(mount)


@needs_slurm
@pytest.mark.slow
def test_nodes_that_do_not_see_the_run_directory(cluster: Cluster, tmp_path: Path) -> None:
    prefix = unshared(tmp_path / "own", "")
    lines = preflight(cluster, tmp_path, f"runs={tmp_path}/own/runs", "--cpu-only", status=1, prefix=prefix)
    shared = only(lines, "FAIL", "shared files")
    assert f"2 of the job's 2 tasks wrote nothing into {tmp_path}/own/runs" in shared.found
    assert "runs=FOLDER" in shared.change


@needs_slurm
@pytest.mark.slow
def test_nodes_that_do_not_see_python(cluster: Cluster, tmp_path: Path) -> None:
    """A Python of the login node only, which finds its packages where this one has them."""
    own = tmp_path / "own"
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    target = f"{own}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/more.pth"
    prefix = unshared(own, f'"{sys.executable}" -m venv --without-pip "{own}" && echo "{packages}" > "{target}" &&')
    line = only(preflight(cluster, tmp_path, "--cpu-only", status=1, prefix=prefix, python=f"{own}/bin/python"), "FAIL", "job")
    assert f"{own}/bin/python: No such file or directory" in line.found
    assert "Python and its packages must lie on a file system that the nodes share" in line.change


@needs_slurm
@pytest.mark.slow
def test_a_full_queue_and_an_interruption(cluster: Cluster, tmp_path: Path) -> None:
    """The job waits: preflight says why and gives up; or is interrupted, and leaves nothing either."""
    blocker = cluster.run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 300").strip()
    try:
        wait_until(lambda: "RUNNING" in str(cluster.queued()), "the nodes are not taken")
        lines = preflight(cluster, tmp_path, "--cpu-only", "--timeout", "1", status=1)
        waited = only(lines, "FAIL", "job")
        assert "still waiting after 1 s: Resources" in waited.found and "--timeout SECONDS" in waited.change
        running = start(cluster, tmp_path, "--cpu-only")
        wait_until(lambda: "PENDING" in str(cluster.queued()), "the check's job is not in the queue")
        running.send_signal(signal.SIGINT)
        assert "its job is cancelled and its files are removed" in running.communicate(timeout=300)[0]
        assert running.returncode == 1
        assert [line.split("_")[0] for line in cluster.queued()] == [blocker]
        assert list(tmp_path.iterdir()) == []
    finally:
        cluster.run("scancel", blocker)


@needs_slurm
@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_the_job_runs(cluster: Cluster, tmp_path: Path, sign: signal.Signals) -> None:
    running = start(cluster, tmp_path, "--cpu-only")
    wait_until(lambda: list(tmp_path.glob("runs/.preflight-*/rank-*.json")), "the job does not start")
    running.send_signal(sign)
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 1 and "interrupted" in output
    assert list(tmp_path.iterdir()) == [] and not cluster.queued()


@needs_slurm
def test_jobs_that_slurm_would_refuse(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"train.gpus_per_node": 9, "sample.mem_gb": 999, "rollouts.cpus_per_task": 64, "judge.constraint": "big"}
    resources |= {"scores.partition": "nope", "student.nodes": 1, "student.timeout_min": 61}
    cluster.run("scontrol", "update", "partitionname=debug", "maxtime=60")
    try:
        settings = [f"hydra.launcher.resources.{name}={value}" for name, value in resources.items()]
        lines = preflight(cluster, tmp_path, *settings, status=1)
    finally:
        cluster.run("scontrol", "update", "partitionname=debug", "maxtime=infinite")
    assert only(lines, "FAIL", "partition").found == "there is no partition nope"
    assert only(lines, "FAIL", "partition").change == "hydra.launcher.resources.scores.partition=NAME, one of debug"
    refused = {line.found.partition(":")[0]: line for line in lines if (line.level, line.name) == ("FAIL", "jobs")}
    assert refused.keys() == {"train", "sample", "rollouts", "judge", "student"}
    expected = {
        "train": ("9 GPUs a node, where the largest has 2", "resources.train.gpus_per_node=2 at most"),
        "sample": ("999 GB a node", "resources.sample.mem_gb="),
        "rollouts": ("64 CPUs a node, where the largest has 2", "resources.rollouts.cpus_per_task=2 at most"),
        "judge": ("Slurm says: Invalid feature specification", "resources.judge.constraint=NAME"),
        "student": ("the partition allows 60 min", "resources.student.timeout_min=60"),
    }
    for kind, (found, change) in expected.items():
        assert found in refused[kind].found and change in refused[kind].change
    assert "the partition allows 60 min" in refused["train"].found  # 240 by default
    assert "job" not in {line.name for line in lines}


@needs_slurm
def test_a_partition_that_is_down(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "partitionname=debug", "state=down")
    try:
        lines = preflight(cluster, tmp_path, "hydra.launcher.partition=debug", status=1)
    finally:
        cluster.run("scontrol", "update", "partitionname=debug", "state=up")
    assert only(lines, "FAIL", "partition").found == "debug is DOWN"


@needs_slurm
def test_no_place_for_runs_and_an_env_sh_that_bash_cannot_read(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "site.sh").write_text("if then\n")
    lines = preflight(cluster, tmp_path, "runs=file/runs", "hydra.launcher.env_file=site.sh", status=1)
    assert bad(lines) == {"run directory", "env file"}
    assert f"{tmp_path}/file/runs: " in only(lines, "FAIL", "run directory").found
    assert "runs=FOLDER" in only(lines, "FAIL", "run directory").change
    assert "line 1: syntax error" in only(lines, "FAIL", "env file").found


@needs_slurm
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_directory_without_permission(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    assert "no permission" in only(preflight(cluster, tmp_path, status=1), "FAIL", "run directory").found


@needs_slurm
@pytest.mark.parametrize("conf", ["none", "dead"])
def test_no_controller(cluster: Cluster, tmp_path: Path, conf: str) -> None:
    """A stopped private cluster has no slurm.conf; one whose controller died has."""
    path = tmp_path / "slurm.conf"
    if conf == "dead":
        text = (cluster.folder / "etc/slurm.conf").read_text()
        path.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
    lines = preflight(cluster, tmp_path, status=1, SLURM_CONF=str(path))
    assert bad(lines) == {"controller"}
    assert f"SLURM_CONF is {path}: start that cluster, or unset it" in only(lines, "FAIL", "controller").change
    assert {"run directory", "env file"} <= {line.name for line in lines}  # what can be checked is


@needs_slurm
@pytest.mark.parametrize("launcher", ["local", "submitit_slurm"])
def test_another_launcher_is_refused_and_runs_nothing(cluster: Cluster, tmp_path: Path, launcher: str) -> None:
    running = start(cluster, tmp_path, f"hydra/launcher={launcher}")
    assert "hydra/launcher=slurm" in running.communicate(timeout=300)[0]
    assert running.returncode == 1 and list(tmp_path.iterdir()) == []


def judged(check: str, capsys: pytest.CaptureFixture[str], ranks: list[dict[str, Any]], seen: Sequence[float] = ()) -> list[Line]:
    """Return the lines of one of the checks on what ranks have found; their answers to the file of second 100 came at `seen`."""
    sys.path.insert(0, str(ROOT))
    from slurm.checks import findings, job, site

    place = site.Site(site.Report(), {}, {"runs": "runs", "track": {"mode": "auto"}}, [], 2, 300, False)
    made = job.Job(place, "7", len(ranks))
    made.ranks = {number: {"rank": number, "node": f"n{number}", **found} for number, found in enumerate(ranks)}
    made.told, made.seen = 100.0, dict(enumerate(seen))
    getattr(findings, check)(place, made)
    output = capsys.readouterr().out
    return lines_of(output + ", ".join(f"{count} {level}" for level, count in place.report.counts.items()))


@pytest.mark.parametrize(
    ("change", "level", "found", "advice"),
    [
        ({}, "ok", "n0, n1: 2 x H100, driver 580.1; torch computes on each", ""),
        ({"count": 0, "build": None}, "FAIL", "the job asked for 2, torch sees 0", "CPU build of torch"),
        ({"count": 0, "driver": ""}, "FAIL", "torch sees 0", "nvidia-smi finds no driver"),
        ({"count": 1}, "FAIL", "torch sees 1", "torch is built for CUDA 13.0, the driver is 580.1"),
        ({"count": 8}, "warn", "torch sees 8", "gpus_per_node=8"),
        ({"bf16": False}, "warn", "cannot compute in bf16", "train.precision=fp32"),
        ({"error": "ArithmeticError: GPU 1 computes wrongly"}, "FAIL", "n0, n1: ArithmeticError: GPU 1", "exclude=NODE"),
    ],
)
def test_gpus_by_example(change: dict[str, Any], level: str, found: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = judged("check_gpus", capsys, [{"gpus": GPUS | change}] * 2)
    assert line.level == level and found in line.found and advice in line.change


@pytest.mark.parametrize(
    ("clock", "seen", "level", "found"),
    [
        (100.1, 100.2, "ok", "less than 1 s off"),
        (160.0, 100.2, "warn", "n1 is +60 s off"),
        (40.0, 100.2, "warn", "n1 is -60 s off"),
        (160.0, 170.0, "ok", "less than 1 s off"),  # the file took its time: nothing is known
    ],
)
def test_clocks_by_example(clock: float, seen: float, level: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = [{"answer": {"clock": 100.1}}, {"answer": {"clock": clock}}]
    (line,) = judged("check_clock", capsys, ranks, [100.2, seen])
    assert line.level == level and found in line.found


def test_two_processes_that_create_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = [{"claim": {"won": True}, "answer": {"clock": 100.0}}] * 2
    (line,) = judged("check_files", capsys, ranks, [100.1, 100.1])
    assert line.level == "FAIL" and "O_EXCL" in line.change


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT))
    from slurm.checks.site import clean

    monkeypatch.setenv("HF_TOKEN", "word-from-here")
    text = "export API_KEY=word1 http://me:word2@proxy:80/ https://word3@host said word-from-here\nkey: fine"
    assert clean(text) == "export API_KEY=*** http://***@proxy:80/ https://***@host said *** key: fine"


def test_the_example_env_file_does_nothing_until_it_is_edited(tmp_path: Path) -> None:
    """And each of its lines, once its # is removed, is one that bash reads and that is not taken for a key."""
    from launch.environment import site_env_file

    lines = (ROOT / "slurm/env.sh.example").read_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    commands = [line[2:] for line in lines if re.match(r"# (export|module|source) [^a-z]*\S*[/=]|# module ", line)]
    assert len(commands) > 12
    (tmp_path / "env.sh").write_text("\n".join(commands))
    assert subprocess.run(["bash", "-n", str(tmp_path / "env.sh")]).returncode == 0
    assert site_env_file({"env_file": str(tmp_path / "env.sh")}) == tmp_path / "env.sh"
