"""The rounds of `python -m sftdiff.diff`, on either executor: plan, run or submit, look, and go on until every call is made.

runs/diffs/NAME/ holds the diff: plan.json (arms, settings), cells.jsonl (the resolved config of each arm and seed, so that a
round can be planned where there is no Hydra), state.json (rounds, looks, error rate spent) and what came out, diff.json and
diff.html. All rounds are one sweep of the same name, which grows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from rich.markup import escape

from launch.arms import PARTS
from launch.plan import Plan, build_plan, traits
from launch.rounds import (
    Command,
    Configs,
    Execute,
    OnDisk,
    folder_of,
    known_cells,
    locked,
    read_configs,
    results_of,
    write_configs,
)
from launch.run import console, shown_command
from launch.sweep import Sweep
from sftdiff.decisions import load_decisions
from sftdiff.diff_curve import curve_shares
from sftdiff.diff_report import print_result, write_result
from sftdiff.diffing import NOTHING_KEPT, finished_seeds, read_verdicts, schedule_of, take_looks, trained_seeds
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.kept import checked_folder, kept_scores
from sftdiff.published import load_published
from sftdiff.records import read_json, write_json
from sftdiff.rounds import PAIR, grid, next_round
from sftdiff.words import counted

MAY_CHANGE = ("budget", "only", "published", "kept")  # of the settings, once looks were taken


@dataclass
class Diff(OnDisk):
    """A diff as its folder states it."""

    cells: Configs
    state: dict[str, Any]

    @cached_property
    def kept(self) -> Mapping[str, list[dict[str, Any]]]:
        """The verdict rows of trainings that were kept elsewhere, by judge step."""
        return kept_scores(Path(folder)) if (folder := self.plan["settings"].get("kept")) else NOTHING_KEPT

    def kept_cells(self) -> list[dict[str, Any]]:
        """Return the planned trainings that were kept elsewhere."""
        return [cell for cell in self.state["cells"] if set(cell["judges"].values()) <= self.kept.keys()]

    def save(self) -> None:
        write_json(self.folder / "state.json", self.state)

    def trained(self) -> dict[str, int]:
        """Return arm -> how many seeds have verdicts on every trait."""
        counts: dict[str, list[int]] = {}
        for trait in (*self.plan["traits"], *self.plan.get("guards", {})):
            found = trained_seeds(finished_seeds(self.runs, self.state["cells"], trait, self.kept), self.plan["first_seed"])
            for arm in self.plan["arms"]:
                counts.setdefault(arm, []).append(found.get(arm, 0))
        return {arm: min(values) for arm, values in counts.items()}

    def has(self, wanted: Mapping[str, int]) -> bool:
        """Tell whether all trainings of a round have verdicts."""
        trained = self.trained()
        return all(trained[arm] >= seeds for arm, seeds in wanted.items())

    def next_round(self) -> dict[str, int]:
        looks = self.state["looks"]
        return next_round(looks, self.trained(), schedule_of(self.plan["settings"])) if looks else {}

    def plan_round(self, wanted: Mapping[str, int], zero_stage: int) -> Plan:
        """Return the plan of a round, with all cells of the rounds before, and note it."""
        seeds = {arm: max(count, wanted.get(arm, 0)) for arm, count in self.trained().items()}
        # The first seed of every arm first, then arm by arm: a round that is cut short is of use.
        pairs = [(arm, index) for arm, count in seeds.items() for index in range(count)]
        cells = [({"arm": arm}, self.cells[arm][index]) for arm, index in sorted(pairs, key=lambda pair: pair[1] > 0)]
        plan = build_plan(cells, self.plan["command"], zero_stage)
        self.state["cells"] = known_cells(plan)
        if left := self._without_kept(cells):
            plan = build_plan(left, self.plan["command"], zero_stage)
        plan.is_diff = True
        rounds = self.state["rounds"]
        if not rounds or rounds[-1]["arms"] != dict(wanted):
            rounds.append({"number": len(rounds) + 1, "arms": dict(wanted)})
        return plan

    def _without_kept(self, cells: Sequence[tuple[dict[str, str], dict[str, Any]]]) -> list[tuple[dict[str, str], Any]]:
        """Return the cells of a round that are not all kept elsewhere; none if nothing is kept, or everything."""
        kept = {(cell["arm"], cell["seed"]) for cell in self.kept_cells()}
        left = [(axes, config) for axes, config in cells if (axes["arm"], config["seed"]) not in kept]
        if not kept or any(axes["arm"] == "alternative" for axes, _ in left):
            return left if kept else []
        # What the sweep's own report compares with is not in the sweep.
        return [(axes, config | {"report": config["report"] | {"baseline": "untrained"}}) for axes, config in left]

    def look(self) -> None:
        """Take all looks that can be taken, and write what is known now."""
        settings, first = self.plan["settings"], self.plan["first_seed"]
        names = [*self.plan["traits"], *self.plan.get("guards", {})]
        verdicts = {name: read_verdicts(self.runs, self.state["cells"], name, self.kept) for name in names}
        for name, trait in self.plan["traits"].items():
            own = self.state["looks"].get(name, {})
            self.state["looks"][name] = take_looks(own, verdicts[name], trait, settings, first)
        self.save()
        write_result(self.folder, self.plan, self.state, verdicts, self.runs)


def run_diff(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, execute: Execute, dry_run: bool, zero_stage: int
) -> None:
    """Run a diff, or go on with it; raises SftdiffError if it cannot be planned or a step failed.

    `execute` runs or submits the plan of a round.
    """
    diff = open_diff(arguments, master, loader)
    with locked(diff.folder):
        tell_arms(diff)
        if dry_run:
            wanted = diff.next_round()
            if wanted:
                plan = diff.plan_round(wanted, zero_stage)
                tell_trainings(diff, wanted)
                if not diff.has(wanted):
                    execute(plan)
            return
        go_on(diff, execute, zero_stage)


def go_on(diff: Diff, execute: Execute, zero_stage: int) -> None:
    """Run round after round until nothing is left to do, or what `execute` submitted has not ended."""
    diff.look()
    while wanted := diff.next_round():
        plan = diff.plan_round(wanted, zero_stage)
        diff.save()
        if diff.has(wanted):  # from another sweep of this run directory
            diff.look()
            continue
        shown = ", ".join(f"{arm} {seeds}" for arm, seeds in wanted.items())
        number = diff.state["rounds"][-1]["number"]
        console.print(escape(f"Round {number} of diff {diff.name} (training seeds of each arm): {shown}"))
        tell_trainings(diff, wanted)
        try:
            execute(plan)
        finally:
            diff.look()
        if not diff.has(wanted):
            return  # submitted, and not yet run
    console.print(f"Diff: {escape(str((diff.folder / 'diff.html').resolve()))}")
    print_result(console, read_json(diff.folder / "diff.json"))  # its last line is what to run next


def open_diff(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> Diff:
    """Compose every arm of a command, and return the diff that it starts or goes on with."""
    command = Command(arguments, master, loader, "diff")
    config = command.config
    settings = _checked(config)
    cells, left_out, own_traits = Configs(), dict[str, str](), command.own_traits()
    for name in _wanted(settings):
        most = settings["arms"][name]["seeds"] or settings["seeds"][-1]
        if made := command.seeded(name, most, *_of_trait(settings, name, list(own_traits))):
            cells[name] = [_drawn_anew(cell, settings["arms"][name]["set"], number) for number, cell in enumerate(made)]
        else:
            left_out[name] = f"diff.given.{settings['arms'][name]['given']}"
    plan = {
        "command": shown_command(),
        "first_seed": config["seed"],
        "settings": {k: v for k, v in settings.items() if k not in ("arms", "given")}
        | {"planned": list(cells), "most": {name: own for name in cells if (own := settings["arms"][name]["seeds"])}},
        "arms": {name: settings["arms"][name]["title"] for name in cells},
        "parts": {name: _parts(settings, name) for name in cells},
        "left_out": left_out,
        "not_asked": {name: _needs(settings, name) for name in settings["arms"] if name not in cells and name not in left_out},
        "curve": curve_shares({name: made[0] for name, made in cells.items()}),
        "traits": own_traits,
        "guards": {name: trait for name, trait in traits(config).items() if trait["guard"]},
        "resamples": config["report"]["resamples"],
    }
    return _opened(Path(config["runs"]), config["sweep"], plan, cells)


def _drawn_anew(cell: dict[str, Any], own: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Let each training seed of an arm of random rows draw others: else its interval would leave out the luck of one draw."""
    subset, chosen = cell["prompt_subset"], cell["filter"]
    if own.get("prompt_subset") in ("random_like", "random_share"):
        cell = {**cell, "prompt_subset": {**subset, "seed": subset["seed"] + number}}
    if own.get("filter") == "random":
        params = {**chosen["params"], "seed": chosen["params"]["seed"] + number}
        cell = {**cell, "filter": {**chosen, "params": params}}
    return cell


