"""What the job has found on the nodes, as lines of the report."""

import json
import os
import re

from sftdiff.ranks import PORTS
from sftdiff.track import resolve_mode
from slurm.checks.job import Job
from slurm.checks.site import ENV_FILE, LAUNCHER, Settings, Site

CLOCK_SECONDS = 30.0  # claims tell dead jobs from live ones by heartbeats
SLOW_SECONDS = 30.0  # until a file is seen
SYNC = "`python -m sftdiff.track sync` uploads it later"
SHARED = "runs=FOLDER, on a file system that the login node and all nodes share"


def check_nodes(site: Site, job: Job) -> None:
    """State all that the job has found."""
    if check_start(site, job, check_sourced(site, job)):
        for check in (check_files, check_clock, check_slurm, check_wandb, check_python, check_gpus, check_rendezvous):
            check(site, job)


def each(job: Job, name: str) -> dict[str, Settings]:
    """Return what was found under a name, by node; of two ranks on a node, what the one with an error found."""
    found: dict[str, Settings] = {}
    for _, rank in sorted(job.ranks.items()):
        if name in rank and "error" not in found.get(rank["node"], {}):
            found[rank["node"]] = rank[name]
    return found


def errors(job: Job, name: str) -> str:
    """Return the errors of all nodes as one text, the same error once; "" if there is none."""
    nodes: dict[str, list[str]] = {}
    for node, found in each(job, name).items():
        if "error" in found:
            nodes.setdefault(found["error"], []).append(node)
    return "; ".join(f"on {', '.join(where)}: {error}" for error, where in nodes.items())


def check_sourced(site: Site, job: Job) -> bool:
    """Check that env.sh runs through in a job; return whether it does."""
    try:
        lines, said = ((site.folder / f"env.{name}").read_text(errors="replace") for name in ("lines", "errors"))
    except FileNotFoundError:
        return True  # there is no env.sh, or the job did not come so far: another line says so
    statuses = re.findall(r"^line (\d+): status (\d+)$", lines, re.MULTILINE)
    words = dict(re.findall(r"env\.sh: line (\d+): (.*)$", said, re.MULTILINE))
    failed = [f"line {n} ended with status {status}{f': {words.pop(n)}' if n in words else ''}" for n, status in statuses]
    failed += [f"line {n}: {text}" for n, text in words.items()]
    if "end" not in lines.split():
        found = "; ".join(["in a job it ends the shell, so that nothing after it runs", *failed])
        site.report.fail("env file", found, f"correct the line that fails; no `exit`, `set -e` or `set -u` in {site.env_file}")
    elif failed:
        change = f"correct {site.env_file}; a line whose failure does no harm ends with `|| true`"
        site.report.fail("env file", f"in a job, {'; '.join(failed)}", change)
    elif site.env_file is not None:
        site.report.ok("env file", "was sourced in a job, without an error")
    return "end" in lines.split()


def check_start(site: Site, job: Job, env_works: bool) -> bool:
    """Check that every task of the job has started; return whether any has."""
    nodes = sorted({rank["node"] for rank in job.ranks.values()})
    if len(job.ranks) == job.world:
        found = f"job {job.key} started {job.world} tasks on {', '.join(nodes)}, after {job.waited:.1f} s in the queue"
        if len(nodes) > 1:
            site.report.ok("job", found)
        else:
            change = f"--nodes 2, and a {LAUNCHER}.partition where two nodes have what resources.train asks for"
            site.report.warn("job", f"{found}: one node, so the network between nodes is not checked", change)
        return True
    if not nodes and not env_works:
        return False  # env.sh is the reason
    last = job.last_words()
    found = f"{job.world - len(job.ranks)} of the job's {job.world} tasks wrote nothing into {site.runs}"
    found += f" ({', '.join(nodes)} did)" * bool(nodes) + f", the job's state is {job.state or 'RUNNING'}"
    found += f"; its log ends: {last}" * bool(last)
    if not last or "ould not open" in last:
        site.report.fail("shared files", found, f"{SHARED}; is it mounted on every node?")
    else:
        change = f"Python and its packages must lie on a file system that the nodes share, and {ENV_FILE} leave PATH in order"
        site.report.fail("job", found, change)
    return bool(nodes)


