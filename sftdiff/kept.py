"""`python -m sftdiff.diff keep [NAME] FOLDER` and `... report FOLDER`: a diff's results as files, and its page from these alone.

keep copies what the page is made of out of a run directory, also of a diff that is not finished: plan.json (arms, settings,
looks), cells.jsonl (a line for each arm and training seed: identities and content hashes of what it was made of, versions,
commit, rows, steps, seconds), scores.parquet (a row a reply, without its text). report makes diff.html and diff.json of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from rich.console import Console

from sftdiff.diff_report import build_result, print_result, write_pages
from sftdiff.diffing import cell_seconds, take_looks, verdicts_of
from sftdiff.errors import SftdiffError
from sftdiff.files import read_rows, read_table, write_rows
from sftdiff.identity import canonical, digest
from sftdiff.records import load_record, read_done, read_json, write_json

PLAN, CELLS, SCORES = "plan.json", "cells.jsonl", "scores.parquet"
NOT_OF_CELLS = ("runs", "sweep", "track", "report")  # of a resolved config: where and how it ran, not what it is
OF_CODE = ("sftdiff", "python", "libraries", "git_commit", "git_dirty")
SCORE_SCHEMA = pa.schema(
    [
        ("step", pa.string()),  # the judge step
        ("scenario", pa.string()),
        ("sample", pa.int32()),
        ("turn", pa.int32()),
        ("kind", pa.string()),
        ("control", pa.bool_()),
        ("value", pa.float64()),
        ("label", pa.string()),
        ("state", pa.string()),
        ("cut", pa.bool_()),
        ("empty", pa.bool_()),
        ("loop", pa.bool_()),
        ("judge", pa.string()),
        ("rubric", pa.string()),
    ]
)
ABSOLUTE = re.compile(r"(?<![\w/.~])/(?!/)[^\s'\"\]},:]*/?")  # a path from the root, not the end of a URL or of another path

Row = dict[str, Any]


def run_keep(arguments: Sequence[str]) -> int:
    """Keep a diff's results in a folder; return the exit status."""
    words, runs = _words(arguments)
    if len(words) not in (1, 2):
        raise SftdiffError("write `python -m sftdiff.diff keep [NAME] FOLDER [runs=FOLDER]`, e.g. keep results/reproduce")
    folder = Path(words[-1])
    cells = keep(runs, words[0] if len(words) == 2 else folder.name, folder)
    done = sum(cell["done"] for cell in cells)
    Console().print(f"Kept {done} of {len(cells)} trainings in {folder}.", markup=False)
    return 0


def run_report(arguments: Sequence[str]) -> int:
    """Make a diff's page from the files in a folder; return the exit status."""
    words, _ = _words(arguments)
    if len(words) != 1:
        raise SftdiffError("write `python -m sftdiff.diff report FOLDER`, e.g. report results/reproduce")
    console, folder = Console(), Path(words[0])
    result = rebuild(folder)
    write_pages(folder, result)
    console.print(f"Diff: {(folder / 'diff.html').resolve()}", markup=False)
    print_result(console, result)
    if result["saved"] is None:
        console.print(f"On another machine it goes on with the same command and diff.kept={folder}.", markup=False)
    return 0


def _words(arguments: Sequence[str]) -> tuple[list[str], Path]:
    words, runs = list[str](), Path("runs")
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key != "runs":
            raise SftdiffError(f"{argument}: the only setting here is runs=FOLDER")
        runs, words = (Path(value), words) if equals else (runs, [*words, argument])
    return words, runs


