"""Runs sftdiff's commands for tests: as real subprocesses, or composed and planned in this process (a hundred times faster)."""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.cli import check_groups, check_overrides, register_all
from launch.plan import Plan, build_plan
from launch.sweeper import expand
from sftdiff.errors import SftdiffError

ROOT = Path(__file__).resolve().parent.parent
Cells = list[tuple[dict[str, str], dict[str, Any]]]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a user without keys, who has this tree on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "SFTDIFF_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200", **extra}


def run_train(
    *arguments: str, timeout: float = 1200, cwd: Path | None = None, **extra: str
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m sftdiff.train` to its end, away from the tree."""
    command = [sys.executable, "-m", "sftdiff.train", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=cwd or "/", env=environment(**extra), check=False
    )


@functools.cache
def loader() -> ConfigLoaderImpl:
    register_all()
    setup_globals()
    return ConfigLoaderImpl(create_config_search_path("pkg://sftdiff.conf"))


@functools.cache
def master(*overrides: str) -> DictConfig:
    """Return what Hydra hands to a sweeper; `overrides` are those of hydra's own node."""
    return loader().load_configuration("config", list(overrides), RunMode.MULTIRUN)


def cells(*overrides: str) -> Cells:
    """Return (axes, resolved config) of each cell of a command line."""
    own = tuple(o for o in overrides if o.lstrip("+~").startswith("hydra"))
    check_overrides(overrides)
    check_groups(overrides)
    return list(expand([o for o in overrides if o not in own], master(*own), loader()))


def plan(*overrides: str) -> Plan:
    return build_plan(cells(*overrides), "a test")


def refusal(*overrides: str) -> str:
    """Return the message with which a command line is refused, as it is printed; "" if it is planned."""
    try:
        plan(*overrides)
    except (SftdiffError, HydraException) as error:
        return f"{error}\n{error.__cause__ or ''}"
    return ""


def ids(planned: Plan, kind: str) -> list[str]:
    return [step.id for step in planned.steps.values() if step.kind == kind]


def step_ids(runs: Path, kind: str = "") -> list[str]:
    """Return the step directories of a run directory, of one kind or all."""
    return sorted(p.name for p in (runs / "steps").iterdir() if p.name.startswith(kind))


def done_times(runs: Path, names: Sequence[str] | None = None) -> Mapping[str, int]:
    """Return when each done step ended, as its DONE file's time of change."""
    found = {p.parent.name: p.stat().st_mtime_ns for p in runs.glob("steps/*/DONE")}
    return found if names is None else {name: found[name] for name in names}
