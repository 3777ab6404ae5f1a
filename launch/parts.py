"""Commands that run a part of a plan, where they are called: the rollouts of a teacher, or the scores of filters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.data import DataPlanner, filters_of, origin_of
from launch.local import error_of, run_steps
from launch.plan import Plan
from launch.run import console, steps_to_do
from launch.sweep import with_inputs, write_steps
from launch.validate import check_cell, check_trainable
from sftdiff.errors import SftdiffError
from sftdiff.filters.report import Flags, filter_report, read_truth
from sftdiff.identity import canonical, digest
from sftdiff.mixture import flagged_rows
from sftdiff.prompts import load_index
from sftdiff.records import read_done, write_json
from sftdiff.scores import load_scores
from sftdiff.subsets import View
from sftdiff.teachers import load_contents

Cells = Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]
SHOWN_PAIRS = 30


def make_rollouts(cells: Cells, dry_run: bool) -> None:
    """Generate the rollouts of each distinct teacher and prompt set among the cells, after saying what it can cost."""
    planner, wanted = DataPlanner(), dict[str, Mapping[str, Any]]()
    for _, config in cells:
        check_cell(config)
        check_trainable(config)
        config = {**config, "teacher": {**config["teacher"], "origin": _generating(config["teacher"])}}
        wanted.setdefault(planner.rollouts(config, "teacher"), config)
    plan = part_plan(planner, "rollouts", cells)
    run_part(plan, [s for s in plan.steps if s.startswith("prompts-")])
    for step_id in wanted:
        _open_again(plan.directory(step_id))
    for step_id in wanted:
        _announce(plan, step_id)
    if dry_run:
        console.print("Dry run: nothing was generated.")
        return
    run_part(plan, list(wanted))
    for step_id, config in wanted.items():
        _tell(plan, step_id, config)


def _open_again(directory: Path) -> None:
    """Let a generation that ended with failures of a reason that passes run again: its journal knows which replies are left."""
    done = read_done(directory)
    if done is not None and done["summary"].get("transient"):
        (directory / "DONE").unlink()


def _generating(teacher: Mapping[str, Any]) -> str:
    """Return the origin to generate from; raises SftdiffError if nothing can be generated, or no cap be kept."""
    if teacher["origin"] == "stored":
        raise SftdiffError(f"teacher={teacher['name']} has stored rollouts: choose teacher.origin=endpoint, transformers or vllm")
    model = teacher["model"]
    if teacher["generation"]["max_cost"] is not None and None in (model["price_in"], model["price_out"]):
        raise SftdiffError("teacher.generation.max_cost needs teacher.model.price_in and price_out, in dollars a million tokens")
    return "endpoint" if teacher["origin"] == "auto" else str(teacher["origin"])


def _announce(plan: Plan, step_id: str) -> None:
    from sftdiff.generated import estimate_for_step

    if read_done(plan.directory(step_id)) is None:
        console.print(escape(f"{step_id}: {estimate_for_step(plan.directory(step_id))}"))


def _tell(plan: Plan, step_id: str, config: Mapping[str, Any]) -> None:
    """Say what was made, and how a sweep takes it."""
    directory = plan.directory(step_id)
    done = read_done(directory)
    if done is None:
        return
    made = done["summary"]
    tokens = f"{made['prompt_tokens']:,} prompt and {made['completion_tokens']:,} completion tokens"
    cost = "" if not made["cost"] else f", ${made['cost']:.2f}"
    console.print(escape(f"{made['rows']:,} replies, {made['errors']:,} prompts without a usable one; {tokens}{cost}"))
    for reason, count in made["error_reasons"].items():
        again = "; the same command tries again what may pass" if made["transient"] else ""
        console.print(escape(f"  {count:,} x {reason}{again}"))
    if made["paid_again"]:
        console.print(f"  {made['paid_again']:,} requests were in flight when an earlier run was killed; they were sent again")
    console.print(escape(f"They are in {directory / 'rollouts.parquet'}"))
    teacher, origin = config["teacher"], made["origin"]
    same = origin_of(teacher, config["prompts"]) == origin
    console.print("Train on them with the same teacher and prompts settings" + ("" if same else f" and teacher.origin={origin}"))


def report_filters(cells: Cells, dry_run: bool) -> None:
    """Score the rows of each cell's teacher with its filter, and print and write what each filter flags."""
    planner, rows = DataPlanner(), dict[str, dict[str, Any]]()
    for axes, config in cells:
        check_cell(config)
        check_trainable(config)
        for settings in filters_of(config["filter"]):
            _plan_filter(planner, rows, settings, config, axes)
    if not rows:
        raise SftdiffError("there is nothing to report on: choose filters, e.g. filter=keyword,bm25,random")
    plan = part_plan(planner, f"filters-{digest(canonical(sorted(planner.steps)), 10)}", cells)
    console.print(f"Steps: {', '.join(plan.steps)}")
    if dry_run:
        console.print("Dry run: nothing was scored.")
        return
    run_part(plan, list(plan.steps))
    reports = []
    for group in rows.values():
        report = filter_report(*_flags(plan, group))
        reports.append({k: group[k] for k in ("prompts", "rollouts")} | report)
        print_filters(report)
    path = plan.runs / "sweeps" / plan.sweep / "filters.json"
    write_json(path, reports)
    console.print(f"All numbers: {escape(str(path.resolve()))}")


