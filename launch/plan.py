"""The plan: cells -> steps -> directed graph. Pure but for reading the external files whose content is part of an identity.

Steps that several cells need are planned once. An identity exists before anything ran.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from launch.validate import check_cell, check_shared
from sftdiff.config import baseline_arm
from sftdiff.errors import SftdiffError, first_line
from sftdiff.files import resolve
from sftdiff.filters import load_filter
from sftdiff.identity import canonical, digest, file_sha256, step_identity
from sftdiff.pack import PACK_VERSION
from sftdiff.rows import ROWS_VERSION
from sftdiff.traits import load_scorer

NOT_ARMS = ("seed", "trait_eval")  # axes that do not make another arm
REPORT_VERSION = 1


@dataclass(frozen=True)
class PlannedStep:
    """One step: its directory name (`id`), what it reads, and settings that do not change its result (`runtime`)."""

    id: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    runtime: dict[str, Any]


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


def build_plan(cells: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]], command: str) -> Plan:
    """Plan a sweep from (axes, resolved config) pairs; raises SftdiffError on the first cell that cannot be run."""
    if not cells:
        raise SftdiffError("the sweep has no cells")
    planner = Planner()
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
    sweep = first["sweep"] or digest(canonical(sorted(c.steps["model"] for c in ordered)), 10)
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


@lru_cache(maxsize=1024)
def content_hash(path: str) -> str:
    return file_sha256(resolve(path))


@lru_cache(maxsize=64)
def hub_commit(model_id: str) -> str:
    """Return the commit that a hub model's main branch has now: a sweep is pinned to it when it is planned."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model_id, timeout=20).sha)
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes between versions
        raise SftdiffError(
            f"model.id={model_id}: cannot look up its commit on the hub ({first_line(error)}); "
            "set model.revision=COMMIT to plan without it"
        ) from None


class Planner:
    """Collects the distinct steps of all cells."""

    def __init__(self) -> None:
        self.steps: dict[str, PlannedStep] = {}
        self._made: dict[str, str] = {}

    def step(
        self,
        kind: str,
        slug: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        files: Sequence[str] = (),
        runtime: Mapping[str, Any] | None = None,
    ) -> str:
        """Plan one step, or find the same one planned before; return its id."""
        hashes = {path: content_hash(path) for path in files}
        try:
            identity = step_identity(kind, config, inputs, hashes)
        except ValueError:
            raise SftdiffError(f"the settings of {kind}-{slug} hold an infinite value or one that is not a number") from None
        step_id = self._made.get(identity)
        if step_id is None:
            safe = "".join(c if c.isalnum() or c in "._" else "-" for c in slug)[:60]
            step_id = self._made[identity] = f"{kind}-{safe}-{identity}"
            self.steps[step_id] = PlannedStep(step_id, kind, dict(config), dict(inputs), hashes, dict(runtime or {}))
        return step_id

    def student(self, model: Mapping[str, Any]) -> str:
        files = []
        if model["origin"] == "hub":
            model = {**model, "revision": model["revision"] or hub_commit(model["id"])}
        if model["origin"] == "path":
            folder = Path(model["path"]).expanduser().resolve()
            if not folder.is_dir():
                raise SftdiffError(f"model.path: there is no folder {folder}")
            files = sorted(str(p) for p in folder.iterdir() if p.is_file())
        return self.step("student", model["name"], model, {}, files)

    def rollouts(self, config: Mapping[str, Any], slot: str) -> str:
        teacher, prompts = config[slot], config["prompts"]
        own = {"prompts": prompts, "teacher": teacher}
        return self.step("rollouts", f"{teacher['name']}-{prompts['name']}", own, {}, [prompts["path"], teacher["path"]])

    def scores(self, settings: Mapping[str, Any], rollouts: str) -> str:
        _, version = load_filter(settings["_target_"])
        own = {"_target_": settings["_target_"], "params": settings["params"], "part": settings["part"], "version": version}
        lists = settings["params"].get("lists")
        return self.step("scores", settings["name"], own, {"rollouts": rollouts}, [str(lists)] if lists else [])

    def mixture(self, config: Mapping[str, Any]) -> str:
        settings, subset = config["filter"], config["prompt_subset"]
        inputs = {"rollouts": self.rollouts(config, "teacher")}
        own_filter = {"name": settings["name"], "threshold": settings["threshold"], "treatment": settings["treatment"]}
        if settings["_target_"]:
            inputs["scores"] = self.scores(settings, inputs["rollouts"])
        if settings["match"]:
            inputs["match_scores"] = self.scores(settings["match"], inputs["rollouts"])
            own_filter["match_threshold"] = settings["match"]["threshold"]
        teachers = {"teacher": config["teacher"]["name"]}
        slug = f"{config['teacher']['name']}-{settings['name']}"
        if uses_other(config):
            inputs["other_rollouts"] = self.rollouts(config, "other_teacher")
            teachers["other"] = config["other_teacher"]["name"]
            slug += f"-{config['other_teacher']['name']}"
        if subset["treatment"] != "keep":
            slug += f"-{subset['treatment']}-{subset['name']}"
        own = {
            "prompt_subset": subset,
            "filter": own_filter,
            "teachers": teachers,
            "missing": config["missing_rollouts"],
            "version": ROWS_VERSION,
        }
        return self.step("mixture", slug, own, inputs)

    def pack(self, config: Mapping[str, Any], mixture: str, student: str) -> str:
        own = {k: config["train"][k] for k in ("max_length", "over_length")} | {"version": PACK_VERSION}
        return self.step("pack", _slug(mixture), own, {"mixture": mixture, "student": student})

    def train(self, config: Mapping[str, Any], pack: str, student: str) -> str:
        own = dict(config["train"])
        runtime = {"deepspeed": config["deepspeed"]} | {k: own.pop(k) for k in ("micro_batches", "save_steps")}
        if own["method"] != "lora":
            own.pop("lora")
        slug = f"{_slug(pack)}-s{config['seed']}"
        return self.step("train", slug, {"train": own, "seed": config["seed"]}, {"pack": pack, "student": student}, (), runtime)

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
        student = self.student(config["model"])
        judges = self.judges(config, student, student)
        return Cell({"untrained": config["model"]["name"]}, 0, True, config, {"student": student, "model": student}, judges)

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
        "filter": {k: config["filter"][k] for k in ("name", "threshold", "treatment")},
        "traits": traits(config),
        "judge": config["judge"]["name"],
        "precision": config["train"]["precision"],
    }


def traits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cell's traits, with the limit of reply length that sampling may set for all."""
    limit = config["sampling"]["max_tokens"]
    return {name: trait if limit is None else {**trait, "max_tokens": limit} for name, trait in config["trait_eval"].items()}


def uses_other(config: Mapping[str, Any]) -> bool:
    """Tell whether a cell takes rollouts of other_teacher."""
    by_filter = bool(config["filter"]["_target_"]) and config["filter"]["treatment"] == "swap"
    return by_filter or config["prompt_subset"]["treatment"] in ("swap", "swap_rest")


def _slug(step_id: str) -> str:
    """Return the readable part of a step id: without its kind and its hash."""
    return step_id.partition("-")[2].rpartition("-")[0]
