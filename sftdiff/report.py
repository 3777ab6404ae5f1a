"""The report step: reads step directories, computes levels and paired differences, writes report.json and report.html.

Only directories are read, nothing of a model: a report can be made again at any time, with `python -m sftdiff.report SWEEP`.
"""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftdiff import report_facts as facts
from sftdiff.compare import BySeed, arm_notes, trait_differences, trait_level
from sftdiff.errors import SftdiffError
from sftdiff.records import read_json, write_json
from sftdiff.report_html import render_report
from sftdiff.steps import Step, run_step
from sftdiff.trace import USAGE, rows_command
from sftdiff.verdicts import ok_rows, trait_rows
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
    traits = facts.traits_of(step, cells)
    arms = facts.arms_of(step, cells)
    verdicts = {arm["id"]: facts.verdicts_of(step, cells, arm["id"], traits) for arm in arms}
    levels = [trait_level(arm, trait, verdicts[arm["id"]][trait["name"]], settings) for arm in arms for trait in traits]
    differences = trait_differences(arms, traits, verdicts, levels, settings)
    for arm in arms:
        arm["notes"] = arm_notes(arm["id"], traits, levels, differences)
    missing = facts.missing_of(step, cells)
    axes = list(dict.fromkeys(axis for arm in arms for axis in arm["axes"]))
    return {
        "schema": 3,
        "sweep": step.config["sweep"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": step.record.runtime.get("command", ""),
        "axes": [axis for axis in axes if len({arm["axes"].get(axis) for arm in arms if arm["trained_here"]}) > 1] or axes,
        "teachers": facts.teachers_of(cells),
        "students": facts.students_of(cells),
        "prompts": facts.prompts_of(step, cells),
        "judges": sorted({c["judge"] for c in cells}),
        "arms": arms,
        "traits": traits,
        "levels": levels,
        "differences": differences,
        "curves": facts.curves_of(step, cells),
        "mixtures": facts.mixtures_of(step, cells),
        "examples": _examples(arms, traits, verdicts, settings["examples"]),
        "missing": missing,
        "warnings": _warnings(step, arms, levels),
        "provenance": facts.provenance_of(step, cells),
    }


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


def _warnings(step: Step, arms: Sequence[Mapping[str, Any]], levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know before comparing: differing libraries, lost abilities, traits that are not interpreted."""
    versions: dict[str, set[str]] = {}
    for step_id in step.record.inputs.values():
        path = facts.directory_of(step, step_id) / "provenance.json"
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
