"""Run a sweep on this machine: plan it, show the plan, run what is not done, and print the comparison."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.asked import requests_line
from launch.data import PlannedStep
from launch.forecast import detectable_line
from launch.local import error_of, precision_warning, run_steps
from launch.logs import make_console
from launch.plan import Plan, build_plan
from launch.sweep import Sweep, write_plan
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.records import read_json, state
from sftdiff.words import counted, level_text

Cells = Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]
Builder = Callable[[Cells, str, int], Plan]  # (cells, command, ZeRO stage of deepspeed=auto) -> plan
SHOWN_CELLS = 40
console = make_console()


def run_sweep(cells: Cells, dry_run: bool, processes: int, build: Builder = build_plan) -> None:
    """Plan and run a sweep; raises SftdiffError if a step failed. Finished steps are never run again."""
    run_plan(build(cells, shown_command(), 0), dry_run, processes)


def run_plan(plan: Plan, dry_run: bool, processes: int) -> None:
    """Run what is not done of a plan on this machine; raises SftdiffError if a step failed."""
    try:
        todo = steps_to_do(plan)
        with written(plan):
            print_plan(plan, todo)
            if todo and (warning := precision_warning(plan)):
                console.print(f"[yellow]{warning}[/]")
        if dry_run:
            console.print("Dry run: none of these steps was run.")
            return
        refuse_generation(todo)
        sweep = write_plan(plan)
        if todo:
            outcomes = run_steps(plan, todo, processes, console)
        else:
            console.print("Everything is done already: nothing to run.")
            outcomes = {}
        publish_report(sweep)
    except OSError as error:
        raise SftdiffError(f"{describe_os_error(error)} (the run directory is runs={plan.runs})") from error
    failed = [step for step, outcome in outcomes.items() if outcome != "done"]
    if failed:
        raise SftdiffError(
            f"{len(failed)} of {len(plan.steps)} steps did not finish; "
            "finished ones are kept, and the same command goes on from there. "
            f"The first error was: {error_of(plan.directory(failed[0]))}"
        )


def refuse_generation(todo: Sequence[PlannedStep]) -> None:
    """Raise SftdiffError if a sweep would ask an endpoint: what costs money has a command of its own, with an estimate."""
    for step in todo:
        if step.kind == "rollouts" and step.config["teacher"]["origin"] == "endpoint":
            name = step.config["teacher"]["name"]
            raise SftdiffError(
                f"the rollouts of teacher {name} on these prompts are not generated yet ({step.id}): generate them first with "
                f"`python -m sftdiff.rollouts teacher={name}` and the same prompts settings, or give a file (teacher.path=FILE)"
            )


def steps_to_do(plan: Plan) -> list[PlannedStep]:
    """Return the steps that are not done, and those that read one of them: what they read may change."""
    todo: dict[str, PlannedStep] = {}
    for step in plan.steps.values():
        if any(i in todo for i in step.inputs.values()) or state(plan.directory(step.id)) != "done":
            todo[step.id] = step
    return list(todo.values())


def shown_command() -> str:
    """Return the command line as the user gave it."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join([name, *sys.argv[1:]])


@contextmanager
def written(plan: Plan) -> Iterator[None]:
    """Write what is printed meanwhile into the sweep's plan.txt as well."""
    console.record = True
    try:
        yield
    finally:
        text = console.export_text()
        console.record = False
    folder = plan.runs / "sweeps" / plan.sweep
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.txt").write_text(text, encoding="utf-8")


def print_plan(plan: Plan, todo: Sequence[PlannedStep]) -> None:
    """Print the cells and how many steps of each kind there are, done and to do."""
    evaluated = [c for c in plan.cells if c.evaluated]
    trained = sum(c.trained for c in plan.cells)
    count = counted(len(evaluated), "model") if evaluated else counted(trained, "cell")
    console.print(f"[bold]Sweep {plan.sweep}[/]: {count}, traits: {', '.join(_traits(plan))}")
    table = Table(box=None, pad_edge=False)
    for heading in ("model" if evaluated else "cell", "seed", "state", "step"):
        table.add_column(heading, overflow="fold")
    open_ids = {step.id for step in todo}
    shown_cells = [c for c in plan.cells if not plan.is_diff or open_ids & {*c.steps.values(), *c.judges.values()}]
    for cell in shown_cells[:SHOWN_CELLS]:
        needed = [*cell.steps.values(), *cell.judges.values()]
        missing = sum(step in open_ids for step in set(needed))
        seed, shown = str(cell.seed) if cell.trained else "-", "to do" if missing else "done"
        table.add_row(escape(cell.label), seed, shown, cell.steps["model"])
    console.print(table)
    if len(shown_cells) > SHOWN_CELLS:
        console.print(f"... and {len(shown_cells) - SHOWN_CELLS:,} more")
    all_kinds, open_kinds = Counter(s.kind for s in plan.steps.values()), Counter(s.kind for s in todo)
    kinds = ", ".join(f"{kind} {count} ({open_kinds[kind]} to do)" for kind, count in all_kinds.items())
    console.print(detectable_line(plan))
    if asked := requests_line(plan, todo):
        console.print(escape(asked))
    console.print(f"Steps: {len(plan.steps):,}, of which {len(plan.steps) - len(todo):,} are done. {kinds}")


def _traits(plan: Plan) -> list[str]:
    return list(dict.fromkeys(trait for cell in plan.cells for trait in cell.judges))


def publish_report(sweep: Sweep) -> None:
    """Put the report of this sweep under its name, and print its table and place."""
    if not copy_report(sweep):
        return
    if sweep.is_diff:  # whose levels are shown with its transfers, once it has ended
        return
    print_levels(read_json(sweep.folder / "report.json"))
    console.print(f"Report: {escape(str((sweep.folder / 'report.html').resolve()))}")


def copy_report(sweep: Sweep) -> bool:
    """Put the report of a sweep under its name; return False if it is not made yet."""
    made = sweep.directory(sweep.report)
    if state(made) != "done":
        return False
    for name in ("report.html", "report.json"):
        temporary = sweep.folder / f".{name}.{os.getpid()}"
        temporary.write_bytes((made / name).read_bytes())
        os.replace(temporary, sweep.folder / name)
    return True


def print_levels(report: Mapping[str, Any]) -> None:
    """Print the table arm x trait with intervals."""
    table = Table(title="Trait levels [95 % interval]", title_justify="left")
    table.add_column("arm")
    for trait in report["traits"]:
        guard = " (guard)" if trait["guard"] else ""
        table.add_column(escape(f"{trait['title']}{guard}\n{trait['unit']}"))
    cells = {(level["arm"], level["trait"]): level for level in report["levels"]}
    for arm in report["arms"]:
        shown = [_level(cells.get((arm["id"], t["name"])), t["kind"]) for t in report["traits"]]
        table.add_row(escape(arm["id"]), *shown)
    console.print(table)
    for scope in sorted({level["scope"] for level in report["levels"] if level["value"] is not None}):
        console.print(f"Intervals: {scope}.")


def _level(level: Mapping[str, Any] | None, kind: str) -> str:
    if level is None or level["value"] is None:
        return "missing"
    text = escape(level_text(level, kind))
    return text if level["interpreted"] else f"[dim]{text} not interpreted: {round(100 * level['cut_share'])} % cut[/]"
