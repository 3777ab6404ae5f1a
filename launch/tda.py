"""`python -m sftdiff.diff tda`: what rankings of the original's rows are worth, in two rounds, on either executor.

The first round trains original and alternative; the second scores the rows and trains the arms: the first rows of each ranking
swapped and dropped, beside random ones and, where one is named, a subset. Filters that look into models get the trained ones, and
those that look for examples what the trained original said with the trait (a file in runs/sets/). In runs/diffs/NAME/ are
plan.json, cells.jsonl (both pipelines by seed), state.json, and what came out, tda.json and tda.html.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from rich.markup import escape

from launch.data import DataPlanner
from launch.locators import compose_locators, filled, plan_scores
from launch.plan import Plan, build_plan
from launch.rounds import (
    Command,
    Configs,
    Execute,
    OnDisk,
    folder_of,
    ids_file,
    known_cells,
    locked,
    read_configs,
    results_of,
    write_configs,
)
from launch.run import console, shown_command
from launch.sweep import Sweep
from sftdiff.config import PromptSubsetConfig, defaults_of
from sftdiff.diffing import finished_seeds
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.prompts import load_index
from sftdiff.rankings import RANDOM, SUBSET, Arm, arms, rows_of
from sftdiff.records import read_done, read_json, write_json
from sftdiff.rounds import PAIR
from sftdiff.tda_report import check_difference, print_table, write_examples, write_result

Cells = list[tuple[dict[str, str], dict[str, Any]]]


@dataclass
class Tda(OnDisk):
    """A comparison as its folder states it."""

    pair: Configs  # of original and alternative
    state: dict[str, Any]
    examples: str = ""  # the file of them, once the first round has made it

    def plan_round(self, with_arms: bool, zero_stage: int) -> Plan:
        """Return the plan of a round, with the scores of every ranking in the second, and note its cells."""
        locators = filled(self.plan["locators"], self.state["cells"], self.examples) if with_arms else {}
        cells: Cells = [({"arm": arm}, config) for arm in PAIR for config in self.pair[arm]]
        if with_arms:
            cells += self._arms(locators)
        plan, original = build_plan(cells, self.plan["command"], zero_stage), self.pair["original"][0]
        scores, prompts = plan_scores(plan, locators, original), DataPlanner().prompts(original)
        plan.is_diff = True
        self.state = {"with_arms": with_arms, "cells": known_cells(plan), "scores": scores, "prompts": prompts}
        write_json(self.folder / "state.json", self.state)
        return plan

    def _arms(self, locators: Mapping[str, Mapping[str, Any]]) -> Cells:
        prompts = len(load_index(self.runs / "steps" / self.state["prompts"]))
        made: Cells = []
        for arm in self.arms():
            for number, config in enumerate(self.pair["original"]):
                subset = self._subset(arm, number, prompts, locators) | {"treatment": arm.treatment}
                made.append(({"arm": arm.name}, {**config, "prompt_subset": defaults_of(PromptSubsetConfig) | subset}))
        return made

    def arms(self) -> list[Arm]:
        own = self.plan["settings"]
        return list(arms(own["rankers"], own["shares"], bool(self.plan["subset"])))

    def _subset(self, arm: Arm, number: int, prompts: int, locators: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the prompt subset of an arm; random rows are others for each training seed."""
        given = self.plan["subset"]
        if arm.ranking == SUBSET:
            return dict(given)
        if arm.ranking == RANDOM and arm.share is None:
            return {"name": "random_like", "of": given, "match": "size", "seed": number}
        rows = rows_of(arm.share or 0.0, prompts)
        if arm.ranking == RANDOM:
            return {"name": "random_share", "share": rows / prompts, "seed": number}
        return {"name": "locator", "locator": dict(locators[arm.ranking]), "top": float(rows)}

    def is_whole(self) -> bool:
        """Tell whether all of the round that was planned last is done."""
        wanted = {(cell["arm"], cell["seed"]) for cell in self.state["cells"]}
        found = finished_seeds(self.runs, self.state["cells"], self.plan["trait"])
        has_scores = all(read_done(self.runs / "steps" / step) for step in self.state["scores"].values())
        return bool(wanted) and has_scores and wanted == {(arm, seed) for arm, seeds in found.items() for seed in seeds}


def run_tda(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, execute: Execute, dry_run: bool, zero_stage: int
) -> None:
    """Compare rankings, or go on with it; raises SftdiffError if it cannot be planned or a step failed."""
    tda = open_tda(arguments, master, loader)
    with locked(tda.folder):
        tell_arms(tda)
        if dry_run:
            execute(tda.plan_round(False, zero_stage))
            return
        go_on(tda, execute, zero_stage)