def _of_trait(settings: Mapping[str, Any], name: str, own_traits: Sequence[str]) -> list[str]:
    """Return the override that limits an arm of rows of a level to those of the diff's one trait, if the user names none."""
    arm = settings["arms"][name]
    named = arm["set"] | (settings["given"].get(arm["given"]) or {})
    if "prompt_subset.level" not in named or "prompt_subset.trait" in named or len(own_traits) != 1:
        return []
    return [f"prompt_subset.trait={own_traits[0]}"]


def _parts(settings: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return from which pipeline each part of an arm comes, or the option that it has in place of both."""
    arm = settings["arms"][name]
    changed = arm["set"] | ({} if arm["given"] is None or arm["inside"] else settings["given"][arm["given"]])
    return {part: str(changed.get(part, arm[part])) for part in PARTS}


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(config["diff"])
    seeds, gone, remains = settings["seeds"], settings["gone"], settings["remains"]
    if not seeds or seeds != sorted(set(seeds)) or seeds[0] < 1:
        raise SftdiffError(f"diff.seeds={seeds}: write how many training seeds an arm has at each look, growing, e.g. [3,5,8]")
    if not 0 < gone < remains < 1:
        raise SftdiffError(f"diff.gone={gone} and diff.remains={remains}: 0 < gone < remains < 1")
    if not 0 < settings["alpha"] < 1:
        raise SftdiffError(f"diff.alpha={settings['alpha']}: a rate between 0 and 1")
    if not settings["arms"]:
        raise SftdiffError("there are no arms: use experiment=diff, or another file under conf/experiment that has diff.arms")
    for name in PAIR:
        if name not in settings["arms"]:
            raise SftdiffError(f"diff.arms: there is no arm {name}, on which every transfer rests")
        if settings["arms"][name]["seeds"] is not None:
            raise SftdiffError(f"diff.arms.{name}.seeds: every arm is compared with this one; it has the seeds of diff.seeds")
    for name, arm in settings["arms"].items():
        if arm["seeds"] is not None and not 1 <= arm["seeds"] <= seeds[-1]:
            raise SftdiffError(f"diff.arms.{name}.seeds={arm['seeds']}: a number from 1 to {seeds[-1]}, the last of diff.seeds")
    if all(trait["guard"] for trait in config["trait_eval"].values()):
        raise SftdiffError("there is no trait to diff: choose trait_eval=NAME (a guard is none)")
    load_decisions(settings["decisions"])
    if settings["published"]:
        load_published(settings["published"])
    if settings["kept"]:
        settings["kept"] = str(checked_folder(Path(settings["kept"])).resolve())
    return settings


def _needs(settings: Mapping[str, Any], name: str) -> str:
    """Return the settings that an arm needs which `diff.only` leaves out."""
    given = settings["arms"][name]["given"]
    return "diff.only" if given is None or settings["given"].get(given) else f"diff.given.{given}, diff.only"


def _wanted(settings: Mapping[str, Any]) -> list[str]:
    if settings["only"] is None:
        return list(settings["arms"])
    if unknown := set(settings["only"]) - set(settings["arms"]):
        raise SftdiffError(f"diff.only: there is no arm {', '.join(sorted(unknown))}; there are: {', '.join(settings['arms'])}")
    return list(dict.fromkeys([*PAIR, *settings["only"]]))


def _opened(runs: Path, name: str | None, plan: dict[str, Any], cells: Configs) -> Diff:
    """Return the diff of this name, as it is on disk or new; raises SftdiffError if another one has the name."""
    fixed = {k: v for k, v in plan["settings"].items() if k not in (*MAY_CHANGE, "planned", "most")}
    made, most = results_of(cells), plan["settings"]["most"]
    plan["fingerprint"] = {"settings": fixed, "arms": made} | ({"most": most} if most else {})
    name = name or f"diff-{digest(canonical(plan['fingerprint']), 10)}"
    folder = folder_of(runs, name)
    state: dict[str, Any] = {"rounds": [], "looks": {trait: {} for trait in plan["traits"]}, "cells": []}
    if (folder / "state.json").is_file():
        before, state = read_json(folder / "plan.json"), read_json(folder / "state.json")
        changed = before["fingerprint"]["settings"] != fixed
        known = before["fingerprint"]["arms"]
        changed |= any(made.get(arm, steps) != steps for arm, steps in known.items())
        changed |= any(most.get(arm) != before["fingerprint"].get("most", {}).get(arm) for arm in known.keys() & made)
        if changed and any(state["looks"].values()):
            raise SftdiffError(
                f"sweep={name} is a diff with other settings, whose looks were taken already ({folder}): its error rate holds "
                "for the settings that it was started with; choose another name, and what is trained is not trained again"
            )
    write_configs(folder, name, cells)
    write_json(folder / "plan.json", plan)
    return Diff(runs, name, plan, cells, state)


def load_diff(runs: Path, name: str) -> Diff:
    """Read a diff from its folder."""
    folder = folder_of(runs, name)
    return Diff(runs, name, read_json(folder / "plan.json"), read_configs(folder), read_json(folder / "state.json"))


def tell_arms(diff: Diff) -> None:
    """Print which arms there are, and which are left out for want of what."""
    plan = diff.plan
    console.print(f"[bold]Diff {escape(diff.name)}[/]: {len(plan['arms'])} arms, traits: {', '.join(plan['traits'])}")
    for arm, title in plan["arms"].items():
        console.print(f"  {arm:<18} {escape(title)}")
    if plan["left_out"]:
        missing = ", ".join(f"{arm} ({what})" for arm, what in plan["left_out"].items())
        console.print(f"Left out, since what they need is not given: {escape(missing)}")


def tell_trainings(diff: Diff, wanted: Mapping[str, int]) -> None:
    """Print how many trainings a round has, which of them are there, and how many all rounds have at most."""
    schedule, trained = schedule_of(diff.plan["settings"]), diff.trained()
    most = grid(schedule) if schedule.budget is None else min(grid(schedule), schedule.budget)
    there = sum(min(trained[arm], seeds) for arm, seeds in wanted.items())
    told = f"This round: {counted(sum(wanted.values()), 'training')}, of which {there} are there"
    told += f" ({len(diff.kept_cells())} in {diff.plan['settings']['kept']})" if diff.plan["settings"].get("kept") else ""
    console.print(escape(f"{told}. All rounds together: at most {most}."))


def next_on_slurm(sweep: Sweep) -> None:
    """In a driver job, when all jobs of a round have ended: look, and submit the next round.

    Where the round is not whole, steps failed: what is known is written, and the next call of the command runs them again.
    """
    from launch.slurm import ZERO_STAGE, submit_next

    def execute(plan: Plan) -> None:
        submit_next(plan, sweep.launcher)

    plan = read_json(folder_of(sweep.runs, sweep.name) / "plan.json")
    for kind in ("search", "tda"):
        if kind in plan:
            import_module(f"launch.{kind}").next_on_slurm(sweep, execute, ZERO_STAGE)
            return
    diff = load_diff(sweep.runs, sweep.name)
    with locked(diff.folder):
        rounds = diff.state["rounds"]
        if rounds and not diff.has(rounds[-1]["arms"]):
            diff.look()
            return
        go_on(diff, execute, ZERO_STAGE)