def check_files(site: Site, job: Job) -> None:
    """Check that the nodes and the login node see each other's files, how soon, and that only one process can create a file."""
    report, won = site.report, [rank["claim"].get("won") for rank in job.ranks.values()]
    if problem := errors(job, "claim") or errors(job, "answer"):
        report.fail("shared files", problem, SHARED)
    elif won.count(True) != 1:
        found = f"{won.count(True)} of {len(won)} processes created the same file: two jobs would run one step at a time"
        report.fail("shared files", found, f"{SHARED} and that creates files exclusively (O_EXCL)")
    elif job.seen:
        delay = max(job.seen.values()) - job.told
        found = f"the nodes read the login node's file and it reads their answers, {delay:.1f} s there and back"
        if delay > SLOW_SECONDS:
            report.warn("shared files", found, "runs=FOLDER on a faster file system: the status command sees everything as late")
        else:
            report.ok("shared files", found)


def check_clock(site: Site, job: Job) -> None:
    """Check that the clocks of the nodes agree with the login node's, as far as the answers' way there and back tells."""
    worst, where = 0.0, ""
    for number, seen in job.seen.items():
        offset = job.ranks[number]["answer"]["clock"] - (job.told + seen) / 2
        certain = max(0.0, abs(offset) - (seen - job.told) / 2)
        if certain > abs(worst):
            worst, where = certain if offset > 0 else -certain, job.ranks[number]["node"]
    if abs(worst) > CLOCK_SECONDS:
        change = "ask who runs the cluster to set its clocks (NTP): a step of a live job can be taken for dead"
        site.report.warn("clock", f"{where} is {worst:+.0f} s off the login node's clock", change)
    elif job.seen:
        site.report.ok("clock", f"the nodes' clocks are less than {abs(worst) + 1:.0f} s off this one's")


def check_slurm(site: Site, job: Job) -> None:
    """Check that jobs can ask Slurm: the driver job submits, and every job names itself and is queued again from its node."""
    if problem := errors(job, "slurm"):
        change = f"{ENV_FILE}: what makes them work on a node; if nodes may not submit, keep sweeps under your job limit"
        site.report.warn("Slurm on nodes", problem, change)
    else:
        site.report.ok("Slurm on nodes", "sbatch and scontrol answer there")


def check_wandb(site: Site, job: Job) -> None:
    """Check how W&B would run in jobs, and that its server answers if it is needed."""
    report, found = site.report, each(job, "wandb")
    if problem := errors(job, "wandb"):
        report.fail("W&B", problem, f"WANDB_MODE in {ENV_FILE}, or track=auto|online|offline|off")
        return
    here, there = resolve_mode(site.config["track"]["mode"], os.environ), sorted({f["mode"] for f in found.values()})
    away = {node: f for node, f in found.items() if "unreachable" in f}
    if away:
        node, first = next(iter(away.items()))
        change = f"the proxy (HTTPS_PROXY) or WANDB_BASE_URL in {ENV_FILE}; or WANDB_MODE=offline there, and {SYNC}"
        stated = f"{first['server']} is out of reach on {len(away)} of {len(found)} nodes ({node}: {first['unreachable']})"
        report.warn("W&B", stated, change)
    elif there and there != [here]:
        change = f"sbatch's --export passes WANDB_API_KEY on by default; WANDB_MODE in {ENV_FILE}; or {SYNC}"
        report.warn("W&B", f"{here} here, but {' and '.join(there)} in jobs", change)
    elif here == "online" and not all(f["login"] for f in found.values()):
        change = f"set WANDB_API_KEY where you submit (jobs inherit it), or run `wandb login`; or WANDB_MODE=offline, and {SYNC}"
        report.warn("W&B", "online, but there is no key in jobs", change)
    elif here == "online":
        report.ok("W&B", f"online: {', '.join(sorted({f['server'] for f in found.values()}))} answers on the nodes")
    else:
        report.ok("W&B", f"{here}: {SYNC}")


def check_python(site: Site, job: Job) -> None:
    """Check that the nodes import what jobs import, from the copy of the code."""
    found = each(job, "python")
    if problem := errors(job, "python"):
        change = f"the environment must be complete (`make setup`) and on a shared file system, and {ENV_FILE} load what it needs"
        site.report.fail("python", problem, change)
    elif found:
        versions = " | ".join(sorted({f"Python {f['python']} with torch {f['torch']}" for f in found.values()}))
        slowest = max(float(f["seconds"]) for f in found.values())
        site.report.ok("python", f"{versions} on the nodes, imported in {slowest:.1f} s")