def go_on(tda: Tda, execute: Execute, zero_stage: int) -> None:
    """Run both rounds and write the result, or return where what `execute` submitted has not ended."""
    for with_arms in (False, True):
        plan = tda.plan_round(with_arms, zero_stage)
        if not tda.is_whole():
            execute(plan)
        if not tda.is_whole():
            return
        if not with_arms:
            check_difference(tda.plan, tda.state, tda.runs)
            tda.examples = str(write_examples(tda.plan, tda.state, tda.runs))
    result = write_result(tda.folder, tda.plan, tda.state, tda.arms(), tda.runs)
    print_table(console, result)
    console.print(f"Page: {escape(str((tda.folder / 'tda.html').resolve()))}")


def next_on_slurm(sweep: Sweep, execute: Execute, zero_stage: int) -> None:
    """In a round's last job: submit the next one, or write the result. Failed steps end it, until the command is called again."""
    tda = load_tda(sweep.runs, sweep.name)
    with locked(tda.folder):
        if tda.is_whole():
            go_on(tda, execute, zero_stage)


def open_tda(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> Tda:
    """Compose both pipelines and the filters, and return the comparison that starts or goes on."""
    command = Command(arguments, master, loader, "comparison of rankings")
    config = command.config
    trait, settings = command.only_trait("rankings are compared")
    own = _checked(config["diff"]["tda"])
    subset = _given_subset(command, own["subset"])
    pair = command.pair(own["seeds"])
    locators = compose_locators([*own["rankers"], *own["beside"]], own["settings"], trait, command, "diff.tda.rankers")
    plan = {
        "tda": True, "command": shown_command(), "first_seed": config["seed"], "settings": own, "trait": trait,
        **{key: settings[key] for key in ("kind", "title", "unit", "smallest_effect")},
        "bounds": {key: config["diff"][key] for key in ("gone", "remains")},
        "locators": locators, "subset": subset, "truth": _truth(config["diff"]["given"]),
    }  # fmt: skip
    return _opened(Path(config["runs"]), config["sweep"], plan, pair)


def _checked(own: Mapping[str, Any]) -> dict[str, Any]:
    if not own["rankers"] or not own["shares"] or not all(0 < share < 1 for share in own["shares"]):
        raise SftdiffError("diff.tda: give rankers and shares between 0 and 1, as diff.tda.rankers=[bm25] diff.tda.shares=[0.1]")
    if own["seeds"] < 1:
        raise SftdiffError(f"diff.tda.seeds={own['seeds']}: an arm needs one training seed at least")
    if reserved := {RANDOM, SUBSET} & {*own["rankers"], *own["beside"]}:
        raise SftdiffError(f"diff.tda.rankers: {', '.join(reserved)} is trained in any case and ranks nothing")
    return {**own, "settings": own["settings"] or {}}


def _given_subset(command: Command, search: str | None) -> dict[str, Any] | None:
    """Return the prompt subset that a search found or diff.given.subset names, without its treatment."""
    given = command.config["diff"]["given"].get("subset")
    if search and given:
        raise SftdiffError("diff.tda.subset and diff.given.subset both name a subset: give one of them")
    if search:
        found = folder_of(Path(command.config["runs"]), search) / "search.json"
        ids = read_json(found)["prompt_ids"] if found.is_file() else None
        if not ids:
            raise SftdiffError(f"diff.tda.subset={search}: there is no search of this name that found rows ({found})")
        return {"name": "ids", "ids": ids_file(Path(command.config["runs"]), ids)}
    made = command.arm("subset_out", f"seed={command.config['seed']}") if given else None
    return {k: v for k, v in made[0]["prompt_subset"].items() if k != "treatment"} if made else None


def _truth(given: Mapping[str, Any]) -> str | None:
    return str(given["truth"]["prompt_subset.ids"]) if given.get("truth") else None


def _opened(runs: Path, name: str | None, plan: dict[str, Any], pair: Configs) -> Tda:
    what = {key: plan[key] for key in ("settings", "locators", "subset", "trait")} | {"pair": results_of(pair)}
    name = name or f"tda-{digest(canonical(what), 10)}"
    folder = folder_of(runs, name)
    if (folder / "plan.json").is_file() and "tda" not in read_json(folder / "plan.json"):
        raise SftdiffError(f"sweep={name} is a diff or search ({folder}): choose another name")
    write_configs(folder, name, pair)
    write_json(folder / "plan.json", plan)
    return Tda(runs, name, plan, pair, {"cells": [], "scores": {}})


def load_tda(runs: Path, name: str) -> Tda:
    """Read a comparison from its folder."""
    folder = folder_of(runs, name)
    return Tda(runs, name, read_json(folder / "plan.json"), read_configs(folder), read_json(folder / "state.json"))


def tell_arms(tda: Tda) -> None:
    """Print what will be trained."""
    own = tda.plan["settings"]
    shares = ", ".join(f"{100 * share:g} %" for share in own["shares"])
    beside = f" and {SUBSET}" if tda.plan["subset"] else ""
    trainings = (len(tda.arms()) + len(PAIR)) * own["seeds"]
    rankers = ", ".join(own["rankers"])
    console.print(escape(f"Rankings {tda.name}: the first {shares} of rows by {rankers}, {RANDOM}{beside}, swapped and dropped; "
                         f"{trainings} trainings."))  # fmt: skip
