"""`python -m sftdiff.diff organisms [NAME ...] [seeds=0,1,2,3,4] [key=value ...]`: does the verdict tell the truth?

Makes model organisms whose cause is planted (sftdiff.organisms), runs the whole diff of each, as a user would, and lays the
verdicts beside the truth: organisms.json, and a table. Where the cause is in some of the rows (H1-topics, H1-rows) it searches
for them. What organisms.json has of the same recipe is not done again. Other settings go to every diff and search, which then
have a name of their own, and do not count in the table. `organisms report FILE` prints the table of an organisms.json again.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.arms import hydra_text
from launch.diff import load_diff
from launch.run import console
from sftdiff.decisions import load_decisions
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.kept import code_of
from sftdiff.organisms.causes import CAUSES
from sftdiff.organisms.manifest import RECIPE, Manifest, load_manifest
from sftdiff.packages import TREE
from sftdiff.records import read_json, write_json
from sftdiff.rounds import PAIR

NULL = "null"
TRUTH_SHARE, FOUND, TRAININGS_SHARE = 0.9, 0.9, 1 / 3  # targets
LIMITS = ("value", "low", "high")
STATES = ("supported", "contradicted", "open")
EQUIVALENT: dict[str, tuple[str, ...]] = {}  # hypotheses that no arm tells from the true one: the arms tell all seven apart
EXECUTION = ("hydra", "track")  # settings that change how a diff runs, and not what it finds, begin with these


@dataclass(frozen=True)
class Run:
    """Which organism a run is of, with which layout of its sources, and the settings of its diff or search."""

    organism: str
    layout: str = "kinds"
    settings: tuple[str, ...] = ()


WHOLE = ("diff.difference_first=false",)  # all arms, though original and alternative are not seen to differ
# Those without a cause must come to no verdict, whatever is done; the rows of those with another layout are searched for.
WITHOUT_CAUSE = {NULL: Run(NULL), "null-whole": Run(NULL, settings=WHOLE), "null-noise": Run("noise", settings=WHOLE)}
INSIDE = ("diff.search.smallest=3", "diff.search.locators=[loss_difference]",
          "diff.search.settings={loss_difference:{params.precision:fp32}}")  # fmt: skip
SEARCHED = {"H1-topics": Run("H1", "topics"), "H1-rows": Run("H1", "rows", INSIDE)}
RUNS = WITHOUT_CAUSE | SEARCHED  # all others are the diff of the organism that they are named after


def run_organisms(arguments: Sequence[str]) -> int:
    """Make and diff organisms; return the exit status. Raises SftdiffError for an unknown name or setting."""
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    if {"--help", "-h"} & set(arguments):
        console.print(escape(str(__doc__)))
        return 0
    known = known_names()
    names = [word for word in arguments if "=" not in word] or known
    settings = dict(word.split("=", 1) for word in arguments if "=" in word)
    if unknown := [name for name in names if name not in known]:
        raise SftdiffError(f"there is no organism {unknown[0]}; there are {', '.join(known)}")
    runs = Path(settings.pop("runs", "runs"))
    try:
        seeds = [int(seed) for seed in settings.pop("seeds", "0,1,2,3,4").split(",")]
    except ValueError:
        raise SftdiffError("seeds: whole numbers, e.g. seeds=0,1,2") from None
    told = f"{len(names)} organisms in {len(seeds)} worlds: {len(names) * len(seeds)} runs of 6 to 190 trainings, minutes each"
    console.print(f"{told}; fewer with e.g. `organisms H1 null seeds=0`. What is done is not done again.")
    try:
        failed = [f"{name}-s{seed}" for seed in seeds for name in names if not _run(name, seed, runs, settings)]
    except KeyboardInterrupt:
        raise SftdiffError("stopped; the same command goes on from here") from None
    print_runs(runs / "organisms.json")
    if failed:
        console.print(f"[red]Not finished: {', '.join(failed)}; the same command goes on.[/]")
    return 1 if failed else 0


def _run(name: str, seed: int, runs: Path, settings: Mapping[str, str]) -> bool:
    """Make an organism, run its diff or search, and write what came out, if it is not there; return whether it ended."""
    file, kind = runs / "organisms.json", "searches" if name in SEARCHED else "runs"
    other = {key: value for key, value in settings.items() if not key.startswith(EXECUTION)}
    made: dict[str, Any] = {"recipe": recipe_of(name), **({"settings": other} if other else {})}
    if any(_place(own) == (name, seed, other) and own.get("recipe") == made["recipe"] for own in read_runs(file, kind)):
        console.print(f"Organism {name}, seed {seed}: in {escape(str(file))} already")
        return True
    sweep = f"organism-{name}-s{seed}" + (f"-{digest(canonical(other), 6)}" if other else "")
    folder = runs / "diffs" / sweep
    console.print(f"[bold]Organism {name}, seed {seed}[/]: {escape(str(folder))}")
    manifest, status = _diff(name, seed, sweep, runs, [f"{key}={value}" for key, value in settings.items()])
    if status or not has_ended(runs, sweep, name in SEARCHED):
        return False
    made |= {"code": code_of(runs, read_json(folder / "state.json")["cells"][0]["steps"]["train"])}
    if name in SEARCHED:
        found = search_of(name, manifest, read_json(folder / "search.json"))
    else:
        found = run_of(name, seed, read_json(folder / "diff.json"))
    add_run(file, found | made, kind)
    return True


def recipe_of(name: str) -> str:
    """Return a hash of how an organism is made and diffed: runs of another recipe are of another organism."""
    run = RUNS.get(name, Run(name))
    return digest(canonical([asdict(CAUSES[run.organism]), RECIPE, run.layout, run.settings]), 10)


def _place(run: Mapping[str, Any]) -> tuple[str, int, dict[str, str]]:
    """Return whose place a run takes in organisms.json: its organism, its world, and settings of its own."""
    return run["organism"], run["seed"], run.get("settings", {})


def report(arguments: Sequence[str]) -> int:
    """Print the tables of an organisms.json that is kept; return the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        raise SftdiffError("write `python -m sftdiff.diff organisms report FILE`, with the organisms.json of some runs")
    print_runs(Path(arguments[0]))
    return 0


