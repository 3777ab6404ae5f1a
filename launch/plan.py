"""The plan: cells -> steps -> directed graph. Pure but for reading the external files whose content is part of an identity.

Steps that several cells need are planned once. An identity exists before anything ran.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.data import DataPlanner, PlannedStep, filters_of, uses_other
from launch.validate import check_cell, check_shared
from sftdiff.config import baseline_arm
from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest
from sftdiff.pack import PACK_VERSION
from sftdiff.traits import load_scorer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")  # of a sweep
NOT_ARMS = ("seed", "trait_eval")  # axes that do not make another arm
REPORT_VERSION = 3


@dataclass
class Cell:
    """One mixture x student x training config x seed, with the steps that belong to it."""

    axes: dict[str, str]
    seed: int
    untrained: bool
    config: Mapping[str, Any]
    steps: dict[str, str]  # kind -> step id
    judges: dict[str, str] = field(default_factory=dict)  # trait -> step id

    @property
    def arm(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.axes.items())

    @property
    def label(self) -> str:
        """The arm as the report names it."""
        return self.arm.replace("untrained=", "untrained ").strip() if self.untrained else self.arm


@dataclass
class Plan:
    """All cells of a sweep and their steps, in an order in which every step comes after its inputs."""

    sweep: str
    runs: Path
    cells: list[Cell]
    steps: dict[str, PlannedStep]
    report: str

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
        shown = {k: v for k, v in axes.items() if k not in NOT_ARMS} or _default_axes(config)
        for cell in (planner.untrained(config), planner.cell(shown, config)):
            key = (cell.arm, cell.seed, cell.steps["model"])
            planned.setdefault(key, cell).judges.update(cell.judges)
    ordered = sorted(planned.values(), key=lambda c: not c.untrained)
    _name_untrained(ordered)
    baseline_arm(cells[0][1]["report"]["baseline"], [cell.label for cell in ordered])  # now, not when everything is trained
    first = cells[0][1]
    evaluated = sorted([c.steps["model"], *sorted(c.judges.values())] for c in ordered)
    sweep = first["sweep"] or digest(canonical(evaluated), 10)
    if not NAME.fullmatch(sweep):
        raise SftdiffError(f"sweep: {sweep!r} names jobs and folders: a letter or digit, and then letters, digits and . _ - only")
    planner.runtime_tags(sweep)
    report = planner.report(sweep, ordered, first, command)
    return Plan(sweep, Path(first["runs"]), ordered, planner.steps, report)


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

    def judges(self, config: Mapping[str, Any], model: str, student: str) -> dict[str, str]:
        made = {}
        for trait, settings in traits(config).items():
            shared = {"trait": trait, "suite": settings["suite"], "scenarios": settings["scenarios"]}
            sampling = {k: settings[k] for k in ("samples", "temperature", "top_k", "top_p", "max_tokens")}
            sampling |= {"seed": config["sampling"]["seed"], "precision": config["sampling"]["precision"]}
            files = [settings["scenarios"]]
            inputs = {"model": model, "student": student}
            runtime = {"batch_size": config["sampling"]["batch_size"]}
            sample = self.step("sample", f"{trait}-{_slug(model)}", shared | sampling, inputs, files, runtime)
            _, version = load_scorer(settings["_target_"])
            own = shared | {"judge": config["judge"]["name"], "scorer": settings["_target_"], "version": version}
            made[trait] = self.step("judge", f"{trait}-{_slug(model)}", own, {"sample": sample}, files)
        return made

    def cell(self, axes: dict[str, str], config: Mapping[str, Any]) -> Cell:
        student = self.student(config["model"])
        mixture = self.mixture(config)
        pack = self.pack(config, mixture, student)
        train = self.train(config, pack, student)
        steps = {"student": student, "mixture": mixture, "pack": pack, "train": train, "model": train}
        return Cell(dict(axes), config["seed"], False, config, steps, self.judges(config, train, student))

    def untrained(self, config: Mapping[str, Any]) -> Cell:
        """Return the cell of a student as it is; thousands of trained cells have the same one."""
        key = json.dumps([config[name] for name in ("model", "trait_eval", "sampling", "judge")])
        if key not in self._untrained:
            student = self.student(config["model"])
            steps, judges = {"student": student, "model": student}, self.judges(config, student, student)
            self._untrained[key] = Cell({"untrained": config["model"]["name"]}, 0, True, config, steps, judges)
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


def report_cell(cell: Cell) -> dict[str, Any]:
    """What the report needs to know of a cell."""
    config = cell.config
    return {
        "arm": cell.label,
        "axes": {} if cell.untrained else cell.axes,
        "seed": cell.seed,
        "untrained": cell.untrained,
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
        "precision": config["train"]["precision"],
    }


def traits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cell's traits, with the limit of reply length that sampling may set for all."""
    limit = config["sampling"]["max_tokens"]
    return {name: trait if limit is None else {**trait, "max_tokens": limit} for name, trait in config["trait_eval"].items()}


def filter_name(settings: Mapping[str, Any]) -> str:
    """Return how a filter is shown: a chain by its parts."""
    return " then ".join(str(f["name"]) for f in filters_of(settings)) or "none"


def _slug(step_id: str) -> str:
    """Return the readable part of a step id: without its kind and its hash."""
    return step_id.partition("-")[2].rpartition("-")[0]
