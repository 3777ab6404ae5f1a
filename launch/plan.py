"""The plan: cells -> steps -> directed graph. Pure but for reading the external files whose content is part of an identity.

Steps that several cells need are planned once. An identity exists before anything ran.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.data import DataPlanner, PlannedStep, content_hash, filters_of, folder_files, hub_commit, uses_other
from launch.validate import check_cell, check_shared, check_trainable
from sftdiff.config import baseline_arm
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.judges import judge_identity, uses_rules
from sftdiff.pack import PACK_VERSION
from sftdiff.replies import SAMPLE_VERSION
from sftdiff.traits import scenarios_version

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")  # of a sweep
NOT_ARMS = ("seed", "trait_eval")  # axes that do not make another arm
REPORT_VERSION = 4
JUDGED_BY = ("_target_", "rubric", "labels", "part", "kind", "guard")  # what of a trait's settings a judge reads


@dataclass
class Cell:
    """One mixture x student x training config x seed, with the steps that belong to it.

    `evaluated`: it is a model that `sftdiff.evaluate` was given, and this sweep does not train it.
    """

    axes: dict[str, str]
    seed: int
    config: Mapping[str, Any]
    steps: dict[str, str]  # kind -> step id
    judges: dict[str, str] = field(default_factory=dict)  # trait -> step id
    evaluated: bool = False

    @property
    def trained(self) -> bool:
        """Whether this sweep trains it."""
        return "train" in self.steps

    @property
    def untrained(self) -> bool:
        """Whether no training of it is known, here or elsewhere."""
        return self.steps["model"] == self.steps["student"]

    @property
    def arm(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.axes.items())

    @property
    def label(self) -> str:
        """The arm as the report names it."""
        if self.evaluated:
            return self.arm.removeprefix("model=")
        return self.arm.replace("untrained=", "untrained ").strip() if self.untrained else self.arm


@dataclass
class Plan:
    """All cells of a sweep and their steps, in an order in which every step comes after its inputs."""

    sweep: str
    runs: Path
    cells: list[Cell]
    steps: dict[str, PlannedStep]
    report: str
    is_diff: bool = False  # a round of a diff: a driver job goes on with it when its jobs have ended

    def directory(self, step_id: str) -> Path:
        return self.runs / "steps" / step_id


def build_plan(cells: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]], command: str, zero_stage: int = 0) -> Plan:
    """Plan a sweep from (axes, resolved config) pairs; raises SftdiffError on the first cell that cannot be run.

    `zero_stage` is what deepspeed=auto means.
    """
    if not cells:
        raise SftdiffError("the sweep has no cells")
    planner = Planner(zero_stage, cells[0][1])
    planned: dict[tuple[str, int, str], Cell] = {}
    for axes, config in cells:
        check_cell(config)
        check_shared(cells[0][1], config)
        check_trainable(config)
        shown = {k: v for k, v in axes.items() if k not in NOT_ARMS} or _default_axes(config)
        for cell in (planner.untrained(config), planner.cell(shown, config)):
            key = (cell.arm, cell.seed, cell.steps["model"])
            add_cell(planned, key, cell)
    ordered = sorted(planned.values(), key=lambda c: not c.untrained)
    _name_untrained(ordered)
    return finish_plan(planner, ordered, cells[0][1], command)


def add_cell(planned: dict[Any, Cell], key: Any, cell: Cell) -> None:
    """Add a cell, or what it evaluates to the cell that is there already: trait_eval may be an axis."""
    known = planned.setdefault(key, cell)
    if known is not cell:
        known.judges = {**known.judges, **cell.judges}
        known.config = {**known.config, "trait_eval": {**known.config["trait_eval"], **cell.config["trait_eval"]}}


def finish_plan(planner: "Planner", cells: Sequence[Cell], first: Mapping[str, Any], command: str) -> Plan:
    """Name a sweep, and plan its report on the cells that are planned."""
    baseline_arm(first["report"]["baseline"], [cell.label for cell in cells])  # now, not when everything is trained
    evaluated = sorted([c.steps["model"], *sorted(c.judges.values())] for c in cells)
    kind = ["evaluation"] if any(c.evaluated for c in cells) else []  # a training's report is another one
    sweep = first["sweep"] or digest(canonical([*kind, *evaluated]), 10)
    if not NAME.fullmatch(sweep):
        raise SftdiffError(f"sweep: {sweep!r} names jobs and folders: a letter or digit, and then letters, digits and . _ - only")
    planner.runtime_tags(sweep)
    report = planner.report(sweep, cells, first, command)
    return Plan(sweep, Path(first["runs"]), list(cells), planner.steps, report)


def _default_axes(config: Mapping[str, Any]) -> dict[str, str]:
    return {"teacher": config["teacher"]["name"], "filter": config["filter"]["name"]}


def _name_untrained(cells: Sequence[Cell]) -> None:
    """With one student its untrained arm is just "untrained"; with several their names follow, or what else tells them apart."""
    untrained = [c for c in cells if c.untrained]
    models = [c.config["model"] for c in untrained]
    candidates = [[""], [m["name"] for m in models], [m["label"] for m in models], [c.steps["model"] for c in untrained]]
    names = next(names for names in candidates if len(set(names)) == len(untrained))
    for cell, name in zip(untrained, names, strict=True):
        cell.axes = {"untrained": name}


class Planner(DataPlanner):
    """Collects the distinct steps of all cells."""

    def __init__(self, zero_stage: int = 0, first: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.zero_stage, self.first = zero_stage, first
        self._untrained: dict[str, Cell] = {}
        self._scenarios_of: dict[str, str] = {}

    def pack(self, config: Mapping[str, Any], mixture: str, student: str) -> str:
        own = {k: config["train"][k] for k in ("max_length", "over_length")} | {"version": PACK_VERSION}
        texts = {k: v for k, v in self.steps[mixture].inputs.items() if k in ("prompts", "rollouts", "other_rollouts")}
        return self.step("pack", _slug(mixture), own, {"mixture": mixture, "student": student, **texts})

    def train(self, config: Mapping[str, Any], pack: str, student: str) -> str:
        own = dict(config["train"])
        stage = config["deepspeed"]["stage"]
        deepspeed = {**config["deepspeed"], "stage": self.zero_stage if stage is None else stage}
        runtime = {"deepspeed": deepspeed} | {k: own.pop(k) for k in ("micro_batches", "save_steps")}
        if own["method"] != "lora":
            own.pop("lora")
        inputs = {"pack": pack, "student": student}
        if own["match"]:
            reference = self.reference(config, student)
            if reference == pack:
                own["match"] = None  # it has what it is held equal to
            else:
                inputs["reference"] = reference
        return self.step("train", f"{_slug(pack)}-s{config['seed']}", {"train": own, "seed": config["seed"]}, inputs, (), runtime)

    def reference(self, config: Mapping[str, Any], student: str) -> str:
        """Plan the packed mixture that train.match holds cells equal to: the sweep's first cell's without subset and filter."""
        first = self.first or config
        unfiltered = {**first["filter"], "name": "none", "_target_": None, "chain": None}
        mixture = self.mixture({**first, "prompt_subset": {"name": "all", "treatment": "keep"}, "filter": unfiltered})
        return self.pack(config, mixture, student)

    def scenarios(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides a trait's scenarios, beside the content of their file; that is read once for thousands of cells."""
        own = {k: settings[k] for k in ("suite", "scenarios")}
        key = canonical(own)
        if key not in self._scenarios_of:
            self._scenarios_of[key] = scenarios_version(settings["scenarios"], settings["suite"])
        return own | ({"scenarios_of": self._scenarios_of[key]} if self._scenarios_of[key] else {})

    def sample(
        self, config: Mapping[str, Any], shared: Mapping[str, Any], settings: Mapping[str, Any], model: str, student: str
    ) -> str:
        """Plan the replies of a model to a trait's scenarios and controls; `shared` is what their judging depends on too."""
        sampling, hosted = config["sampling"], self.steps[student].config["origin"] == "api"
        own = {**shared, "version": SAMPLE_VERSION, "seed": sampling["seed"]}
        own |= {k: settings[k] for k in ("samples", "temperature", "top_k", "top_p", "max_tokens")}
        if hosted:
            runtime = {"concurrency": sampling["concurrency"]} | {k: config["model"][k] for k in ("base_url", "api_key_env")}
        else:
            runtime = {"batch_size": sampling["batch_size"]}
            own["precision"] = sampling["precision"]
            if sampling["backend"] != "transformers":
                own["backend"] = sampling["backend"]
        inputs = {"model": model, "student": student}
        return self.step("sample", f"{shared['trait']}-{_slug(model)}", own, inputs, scenario_files(settings), runtime)

    def judges(self, config: Mapping[str, Any], model: str, student: str) -> dict[str, str]:
        made = {}
        for trait, settings in traits(config).items():
            shared = {"trait": trait, **self.scenarios(settings)}
            files = scenario_files(settings)
            sample = self.sample(config, shared, settings, model, student)
            made[trait] = self.judge(config["judge"], trait, settings, shared, sample, files)
        return made

    def judge(
        self,
        judge: Mapping[str, Any],
        trait: str,
        settings: Mapping[str, Any],
        shared: Mapping[str, Any],
        sample: str,
        files: Sequence[str],
    ) -> str:
        """Plan the judging of one sampling. What decides a verdict is its identity; where, how fast and how dear is not."""
        if judge["provider"] == "local" and not uses_rules(judge, settings):
            judge, weights = pinned_judge(judge)
            files = [*files, *weights]
        own = {**shared, **judge_identity(judge, trait, settings)}
        runtime = {"judge": dict(judge), "trait": {k: settings[k] for k in JUDGED_BY}}
        return self.step("judge", _slug(sample), own, {"sample": sample}, files, runtime)

    def cell(self, axes: dict[str, str], config: Mapping[str, Any]) -> Cell:
        student = self.student(config["model"])
        mixture = self.mixture(config)
        pack = self.pack(config, mixture, student)
        train = self.train(config, pack, student)
        steps = {"student": student, "mixture": mixture, "pack": pack, "train": train, "model": train}
        return Cell(dict(axes), config["seed"], config, steps, self.judges(config, train, student))

    def untrained(self, config: Mapping[str, Any]) -> Cell:
        """Return the cell of a student as it is; thousands of trained cells have the same one."""
        key = json.dumps([config[name] for name in ("model", "trait_eval", "sampling", "judge")])
        if key not in self._untrained:
            student = self.student(config["model"])
            steps, judges = {"student": student, "model": student}, self.judges(config, student, student)
            self._untrained[key] = Cell({"untrained": config["model"]["name"]}, 0, config, steps, judges)
        return self._untrained[key]

    def runtime_tags(self, sweep: str) -> None:
        for step in self.steps.values():
            step.runtime["sweep"] = sweep

    def report(self, sweep: str, cells: Sequence[Cell], config: Mapping[str, Any], command: str) -> str:
        """Plan the report, which reads every step of the sweep that is done."""
        own = {
            "sweep": sweep,
            "settings": config["report"],
            "version": REPORT_VERSION,
            "cells": [report_cell(cell) for cell in cells],
        }
        inputs = {step_id: step_id for step_id, step in self.steps.items() if step.kind != "scores"}
        return self.step("report", sweep, own, inputs, (), {"sweep": sweep, "command": command})