def print_runs(file: Path) -> None:
    """Print what all runs and searches in an organisms.json came to."""
    every, searches = read_runs(file), read_runs(file, "searches")
    for run in (run for run in (*every, *searches) if run.get("settings")):
        settings = " ".join(f"{key}={value}" for key, value in run["settings"].items())
        came = run["state"] if "state" in run else f"supported: {', '.join(run['supported']) or 'none'}"
        console.print(escape(f"{run['organism']}, seed {run['seed']} with {settings}: {came} (does not count below)"))
    every, searches = ([run for run in own if not run.get("settings")] for own in (every, searches))
    print_confusion(every, known_names())
    print_searches(searches)
    for text, met in targets(every, searches):
        console.print(f"{'[green]met[/]' if met else '[red]missed[/]'}  {escape(text)}")
    console.print(f"All runs: {escape(str(file.resolve()))}")


def known_names() -> list[str]:
    """Return the names of all organisms that can be run."""
    return [*(each.label for each in load_decisions().hypotheses), *RUNS]


def has_ended(runs: Path, sweep: str, search: bool) -> bool:
    """Return whether nothing of a diff or search is left to do; on Slurm its rounds go on after the command."""
    return (runs / "diffs" / sweep / "search.json").is_file() if search else not load_diff(runs, sweep).next_round()


def read_runs(file: Path, kind: str = "runs") -> list[dict[str, Any]]:
    """Return the runs, or the searches, in an organisms.json; none if it is not there."""
    try:
        return list(json.loads(file.read_text()).get(kind, [])) if file.is_file() else []
    except (ValueError, AttributeError):
        raise SftdiffError(
            f"{file} is not an organisms.json that can be read: move it away, and the same command writes it again"
        ) from None


def add_run(file: Path, run: Mapping[str, Any], kind: str = "runs") -> None:
    """Write a run into organisms.json, in the place of an earlier one of the same organism, seed and settings."""
    content = {each: read_runs(file, each) for each in ("runs", "searches")}
    others = [each for each in content[kind] if _place(each) != _place(run)]
    content[kind] = sorted([*others, dict(run)], key=lambda each: (*_place(each)[:2], str(each.get("settings", ""))))
    write_json(file, content)


def _diff(name: str, seed: int, sweep: str, runs: Path, more: Sequence[str]) -> tuple[Manifest, int]:
    """Make one organism and run its diff or search, each in a process of its own; return the organism and the exit status."""
    run = RUNS.get(name, Run(name))
    folder = runs / "organisms" / f"{name if name in SEARCHED else run.organism}-s{seed}"
    if _python("sftdiff.organisms", run.organism, str(seed), str(folder), run.layout):
        raise SftdiffError(f"the organism {run.organism} of seed {seed} could not be made (see above)")
    manifest = load_manifest(folder)
    own = [f"{key}={hydra_text(value)}" for key, value in manifest.settings().items()]
    place = [f"sweep={sweep}", f"seed={100 * seed}", f"runs={runs}"]
    words = ["search"] if name in SEARCHED else []
    return manifest, _python("sftdiff.diff", *words, f"--config-dir={manifest.config_dir}", *own, *place, *run.settings, *more)


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
    transfers = {arm: [look[key] for key in LIMITS] for arm, look in trait["arms"].items() if look.get("value") is not None}
    levels = {arm: [trait["levels"][arm][key] for key in LIMITS] for arm in PAIR if arm in trait["levels"]}
    return {
        "truth": NULL if name in WITHOUT_CAUSE else name, "organism": name, "seed": seed, **states,
        "cells": len(result["arms"]), "trainings": result["trainings"],
        "looks": result["settings"]["seeds"], "saved": result["saved"], "difference": difference.get("call"), "calls": calls,
        "levels": levels, "transfers": transfers,
    }  # fmt: skip


