"""The checks that the login node makes by itself."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path

from launch import cluster
from launch.environment import site_env_file
from launch.resources import check_resources, gpus_of, resources_of
from launch.script import LIMIT_REACHED
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.steps import KINDS
from slurm.checks.job import script_of
from slurm.checks.site import ENV_FILE, LAUNCHER, Asked, Settings, Site, run

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
USABLE = {"idle", "mixed", "allocated", "completing", "planned", "reserved", "powering_down", "powering_up", "powered_down"}
PING_SECONDS = 30
LITTLE_DISK = 50e9  # bytes


def check_slurm(site: Site) -> bool:
    """Check that Slurm's commands are here and that its controller answers; return whether it does."""
    report, conf = site.report, os.environ.get("SLURM_CONF", "")
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        change = "run this on a login node of the cluster, after `module load slurm` if it needs that"
        report.fail("commands", f"not on this machine: {', '.join(missing)}", change)
        return False
    report.ok("commands", ", ".join(COMMANDS))
    way = f"SLURM_CONF is {conf}: start that cluster, or unset it to use the site's" if conf else "ask who runs the cluster"
    if conf and not Path(conf).is_file():  # Slurm's commands would wait a minute for it
        report.fail("controller", f"there is no {conf}", way)
        return False
    began = time.monotonic()
    status, text = run("scontrol", "ping", seconds=PING_SECONDS)
    took = time.monotonic() - began
    if not status:
        status, text = run("scontrol", "show", "config")
    if status:
        report.fail("controller", f"it does not answer: {text[-300:]}", way)
        return False
    found = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    storage = found.get("AccountingStorageType", "none").rpartition("/")[2]
    accounting = "no accounting" if storage == "none" else f"accounting by {storage}"
    named = f"cluster {found.get('ClusterName')}, Slurm {found.get('SLURM_VERSION')}"
    report.ok("controller", f"{named}, {accounting}; answers in {took:.2f} s")
    return True


def check_partition(site: Site, asked: Asked) -> bool:
    """Check that the partitions of some jobs are there and up; note their time limit and the shapes of their nodes."""
    fail, known = site.report.fail, dict[str, dict[str, str]]()
    for line in run("scontrol", "show", "partition", "--oneliner")[1].splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        known[fields.get("PartitionName", "")] = fields
    default = next((name for name, fields in known.items() if fields.get("Default") == "YES"), "")
    names = asked.resources.get("partition") or os.environ.get("SBATCH_PARTITION") or default
    other = f"{asked.place('partition')}=NAME, one of {', '.join(known)}"
    if not names:
        fail("partition", "none is set, and the cluster has no default", other)
        return False
    for name in names.split(","):
        state = known.get(name, {}).get("State")
        if state != "UP":
            fail("partition", f"{name} is {state}" if state else f"there is no partition {name}", other)
            return False
    limits = [minutes(known[name].get("MaxTime", "UNLIMITED")) for name in names.split(",")]
    site.minutes = None if None in limits else max(limit or 0 for limit in limits)
    site.shapes = node_shapes(names)
    usable, total = (sum(shape["nodes"] for shape in site.shapes if shape["usable"] or every) for every in (False, True))
    size = f"up to {site.largest('cpus')} CPUs, {site.largest('gb')} GB, {site.largest('gpus')} GPUs a node"
    found = f"{names}: {usable} of {total} nodes usable, {size}, time limit {f'{site.minutes} min' if site.minutes else 'none'}"
    if not usable:
        fail("partition", found, f"`sinfo -R` says why its nodes are down; wait, or {other}")
        return False
    site.report.ok("partition", found)
    return True