def pinned_judge(judge: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a local judge with its model's commit, or a hash of its folder, as revision; and the folder's files."""
    model = judge["model"]
    folder = Path(str(model["id"])).expanduser()
    files = folder_files(str(model["id"]), "judge.model.id") if folder.is_dir() else []
    if files:
        revision = digest(canonical({Path(file).name: content_hash(file) for file in files}), 16)
    else:
        revision = model["revision"] or hub_commit(model["id"], "model", "judge.model")
    return {**judge, "model": {**model, "revision": revision}}, files


def report_cell(cell: Cell) -> dict[str, Any]:
    """What the report needs to know of a cell."""
    config = cell.config
    return {
        "arm": cell.label,
        "axes": cell.axes if cell.evaluated or cell.trained else {},
        "seed": cell.seed,
        "untrained": cell.untrained,
        "evaluated": cell.evaluated,
        "steps": cell.steps,
        "judges": cell.judges,
        "teacher": config["teacher"],
        "other_teacher": config["other_teacher"] if uses_other(config) else None,
        "model": {k: config["model"][k] for k in ("name", "origin", "id", "path", "label")},
        "prompts": config["prompts"],
        "prompt_subset": config["prompt_subset"],
        "filter": {"name": filter_name(config["filter"]), "treatment": config["filter"]["treatment"]},
        "traits": traits(config),
        "judge": config["judge"]["name"],
        "precision": config["sampling" if cell.evaluated else "train"]["precision"],
    }


def scenario_files(settings: Mapping[str, Any]) -> list[str]:
    """Return the files that a trait's scenarios come from: none if they are written in its settings."""
    return [settings["scenarios"]] if isinstance(settings["scenarios"], str) else []


def traits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cell's traits, with the limit of reply length that sampling may set for all."""
    limit, found = config["sampling"]["max_tokens"], {}
    for name, trait in config["trait_eval"].items():
        settings = {k: v for k, v in trait.items() if k != "suites"}
        found[name] = settings if limit is None else {**settings, "max_tokens": limit}
    return found


def filter_name(settings: Mapping[str, Any]) -> str:
    """Return how a filter is shown: a chain by its parts."""
    return " then ".join(str(f["name"]) for f in filters_of(settings)) or "none"


def _slug(step_id: str) -> str:
    """Return the readable part of a step id: without its kind and its hash."""
    return step_id.partition("-")[2].rpartition("-")[0]
