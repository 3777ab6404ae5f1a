"""What slurm/preflight runs in its job: each rank finds out what a sweep's jobs would find there, and writes it to a file.

The file is written again after each finding, so that it says how far a process came that was killed. It never holds the value of
a secret: of such variables only whether they are set.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

PATIENCE = 90  # seconds until a file of another node must be visible: network file systems may keep a listing for a minute
RENDEZVOUS_SECONDS = 60
SUMMED = 16 << 20  # numbers in the tensor that the nodes sum up: 64 MiB

Found = dict[str, Any]


class Findings:
    """What one rank has found so far, in FOLDER/rank-R.json."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"rank-{rank}.json"
        self.found: Found = {"rank": rank, "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname()}

    def add(self, name: str, look: Callable[[Found], None]) -> bool:
        """Let `look` fill in what is found under a name, its error too; return whether there was none."""
        found = self.found[name] = {"error": "it did not come to an end"}
        self.save()
        began = time.monotonic()
        try:
            look(found)
            del found["error"]
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        found["seconds"] = f"{time.monotonic() - began:.1f}"
        self.save()
        return "error" not in found

    def end(self) -> None:
        self.found["end"] = True
        self.save()

    def save(self) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.found))
        os.replace(temporary, self.path)


def claim(folder: Path, found: Found) -> None:
    """Try to create a file that only one process can create: what keeps two jobs from running one step."""
    try:
        os.close(os.open(folder / "claim", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        found["won"] = True
    except FileExistsError:
        found["won"] = False


def answer(folder: Path, token: str, found: Found) -> None:
    """Wait for the login node's file, and note this node's clock at that moment."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        # Listing the folder makes a network file system look again.
        if folder / "go" in list(folder.iterdir()) and (folder / "go").read_text() == token:
            found["clock"] = time.time()
            return
        time.sleep(0.05)
    raise TimeoutError(f"the login node's file was not seen within {PATIENCE} s")


def slurm(script: Path, found: Found) -> None:
    """Ask Slurm from this node what jobs ask it: to submit (the driver job does), and to show a job."""
    from launch.cluster import call, without_job_variables

    clean = without_job_variables(os.environ)
    call("sbatch", "--test-only", str(script), environment=clean)
    call("scontrol", "show", "job", os.environ["SLURM_JOB_ID"], environment=clean)


def wandb(mode: str, found: Found) -> None:
    """Tell in which mode W&B would run here, and whether its server answers if it is needed."""
    from sftdiff.track import resolve_mode

    found["mode"] = resolve_mode(mode, os.environ)
    if found["mode"] != "online":
        return
    without_mode = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    found["login"] = resolve_mode("auto", without_mode) == "online"
    url = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    found["server"] = url.hostname or "the server of WANDB_BASE_URL"
    try:
        bare = url._replace(netloc=url.netloc.rpartition("@")[2])  # a URL can hold a password
        urllib.request.urlopen(bare.geturl(), timeout=5).close()
    except urllib.error.HTTPError as error:  # it answers
        found |= {"unreachable": f"HTTP status {error.code}"} if error.code >= 500 else {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        found["unreachable"] = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"


def python(found: Found) -> None:
    """Import what jobs import; the error names what is missing."""
    found["python"] = sys.version.split()[0]
    import submitit
    import torch

    import launch.node  # noqa: F401
    from sftdiff.steps import check_code

    check_code()
    found |= {"torch": torch.__version__, "submitit": submitit.__version__}


def gpus(asked: int, found: Found) -> None:
    """Compute on each GPU that torch sees. `asked` of 0 with a job that holds some: they were asked for in another way."""
    import torch

    found |= {"asked": asked or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0), "count": 0, "build": torch.version.cuda}
    found |= {"driver": driver(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "not set"), "why": "", "names": []}
    if torch.version.cuda is None:
        return
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        found["why"] = " ".join(str(error).split())[:300]
        return
    found["count"] = torch.cuda.device_count()
    kinds = [torch.cuda.get_device_properties(n) for n in range(found["count"])]
    found["names"] = sorted({f"{kind.name} ({kind.total_memory / 1e9:.0f} GB)" for kind in kinds})
    for number in range(found["count"]):
        ones = torch.ones(256, 256, device=f"cuda:{number}", dtype=torch.bfloat16)
        if float((ones @ ones)[0, 0]) != 256:
            raise ArithmeticError(f"GPU {number} computes wrongly")
    found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)


def driver() -> str:
    """Return the version of the NVIDIA driver, or "" if there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].strip() if not done.returncode else ""


def rendezvous(folder: Path, world: int, cpu_only: bool, save: Callable[[], None], found: Found) -> None:
    """Let all ranks meet as a training's ranks do, and sum numbers up. `stage` says how far it came."""
    import torch
    import torch.distributed as dist

    from launch.node import set_rank_variables
    from sftdiff.ranks import await_first_rank, is_first_rank, tell_ranks

    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # an exception instead of an abort
    set_rank_variables(world)
    found["stage"] = "port"
    if is_first_rank():
        tell_ranks(folder, 1)
    else:
        await_first_rank(folder, PATIENCE)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    found |= {"address": address, "port": port, "interfaces": interfaces, "backend": "", "stage": "resolve"}
    found["resolved"] = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)})
    found["stage"] = "connect"
    began, limit = time.monotonic(), timedelta(seconds=RENDEZVOUS_SECONDS)
    store: Any = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=2 * limit)  # type: ignore[attr-defined]
    # One GPU serves one rank only; and what one node lacks, none can use.
    has_gpu = not cpu_only and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    store.set(f"gpu {rank}", str(int(has_gpu)))
    on_gpus = all(store.get(f"gpu {other}") == b"1" for other in range(world))
    found |= {"backend": "nccl" if on_gpus else "gloo", "stage": "sum"}
    save()
    if on_gpus:
        torch.cuda.set_device(local)
    device = f"cuda:{local}" if on_gpus else "cpu"
    dist.init_process_group(found["backend"], store=store, rank=rank, world_size=world, timeout=limit)
    summed(torch.full((1,), rank + 1.0, device=device), world)
    found["met"] = round(time.monotonic() - began, 2)
    tensor = torch.full((SUMMED,), rank + 1.0, device=device)
    began = time.monotonic()
    summed(tensor, world)
    found |= {"sum": round(time.monotonic() - began, 3), "stage": "end"}
    leave(store, rank, world)