def check_gpus(site: Site, job: Job) -> None:
    """Check that torch sees the GPUs that the job was given, and computes on them."""
    found = each(job, "gpus")
    if problem := errors(job, "gpus"):
        site.report.fail("GPUs", problem, f"`nvidia-smi` on that node; {LAUNCHER}.exclude=NODE leaves it out")
    elif site.cpu_only:
        site.report.ok("GPUs", "not looked at (--cpu-only)")
    elif found and not any(f["asked"] or f["count"] for f in found.values()):
        site.report.ok("GPUs", "none is asked for: training and sampling take the CPU")
    else:
        alike: dict[str, list[str]] = {}
        for node, f in found.items():
            alike.setdefault(json.dumps({**f, "seconds": 0}), []).append(node)
        for text, nodes in alike.items():
            check_alike(site, ", ".join(nodes), json.loads(text))


def check_alike(site: Site, node: str, found: Settings) -> None:
    """Check the GPUs of nodes that have the same."""
    report, names = site.report, ", ".join(found["names"])
    seen = f"{node}: the job asked for {found['asked']}, torch sees {found['count']}"
    if found["count"] < found["asked"]:
        report.fail("GPUs", f"{seen} (CUDA_VISIBLE_DEVICES={found['visible']})", way_to_gpus(found))
    elif found["count"] > found["asked"]:
        change = f"{LAUNCHER}.resources.train.gpus_per_node={found['count']}, or ask for ConstrainDevices=yes in cgroup.conf"
        report.warn("GPUs", f"{seen}: jobs on one node can take each other's", change)
    elif not found["bf16"]:
        report.warn("GPUs", f"{node}: {names} cannot compute in bf16", "train.precision=fp32 sampling.precision=fp32")
    else:
        report.ok("GPUs", f"{node}: {found['count']} x {names}, driver {found['driver'] or 'unknown'}; torch computes on each")


def way_to_gpus(found: Settings) -> str:
    """Return what to do where torch sees too few GPUs."""
    without = f"on a cluster without real ones, --cpu-only or {LAUNCHER}.resources.train.gpus_per_node=0"
    if found["build"] is None:
        return f"the environment holds a CPU build of torch: install a CUDA build of the same version into it; {without}"
    if not found["driver"]:
        return f"nvidia-smi finds no driver there: a {LAUNCHER}.partition or constraint with GPU nodes; {without}"
    why = f" ({found['why']})" * bool(found["why"])
    versions = f"torch is built for CUDA {found['build']}, the driver is {found['driver']}{why}"
    return f"{versions}: a torch for an older CUDA, or what {ENV_FILE} loads"


def check_rendezvous(site: Site, job: Job) -> None:
    """Check that ranks meet and sum up as in a training."""
    found = each(job, "rendezvous")
    if not found:
        return  # Python did not start there
    first = next((f for f in found.values() if "error" in f), next(iter(found.values())))
    place = f"{first.get('address')}:{first.get('port')}"
    if not (problem := errors(job, "rendezvous")):
        speed = f"64 MiB summed in {max(f['sum'] for f in found.values()):.2f} s"
        met = f"{job.world} ranks met at {place} in {max(f['met'] for f in found.values()):.1f} s"
        site.report.ok("rendezvous", f"{first['backend']}: {met}; {speed}, the sum is right")
        return
    stage = first.get("stage")
    if stage == "port":
        change = SHARED
    elif stage == "resolve":
        change = f"{first.get('address')}, the first node's name, must resolve on the nodes: ask who runs the cluster"
    elif stage == "connect":
        change = f"{place} (MASTER_ADDR): nodes must reach each other's TCP ports {PORTS.start} to {PORTS.stop - 1}"
    else:
        name = "NCCL" if first.get("backend") == "nccl" else "GLOO"
        common = set.intersection(*(set(f.get("interfaces", ())) for f in found.values()))
        which = ", ".join(sorted(common)) or "`ip -brief address` on a node lists them"
        change = f"export {name}_SOCKET_IFNAME=NAME in {ENV_FILE}, the interface of the nodes' own network ({which})"
        change += "; NCCL_DEBUG=INFO shows more" * (name == "NCCL")
    site.report.fail("rendezvous", f"{first.get('backend') or 'before any backend'}, {problem}", change)
