"""The plan of `python -m sftdiff.evaluate`: a sweep of models that are there already; nothing is trained."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.data import PlannedStep, folder_files, hub_commit
from launch.plan import NOT_ARMS, Cell, Plan, Planner, add_cell, finish_plan
from launch.validate import check_cell, check_shared
from sftdiff.errors import SftdiffError
from sftdiff.records import load_record, read_json, state

ADAPTER = "adapter_config.json"  # the file by which a folder is known as a LoRA adapter


def build_evaluation(cells: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]], command: str, zero_stage: int = 0) -> Plan:
    """Plan the evaluation of each cell's model; raises SftdiffError on the first one that cannot be evaluated."""
    if not cells:
        raise SftdiffError("the sweep has no cells")
    first, planner = cells[0][1], EvaluationPlanner(zero_stage)
    planned: dict[tuple[str, ...], Cell] = {}
    for axes, config in cells:
        check_cell(config)
        check_shared(first, config)
        cell = planner.evaluated(axes, config)
        key = (cell.arm, cell.steps["model"], *(f"{k}={v}" for k, v in axes.items() if k not in NOT_ARMS))
        add_cell(planned, key, cell)
    made = list(planned.values())
    _name_apart(made)
    if first["judge_only"]:
        planner.judge_only(Path(first["runs"]))
    labels = [cell.label for cell in made]
    baseline = first["report"]["baseline"]
    if baseline == "untrained" and not any(label.startswith(baseline) for label in labels):
        baseline = labels[0]  # the default, which no model here is called
    return finish_plan(planner, made, {**first, "report": {**first["report"], "baseline": baseline}}, command)


def _name_apart(cells: Sequence[Cell]) -> None:
    """Add their step to arms that are called alike."""
    seen = Counter(cell.arm for cell in cells)
    for cell in cells:
        if seen[cell.arm] > 1:
            cell.axes["step"] = cell.steps["model"]


class EvaluationPlanner(Planner):
    """Plans the samples and verdicts of models from anywhere."""

    def evaluated(self, axes: Mapping[str, str], config: Mapping[str, Any]) -> Cell:
        model = config["model"]
        student, tested = self._model(config)
        shown = {"model": model["label"] or model["name"]}
        shown |= {k: v for k, v in axes.items() if k not in NOT_ARMS and k.split(".")[0] != "model"}
        steps = {"student": student, "model": tested}
        return Cell(shown, 0, config, steps, self.judges(config, tested, student), evaluated=True)

    def _model(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return the steps (student, model): the same one twice if it is not known what the model was trained from."""
        model = config["model"]
        if model["origin"] == "step":
            return self._trained(model["id"], Path(config["runs"]))
        if model["origin"] != "path":
            student = self.student(model)
            return student, student
        folder, base, revision = Path(model["path"]).expanduser(), str(model["base"] or ""), ""
        if (folder / ADAPTER).is_file() and not base:
            base, revision = _base_of_adapter(folder)
        trained_from = self._base(model, base, revision) if base else None
        tested = self.student({**model, "path": str(folder)}, trained_from)
        return trained_from or tested, tested

    def _base(self, model: Mapping[str, Any], base: str, revision: str) -> str:
        own = {**model, "label": base, "name": "base"}
        if Path(base).expanduser().is_dir():
            folder_files(base, "model.base")
            return self.student({**own, "path": str(Path(base).expanduser())})
        if not _is_hub_name(base):
            raise SftdiffError(f"model.base: there is no folder {base}, and it is no hub model's name (organisation/name)")
        commit = revision or hub_commit(base, "model", "model.base")
        return self.student({**own, "origin": "hub", "id": base, "path": None, "revision": commit})

    def _trained(self, step_id: str, runs: Path) -> tuple[str, str]:
        """Take a finished train step and its student into the plan, as their directories state them."""
        directory = runs / "steps" / step_id
        if "/" in step_id or not (directory / "config.yaml").is_file():
            known = ", ".join(sorted(p.parent.name for p in runs.glob("steps/train-*/DONE"))) or "none"
            raise SftdiffError(f"model.id: there is no step {step_id} under {runs}/steps; finished trainings there: {known}")
        record = load_record(directory)
        if record.kind != "train":
            raise SftdiffError(f"model.id: {step_id} is a {record.kind} step; give the id of a train step")
        student = record.inputs["student"]
        for name in (student, step_id):
            if (found := state(runs / "steps" / name)) != "done":
                raise SftdiffError(f"model.id: {name} is {found}, not done: run the command again that trains {step_id}")
        for step, inputs in ((load_record(runs / "steps" / student), {}), (record, {"student": student})):
            self.steps[step.id] = PlannedStep(step.id, step.kind, step.config, inputs, step.files, step.runtime)
        return student, step_id

    def judge_only(self, runs: Path) -> None:
        """Leave only judge steps to be run; raises SftdiffError if replies are missing."""
        for step in list(self.steps.values()):
            if step.kind == "sample":
                if (found := state(runs / "steps" / step.id)) != "done":
                    raise SftdiffError(
                        f"judge_only=true: the replies of {step.id} are {found}, not done: run the same command without "
                        "judge_only to sample them; sampling settings that differ from those of the first time are other replies"
                    )
                self.steps[step.id] = replace(step, inputs={})
            elif step.kind != "judge":
                del self.steps[step.id]


def _base_of_adapter(folder: Path) -> tuple[str, str]:
    """Return (base, commit or "") that an adapter's own config names. Raise SftdiffError if there is no such model."""
    config = read_json(folder / ADAPTER)
    base, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    if not Path(base).expanduser().is_dir() and not _is_hub_name(base):
        raise SftdiffError(f"{folder / ADAPTER} names {base!r} as the model that the adapter belongs to, which is not there: "
                           "set model.base=FOLDER_OR_HUB_NAME")  # fmt: skip
    return base, str(revision or "")


def _is_hub_name(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith(("/", ".", "~")) and all(text.split("/"))