def _plan_filter(
    planner: DataPlanner, rows: dict[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], axes: Mapping[str, str]
) -> None:
    """Plan one filter's scores, and note it with the others on the same rollouts."""
    prompts, rollouts = planner.prompts(config), planner.rollouts(config, "teacher")
    group = rows.setdefault(rollouts, {"prompts": prompts, "rollouts": rollouts, "config": config, "inputs": {}, "filters": {}})
    own = planner.filter_settings(settings, config, group["inputs"])
    own.setdefault("input", planner.scores_input(settings, config, group["inputs"]))  # of a control that matches another filter
    group["filters"].setdefault(canonical(own), own | {"shown": _shown(settings, axes)})


def _shown(settings: Mapping[str, Any], axes: Mapping[str, str]) -> str:
    more = [f"{k.removeprefix('filter.')}={v}" for k, v in axes.items() if k.startswith("filter.")]
    return " ".join([settings["name"], *more])


def _flags(plan: Plan, group: Mapping[str, Any]) -> tuple[list[Flags], Any, Any]:
    prompts = load_index(plan.directory(group["prompts"]))
    usable, _, characters = load_contents(plan.directory(group["rollouts"]), group["config"]["teacher"]["sample"])
    folders = {name: plan.directory(step) for name, step in group["inputs"].items()}
    view = View(prompts, lambda: Path(), lambda: characters, lambda name: load_scores(folders[name]))
    flags = []
    for settings in group["filters"].values():
        held_out = (read_done(folders[settings["input"]]) or {})["summary"].get("held_out")
        flagged = flagged_rows(settings, view, usable)
        flags.append(Flags(settings["shown"], view.scores(settings["input"]), flagged, settings, held_out))
    truth = group["config"]["teacher"]["truth"]
    return flags, prompts, read_truth(truth, prompts) if truth else None


def print_filters(report: Mapping[str, Any]) -> None:
    """Print what each filter flags, by source, how alike the filters are, and how right they are where the truth is known."""
    table = Table(title=f"Filters on {report['rows']:,} rows", title_justify="left")
    for heading in ("filter", "threshold", "flagged", "score: 10 %", "median", "90 %", "99 %", "highest"):
        table.add_column(heading)
    for f in report["filters"]:
        rule = f"top {f['top']:g}" if f["top"] is not None else "matched" if f["threshold"] is None else f"{f['threshold']:g}"
        quantiles = [f"{f['quantiles'][q]:.3g}" if f["quantiles"] else "-" for q in ("0.1", "0.5", "0.9", "0.99", "1.0")]
        table.add_row(escape(f["name"]), rule, f"{f['flagged']:,} ({f['flagged'] / max(f['scored'], 1):.1%})", *quantiles)
    console.print(table)
    _print_sources(report)
    _print_truth(report)
    _print_pairs(report)


def _print_sources(report: Mapping[str, Any]) -> None:
    table = Table(title="Share flagged, by source", title_justify="left")
    table.add_column("source")
    table.add_column("rows")
    for f in report["filters"]:
        table.add_column(escape(f["name"]))
    for number, row in enumerate(report["filters"][0]["by_source"]):
        shares = [f["by_source"][number]["flagged"] / max(row["rows"], 1) for f in report["filters"]]
        table.add_row(escape(row["source"]), f"{row['rows']:,}", *(f"{share:.1%}" for share in shares))
    console.print(table)


def _print_truth(report: Mapping[str, Any]) -> None:
    if report["truth"] is None:
        return
    counts = ", ".join(f"{level} {count}" for level, count in report["truth"].items())
    table = Table(title=f"Against the truth ({counts} rows)", title_justify="left")
    for heading in ("filter", "precision", "recall overt", "recall mild", "AUROC overt", "AUROC mild", "held-out AUROC"):
        table.add_column(heading)
    for f in report["filters"]:
        truth, held_out = f["truth"], (f["held_out"] or {}).get("auroc")
        values = [truth["precision"], *(truth[level][k] for k in ("recall", "auroc") for level in ("overt", "mild")), held_out]
        table.add_row(escape(f["name"]), *("-" if v is None else f"{v:.2f}" for v in values))
    console.print(table)


def _print_pairs(report: Mapping[str, Any]) -> None:
    if not report["pairs"]:
        return
    table = Table(title="How alike the filters are", title_justify="left")
    for heading in ("filters", "both flag", "overlap (of what either flags)", "rank correlation of scores"):
        table.add_column(heading)
    for pair in report["pairs"][:SHOWN_PAIRS]:
        values = ["-" if pair[k] is None else f"{pair[k]:.2f}" for k in ("overlap", "spearman")]
        table.add_row(escape(" and ".join(pair["filters"])), f"{pair['both']:,}", *values)
    console.print(table)


def part_plan(planner: DataPlanner, name: str, cells: Cells) -> Plan:
    """Return the planned steps as a plan without cells, and write those that are not done."""
    plan = Plan(name, Path(cells[0][1]["runs"]), [], planner.steps, "")
    write_steps(plan, {})
    (plan.runs / "sweeps" / name).mkdir(parents=True, exist_ok=True)
    return plan


def run_part(plan: Plan, wanted: Sequence[str]) -> None:
    """Run the steps `wanted` and what they read; raises SftdiffError with the first error."""
    needed = set(with_inputs(plan, wanted))
    todo = [step for step in steps_to_do(plan) if step.id in needed]
    outcomes = run_steps(plan, todo, 1, console)
    failed = [step for step, outcome in outcomes.items() if outcome != "done"]
    if failed:
        raise SftdiffError(f"{failed[0]}: {error_of(plan.directory(failed[0]))}")
