"""Where and with what a step runs: versions, host, job, and the commit of the code."""

import contextlib
import functools
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sftdiff
from sftdiff.ranks import host_name
from sftdiff.records import read_json

LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "inspect-ai", "numpy", "scipy", "pyarrow")


def provenance(attempt: int) -> dict[str, Any]:
    """Return where and with what a step runs. Environment variables are not recorded: they hold secrets."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "sftdiff": sftdiff.__version__,
        "code": str(Path(sftdiff.__file__).parent),
        "python": platform.python_version(),
        "libraries": versions,
        "host": host_name(),
        "job": os.environ.get("SLURM_JOB_ID"),
        **git_state(Path(sftdiff.__file__).parent),
        "attempt": attempt,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@functools.cache
def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of a checkout and whether it has uncommitted changes; None where there is no checkout."""
    if (snapshot := folder.parent / "SNAPSHOT.json").exists():
        return {key: read_json(snapshot)[key] for key in ("git_commit", "git_dirty")}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