def minutes(text: str) -> int | None:
    """Read Slurm's D-HH:MM:SS; None for no limit."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):\d+", text)):
        return None
    days, hours, rest = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + rest


def node_shapes(partitions: str) -> list[Settings]:
    """Return {nodes, usable, cpus, gb, gpus} of each kind of node in some partitions."""
    shapes = []
    _, text = run("sinfo", "--exact", "--noheader", f"--partition={partitions}", "--format=%D|%T|%c|%m|%G")
    for line in text.splitlines():
        if found := re.fullmatch(r"(\d+)\|([^|]+)\|(\d+)\+?\|(\d+)\+?\|(.*)", line):
            number, state, cpus, memory, gres = found.groups()
            gpus = sum(map(int, re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres)))
            usable = "*" not in state and state.rstrip("~#!%$@^-+") in USABLE
            shapes.append({"nodes": int(number), "usable": usable, "cpus": int(cpus), "gb": int(memory) / 1024, "gpus": gpus})
    return shapes


def asked_of(site: Site) -> list[Asked]:
    """Return what the step kinds ask of Slurm. Raises SftdiffError if the settings of a kind cannot be."""
    check_resources(site.settings)
    groups: dict[str, Asked] = {}
    for student in site.students:
        for kind in KINDS:
            of_student = (site.settings["students"].get(student) or {}).get(kind) or {}
            places: dict[str, str] = {}
            of_kind = site.settings["resources"].get(kind) or {}
            for path, layer in ((f"resources.{kind}", of_kind), (f"students.{student}.{kind}", of_student)):
                places |= {name: f"{LAUNCHER}.{path}.{name}" for name, value in layer.items() if value is not None}
            resources = resources_of(site.settings, f"{kind} {student}")
            group = groups.setdefault(json.dumps([resources, places], sort_keys=True), Asked([], resources, places))
            label = f"{kind} of {student}" if any(value is not None for value in of_student.values()) else kind
            group.kinds += [label] * (label not in group.kinds)
    return list(groups.values())


def check_jobs(site: Site, asked: Asked) -> bool:
    """Ask Slurm whether it would take a kind of job, and when it would start it; return whether it would."""
    status, said = run("sbatch", "--test-only", text=script_of(site, asked))
    words = re.sub(r"(?m)^(sbatch: )?(error: |allocation failure: )?", "", said)[-300:]
    late = [too_long(site, asked)] if site.minutes and int(asked.resources["timeout_min"]) > site.minutes else []
    if not status and not late:
        start = re.search(r"to start at (\S+) .*on nodes (\S+)", words)
        site.report.ok("jobs", f"{asked}" + (f"; would start {start[1].replace('T', ' ')} on {start[2]}" if start else ""))
        return True
    if status and any(word in said for word in LIMIT_REACHED):
        change = f"{LAUNCHER}.max_submit=YOUR_LIMIT, or wait for some jobs to end"
        site.report.warn("jobs", f"{asked}; Slurm says: {words}", change)
        return False
    problems = late + (too_large(site, asked) if status else [])
    said_no = [f"Slurm says: {words}"] * bool(status)
    changes = [*(change for _, change in problems), *refusal(words, asked)]
    changes = changes or [f"no node has all of it at once (`sinfo -N -o '%N %c %m %G %f'`); {LAUNCHER}.resources"]
    where = "; or a partition that allows it" * bool(problems)
    site.report.fail("jobs", "; ".join([str(asked), *said_no, *(problem for problem, _ in problems)]), "; ".join(changes) + where)
    return False


def too_long(site: Site, asked: Asked) -> tuple[str, str]:
    again = ": a training that reaches its limit is queued again and goes on" if "train" in asked.kinds[0] else ""
    return f"the partition allows {site.minutes} min", f"{asked.place('timeout_min')}={site.minutes}{again}"


def too_large(site: Site, asked: Asked) -> list[tuple[str, str]]:
    """Return (problem, change) for each thing of which a kind asks for more than the largest node has."""
    r, found = asked.resources, list[tuple[str, str]]()
    tasks, nodes = int(r["tasks_per_node"]), int(r["nodes"])
    of_gpus = next((name for name in ("gpus_per_task", "gpus_per_node", "gres") if r.get(name)), "gpus_per_node")
    needs = (
        (tasks * int(r.get("cpus_per_task") or 1), "CPUs", site.largest("cpus"), "cpus_per_task"),
        (int(r.get("mem_gb") or 0), "GB", site.largest("gb"), "mem_gb"),
        (gpus_of(r) // nodes, "GPUs", site.largest("gpus"), of_gpus),
    )
    for need, unit, most, setting in needs if site.shapes else ():
        if need > most:
            value = most
            if setting in ("cpus_per_task", "gpus_per_task"):
                setting, value = (setting, most // tasks) if most >= tasks else ("tasks_per_node", most)
            change = f"{asked.place(setting)}={f'gpu:{value}' if setting == 'gres' else value} at most"
            found.append((f"{need} {unit} a node, where the largest has {most}", change))
    if nodes > (total := sum(shape["nodes"] for shape in site.shapes)):
        found.append((f"{nodes} nodes, of which there are {total}", f"{asked.place('nodes')}={total} at most"))
    return found


def refusal(words: str, asked: Asked) -> list[str]:
    """Return what to change when Slurm refuses a kind of job with these words; nothing if they name none of our settings."""
    changes = {
        "account": f"{asked.place('account')}=NAME; `sacctmgr show associations user=$USER` lists yours",
        "qos": f"{asked.place('qos')}=NAME; `sacctmgr show associations user=$USER` lists yours",
        "partition": f"{asked.place('partition')}=NAME",
        "feature": f"{asked.place('constraint')}=NAME; `sinfo -o '%N %f'` lists what nodes have",
        "gres": f"{asked.place('gpus_per_node')} or {asked.place('gres')}; `sinfo -o '%N %G'` lists what nodes have",
        "time": f"{asked.place('timeout_min')}=MINUTES",
        "wckey": f"{LAUNCHER}.additional_parameters={{wckey: NAME}}",
        "memory": f"{asked.place('mem_gb')}=GB",
    }
    return [change for word, change in changes.items() if word in words.lower()][:1]


def check_limits(site: Site) -> None:
    """State how many jobs an array and this user may have."""
    allowed, queued = site.settings["max_submit"] or cluster.submit_limit(), len(cluster.queue())
    limit = f"{allowed:,} jobs of yours at a time" if allowed else "no limit of your jobs is known"
    found = f"arrays of up to {cluster.max_array_size():,} jobs; {limit}, {queued:,} are in the queue"
    if allowed and queued >= allowed:
        site.report.warn("limits", found, f"wait for some to end, or another {LAUNCHER}.qos")
    else:
        site.report.ok("limits", found)


def check_run_directory(site: Site) -> bool:
    """Check that the run directory can be written and locked and has room; make the check's folder in it."""
    folder, report = site.folder, site.report
    try:
        site.made = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
        folder.mkdir(parents=True)
        with (folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        change = "runs=FOLDER, on a file system that all nodes share, where you may write and where flock works"
        report.fail("run directory", f"{site.runs}: {describe_os_error(error)}", change)
        return False
    found = f"{site.runs} can be written and locked, {free / 1e9:,.0f} GB free ({file_system(folder)})"
    size = "a checkpoint of a student takes about 16 bytes a parameter (7B: 112 GB)"
    if free < LITTLE_DISK:
        report.warn("run directory", f"{found}; {size}", "free some space, or runs=FOLDER where there is more")
    else:
        report.ok("run directory", f"{found}; {size}")
    return True


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder."""
    place, kind = "", "unknown file system"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mounted, its_kind = line.split()[:3]
            if folder.is_relative_to(mounted) and len(mounted) >= len(place):
                place, kind = mounted, its_kind
    return kind


def check_env_file(site: Site) -> bool:
    """Check that bash can read the site's environment file."""
    report = site.report
    try:
        site.env_file = site_env_file(site.settings)
    except SftdiffError as error:
        report.fail("env file", f"{error}", "")
        return False
    if site.env_file is None:
        report.ok("env file", f"none; {ENV_FILE}.example is one to start from, if jobs need modules or settings")
    else:
        status, said = run("bash", "-n", str(site.env_file))
        if status:
            report.fail("env file", f"bash cannot read it: {said}", f"correct that line of {site.env_file}")
            return False
        report.ok("env file", f"bash can read {site.env_file}")
    return True
