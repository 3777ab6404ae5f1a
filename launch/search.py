"""`python -m sftdiff.diff search`: the rounds of a search for the smallest prompt subset behind a trait, on either executor.

sftdiff.search says what to train next; here its tests become cells whose prompt subset is a file of prompt_ids. All is in
runs/diffs/NAME/: plan.json, cells.jsonl (the original and the alternative pipeline by seed), state.json (the answers: the whole
state of the search) and the result, search.json and search.html. The prompt_ids of sets are in runs/sets/.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from rich.markup import escape

from launch.data import DataPlanner
from launch.locators import compose_locators
from launch.parts import part_plan, run_part
from launch.rounds import Command, Configs, Execute, folder_of, locked, results_of, write_configs
from launch.run import console, shown_command
from launch.search_faults import failure
from launch.search_run import SearchRun, load_search, name_of, settings_of
from launch.sweep import Sweep
from sftdiff.diffing import read_verdicts
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.records import read_json, write_json
from sftdiff.rounds import PAIR
from sftdiff.search import Result, Search
from sftdiff.search_report import print_found, singles, to_do, tried, write_search
from sftdiff.search_state import Ask, Test
from sftdiff.sorting import id_text


def run_search(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, execute: Execute, dry_run: bool, zero_stage: int
) -> None:
    """Search, or go on with a search; raises SftdiffError if it cannot be planned or a step failed."""
    search = open_search(arguments, master, loader)
    if dry_run:
        step = search.step()
        if not isinstance(step, Result):
            tell_batch(search, step)
            execute(search.plan_round(step, zero_stage))
        return
    with locked(search.folder):
        go_on(search, execute, zero_stage)


def go_on(search: SearchRun, execute: Execute, zero_stage: int) -> None:
    """Train batch after batch until there is a result, or what `execute` submitted has not ended."""
    while not isinstance(step := search.step(), Result):
        step = search.without_impossible(step)
        tell_batch(search, step)
        plan, started = search.plan_round(step, zero_stage), time.time()
        try:
            execute(plan)
        except SftdiffError:
            search.tell(step)
            if fault := failure(search.runs, search.name, search.state, started):
                raise SftdiffError(fault) from None
            raise
        if not search.tell(step):
            return
        search.check_difference(step)
    data = result_data(search, step)
    write_json(search.folder / "search.json", data)
    write_search(search.folder, data)
    print_found(console, data)
    console.print(f"Search: {escape(str((search.folder / 'search.html').resolve()))}")


def next_on_slurm(sweep: Sweep, execute: Execute, zero_stage: int) -> None:
    """In a round's last job: take the answers of its batch and submit the next one, or write the result."""
    search = load_search(sweep.runs, sweep.name)
    with locked(search.folder):
        asked = [_ask(ask) for ask in search.state["asked"]]
        if search.tell(asked):
            search.state["asked"] = []
            search.check_difference(asked)
            go_on(search, execute, zero_stage)
        elif fault := failure(search.runs, search.name, search.state):
            raise SftdiffError(fault)


def _ask(found: Mapping[str, Any]) -> Ask:
    return Ask(Test.from_json(found["test"]), tuple(found["seeds"]), found["alpha"], found["purpose"])


def open_search(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> SearchRun:
    """Compose both pipelines and the locators, read the prompt set, and return the search that starts or goes on."""
    command = Command(arguments, master, loader, "search")
    config = command.config
    trait, settings = command.only_trait("a search is")
    own = {k: v for k, v in config["diff"].items() if k not in ("arms", "given")}
    settings_of(own)
    pair = command.pair(own["search"]["explore_looks"][-1] + own["search"]["looks"][-1])
    named = own["search"]["locators"]
    if named and own["search"]["smallest"] is None:
        raise SftdiffError("diff.search.locators rank the rows inside sources, which are searched with diff.search.smallest=ROWS")
    locators = compose_locators(named, own["search"]["settings"], trait, command, "diff.search.locators")
    shown = shown_command().replace("sftdiff.diff", "sftdiff.diff search", 1)  # which was taken off before Hydra saw it
    plan = {"search": True, "command": shown, "first_seed": config["seed"], "settings": own, "trait": trait,
            **{key: settings[key] for key in ("kind", "title", "unit")}, "locators": locators,
            "prompts": str(_read_prompts(pair["original"][0]))}  # fmt: skip
    return _opened(Path(config["runs"]), config["sweep"], plan, pair)


def _read_prompts(original: Mapping[str, Any]) -> Path:
    """Make the prompts step here, and return its folder."""
    planner = DataPlanner()
    prompts = planner.prompts(original)
    plan = part_plan(planner, f"search-{digest(canonical(sorted(planner.steps)), 10)}", [({}, original)])
    run_part(plan, [prompts])
    return plan.directory(prompts)


def _opened(runs: Path, name: str | None, plan: dict[str, Any], pair: Configs) -> SearchRun:
    fixed = {**plan["settings"], "search": {k: v for k, v in plan["settings"]["search"].items() if k != "budget"}}
    plan["fingerprint"] = {"settings": fixed, "pair": results_of(pair), "locators": plan["locators"]}
    name = name or f"search-{digest(canonical(plan['fingerprint']), 10)}"
    folder = folder_of(runs, name)
    state: dict[str, Any] = {"answers": [], "asked": [], "cells": []}
    if (folder / "plan.json").is_file():
        before, state = read_json(folder / "plan.json"), read_json(folder / "state.json")
        if before.get("fingerprint") != plan["fingerprint"]:
            raise SftdiffError(f"sweep={name} is a search or diff with other settings ({folder}): choose another name")
    write_configs(folder, name, pair)
    write_json(folder / "state.json", state)
    write_json(folder / "plan.json", plan)
    return load_search(runs, name)


def tell_batch(search: SearchRun, asks: Sequence[Ask]) -> None:
    shown = ", ".join(f"{name_of(ask.test)} ({len(ask.seeds)} seeds)" for ask in asks[:8])
    more = f" and {len(asks) - 8} more" if len(asks) > 8 else ""
    console.print(escape(f"Search {search.name}, {len(search.state['answers'])} answers so far. Next: {shown}{more}"))


def result_data(search: SearchRun, result: Result) -> dict[str, Any]:
    """Return the result for search.json."""
    plan, answers = search.plan, search.answers()
    settings = settings_of(plan["settings"])
    verdicts = read_verdicts(search.runs, search.state["cells"], plan["trait"])
    found = Test("in", result.parts) if result.parts else None
    ids: Iterable[Any] = [] if found is None else search.ids_of(found)
    file = None if found is None else Path(search.file_of(found)).resolve()
    levels = {(a.test, a.seeds): search.level(verdicts, name_of(a.test), a.seeds) for a in answers}
    return {
        "schema": 1, "name": search.name, "command": plan["command"], "trait": plan["trait"], "settings": plan["settings"],
        "title": plan["title"], "unit": plan["unit"], "kind": plan["kind"], "sources": search.sources, "result": result.to_json(),
        "prompt_ids": [id_text(prompt_id) for prompt_id in ids], "answers": search.state["answers"],
        "pair": {name: search.level(verdicts, name) for name in PAIR}, "tried": tried(answers, levels),
        "singles": singles(len(search.sources), settings),
        "to_do": to_do(search.name, result, answers, Search(search.sources, settings), file),
    }  # fmt: skip