def keep(runs: Path, name: str, folder: Path) -> list[Row]:
    """Write a diff's results into a folder, and return its cells as they are kept; raises SftdiffError if there is no diff."""
    diff = runs / "diffs" / name
    if not (diff / "state.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in runs.glob("diffs/*/state.json"))) or "none"
        raise SftdiffError(f"there is no diff {name} under {runs}; known: {known} (another run directory: runs=FOLDER)")
    plan, state = read_json(diff / "plan.json"), read_json(diff / "state.json")
    if "looks" not in state or "parts" not in plan:
        raise SftdiffError(f"{diff} is a search, or a diff of an earlier version: what can be kept is a diff (run it again)")
    configs = {(arm, config["seed"]): config for arm, config in _configs(diff)}
    if (folder / PLAN).is_file() and (other := read_kept(folder / PLAN)["name"]) != name:
        raise SftdiffError(
            f"{folder} holds the results of diff {other}, which those of {name} would replace: name another folder"
        )
    before, earlier = _kept_before(folder, plan["settings"].pop("kept", None))
    cells = [_cell(runs, cell, configs[cell["arm"], cell["seed"]]) for cell in state["cells"]]
    cells = [cell if cell["done"] else before.get(_identity(cell), cell) for cell in cells]
    scores = _scores(runs, cells, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in plan.items() if key != "fingerprint"}
    write_json(folder / PLAN, without_places(kept | {"name": name, "rounds": state["rounds"], "looks": state["looks"]}))
    lines = "".join(json.dumps(without_places(cell), ensure_ascii=False) + "\n" for cell in cells)
    (folder / CELLS).write_text(lines, encoding="utf-8")
    write_rows(folder / SCORES, scores, SCORE_SCHEMA)
    return cells


def checked_folder(folder: Path) -> Path:
    """Return a folder that holds a kept diff; raises SftdiffError if it holds none."""
    if not (folder / PLAN).is_file():
        raise SftdiffError(f"{folder} holds no kept diff: write it with `python -m sftdiff.diff keep NAME {folder}`")
    return folder


def read_kept(path: Path) -> Row:
    """Read a JSON file of a kept diff; raises SftdiffError if it is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        raise SftdiffError(f"{path} is damaged: take it from where it is stored, or keep the diff in another folder") from None


def kept_scores(folder: Path) -> dict[str, list[Row]]:
    """Return judge step -> its verdict rows, without texts, as they are kept in a folder."""
    tables: dict[str, list[Row]] = {}
    for row in read_table(checked_folder(folder) / SCORES).to_pylist():
        tables.setdefault(row["step"], []).append(row)
    return tables


def _kept_before(*folders: str | Path | None) -> tuple[dict[str, Row], dict[str, list[Row]]]:
    """Return cells by what they were made of, and verdict rows by judge step, as they are kept in folders."""
    cells, scores = dict[str, Row](), dict[str, list[Row]]()
    for folder in (Path(folder) for folder in folders if folder):
        if (folder / PLAN).is_file():
            cells |= {_identity(cell): cell for cell in _kept_cells(folder) if cell["done"]}
            scores |= kept_scores(folder)
    return cells, scores


def _kept_cells(folder: Path) -> list[Row]:
    return [row for _, row in read_rows(folder / CELLS)]


def _identity(cell: Mapping[str, Any]) -> str:
    return canonical([cell["arm"], cell["seed"], cell["steps"], cell["judges"]])


def _configs(diff: Path) -> list[tuple[str, Row]]:
    return [(row["arm"], row["config"]) for _, row in read_rows(diff / "cells.jsonl")]


def without_places(value: Any) -> Any:
    """Return a JSON value whose paths from the root of a file system are cut to their last part: they tell of one machine."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    if isinstance(value, str):
        return ABSOLUTE.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], value)
    return value


def _cell(runs: Path, cell: Mapping[str, Any], config: Mapping[str, Any]) -> Row:
    """Return what is kept of one arm and training seed: what it was made of and with, what came out, and how long it took."""
    steps, pack = cell["steps"], _done(runs, cell["steps"]["pack"])
    train = _done(runs, steps["train"])
    seconds = cell_seconds(runs, cell)
    own = {key: value for key, value in config.items() if key not in NOT_OF_CELLS}
    kept = {key: cell[key] for key in ("arm", "seed", "steps", "judges")}
    return kept | {
        "done": seconds is not None,
        "seconds": seconds,
        "config": digest(canonical(own), 64),
        "chosen": {
            "model": own["model"]["name"],
            "prompts": own["prompts"]["name"],
            "teacher": own["teacher"]["name"],
            "prompt_subset": {key: value for key, value in own["prompt_subset"].items() if value is not None},
            "filter": own["filter"]["name"],
            "precision": [own["train"]["precision"], own["sampling"]["precision"]],
        },
        "content": _contents(runs, cell),
        "code": code_of(runs, steps["train"]) if train else None,
        "trained": {key: pack["summary"].get(key) for key in ("rows", "tokens", "loss_tokens")} | _training(train)
        if pack
        else None,
    }


def _done(runs: Path, step: str) -> Row | None:
    return read_done(runs / "steps" / step)


def _training(train: Row | None) -> Row:
    keys = ("rows_seen", "loss_tokens_seen", "optimizer_steps", "first_loss", "last_loss")
    return {key: train["summary"].get(key) for key in keys} | {"seconds": train["seconds"]} if train else {}


def _contents(runs: Path, cell: Mapping[str, Any]) -> Row:
    """Return the content hash of every finished step that a cell was made of, from its student to its verdicts."""
    made = {key: cell["steps"][key] for key in ("student", "mixture", "pack", "train")}
    mixture = runs / "steps" / made["mixture"]
    made |= load_record(mixture).inputs if (mixture / "config.yaml").is_file() else {}
    made |= {f"verdicts of {trait}": step for trait, step in cell["judges"].items()}
    return {name: done["content"] for name, step in made.items() if (done := _done(runs, step))}


def code_of(runs: Path, step: str) -> Row | None:
    """Return with which code a step was made: versions and commit; None if the step has not run."""
    path = runs / "steps" / step / "provenance.json"
    return {key: value for key, value in read_json(path).items() if key in OF_CODE} if path.is_file() else None


def _scores(runs: Path, cells: Sequence[Mapping[str, Any]], earlier: Mapping[str, list[Row]]) -> list[Row]:
    rows = []
    for step in dict.fromkeys(step for cell in cells for step in cell["judges"].values()):
        if _done(runs, step):
            columns = SCORE_SCHEMA.names[1:]
            found = read_table(runs / "steps" / step / "verdicts.parquet", columns).to_pylist()
            rows += [{"step": step} | row for row in found]
        else:
            rows += earlier.get(step, [])
    return rows


def rebuild(folder: Path) -> Row:
    """Return the result that the files in a folder make, with the looks that can be taken at them."""
    plan, cells, tables = read_kept(checked_folder(folder) / PLAN), _kept_cells(folder), kept_scores(folder)
    verdicts = {name: verdicts_of(cells, name, tables.get) for name in (*plan["traits"], *plan["guards"])}
    looks = {
        name: take_looks(plan["looks"].get(name, {}), verdicts[name], trait, plan["settings"], plan["first_seed"])
        for name, trait in plan["traits"].items()
    }
    seconds = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    state = {"rounds": plan["rounds"], "looks": looks}
    return build_result(plan, state, verdicts, fmean(seconds) if seconds else None, plan["name"])
