"""slurm/devcluster on the real Slurm: what it starts runs jobs, what dies comes back, and what it stops is gone."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from commands import ROOT, environment

DEVCLUSTER = ROOT / "slurm/devcluster"
# An ordinary user's PATH lacks the folders of the daemons.
FOLDERS = f"{os.environ['PATH']}:/usr/sbin:/sbin"
FOUND = {name: shutil.which(name, path=FOLDERS) for name in ("slurmctld", "munged", "slurmdbd", "mariadbd")}
slow = pytest.mark.slow
needs_slurm = pytest.mark.skipif(not (FOUND["slurmctld"] and FOUND["munged"]), reason="slurm-wlm and munge are not installed")
needs_accounting = pytest.mark.skipif(not all(FOUND.values()), reason="slurmdbd and mariadb-server are not installed")
Done = "subprocess.CompletedProcess[str]"

RENDEZVOUS = """
import os, socket, subprocess, sys
nodes = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True, timeout=300).stdout.split()
rank, port, hello = int(os.environ["SLURM_PROCID"]), int(sys.argv[1]), b""
if rank == 0:
    with socket.create_server((nodes[0], port)) as server:
        for _ in nodes[1:]:
            with server.accept()[0] as other:
                hello += other.recv(100)
else:
    for _ in range(200):
        try:
            with socket.create_connection((nodes[0], port), timeout=300) as master:
                master.sendall(f"{rank} on {os.environ['SLURMD_NODENAME']};".encode())
                break
        except ConnectionRefusedError:
            __import__("time").sleep(0.1)