def summed(tensor: Any, world: int) -> None:
    """Sum a tensor of rank + 1 over the ranks; raises ArithmeticError if the sum is wrong."""
    import torch.distributed as dist

    dist.all_reduce(tensor)
    low, high = float(tensor.min()), float(tensor.max())
    if not low == high == world * (world + 1) / 2:
        raise ArithmeticError(f"the sum over {world} ranks is wrong: {low} to {high}")


def leave(store: Any, rank: int, world: int) -> None:
    """End the group; the first rank, which holds the store, goes last."""
    import torch.distributed as dist

    dist.destroy_process_group()
    store.add("left", 1)
    limit = time.monotonic() + 10
    while rank == 0 and store.add("left", 0) < world and time.monotonic() < limit:
        time.sleep(0.02)


def main() -> None:
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    findings, cpu_only = Findings(folder, rank), settings["cpu_only"]
    findings.add("claim", partial(claim, folder))
    findings.add("answer", partial(answer, folder, settings["token"]))
    findings.add("slurm", partial(slurm, folder / "report.sh"))
    findings.add("wandb", partial(wandb, settings["track"]))
    if findings.add("python", python):
        if not cpu_only:
            findings.add("gpus", partial(gpus, settings["gpus"]))
        findings.add("rendezvous", partial(rendezvous, folder, world, cpu_only, findings.save))
    findings.end()


if __name__ == "__main__":
    main()
