"""`python -m sftdiff.diff organisms [NAME ...] [seeds=0,1,2,3,4] [key=value ...]`: does the verdict tell the truth?

Makes model organisms whose cause is planted (sftdiff.organisms), runs the whole diff of each, as a user would, and lays the
verdicts beside the truth: organisms.json, and a table. What is done is not done again; other settings go to every diff.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.arms import hydra_text
from launch.run import console
from sftdiff.decisions import load_decisions
from sftdiff.errors import SftdiffError
from sftdiff.organisms.manifest import load_manifest
from sftdiff.packages import TREE
from sftdiff.records import read_json, write_json

NULL = "null"
WHOLE = ["diff.difference_first=false"]  # all arms, though original and alternative are not seen to differ
# run -> its organism, and settings; those without a cause must come to no verdict, whatever is done
WITHOUT_CAUSE = {NULL: (NULL, []), "null-whole": (NULL, WHOLE), "null-noise": ("noise", WHOLE)}
STATES = ("supported", "contradicted", "open")


def run_organisms(arguments: Sequence[str]) -> int:
    """Make and diff organisms; return the exit status. Raises SftdiffError for an unknown name or setting."""
    known = [*(each.label for each in load_decisions().hypotheses), *WITHOUT_CAUSE]
    names = [word for word in arguments if "=" not in word] or known
    settings = dict(word.split("=", 1) for word in arguments if "=" in word)
    if unknown := [name for name in names if name not in known]:
        raise SftdiffError(f"there is no organism {unknown[0]}; there are {', '.join(known)}")
    runs = Path(settings.pop("runs", "runs"))
    try:
        seeds = [int(seed) for seed in settings.pop("seeds", "0,1,2,3,4").split(",")]
    except ValueError:
        raise SftdiffError("seeds: whole numbers, e.g. seeds=0,1,2") from None
    failed, file = list[str](), runs / "organisms.json"
    for seed in seeds:
        for name in names:
            sweep = f"organism-{name}-s{seed}"
            console.print(f"[bold]Organism {name}, seed {seed}[/]: {runs / 'diffs' / sweep}")
            if _diff(name, seed, sweep, runs, [f"{key}={value}" for key, value in settings.items()]):
                failed.append(sweep)
                continue
            add_run(file, run_of(name, seed, read_json(runs / "diffs" / sweep / "diff.json")))
    print_confusion(read_runs(file), known)
    console.print(f"All runs: {escape(str(file.resolve()))}")
    if failed:
        console.print(f"[red]Not finished: {', '.join(failed)}; the same command goes on.[/]")
    return 1 if failed else 0


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Return the runs in an organisms.json; none if it is not there."""
    return list(read_json(file)["runs"]) if file.is_file() else []


def add_run(file: Path, run: Mapping[str, Any]) -> None:
    """Write a run into organisms.json, in the place of an earlier one of the same organism and seed."""
    others = [each for each in read_runs(file) if (each["organism"], each["seed"]) != (run["organism"], run["seed"])]
    write_json(file, {"runs": sorted([*others, run], key=lambda each: (each["organism"], each["seed"]))})


def _diff(name: str, seed: int, sweep: str, runs: Path, more: Sequence[str]) -> int:
    """Make one organism and run its diff, each in a process of its own; return the exit status."""
    organism, own_settings = WITHOUT_CAUSE.get(name, (name, []))
    folder = runs / "organisms" / f"{organism}-s{seed}"
    if status := _python("sftdiff.organisms", organism, str(seed), str(folder)):
        return status
    manifest = load_manifest(folder)
    own = [f"{key}={hydra_text(value)}" for key, value in manifest.settings().items()]
    place = [f"sweep={sweep}", f"seed={100 * seed}", f"runs={runs}"]
    return _python("sftdiff.diff", f"--config-dir={manifest.config_dir}", *own, *place, *own_settings, *more)


def _python(module: str, *words: str) -> int:
    path = os.pathsep.join(p for p in (str(TREE), os.environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def run_of(name: str, seed: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of organisms.json: the truth, and what the verdict says of each hypothesis."""
    [trait] = result["traits"].values()
    states: dict[str, list[str]] = {state: [] for state in STATES}
    for label, own in trait["verdict"].items():
        states[own["state"]].append(label)
    difference = trait["difference"] or {}
    calls = {arm: look["call"] for arm, look in trait["arms"].items()}
    return {
        "truth": NULL if name in WITHOUT_CAUSE else name, "organism": name, "seed": seed, **states,
        "cells": len(result["arms"]), "trainings": result["trainings"],
        "saved": result["saved"], "difference": difference.get("call"), "calls": calls,
    }  # fmt: skip


def print_confusion(found: Sequence[Mapping[str, Any]], known: Sequence[str]) -> None:
    """Print how often each hypothesis is supported, by truth; and how often it is contradicted where it is true."""
    table = Table(title="Supported in how many runs, by planted cause", title_justify="left")
    labels = [label for label in known if label not in WITHOUT_CAUSE]
    for heading in ("planted", "runs", *labels, "truth contradicted", "trainings a run"):
        table.add_column(heading)
    for organism in known:
        own = [run for run in found if run["organism"] == organism]
        if own:
            counts = Counter(label for run in own for label in run["supported"])
            wrong = sum(organism in run["contradicted"] for run in own)
            trainings = sum(run["trainings"] for run in own) / len(own)
            shown = [str(counts[label]) for label in labels]
            table.add_row(organism, str(len(own)), *shown, str(wrong), f"{trainings:.0f}")
    console.print(table)
    with_cause = [run for run in found if run["truth"] != NULL]
    if with_cause:
        right = sum(run["truth"] in run["supported"] for run in with_cause)
        false = sum(len(set(run["supported"]) - {run["truth"]}) for run in with_cause)
        console.print(f"True hypothesis supported in {right} of {len(with_cause)} runs; "
                      f"{false / len(with_cause):.2f} false ones a run.")  # fmt: skip