print(rank, os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"], sorted(hello.decode().split(";"))[1:], flush=True)
"""


def clean() -> dict[str, str]:
    """Return an environment without any cluster."""
    return {key: value for key, value in environment().items() if not key.startswith(("SLURM", "SBATCH"))}


def devcluster(*arguments: str, folder: Path, prefix: Sequence[str] = (), program: Path = DEVCLUSTER) -> Done:
    """Run devcluster to its end and show how long it took."""
    began = time.monotonic()
    command = [*prefix, str(program), *arguments, "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=clean(), cwd="/", check=False)
    print(f"{' '.join(arguments)}: exit {done.returncode} after {time.monotonic() - began:.2f} s\n{done.stderr}")
    return done


def start(folder: Path, *arguments: str) -> Done:
    done = devcluster("start", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"export SLURM_CONF={folder}/etc/slurm.conf\n"
    return done


def slurm(folder: Path, *command: str) -> str:
    """Run one of Slurm's commands on a cluster and return what it prints."""
    env = {**clean(), "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd="/", check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def submit(folder: Path, script: str, output: Path | str, *options: str) -> str:
    """Submit a batch script and return the job's id."""
    return slurm(folder, "sbatch", "--parsable", "-o", str(output), *options, "--wrap", script).strip()


def until(holds: Callable[[], object], seconds: float = 240) -> None:
    """Wait until something holds; fail if that takes too long."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"not in {seconds} s"
        time.sleep(0.1)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def pid_of(folder: Path, daemon: str) -> int:
    return int(read(folder / f"run/{daemon}.pid").split()[0])


def processes(folder: Path) -> dict[int, str]:
    """Return the processes, but for zombies, in whose command line or environment a cluster's directory occurs."""
    found = {}
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"{folder}/".encode() in text and state not in "ZX":
            found[int(entry.name)] = text.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


@pytest.fixture
def folders() -> Iterator[Callable[[], Path]]:
    """Make directories with short names, and in the end stop their clusters and kill by pid what that leaves."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="sftdiff-", dir="/tmp")))
        return made[-1] / "c"

    try:
        yield make
    finally:
        for parent in made:
            for child in parent.iterdir():
                devcluster("stop", folder=child)
            for pid in processes(parent):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(parent)


@pytest.fixture
def folder(folders: Callable[[], Path]) -> Path:
    return folders()


@needs_slurm
def test_start_status_stop(folder: Path, tmp_path: Path) -> None:
    done = start(folder)
    assert "127.0.0.1 127.0.0.2 127.0.0.3: 4 CPUs and 2 GPUs" in done.stderr and str(folder) in done.stderr
    status = devcluster("status", folder=folder)
    assert status.returncode == 0 and len(status.stdout.splitlines()) == 6 and status.stdout.count("idle") == 3
    pids = {pid_of(folder, name) for name in ("munged", "slurmctld", *(f"slurmd-127.0.0.{n}" for n in (1, 2, 3)))}
    assert pids <= processes(folder).keys()

    again = start(folder, "--nodes", "3")
    assert "was running" in again.stderr and pids <= processes(folder).keys()
    other = devcluster("start", "--nodes", "5", folder=folder)
    assert other.returncode == 1 and other.stdout == "" and "was started with --nodes 3;" in other.stderr
    line = f'eval "$({DEVCLUSTER} start --dir {folder})" && sinfo -hN -o %N | paste -sd" "'
    shell = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, env=clean(), check=True)
    assert shell.stdout == "127.0.0.1 127.0.0.2 127.0.0.3\n"

    submit(folder, "sleep 600", "/dev/null", "--hold")
    assert devcluster("stop", folder=folder).returncode == 0
    assert processes(folder) == {}
    status = devcluster("status", folder=folder)
    assert status.returncode == 1 and "No cluster runs" in status.stdout
    assert devcluster("stop", folder=folder).returncode == 0

    start(folder, "--nodes", "1", "--cpus", "7", "--gpus", "0", "--max-array-size", "11")
    assert slurm(folder, "squeue", "-h") == ""
    assert slurm(folder, "sinfo", "-hN", "-o", "%N %c %G %P %l") == "127.0.0.1 7 (null) debug* infinite\n"
    assert "MaxArraySize            = 11\n" in slurm(folder, "scontrol", "show", "config")


@needs_slurm
def test_jobs(folder: Path, tmp_path: Path) -> None:
    start(folder)
    (tmp_path / "rendezvous.py").write_text(RENDEZVOUS)
    array = submit(folder, "echo $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME", tmp_path / "array-%a", "--array=0-4", "--ntasks=1")
    script = f"srun {sys.executable} {tmp_path}/rendezvous.py $((32000 + RANDOM % 700))"
    submit(folder, script, tmp_path / "nodes", "--nodes=3", "--gpus-per-node=1")
    until(lambda: not slurm(folder, "squeue", "-h"))
    assert [read(tmp_path / f"array-{n}").split()[0] for n in range(5)] == list("01234")
    said = sorted(read(tmp_path / "nodes").splitlines())
    assert said == ["0 127.0.0.1 0 ['1 on 127.0.0.2', '2 on 127.0.0.3']", "1 127.0.0.2 0 []", "2 127.0.0.3 0 []"]
    both = slurm(folder, "srun", "--gpus-per-node=2", "--nodes=2", "--ntasks-per-node=1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert both.split() == ["0,1", "0,1"]
    assert f"ArrayJobId={array}" in slurm(folder, "scontrol", "show", "job", array), "finished jobs stay visible"


@needs_slurm
def test_a_job_that_is_requeued_starts_again(folder: Path, tmp_path: Path) -> None:
    start(folder, "--nodes", "1")
    job = submit(folder, f"echo ${{SLURM_RESTART_COUNT:-0}} >> {tmp_path}/starts; sleep 600", tmp_path / "log", "--requeue")
    until(lambda: read(tmp_path / "starts") == "0\n")
    began = time.monotonic()
    slurm(folder, "scontrol", "requeue", job)
    until(lambda: read(tmp_path / "starts") == "0\n1\n")
    print(f"requeued after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 100  # 6 s; 120 if the credentials' life were not taken


@needs_slurm
def test_start_brings_back_only_what_died(folder: Path, tmp_path: Path) -> None:
    start(folder)
    job = submit(folder, f"echo >> {tmp_path}/starts; sleep 600", "/dev/null", "--nodelist=127.0.0.1")
    until(lambda: read(tmp_path / "starts"))
    began = time.time()
    held = submit(folder, "true", "/dev/null", "--hold")
    # The controller saves its state up to 5 s after a change; what is killed before that forgets that the job runs.
    until(lambda: (folder / "state/job_state").stat().st_mtime > began + 0.1)
    names = ["munged", "slurmctld", "slurmd-127.0.0.1", "slurmd-127.0.0.2", "slurmd-127.0.0.3"]
    before = {name: pid_of(folder, name) for name in names}
    dead = {"slurmd-127.0.0.2", "slurmctld"}
    for name in dead:
        os.kill(before[name], signal.SIGKILL)
    status = devcluster("status", folder=folder)
    assert status.returncode == 1 and status.stdout.count("down") == 2
    assert "runs again" in start(folder).stderr
    assert {name for name in names if pid_of(folder, name) != before[name]} == dead
    assert devcluster("status", folder=folder).returncode == 0
    assert set(slurm(folder, "squeue", "-h", "-o", "%i %T %N").splitlines()) == {f"{job} RUNNING 127.0.0.1", f"{held} PENDING "}
    assert slurm(folder, "srun", "--nodelist=127.0.0.2", "printenv", "SLURMD_NODENAME") == "127.0.0.2\n"
    assert read(tmp_path / "starts") == "\n"


@needs_slurm
def test_two_clusters_side_by_side(folders: Callable[[], Path]) -> None:
    one, two = folders(), folders()
    start(one)
    start(two, "--nodes", "2")
    ports = [list(json.loads(read(folder / "devcluster.json"))["ports"].values()) for folder in (one, two)]
    assert not set(ports[0]) & set(ports[1])
    for folder, nodes in ((one, 3), (two, 2)):
        assert slurm(folder, "srun", f"--nodes={nodes}", "printenv", "SLURM_CONF").split() == [f"{folder}/etc/slurm.conf"] * nodes
    submit(two, "sleep 600", "/dev/null")
    until(lambda: slurm(two, "squeue", "-h", "-t", "running"))
    devcluster("stop", folder=one)
    assert processes(one) == {}
    assert devcluster("status", folder=two).returncode == 0
    assert slurm(two, "squeue", "-h", "-o", "%T") == "RUNNING\n"


@needs_slurm
def test_stop_ends_jobs_that_do_not_want_to(folder: Path, tmp_path: Path) -> None:
    start(folder)
    stubborn = f"trap '' TERM; (setsid nohup sleep 611 >/dev/null 2>&1 &); echo >> {tmp_path}/begun; while :; do sleep 612; done"
    (tmp_path / "stubborn.sh").write_text(stubborn)
    submit(folder, f"bash {tmp_path}/stubborn.sh", "/dev/null")
    submit(folder, f"srun /bin/bash {tmp_path}/stubborn.sh", "/dev/null", "--nodes=2", "--export=NONE")
    submit(folder, "sleep 600", "/dev/null", "--array=0-999")
    until(lambda: len(read(tmp_path / "begun")) == 3)
    assert sum("sleep" in command for command in processes(folder).values()) >= 6
    assert devcluster("stop", folder=folder).returncode == 0
    assert processes(folder) == {}


@needs_slurm
def test_what_is_left_of_a_cluster_that_died_is_cleaned(folder: Path) -> None:
    command = [str(DEVCLUSTER), "start", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean()) as half:
        until(lambda: (folder / "run/munged.pid").exists())
        half.kill()
    start(folder)
    submit(folder, "sleep 600", "/dev/null")
    until(lambda: slurm(folder, "squeue", "-h", "-t", "running"))
    for path in folder.glob("run/*.pid"):
        os.kill(pid_of(folder, path.stem), signal.SIGKILL)
    # Its process id went to another process meanwhile, which must live.
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            start_ticks = read(folder / "run/slurmctld.pid").split()[1]
            (folder / "run/slurmctld.pid").write_text(f"{other.pid} {start_ticks}\n")
            assert devcluster("status", folder=folder).returncode == 1
            start(folder)
            assert slurm(folder, "squeue", "-h") == ""
            assert sum("slurmstepd" in text or "sleep" in text for text in processes(folder).values()) == 0
            (folder / "run/slurmd-127.0.0.3.pid").write_text(f"{other.pid} {start_ticks}\n")
            devcluster("stop", folder=folder)
            assert other.poll() is None
        finally:
            other.kill()


@needs_slurm
def test_stop_finds_a_cluster_whose_directory_is_gone(folder: Path) -> None:
    start(folder, "--nodes", "1")
    submit(folder, "sleep 600", "/dev/null")
    until(lambda: slurm(folder, "squeue", "-h", "-t", "running"))
    folder.rename(folder.parent / "gone")  # what is being written to cannot be removed reliably
    assert devcluster("stop", folder=folder).returncode == 0
    assert processes(folder) == {} and not folder.exists()


@needs_slurm
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    parent = folder.parent
    program = Path(shutil.copy(DEVCLUSTER, parent / "devcluster"))  # the checkout may be root's alone
    for path in (parent, program):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    # As su leaves it: root's variables, and no folder of daemons on the PATH.
    prefix = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "env", "PATH=/usr/bin:/bin"]
    done = devcluster("start", "--nodes", "2", folder=folder, prefix=prefix, program=program)
    assert done.returncode == 0, done.stderr
    try:
        command = [*prefix, f"SLURM_CONF={folder}/etc/slurm.conf", "srun", "--nodes=2", "--gpus-per-node=1", "id", "-un"]
        job = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean(), cwd="/", check=False)
        assert job.stdout.split() == ["nobody", "nobody"], job.stderr
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in processes(folder)}
        assert owners == {nobody.pw_uid}
        assert devcluster("status", folder=folder, prefix=prefix, program=program).returncode == 0
    finally:
        stopped = devcluster("stop", folder=folder, prefix=prefix, program=program)
    assert stopped.returncode == 0 and processes(folder) == {}
    program.unlink()


@pytest.mark.parametrize(
    ("options", "packages"), [([], "slurm-wlm munge"), (["--accounting"], "slurm-wlm munge slurmdbd mariadb-server")]
)
def test_missing_packages_are_named(options: list[str], packages: str, tmp_path: Path) -> None:
    command = [sys.executable, str(DEVCLUSTER), "start", *options, "--dir", str(tmp_path / "c")]
    env = {**clean(), "PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"devcluster: Debian packages are missing; as root: apt-get install {packages}\n"
    assert list(tmp_path.iterdir()) == []


@needs_slurm
@pytest.mark.parametrize(("name", "message"), [("c" * 70, "too long"), ("a b", "only letters")])
def test_a_directory_that_does_not_do_is_refused(name: str, message: str, folder: Path) -> None:
    done = devcluster("start", folder=folder.parent / name)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert message in done.stderr and "--dir" in done.stderr


@needs_slurm
def test_nobody_elses_files_are_touched(folder: Path) -> None:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/file").write_text("mine")
    done = devcluster("start", folder=folder)
    assert done.returncode == 1 and "not empty and holds no cluster" in done.stderr
    assert devcluster("stop", folder=folder).returncode == 0
    assert [path.name for path in folder.rglob("*")] == ["etc", "file"]


@needs_slurm
def test_a_daemon_that_does_not_come_up_is_explained(folder: Path) -> None:
    start(folder, "--nodes", "1")
    os.kill(pid_of(folder, "slurmctld"), signal.SIGKILL)
    with (folder / "etc/slurm.conf").open("a") as conf:
        conf.write("NoSuchSetting=1\n")
    done = devcluster("start", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "slurmctld ended at once" in done.stderr and "NoSuchSetting" in done.stderr and "Traceback" not in done.stderr


@slow
@needs_accounting
def test_accounting(folder: Path) -> None:
    start(folder, "--accounting")
    job = submit(folder, "exit 3", "/dev/null", "--job-name=third")

    def record() -> str:
        return slurm(folder, "sacct", "-nXP", "-j", job, "-o", "jobname,state,exitcode")

    until(lambda: record() == "third|FAILED|3:0\n")
    me = pwd.getpwuid(os.getuid()).pw_name
    assert f"users|{me}\n" in slurm(folder, "sacctmgr", "-nP", "show", "assoc", "format=account,user")
    time.sleep(3)  # slurmdbd commits every second
    os.kill(pid_of(folder, "mariadbd"), signal.SIGKILL)
    os.kill(pid_of(folder, "slurmdbd"), signal.SIGKILL)
    start(folder)
    assert record() == "third|FAILED|3:0\n"
    assert devcluster("status", folder=folder).stdout.count(" up ") == 7
    devcluster("stop", folder=folder)
    assert processes(folder) == {}


@slow
@needs_slurm
def test_time_limits_and_lost_nodes(folder: Path, tmp_path: Path) -> None:
    start(folder)
    limited = submit(folder, "sleep 600", "/dev/null", "--time=1", "--nodelist=127.0.0.3")
    submit(folder, f"echo $SLURMD_NODENAME >> {tmp_path}/starts; sleep 600", tmp_path / "log", "--requeue", "--exclude=127.0.0.3")
    until(lambda: read(tmp_path / "starts"))
    began, lost = time.monotonic(), read(tmp_path / "starts").strip()
    os.kill(pid_of(folder, f"slurmd-{lost}"), signal.SIGKILL)
    until(lambda: slurm(folder, "sinfo", "-h", "-n", lost, "-o", "%T") == "down*\n")
    print(f"the node was missed after {time.monotonic() - began:.1f} s")
    until(lambda: len(read(tmp_path / "starts").split()) == 2)
    print(f"its job ran again after {time.monotonic() - began:.1f} s")
    assert lost != read(tmp_path / "starts").split()[1]
    until(lambda: slurm(folder, "squeue", "-h", "-t", "all", "-j", limited, "-o", "%T") == "TIMEOUT\n")
    print(f"a limit of a minute was enforced after {time.monotonic() - began:.1f} s")
    start(folder)
    assert devcluster("status", folder=folder).returncode == 0