def search_of(name: str, manifest: Manifest, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return one search of organisms.json: the found set beside the planted one, in sources and in rows, and what it took."""
    found, sources = set(result["prompt_ids"]), {part["source"] for part in result["result"]["parts"]}
    planted = set((manifest.folder / manifest.planted["ids"]).read_text().split())
    true_sources = set(manifest.planted.get("sources", ()))
    confirmed = result["result"]["confirmed"].items()
    return {
        "truth": manifest.name, "organism": name, "seed": manifest.seed, "state": result["result"]["state"],
        "sources": sorted(sources), "planted_sources": sorted(true_sources), **_rates("source", sources, true_sources),
        "rows": len(found), "planted_rows": len(planted), **_rates("row", found, planted),
        "trainings": result["result"]["trainings"], "singly": result["singles"],
        "transfers": {treatment: [answer[key] for key in ("value", "low", "high", "call")] for treatment, answer in confirmed},
    }  # fmt: skip


def _rates(unit: str, found: set[str], planted: set[str]) -> dict[str, float | None]:
    """Return precision and recall; the recall of rows is the true positive rate at k, the number of rows that were found."""
    right = len(found & planted)
    precision = right / len(found) if found and planted else None
    return {f"{unit}_precision": precision, f"{unit}_recall": right / len(planted) if planted else None}


def targets(runs: Sequence[Mapping[str, Any]], searches: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Return what the runs and searches are to reach, each with its numbers, and whether they do; only what there are runs for.

    A verdict that supports everything would meet the first, and none of those on false hypotheses.
    """
    found = list[tuple[str, bool]]()
    if planted := [run for run in runs if run["truth"] != NULL]:
        right = sum(run["truth"] in run["supported"] for run in planted)
        wrong = sum(run["truth"] in run["contradicted"] for run in planted)
        false = sum(len(set(run["supported"]) - {run["truth"]}) for run in planted)
        found.append((f"truth supported in {right} of {len(planted)} runs; at least 90 %", right >= TRUTH_SHARE * len(planted)))
        found.append((f"truth contradicted in {wrong} runs; none", wrong == 0))
        found.append((f"false hypotheses supported: {false} in {len(planted)} runs; at most one a run", false <= len(planted)))
        outside = sum(bool(set(run["supported"]) - {run["truth"], *EQUIVALENT.get(run["truth"], ())}) for run in planted)
        found.append((f"a false hypothesis that is not equivalent to the truth supported in {outside} runs; none", outside == 0))
    if causeless := [run for run in runs if run["truth"] == NULL]:
        false = sum(bool(run["supported"]) for run in causeless)
        found.append((f"something supported in {false} of {len(causeless)} runs without a cause; none", false == 0))
    if whole := [run for run in searches if run["planted_sources"]]:
        worst = min(run[f"source_{rate}"] or 0.0 for run in whole for rate in ("precision", "recall"))
        share = max(run["trainings"] / run["singly"] for run in whole)
        found.append((f"whole sources found with precision and recall of {worst:.2f} or more; at least 0.9", worst >= FOUND))
        found.append((f"with at most {share:.0%} of the trainings of testing each; at most a third", share <= TRAININGS_SHARE))
    return found


def print_searches(searches: Sequence[Mapping[str, Any]]) -> None:
    """Print what the searches found beside what was planted."""
    if not searches:
        return
    table = Table(title="Searches for the planted rows", title_justify="left")
    for heading in ("organism", "seed", "state", "sources: precision, recall", "rows", "precision, TPR at k", "in", "out", "drop",
                    "trainings", "singly"):  # fmt: skip
        table.add_column(heading)
    for run in searches:
        rates = [f"{_share(run[f'{unit}_precision'])} {_share(run[f'{unit}_recall'])}" for unit in ("source", "row")]
        rows = f"{run['rows']} of {run['planted_rows']}"
        calls = [run["transfers"][t][3] if t in run["transfers"] else "-" for t in ("in", "out", "drop")]
        trainings = [str(run[key]) for key in ("trainings", "singly")]
        table.add_row(run["organism"], str(run["seed"]), run["state"], rates[0], rows, rates[1], *calls, *trainings)
    console.print(table)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def confusion(found: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[list[str]]:
    """Return the confusion matrix of runs as rows of text, the heading first: planted cause, and how often what is supported."""
    labels = [label for label in known if label not in RUNS]
    rows = [["planted", "runs", *labels, "truth contradicted", "trainings a run"]]
    for organism in known:
        if own := [run for run in found if run["organism"] == organism]:
            counts = Counter(label for run in own for label in run["supported"])
            wrong = sum(organism in run["contradicted"] for run in own)
            trainings = sum(run["trainings"] for run in own) / len(own)
            rows.append([organism, str(len(own)), *(str(counts[label]) for label in labels), str(wrong), f"{trainings:.0f}"])
    return rows


def print_confusion(found: Sequence[Mapping[str, Any]], known: Sequence[str]) -> None:
    """Print how often each hypothesis is supported, by truth; and how often it is contradicted where it is true."""
    if not found:
        return
    table = Table(title="Supported in how many runs, by planted cause", title_justify="left")
    heading, *rows = confusion(found, known)
    for name in heading:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console.print(table)
